//! What the control plane measures itself, for whoever shows it. What the log tells is measured by the store's observer.

use std::{sync::Arc, time::Duration};

use aloft_core::{RunKey, Seed};
use aloft_store::Observer;
use tokio::time::Instant;

use crate::Control;

/// Who is told. It must not keep the caller waiting.
pub trait Meter: Send + Sync + 'static {
    /// A task was created `took` after its request had arrived.
    fn accepted(&self, run: &RunKey, task: &str, took: Duration);

    /// An event was read from the feed this long after it had happened.
    fn followed(&self, lag: Duration);
}

impl Control {
    /// Tells `meter` from now on. Only the first one is told.
    pub fn measure(&self, meter: Arc<dyn Meter>) {
        let _ = self.0.meter.set(meter);
    }

    /// Tells `observer` of every commit of this process from now on.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        self.store().observe(observer);
    }

    /// Who is told, if anybody.
    pub(crate) fn meter(&self) -> Option<&dyn Meter> {
        self.0.meter.get().map(AsRef::as_ref)
    }

    /// Tells that a task was created, of which the request arrived at `since`. Others than tasks are not told.
    pub(crate) fn accepted(&self, run: &RunKey, task: Option<&str>, since: Instant) {
        if let (Some(meter), Some(task)) = (self.meter(), task) {
            meter.accepted(run, task, since.elapsed());
        }
    }
}

/// The name of a task, if that is what is created and it waits for a data plane.
pub(crate) fn task_of(seed: &Seed, recovered: bool) -> Option<String> {
    match seed {
        Seed::Task(task) if !recovered => Some(task.task.name.clone()),
        Seed::Task(_) | Seed::Trace(_) | Seed::Condition(_) => None,
    }
}
