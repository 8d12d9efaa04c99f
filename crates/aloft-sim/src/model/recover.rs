//! What a run takes over from the one that it recovers.

use aloft_core::{Phase, ROOT_ACTION, Time};

use super::{Action, End, Model, Run, Why};
use crate::{
    draw::Hands,
    ids::{ActionId, Origin, Place, RunId, output_prefix},
    rules::{
        Check,
        answers::{self, Answer},
        reuse::Computed,
    },
    signal::Value,
    step::Kind,
};

/// A result taken over.
#[derive(Clone, Debug, PartialEq)]
pub struct Recovered {
    /// Whose it is.
    pub from: ActionId,
    /// Where it lies.
    pub output: String,
    /// The value, if it is a condition's.
    pub value: Option<Value>,
}

/// What a new action takes over.
#[derive(Default)]
pub(super) struct Taken {
    pub(super) result: Option<Recovered>,
    /// The traces below it, if it runs.
    pub(super) traces: Vec<(String, Action)>,
}

fn ended_well(action: &Action) -> bool {
    let phase = action.end.as_ref().and_then(|end| end.phase);
    matches!(phase, Some(Phase::Succeeded | Phase::Recovered))
}

/// Where the result of an action lies that ended well.
pub(super) fn result(id: &ActionId, action: &Action) -> String {
    match (&action.recovered, &action.kind) {
        (Some(recovered), _) => recovered.output.clone(),
        (None, Kind::Trace { .. }) => output_prefix(id, 1),
        (None, Kind::Task(_)) => action.attempts.last().map(|a| a.output.clone()).unwrap_or_default(),
        (None, Kind::Condition(_)) => String::new(),
    }
}

/// Whether an action of a run that is recovered is the same work as a new one of its name. The names of others say what
/// their inputs are; the root's does not, and inputs lie with their domain.
fn same_work(name: &str, old: (&RunId, &Kind), new: (&RunId, &Kind)) -> bool {
    match (old.1, new.1) {
        (Kind::Task(a), Kind::Task(b)) => {
            let same_inputs = name != ROOT_ACTION || (a.input == b.input && old.0.place == new.0.place);
            a.task == b.task && same_inputs
        }
        (Kind::Condition(old), Kind::Condition(new)) => (old.name, old.awaits) == (new.name, new.awaits),
        _ => false,
    }
}

impl Model {
    /// Whether a run can be made from another; if not, that it was refused.
    pub(super) fn can_be_made_from(&self, place: &Place, from: Option<&Origin>, answer: &Answer) -> Check<bool> {
        let Some(Origin { run, recover: Some(_) }) = from else { return Ok(true) };
        if run.place.project != place.project {
            answers::rule_9_a_wrong_field_is_named(answer, "related_to")?;
            return Ok(false);
        }
        if !self.runs.contains_key(run) {
            answers::rule_9_what_is_missing_is_named(answer, &run.name)?;
            return Ok(false);
        }
        Ok(true)
    }

    /// What the action `name` of `run` takes over when it is made. Somebody else's hands have moved what it recovers.
    pub(super) fn taken(&self, run: &RunId, from: Option<&Origin>, name: &str, kind: &Kind, at: Time) -> Taken {
        // Nobody but us signals. What traces returned is there only where we write.
        let known = self.hands == Hands::Ours || matches!(kind, Kind::Condition(_));
        let Some(Origin { run: source, recover: Some(forced) }) = from.filter(|_| known) else {
            return Taken::default();
        };
        // A trace is recorded with what it did; there is nothing left to save.
        let old = self.runs.get(source).filter(|_| !matches!(kind, Kind::Trace { .. }));
        let Some(old) = old else { return Taken::default() };
        let wanted = |name: &str, action: &Action| {
            let there = !self.vanished.contains(&result(&source.action(name), action));
            ended_well(action) && !forced.iter().any(|f| f == name) && there
        };
        let take = |name: &str, action: &Action| {
            let from = source.action(name);
            Recovered { output: result(&from, action), value: action.value(), from }
        };
        if let Some(action) = old.actions.get(name)
            && wanted(name, action)
            && same_work(name, (source, &action.kind), (run, kind))
        {
            return Taken { result: Some(take(name, action)), traces: Vec::new() };
        }
        if self.theirs() {
            return Taken::default();
        }
        let mut traces: Vec<_> = old
            .actions
            .iter()
            .filter(|(_, a)| a.parent.as_deref() == Some(name) && matches!(a.kind, Kind::Trace { .. }))
            .filter(|(trace, a)| wanted(trace, a) && !self.is_taken_name(run, name, trace))
            .collect();
        traces.sort_by_key(|(_, a)| a.order);
        let traces = traces.into_iter().map(|(trace, action)| {
            let mut taken = action.clone();
            taken.created = at;
            taken.become_recovered(take(trace, action), at);
            (trace.clone(), taken)
        });
        Taken { result: None, traces: traces.collect() }
    }

    /// What is known of the end of an action.
    pub(super) fn achieved(&self, id: &ActionId) -> Option<Computed> {
        let action = self.runs.get(&id.run)?.actions.get(&id.name)?;
        let end = action.end.as_ref()?;
        // A trace says itself when it ended.
        let at = end.at.filter(|_| !matches!(action.kind, Kind::Trace { .. }));
        Some(Computed { phase: end.phase?, at, output: result(id, action) })
    }

    /// Whether the new action `name` takes over a result, and so needs no room anywhere; `None` if that depends on what
    /// nobody has looked at since.
    pub(super) fn needs_no_room(
        &self,
        run: &RunId,
        from: Option<&Origin>,
        (name, kind): (&str, &Kind),
        at: Time,
    ) -> Option<bool> {
        if self.hands == Hands::Ours {
            return Some(self.taken(run, from, name, kind, at).result.is_some());
        }
        let Some(Origin { run: source, recover: Some(forced) }) = from else { return Some(false) };
        let old = self.runs.get(source).and_then(|old| old.actions.get(name));
        let same = old.is_some_and(|old| same_work(name, (source, &old.kind), (run, kind)));
        if same && !forced.iter().any(|f| f == name) { None } else { Some(false) }
    }

    /// Whether the name of a trace that could be taken over below `parent` is another's already.
    fn is_taken_name(&self, run: &RunId, parent: &str, trace: &str) -> bool {
        trace == parent || self.runs.get(run).is_some_and(|run| run.actions.contains_key(trace))
    }
}

impl Action {
    /// The value that it was told or took over, if it is a condition.
    pub(super) fn value(&self) -> Option<Value> {
        match (self.end.as_ref().map(|end| &end.why), &self.recovered) {
            (Some(Why::Signalled(value)), _) => Some(*value),
            (_, Some(recovered)) => recovered.value,
            _ => None,
        }
    }

    /// It ended when it was made, with the result of another.
    pub(super) fn become_recovered(&mut self, recovered: Recovered, at: Time) {
        self.attempts.clear();
        self.cache = None;
        self.end = Some(End { phase: Some(Phase::Recovered), at: Some(at), why: Why::Itself(None) });
        self.recovered = Some(recovered);
    }
}

impl Run {
    /// Whether the action `name` is to be computed again whatever was achieved before.
    pub fn forces(&self, name: &str) -> bool {
        let forced = self.reuse.from.as_ref().and_then(|from| from.recover.as_ref());
        forced.is_some_and(|forced| forced.iter().any(|f| f == name))
    }
}
