//! What a change of an action's state changes beside its run: records that the same transaction keeps.

use crate::{ActionState, CacheEntry, CachePlan, CacheSource, CacheStatus, Phase, Reservation, RunKey, Time};

/// One change to a record beside the run.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect<'s> {
    /// The action holds the reservation of its key now.
    Reserve {
        /// Of what.
        plan: &'s CachePlan,
        /// The reservation.
        reservation: Reservation,
    },
    /// The action does not hold it any more: those who wait for it may look again.
    Release {
        /// Of what.
        plan: &'s CachePlan,
        /// Who held it.
        owner: String,
    },
    /// The action's result is cached.
    Cache {
        /// Under what.
        plan: &'s CachePlan,
        /// The result.
        entry: CacheEntry,
    },
}

/// The effects of the change from `before` to `after` in `run` at `at`, in order.
pub fn effects<'s>(run: &RunKey, before: Option<&ActionState>, after: &'s ActionState, at: Time) -> Vec<Effect<'s>> {
    let Some(plan) = after.task().and_then(|t| t.cache.as_ref()) else { return Vec::new() };
    let owner = || Reservation::owner_of(run, &after.name);
    let mut effects = Vec::new();
    let ended = after.phase.is_terminal() && !before.is_some_and(|b| b.phase.is_terminal());
    if ended && after.phase == Phase::Succeeded && after.cache.status == CacheStatus::Populated {
        let attempt = after.current().map_or(1, |a| a.number);
        let source = CacheSource { run: run.clone(), action: after.name.clone(), attempt };
        let outputs = after.outputs.clone();
        let entry = CacheEntry { outputs, source: Some(source), metadata: Vec::new(), created_at: at, updated_at: at };
        effects.push(Effect::Cache { plan, entry });
    }
    match (before.is_some_and(|b| b.cache.reserved), after.cache.reserved) {
        (false, true) => {
            effects.push(Effect::Reserve { plan, reservation: Reservation { owner: owner(), expires_at: None } });
        }
        (true, false) => effects.push(Effect::Release { plan, owner: owner() }),
        (true, true) | (false, false) => {}
    }
    effects
}
