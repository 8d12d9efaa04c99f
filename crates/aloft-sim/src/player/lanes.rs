//! Queues and limits: the reconciler that says what they hold back, and what a queue is shown to hold.

use aloft_core::Phase;

use super::Player;
use crate::{
    lanes::Waiting,
    rules::{Check, answers},
};

impl Player<'_> {
    /// The reconciler looks once for what limits hold back.
    pub(super) async fn hold(&mut self) -> Check {
        let Some(server) = self.host.inside() else { return Ok(()) };
        let at = self.host.now();
        if self.fault.says_what_is_held() {
            answers::rule_5_reconcilers_go_on(server.control().hold_once().await)?;
        }
        let mut told: Vec<Waiting> = Vec::new();
        for id in self.model().waiting(at) {
            let details = self.fault.details(self.client.details(&id).await?);
            let Some(attempt) = details.attempts.last() else { continue };
            if self.fault.seems_held(attempt.phase == Phase::WaitingForResources) {
                // Others wait for a result.
                if self.model().is_silent(&id) {
                    self.tally.count("held back");
                }
                told.push((id, self.fault.words(attempt.waits_for.clone())));
            }
        }
        self.beliefs.observed(|model| model.held_back(at, &told))
    }

    /// Looks at a queue, if there is one.
    pub(super) async fn look_at_queue(&mut self, name: &str) -> Check {
        if !self.model().queue_names().iter().any(|known| known == name) {
            return Ok(());
        }
        let shown = self.fault.queue(self.client.queue(name).await?);
        self.beliefs.observed(|model| model.observe_queue(name, &shown))
    }
}
