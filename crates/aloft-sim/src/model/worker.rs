//! What workers do, and what time does.

use aloft_core::{Phase, ROOT_ACTION, Time};

use super::{Life, Model, Why, action::Holder};
use crate::{
    ids::{ActionId, LOST, Lease, RAISED, output_prefix},
    rules::{
        Check,
        answers::{self, Answer, Granted},
        lanes, leases,
    },
    step::Progress,
};

impl Progress {
    fn is_end(&self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed { .. } | Self::Lost { .. })
    }
}

impl Model {
    pub(super) fn lease(&self, worker: &str, max: usize, alone: bool, answer: &Answer, at: Time) -> Check<Vec<Model>> {
        let granted = leases::rule_6_a_worker_is_answered(answer)?;
        let mut after = self.clone();
        for one in granted {
            after.grant(worker, one, at)?;
            after.check_limits_of(&one.lease.action)?;
        }
        let ready = self.all().filter(|(.., a)| a.waits(at)).count();
        // A record that has not followed the end above it may take a place of the answer; it is never handed out.
        let behind = self.all().filter(|(.., a)| a.looks_ready(at)).count();
        if alone {
            let limited = self.all().any(|(run, ..)| self.is_limited(run));
            let least = if limited { 0 } else { max.min(ready + behind).saturating_sub(behind) };
            leases::rule_6_ready_work_is_handed_out(granted.len(), least, max.min(ready))?;
            let passed_by = if limited && granted.len() + behind < max { after.has_room(granted, at) } else { None };
            lanes::rule_6_what_has_room_does_not_wait(passed_by.as_ref())?;
        }
        Ok(vec![after])
    }

    fn grant(&mut self, worker: &str, granted: &Granted, at: Time) -> Check {
        let Lease { action, attempt, token, .. } = &granted.lease;
        let holder = self.holder(action);
        let state = self.runs.get_mut(&action.run).and_then(|run| run.actions.get_mut(&action.name));
        let waits = state.as_ref().is_some_and(|a| a.waits(at));
        leases::rule_6_one_live_owner(granted, waits, holder.as_ref())?;
        let Some(state) = state else { return Ok(()) };
        let before = if *attempt > 1 { output_prefix(action, attempt - 1) } else { String::new() };
        let expected = leases::Told {
            attempt: state.attempts.len() as u32,
            output_prefix: output_prefix(action, *attempt),
            previous_prefix: before,
            parent: state.parent.clone(),
        };
        leases::rule_6_an_attempt_is_told_what_it_is(granted, &expected)?;
        if let Some(last) = state.attempts.last_mut() {
            last.holder = Some(Holder { worker: worker.to_owned(), token: *token });
        }
        Ok(())
    }

    /// Who holds the live attempt of `action`.
    fn holder(&self, action: &ActionId) -> Option<Lease> {
        let state = self.runs.get(&action.run)?.actions.get(&action.name).filter(|a| a.end.is_none())?;
        let attempt = state.attempts.last()?;
        let holder = attempt.holder.as_ref()?;
        Some(Lease {
            worker: holder.worker.clone(),
            action: action.clone(),
            attempt: attempt.number,
            token: holder.token,
        })
    }

    pub(super) fn report(&self, lease: &Lease, progress: &Progress, answer: &Answer, at: Time) -> Check<Vec<Model>> {
        let same = || Ok(vec![self.clone()]);
        let action = self.runs.get(&lease.action.run).and_then(|run| run.actions.get(&lease.action.name));
        let attempt = action.and_then(|a| a.attempts.iter().find(|a| a.number == lease.attempt));
        let holds = attempt.and_then(|a| a.holder.as_ref()).is_some_and(|h| h.token == lease.token);
        let (Some(action), Some(attempt), true) = (action, attempt, holds) else {
            answers::rule_6_a_stale_lease_cannot_write(answer)?;
            return same();
        };
        if attempt.phase().is_terminal() {
            // Below an ended action the record may not have followed yet: then even an end comes too late.
            match (progress.is_end(), action.settled) {
                (true, true) => answers::rule_6_repeating_an_end_changes_nothing(answer)?,
                (true, false) => {}
                (false, _) => answers::rule_6_a_stale_lease_cannot_write(answer)?,
            }
            return same();
        }
        answers::rule_6_the_holder_can_write(answer)?;
        let mut after = self.clone();
        after.move_on(&lease.action, progress, at);
        Ok(if *answer == Answer::Lost { vec![self.clone(), after] } else { vec![after] })
    }

    fn move_on(&mut self, id: &ActionId, progress: &Progress, at: Time) {
        let theirs = self.theirs();
        let Some(run) = self.runs.get_mut(&id.run) else { return };
        let Some(action) = run.actions.get_mut(&id.name) else { return };
        match progress {
            Progress::Waiting => drop(action.advance(Phase::WaitingForResources, at)),
            Progress::Initializing => drop(action.advance(Phase::Initializing, at)),
            Progress::Running => drop(action.advance(Phase::Running, at)),
            Progress::Succeeded => {
                if let Some(attempt) = action.attempts.last_mut() {
                    attempt.output = output_prefix(id, attempt.number);
                }
                action.finish(Phase::Succeeded, at, Why::Itself(None));
            }
            Progress::Failed { recoverable } => action.fail(Phase::Failed, RAISED.0, *recoverable, at),
            Progress::Lost { recoverable } => action.lose(LOST.0, *recoverable, at),
        }
        run.cascade(&id.name, theirs);
        if *progress == Progress::Succeeded {
            self.populate(id, at);
        }
    }

    /// The records right below those that say that they have ended follow.
    pub fn settle(&mut self) {
        for run in self.runs.values_mut() {
            let says_so = |name: &String| run.actions.get(name).is_some_and(|a| a.end.is_some() && a.settled);
            let next = run.actions.iter().filter(|(_, a)| !a.settled && a.parent.as_ref().is_some_and(says_so));
            let next: Vec<String> = next.map(|(name, _)| name.clone()).collect();
            for name in next {
                if let Some(action) = run.actions.get_mut(&name) {
                    action.settled = true;
                }
            }
        }
    }

    /// The time limits that have passed by `at` end what they limit. Only the runtime of an attempt says nothing about the
    /// next one; a wait or a deadline that has passed stays passed.
    pub fn check_limits(&mut self, at: Time) {
        loop {
            let due = self.limits_due(at);
            if due.is_empty() {
                return;
            }
            for (.., id) in due {
                self.check_limit(&id, at);
            }
        }
    }

    /// The limits that have passed by `at`, in their order.
    pub(super) fn limits_due(&self, at: Time) -> Vec<(Time, u32, ActionId)> {
        let limits = self.all().filter_map(|(run, name, a)| Some((a.limit()?.0, a.order, run.action(name))));
        let mut due: Vec<_> = limits.filter(|(when, ..)| *when <= at).collect();
        due.sort();
        due
    }

    pub(super) fn check_limit(&mut self, id: &ActionId, at: Time) {
        let theirs = self.theirs();
        let Some(run) = self.runs.get_mut(&id.run) else { return };
        let Some(action) = run.actions.get_mut(&id.name) else { return };
        let Some((_, code)) = action.limit().filter(|(when, _)| *when <= at) else { return };
        if action.given_up_at().is_some() {
            action.give_up();
            return run.cascade(&id.name, theirs);
        }
        action.fail(Phase::TimedOut, code, code == "MAX_RUNTIME_EXCEEDED", at);
        run.cascade(&id.name, theirs);
    }

    /// Whether nothing lives any more.
    pub fn is_over(&self, run: &crate::ids::RunId) -> bool {
        self.runs.get(run).is_some_and(|run| !matches!(run.life(ROOT_ACTION, false), Life::Live))
    }
}
