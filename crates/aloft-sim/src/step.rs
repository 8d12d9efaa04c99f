//! What a sequence is made of. Steps name things by small numbers that are resolved when they are played, so that a
//! sequence stays meaningful whatever shrinking takes out of it, and a kept one whatever is added here.

use serde::{Deserialize, Serialize};

use crate::{
    elsewhere::Said,
    lanes::{Change, Lane},
    signal::{Condition, Says},
};

/// One step of a sequence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Ask, and wait for the answer.
    Do(Command),
    /// Ask all of it at once.
    Race(Vec<Command>),
    /// Send an earlier request once more, as a retry or a late duplicate. 0 is the newest.
    Again(u8),
    /// The server dies while the request is under way.
    Cut(Command),
    /// The server stops and starts again.
    Restart,
    /// Time passes, in milliseconds.
    Wait(u16),
    /// The settling reconciler looks once.
    Settle,
    /// The reconciler of time limits looks until nothing is due.
    CheckLimits,
    /// The one that says what limits hold back looks once.
    Hold,
    /// A client begins to watch.
    Watch(Watch),
    /// A worker starts anew and asks what it holds.
    Reclaim(u8),
    /// The cache lookups that are due are decided, while the object store can be reached or not.
    LookUp {
        /// Whether it can.
        reachable: bool,
    },
    /// What an action wrote vanishes from the object store. Which of all that wrote something; 0 is the newest.
    Vanish(u8),
}

/// What clients and workers ask.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Start a run.
    Create {
        /// Which project and domain.
        place: u8,
        /// How it is named.
        name: Naming,
        /// What it does.
        work: Work,
        /// Where it waits.
        #[serde(default)]
        lane: Lane,
        /// What of earlier work it reuses.
        #[serde(default, skip_serializing_if = "Reuse::is_default")]
        reuse: Reuse,
    },
    /// Add an action to a run.
    Enqueue {
        /// Which run.
        run: u8,
        /// Which of a run's action names.
        action: u8,
        /// Below which.
        parent: u8,
        /// What it is.
        kind: Kind,
        /// Through the older `QueueService`.
        old: bool,
        /// Which queue it names; none for its run's.
        #[serde(default)]
        queue: Option<u8>,
    },
    /// Abort a run or an action.
    Abort {
        /// Which run.
        run: u8,
        /// Which action; `None` aborts the run as such.
        action: Option<u8>,
        /// Through which of the services that can.
        via: u8,
    },
    /// A worker takes work.
    Lease {
        /// Which worker.
        worker: u8,
        /// How much at most.
        max: u8,
    },
    /// A worker says what it saw of an attempt.
    Report {
        /// Which of all leases ever given; 0 is the newest.
        lease: u8,
        /// What it saw.
        progress: Progress,
    },
    /// Somebody reports without holding the lease.
    Forge {
        /// Which of all leases ever given.
        lease: u8,
        /// What is wrong with it.
        how: Forgery,
    },
    /// Give a condition its value.
    Signal {
        /// Which run.
        run: u8,
        /// Which of its actions, the conditions first.
        action: u8,
        /// What it is told.
        says: Says,
        /// Through which of the services that can.
        via: u8,
    },
    /// Somebody begins a run that is carried out elsewhere.
    Track {
        /// Which project and domain.
        place: u8,
        /// How it is named.
        name: Naming,
        /// What it does.
        work: Work,
        /// When it began, as it says itself: which of a few times.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        start: Option<u8>,
        /// The queue and limit that it names, which mean nothing to it.
        #[serde(default)]
        lane: Lane,
    },
    /// Its reporter says something of an action.
    Tell {
        /// Which run, those that are carried out elsewhere first.
        run: u8,
        /// Which of a run's action names; 0 is its first.
        action: u8,
        /// Below which.
        parent: u8,
        /// What it is, if the report says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        kind: Option<Kind>,
        /// What it says.
        said: Said,
    },
    /// The one time limit that is due ends what it limits, if it is one.
    TimeOut,
    /// An administrator changes a queue.
    Queue {
        /// Which.
        queue: u8,
        /// How.
        change: Change,
    },
}

/// A number that resolves to nothing: an unknown project, run, action or parent.
pub const NOBODY: u8 = 255;

/// How a run gets its name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Naming {
    /// By the client.
    Named(u8),
    /// By the server, for a request with this identifier.
    Request(u8),
    /// By the server, for a request without one.
    Nameless,
}

/// What a task does: what tells it from others, and how it is run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Which task.
    pub task: u8,
    /// Which input.
    pub input: u8,
    /// How it is run. Part of the task's specification.
    pub policy: Policy,
}

/// What a task declares about how it is run. Times are in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Attempts after the first for user failures.
    pub retries: u8,
    /// Pause between them.
    #[serde(default)]
    pub backoff: Option<Backoff>,
    /// Longest run of an attempt.
    #[serde(default)]
    pub max_runtime: Option<u16>,
    /// Longest wait of an attempt.
    #[serde(default)]
    pub queued_timeout: Option<u16>,
    /// Longest life of the action.
    #[serde(default)]
    pub deadline: Option<u16>,
    /// How its result is cached.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<Caching>,
}

/// What a task declares about its results.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caching {
    /// Which version of the task's results.
    pub version: u8,
    /// Whether one of several identical actions computes at a time.
    #[serde(default)]
    pub serialize: bool,
    /// How old a result may be, in milliseconds.
    #[serde(default)]
    pub max_age: Option<u16>,
}

/// What a run says about the reuse of earlier work.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Reuse {
    /// Whether cached results are computed again and replaced.
    pub overwrite: bool,
    /// Whether only results of the same domain stand in.
    pub own_domain: bool,
    /// The run that it is made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Origin>,
}

impl Reuse {
    /// Whether nothing is said.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The run that another is made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// Which run.
    pub run: u8,
    /// The names of the actions that are computed again, if it is recovered; `None` if it is only run again.
    pub recover: Option<Vec<u8>>,
}

/// The pause between user retries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backoff {
    /// Before the first retry, in milliseconds.
    pub base: u16,
    /// Growth per retry.
    pub factor: u8,
    /// Longest, in milliseconds.
    pub cap: Option<u16>,
}

/// What a new action is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A task to run.
    Task(Work),
    /// A trace to record.
    Trace {
        /// Which function.
        name: u8,
        /// Whether it raised.
        failed: bool,
    },
    /// A condition to wait for.
    Condition(Condition),
}

/// What a worker saw of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// No room yet.
    Waiting,
    /// Being started.
    Initializing,
    /// User code runs.
    Running,
    /// It wrote its outputs.
    Succeeded,
    /// The user's code failed.
    Failed {
        /// Whether another attempt may help.
        recoverable: bool,
    },
    /// The platform lost it.
    Lost {
        /// Whether another attempt may help.
        recoverable: bool,
    },
}

/// What is wrong with a forged report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Forgery {
    /// Another token.
    Token,
    /// An attempt that does not exist.
    Attempt,
}

/// What a client watches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watch {
    /// The children of an action, as its controller does; with the older service if `old`.
    Children {
        /// Which run.
        run: u8,
        /// Which action's.
        parent: u8,
        /// Through the older `StateService`.
        old: bool,
    },
    /// The actions of a run.
    Actions {
        /// Which run.
        run: u8,
    },
    /// One action.
    Action {
        /// Which run.
        run: u8,
        /// Which action.
        action: u8,
    },
    /// A run.
    Run {
        /// Which.
        run: u8,
    },
    /// The runs of a project and domain.
    Runs {
        /// Which.
        place: u8,
    },
}
