//! What may be seen, one view after another (rule 5), and one beside another (rule 1).

use aloft_core::Phase;

use super::{Check, Violation, broken};
use crate::seen::{Details, SeenError, Shown, Update};

/// How far an attempt has come. Said again here and not taken from the core, which is what is judged.
pub fn rank(phase: Phase) -> u8 {
    match phase {
        Phase::Queued => 0,
        Phase::WaitingForResources | Phase::Paused => 1,
        Phase::Initializing => 2,
        Phase::Running => 3,
        Phase::Succeeded | Phase::Failed | Phase::Aborted | Phase::TimedOut | Phase::Recovered => 4,
    }
}

/// Whether what is shown of an action that lives, its phase and its attempts, has gone back. What is carried out
/// elsewhere waits after a failed attempt for one that nobody has begun, which is not shown before.
pub fn goes_back(before: (Phase, u32), now: (Phase, u32), elsewhere: bool) -> bool {
    let between = elsewhere && now.0 == Phase::Queued && now.1 == before.1;
    !between && (now.1, rank(now.0)) < (before.1, rank(before.0))
}

/// Within an attempt phases only advance.
pub fn rule_5_phases_only_advance(before: &Shown, now: &Shown) -> Check {
    let same = before.attempts == now.attempts;
    if same && goes_back((before.phase, before.attempts), (now.phase, now.attempts), now.elsewhere) {
        return broken!(
            rule_5_phases_only_advance,
            "attempt {} of {} was {} and is {}",
            now.attempts,
            now.id,
            before.phase.words(),
            now.phase.words()
        );
    }
    Ok(())
}

/// Attempts only increase.
pub fn rule_5_attempts_only_increase(before: &Shown, now: &Shown) -> Check {
    if now.attempts < before.attempts {
        return broken!(
            rule_5_attempts_only_increase,
            "{} had {} attempts and has {}",
            now.id,
            before.attempts,
            now.attempts
        );
    }
    Ok(())
}

/// A terminal action is final: no view ever shows it otherwise.
pub fn rule_5_terminal_is_final_in_every_view(before: &Shown, now: &Shown) -> Check {
    if before.phase.is_terminal() && before != now {
        return broken!(rule_5_terminal_is_final_in_every_view, "shown as {before:?}, then as {now:?}");
    }
    Ok(())
}

/// What has ended, in this phase if it is known, is not shown otherwise.
pub fn rule_5_an_end_stays(shown: &Shown, ended: Option<Phase>) -> Check {
    if shown.phase.is_terminal() && ended.is_none_or(|phase| phase == shown.phase) {
        return Ok(());
    }
    broken!(rule_5_an_end_stays, "{} ended ({ended:?}) and is {}", shown.id, shown.phase.words())
}

/// As [`rule_5_terminal_is_final_in_every_view`], for all that is known of an action.
pub fn rule_5_the_record_of_an_end_is_final(before: &Details, now: &Details) -> Check {
    if before.shown.phase.is_terminal() && before != now {
        return broken!(rule_5_the_record_of_an_end_is_final, "recorded as {before:?}, then as {now:?}");
    }
    Ok(())
}

/// What an attempt went through and how it ended stays on record.
pub fn rule_5_attempts_are_kept(before: &Details, now: &Details) -> Check {
    for (was, is) in before.attempts.iter().zip(&now.attempts) {
        let kept = was.number == is.number && is.phases.starts_with(&was.phases);
        if !kept || (was.phase.is_terminal() && was != is) {
            return broken!(rule_5_attempts_are_kept, "{}: attempt {was:?} became {is:?}", now.shown.id);
        }
    }
    if now.attempts.len() < before.attempts.len() {
        return broken!(rule_5_attempts_are_kept, "{}: lost an attempt", now.shown.id);
    }
    Ok(())
}

/// Two views of an action agree.
pub fn rule_1_views_agree<T: PartialEq + std::fmt::Debug>(one: &T, view: &str, other: &T) -> Check {
    if one == other {
        return Ok(());
    }
    broken!(rule_1_views_agree, "the details show {one:?}, {view} shows {other:?}")
}

/// What a parent hears of a child agrees with the child's details.
pub fn rule_1_a_parent_hears_what_the_details_show(details: &Details, update: &Update) -> Check {
    let shown = &details.shown;
    let output = details.attempts.last().map_or("", |a| a.output.as_str());
    let same_output = output.is_empty() || update.output == output;
    // An abort is told by its phase alone; only what failed has an error to tell.
    let same_error = update.error == details.error;
    let same_value = update.value == details.signal.as_ref().map(|s| s.value);
    if shown.phase == update.phase && same_error && same_output && same_value {
        return Ok(());
    }
    broken!(rule_1_a_parent_hears_what_the_details_show, "the details show {details:?}, the parent hears {update:?}")
}

/// A view lists what there is, in order, and nothing else.
pub fn rule_1_lists_are_complete<T: PartialEq + std::fmt::Debug>(view: &str, expected: &[T], found: &[T]) -> Check {
    if expected == found {
        return Ok(());
    }
    broken!(rule_1_lists_are_complete, "{view} lists {found:?} instead of {expected:?}")
}

/// Every view can be read: no phase that is none, no time missing.
pub fn rule_1_every_view_can_be_read<T>(read: Result<T, impl std::fmt::Debug>) -> Check<T> {
    match read {
        Ok(value) => Ok(value),
        Err(what) => broken!(rule_1_every_view_can_be_read, "{what:?}"),
    }
}

/// An end says what its cause was: the code of the error, the words of who aborted it, or the action above that ended.
pub fn rule_9_an_end_says_why(details: &Details, right: bool, end: &dyn std::fmt::Debug) -> Check {
    if right {
        return Ok(());
    }
    let (error, aborted) = (&details.error, &details.aborted);
    broken!(rule_9_an_end_says_why, "{} ended {end:?}, shown with {error:?} and {aborted:?}", details.shown.id)
}

/// An error keeps the words that it was raised with.
pub fn rule_9_an_error_keeps_its_words(shown: Option<&SeenError>, raised: (&str, &str)) -> Check {
    match shown.filter(|e| e.code == raised.0 && e.message != raised.1) {
        None => Ok(()),
        Some(error) => broken!(rule_9_an_error_keeps_its_words, "{error:?} instead of {:?}", raised.1),
    }
}

/// What is below an aborted action is shown as aborted from that commit on.
pub fn rule_5_abort_shown_on_descendants_at_once(seen: Check) -> Check {
    seen.map_err(|v| Violation { rule: "rule_5_abort_shown_on_descendants_at_once", what: v.to_string() })
}

/// What failed or timed out says why, and so does every attempt that did; what was aborted says who asked or what ended
/// above it.
pub fn rule_9_a_failure_carries_its_error(details: &Details) -> Check {
    let named = |error: &Option<SeenError>| error.as_ref().is_some_and(|e| !e.code.is_empty() && !e.message.is_empty());
    let failed = |phase| matches!(phase, Phase::Failed | Phase::TimedOut);
    let shown = &details.shown;
    if failed(shown.phase) != named(&details.error) {
        return broken!(
            rule_9_a_failure_carries_its_error,
            "{} is {} with the error {:?}",
            shown.id,
            shown.phase.words(),
            details.error
        );
    }
    if (shown.phase == Phase::Aborted) != details.aborted.as_ref().is_some_and(|reason| !reason.is_empty()) {
        return broken!(
            rule_9_a_failure_carries_its_error,
            "{} is {} with the abort {:?}",
            shown.id,
            shown.phase.words(),
            details.aborted
        );
    }
    let silent = details.attempts.iter().find(|a| failed(a.phase) && !named(&a.error));
    match silent {
        Some(attempt) => {
            broken!(rule_9_a_failure_carries_its_error, "{}: an attempt failed silently: {attempt:?}", shown.id)
        }
        None => Ok(()),
    }
}
