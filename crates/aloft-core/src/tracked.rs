//! Work that is done elsewhere and only reported: what its reporter may say, and what that makes of an action.
//!
//! Nothing of it is handed to a worker, and nobody says whether the reporter still lives. So only reports, people and the
//! end of an action above move such an action, with one exception: an attempt that failed while retries were left. Its
//! reporter says nothing more if it will not try again, so the action waits a bounded time for the next attempt.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    ActionState, Attempt, Backoff, CacheStatus, EndedBelow, EndedBy, ErrorKind, OutputRefs, Phase, TaskError,
    TaskPolicy, Time,
    event::{end, end_aborted, enter, finish},
};

/// Marks an action whose work is done elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    /// When it began, as its reporter says. Of the root: what its run names as its start, which may be any time, and tells
    /// two executions under one name apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Time>,
}

/// What is known of an action besides its attempts because its work is done elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracking {
    /// As in [`Tracked`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began: Option<Time>,
    /// The last that was heard of its current attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard: Option<Heard>,
    /// When its next attempt must have been reported, while it waits for one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_by: Option<Time>,
}

/// A report by its place in the order of its reporter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    /// The reporter's count within the attempt.
    pub version: u32,
    /// The phase it reported.
    pub phase: Phase,
}

/// How far a reporter says that an attempt has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrackedStep {
    /// It waits.
    Queued,
    /// It waits for room.
    WaitingForResources,
    /// It is being started.
    Initializing,
    /// It runs.
    Running,
    /// It succeeded.
    Succeeded,
    /// It failed. Another attempt may follow if the error is recoverable and retries are left.
    Failed(TaskError),
    /// A time limit of its reporter's passed. Another attempt may follow, as for a failure.
    TimedOut(TaskError),
    /// It was stopped where it runs.
    Aborted(EndedBy),
}

impl TrackedStep {
    /// The phase this is.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Queued => Phase::Queued,
            Self::WaitingForResources => Phase::WaitingForResources,
            Self::Initializing => Phase::Initializing,
            Self::Running => Phase::Running,
            Self::Succeeded => Phase::Succeeded,
            Self::Failed(_) => Phase::Failed,
            Self::TimedOut(_) => Phase::TimedOut,
            Self::Aborted(_) => Phase::Aborted,
        }
    }

    /// Why it failed, if it did.
    pub fn error(&self) -> Option<&TaskError> {
        match self {
            Self::Failed(error) | Self::TimedOut(error) => Some(error),
            _ => None,
        }
    }
}

/// What a reporter says of one attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrackedReport {
    /// The attempt's number, from 1.
    pub attempt: u32,
    /// The reporter's count within the attempt.
    pub version: u32,
    /// How far it has come.
    pub step: TrackedStep,
    /// When it came there, by the reporter's clock.
    pub at: Time,
    /// Where its results lie; empty for what it has none of.
    #[serde(default)]
    pub outputs: OutputRefs,
    /// What the reporter's own cache did for it. Disabled says nothing.
    #[serde(default)]
    pub cache: CacheStatus,
}

/// Most attempts in a row that nobody reported on: each is kept, so that one report cannot make thousands of them.
pub(crate) const MAX_UNHEARD: u32 = 100;

/// Most actions above one: each action names them all, and nothing that a process does is nested deeper.
pub(crate) const MAX_DEPTH: usize = 500;

/// How much later than expected the next attempt may be reported: a reporter that is slow or not reached for a moment.
const PATIENCE: Duration = Duration::from_secs(60);

/// The SDK's pauses between local attempts of a task that declares none: half a second, doubled each time.
const UNDECLARED: Backoff = Backoff { base_ms: 500, factor: 2.0, cap_ms: None };

/// How long to wait for the report of another attempt after attempt `number` failed with `error`; `None` if none follows.
pub(crate) fn wait_for_next(policy: Option<&TaskPolicy>, number: u32, error: &TaskError) -> Option<Duration> {
    let policy = policy.filter(|p| error.recoverable && number <= p.retries)?;
    Some(policy.backoff.unwrap_or(UNDECLARED).pause(number) + PATIENCE)
}

/// `reported` if it is possible, or else `now`, when it was heard. A reporter's clock may be wrong, but where it is right it
/// tells durations that are not those of the network.
pub(crate) fn plausible(reported: Time, after: Time, now: Time) -> Time {
    if after <= reported && reported <= now { reported } else { now.max(after) }
}

impl ActionState {
    /// Whether its work is done elsewhere and only reported.
    pub fn is_tracked(&self) -> bool {
        self.tracking.is_some()
    }

    /// When another attempt must have been reported, while it waits for one: its last failed where it runs.
    pub(crate) fn next_attempt_by(&self) -> Option<Time> {
        self.tracking.filter(|_| !self.phase.is_terminal())?.next_by
    }

    /// The last time that anything of it is known to have happened.
    pub(crate) fn last_time(&self) -> Time {
        let last = self.current().and_then(|a| a.transitions.last());
        last.map_or(self.created_at, |t| t.at)
    }
}

/// Folds a report that was taken into the state. `None` if it does not fit.
pub(crate) fn hear(
    state: &mut ActionState,
    report: &TrackedReport,
    next_by: Option<Time>,
    below: &EndedBelow,
) -> Option<()> {
    let current = state.attempts.last().map(|a| a.number);
    let tracking = state.tracking.as_mut()?;
    let heard = Heard { version: report.version, phase: report.step.phase() };
    tracking.heard = Some(match tracking.heard.filter(|_| current == Some(report.attempt)) {
        None => heard,
        // A later report may only bring outputs, of a phase that was passed.
        Some(before) => Heard {
            version: before.version.max(heard.version),
            phase: if heard.phase.rank() < before.phase.rank() { before.phase } else { heard.phase },
        },
    });
    tracking.next_by = next_by;
    reach(state, report);
    if report.cache != CacheStatus::Disabled {
        state.cache.status = report.cache;
    }
    let attempt = state.attempts.last_mut().filter(|a| a.number == report.attempt && !a.phase.is_terminal())?;
    for (known, said) in [
        (&mut attempt.outputs.output_uri, &report.outputs.output_uri),
        (&mut attempt.outputs.report_uri, &report.outputs.report_uri),
    ] {
        if !said.is_empty() {
            known.clone_from(said);
        }
    }
    match &report.step {
        step @ (TrackedStep::Queued
        | TrackedStep::WaitingForResources
        | TrackedStep::Initializing
        | TrackedStep::Running) => {
            if step.phase().rank() > attempt.phase.rank() {
                enter(attempt, step.phase(), report.at, "");
            }
            state.phase = attempt.phase;
            if state.phase == Phase::Running {
                state.started_at.get_or_insert(report.at);
            }
        }
        TrackedStep::Succeeded => {
            end(attempt, Phase::Succeeded, report.at, None, &below.words());
            state.outputs = attempt.outputs.clone();
            finish(state, Phase::Succeeded, report.at);
        }
        step @ (TrackedStep::Failed(error) | TrackedStep::TimedOut(error)) => {
            end(attempt, step.phase(), report.at, Some(error.clone()), &below.words());
            state.user_failures += 1;
            state.phase = Phase::Queued;
            if next_by.is_none() {
                finish(state, step.phase(), report.at);
                state.error = Some(error.clone());
            }
        }
        TrackedStep::Aborted(by) => end_aborted(state, report.at, by.clone(), below),
    }
    state.ended_below = below.clone();
    Some(())
}

/// Makes the attempt of the report the current one. Those before it have failed, or there would be no other.
fn reach(state: &mut ActionState, report: &TrackedReport) {
    while let Some(last) = state.attempts.last_mut().filter(|a| a.number < report.attempt) {
        let number = last.number;
        if !last.phase.is_terminal() {
            let message = format!("attempt {} began, and how this one ended was not reported", number + 1);
            let error = TaskError::new("EndNotReported", message, ErrorKind::Unknown, true);
            end(last, Phase::Failed, report.at, Some(error), "");
            state.user_failures += 1;
        }
        state.attempts.push(Attempt::queued(number + 1, report.at, report.at));
    }
}

/// Ends an action whose next attempt never came: it ended when and as its last attempt did. `None` if it does not wait for
/// one.
pub(crate) fn end_not_retried(state: &mut ActionState, below: &EndedBelow) -> Option<()> {
    let last = state.attempts.last().filter(|_| state.next_attempt_by().is_some())?;
    let (phase, at, error) = (last.phase, last.ended_at?, last.error.clone()?);
    finish(state, phase, at);
    state.error = Some(error);
    state.ended_below = below.clone();
    Some(())
}
