//! Who may work on what (rule 6).

use std::collections::HashSet;

use aloft_plane::ReportError;

use super::{
    Check,
    answers::{Answer, Granted, Reply},
    broken,
};
use crate::{ids::Lease, model::Attempts};

/// An attempt is handed out only while it waits, to one worker.
pub fn rule_6_one_live_owner(granted: &Granted, waits: bool, holder: Option<&Lease>) -> Check {
    let lease = &granted.lease;
    match (holder, waits) {
        (Some(holder), _) => broken!(
            rule_6_one_live_owner,
            "attempt {} of {} was given to {} while {} held it",
            lease.attempt,
            lease.action,
            lease.worker,
            holder.worker
        ),
        (None, false) => {
            broken!(
                rule_6_one_live_owner,
                "attempt {} of {} was handed out and does not wait",
                lease.attempt,
                lease.action
            )
        }
        (None, true) => Ok(()),
    }
}

/// A worker reaches the control plane, which can read its store.
pub fn rule_6_a_worker_reaches_the_control_plane<T>(worker: &str, asked: Result<T, ReportError>) -> Check<T> {
    match asked {
        Ok(value) => Ok(value),
        Err(error) => broken!(rule_6_a_worker_reaches_the_control_plane, "{worker}: {error}"),
    }
}

/// A worker that asks is answered: with work, or with none.
pub fn rule_6_a_worker_is_answered(answer: &Answer) -> Check<&[Granted]> {
    match answer {
        Answer::Done(Reply::Leased(granted)) => Ok(granted),
        other => broken!(rule_6_a_worker_is_answered, "{other:?}"),
    }
}

/// What waits is handed out: a worker with room gets all that is ready.
pub fn rule_6_ready_work_is_handed_out(granted: usize, at_least: usize, at_most: usize) -> Check {
    if (at_least..=at_most).contains(&granted) {
        return Ok(());
    }
    broken!(rule_6_ready_work_is_handed_out, "got {granted} attempts, {at_least} to {at_most} are ready")
}

/// An output prefix belongs to one attempt.
pub fn rule_6_output_prefix_is_never_reused(used: &mut HashSet<String>, granted: &Granted) -> Check {
    if used.insert(granted.output_prefix.clone()) {
        return Ok(());
    }
    broken!(rule_6_output_prefix_is_never_reused, "{} was given twice", granted.output_prefix)
}

/// What a worker is told of an attempt, beside its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its number.
    pub attempt: u32,
    /// Where its outputs go.
    pub output_prefix: String,
    /// Where the attempt before it left its checkpoint; empty for the first.
    pub previous_prefix: String,
    /// The action above it.
    pub parent: Option<String>,
}

/// An attempt is told its number, where its outputs go, and where the one before it left its checkpoint.
pub fn rule_6_an_attempt_is_told_what_it_is(granted: &Granted, expected: &Told) -> Check {
    let told = Told {
        attempt: granted.lease.attempt,
        output_prefix: granted.output_prefix.clone(),
        previous_prefix: granted.previous_prefix.clone(),
        parent: granted.parent.clone(),
    };
    if told == *expected {
        return Ok(());
    }
    broken!(rule_6_an_attempt_is_told_what_it_is, "{}: {told:?} instead of {expected:?}", granted.lease.action)
}

/// A worker that starts anew is told all it holds, and nothing else.
pub fn rule_6_reclaim_names_what_is_held(told: &Attempts, held: &Attempts, unsettled: &Attempts) -> Check {
    if let Some((action, attempt)) = held.difference(told).next() {
        return broken!(rule_6_reclaim_names_what_is_held, "attempt {attempt} of {action} is held and was not named");
    }
    // An attempt below an ended action may be named until its record has followed; the first report ends it.
    if let Some((action, attempt)) = told.iter().find(|a| !held.contains(a) && !unsettled.contains(a)) {
        return broken!(rule_6_reclaim_names_what_is_held, "attempt {attempt} of {action} was named and is not held");
    }
    Ok(())
}

/// A holder hears that its attempt has ended by another hand.
pub fn rule_6_revocations_reach_the_holder(lease: &Lease, heard: bool) -> Check {
    if heard {
        return Ok(());
    }
    broken!(
        rule_6_revocations_reach_the_holder,
        "attempt {} of {} ended by another hand and {} never heard",
        lease.attempt,
        lease.action,
        lease.worker
    )
}
