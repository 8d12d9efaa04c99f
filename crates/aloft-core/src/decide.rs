//! The decisions: one function per command.

use crate::{
    ActionName, ActionState, AttemptOutcome, Command, EndedBy, ErrorKind, Event, Lease, LeaseToken, Phase, Progress,
    Refusal, Reply, RunInfo, Seed, TaskError, Time, TimeLimit, action, retry,
};

/// What a decision may look at: the current states of a run's actions.
pub trait View {
    /// The action called `name`, if it exists.
    fn action(&self, name: &ActionName) -> Option<&ActionState>;
}

/// The events that carry a command out, in order, and its answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// To append to the run's log. Empty if nothing changes.
    pub events: Vec<Event>,
    /// What to answer.
    pub reply: Reply,
}

impl Decision {
    fn unchanged() -> Self {
        Self { events: Vec::new(), reply: Reply::Unchanged }
    }

    fn one(event: Event) -> Self {
        Self { events: vec![event], reply: Reply::Done }
    }
}

/// Decides `command` at `now`.
///
/// # Errors
/// [`Refusal`] with the reason; nothing changes.
pub fn decide(view: &dyn View, command: &Command, now: Time) -> Result<Decision, Refusal> {
    match command {
        Command::CreateRun { seed, info } => create_run(view, seed, info),
        Command::Enqueue { action, parent, group, seed } => enqueue(view, action, parent, group, seed),
        Command::Lease { action, lease } => take(view, action, lease, now),
        Command::Report { action, attempt, token, progress } => report(view, action, *attempt, *token, progress, now),
        Command::Abort { action, by } => abort(view, action, by),
        Command::Settle { actions } => Ok(settle(view, actions)),
        Command::CheckLimits { action } => check_limits(view, action, now),
    }
}

/// The outermost action above `state` that has ended.
fn ended_ancestor<'v>(view: &'v dyn View, state: &ActionState) -> Option<&'v ActionState> {
    state.ancestors.iter().filter_map(|name| view.action(name)).find(|a| a.phase.is_terminal())
}

fn find<'v>(view: &'v dyn View, name: &ActionName) -> Result<&'v ActionState, Refusal> {
    if let Some(state) = view.action(name) {
        return Ok(state);
    }
    let run_exists = view.action(&ActionName::root()).is_some();
    Err(if run_exists || name.is_root() { Refusal::NoSuchAction(name.clone()) } else { Refusal::NoSuchRun })
}

/// What tells two pieces of work apart: kind, task, input (design rule 4), never bytes that differ in a replay.
fn difference(a: &Seed, b: &Seed) -> Option<&'static str> {
    match (a, b) {
        (Seed::Task(a), Seed::Task(b)) if a.task.digest != b.task.digest => Some("another task specification"),
        (Seed::Task(a), Seed::Task(b)) if a.input_uri != b.input_uri => Some("other inputs"),
        (Seed::Trace(a), Seed::Trace(b)) if a.name != b.name => Some("another traced function"),
        (Seed::Task(_), Seed::Task(_)) | (Seed::Trace(_), Seed::Trace(_)) => None,
        (Seed::Task(_), Seed::Trace(_)) | (Seed::Trace(_), Seed::Task(_)) => Some("another kind of action"),
    }
}

fn create_run(view: &dyn View, seed: &Seed, info: &RunInfo) -> Result<Decision, Refusal> {
    let root = ActionName::root();
    if let Some(existing) = view.action(&root) {
        return match difference(&existing.seed, seed) {
            None => Ok(Decision::unchanged()),
            Some(difference) => {
                Err(Refusal::DifferentWork { what: "run", name: "of this name".to_owned(), difference })
            }
        };
    }
    Ok(Decision::one(Event::Created {
        action: root,
        ancestors: Vec::new(),
        group: String::new(),
        seed: Box::new(seed.clone()),
        run: Some(Box::new(info.clone())),
    }))
}

fn enqueue(
    view: &dyn View,
    action: &ActionName,
    parent: &ActionName,
    group: &str,
    seed: &Seed,
) -> Result<Decision, Refusal> {
    if let Some(existing) = view.action(action) {
        // A replaying parent sends the same name for the same work; whatever it sends, the first one counts, because
        // the name itself is a digest of task and inputs. Only another kind of action under that name is a mistake.
        return match difference(&existing.seed, seed) {
            Some(difference) if difference.ends_with("kind of action") => {
                Err(Refusal::DifferentWork { what: "action", name: action.to_string(), difference })
            }
            _ => Ok(Decision::unchanged()),
        };
    }
    let above = match view.action(parent) {
        Some(above) => above,
        None if view.action(&ActionName::root()).is_some() => return Err(Refusal::NoSuchParent(parent.clone())),
        None => return Err(Refusal::NoSuchRun),
    };
    let ended = if above.phase.is_terminal() { Some(above) } else { ended_ancestor(view, above) };
    if let Some(ended) = ended {
        return Err(Refusal::AncestorEnded { ancestor: ended.name.clone(), phase: ended.phase });
    }
    if let Seed::Trace(trace) = seed
        && !trace.phase.is_terminal()
    {
        return Err(Refusal::TraceNotEnded(action.clone()));
    }
    let mut ancestors = above.ancestors.clone();
    ancestors.push(parent.clone());
    Ok(Decision::one(Event::Created {
        action: action.clone(),
        ancestors,
        group: group.to_owned(),
        seed: Box::new(seed.clone()),
        run: None,
    }))
}

fn take(view: &dyn View, name: &ActionName, lease: &Lease, now: Time) -> Result<Decision, Refusal> {
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

fn report(
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
        Progress::Ended(AttemptOutcome::Succeeded(outputs)) => {
            Ok(Decision::one(Event::Succeeded { action: name.clone(), attempt: number, outputs: outputs.clone() }))
        }
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
            }))
        }
        Progress::Ended(AttemptOutcome::Lost(error)) => Ok(lost(state, number, error, now)),
        Progress::Waiting { .. } | Progress::Initializing | Progress::Running => Ok(Decision::unchanged()),
    }
}

fn lost(state: &ActionState, number: u32, error: &TaskError, now: Time) -> Decision {
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
        outputs: crate::OutputRefs::default(),
    })
}

fn abort(view: &dyn View, name: &ActionName, by: &EndedBy) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    if state.phase.is_terminal() {
        return Err(Refusal::Ended { name: name.clone(), phase: state.phase });
    }
    if let Some(ended) = ended_ancestor(view, state) {
        return Err(Refusal::Ended { name: name.clone(), phase: shown(ended) });
    }
    Ok(Decision::one(Event::Aborted { action: name.clone(), by: by.clone() }))
}

/// How an action below `_ended` is shown.
fn shown(_ended: &ActionState) -> Phase {
    Phase::Aborted
}

fn settle(view: &dyn View, actions: &[ActionName]) -> Decision {
    let events: Vec<_> = actions
        .iter()
        .filter_map(|name| view.action(name))
        .filter(|state| !state.phase.is_terminal())
        .filter_map(|state| {
            let ended = ended_ancestor(view, state)?;
            let by = EndedBy { subject: String::new(), reason: action::ended_reason(ended) };
            Some(Event::Aborted { action: state.name.clone(), by })
        })
        .collect();
    let reply = if events.is_empty() { Reply::Unchanged } else { Reply::Done };
    Decision { events, reply }
}

fn check_limits(view: &dyn View, name: &ActionName, now: Time) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    let (Some((due, limit)), Some(attempt)) = (state.next_limit(), state.current()) else {
        return Ok(Decision::unchanged());
    };
    if due > now || ended_ancestor(view, state).is_some() {
        return Ok(Decision::unchanged());
    }
    let Some(task) = state.task() else { return Ok(Decision::unchanged()) };
    let policy = &task.policy;
    let (text, ms) = match limit {
        TimeLimit::MaxRuntime => ("ran longer than its maximum runtime", policy.max_runtime_ms),
        TimeLimit::Queued => ("waited longer than its queued timeout", policy.queued_timeout_ms),
        TimeLimit::Deadline => ("did not end before its deadline", policy.deadline_ms),
    };
    // Only the runtime of an attempt says nothing about the next one; a wait or a deadline that has passed stays passed.
    let pause = match limit {
        TimeLimit::MaxRuntime => {
            retry::after_user_failure(policy.retries, policy.backoff.as_ref(), state.user_failures + 1)
        }
        TimeLimit::Queued | TimeLimit::Deadline => None,
    };
    let message = format!(
        "attempt {} {text} of {} s; raise the limit in the task's declaration or make the work shorter",
        attempt.number,
        ms.unwrap_or_default() as f64 / 1000.0
    );
    Ok(Decision::one(Event::TimedOut {
        action: name.clone(),
        attempt: attempt.number,
        error: TaskError::new(limit.code(), message, ErrorKind::User, pause.is_some()),
        retry_at: pause.map(|p| now.plus(p)),
    }))
}
