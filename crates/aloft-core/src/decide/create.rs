//! How runs and actions come to be.

use super::{Decision, View, check_open, find_parent};
use crate::{
    ActionName, ActionState, DEFAULT_QUEUE, Event, QueueRoom, Recovered, RecoveredTrace, Refusal, Reply, RunInfo, Seed,
    Time, apply,
};

/// What tells two pieces of work apart: kind, task, input (design rule 4), never bytes that differ in a replay.
pub(super) fn difference(a: &Seed, b: &Seed) -> Option<&'static str> {
    match (a, b) {
        (Seed::Task(a), Seed::Task(b)) if a.task.digest != b.task.digest => Some("another task specification"),
        (Seed::Task(a), Seed::Task(b)) if a.input_uri != b.input_uri => Some("other inputs"),
        (Seed::Trace(a), Seed::Trace(b)) if a.name != b.name => Some("another traced function"),
        (Seed::Condition(a), Seed::Condition(b)) if (&a.name, a.kind) != (&b.name, b.kind) => Some("another condition"),
        (Seed::Task(_), Seed::Task(_))
        | (Seed::Trace(_), Seed::Trace(_))
        | (Seed::Condition(_), Seed::Condition(_)) => None,
        (Seed::Task(_) | Seed::Trace(_) | Seed::Condition(_), _) => Some("another kind of action"),
    }
}

pub(super) fn run(
    view: &dyn View,
    seed: &Seed,
    info: &RunInfo,
    recovered: Option<&Recovered>,
    traces: &[RecoveredTrace],
    now: Time,
) -> Result<Decision, Refusal> {
    let root = ActionName::root();
    if let Some(existing) = view.action(&root) {
        let elsewhere = existing.is_tracked().then_some("it is carried out elsewhere and only reported");
        return match elsewhere.or_else(|| difference(&existing.seed, seed)) {
            None => Ok(Decision::unchanged()),
            Some(difference) => {
                Err(Refusal::DifferentWork { what: "run", name: "of this name".to_owned(), difference })
            }
        };
    }
    check_room(view, seed, recovered, None)?;
    let created = Event::Created {
        action: root.clone(),
        ancestors: Vec::new(),
        group: String::new(),
        seed: Box::new(seed.clone()),
        run: Some(Box::new(info.clone())),
        recovered: recovered.cloned().map(Box::new),
        tracked: None,
    };
    let reply = apply(None, &created, now).map_or(Reply::Done, |state| Reply::Created(Box::new(state)));
    let mut events = vec![created];
    events.extend(recovered_traces(view, &[root], traces));
    Ok(Decision { events, reply })
}

/// What an enqueue asks for.
pub(super) struct New<'c> {
    pub(super) action: &'c ActionName,
    pub(super) parent: &'c ActionName,
    pub(super) group: &'c str,
    pub(super) seed: &'c Seed,
    pub(super) recovered: Option<&'c Recovered>,
    pub(super) traces: &'c [RecoveredTrace],
}

pub(super) fn enqueue(view: &dyn View, new: &New<'_>) -> Result<Decision, Refusal> {
    let New { action, parent, seed, .. } = *new;
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
    let above = find_parent(view, parent)?;
    if above.is_tracked() {
        return Err(Refusal::Tracked);
    }
    check_open(view, above)?;
    if let Seed::Trace(trace) = seed
        && !trace.phase.is_terminal()
    {
        return Err(Refusal::TraceNotEnded(action.clone()));
    }
    check_room(view, seed, new.recovered, Some(above))?;
    let mut ancestors = above.ancestors.clone();
    ancestors.push(parent.clone());
    let mut line = ancestors.clone();
    line.push(action.clone());
    let mut events = vec![Event::Created {
        action: action.clone(),
        ancestors,
        group: new.group.to_owned(),
        seed: Box::new(seed.clone()),
        run: None,
        recovered: new.recovered.cloned().map(Box::new),
        tracked: None,
    }];
    events.extend(recovered_traces(view, &line, new.traces));
    Ok(Decision { events, reply: Reply::Done })
}

/// Refuses work for a queue that does not take it, and beyond the depth of its queue, project or domain. A draining queue
/// takes what the work in it starts, or it could not end.
fn check_room(
    view: &dyn View,
    seed: &Seed,
    recovered: Option<&Recovered>,
    above: Option<&ActionState>,
) -> Result<(), Refusal> {
    let (Seed::Task(task), None) = (seed, recovered) else { return Ok(()) };
    let full = |load: &QueueRoom| match load.depth {
        Some(depth) if load.held() >= u64::from(depth) => Err(Refusal::Full { what: load.name.clone(), depth }),
        _ => Ok(()),
    };
    let starter = || {
        let line = above.into_iter().chain(above.into_iter().flat_map(|a| &a.ancestors).filter_map(|n| view.action(n)));
        line.into_iter().any(|a| a.queue() == Some(&task.queue))
    };
    match view.queue(&task.queue) {
        None if task.queue == DEFAULT_QUEUE => {}
        None => return Err(Refusal::NoSuchQueue(task.queue.clone())),
        Some(queue) => {
            if let Some(state) = queue.closed.filter(|state| *state == "deleted" || !starter()) {
                return Err(Refusal::QueueClosed { name: task.queue.clone(), state });
            }
            full(&queue)?;
        }
    }
    view.places().iter().try_for_each(full)
}

/// The traces that the new action `line.last()` takes over: it finds them as if it had recorded them itself.
fn recovered_traces<'c>(
    view: &'c dyn View,
    line: &'c [ActionName],
    traces: &'c [RecoveredTrace],
) -> impl Iterator<Item = Event> + 'c {
    traces.iter().filter(|t| view.action(&t.action).is_none() && !line.contains(&t.action)).map(|trace| {
        Event::Created {
            action: trace.action.clone(),
            ancestors: line.to_vec(),
            group: trace.group.clone(),
            seed: Box::new(Seed::Trace(trace.seed.clone())),
            run: None,
            recovered: Some(Box::new(Recovered {
                from: trace.from.clone(),
                outputs: trace.seed.outputs.clone(),
                signal: None,
            })),
            tracked: None,
        }
    })
}
