//! What is stored (rules 1 and 5): the log, and the states and columns that are projections of it.

use std::collections::BTreeMap;

use aloft_core::{ActionName, ActionState, Time};

use super::{Check, broken, views::goes_back};
use crate::{
    book::{Ledger, Moment, Story},
    ids::RunId,
};

/// A run's log is numbered from 1 without gaps, and its row knows the last number.
pub fn rule_1_log_is_numbered_without_gaps(ledger: &Ledger) -> Check {
    let found: Vec<u64> = ledger.entries.iter().map(|e| e.seq).collect();
    let expected: Vec<u64> = (1..=ledger.seq).collect();
    if found == expected {
        return Ok(());
    }
    broken!(rule_1_log_is_numbered_without_gaps, "{}: numbered {found:?}, the last is {}", ledger.run, ledger.seq)
}

/// The feed over all runs has each run's events in the order of its log.
pub fn rule_1_the_feed_is_in_the_order_of_the_logs(ledger: &Ledger) -> Check {
    let positions: Vec<u64> = ledger.entries.iter().map(|e| e.pos).collect();
    if positions.is_sorted_by(|a, b| a < b) {
        return Ok(());
    }
    broken!(rule_1_the_feed_is_in_the_order_of_the_logs, "{}: at {positions:?}", ledger.run)
}

/// The log can be folded, and what comes out are the stored states.
pub fn rule_1_states_are_the_fold_of_the_log(ledger: &Ledger) -> Check<Story> {
    let story = match Story::of(&ledger.entries) {
        Ok(story) => story,
        Err(seq) => {
            return broken!(rule_1_states_are_the_fold_of_the_log, "{}: event {seq} does not fit", ledger.run);
        }
    };
    let stored: BTreeMap<&ActionName, &ActionState> =
        ledger.records.values().map(|r| (&r.state.name, &r.state)).collect();
    let folded: BTreeMap<&ActionName, &ActionState> = story.states.iter().collect();
    if stored != folded {
        let other = folded.iter().find(|(name, state)| stored.get(*name) != Some(state));
        return broken!(
            rule_1_states_are_the_fold_of_the_log,
            "{}: the log makes {other:?}, stored is {:?}",
            ledger.run,
            other.and_then(|(name, _)| stored.get(name))
        );
    }
    Ok(story)
}

/// The columns that lists, dispatch and timers go by say what the state says.
pub fn rule_1_columns_are_projections_of_the_states(ledger: &Ledger) -> Check {
    for (name, record) in &ledger.records {
        let state = &record.state;
        let said = (
            record.phase,
            record.parent.as_deref(),
            record.depth,
            record.ended_at,
            record.ready_at,
            record.due_at,
            record.worker.as_deref(),
        );
        let is = (
            state.phase.number(),
            state.parent().map(ActionName::as_str),
            state.ancestors.len() as i64,
            state.ended_at.map(Time::as_micros),
            state.ready_at().map(Time::as_micros),
            state.due_at().map(Time::as_micros),
            state.live_lease().map(|l| l.worker.0.as_str()),
        );
        if said != is || *name != state.name.to_string() {
            return broken!(
                rule_1_columns_are_projections_of_the_states,
                "{}/{name}: the columns say {said:?}, the state {is:?}",
                ledger.run
            );
        }
    }
    Ok(())
}

/// What can be seen of an action never goes back: attempts increase, phases advance, an end is the last.
pub fn rule_5_the_log_never_goes_back(ledger: &Ledger, story: &Story) -> Check {
    for (name, moments) in &story.moments {
        let elsewhere = story.states.iter().any(|(of, state)| of.as_str() == name && state.is_tracked());
        let back = |w: &&[Moment]| w[0].0.is_terminal() || goes_back(w[0], w[1], elsewhere);
        if let Some(step) = moments.windows(2).find(back) {
            return broken!(rule_5_the_log_never_goes_back, "{}/{name}: {step:?}", ledger.run);
        }
    }
    Ok(())
}

/// Once the records have followed, nothing lives below what has ended.
pub fn rule_5_nothing_lives_below_what_has_ended(ledger: &Ledger) -> Check {
    let ended = |name: &ActionName| ledger.records.get(name.as_str()).is_some_and(|r| r.state.phase.is_terminal());
    let live = ledger.records.values().map(|r| &r.state).filter(|s| !s.phase.is_terminal());
    match live.filter_map(|s| Some((s, s.ancestors.iter().find(|a| ended(a))?))).next() {
        None => Ok(()),
        Some((state, above)) => broken!(
            rule_5_nothing_lives_below_what_has_ended,
            "{}/{} is {} below {above}, which has ended",
            ledger.run,
            state.name,
            state.phase.words()
        ),
    }
}

/// What has ended is nobody's: no worker holds it, none can take it, no time limit is set on it.
pub fn rule_6_what_has_ended_is_nobodys(ledger: &Ledger) -> Check {
    let left = ledger.records.values().filter(|r| r.state.phase.is_terminal());
    match left.clone().find(|r| r.ready_at.is_some() || r.due_at.is_some() || r.worker.is_some()) {
        None => Ok(()),
        Some(record) => broken!(rule_6_what_has_ended_is_nobodys, "{}: {record:?}", ledger.run),
    }
}

/// A run that is shown has a log.
pub fn rule_1_a_run_has_a_log(run: &RunId, ledger: Option<Ledger>) -> Check<Ledger> {
    match ledger {
        Some(ledger) => Ok(ledger),
        None => broken!(rule_1_a_run_has_a_log, "{run} is shown and not stored"),
    }
}

/// An attempt has one holder from its lease to its end.
pub fn rule_6_the_log_has_one_holder_per_attempt(ledger: &Ledger) -> Check {
    let mut held: BTreeMap<(String, u32), String> = BTreeMap::new();
    for entry in &ledger.entries {
        if let aloft_core::Event::Leased { action, attempt, lease } = &entry.event {
            let before = held.insert((action.to_string(), *attempt), lease.worker.0.clone());
            if let Some(before) = before {
                return broken!(
                    rule_6_the_log_has_one_holder_per_attempt,
                    "{}/{action}: attempt {attempt} was leased to {before}, then to {}",
                    ledger.run,
                    lease.worker.0
                );
            }
        }
    }
    Ok(())
}
