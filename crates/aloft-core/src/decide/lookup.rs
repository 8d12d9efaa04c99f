//! Whether a cached result stands in for an action.

use super::{Decision, View, check_live, find};
use crate::{ActionName, ActionState, CachePlan, CacheStatus, Event, Phase, Refusal, Reply, Reservation, Seen, Time};

pub(super) fn look_up(view: &dyn View, name: &ActionName, seen: &Seen, now: Time) -> Result<Decision, Refusal> {
    let state = find(view, name)?;
    check_live(view, state)?;
    let Some(plan) = state.pending_lookup() else { return Ok(Decision::unchanged()) };
    let cache = view.cache(state);
    let usable = cache.entries.into_iter().find(|e| !plan.overwrite && e.is_fresh(plan.max_age_ms, now));
    let status = match (usable, seen) {
        (Some(entry), Seen::Data { output_uri }) if entry.outputs.output_uri == *output_uri => {
            return Ok(Decision::one(Event::CacheHit {
                action: name.clone(),
                source: entry.source,
                outputs: entry.outputs,
            }));
        }
        // The cache has changed since somebody looked at the data: look again.
        (Some(_), Seen::Data { .. } | Seen::Nothing) => return Ok(Decision::unchanged()),
        (_, Seen::Failed) => CacheStatus::LookupFailed,
        (None, _) if plan.overwrite => CacheStatus::Skipped,
        (None, _) => CacheStatus::Miss,
    };
    Ok(compute(state, plan, cache.holder.as_ref(), &cache.me, status, now))
}

/// Lets the action compute, unless it is to wait for another that computes the same.
fn compute(
    state: &ActionState,
    plan: &CachePlan,
    holder: Option<&Reservation>,
    me: &str,
    status: CacheStatus,
    now: Time,
) -> Decision {
    let other = holder.filter(|h| plan.serialize && h.owner != me && h.holds(now));
    let Some(other) = other else {
        let event = Event::CacheMissed { action: state.name.clone(), status, reserved: plan.serialize };
        return Decision::one(event);
    };
    let waits = state.current().is_some_and(|a| a.phase == Phase::WaitingForResources);
    let Some(attempt) = state.current().filter(|_| !waits) else {
        return Decision { events: Vec::new(), reply: Reply::Unchanged };
    };
    Decision::one(Event::Progressed {
        action: state.name.clone(),
        attempt: attempt.number,
        phase: Phase::WaitingForResources,
        reason: format!("waits for {}, which computes the same result", other.owner),
    })
}
