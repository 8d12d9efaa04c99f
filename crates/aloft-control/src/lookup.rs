//! Looks results up in the cache before actions are handed out.

use std::time::Duration;

use aloft_core::{ActionState, Command, Reply, RunKey, Seen, Time};
use aloft_plane::PlaneError;
use aloft_store::{StoreError, Submission, SubmitError};
use futures::{StreamExt as _, stream};

use crate::{
    Control,
    reconcile::{BATCH, IDLE, STALE, TROUBLE},
    work::Reconciler,
};

/// Lookups at a time. Each asks the object store once, so this bounds what one burst of cached actions asks of it.
const PARALLEL: usize = 32;

/// Shortest time between two looks that commits wake. Short, because an action waits for its lookup.
const LOOK_PACE: Duration = Duration::from_millis(5);

impl Control {
    /// Decides lookups that are due.
    pub(crate) async fn lookup_loop(&self) {
        let mut feed = self.store().feed();
        while !self.stopping().is_cancelled() {
            feed.mark_unchanged();
            let now = self.now();
            let next = match self.counted(Reconciler::Lookups, self.look_up_once(now)).await {
                Ok((changed, _)) if changed.contains(&true) => continue,
                Ok((changed, _)) if !changed.is_empty() => {
                    // All below something that has ended, and about to follow it; or the cache has just changed.
                    self.pause(STALE).await;
                    continue;
                }
                Ok((_, next)) => next.map_or(IDLE, |at| at.since(now).min(IDLE)),
                Err(error) => {
                    tracing::warn!(%error, "cannot look for cache lookups");
                    TROUBLE
                }
            };
            self.pause(LOOK_PACE.min(next)).await;
            tokio::select! {
                () = self.stopping().cancelled() => {}
                _ = feed.changed() => {}
                () = tokio::time::sleep(next.max(Duration::from_millis(1))) => {}
            }
        }
    }

    /// One look at the lookups: of each that was due by `now` whether that decided it, and when the next one is due. Public
    /// as [`Self::settle_once`] is.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read or written.
    pub async fn look_up_once(&self, now: Time) -> Result<(Vec<bool>, Option<Time>), StoreError> {
        let (due, next) = self.store().lookups(now, BATCH).await?;
        let looked = stream::iter(due).map(|(run, state)| self.look_up(run, state)).buffer_unordered(PARALLEL);
        let decided = looked.collect::<Vec<_>>().await.into_iter().collect::<Result<_, _>>()?;
        Ok((decided, next))
    }

    /// Looks at what the cache names for the action, and has it decided; `false` if that changed nothing.
    async fn look_up(&self, run: RunKey, state: ActionState) -> Result<bool, StoreError> {
        let seen = self.see(&run, &state).await?;
        let command = Command::LookUp { action: state.name.clone(), seen };
        match self.store().submit(Submission::new(run.clone(), command)).await {
            Ok(reply) => Ok(reply == Reply::Done),
            Err(SubmitError::Refused(refusal)) => {
                tracing::debug!(%refusal, run = %run, action = %state.name, "a cache lookup was not decided");
                Ok(false)
            }
            Err(SubmitError::Store(error)) => Err(error),
        }
    }

    /// Whether the result that the cache names is there. One whose data is gone is forgotten: a miss, never an error.
    async fn see(&self, run: &RunKey, state: &ActionState) -> Result<Seen, StoreError> {
        let Some(plan) = state.pending_lookup().filter(|plan| !plan.overwrite) else { return Ok(Seen::Nothing) };
        let (now, entries) = (self.now(), self.store().cached(&run.scope, plan).await?);
        let fresh = entries.into_iter().find(|e| e.is_fresh(plan.max_age_ms, now));
        let Some(entry) = fresh else { return Ok(Seen::Nothing) };
        let uri = entry.outputs.output_uri;
        match self.has_outputs(run, &uri).await {
            Ok(true) => Ok(Seen::Data { output_uri: uri }),
            Ok(false) => {
                self.forget(run, &plan.key, &uri).await?;
                Ok(Seen::Nothing)
            }
            Err(error) => {
                tracing::warn!(%error, run = %run, action = %state.name, "a cached result cannot be looked at");
                Ok(Seen::Failed)
            }
        }
    }

    /// Whether the outputs below `uri` are there for the run to read.
    pub(crate) async fn has_outputs(&self, run: &RunKey, uri: &str) -> Result<bool, PlaneError> {
        if !self.data().owns(&run.scope, uri) {
            return Ok(false);
        }
        let file =
            if uri.ends_with(".pb") { uri.to_owned() } else { format!("{}/outputs.pb", uri.trim_end_matches('/')) };
        Ok(self.data().missing(&run.scope, &[file]).await?.is_empty())
    }

    /// Forgets a result whose data is gone, in whichever domain of the project it was cached.
    async fn forget(&self, run: &RunKey, key: &str, uri: &str) -> Result<(), StoreError> {
        for domain in self.store().domains(&run.scope.org).await? {
            let scope = aloft_core::Scope { domain: domain.id, ..run.scope.clone() };
            self.store().drop_cached(&scope, key, uri).await?;
        }
        Ok(())
    }
}
