//! Errors of tasks, and refusals of commands.

use serde::{Deserialize, Serialize};

use crate::{ActionName, Phase};

/// How much of a task's error message is kept (design rule 7: the first 4 KB).
const MAX_MESSAGE: usize = 4096;

/// Whose error it was (`flyteidl2.core.ExecutionError.ErrorKind`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Not known.
    Unknown,
    /// The user's code.
    User,
    /// The platform.
    System,
}

/// Why an attempt, an action or a trace failed, for the person who reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskError {
    /// A short stable word, such as the exception's class or `MAX_RUNTIME_EXCEEDED`.
    pub code: String,
    /// What happened and what to do.
    pub message: String,
    /// Whose error it was.
    pub kind: ErrorKind,
    /// Whether another attempt may help.
    pub recoverable: bool,
}

impl TaskError {
    /// An error with its message cut to what is kept.
    pub fn new(code: impl Into<String>, message: impl Into<String>, kind: ErrorKind, recoverable: bool) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE {
            let mut end = MAX_MESSAGE - '…'.len_utf8();
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
            message.push('…');
        }
        Self { code: code.into(), message, kind, recoverable }
    }
}

/// Why a command was not carried out. Nothing changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Projects, domains or settings are others than those by which the command was made: it is to be made anew.
    #[error("projects, domains or settings were changed meanwhile; try again")]
    Outdated,
    /// The run does not exist.
    #[error("this run does not exist; check its project, domain and name")]
    NoSuchRun,
    /// The action does not exist.
    #[error("action {0} does not exist in this run")]
    NoSuchAction(ActionName),
    /// The parent named by an enqueue does not exist.
    #[error("parent action {0} does not exist in this run")]
    NoSuchParent(ActionName),
    /// A run or action of this name exists and is other work.
    #[error("{what} {name} exists already and is different work ({difference}); choose another name")]
    DifferentWork {
        /// "run" or "action".
        what: &'static str,
        /// Its name.
        name: String,
        /// What differs.
        difference: &'static str,
    },
    /// An action above has ended, so nothing can be started under it.
    #[error("action {ancestor} has ended ({}), so nothing more can run under it", phase.words())]
    AncestorEnded {
        /// The action that has ended.
        ancestor: ActionName,
        /// How.
        phase: Phase,
    },
    /// The action has ended already.
    #[error("{} has ended already ({})", if name.is_root() { "the run".to_owned() } else { format!("action {name}") }, phase.words())]
    Ended {
        /// Its name.
        name: ActionName,
        /// How.
        phase: Phase,
    },
    /// The reporter does not hold the lease: it was lost, ended or given to another.
    #[error("the lease on attempt {attempt} of action {name} is not held by this worker any more")]
    Fenced {
        /// The action.
        name: ActionName,
        /// The attempt that was reported on.
        attempt: u32,
    },
    /// Nothing to lease: the action is not waiting for a worker.
    #[error("action {0} is not waiting for a worker")]
    NotReady(ActionName),
    /// A condition waits for another kind of value.
    #[error("condition {name} waits for {expected}, not for {found}")]
    WrongSignal {
        /// The condition.
        name: ActionName,
        /// What it waits for, in words.
        expected: &'static str,
        /// What it was given, in words.
        found: &'static str,
    },
    /// Only conditions can be signalled.
    #[error("action {0} is not a condition, so it cannot be signalled")]
    NotACondition(ActionName),
    /// The condition was signalled with another value.
    #[error("condition {0} was signalled already, with another value")]
    SignalledAlready(ActionName),
    /// There is no such queue.
    #[error("queue {0} does not exist; create it with `aloft create queue {0}`, or name another")]
    NoSuchQueue(String),
    /// The queue takes no new work.
    #[error(
        "queue {name} is {state} and takes no new work; name another queue, or activate it with `aloft update queue {name} --state active`"
    )]
    QueueClosed {
        /// The queue.
        name: String,
        /// "draining", "drained" or "deleted".
        state: &'static str,
    },
    /// The queue or project has as much as it may hold.
    #[error("{what} holds {depth} actions, as many as it may; try again when some have ended, or raise its depth")]
    Full {
        /// Which queue or project.
        what: String,
        /// Its depth.
        depth: u32,
    },
    /// The run is carried out elsewhere.
    #[error("this run is carried out elsewhere and only reported, so nothing can be started in it here")]
    Tracked,
    /// The run is carried out here.
    #[error(
        "this run is carried out by Aloft itself, so nothing can be reported of it; only tracked runs are reported"
    )]
    NotTracked,
    /// A report on an action that is not known and that the report does not describe.
    #[error(
        "action {0} is not known: the report that first names an action must say what it is (task or trace) and its parent"
    )]
    NotIntroduced(ActionName),
    /// Too many attempts before the reported one were not reported.
    #[error(
        "attempt {attempt} of action {name} was reported after attempt {known}; at most {} in a row may go unreported",
        crate::tracked::MAX_UNHEARD
    )]
    Unheard {
        /// The action.
        name: ActionName,
        /// The reported attempt.
        attempt: u32,
        /// The last that was known.
        known: u32,
    },
    /// Too many actions lie above it.
    #[error("action {0} lies deeper than {max} levels below the run's first action", max = crate::tracked::MAX_DEPTH)]
    TooDeep(ActionName),
    /// A trace that has not ended cannot be recorded.
    #[error("trace {0} must be recorded in a terminal phase")]
    TraceNotEnded(ActionName),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_messages_are_cut_on_a_character() {
        let e = TaskError::new("E", "é".repeat(4000), ErrorKind::User, true);
        assert!(e.message.len() <= MAX_MESSAGE && e.message.ends_with('…'));
    }
}
