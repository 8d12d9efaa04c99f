//! One action of the model, and how it is moved.

use aloft_core::{Phase, Time};

use super::{Cached, Recovered, Run, elsewhere::Reported};
use crate::{
    rules::views::rank,
    signal::Value,
    step::{Kind, Policy},
};

/// How often an attempt may be lost to the platform before its action fails.
const MAX_LOSSES: u32 = 3;

/// The pause before an attempt that was lost is tried again, in microseconds.
const LOSS_PAUSE: i64 = 1_000_000;

/// What is believed about an action.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// Its place in the order of creation.
    pub order: u32,
    /// The action above it; `None` for the root.
    pub parent: Option<String>,
    /// Its group.
    pub group: String,
    /// Where it waits, if it is a task.
    pub queue: Option<String>,
    /// What it is.
    pub kind: Kind,
    /// When it was created.
    pub created: Time,
    /// Its attempts; none for a trace.
    pub attempts: Vec<Attempt>,
    /// How many attempts failed by the user's code.
    pub failures: u32,
    /// How many were lost.
    pub losses: u32,
    /// How its result is cached, if its task declares that.
    pub cache: Option<Cached>,
    /// Whose result it took over.
    pub recovered: Option<Recovered>,
    /// What its reporter said, if it is carried out elsewhere.
    pub(super) reported: Option<Reported>,
    /// How it ended.
    pub end: Option<End>,
    /// Whether its own record says how it ended. No view shows a difference.
    pub settled: bool,
}

/// What is believed about an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// Its number, from 1.
    pub number: u32,
    /// What it went through.
    pub phases: Vec<(Phase, Time)>,
    /// When it may be handed out.
    pub ready: Time,
    /// Who holds it, or held it last.
    pub holder: Option<Holder>,
    /// The code of its error.
    pub error: Option<String>,
    /// Where its outputs lie, if it wrote any.
    pub output: String,
}

/// Who holds an attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Holder {
    /// The worker.
    pub worker: String,
    /// The token.
    pub token: u64,
}

/// How an action ended.
#[derive(Clone, Debug, PartialEq)]
pub struct End {
    /// In which phase; `None` if all that is known is that it ended.
    pub phase: Option<Phase>,
    /// When; `None` if somebody else's clock says.
    pub at: Option<Time>,
    /// Why.
    pub why: Why,
}

/// Why an action ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Why {
    /// By itself, with the code of its error if it failed.
    Itself(Option<String>),
    /// Somebody aborted it with these words.
    Asked(String),
    /// This action above it ended.
    Above(String),
    /// Somebody signalled it with this value.
    Signalled(Value),
}

/// Whether an action lives, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It does.
    Live,
    /// It may have ended since.
    Unknown,
    /// It has ended.
    Ended(Option<Phase>),
}

impl Attempt {
    /// A new attempt.
    pub fn queued(number: u32, at: Time, ready: Time) -> Self {
        Self { number, phases: vec![(Phase::Queued, at)], ready, holder: None, error: None, output: String::new() }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phases.last().map_or(Phase::Queued, |(phase, _)| *phase)
    }

    fn entered(&self, phase: Phase) -> Option<Time> {
        self.phases.iter().find(|(p, _)| *p == phase).map(|(_, at)| *at)
    }
}

pub(super) fn plus(at: Time, micros: i64) -> Time {
    Time::from_micros(at.as_micros() + micros)
}

fn millis(ms: u16) -> i64 {
    i64::from(ms) * 1000
}

/// The pause before the retry after `failures` user failures, in microseconds.
pub(super) fn pause(policy: &Policy, failures: u32) -> i64 {
    let Some(backoff) = &policy.backoff else { return 0 };
    let mut pause = millis(backoff.base);
    for _ in 1..failures {
        pause *= i64::from(backoff.factor.max(1));
    }
    backoff.cap.map_or(pause, |cap| pause.min(millis(cap)))
}

impl Action {
    /// What is declared about how it is run; nothing for a trace.
    pub fn policy(&self) -> Policy {
        match &self.kind {
            Kind::Task(work) => work.policy.clone(),
            Kind::Trace { .. } | Kind::Condition(_) => Policy::default(),
        }
    }

    /// Whether it waits for somebody's word instead of a worker.
    pub fn is_condition(&self) -> bool {
        matches!(self.kind, Kind::Condition(_))
    }

    /// Where it is.
    pub fn phase(&self) -> Option<Phase> {
        match &self.end {
            Some(end) => end.phase,
            None if self.is_condition() => Some(Phase::Paused),
            // Nobody has begun the attempt that is to follow.
            None if self.reported.is_some() => {
                self.attempts.last().map(Attempt::phase).map(|p| if p.is_terminal() { Phase::Queued } else { p })
            }
            None => self.attempts.last().map(Attempt::phase),
        }
    }

    /// Whether its current attempt can be handed out at `at`.
    pub fn waits(&self, at: Time) -> bool {
        // Who waited for another's result says so for ever.
        let waits = |phase| matches!(phase, Phase::Queued | Phase::WaitingForResources);
        let ready = |a: &Attempt| waits(a.phase()) && a.holder.is_none() && a.ready <= at;
        self.end.is_none() && self.reported.is_none() && !self.looks() && self.attempts.last().is_some_and(ready)
    }

    /// Whether the record, which has not followed the end above it yet, looks as if it waited.
    pub fn looks_ready(&self, at: Time) -> bool {
        let before = |a: &Attempt| a.holder.is_none() && a.ready <= at;
        !self.settled
            && self.reported.is_none()
            && self.end.is_some()
            && !self.looks()
            && self.attempts.last().is_some_and(before)
    }

    /// The attempt moves on; `false` if it is there already.
    pub fn advance(&mut self, phase: Phase, at: Time) -> bool {
        match self.attempts.last_mut() {
            Some(attempt) if rank(attempt.phase()) < rank(phase) => {
                attempt.phases.push((phase, at));
                true
            }
            _ => false,
        }
    }

    /// The current attempt ends, and the action with it.
    pub fn finish(&mut self, phase: Phase, at: Time, why: Why) {
        if let Some(attempt) = self.attempts.last_mut().filter(|a| !a.phase().is_terminal()) {
            attempt.phases.push((phase, at));
        }
        self.end = Some(End { phase: Some(phase), at: Some(at), why });
    }

    /// The current attempt failed by the user's code or a time limit; another follows if `again` and retries are left.
    pub fn fail(&mut self, phase: Phase, code: &str, again: bool, at: Time) {
        self.failures += 1;
        let policy = self.policy();
        let pause = (again && self.failures <= u32::from(policy.retries)).then(|| pause(&policy, self.failures));
        self.end_attempt(phase, code, pause, at);
    }

    /// The current attempt was lost.
    pub fn lose(&mut self, code: &str, again: bool, at: Time) {
        self.losses += 1;
        let pause = (again && self.losses <= MAX_LOSSES).then_some(LOSS_PAUSE);
        self.end_attempt(Phase::Failed, code, pause, at);
    }

    fn end_attempt(&mut self, phase: Phase, code: &str, pause: Option<i64>, at: Time) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.error = Some(code.to_owned());
        }
        let Some(pause) = pause else { return self.finish(phase, at, Why::Itself(Some(code.to_owned()))) };
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.phases.push((phase, at));
        }
        let number = self.attempts.last().map_or(1, |a| a.number + 1);
        self.attempts.push(Attempt::queued(number, at, plus(at, pause)));
    }

    /// The time limit that passes first, when, and the code it fails with. Of those that pass together the deadline counts
    /// before the wait, and the wait before the runtime.
    pub fn limit(&self) -> Option<(Time, &'static str)> {
        if let (Kind::Condition(condition), None) = (&self.kind, &self.end) {
            return condition.timeout.map(|ms| (plus(self.created, millis(ms)), "CONDITION_TIMED_OUT"));
        }
        if self.reported.is_some() {
            return self.given_up_at().map(|at| (at, "NOT_RETRIED"));
        }
        let attempt = self.attempts.last().filter(|_| self.end.is_none())?;
        let policy = self.policy();
        let running = attempt.entered(Phase::Running);
        let limits = [
            policy.deadline.map(|ms| (plus(self.created, millis(ms)), "DEADLINE_EXCEEDED")),
            policy
                .queued_timeout
                .filter(|_| running.is_none())
                .map(|ms| (plus(attempt.ready, millis(ms)), "QUEUED_TIMEOUT_EXCEEDED")),
            policy.max_runtime.and_then(|ms| running.map(|at| (plus(at, millis(ms)), "MAX_RUNTIME_EXCEEDED"))),
        ];
        limits.into_iter().flatten().min_by_key(|(at, _)| *at)
    }
}

impl Run {
    /// Whether `name` and everything above it lives.
    pub fn life(&self, name: &str, theirs: bool) -> Life {
        let theirs = theirs && !self.is_elsewhere();
        let mut life = Life::Live;
        let mut current = Some(name.to_owned());
        while let Some(name) = current {
            let Some(action) = self.actions.get(&name) else { return life };
            match &action.end {
                Some(end) => return Life::Ended(end.phase),
                None if theirs => life = Life::Unknown,
                None => {}
            }
            current = action.parent.clone();
        }
        life
    }

    /// Everything live below `name`, which has ended, has ended with it.
    pub fn cascade(&mut self, name: &str, theirs: bool) {
        let theirs = theirs && !self.is_elsewhere();
        let Some(end) = self.actions.get(name).and_then(|a| a.end.clone()) else { return };
        let below: Vec<String> = self.actions.keys().filter(|other| self.below(other, name)).cloned().collect();
        for other in below {
            let Some(action) = self.actions.get_mut(&other).filter(|a| a.end.is_none()) else { continue };
            let why = Why::Above(name.to_owned());
            match end.at.filter(|_| !theirs) {
                // A reporter may say of an end when it was, and have said of this what happened after it.
                Some(at) => action.finish(Phase::Aborted, at.max(action.last_time()), why),
                // It may have ended by itself a moment before.
                None => action.end = Some(End { phase: None, at: None, why }),
            }
            action.settled = false;
        }
    }
}
