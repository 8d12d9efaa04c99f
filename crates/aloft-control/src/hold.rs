//! Says of waiting actions which limit holds them back.

use std::{collections::HashMap, time::Duration};

use aloft_core::{ActionName, Command, Held, RunKey, plan};
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

/// Of which waiting actions it was said what holds them back, with what was said. It spares the store a command for each in
/// every round; a server that does not know says it again, which changes nothing.
pub(crate) type Said = HashMap<(RunKey, ActionName), String>;

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
        let said = std::mem::take(&mut *self.0.held.lock());
        let mut still = HashMap::new();
        let mut parts = async || {
            loop {
                let part = self.store().offer(now, &place, GROUPS, EACH).await?;
                // With every slot free only limits hold anything back.
                let held = plan(part.offer, usize::MAX).held;
                let held = held.into_iter().filter(|h| now.since(h.candidate.ready_at) >= PATIENCE);
                still.extend(join_all(held.map(|h| self.hold(h, &said))).await.into_iter().flatten());
                match part.next {
                    Some(next) => place = next,
                    None => return Ok(()),
                }
            }
        };
        let done = parts().await;
        *self.0.held.lock() = still;
        done
    }

    /// Says what holds an action back, unless that was `said` before. What is known to be said afterwards.
    async fn hold(&self, held: Held, said: &Said) -> Option<((RunKey, ActionName), String)> {
        let key = (held.run, held.candidate.action);
        if said.get(&key).is_some_and(|reason| *reason == held.reason) {
            return Some((key, held.reason));
        }
        let command = Command::Hold { action: key.1.clone(), reason: held.reason.clone() };
        match self.store().submit(Submission::new(key.0.clone(), command)).await {
            Ok(_) => Some((key, held.reason)),
            Err(error) => {
                tracing::debug!(%error, run = %key.0, action = %key.1, "cannot say that an action is held back");
                None
            }
        }
    }
}
