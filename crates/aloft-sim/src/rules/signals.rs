//! Conditions: who may end them, and what is shown of it.

use aloft_core::Phase;

use super::{
    Check,
    answers::{Answer, accepted, refused},
    broken,
};
use crate::{
    seen::{Details, Shown},
    signal::Value,
};

/// A condition that waits takes a value of its kind.
pub fn rule_3_a_waiting_condition_takes_its_value(answer: &Answer) -> Check<bool> {
    accepted("rule_3_a_waiting_condition_takes_its_value", answer)
}

/// The value that counts is shown: the first that was taken, as it was taken, and none before.
pub fn rule_3_a_signal_is_shown_with_its_value(details: &Details, told: Option<Value>) -> Check {
    let shown = details.signal.as_ref().map(|s| s.value);
    if shown == told {
        return Ok(());
    }
    broken!(rule_3_a_signal_is_shown_with_its_value, "{} was told {told:?}, shown is {shown:?}", details.shown.id)
}

/// The same signal again is success, and everything stays as it was.
pub fn rule_4_the_same_signal_changes_nothing(answer: &Answer) -> Check {
    accepted("rule_4_the_same_signal_changes_nothing", answer).map(drop)
}

/// A condition has one value: another one is refused, whichever of the two came first.
pub fn rule_5_a_second_value_is_refused(answer: &Answer, condition: &str) -> Check {
    refused("rule_5_a_second_value_is_refused", answer, "failed_precondition", condition)
}

/// A signal that comes after an abort, a timeout or the end of a parent has lost.
pub fn rule_5_a_signal_loses_against_an_end(answer: &Answer) -> Check {
    refused("rule_5_a_signal_loses_against_an_end", answer, "failed_precondition", "has ended")
}

/// A condition succeeds when it is signalled, and then for good, or takes over what one was told that succeeded; otherwise it
/// waits until something above it or time ends it.
pub fn rule_5_nothing_but_a_signal_succeeds_a_condition(shown: &Shown, signalled: bool, recovered: bool) -> Check {
    let fits = match shown.phase {
        Phase::Succeeded => signalled,
        Phase::Recovered => recovered,
        Phase::Paused | Phase::Aborted | Phase::TimedOut => !signalled && !recovered,
        _ => false,
    };
    if fits {
        return Ok(());
    }
    let (id, phase) = (&shown.id, shown.phase.words());
    broken!(rule_5_nothing_but_a_signal_succeeds_a_condition, "{id} is {phase}, and signalled is {signalled}")
}

/// A value of another kind is refused, by the name of the condition.
pub fn rule_9_a_value_of_another_kind_is_refused(answer: &Answer, condition: &str) -> Check {
    refused("rule_9_a_value_of_another_kind_is_refused", answer, "invalid_argument", condition)
}

/// What is no condition cannot be signalled.
pub fn rule_9_only_conditions_are_signalled(answer: &Answer, action: &str) -> Check {
    refused("rule_9_only_conditions_are_signalled", answer, "invalid_argument", action)
}

/// Who signalled is shown. Every request of the simulation is the same person's, who also started the run.
pub fn rule_9_a_signal_says_who_gave_it(details: &Details) -> Check {
    match details.signal.as_ref().filter(|s| s.by != details.by) {
        None => Ok(()),
        Some(signal) => broken!(
            rule_9_a_signal_says_who_gave_it,
            "{} was signalled by {:?}, shown is {:?}",
            details.shown.id,
            details.by,
            signal.by
        ),
    }
}
