//! The events of a run's log, and the fold that makes states of them.
//!
//! Persisted for ever: variants and fields are only ever added, with a serde default.

use serde::{Deserialize, Serialize};

use crate::{
    ActionName, ActionState, Attempt, EndedBy, Lease, OutputRefs, Phase, PhaseTransition, RunInfo, Seed, TaskError,
    Time,
};

/// One change to a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An action came to be. The first event of a run creates its root.
    Created {
        /// The action.
        action: ActionName,
        /// The actions above it, root first.
        ancestors: Vec<ActionName>,
        /// Its group.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        group: String,
        /// What it is.
        seed: Box<Seed>,
        /// What the run was started with; only on the root.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<Box<RunInfo>>,
    },
    /// A worker took the current attempt.
    Leased {
        /// The action.
        action: ActionName,
        /// The attempt's number.
        attempt: u32,
        /// Who took it.
        lease: Lease,
    },
    /// The current attempt moved on.
    Progressed {
        /// The action.
        action: ActionName,
        /// The attempt's number.
        attempt: u32,
        /// The phase entered.
        phase: Phase,
        /// Why, if there is more to say.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        reason: String,
    },
    /// The current attempt succeeded, and with it the action.
    Succeeded {
        /// The action.
        action: ActionName,
        /// The attempt's number.
        attempt: u32,
        /// Where its results lie.
        outputs: OutputRefs,
    },
    /// The current attempt failed; another follows if `retry_at` says when, else the action failed.
    Failed {
        /// The action.
        action: ActionName,
        /// The attempt's number.
        attempt: u32,
        /// Why.
        error: TaskError,
        /// Whether the platform, not the user's code, was at fault.
        system: bool,
        /// When the next attempt may start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<Time>,
        /// What the attempt left behind, such as a report.
        #[serde(default)]
        outputs: OutputRefs,
    },
    /// A time limit ended the attempt; another follows if `retry_at` says when, else the action timed out.
    TimedOut {
        /// The action.
        action: ActionName,
        /// The attempt's number.
        attempt: u32,
        /// Which limit.
        error: TaskError,
        /// When the next attempt may start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<Time>,
    },
    /// The action was aborted.
    Aborted {
        /// The action.
        action: ActionName,
        /// By whom and why.
        by: EndedBy,
    },
}

impl Event {
    /// The action it happened to.
    pub fn action(&self) -> &ActionName {
        match self {
            Self::Created { action, .. }
            | Self::Leased { action, .. }
            | Self::Progressed { action, .. }
            | Self::Succeeded { action, .. }
            | Self::Failed { action, .. }
            | Self::TimedOut { action, .. }
            | Self::Aborted { action, .. } => action,
        }
    }
}

/// Folds `event`, which happened at `at`, into the state of its action. `None` is the state before its creation.
///
/// Events are appended only by [`crate::decide`], so one that does not fit the state means a corrupt log: it is answered
/// with `None`, and the store reports it.
pub fn apply(state: Option<ActionState>, event: &Event, at: Time) -> Option<ActionState> {
    if let Event::Created { action, ancestors, group, seed, .. } = event {
        return state.is_none().then(|| created(action, ancestors, group, seed, at));
    }
    let mut state = state?;
    match event {
        Event::Created { .. } => return None,
        Event::Leased { attempt, lease, .. } => current(&mut state, *attempt)?.lease = Some(lease.clone()),
        Event::Progressed { attempt, phase, reason, .. } => {
            let a = current(&mut state, *attempt)?;
            enter(a, *phase, at, reason);
            state.phase = *phase;
            if *phase == Phase::Running {
                state.started_at.get_or_insert(at);
            }
        }
        Event::Succeeded { attempt, outputs, .. } => {
            let a = current(&mut state, *attempt)?;
            end(a, Phase::Succeeded, at, None);
            a.outputs = outputs.clone();
            finish(&mut state, Phase::Succeeded, at);
            state.outputs = outputs.clone();
        }
        Event::Failed { attempt, error, system, retry_at, outputs, .. } => {
            let a = current(&mut state, *attempt)?;
            end(a, Phase::Failed, at, Some(error.clone()));
            a.outputs = outputs.clone();
            let count = if *system { &mut state.system_failures } else { &mut state.user_failures };
            *count += 1;
            follow(&mut state, Phase::Failed, at, *retry_at, error);
        }
        Event::TimedOut { attempt, error, retry_at, .. } => {
            end(current(&mut state, *attempt)?, Phase::TimedOut, at, Some(error.clone()));
            state.user_failures += 1;
            follow(&mut state, Phase::TimedOut, at, *retry_at, error);
        }
        Event::Aborted { by, .. } => end_aborted(&mut state, at, by.clone()),
    }
    Some(state)
}

fn created(action: &ActionName, ancestors: &[ActionName], group: &str, seed: &Seed, at: Time) -> ActionState {
    let mut state = ActionState {
        name: action.clone(),
        ancestors: ancestors.to_vec(),
        group: group.to_owned(),
        seed: seed.clone(),
        phase: Phase::Queued,
        created_at: at,
        started_at: None,
        ended_at: None,
        attempts: Vec::new(),
        user_failures: 0,
        system_failures: 0,
        error: None,
        outputs: OutputRefs::default(),
        aborted: None,
    };
    match seed {
        Seed::Task(_) => state.attempts.push(Attempt::queued(1, at, at)),
        Seed::Trace(trace) => {
            state.created_at = trace.started_at;
            state.started_at = Some(trace.started_at);
            finish(&mut state, trace.phase, trace.ended_at);
            state.error = trace.error.clone();
            state.outputs = trace.outputs.clone();
        }
    }
    state
}

/// The attempt under way, if it is number `number`.
fn current(state: &mut ActionState, number: u32) -> Option<&mut Attempt> {
    state.attempts.last_mut().filter(|a| a.number == number && !a.phase.is_terminal())
}

fn enter(attempt: &mut Attempt, phase: Phase, at: Time, reason: &str) {
    attempt.phase = phase;
    attempt.transitions.push(PhaseTransition { phase, at, reason: reason.to_owned() });
}

fn end(attempt: &mut Attempt, phase: Phase, at: Time, error: Option<TaskError>) {
    enter(attempt, phase, at, "");
    attempt.ended_at = Some(at);
    attempt.error = error;
}

fn finish(state: &mut ActionState, phase: Phase, at: Time) {
    state.phase = phase;
    state.ended_at = Some(at);
}

fn follow(state: &mut ActionState, phase: Phase, at: Time, retry_at: Option<Time>, error: &TaskError) {
    match retry_at {
        Some(ready_at) => {
            let number = state.attempts.last().map_or(1, |a| a.number + 1);
            state.attempts.push(Attempt::queued(number, at, ready_at));
            state.phase = Phase::Queued;
        }
        None => {
            finish(state, phase, at);
            state.error = Some(error.clone());
        }
    }
}

/// Ends the action, and the attempt under way, as aborted.
pub(crate) fn end_aborted(state: &mut ActionState, at: Time, by: EndedBy) {
    if let Some(attempt) = state.attempts.last_mut().filter(|a| !a.phase.is_terminal()) {
        enter(attempt, Phase::Aborted, at, &by.reason);
        attempt.ended_at = Some(at);
    }
    finish(state, Phase::Aborted, at);
    state.aborted = Some(by);
}
