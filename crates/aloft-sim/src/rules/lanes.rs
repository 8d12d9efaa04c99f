//! Queues and limits (rules 6, 9 and 10).

use std::fmt::Display;

use super::{
    Check,
    answers::{Answer, Reply, accepted, refused},
    broken,
};
use crate::{
    ids::{ActionId, RunId},
    lanes::ShownQueue,
};

/// What a limit counts, and how many there are at least and at most. They differ by the records that have not followed an
/// end above them, and over the port by what may have happened since somebody looked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// At least so many.
    pub least: u64,
    /// At most so many.
    pub most: u64,
}

/// A limit is never passed by what is handed out.
pub fn rule_6_limits_are_kept(lane: &dyn Display, given: &ActionId, count: u64, limit: u64) -> Check {
    if count <= limit {
        return Ok(());
    }
    broken!(rule_6_limits_are_kept, "with {given}, {count} run in {lane}, which allows {limit}")
}

/// In the log of a run, no more than its limit run at any moment. `most` counts actions that never had a child, which
/// count however the others are seen.
pub fn rule_6_the_log_keeps_the_limit_of_a_run(run: &RunId, most: usize, limit: Option<u8>) -> Check {
    match limit.filter(|limit| most > usize::from(*limit)) {
        None => Ok(()),
        Some(limit) => {
            broken!(rule_6_the_log_keeps_the_limit_of_a_run, "{run}: {most} ran at a time, and it allows {limit}")
        }
    }
}

/// What waits and has room in every lane is not passed by, as long as the worker takes more.
pub fn rule_6_what_has_room_does_not_wait(passed_by: Option<&ActionId>) -> Check {
    match passed_by {
        None => Ok(()),
        Some(action) => broken!(rule_6_what_has_room_does_not_wait, "{action} has room and was not handed out"),
    }
}

/// What a limit holds back is soon shown as waiting for resources.
pub fn rule_9_what_is_held_back_is_shown(action: &ActionId, shown: bool, surely_held: bool) -> Check {
    if shown || !surely_held {
        return Ok(());
    }
    broken!(rule_9_what_is_held_back_is_shown, "{action} is held back by a limit and is not shown so")
}

/// Only what a limit holds back is shown as waiting for resources before a worker has it.
pub fn rule_9_nothing_else_is_shown_as_held_back(action: &ActionId, shown: bool, may_be_held: bool) -> Check {
    if !shown || may_be_held {
        return Ok(());
    }
    broken!(rule_9_nothing_else_is_shown_as_held_back, "{action} is shown as waiting for resources and has room")
}

/// What is held back says by which limit.
pub fn rule_9_what_is_held_back_says_by_what(action: &ActionId, said: &[String], lanes: &[String]) -> Check {
    if said.iter().any(|words| lanes.iter().any(|lane| words.contains(lane.as_str()))) {
        return Ok(());
    }
    broken!(rule_9_what_is_held_back_says_by_what, "{action} waits for {said:?}, and the limits are of {lanes:?}")
}

/// A queue takes no more than its depth; what is refused is refused as the SDK expects.
pub fn rule_10_a_full_queue_refuses(answer: &Answer, queue: &str) -> Check {
    refused("rule_10_a_full_queue_refuses", answer, "resource_exhausted", queue)
}

/// A closed queue takes no new work.
pub fn rule_10_a_closed_queue_takes_nothing(answer: &Answer, queue: &str) -> Check {
    refused("rule_10_a_closed_queue_takes_nothing", answer, "invalid_argument", queue)
}

/// A change of a queue that can be made is made; the answer is the queue, `None` if it was lost.
pub fn rule_3_a_queue_is_changed(answer: &Answer) -> Check<Option<&ShownQueue>> {
    accepted("rule_3_a_queue_is_changed", answer)?;
    match answer {
        Answer::Done(Reply::Queue(shown)) => Ok(Some(shown)),
        Answer::Done(other) => broken!(rule_3_a_queue_is_changed, "answered {other:?}"),
        Answer::Lost | Answer::Refused(_) => Ok(None),
    }
}

/// The name of a queue that declares something else is taken.
pub fn rule_4_another_queue_of_a_taken_name_is_refused(answer: &Answer, queue: &str) -> Check {
    refused("rule_4_another_queue_of_a_taken_name_is_refused", answer, "already_exists", queue)
}

/// What a queue is not ready for is refused: a change of a deleted one or of the one that always is, a deletion of one
/// that has work.
pub fn rule_10_a_queue_with_work_stays(answer: &Answer, queue: &str) -> Check {
    refused("rule_10_a_queue_with_work_stays", answer, "failed_precondition", queue)
}

/// A queue says how much it holds.
pub fn rule_1_a_queue_says_what_it_holds(queue: &str, said: [u64; 3], is: [Count; 3]) -> Check {
    if said.iter().zip(is).all(|(said, is)| (is.least..=is.most).contains(said)) {
        return Ok(());
    }
    broken!(rule_1_a_queue_says_what_it_holds, "{queue} says it holds {said:?}, it holds {is:?}")
}
