//! What requests may be answered.

use super::{Check, Violation, broken};
use crate::{
    door::{CallError, Refused},
    ids::{Lease, Name, Place, RunId},
    lanes::ShownQueue,
    seen::Shown,
};

/// An attempt as it is handed to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The lease.
    pub lease: Lease,
    /// Where its outputs go.
    pub output_prefix: String,
    /// Where those of the attempt before went; empty for the first.
    pub previous_prefix: String,
    /// The action above it.
    pub parent: Option<String>,
}

/// What came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Success without words.
    Nothing,
    /// The run that was asked for.
    Run(Box<Shown>),
    /// Work.
    Leased(Vec<Granted>),
    /// A queue.
    Queue(Box<ShownQueue>),
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Success.
    Done(Reply),
    /// A refusal.
    Refused(Refused),
    /// The server died first: the request was carried out, or not.
    Lost,
}

/// Whether it was carried out for certain; a refusal breaks `rule`.
pub(super) fn accepted(rule: &'static str, answer: &Answer) -> Check<bool> {
    match answer {
        Answer::Done(_) => Ok(true),
        Answer::Lost => Ok(false),
        Answer::Refused(r) => Err(Violation { rule, what: format!("refused with {}: {}", r.code, r.message) }),
    }
}

/// It was refused with `code`, or the answer was lost.
pub(super) fn refused(rule: &'static str, answer: &Answer, code: &str, named: &str) -> Check {
    match answer {
        Answer::Lost => Ok(()),
        Answer::Refused(r) if r.code == code => rule_9_a_refusal_names_its_object(r, named),
        Answer::Refused(r) => {
            Err(Violation { rule, what: format!("refused with {} instead of {code}: {}", r.code, r.message) })
        }
        Answer::Done(reply) => Err(Violation { rule, what: format!("accepted, not refused with {code}: {reply:?}") }),
    }
}

/// A refusal says in words which object it is about.
pub fn rule_9_a_refusal_names_its_object(refused: &Refused, named: &str) -> Check {
    if refused.message.contains(named) {
        return Ok(());
    }
    broken!(rule_9_a_refusal_names_its_object, "{} does not name {named:?}: {:?}", refused.code, refused.message)
}

/// What is not there is answered `not_found`, and named.
pub fn rule_9_what_is_missing_is_named(answer: &Answer, named: &str) -> Check {
    refused("rule_9_what_is_missing_is_named", answer, "not_found", named)
}

/// The root of a run is not for enqueuing.
pub fn rule_9_a_wrong_field_is_named(answer: &Answer, named: &str) -> Check {
    refused("rule_9_a_wrong_field_is_named", answer, "invalid_argument", named)
}

/// What can be done is done.
pub fn rule_3_what_can_be_done_is_done(answer: &Answer) -> Check<bool> {
    accepted("rule_3_what_can_be_done_is_done", answer)
}

/// The answer to a create is the new run; `None` if the answer was lost.
pub fn rule_3_a_create_answers_its_run(answer: &Answer) -> Check<Option<&Shown>> {
    accepted("rule_3_a_create_answers_its_run", answer)?;
    match answer {
        Answer::Done(Reply::Run(shown)) => Ok(Some(shown)),
        Answer::Done(other) => broken!(rule_3_a_create_answers_its_run, "answered {other:?}"),
        Answer::Lost | Answer::Refused(_) => Ok(None),
    }
}

/// A run is made where it was asked for, under the name that was asked for; names of other projects and domains are others.
pub fn rule_4_names_are_scoped(place: &Place, name: &Name, run: &RunId) -> Check {
    if run.place == *place && !matches!(name, Name::Given(name) if *name != run.name) {
        return Ok(());
    }
    broken!(rule_4_names_are_scoped, "asked for {name:?} in {place:?} and got {run}")
}

/// What a call came to: an answer of the contract, never `internal` or `unknown`. One that the server did not live to give,
/// or gave while it went down, is lost.
pub fn rule_9_an_error_is_one_of_the_contract(called: Result<Reply, CallError>) -> Check<Answer> {
    match called {
        Ok(reply) => Ok(Answer::Done(reply)),
        Err(CallError::Lost(_)) => Ok(Answer::Lost),
        Err(CallError::Refused(r)) if r.code == "unavailable" => Ok(Answer::Lost),
        Err(CallError::Refused(r)) if r.code == "internal" || r.code == "unknown" => {
            broken!(rule_9_an_error_is_one_of_the_contract, "{}: {}", r.code, r.message)
        }
        Err(CallError::Refused(r)) => Ok(Answer::Refused(r)),
        Err(CallError::Garbled(what)) => broken!(rule_9_an_error_is_one_of_the_contract, "{what}"),
    }
}

/// Requests that were asked at once are answered as in one order of them. `wrong` is what is wrong with the first order, if
/// every order has something wrong.
pub fn rule_5_concurrent_requests_have_one_order(
    possible: bool,
    asked: &dyn std::fmt::Debug,
    wrong: Option<&Violation>,
) -> Check {
    match wrong.filter(|_| !possible) {
        None => Ok(()),
        Some(first) => broken!(
            rule_5_concurrent_requests_have_one_order,
            "no order of {asked:?} gives these answers; in the first, {first}"
        ),
    }
}

/// A reconciler can read and write.
pub fn rule_5_reconcilers_go_on<T>(looked: Result<T, impl std::fmt::Display>) -> Check<T> {
    match looked {
        Ok(found) => Ok(found),
        Err(error) => broken!(rule_5_reconcilers_go_on, "{error}"),
    }
}

/// The same create again is success and names the same run. That nothing changed is seen in every view that follows.
pub fn rule_4_same_create_changes_nothing(answer: &Answer, run: &RunId) -> Check {
    if !accepted("rule_4_same_create_changes_nothing", answer)? {
        return Ok(());
    }
    match answer {
        Answer::Done(Reply::Run(shown)) if shown.id.run == *run => Ok(()),
        other => broken!(rule_4_same_create_changes_nothing, "asked again for {run}, answered {other:?}"),
    }
}

/// Another run under a taken name is refused: the name does not become somebody else's.
pub fn rule_4_other_work_under_a_taken_name_is_refused(answer: &Answer, run: &RunId) -> Check {
    refused("rule_4_other_work_under_a_taken_name_is_refused", answer, "already_exists", &run.name)
}

/// A request that is not a repetition makes a run of its own.
pub fn rule_4_a_new_request_is_a_new_run(existed: bool, run: &RunId) -> Check {
    if existed {
        return broken!(rule_4_a_new_request_is_a_new_run, "was given {run}, which was there before");
    }
    Ok(())
}

/// The same enqueue again is success.
pub fn rule_4_same_enqueue_changes_nothing(answer: &Answer) -> Check {
    accepted("rule_4_same_enqueue_changes_nothing", answer).map(drop)
}

/// An action's name does not become another kind of action.
pub fn rule_4_another_kind_under_a_taken_name_is_refused(answer: &Answer, action: &str) -> Check {
    refused("rule_4_another_kind_under_a_taken_name_is_refused", answer, "already_exists", action)
}

/// Nothing can be started below what has ended; the SDK stops its task on `aborted`.
pub fn rule_5_nothing_starts_below_what_has_ended(answer: &Answer) -> Check {
    refused("rule_5_nothing_starts_below_what_has_ended", answer, "aborted", "has ended")
}

/// Aborting what was aborted is success.
pub fn rule_5_aborting_twice_is_aborting_once(answer: &Answer) -> Check {
    accepted("rule_5_aborting_twice_is_aborting_once", answer).map(drop)
}

/// An abort that comes after the end has lost: it says so, and the end stays.
pub fn rule_5_an_abort_loses_against_an_end(answer: &Answer) -> Check {
    refused("rule_5_an_abort_loses_against_an_end", answer, "failed_precondition", "has ended")
}

/// Who does not hold the lease of a live attempt cannot write.
pub fn rule_6_a_stale_lease_cannot_write(answer: &Answer) -> Check {
    refused("rule_6_a_stale_lease_cannot_write", answer, OVER, "")
}

/// Repeating the end that was reported does no harm.
pub fn rule_6_repeating_an_end_changes_nothing(answer: &Answer) -> Check {
    accepted("rule_6_repeating_an_end_changes_nothing", answer).map(drop)
}

/// Who holds the lease of a live attempt can write.
pub fn rule_6_the_holder_can_write(answer: &Answer) -> Check {
    accepted("rule_6_the_holder_can_write", answer).map(drop)
}

/// The code of a report that was not taken, which has none on the wire.
pub const OVER: &str = "over";
