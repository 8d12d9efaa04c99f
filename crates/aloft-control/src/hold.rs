//! Says of waiting actions which limit holds them back.

use std::time::Duration;

use aloft_core::{Command, Held, plan};
use aloft_store::{OfferPlace, StoreError, Submission};
use futures::future::join_all;

use crate::{
    Control,
    dispatch::GROUPS,
    reconcile::{IDLE, TROUBLE},
    work::Reconciler,
};

/// How long a limit may hold an action before that is said. Most pass sooner, and every word is a commit.
const PATIENCE: Duration = Duration::from_millis(250);

/// Most actions of one group of which it is said in one round. The rest follows in the next, a patience later.
const EACH: usize = 100;

impl Control {
    /// Marks actions that limits hold back as waiting for resources, with the reason.
    pub(crate) async fn hold_loop(&self) {
        let mut feed = self.store().feed();
        while !self.stopping().is_cancelled() {
            feed.mark_unchanged();
            match self.counted(Reconciler::Holds, self.hold_once()).await {
                // More to say, or changes under way: look again in a while, not at every event.
                Ok(()) => self.pause(PATIENCE).await,
                Err(error) => {
                    tracing::warn!(%error, "cannot look for actions that limits hold back");
                    self.pause(TROUBLE).await;
                }
            }
            tokio::select! {
                () = self.stopping().cancelled() => {}
                _ = feed.changed() => {}
                () = tokio::time::sleep(IDLE) => {}
            }
        }
    }

    /// One look for actions that limits hold back, of which that was not said yet. Public as [`Self::settle_once`] is.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn hold_once(&self) -> Result<(), StoreError> {
        let now = self.now();
        let mut place = OfferPlace::default();
        loop {
            let part = self.store().offer(now, &place, GROUPS, EACH).await?;
            // With every slot free only limits hold anything back.
            let held = plan(part.offer, usize::MAX).held;
            let silent = held.into_iter().filter(|h| !h.candidate.shown && now.since(h.candidate.ready_at) >= PATIENCE);
            join_all(silent.map(|h| self.hold(h))).await;
            match part.next {
                Some(next) => place = next,
                None => return Ok(()),
            }
        }
    }

    async fn hold(&self, held: Held) {
        let command = Command::Hold { action: held.candidate.action.clone(), reason: held.reason };
        if let Err(error) = self.store().submit(Submission::new(held.run.clone(), command)).await {
            tracing::debug!(%error, run = %held.run, action = %held.candidate.action, "cannot say that an action is held back");
        }
    }
}
