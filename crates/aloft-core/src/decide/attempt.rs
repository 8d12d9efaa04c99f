//! One attempt: handed out, held back, reported on, timed out.

use super::{Decision, View, ended_ancestor, find};
use crate::{
    ActionName, ActionState, Attempt, AttemptOutcome, EndedBelow, ErrorKind, Event, Lease, LeaseToken, OutputRefs,
    Phase, Progress, Refusal, TaskError, Time, TimeLimit, retry,
};

pub(super) fn take(view: &dyn View, name: &ActionName, lease: &Lease, now: Time) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    let attempt = state.current().ok_or_else(|| Refusal::NotReady(name.clone()))?;
    if attempt.lease.as_ref() == Some(lease) && !attempt.phase.is_terminal() {
        return Ok(Decision::unchanged());
    }
    match state.ready_at() {
        Some(at) if at <= now && ended_ancestor(view, state).is_none() => {
            Ok(Decision::one(Event::Leased { action: name.clone(), attempt: attempt.number, lease: lease.clone() }))
        }
        _ => Err(Refusal::NotReady(name.clone())),
    }
}

pub(super) fn report(
    view: &dyn View,
    name: &ActionName,
    number: u32,
    token: LeaseToken,
    progress: &Progress,
    now: Time,
) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    let fenced = || Refusal::Fenced { name: name.clone(), attempt: number };
    let attempt = state.attempts.iter().find(|a| a.number == number).ok_or_else(fenced)?;
    if attempt.lease.as_ref().map(|l| l.token) != Some(token) {
        return Err(fenced());
    }
    if attempt.phase.is_terminal() {
        // The holder repeats what it reported, or lost the race against an abort: either way there is nothing to do,
        // and it must hear that the attempt is over.
        return match progress {
            Progress::Ended(_) => Ok(Decision::unchanged()),
            _ => Err(Refusal::Ended { name: name.clone(), phase: attempt.phase }),
        };
    }
    if let Some(ended) = ended_ancestor(view, state) {
        return Err(Refusal::AncestorEnded { ancestor: ended.name.clone(), phase: ended.phase });
    }
    if let Some(phase) = progress.phase() {
        if phase.rank() <= attempt.phase.rank() {
            return Ok(Decision::unchanged());
        }
        let reason = match progress {
            Progress::Waiting { reason } => reason.clone(),
            _ => String::new(),
        };
        return Ok(Decision::one(Event::Progressed { action: name.clone(), attempt: number, phase, reason }));
    }
    match progress {
        Progress::Ended(AttemptOutcome::Succeeded(outputs)) => Ok(Decision::one(Event::Succeeded {
            action: name.clone(),
            attempt: number,
            outputs: outputs.clone(),
            below: below(view, name, false),
        })),
        Progress::Ended(AttemptOutcome::Failed(error, outputs)) => {
            let policy = state.task().map(|t| &t.policy);
            let pause = policy
                .filter(|_| error.recoverable)
                .and_then(|p| retry::after_user_failure(p.retries, p.backoff.as_ref(), state.user_failures + 1));
            Ok(Decision::one(Event::Failed {
                action: name.clone(),
                attempt: number,
                error: error.clone(),
                system: false,
                retry_at: pause.map(|p| now.plus(p)),
                outputs: outputs.clone(),
                below: below(view, name, pause.is_some()),
            }))
        }
        Progress::Ended(AttemptOutcome::Lost(error)) => Ok(lost(view, state, number, error, now)),
        Progress::Waiting { .. } | Progress::Initializing | Progress::Running => Ok(Decision::unchanged()),
    }
}

fn lost(view: &dyn View, state: &ActionState, number: u32, error: &TaskError, now: Time) -> Decision {
    let pause = if error.recoverable { retry::after_system_failure(state.system_failures + 1) } else { None };
    let error = match pause {
        Some(_) => error.clone(),
        None if error.recoverable => TaskError::new(
            error.code.clone(),
            format!(
                "{} This was platform failure {}, so it is not tried again.",
                error.message,
                state.system_failures + 1
            ),
            ErrorKind::System,
            false,
        ),
        None => error.clone(),
    };
    Decision::one(Event::Failed {
        action: state.name.clone(),
        attempt: number,
        error,
        system: true,
        retry_at: pause.map(|p| now.plus(p)),
        outputs: OutputRefs::default(),
        below: below(view, &state.name, pause.is_some()),
    })
}

/// The children that end with an action that is not tried again.
fn below(view: &dyn View, name: &ActionName, retried: bool) -> EndedBelow {
    if retried { EndedBelow::default() } else { view.open_children(name) }
}

pub(super) fn hold(view: &dyn View, name: &ActionName, reason: &str, now: Time) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    let waits = |a: &&Attempt| matches!(a.phase, Phase::Queued | Phase::WaitingForResources);
    let attempt = state.current().filter(waits).filter(|_| state.ready_at().is_some_and(|at| at <= now));
    let attempt = attempt.filter(|_| ended_ancestor(view, state).is_none());
    // Each reason is said once: of two limits that hold an attempt in turn, nobody wants to hear without end.
    let Some(attempt) = attempt.filter(|a| a.transitions.iter().all(|t| t.reason != reason)) else {
        return Ok(Decision::unchanged());
    };
    Ok(Decision::one(Event::Progressed {
        action: name.clone(),
        attempt: attempt.number,
        phase: Phase::WaitingForResources,
        reason: reason.to_owned(),
    }))
}

pub(super) fn reject(view: &dyn View, name: &ActionName, error: &TaskError) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    let attempt = state.current().filter(|_| state.ready_at().is_some() && ended_ancestor(view, state).is_none());
    let Some(attempt) = attempt else { return Ok(Decision::unchanged()) };
    Ok(Decision::one(Event::Failed {
        action: name.clone(),
        attempt: attempt.number,
        error: error.clone(),
        system: false,
        retry_at: None,
        outputs: OutputRefs::default(),
        below: EndedBelow::default(),
    }))
}

pub(super) fn check_limits(view: &dyn View, name: &ActionName, now: Time) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    if ended_ancestor(view, state).is_some() {
        return Ok(Decision::unchanged());
    }
    if state.next_attempt_by().is_some_and(|due| due <= now) {
        return Ok(Decision::one(Event::NotRetried { action: name.clone(), below: below(view, name, false) }));
    }
    let Some((_, limit)) = state.next_limit().filter(|(due, _)| *due <= now) else {
        return Ok(Decision::unchanged());
    };
    let number = state.current().map_or(0, |a| a.number);
    let policy = state.task().map(|t| &t.policy);
    // Only the runtime of an attempt says nothing about the next one; a wait or a deadline that has passed stays passed.
    let pause = match (limit, policy) {
        (TimeLimit::MaxRuntime, Some(policy)) => {
            retry::after_user_failure(policy.retries, policy.backoff.as_ref(), state.user_failures + 1)
        }
        _ => None,
    };
    let message = over_limit(state, limit, number);
    Ok(Decision::one(Event::TimedOut {
        action: name.clone(),
        attempt: number,
        error: TaskError::new(limit.code(), message, ErrorKind::User, pause.is_some()),
        retry_at: pause.map(|p| now.plus(p)),
        below: below(view, name, pause.is_some()),
    }))
}

/// What to say of an attempt or a condition that passed a time limit.
fn over_limit(state: &ActionState, limit: TimeLimit, number: u32) -> String {
    let policy = state.task().map(|t| &t.policy);
    let (text, ms) = match limit {
        TimeLimit::MaxRuntime => ("ran longer than its maximum runtime", policy.and_then(|p| p.max_runtime_ms)),
        TimeLimit::Queued => ("waited longer than its queued timeout", policy.and_then(|p| p.queued_timeout_ms)),
        TimeLimit::Deadline => ("did not end before its deadline", policy.and_then(|p| p.deadline_ms)),
        TimeLimit::Signal => ("was not signalled within its timeout", state.condition().and_then(|c| c.timeout_ms)),
    };
    let (what, remedy) = match state.condition() {
        Some(condition) => (format!("condition {}", condition.name), "raise its timeout or signal it earlier"),
        None => (format!("attempt {number}"), "raise the limit in the task's declaration or make the work shorter"),
    };
    format!("{what} {text} of {} s; {remedy}", ms.unwrap_or_default() as f64 / 1000.0)
}
