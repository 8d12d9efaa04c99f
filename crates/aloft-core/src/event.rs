//! The events of a run's log, and the fold that makes states of them.
//!
//! Persisted for ever: variants and fields are only ever added, with a serde default.

use serde::{Deserialize, Serialize};

use crate::{
    ActionName, ActionState, Attempt, CacheSource, CacheStatus, CacheUse, EndedBelow, EndedBy, Lease, OutputRefs,
    Phase, PhaseTransition, Recovered, RunInfo, Seed, Signal, TaskError, Time, Tracked, TrackedReport, Tracking,
    WebhookOutcome, tracked,
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
        /// The result it took over, if it was recovered: it has ended with that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        recovered: Option<Box<Recovered>>,
        /// Marks work that is done elsewhere and only reported.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tracked: Option<Tracked>,
    },
    /// Another's result stands in for the action, which has succeeded with that.
    CacheHit {
        /// The action.
        action: ActionName,
        /// Whose result, if it is known.
        source: Option<CacheSource>,
        /// Where the result lies.
        outputs: OutputRefs,
    },
    /// No cached result stands in: the action is to be computed.
    CacheMissed {
        /// The action.
        action: ActionName,
        /// Why.
        status: CacheStatus,
        /// Whether it holds the reservation of its key now.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        reserved: bool,
    },
    /// The condition was given its value.
    Signalled {
        /// The condition.
        action: ActionName,
        /// How.
        signal: Signal,
    },
    /// The call that a condition asked for was made, or given up.
    Called {
        /// The condition.
        action: ActionName,
        /// What became of it.
        outcome: WebhookOutcome,
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
        /// Which of its children that ended.
        #[serde(default, skip_serializing_if = "EndedBelow::is_empty")]
        below: EndedBelow,
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
        /// Which of its children that ended.
        #[serde(default, skip_serializing_if = "EndedBelow::is_empty")]
        below: EndedBelow,
    },
    /// A time limit ended the attempt; another follows if `retry_at` says when, else the action timed out.
    TimedOut {
        /// The action.
        action: ActionName,
        /// The attempt's number; 0 for a condition, which has none.
        attempt: u32,
        /// Which limit.
        error: TaskError,
        /// When the next attempt may start.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_at: Option<Time>,
        /// Which of its children that ended.
        #[serde(default, skip_serializing_if = "EndedBelow::is_empty")]
        below: EndedBelow,
    },
    /// Work that is done elsewhere was reported on.
    Reported {
        /// The action.
        action: ActionName,
        /// What was said, at a time that fits what was known.
        report: Box<TrackedReport>,
        /// When the next attempt must have been reported, if the report ended one that may be tried again.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        next_by: Option<Time>,
        /// Which of its children that ended.
        #[serde(default, skip_serializing_if = "EndedBelow::is_empty")]
        below: EndedBelow,
    },
    /// The next attempt at work that is done elsewhere never came: the action ended as its last attempt did.
    NotRetried {
        /// The action.
        action: ActionName,
        /// Which of its children that ended.
        #[serde(default, skip_serializing_if = "EndedBelow::is_empty")]
        below: EndedBelow,
    },
    /// The action was aborted.
    Aborted {
        /// The action.
        action: ActionName,
        /// By whom and why.
        by: EndedBy,
        /// Which of its children that ended.
        #[serde(default, skip_serializing_if = "EndedBelow::is_empty")]
        below: EndedBelow,
        /// When the action above it ended, if that ended it: it was shown as ended from then on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        since: Option<Time>,
    },
}

impl Event {
    /// The action it happened to.
    pub fn action(&self) -> &ActionName {
        match self {
            Self::Created { action, .. }
            | Self::CacheHit { action, .. }
            | Self::CacheMissed { action, .. }
            | Self::Signalled { action, .. }
            | Self::Called { action, .. }
            | Self::Leased { action, .. }
            | Self::Progressed { action, .. }
            | Self::Succeeded { action, .. }
            | Self::Failed { action, .. }
            | Self::TimedOut { action, .. }
            | Self::Reported { action, .. }
            | Self::NotRetried { action, .. }
            | Self::Aborted { action, .. } => action,
        }
    }

    /// Whether it ended its action, or may have.
    pub fn may_end(&self) -> bool {
        match self {
            Self::Created { recovered, .. } => recovered.is_some(),
            Self::Leased { .. } | Self::Progressed { .. } | Self::CacheMissed { .. } | Self::Called { .. } => false,
            Self::Reported { report, .. } => report.step.phase().is_terminal(),
            Self::NotRetried { .. }
            | Self::CacheHit { .. }
            | Self::Signalled { .. }
            | Self::Succeeded { .. }
            | Self::Failed { .. }
            | Self::TimedOut { .. }
            | Self::Aborted { .. } => true,
        }
    }
}

/// Folds `event`, which happened at `at`, into the state of its action. `None` is the state before its creation.
///
/// Events are appended only by [`crate::decide`], so one that does not fit the state means a corrupt log: it is answered
/// with `None`, and the store reports it.
pub fn apply(state: Option<ActionState>, event: &Event, at: Time) -> Option<ActionState> {
    if matches!(event, Event::Created { .. }) {
        return if state.is_none() { created(event, at) } else { None };
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
        Event::CacheHit { source, outputs, .. } => {
            let number = state.current()?.number;
            let a = current(&mut state, number)?;
            end(a, Phase::Succeeded, at, None, "");
            a.outputs = outputs.clone();
            finish(&mut state, Phase::Succeeded, at);
            state.outputs = outputs.clone();
            state.cache = CacheUse { status: CacheStatus::Hit, source: source.clone(), ..CacheUse::default() };
        }
        Event::CacheMissed { status, reserved, .. } => {
            state.cache = CacheUse { status: *status, reserved: *reserved, ..CacheUse::default() };
        }
        Event::Signalled { signal, .. } => {
            finish(&mut state, Phase::Succeeded, at);
            state.signal = Some(signal.clone());
        }
        Event::Called { outcome, .. } => state.webhook = Some(outcome.clone()),
        Event::Succeeded { attempt, outputs, below, .. } => {
            let a = current(&mut state, *attempt)?;
            end(a, Phase::Succeeded, at, None, &below.words());
            a.outputs = outputs.clone();
            finish(&mut state, Phase::Succeeded, at);
            state.outputs = outputs.clone();
            state.ended_below = below.clone();
            if matches!(state.cache.status, CacheStatus::Miss | CacheStatus::LookupFailed | CacheStatus::Skipped) {
                state.cache.looked = Some(state.cache.status);
                state.cache.status = CacheStatus::Populated;
            }
        }
        Event::Failed { attempt, error, system, retry_at, outputs, below, .. } => {
            let a = current(&mut state, *attempt)?;
            end(a, Phase::Failed, at, Some(error.clone()), &below.words());
            a.outputs = outputs.clone();
            let count = if *system { &mut state.system_failures } else { &mut state.user_failures };
            *count += 1;
            state.ended_below = below.clone();
            follow(&mut state, Phase::Failed, at, *retry_at, error);
        }
        Event::TimedOut { attempt, error, retry_at, below, .. } => {
            if *attempt > 0 {
                end(current(&mut state, *attempt)?, Phase::TimedOut, at, Some(error.clone()), &below.words());
                state.user_failures += 1;
            }
            state.ended_below = below.clone();
            follow(&mut state, Phase::TimedOut, at, *retry_at, error);
        }
        Event::Aborted { by, below, since, .. } => {
            end_aborted(&mut state, since.unwrap_or(at), by.clone(), below);
            state.ended_below = below.clone();
        }
        Event::Reported { report, next_by, below, .. } => tracked::hear(&mut state, report, *next_by, below)?,
        Event::NotRetried { below, .. } => tracked::end_not_retried(&mut state, below)?,
    }
    Some(state)
}

/// The state that a creation makes; `None` for any other event.
fn created(event: &Event, at: Time) -> Option<ActionState> {
    let Event::Created { action, ancestors, group, seed, run: _, recovered, tracked } = event else { return None };
    let mut state = ActionState {
        name: action.clone(),
        ancestors: ancestors.clone(),
        group: group.clone(),
        seed: seed.as_ref().clone(),
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
        ended_below: EndedBelow::default(),
        cache: CacheUse::default(),
        recovered_from: None,
        signal: None,
        webhook: None,
        tracking: None,
    };
    if let Some(Tracked { began }) = *tracked {
        // The start that the run names need not be when anything happened.
        state.created_at = began.filter(|_| !action.is_root()).unwrap_or(at);
        state.attempts.push(Attempt::queued(1, state.created_at, state.created_at));
        state.tracking = Some(Tracking { began, ..Tracking::default() });
        return Some(state);
    }
    if let Some(recovered) = recovered {
        finish(&mut state, Phase::Recovered, at);
        state.outputs = recovered.outputs.clone();
        state.signal = recovered.signal.clone();
        state.recovered_from = Some(recovered.from.clone());
        return Some(state);
    }
    match seed.as_ref() {
        Seed::Task(task) => {
            state.attempts.push(Attempt::queued(1, at, at));
            state.cache.pending = task.cache.is_some();
        }
        Seed::Trace(trace) => {
            state.created_at = trace.started_at;
            state.started_at = Some(trace.started_at);
            finish(&mut state, trace.phase, trace.ended_at);
            state.error = trace.error.clone();
            state.outputs = trace.outputs.clone();
        }
        Seed::Condition(_) => state.phase = Phase::Paused,
    }
    Some(state)
}

/// The attempt under way, if it is number `number`.
fn current(state: &mut ActionState, number: u32) -> Option<&mut Attempt> {
    state.attempts.last_mut().filter(|a| a.number == number && !a.phase.is_terminal())
}

pub(crate) fn enter(attempt: &mut Attempt, phase: Phase, at: Time, reason: &str) {
    attempt.phase = phase;
    attempt.transitions.push(PhaseTransition { phase, at, reason: reason.to_owned() });
}

pub(crate) fn end(attempt: &mut Attempt, phase: Phase, at: Time, error: Option<TaskError>, reason: &str) {
    enter(attempt, phase, at, reason);
    attempt.ended_at = Some(at);
    attempt.error = error;
}

pub(crate) fn finish(state: &mut ActionState, phase: Phase, at: Time) {
    state.phase = phase;
    state.ended_at = Some(at);
    // What the action held is given back by the commit that ends it.
    state.cache.reserved = false;
    state.cache.pending = false;
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
pub(crate) fn end_aborted(state: &mut ActionState, at: Time, by: EndedBy, below: &EndedBelow) {
    // Reporters say of an action what happened after the end of one above it, if that was not heard yet.
    let at = at.max(state.last_time());
    if let Some(attempt) = state.attempts.last_mut().filter(|a| !a.phase.is_terminal()) {
        let reason = if below.is_empty() { by.reason.clone() } else { format!("{}; {}", by.reason, below.words()) };
        enter(attempt, Phase::Aborted, at, &reason);
        attempt.ended_at = Some(at);
    }
    finish(state, Phase::Aborted, at);
    state.aborted = Some(by);
}
