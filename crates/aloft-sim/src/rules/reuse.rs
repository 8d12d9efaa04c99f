//! What is reused instead of computed: cached results and those of a run that is recovered (rule 2, which has caching decided
//! by the pure core; nothing but requests, results and time counts).

use std::{collections::BTreeSet, fmt::Debug};

use aloft_core::{Phase, Time};

use super::{Check, Violation, broken};
use crate::{
    ids::{ActionId, RunId},
    seen::{Details, Shown},
};

/// A result that stands in for another action.
#[derive(Clone, Debug, PartialEq)]
pub struct Computed {
    /// How its action ended.
    pub phase: Phase,
    /// When; `None` if somebody else's clock says.
    pub at: Option<Time>,
    /// Where it lies.
    pub output: String,
}

/// A hit names the attempt whose result stands in, which had succeeded before, and has its outputs. Nothing else names one.
pub fn rule_2_a_hit_is_of_what_succeeded_before(
    details: &Details,
    computed: impl Fn(&ActionId, u32) -> Option<Computed>,
) -> Check {
    let hit = details.shown.cache == crate::model::HIT;
    for attempt in &details.attempts {
        let right = match &attempt.source {
            None => !hit,
            Some((source, number)) => computed(source, *number).is_some_and(|c| {
                let before = c.at.zip(details.shown.end).is_none_or(|(then, now)| then <= now);
                hit && c.phase == Phase::Succeeded && before && c.output == attempt.output && !c.output.is_empty()
            }),
        };
        if !right {
            return broken!(
                rule_2_a_hit_is_of_what_succeeded_before,
                "{} has the cache status {} and names {:?}",
                details.shown.id,
                details.shown.cache,
                attempt.source
            );
        }
    }
    Ok(())
}

/// Results stand in for identical work of the same project only.
pub fn rule_2_hits_are_of_identical_work(hit: &ActionId, source: &ActionId, identical: bool) -> Check {
    if identical && hit.run.place.project == source.run.place.project {
        return Ok(());
    }
    broken!(rule_2_hits_are_of_identical_work, "{hit} was given the result of {source}")
}

/// All that is shown of an action's cache says the same.
pub fn rule_1_the_cache_status_agrees(details: &Details) -> Check {
    match details.attempts.iter().find(|a| a.cache != details.shown.cache && a.number == details.shown.attempts) {
        None => Ok(()),
        Some(attempt) => broken!(
            rule_1_the_cache_status_agrees,
            "{}: the action says {}, its attempt {}",
            details.shown.id,
            details.shown.cache,
            attempt.cache
        ),
    }
}

/// A result that may stand in does.
pub fn rule_2_a_cached_result_stands_in(id: &ActionId, none: bool) -> Check {
    if none {
        return Ok(());
    }
    broken!(rule_2_a_cached_result_stands_in, "a result was there for {id} and was not used")
}

/// Without a result that may stand in, or whose data is gone, nothing is a hit.
pub fn rule_2_only_what_is_cached_stands_in(id: &ActionId, there: bool) -> Check {
    if there {
        return Ok(());
    }
    broken!(rule_2_only_what_is_cached_stands_in, "{id} is a hit, and nothing that may stand in is there")
}

/// Who computes says why: nothing was found, nobody could look, or it was to be computed in any case.
pub fn rule_2_a_miss_says_why(id: &ActionId, status: i32, right: &BTreeSet<i32>) -> Check {
    if right.contains(&status) {
        return Ok(());
    }
    broken!(rule_2_a_miss_says_why, "{id} has the cache status {status} instead of {right:?}")
}

/// Of identical actions that are serialized one computes at a time.
pub fn rule_2_identical_work_is_computed_once(what: &dyn Debug, computing: &[ActionId]) -> Check {
    if computing.len() <= 1 {
        return Ok(());
    }
    broken!(rule_2_identical_work_is_computed_once, "{computing:?} compute {what:?} at once")
}

/// What an action did while it computed: when it began and when it ended.
fn computed(details: &Details) -> Option<(Time, Option<Time>)> {
    let began = |(phase, at): &(Phase, Time)| matches!(phase, Phase::Initializing | Phase::Running).then_some(*at);
    let first = details.attempts.iter().flat_map(|a| &a.phases).find_map(began)?;
    Some((first, details.shown.end))
}

/// As [`rule_2_identical_work_is_computed_once`], by the times that are shown.
pub fn rule_2_identical_work_is_not_computed_side_by_side(identical: &[&Details]) -> Check {
    let mut times: Vec<_> = identical.iter().filter_map(|d| Some((computed(d)?, &d.shown.id))).collect();
    times.sort();
    let overlap = |w: &&[((Time, Option<Time>), &ActionId)]| w[0].0.1.is_none_or(|end| w[1].0.0 < end);
    match times.windows(2).find(overlap) {
        None => Ok(()),
        Some(two) => broken!(rule_2_identical_work_is_not_computed_side_by_side, "{two:?}"),
    }
}

/// Who waits for another's result is not handed out, and says that it waits.
pub fn rule_2_who_waits_says_so(id: &ActionId, says_so: bool) -> Check {
    if says_so {
        return Ok(());
    }
    broken!(rule_2_who_waits_says_so, "{id} was looked up and neither computes nor says that it waits")
}

/// Who waits for a result waits for somebody who computes it: a holder that is dead or has ended is replaced.
pub fn rule_2_who_waits_waits_for_somebody(waiting: &[ActionId], computing: usize) -> Check {
    if computing > 0 {
        return Ok(());
    }
    broken!(rule_2_who_waits_waits_for_somebody, "{waiting:?} wait, and nobody computes")
}

/// Nothing is decided on a lookup below what has ended.
pub fn rule_5_nothing_is_looked_up_below_what_has_ended(id: &ActionId, undecided: bool) -> Check {
    if undecided {
        return Ok(());
    }
    broken!(rule_5_nothing_is_looked_up_below_what_has_ended, "{id} was given a result or a turn after its end")
}

/// What is recovered names its source: the action of the same name in the run that is recovered, which had succeeded before.
pub fn rule_2_what_is_recovered_had_succeeded(
    shown: &Shown,
    recovers: Option<&RunId>,
    source: impl Fn(&ActionId) -> Option<Computed>,
) -> Check {
    let right = match &shown.recovered {
        None => shown.phase != Phase::Recovered,
        Some(from) => {
            let of_source = recovers == Some(&from.run) && from.name == shown.id.name;
            let well = source(from).is_some_and(|c| {
                matches!(c.phase, Phase::Succeeded | Phase::Recovered) && c.at.is_none_or(|then| then <= shown.start)
            });
            shown.phase == Phase::Recovered && of_source && well
        }
    };
    if right {
        return Ok(());
    }
    let (id, from) = (&shown.id, &shown.recovered);
    broken!(rule_2_what_is_recovered_had_succeeded, "{id} is {} and recovered from {from:?}", shown.phase.words())
}

/// What is named to be computed again is computed again: neither recovered nor found in the cache.
pub fn rule_2_forced_actions_run_again(shown: &Shown, forced: bool) -> Check {
    if forced && (shown.recovered.is_some() || shown.cache == crate::model::HIT) {
        return broken!(
            rule_2_forced_actions_run_again,
            "{} was to be computed again and is {}",
            shown.id,
            shown.phase.words()
        );
    }
    Ok(())
}

/// What had succeeded in the run that is recovered is taken over.
pub fn rule_2_what_succeeded_is_recovered(shown: &Shown, expected: Option<&ActionId>) -> Check {
    if expected.is_some() && shown.recovered.as_ref() != expected {
        return broken!(
            rule_2_what_succeeded_is_recovered,
            "{} is {} and not recovered from {expected:?}",
            shown.id,
            shown.phase.words()
        );
    }
    Ok(())
}

/// A run that was made from another is found by that one's name.
pub fn rule_1_relations_are_seen_both_ways(listed: Check) -> Check {
    listed.map_err(|v| Violation { rule: "rule_1_relations_are_seen_both_ways", what: v.to_string() })
}
