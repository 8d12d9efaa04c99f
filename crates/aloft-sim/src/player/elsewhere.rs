//! Runs that are carried out elsewhere: what a step's report stands for, and what is looked at beside it.

use super::Player;
use crate::{
    elsewhere::{Said, Stage, Told, output_prefix},
    ids::{ActionId, Name, Request, RunId, RunLane},
    lanes::Lane,
    model::Run,
    rules::{Check, views},
    seen::Details,
    step::{Kind, Naming},
};

impl Player<'_> {
    pub(super) fn lane(&self, lane: &Lane) -> RunLane {
        RunLane { queue: lane.queue.map(|n| self.scene.queue(n)).unwrap_or_default(), most: lane.most }
    }

    /// The name of a run that the server names.
    pub(super) fn unnamed(&self, name: &Naming) -> Name {
        match name {
            Naming::Request(n) => Name::ForRequest(self.scene.request(*n)),
            Naming::Named(_) | Naming::Nameless => Name::Any,
        }
    }

    pub(super) fn tell(&self, run: u8, (action, parent): (u8, u8), kind: &Option<Kind>, said: &Said) -> Request {
        let (scene, model) = (&self.scene, self.model());
        let run = scene.run_elsewhere(run, model);
        let parent = scene.action(parent, &run, model);
        let action = run.action(&scene.action_name(action));
        let now = self.host.now().as_micros();
        // Somebody else's clock and store are not ours to know.
        let at = said.ago.filter(|_| self.ours()).map(|ms| aloft_core::Time::from_micros(now - i64::from(ms) * 1000));
        // Parents hear of outputs before an end only where tasks write them.
        let wrote = said.wrote && said.stage == Stage::Succeeded && self.ours();
        let output = if wrote { output_prefix(&action, said.attempt) } else { String::new() };
        let told = Told { attempt: said.attempt.into(), version: said.version.into(), stage: said.stage, at, output };
        let kind = kind.clone().filter(|kind| !matches!(kind, Kind::Condition(_)));
        Request::Tell { action, parent, kind, told }
    }

    /// Looks at an action that was reported on, and at what may have ended with it.
    pub(super) async fn look_below(&mut self, id: &ActionId) -> Check {
        self.look(id).await?;
        for below in self.below(id) {
            views::rule_5_abort_shown_on_descendants_at_once(self.look(&below).await)?;
        }
        Ok(())
    }

    /// The service that has only runs that are carried out elsewhere has this one if it is one, and shows it no otherwise.
    pub(super) async fn audit_elsewhere(&self, run: &RunId, root: &Details) -> Check {
        let expected = self.model().run(run).is_some_and(Run::is_elsewhere).then_some(root);
        let found = self.client.run_elsewhere(run).await?;
        views::rule_1_views_agree(&expected, "TrackedRunService.GetRunDetails", &found.as_ref())
    }
}
