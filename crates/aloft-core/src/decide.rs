//! The decisions: one function per command.

mod attempt;
mod create;
mod lookup;
mod signal;
mod track;

use crate::{
    ActionName, ActionState, CacheView, Command, EndedBelow, EndedBy, Event, Phase, QueueRoom, Refusal, Reply, Time,
};

/// What a decision may look at: the current states of a run's actions, and the records that its command touches.
pub trait View {
    /// The action called `name`, if it exists.
    fn action(&self, name: &ActionName) -> Option<&ActionState>;

    /// The children of `name` that have not ended by their own record.
    fn open_children(&self, name: &ActionName) -> EndedBelow;

    /// What the cache holds for `state`, whose lookup is to come.
    fn cache(&self, state: &ActionState) -> CacheView;

    /// The queue called `name` and what it holds; `None` if there is no such queue.
    fn queue(&self, name: &str) -> Option<QueueRoom>;

    /// The depth of the run's project and domain and what they hold, where somebody set one.
    fn places(&self) -> Vec<QueueRoom>;
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
        Command::CreateRun { seed, info, recovered, traces } => {
            create::run(view, seed, info, recovered.as_deref(), traces, now)
        }
        Command::Enqueue { action, parent, group, seed, recovered, traces } => {
            let new = create::New { action, parent, group, seed, recovered: recovered.as_deref(), traces };
            create::enqueue(view, &new)
        }
        Command::CreateTracked { seed, info, began } => track::create(view, seed, info, *began),
        Command::Track { action, parent, group, began, seed, report } => {
            let said = track::Said { action, parent, group, began: *began, seed: seed.as_deref(), report };
            track::track(view, &said, now)
        }
        Command::Lease { action, lease } => attempt::take(view, action, lease, now),
        Command::Report { action, attempt, token, progress } => {
            attempt::report(view, action, *attempt, *token, progress, now)
        }
        Command::Hold { action, reason } => attempt::hold(view, action, reason, now),
        Command::Reject { action, error } => attempt::reject(view, action, error),
        Command::Abort { action, by } => abort(view, action, by),
        Command::Settle { actions } => Ok(settle(view, actions)),
        Command::CheckLimits { action } => attempt::check_limits(view, action, now),
        Command::LookUp { action, seen } => lookup::look_up(view, action, seen, now),
        Command::Signal { action, value, by } => signal::signal(view, action, value, by),
        Command::Called { action, outcome } => signal::called(view, action, outcome),
    }
}

/// The action above `state` whose end ended it.
fn ended_ancestor<'v>(view: &'v dyn View, state: &ActionState) -> Option<&'v ActionState> {
    ActionState::that_ended_below(state.ancestors.iter().filter_map(|name| view.action(name)))
}

fn find<'v>(view: &'v dyn View, name: &ActionName) -> Result<&'v ActionState, Refusal> {
    if let Some(state) = view.action(name) {
        return Ok(state);
    }
    let run_exists = view.action(&ActionName::root()).is_some();
    Err(if run_exists || name.is_root() { Refusal::NoSuchAction(name.clone()) } else { Refusal::NoSuchRun })
}

/// Refuses an action that has ended, or is shown as ended because one above it has.
fn check_live(view: &dyn View, state: &ActionState) -> Result<(), Refusal> {
    let phase = if state.phase.is_terminal() {
        state.phase
    } else if ended_ancestor(view, state).is_some() {
        // Everybody sees it as aborted already; its record follows.
        Phase::Aborted
    } else {
        return Ok(());
    };
    Err(Refusal::Ended { name: state.name.clone(), phase })
}

/// Refuses new work below an action that has ended, or lies below one that has.
fn check_open(view: &dyn View, above: &ActionState) -> Result<(), Refusal> {
    let ended = if above.phase.is_terminal() { Some(above) } else { ended_ancestor(view, above) };
    match ended {
        Some(ended) => Err(Refusal::AncestorEnded { ancestor: ended.name.clone(), phase: ended.phase }),
        None => Ok(()),
    }
}

/// The action that something is to be added below.
fn find_parent<'v>(view: &'v dyn View, name: &ActionName) -> Result<&'v ActionState, Refusal> {
    match view.action(name) {
        Some(above) => Ok(above),
        None if view.action(&ActionName::root()).is_some() => Err(Refusal::NoSuchParent(name.clone())),
        None => Err(Refusal::NoSuchRun),
    }
}

fn abort(view: &dyn View, name: &ActionName, by: &EndedBy) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    check_live(view, state)?;
    let below = view.open_children(name);
    Ok(Decision::one(Event::Aborted { action: name.clone(), by: by.clone(), below, since: None }))
}

fn settle(view: &dyn View, actions: &[ActionName]) -> Decision {
    let events: Vec<_> = actions
        .iter()
        .filter_map(|name| view.action(name))
        .filter(|state| !state.phase.is_terminal())
        .filter_map(|state| {
            let ended = ended_ancestor(view, state)?;
            Some(Event::Aborted {
                action: state.name.clone(),
                by: EndedBy::above(ended),
                below: EndedBelow::default(),
                since: ended.ended_at,
            })
        })
        .collect();
    let reply = if events.is_empty() { Reply::Unchanged } else { Reply::Done };
    Decision { events, reply }
}
