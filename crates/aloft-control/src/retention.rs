//! The reconciler that gives up history. It works slowly and all the time: small steps with pauses between them, so that those
//! who commit at the same time hardly notice. Of two control planes on one database that do it at once, one does nothing.
//!
//! It removes records of the control plane only. Users' data in the object store is not the control plane's to remove.

use std::time::Duration;

use aloft_core::Time;
use aloft_store::{Pruned, StoreError};
use tokio::time::Instant;

use crate::{Control, reconcile::TROUBLE, work::Reconciler};

/// Rows removed in one commit: two to four milliseconds of the writer of SQLite.
const STEP: usize = 300;

/// How many times as long as a step took the pause after it is: half of one connection's time at most.
const PAUSE: u32 = 1;

/// How often the progress of a long pass is said.
const SAY: Duration = Duration::from_secs(60);

impl Control {
    /// Gives up what is not kept any longer.
    pub(crate) async fn retention_loop(&self) {
        let settings = &self.settings().retention;
        if settings.kept.is_forever() {
            return;
        }
        while !self.stopping().is_cancelled() {
            match self.counted(Reconciler::Retention, self.prune_pass()).await {
                Ok(()) => self.pause(settings.every).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot give up history");
                    self.pause(TROUBLE.max(settings.every)).await;
                }
            }
        }
    }

    /// Steps until there is nothing more to do.
    async fn prune_pass(&self) -> Result<(), StoreError> {
        let (began, mut said, mut sum) = (Instant::now(), Instant::now(), Pruned::default());
        let say = |sum: Pruned, what: &str| {
            let Pruned { runs, actions, events, blobs, more: _ } = sum;
            if runs + actions + events + blobs > 0 {
                let seconds = began.elapsed().as_secs_f64();
                tracing::info!(runs, actions, events, blobs, seconds, "{what}");
            }
        };
        while !self.stopping().is_cancelled() {
            let step = Instant::now();
            let pruned = self.prune_once(self.now()).await?;
            sum.add(pruned);
            if !pruned.more {
                break;
            }
            if said.elapsed() >= SAY {
                say(sum, "giving up history of runs that ended long ago");
                said = Instant::now();
            }
            self.pause((step.elapsed() * PAUSE).max(Duration::from_millis(1))).await;
        }
        say(sum, "gave up history of runs that ended long ago");
        Ok(())
    }

    /// One step of giving up history: what of it was done. Public as [`Self::settle_once`] is.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read or written.
    pub async fn prune_once(&self, now: Time) -> Result<Pruned, StoreError> {
        let pruned = self.store().prune(&self.settings().retention.kept, now, STEP).await?;
        self.add_pruned(pruned);
        Ok(pruned)
    }
}
