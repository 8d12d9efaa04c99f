//! What identifies things on the wire, as plain data.

use std::fmt;

use crate::{
    elsewhere::Told,
    lanes::Change,
    signal::Value,
    step::{Kind, Progress, Work},
};

/// A project and a domain.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The project.
    pub project: String,
    /// The domain.
    pub domain: String,
}

/// A run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId {
    /// Where it lives.
    pub place: Place,
    /// Its name.
    pub name: String,
}

/// An action.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionId {
    /// Its run.
    pub run: RunId,
    /// Its name.
    pub name: String,
}

impl RunId {
    /// The action called `name` of this run.
    pub fn action(&self, name: &str) -> ActionId {
        ActionId { run: self.clone(), name: name.to_owned() }
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.place.project, self.place.domain, self.name)
    }
}

impl fmt::Display for ActionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.run, self.name)
    }
}

/// How a run gets its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// The client gives it.
    Given(String),
    /// The server makes it up for the request with this identifier.
    ForRequest(String),
    /// The server makes it up.
    Any,
}

/// Where the actions of a run wait.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunLane {
    /// The queue that it names; empty for none.
    pub queue: String,
    /// `max_action_concurrency`; 0 is no limit.
    pub most: u8,
}

/// What a run says about the reuse of earlier work.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reuse {
    /// Whether cached results are computed again and replaced.
    pub overwrite: bool,
    /// Whether only results of the same domain stand in.
    pub own_domain: bool,
    /// The run that it is made from.
    pub from: Option<Origin>,
}

/// The run that another is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The run.
    pub run: RunId,
    /// The actions that are computed again, if it is recovered; `None` if it is only run again.
    pub recover: Option<Vec<String>>,
}

impl Origin {
    /// `RelationType` number.
    pub fn kind(&self) -> i32 {
        if self.recover.is_some() { 2 } else { 1 }
    }
}

/// A lease as its holder knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The holder.
    pub worker: String,
    /// The action.
    pub action: ActionId,
    /// The attempt's number.
    pub attempt: u32,
    /// The fencing token.
    pub token: u64,
}

/// A step's command with everything it names resolved: what is really asked, and asked again word for word.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// Start a run.
    Create {
        /// Where.
        place: Place,
        /// How it is named.
        name: Name,
        /// What it does.
        work: Work,
        /// Where it waits.
        lane: RunLane,
        /// What of earlier work it reuses.
        reuse: Reuse,
    },
    /// Add an action.
    Enqueue {
        /// Its identifier.
        action: ActionId,
        /// Below which.
        parent: String,
        /// What it is.
        kind: Kind,
        /// Its group.
        group: String,
        /// Through `QueueService`.
        old: bool,
        /// The queue that it names; empty for none.
        queue: String,
    },
    /// Abort.
    Abort {
        /// The run.
        run: RunId,
        /// The action, or the run as such.
        action: Option<String>,
        /// Why.
        reason: String,
        /// Through which service.
        via: u8,
    },
    /// Take work.
    Lease {
        /// For whom.
        worker: String,
        /// How much at most.
        max: usize,
    },
    /// Report on an attempt.
    Report {
        /// With which lease.
        lease: Lease,
        /// What.
        progress: Progress,
    },
    /// Give a condition its value.
    Signal {
        /// The condition.
        action: ActionId,
        /// The value.
        value: Value,
        /// Through which service.
        via: u8,
    },
    /// Begin a run that is carried out elsewhere.
    Track {
        /// Where.
        place: Place,
        /// How it is named.
        name: Name,
        /// What it does.
        work: Work,
        /// When it began, as it says itself.
        start: Option<u8>,
        /// The queue and limit that it names.
        lane: RunLane,
    },
    /// Report on an action that is carried out elsewhere.
    Tell {
        /// Which.
        action: ActionId,
        /// Below which.
        parent: String,
        /// What it is, if the report says so.
        kind: Option<Kind>,
        /// What is said.
        told: Told,
    },
    /// End what a time limit has ended.
    TimeOut,
    /// Change a queue.
    Queue {
        /// Its name.
        name: String,
        /// How.
        change: Change,
    },
}

/// The error that simulated tasks raise, and the one of an attempt that was lost: code and message.
pub const RAISED: (&str, &str) = ("Boom", "it broke");
/// See [`RAISED`].
pub const LOST: (&str, &str) = ("WorkerLost", "the worker went away");

/// Where the outputs of an attempt lie.
pub fn output_prefix(action: &ActionId, attempt: u32) -> String {
    let place = &action.run.place;
    let base = crate::plane::run_base("local", &place.project, &place.domain, &action.run.name);
    format!("{base}/{}/{attempt}", action.name)
}
