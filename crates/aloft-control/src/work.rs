//! What the reconcilers of this process have done since it started, for whoever shows it.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use aloft_store::{Pruned, StoreError};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::Control;

/// Who looks at the state again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reconciler {
    /// Ends what is live below what has ended.
    Settle,
    /// Ends attempts of which a time limit has passed.
    Limits,
    /// Looks into the cache.
    Lookups,
    /// Says why work waits.
    Holds,
    /// Makes the calls that conditions ask for.
    Calls,
    /// Gives up history.
    Retention,
    /// Gives up workers that are not heard of.
    Workers,
}

impl Reconciler {
    /// Every one, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::Settle, Self::Limits, Self::Lookups, Self::Holds, Self::Calls, Self::Retention, Self::Workers];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Settle => "settle",
            Self::Limits => "limits",
            Self::Lookups => "lookups",
            Self::Holds => "holds",
            Self::Calls => "calls",
            Self::Retention => "retention",
            Self::Workers => "workers",
        }
    }
}

/// How often one of them has looked.
#[derive(Debug, Default)]
struct Passes {
    all: AtomicU64,
    failed: AtomicU64,
    micros: AtomicU64,
}

/// What they all have done.
#[derive(Debug, Default)]
pub struct Work {
    passes: [Passes; Reconciler::ALL.len()],
    pruned: Mutex<Pruned>,
}

/// How often a reconciler has looked, how often it could not, and how long all of that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Done {
    /// How often it has looked.
    pub passes: u64,
    /// How often it could not, of those.
    pub failed: u64,
    /// How long that took together.
    pub busy: Duration,
}

impl Work {
    /// What one of them has done.
    pub fn done(&self, of: Reconciler) -> Done {
        let Passes { all, failed, micros } = &self.passes[of as usize];
        Done {
            passes: all.load(Relaxed),
            failed: failed.load(Relaxed),
            busy: Duration::from_micros(micros.load(Relaxed)),
        }
    }

    /// What has been given up of the history.
    pub fn pruned(&self) -> Pruned {
        *self.pruned.lock()
    }
}

impl Control {
    /// What the reconcilers have done.
    pub fn work(&self) -> &Work {
        &self.0.work
    }

    /// Counts one look of a reconciler.
    pub(crate) async fn counted<T>(
        &self,
        of: Reconciler,
        pass: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let began = Instant::now();
        let found = pass.await;
        let Passes { all, failed, micros } = &self.work().passes[of as usize];
        micros.fetch_add(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX), Relaxed);
        failed.fetch_add(u64::from(found.is_err()), Relaxed);
        all.fetch_add(1, Relaxed);
        found
    }

    /// Adds what a step of giving up history did.
    pub(crate) fn add_pruned(&self, step: Pruned) {
        self.work().pruned.lock().add(step);
    }
}
