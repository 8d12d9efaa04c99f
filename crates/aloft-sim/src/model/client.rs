//! What clients ask.

use aloft_core::{Phase, ROOT_ACTION, Time};

use super::{Action, Attempt, Cached, End, Life, Model, Run, Why};
use crate::{
    draw::Hands,
    ids::{ActionId, Name, Place, Reuse, RunId, RunLane},
    rules::{
        Check,
        answers::{self, Answer},
        elsewhere,
    },
    step::{Kind, Work},
};

/// How a new action is named and placed.
pub(super) struct NewAction<'r> {
    /// Its name.
    pub name: &'r str,
    /// Below which; `None` for the root.
    pub parent: Option<&'r str>,
    /// Its group.
    pub group: &'r str,
    /// The queue that it names; empty for none.
    pub queue: &'r str,
}

impl Model {
    pub(super) fn unchanged(&self) -> Check<Vec<Model>> {
        Ok(vec![self.clone()])
    }

    pub(super) fn theirs(&self) -> bool {
        self.hands == Hands::Theirs
    }

    /// This model, and this one changed if that is possible: it is certain if the answer came.
    pub(super) fn changed(&self, done: bool, change: impl FnOnce(&mut Model)) -> Vec<Model> {
        let mut after = self.clone();
        change(&mut after);
        if done { vec![after] } else { vec![self.clone(), after] }
    }

    pub(super) fn create(
        &self,
        place: &Place,
        name: &Name,
        (work, lane, reuse): (&Work, &RunLane, &Reuse),
        answer: &Answer,
        at: Time,
    ) -> Check<Vec<Model>> {
        if !self.places.contains(place) {
            answers::rule_9_what_is_missing_is_named(answer, &place.project)?;
            return self.unchanged();
        }
        if !self.can_be_made_from(place, reuse.from.as_ref(), answer)? {
            return self.unchanged();
        }
        let known = match name {
            Name::Given(name) => Some(RunId { place: place.clone(), name: name.clone() }),
            Name::ForRequest(id) => self.requests.get(&(place.clone(), id.clone())).cloned(),
            Name::Any => None,
        };
        if let Some((id, run)) = known.as_ref().and_then(|id| self.runs.get_key_value(id)) {
            if run.work == *work && !run.is_elsewhere() {
                answers::rule_4_same_create_changes_nothing(answer, id)?;
            } else {
                answers::rule_4_other_work_under_a_taken_name_is_refused(answer, id)?;
            }
            return self.unchanged();
        }
        // What the server names itself has no run yet either.
        let new = known.unwrap_or_else(|| RunId { place: place.clone(), name: String::new() });
        let root = (ROOT_ACTION, &Kind::Task(work.clone()));
        let free = self.needs_no_room(&new, reuse.from.as_ref(), root, at);
        if self.turned_away(free, &Self::resolved("", &lane.queue), None, answer)? {
            return self.unchanged();
        }
        let Some(shown) = answers::rule_3_a_create_answers_its_run(answer)? else {
            // Without its name nothing can be said of it; whoever asked asks again and is told.
            let Name::Given(name) = name else { return self.unchanged() };
            let id = RunId { place: place.clone(), name: name.clone() };
            return Ok(self.changed(false, |m| m.add_run(&id, work, (lane, reuse), at)));
        };
        let id = shown.id.run.clone();
        answers::rule_4_a_new_request_is_a_new_run(self.runs.contains_key(&id), &id)?;
        answers::rule_4_names_are_scoped(place, name, &id)?;
        let mut after = self.clone();
        if let Name::ForRequest(request) = name {
            after.requests.insert((place.clone(), request.clone()), id.clone());
        }
        after.add_run(&id, work, (lane, reuse), at);
        after.observe_shown(shown)?;
        Ok(vec![after])
    }

    fn add_run(&mut self, id: &RunId, work: &Work, (lane, reuse): (&RunLane, &Reuse), at: Time) {
        let order = self.number();
        let (queue, most) = (lane.queue.clone(), Some(lane.most).filter(|most| *most > 0));
        let run =
            Run { order, work: work.clone(), queue, most, reuse: reuse.clone(), elsewhere: None, actions: [].into() };
        self.runs.insert(id.clone(), run);
        let root = NewAction { name: ROOT_ACTION, parent: None, group: "", queue: "" };
        self.add_action(id, &root, &Kind::Task(work.clone()), at);
    }

    pub(super) fn number(&mut self) -> u32 {
        self.made += 1;
        self.made
    }

    fn add_action(&mut self, id: &RunId, new: &NewAction<'_>, kind: &Kind, at: Time) {
        let order = self.number();
        let queue = self.queue_for(kind, id, new.queue);
        let Some(run) = self.runs.get(id) else { return };
        let taken = self.taken(id, run.reuse.from.as_ref(), new.name, kind, at);
        let cache = Cached::new(&id.place, kind, &run.reuse, run.forces(new.name));
        let (attempts, end) = match kind {
            Kind::Task(_) => (vec![Attempt::queued(1, at, at)], None),
            Kind::Condition(_) => (Vec::new(), None),
            Kind::Trace { failed, .. } => {
                let phase = if *failed { Phase::Failed } else { Phase::Succeeded };
                let code = failed.then(|| "TraceFailed".to_owned());
                (Vec::new(), Some(End { phase: Some(phase), at: Some(trace_times().1), why: Why::Itself(code) }))
            }
        };
        let created = if matches!(kind, Kind::Trace { .. }) { trace_times().0 } else { at };
        let mut action = Action {
            order,
            parent: new.parent.map(str::to_owned),
            group: new.group.to_owned(),
            queue,
            kind: kind.clone(),
            created,
            attempts,
            failures: 0,
            losses: 0,
            cache,
            recovered: None,
            reported: None,
            end,
            settled: true,
        };
        if let Some(result) = taken.result {
            action.become_recovered(result, at);
        }
        let mut made = vec![(new.name.to_owned(), action)];
        for (trace, mut action) in taken.traces {
            action.order = self.number();
            made.push((trace, action));
        }
        if let Some(run) = self.runs.get_mut(id) {
            run.actions.extend(made);
        }
    }

    pub(super) fn enqueue(
        &self,
        action: &ActionId,
        kind: &Kind,
        how: &NewAction<'_>,
        answer: &Answer,
        at: Time,
    ) -> Check<Vec<Model>> {
        let parent = how.parent.unwrap_or(ROOT_ACTION);
        if action.name == ROOT_ACTION {
            answers::rule_9_a_wrong_field_is_named(answer, ROOT_ACTION)?;
            return self.unchanged();
        }
        let Some(run) = self.runs.get(&action.run) else {
            answers::rule_9_what_is_missing_is_named(answer, &action.run.name)?;
            return self.unchanged();
        };
        if let Some(existing) = run.actions.get(&action.name) {
            if std::mem::discriminant(&existing.kind) == std::mem::discriminant(kind) {
                answers::rule_4_same_enqueue_changes_nothing(answer)?;
            } else {
                answers::rule_4_another_kind_under_a_taken_name_is_refused(answer, &action.name)?;
            }
            return self.unchanged();
        }
        if !run.actions.contains_key(parent) {
            answers::rule_9_what_is_missing_is_named(answer, parent)?;
            return self.unchanged();
        }
        if run.is_elsewhere() {
            elsewhere::rule_6_nothing_starts_here_in_what_runs_elsewhere(answer)?;
            return self.unchanged();
        }
        match (run.life(parent, self.theirs()), answer) {
            (Life::Ended(_), _) => {
                answers::rule_5_nothing_starts_below_what_has_ended(answer)?;
                self.unchanged()
            }
            (Life::Unknown, Answer::Refused(refused)) if refused.code == "aborted" => {
                answers::rule_5_nothing_starts_below_what_has_ended(answer)?;
                Ok(vec![self.clone()])
            }
            (Life::Live | Life::Unknown, _) => {
                let queue = self.queue_for(kind, &action.run, how.queue);
                let free = self.needs_no_room(&action.run, run.reuse.from.as_ref(), (how.name, kind), at);
                if let Some(queue) = queue
                    && self.turned_away(free, &queue, Some((&action.run, parent)), answer)?
                {
                    return self.unchanged();
                }
                let done = answers::rule_3_what_can_be_done_is_done(answer)?;
                let add = |m: &mut Model| m.add_action(&action.run, how, kind, at);
                Ok(self.changed(done, add))
            }
        }
    }

    pub(super) fn abort(
        &self,
        target: &ActionId,
        whole: bool,
        reason: &str,
        answer: &Answer,
        at: Time,
    ) -> Check<Vec<Model>> {
        let Some(run) = self.runs.get(&target.run) else {
            answers::rule_9_what_is_missing_is_named(answer, &target.run.name)?;
            return self.unchanged();
        };
        if !run.actions.contains_key(&target.name) {
            let named = if whole { &target.run.name } else { &target.name };
            answers::rule_9_what_is_missing_is_named(answer, named)?;
            return self.unchanged();
        }
        match (run.life(&target.name, self.theirs()), answer) {
            (Life::Ended(Some(Phase::Aborted)), _) => {
                answers::rule_5_aborting_twice_is_aborting_once(answer)?;
                self.unchanged()
            }
            (Life::Ended(Some(_)), _) => {
                answers::rule_5_an_abort_loses_against_an_end(answer)?;
                self.unchanged()
            }
            (Life::Unknown, Answer::Refused(_)) => {
                answers::rule_5_an_abort_loses_against_an_end(answer)?;
                let over = |m: &mut Model| m.end(target, None, None, Why::Itself(None));
                Ok(self.changed(true, over))
            }
            (Life::Ended(None), _) => self.unchanged(),
            (life @ (Life::Live | Life::Unknown), _) => {
                let done = answers::rule_3_what_can_be_done_is_done(answer)?;
                let when = (!self.others_move(&target.run)).then_some(at);
                let why = Why::Asked(reason.to_owned());
                let mut possible = self.changed(done, |m| m.end(target, Some(Phase::Aborted), when, why));
                if life == Life::Unknown && target.name != ROOT_ACTION {
                    // One above it may have ended a moment before: then it was aborted already, for that reason.
                    possible
                        .extend(self.changed(true, |m| m.end(target, Some(Phase::Aborted), None, Why::Itself(None))));
                }
                Ok(possible)
            }
        }
    }

    /// The action ends by another hand, and all below it.
    pub(super) fn end(&mut self, target: &ActionId, phase: Option<Phase>, at: Option<Time>, why: Why) {
        let theirs = self.theirs();
        let Some(run) = self.runs.get_mut(&target.run) else { return };
        let Some(action) = run.actions.get_mut(&target.name) else { return };
        match (phase, at) {
            (Some(phase), Some(at)) => action.finish(phase, at, why),
            _ => action.end = Some(End { phase, at, why }),
        }
        run.cascade(&target.name, theirs);
    }
}

/// When a simulated trace began and ended.
pub fn trace_times() -> (Time, Time) {
    (Time::from_micros(1_600_000_000_000_000), Time::from_micros(1_600_000_002_500_000))
}
