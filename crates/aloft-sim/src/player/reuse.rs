//! Cache lookups, vanishing outputs, and what the audit asks of what was reused.

use std::collections::BTreeMap;

use aloft_core::ROOT_ACTION;

use super::Player;
use crate::{
    ids::{ActionId, Request, output_prefix},
    rules::{
        Check, answers,
        reuse::{self, Computed},
        views,
    },
    seen::Details,
    step::{Kind, Progress},
};

impl Player<'_> {
    /// What whoever asks has written before: a task its outputs, a parent those of a traced function.
    pub(super) fn write_outputs(&self, request: &Request) {
        let Some(server) = self.host.inside() else { return };
        match request {
            Request::Report { lease, progress: Progress::Succeeded } => {
                server.plane().write_outputs(&output_prefix(&lease.action, lease.attempt));
            }
            Request::Enqueue { action, kind: Kind::Trace { .. }, .. } => {
                server.plane().write_outputs(&output_prefix(action, 1));
            }
            _ => {}
        }
    }

    /// Lets the server decide every lookup that is due.
    pub(super) async fn look_up(&mut self, reachable: bool) -> Check {
        let Some(server) = self.host.inside() else { return Ok(()) };
        let at = self.host.now();
        server.plane().set_reachable(reachable);
        // After a result was forgotten the lookup is decided the next time.
        let mut still = 0;
        while still < 2 {
            let looked = answers::rule_5_reconcilers_go_on(server.control().look_up_once(at).await)?;
            still = match looked.0.as_slice() {
                [] => break,
                looked if looked.contains(&true) => 0,
                _ => still + 1,
            };
        }
        server.plane().set_reachable(true);
        let mut seen = Vec::new();
        for id in self.model().looking() {
            seen.push(self.fault.details(self.client.details(&id).await?));
        }
        self.beliefs.observed(|model| model.looked_up(at, reachable, &seen))?;
        for details in &seen {
            self.memory.details(details)?;
            self.beliefs.observe(details)?;
            self.tally.looked_up(details);
        }
        self.fault.looked_up();
        Ok(())
    }

    /// What was written `back` outputs ago vanishes.
    pub(super) fn vanish(&mut self, back: u8) {
        let outputs = self.model().outputs();
        let (Some(server), Some(last)) = (self.host.inside(), outputs.len().checked_sub(1)) else { return };
        let output = &outputs[last - usize::from(back) % (last + 1)];
        if self.fault.vanishes() {
            server.plane().vanish(output);
        }
        self.beliefs.happened(|model| model.vanish(output));
        self.tally.count("vanished");
    }

    /// What was reused had succeeded before, and what is serialized was computed once at a time.
    pub(super) fn audit_reuse(&self, details: &BTreeMap<ActionId, Details>) -> Check {
        let ended = |id: &ActionId| details.get(id).filter(|d| d.shown.phase.is_terminal());
        for one in details.values() {
            let shown = &one.shown;
            reuse::rule_2_a_hit_is_of_what_succeeded_before(one, |id, attempt| {
                let source = ended(id)?;
                let attempt = source.attempts.iter().find(|a| a.number == attempt)?;
                Some(Computed { phase: source.shown.phase, at: source.shown.end, output: attempt.output.clone() })
            })?;
            if let Some((source, _)) = one.attempts.iter().find_map(|a| a.source.as_ref()) {
                let identical = self.model().are_identical(&shown.id, source);
                reuse::rule_2_hits_are_of_identical_work(&shown.id, source, identical)?;
            }
            let run = self.model().run(&shown.id.run);
            let from = run.and_then(|run| run.reuse.from.as_ref()).filter(|from| from.recover.is_some());
            reuse::rule_2_what_is_recovered_had_succeeded(shown, from.map(|from| &from.run), |id| {
                let source = ended(id)?;
                Some(Computed { phase: source.shown.phase, at: source.shown.end, output: String::new() })
            })?;
        }
        for turn in self.model().turns() {
            let identical: Vec<&Details> = turn.iter().filter_map(|id| details.get(id)).collect();
            reuse::rule_2_identical_work_is_not_computed_side_by_side(&identical)?;
        }
        Ok(())
    }

    /// Whoever asks for what was made from a run finds it.
    pub(super) async fn audit_relations(&self) -> Check {
        let model = self.model();
        let mut asked: Vec<_> = model
            .runs()
            .into_iter()
            .filter_map(|(id, run)| Some((id.place.clone(), run.reuse.from.as_ref()?.run.name.clone())))
            .collect();
        asked.sort();
        asked.dedup();
        for (place, name) in asked {
            let related = |id: &&crate::ids::RunId| {
                let from = model.run(id).and_then(|run| run.reuse.from.as_ref());
                from.is_some_and(|from| from.run.name == name)
            };
            let expected: Vec<ActionId> =
                model.runs_of(&place).into_iter().filter(related).map(|id| id.action(ROOT_ACTION)).collect();
            let found = self.fault.related(self.client.runs_from(&place, &name).await?);
            let found: Vec<ActionId> = found.into_iter().map(|shown| shown.id).collect();
            let listed = views::rule_1_lists_are_complete("ListRuns of what was made from a run", &expected, &found);
            reuse::rule_1_relations_are_seen_both_ways(listed)?;
        }
        Ok(())
    }
}
