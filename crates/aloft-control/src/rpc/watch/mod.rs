//! Watches: a snapshot at number n, then what has changed after n (design rule 1). Every stream ends UNAVAILABLE when the
//! server stops, and by itself when what it watches is over.
//!
//! Nothing is queued for a slow reader: a stream reads when the next message is asked for, and reads what is, so that many
//! changes become one message. It never shows less than it has shown, because every read sees all that was committed
//! before it.

mod actions;
mod cluster;
mod details;
mod groups;
mod runs;
mod shared;
mod totals;
mod tree;

use std::{sync::Arc, time::Duration};

use aloft_core::RunKey;
use aloft_store::{Filter, ListScope, Logged, RunRow};
use futures::{StreamExt as _, stream::unfold};
use tokio::{sync::watch, time::Instant};

pub(crate) use self::shared::Watchings;
use self::shared::{Shared, Shown};
pub(super) use self::{
    actions::actions,
    cluster::{cluster_events, events as cluster_events_of},
    details::{action_details, run_details},
    groups::groups,
    runs::{runs, runs_that},
    shared::Look,
};
use super::{
    actions::Messages,
    error::{Answer, stopping, wire},
};
use crate::Control;

/// Time between signs of life on a quiet stream, below the idle timeouts of common proxies (60 s).
pub(super) const HEARTBEAT: Duration = Duration::from_secs(20);

/// Events or changes read at a time.
const BATCH: usize = 1000;

/// Shortest time between two looks of one stream. A person sees no difference, and a busy server reads fifty times a
/// second for each watcher instead of once for each commit.
const PACE: Duration = Duration::from_millis(20);

/// Why a watcher woke.
pub(super) enum Woken {
    /// The log has grown.
    Changed,
    /// Nothing happened for a while.
    Heartbeat,
}

/// One run's log, followed.
pub(super) struct Watched {
    control: Control,
    run: RunKey,
    shared: Arc<Shared>,
    hint: watch::Receiver<u64>,
    /// Whether nothing was read since the hint was subscribed to: it says nothing of what was before.
    fresh: bool,
}

impl Watched {
    /// Follows `run`. Subscribes before anything is read, so that what is committed in between is not missed.
    pub(super) fn new(control: &Control, run: RunKey) -> Self {
        let hint = control.store().changes(&run);
        let shared = control.watching(&run);
        Self { control: control.clone(), run, shared, hint, fresh: true }
    }

    /// What was appended to the log after number `seq`; up to a thousand events.
    pub(super) async fn events_after(&mut self, seq: u64) -> Answer<Vec<Arc<Logged>>> {
        let told = *self.hint.borrow_and_update();
        if told <= seq && !self.fresh {
            return Ok(Vec::new());
        }
        self.fresh = false;
        self.shared.events_after(&self.control, seq).await
    }

    /// Actions as they must be shown, when the log was read to `upto`, in the order asked for.
    pub(super) async fn look(&self, filters: &[Filter], looks: &[Look], upto: u64) -> Answer<Vec<Arc<Shown>>> {
        self.shared.look(&self.control, filters, looks, upto).await
    }

    /// Waits for the log to grow.
    pub(super) async fn changed(&mut self) -> Answer<Woken> {
        tokio::select! {
            biased;
            () = self.control.stopping().cancelled() => Err(stopping()),
            changed = self.hint.changed() => match changed {
                Ok(()) => Ok(Woken::Changed),
                // The hub dropped a channel that looked unwatched: take a new one and look again.
                Err(_) => {
                    self.hint = self.control.store().changes(&self.run);
                    self.fresh = true;
                    Ok(Woken::Changed)
                }
            },
            () = tokio::time::sleep(HEARTBEAT) => {
                // Should a hint have been lost, this is when that is noticed.
                self.fresh = true;
                Ok(Woken::Heartbeat)
            }
        }
    }
}

/// Keeps the looks of a stream apart.
#[derive(Default)]
struct Pace(Option<Instant>);

impl Pace {
    /// Waits until another look is due.
    async fn keep(&mut self) {
        if let Some(last) = self.0 {
            tokio::time::sleep_until(last + PACE).await;
        }
        self.0 = Some(Instant::now());
    }
}

/// The changes of runs, followed.
struct Changes {
    control: Control,
    scope: ListScope,
    filters: Vec<Filter>,
    feed: watch::Receiver<u64>,
    /// The place up to which changes are known.
    upto: u64,
    pace: Pace,
}

impl Changes {
    /// Follows the runs of `scope` from now on.
    async fn new(control: Control, scope: ListScope, filters: Vec<Filter>) -> Answer<Self> {
        let feed = control.store().feed();
        let upto = control.store().last_run_change().await.map_err(wire)?;
        Ok(Self { control, scope, filters, feed, upto, pace: Pace::default() })
    }

    /// What has changed since, with whether it meets the filters; nothing after a while in which nothing did.
    async fn next(&mut self) -> Answer<Vec<(RunRow, bool)>> {
        let quiet = Instant::now() + HEARTBEAT;
        loop {
            self.pace.keep().await;
            self.feed.mark_unchanged();
            let store = self.control.store();
            let changes = store.runs_changed(&self.scope, &self.filters, self.upto, BATCH).await.map_err(wire)?;
            self.upto = changes.upto;
            if !changes.rows.is_empty() {
                return Ok(changes.rows);
            }
            tokio::select! {
                biased;
                () = self.control.stopping().cancelled() => return Err(stopping()),
                // The sender lives as long as the store, which this holds.
                _ = self.feed.changed() => {}
                () = tokio::time::sleep_until(quiet) => return Ok(Vec::new()),
            }
        }
    }
}

/// What a stream does next.
enum Step<T> {
    Send(T),
    /// Send and end.
    Last(T),
    End,
}

/// A stream from a state and a function that makes its next message.
fn stream<S, T, F>(state: S, next: F) -> Messages<T>
where
    S: Send + 'static,
    T: Send + 'static,
    F: for<'s> Fn(&'s mut S) -> futures::future::BoxFuture<'s, Answer<Step<T>>> + Send + 'static,
{
    unfold(Some((state, next)), |current| async move {
        let (mut state, next) = current?;
        match next(&mut state).await {
            Ok(Step::Send(item)) => Some((Ok(item), Some((state, next)))),
            Ok(Step::Last(item)) => Some((Ok(item), None)),
            Ok(Step::End) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}
