//! Runs that are carried out elsewhere: what their reporters' words make of them.

use aloft_core::{Phase, ROOT_ACTION, Time};

use super::{Action, Attempt, Life, Model, Run, Why, action::plus};
use crate::{
    elsewhere::{STOPPED, Stage, Told},
    ids::{ActionId, Name, Place, RAISED, RunId},
    rules::{
        Check,
        answers::{self, Answer},
        durable, elsewhere,
        views::rank,
    },
    seen::Details,
    step::{Kind, Work},
};

/// How much later than its pause the next attempt may be reported, in microseconds.
const PATIENCE: i64 = 60_000_000;

/// The first pause between attempts where the task declares none, in microseconds. It doubles.
const PAUSE: i64 = 500_000;

/// When an execution began, as its run names it; `None` if it does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start(pub Option<u8>);

/// What is known of an action that is carried out elsewhere, beside its attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reported {
    /// The last report of its current attempt that said something new: its version, and how far it was.
    heard: Option<(u32, Phase)>,
    /// When the next attempt must have been reported, while one is to come.
    next_by: Option<Time>,
}

fn phase(stage: Stage) -> Phase {
    match stage {
        Stage::Queued => Phase::Queued,
        Stage::Waiting => Phase::WaitingForResources,
        Stage::Initializing => Phase::Initializing,
        Stage::Running => Phase::Running,
        Stage::Succeeded => Phase::Succeeded,
        Stage::Failed { .. } => Phase::Failed,
        Stage::TimedOut { .. } => Phase::TimedOut,
        Stage::Aborted => Phase::Aborted,
    }
}

/// The reporter's time where it can be, and otherwise when it was heard.
fn possible(told: Option<Time>, after: Time, now: Time) -> Time {
    told.filter(|told| after <= *told && *told <= now).unwrap_or(now.max(after))
}

impl Action {
    /// The last time that something is known to have happened to it.
    pub(super) fn last_time(&self) -> Time {
        let last = self.attempts.last().and_then(|a| a.phases.last());
        last.map_or(self.created, |(_, at)| *at)
    }

    /// When it is given up, and with which words: its next attempt never came.
    pub(super) fn given_up_at(&self) -> Option<Time> {
        self.reported.filter(|_| self.end.is_none())?.next_by
    }

    /// Its next attempt never came: it ended as the last one did.
    pub(super) fn give_up(&mut self) {
        let Some(last) = self.attempts.last() else { return };
        let (phase, at, why) = (last.phase(), self.last_time(), Why::Itself(last.error.clone()));
        self.end = Some(super::End { phase: Some(phase), at: Some(at), why });
    }

    /// Whether a report repeats what was heard, or comes after what was heard, or after the end of its attempt.
    fn knows(&self, told: &Told) -> bool {
        let current = self.attempts.last().map_or(1, |a| a.number);
        let over = |(version, heard): (u32, Phase)| {
            heard.is_terminal() || (told.version <= version && rank(phase(told.stage)) <= rank(heard))
        };
        let heard = self.reported.and_then(|r| r.heard);
        told.attempt < current || (told.attempt == current && heard.is_some_and(over))
    }

    /// Whether a report says no more than what is known, however new it is.
    fn learns_nothing(&self, told: &Told) -> bool {
        let Some(last) = self.attempts.last().filter(|a| a.number == told.attempt) else { return false };
        rank(phase(told.stage)) <= rank(last.phase()) && (told.output.is_empty() || told.output == last.output)
    }

    /// A report that says something new.
    fn hear(&mut self, told: &Told, now: Time) {
        let at = possible(told.at, self.last_time(), now);
        while let Some(last) = self.attempts.last_mut().filter(|a| a.number < told.attempt) {
            if !last.phase().is_terminal() {
                last.phases.push((Phase::Failed, at));
                last.error = Some("EndNotReported".to_owned());
            }
            let next = Attempt::queued(last.number + 1, at, at);
            self.attempts.push(next);
        }
        if let Some(last) = self.attempts.last_mut().filter(|_| !told.output.is_empty()) {
            last.output.clone_from(&told.output);
        }
        let next_by = self.next_by(told, now);
        self.reported = Some(Reported { heard: Some((told.version, phase(told.stage))), next_by });
        let phase = phase(told.stage);
        match told.stage {
            Stage::Queued | Stage::Waiting | Stage::Initializing | Stage::Running => drop(self.advance(phase, at)),
            Stage::Succeeded => self.finish(phase, at, Why::Itself(None)),
            Stage::Aborted => self.finish(phase, at, Why::Asked(STOPPED.to_owned())),
            Stage::Failed { .. } | Stage::TimedOut { .. } => {
                let code = RAISED.0.to_owned();
                if let Some(last) = self.attempts.last_mut() {
                    last.error = Some(code.clone());
                    last.phases.push((phase, at));
                }
                if next_by.is_none() {
                    self.end = Some(super::End { phase: Some(phase), at: Some(at), why: Why::Itself(Some(code)) });
                }
            }
        }
    }

    /// When another attempt must have been reported after this one, if one is to follow.
    fn next_by(&self, told: &Told, now: Time) -> Option<Time> {
        let (Stage::Failed { again } | Stage::TimedOut { again }) = told.stage else { return None };
        let policy = self.policy();
        if !again || told.attempt > u32::from(policy.retries) {
            return None;
        }
        let pause = match &policy.backoff {
            Some(_) => super::action::pause(&policy, told.attempt),
            None => PAUSE << (told.attempt - 1),
        };
        Some(plus(now, pause + PATIENCE))
    }
}

impl Model {
    /// Whether others' hands may have moved the actions of a run since we looked. What is carried out elsewhere only its
    /// reporter moves, who is us.
    pub(super) fn others_move(&self, run: &RunId) -> bool {
        self.theirs() && !self.runs.get(run).is_some_and(Run::is_elsewhere)
    }

    /// How many actions are given up at `at`, because their next attempt never came.
    pub fn given_up(&self, at: Time) -> usize {
        self.all().filter(|(.., a)| a.given_up_at().is_some_and(|by| by <= at)).count()
    }

    pub(super) fn begin(
        &self,
        (place, name): (&Place, &Name),
        work: &Work,
        start: Start,
        answer: &Answer,
        at: Time,
    ) -> Check<Vec<Model>> {
        let known = match name {
            Name::Given(name) if name.starts_with(['u', 'r']) => {
                answers::rule_9_a_wrong_field_is_named(answer, "run_id.name")?;
                return self.unchanged();
            }
            Name::Given(name) => Some(RunId { place: place.clone(), name: name.clone() }),
            Name::ForRequest(id) => self.requests.get(&(place.clone(), id.clone())).cloned(),
            Name::Any => None,
        };
        if !self.places.contains(place) {
            answers::rule_9_what_is_missing_is_named(answer, &place.project)?;
            return self.unchanged();
        }
        if let Some((id, run)) = known.as_ref().and_then(|id| self.runs.get_key_value(id)) {
            let same_work = |run: &Run| run.work.task == work.task && run.work.policy == work.policy;
            match run.elsewhere {
                Some(Start(Some(known))) if same_work(run) && start.0.is_some_and(|start| start != known) => {
                    elsewhere::rule_4_another_execution_of_a_taken_name_is_refused(answer, id)?;
                }
                Some(_) if same_work(run) => answers::rule_4_same_create_changes_nothing(answer, id)?,
                _ => answers::rule_4_other_work_under_a_taken_name_is_refused(answer, id)?,
            }
            return self.unchanged();
        }
        let Some(shown) = answers::rule_3_a_create_answers_its_run(answer)? else {
            let Name::Given(name) = name else { return self.unchanged() };
            let id = RunId { place: place.clone(), name: name.clone() };
            return Ok(self.changed(false, |m| m.add_elsewhere(&id, work, start, at)));
        };
        let id = shown.id.run.clone();
        answers::rule_4_a_new_request_is_a_new_run(self.runs.contains_key(&id), &id)?;
        answers::rule_4_names_are_scoped(place, name, &id)?;
        let mut after = self.clone();
        if let Name::ForRequest(request) = name {
            after.requests.insert((place.clone(), request.clone()), id.clone());
        }
        after.add_elsewhere(&id, work, start, at);
        after.observe_shown(shown)?;
        Ok(vec![after])
    }

    fn add_elsewhere(&mut self, id: &RunId, work: &Work, start: Start, at: Time) {
        let run = Run {
            order: self.number(),
            work: work.clone(),
            queue: String::new(),
            most: None,
            reuse: crate::ids::Reuse::default(),
            elsewhere: Some(start),
            actions: [].into(),
        };
        self.runs.insert(id.clone(), run);
        self.add_reported(&id.action(ROOT_ACTION), None, "", &Kind::Task(work.clone()), at);
    }

    /// An action that waits for no queue, whatever its run says, and whose task's limits and cache are its reporter's.
    fn add_reported(&mut self, id: &ActionId, parent: Option<&str>, group: &str, kind: &Kind, created: Time) {
        let order = self.number();
        let action = Action {
            order,
            parent: parent.map(str::to_owned),
            group: group.to_owned(),
            queue: None,
            kind: kind.clone(),
            created,
            attempts: vec![Attempt::queued(1, created, created)],
            failures: 0,
            losses: 0,
            cache: None,
            recovered: None,
            reported: Some(Reported::default()),
            end: None,
            settled: true,
        };
        if let Some(run) = self.runs.get_mut(&id.run) {
            run.actions.insert(id.name.clone(), action);
        }
    }

    pub(super) fn tell(
        &self,
        target: &ActionId,
        parent: &str,
        kind: Option<&Kind>,
        told: &Told,
        answer: &Answer,
        at: Time,
    ) -> Check<Vec<Model>> {
        let Some(run) = self.runs.get(&target.run).filter(|run| run.is_elsewhere()) else {
            answers::rule_9_what_is_missing_is_named(answer, &target.run.name)?;
            return self.unchanged();
        };
        let Some(action) = run.actions.get(&target.name) else {
            let (Some(kind), Some(above)) = (kind, run.actions.get(parent)) else {
                let missing = if kind.is_none() { &target.name } else { parent };
                answers::rule_9_what_is_missing_is_named(answer, missing)?;
                return self.unchanged();
            };
            if run.life(parent, false) != Life::Live {
                elsewhere::rule_5_nothing_is_reported_below_what_has_ended(answer)?;
                return self.unchanged();
            }
            let done = elsewhere::rule_3_what_is_reported_is_taken(answer)?;
            let created = possible(told.at, above.created, at);
            return Ok(self.changed(done, |m| {
                m.add_reported(target, Some(parent), "elsewhere", kind, created);
                m.hear(target, told, at);
            }));
        };
        if kind.is_some_and(|kind| std::mem::discriminant(kind) != std::mem::discriminant(&action.kind)) {
            answers::rule_4_another_kind_under_a_taken_name_is_refused(answer, &target.name)?;
            return self.unchanged();
        }
        if action.knows(told) {
            elsewhere::rule_4_what_was_reported_changes_nothing(answer)?;
            return self.unchanged();
        }
        if run.life(&target.name, false) != Life::Live {
            elsewhere::rule_5_an_end_here_is_the_end(answer)?;
            return self.unchanged();
        }
        let done = elsewhere::rule_3_what_is_reported_is_taken(answer)?;
        Ok(self.changed(done, |m| m.hear(target, told, at)))
    }

    fn hear(&mut self, target: &ActionId, told: &Told, at: Time) {
        let Some(run) = self.runs.get_mut(&target.run) else { return };
        let Some(action) = run.actions.get_mut(&target.name).filter(|a| !a.learns_nothing(told)) else { return };
        action.hear(told, at);
        run.cascade(&target.name, false);
    }
}

impl Run {
    /// Whether it is carried out elsewhere.
    pub fn is_elsewhere(&self) -> bool {
        self.elsewhere.is_some()
    }
}

/// What is shown of attempts by a server whose clock is not ours: all but the times.
pub(super) fn observe_attempts(action: &Action, details: &Details) -> Check {
    let phases = |phases: &[(Phase, Time)]| phases.iter().map(|(phase, _)| *phase).collect::<Vec<_>>();
    let code = |a: &crate::seen::SeenAttempt| a.error.as_ref().map(|e| e.code.clone());
    let told: Vec<_> = details.attempts.iter().map(|a| (a.number, phases(&a.phases), code(a))).collect();
    let done: Vec<_> = action.attempts.iter().map(|a| (a.number, phases(&a.phases), a.error.clone())).collect();
    durable::rule_3_views_show_what_was_done(&details.shown.id, &told, &done)
}
