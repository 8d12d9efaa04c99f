//! Runs that are carried out elsewhere and reported.

use aloft_core::Event;

use super::{
    Check,
    answers::{Answer, accepted, refused},
    broken,
};
use crate::{book::Ledger, ids::RunId};

/// A report that says something new of what lives is taken.
pub fn rule_3_what_is_reported_is_taken(answer: &Answer) -> Check<bool> {
    accepted("rule_3_what_is_reported_is_taken", answer)
}

/// A report that is repeated or comes late is no error. That it changed nothing is seen in every view that follows.
pub fn rule_4_what_was_reported_changes_nothing(answer: &Answer) -> Check {
    accepted("rule_4_what_was_reported_changes_nothing", answer).map(drop)
}

/// One name is one execution: one that began at another time is refused.
pub fn rule_4_another_execution_of_a_taken_name_is_refused(answer: &Answer, run: &RunId) -> Check {
    refused("rule_4_another_execution_of_a_taken_name_is_refused", answer, "already_exists", &run.name)
}

/// What has ended here has ended, whatever is still reported of it.
pub fn rule_5_an_end_here_is_the_end(answer: &Answer) -> Check {
    refused("rule_5_an_end_here_is_the_end", answer, "failed_precondition", "has ended")
}

/// Nothing new is reported below what has ended.
pub fn rule_5_nothing_is_reported_below_what_has_ended(answer: &Answer) -> Check {
    refused("rule_5_nothing_is_reported_below_what_has_ended", answer, "failed_precondition", "has ended")
}

/// Nothing is started here in a run that is carried out elsewhere.
pub fn rule_6_nothing_starts_here_in_what_runs_elsewhere(answer: &Answer) -> Check {
    refused("rule_6_nothing_starts_here_in_what_runs_elsewhere", answer, "failed_precondition", "elsewhere")
}

/// What is carried out elsewhere waits for no worker, in no queue, and none ever had it.
pub fn rule_6_no_worker_has_what_runs_elsewhere(ledger: &Ledger, elsewhere: bool) -> Check {
    let leased = ledger.entries.iter().any(|entry| matches!(entry.event, Event::Leased { .. }));
    let waits = ledger.records.values().find(|r| r.ready_at.is_some() || r.worker.is_some());
    match waits.filter(|_| elsewhere) {
        None if !(elsewhere && leased) => Ok(()),
        found => broken!(
            rule_6_no_worker_has_what_runs_elsewhere,
            "{}: leased is {leased}, waiting or held is {found:?}",
            ledger.run
        ),
    }
}
