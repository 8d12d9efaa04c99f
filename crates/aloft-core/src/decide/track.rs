//! Runs that are carried out elsewhere: begun, reported on.

use super::{Decision, View, check_open, create::difference, ended_ancestor, find_parent};
use crate::{
    ActionName, ActionState, CacheStatus, EndedBelow, Event, OutputRefs, Refusal, Reply, RunInfo, Seed, Time, Tracked,
    TrackedReport, apply, tracked,
};

pub(super) fn create(view: &dyn View, seed: &Seed, info: &RunInfo, began: Option<Time>) -> Result<Decision, Refusal> {
    let root = ActionName::root();
    let Some(existing) = view.action(&root) else {
        return Ok(Decision::one(Event::Created {
            action: root,
            ancestors: Vec::new(),
            group: String::new(),
            seed: Box::new(seed.clone()),
            run: Some(Box::new(info.clone())),
            recovered: None,
            tracked: Some(Tracked { began }),
        }));
    };
    let other_start = |known: Option<Time>| known.zip(began).is_some_and(|(known, began)| known != began);
    let difference = match &existing.tracking {
        None => Some("it is carried out by Aloft itself"),
        Some(tracking) => difference(&existing.seed, seed)
            .or_else(|| other_start(tracking.began).then_some("another execution, started at another time")),
    };
    match difference {
        None => Ok(Decision::unchanged()),
        Some(difference) => Err(Refusal::DifferentWork { what: "run", name: "of this name".to_owned(), difference }),
    }
}

/// What a reporter says of an action.
pub(super) struct Said<'c> {
    pub(super) action: &'c ActionName,
    pub(super) parent: &'c ActionName,
    pub(super) group: &'c str,
    pub(super) began: Option<Time>,
    pub(super) seed: Option<&'c Seed>,
    pub(super) report: &'c TrackedReport,
}

pub(super) fn track(view: &dyn View, said: &Said<'_>, now: Time) -> Result<Decision, Refusal> {
    let root = view.action(&ActionName::root()).ok_or(Refusal::NoSuchRun)?;
    if !root.is_tracked() {
        return Err(Refusal::NotTracked);
    }
    let Some(state) = view.action(said.action) else { return introduce(view, said, now) };
    // As for an enqueue, only the kind counts: what else a replay says of an action need not be the same.
    let difference = said.seed.and_then(|seed| difference(&state.seed, seed));
    if let Some(difference) = difference.filter(|d| d.ends_with("kind of action")) {
        return Err(Refusal::DifferentWork { what: "action", name: said.action.to_string(), difference });
    }
    hear(view, state, said.report, now)
}

/// Adds an action that was not known, with what is said of it.
fn introduce(view: &dyn View, said: &Said<'_>, now: Time) -> Result<Decision, Refusal> {
    let seed = said.seed.ok_or_else(|| Refusal::NotIntroduced(said.action.clone()))?;
    let above = find_parent(view, said.parent)?;
    check_open(view, above)?;
    if above.ancestors.len() >= tracked::MAX_DEPTH {
        return Err(Refusal::TooDeep(said.action.clone()));
    }
    let mut ancestors = above.ancestors.clone();
    ancestors.push(said.parent.clone());
    let began = tracked::plausible(said.began.unwrap_or(said.report.at), above.created_at, now);
    let created = Event::Created {
        action: said.action.clone(),
        ancestors,
        group: said.group.to_owned(),
        seed: Box::new(seed.clone()),
        run: None,
        recovered: None,
        tracked: Some(Tracked { began: Some(began) }),
    };
    let mut events = match apply(None, &created, now) {
        Some(state) => hear(view, &state, said.report, now)?.events,
        None => Vec::new(),
    };
    events.insert(0, created);
    Ok(Decision { events, reply: Reply::Done })
}

fn hear(view: &dyn View, state: &ActionState, report: &TrackedReport, now: Time) -> Result<Decision, Refusal> {
    let (Some(tracking), Some(current)) = (&state.tracking, state.current()) else { return Err(Refusal::NotTracked) };
    let phase = report.step.phase();
    // What was heard before, or is older than that, is a repetition or comes late. That includes all that follows the end of
    // an attempt: a parent that is tried again reports its children anew, and a terminal action is final.
    let known = tracking.heard.is_some_and(|heard| {
        heard.phase.is_terminal() || (report.version <= heard.version && phase.rank() <= heard.phase.rank())
    });
    if report.attempt < current.number || (report.attempt == current.number && known) {
        return Ok(Decision::unchanged());
    }
    if state.phase.is_terminal() {
        return Err(Refusal::Ended { name: state.name.clone(), phase: state.phase });
    }
    if let Some(ended) = ended_ancestor(view, state) {
        return Err(Refusal::AncestorEnded { ancestor: ended.name.clone(), phase: ended.phase });
    }
    if report.attempt.saturating_sub(current.number) > tracked::MAX_UNHEARD + 1 {
        return Err(Refusal::Unheard { name: state.name.clone(), attempt: report.attempt, known: current.number });
    }
    let advances = report.attempt > current.number || phase.rank() > current.phase.rank();
    if !advances && !tells_more(state, &current.outputs, report) {
        return Ok(Decision::unchanged());
    }
    let policy = state.task().map(|t| &t.policy);
    let wait = report.step.error().and_then(|error| tracked::wait_for_next(policy, report.attempt, error));
    let ends = phase.is_terminal() && wait.is_none();
    Ok(Decision::one(Event::Reported {
        action: state.name.clone(),
        report: Box::new(TrackedReport { at: tracked::plausible(report.at, state.last_time(), now), ..report.clone() }),
        next_by: wait.map(|wait| now.plus(wait)),
        below: if ends { view.open_children(&state.name) } else { EndedBelow::default() },
    }))
}

/// Whether a report that moves nothing on says something that was not known.
fn tells_more(state: &ActionState, known: &OutputRefs, report: &TrackedReport) -> bool {
    let new = |known: &str, said: &str| !said.is_empty() && known != said;
    (report.cache != CacheStatus::Disabled && report.cache != state.cache.status)
        || new(&known.output_uri, &report.outputs.output_uri)
        || new(&known.report_uri, &report.outputs.report_uri)
}
