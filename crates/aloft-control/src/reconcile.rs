//! The reconcilers: each looks at the state, does a bounded batch, and sleeps until the feed or a timer says that looking
//! again is worth it. None of them remembers anything, so a restart loses nothing.

use std::{collections::BTreeMap, time::Duration};

use aloft_core::{ActionName, Command, Event, Reply, RunKey, Time};
use aloft_store::{FeedItem, Sift, StoreError, Submission, Which};
use futures::future::join_all;

use crate::{Control, work::Reconciler};

/// Most actions settled or checked in one go. Small enough for one commit, large enough that a run of thousands is
/// settled in a few.
pub(crate) const BATCH: usize = 500;

/// Longest sleep between looks. The feed wakes the loops; this only bounds the harm of a lost hint.
pub(crate) const IDLE: Duration = Duration::from_secs(5);

/// Pause after a batch of which nothing changed anything: what is due lies below something that has ended, and the settling
/// of it is under way.
pub(crate) const STALE: Duration = Duration::from_millis(20);

/// Shortest time between two looks that commits wake: a busy server looks twenty times a second, not once for each commit.
pub(crate) const PACE: Duration = Duration::from_millis(50);

/// Pause after the store could not be read.
pub(crate) const TROUBLE: Duration = Duration::from_secs(1);

impl Control {
    /// Ends what is still live below actions that have ended (design rule 5).
    pub(crate) async fn settle_loop(&self) {
        let mut feed = self.store().feed();
        while !self.stopping().is_cancelled() {
            feed.mark_unchanged();
            match self.counted(Reconciler::Settle, self.settle_once()).await {
                Ok(0) => {
                    self.pause(PACE).await;
                    tokio::select! {
                        () = self.stopping().cancelled() => {}
                        _ = feed.changed() => {}
                        () = tokio::time::sleep(IDLE) => {}
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "cannot look for actions to settle");
                    self.pause(TROUBLE).await;
                }
            }
        }
    }

    /// One look of the settling reconciler: how many actions it found below ended ones. Public so that a simulation can
    /// decide when it happens.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn settle_once(&self) -> Result<usize, StoreError> {
        let found = self.store().unsettled(BATCH).await?;
        let count = found.len();
        let mut by_run: BTreeMap<RunKey, Vec<ActionName>> = BTreeMap::new();
        for (run, action) in found {
            by_run.entry(run).or_default().push(action);
        }
        for (run, actions) in by_run {
            let submission = Submission::new(run.clone(), Command::Settle { actions });
            if let Err(error) = self.store().submit(submission).await {
                tracing::warn!(%error, run = %run, "cannot settle the actions below an ended one");
                self.pause(TROUBLE).await;
            }
        }
        Ok(count)
    }

    /// Ends attempts of which a time limit has passed.
    pub(crate) async fn limits_loop(&self) {
        let mut feed = self.store().feed();
        while !self.stopping().is_cancelled() {
            feed.mark_unchanged();
            let now = self.now();
            let next = match self.counted(Reconciler::Limits, self.check_limits_once(now)).await {
                Ok((changed, _)) if changed.contains(&true) => continue,
                Ok((changed, _)) if !changed.is_empty() => {
                    self.pause(STALE).await;
                    continue;
                }
                Ok((_, next)) => next.map_or(IDLE, |at| at.since(now).min(IDLE)),
                Err(error) => {
                    tracing::warn!(%error, "cannot look for time limits");
                    TROUBLE
                }
            };
            self.pause(PACE.min(next)).await;
            let next = next.saturating_sub(PACE);
            tokio::select! {
                () = self.stopping().cancelled() => {}
                _ = feed.changed() => {}
                () = tokio::time::sleep(next.max(Duration::from_millis(1))) => {}
            }
        }
    }

    /// One look of the reconciler of time limits: of each action that was due by `now` whether that changed it, and when
    /// the next one is due. Public as [`Self::settle_once`] is.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn check_limits_once(&self, now: Time) -> Result<(Vec<bool>, Option<Time>), StoreError> {
        let (due, next) = self.store().due(now, BATCH).await?;
        let checks = due.iter().map(|(run, action)| self.check_limits(run, action));
        Ok((join_all(checks).await, next))
    }

    /// Ends the action's attempt if it passed a limit; `false` if it did not.
    async fn check_limits(&self, run: &RunKey, action: &ActionName) -> bool {
        let submission = Submission::new(run.clone(), Command::CheckLimits { action: action.clone() });
        match self.store().submit(submission).await {
            Ok(reply) => reply == Reply::Done,
            Err(error) => {
                tracing::warn!(%error, run = %run, action = %action, "cannot check a time limit");
                false
            }
        }
    }

    /// Says what goes on: runs that begin and end. Follows the feed from its newest event, so a restart says nothing twice.
    pub(crate) async fn narrate_loop(&self) {
        let mut feed = self.store().feed();
        let mut pos = *feed.borrow_and_update();
        while !self.stopping().is_cancelled() {
            feed.mark_unchanged();
            match self.store().sift_feed(pos, BATCH, Sift::Roots).await {
                Ok(found) => {
                    if let (Some(meter), Some(newest)) = (self.meter(), found.items.last()) {
                        meter.followed(self.now().since(newest.logged.at));
                    }
                    pos = found.upto;
                    for item in &found.items {
                        self.narrate(item).await;
                    }
                    if !found.more {
                        self.pause(PACE).await;
                        tokio::select! {
                            () = self.stopping().cancelled() => {}
                            _ = feed.changed() => {}
                        }
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "cannot follow the feed");
                    self.pause(TROUBLE).await;
                }
            }
        }
    }

    async fn narrate(&self, item: &FeedItem) {
        let run = &item.run;
        match &item.logged.event {
            Event::Created { seed, .. } => {
                let task = seed.title();
                tracing::info!(run.id = %run, "run {} of {task} begins: {}", run.name, self.run_url(run));
            }
            event if !event.may_end() => {}
            _ => {
                let Ok(Some(snapshot)) = self.store().snapshot(run, Which::One(ActionName::root())).await else {
                    return;
                };
                let Some(root) = snapshot.actions.first() else { return };
                let Some(end) = root.ended_at else { return };
                let seconds = end.since(root.created_at).as_secs_f64();
                let why = root.error.as_ref().map(|e| format!(", {}", e.code)).unwrap_or_default();
                tracing::info!(run.id = %run, "run {} ended ({}{why}) after {seconds:.1} s", run.name, root.phase.words());
            }
        }
    }
}
