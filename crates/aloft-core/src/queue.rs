//! Queues: what waits where, and how much of it may run at a time.

use serde::{Deserialize, Serialize};

use crate::BadName;

/// The queue of everything that names none. It always exists and has no limits of its own.
pub const DEFAULT_QUEUE: &str = "default";

/// The depth of a queue that declares none: more waiting actions than this are refused.
pub const DEFAULT_DEPTH: u32 = 10_000;

/// Which of two queues goes first when both have work and there is room for one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// After the others.
    Low,
    /// As most.
    #[default]
    Medium,
    /// Before the others.
    High,
}

/// In which order the runs of one queue are served.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fairness {
    /// What has waited longest goes first, whichever run it belongs to.
    FirstInFirstOut,
    /// Runs take turns, so that a large run does not hold up a small one.
    #[default]
    RoundRobin,
}

/// What a queue takes and gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueState {
    /// Takes work and hands it out.
    #[default]
    Active,
    /// Takes no new work; hands out what it has. Becomes [`QueueState::Drained`] when nothing of it is left.
    Draining,
    /// Takes no new work and has none.
    Drained,
}

/// How much of each resource the actions that run at a time may ask for together. `None` is no limit; 0 forbids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceCaps {
    /// Memory, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Processors, in thousandths.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<u64>,
    /// Accelerators.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu: Option<u64>,
}

/// How much may run and wait. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueLimits {
    /// Most runs whose root has started and not ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_concurrency: Option<u32>,
    /// Most actions that run at a time. One with unfinished children does not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub action_concurrency: Option<u32>,
    /// Most actions that wait or run; one more is refused. [`DEFAULT_DEPTH`] if not declared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// What the actions that run at a time may ask for together.
    pub resources: ResourceCaps,
}

/// A queue as an administrator declares it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueSpec {
    /// How much may run and wait.
    pub limits: QueueLimits,
    /// Which queue goes first.
    pub priority: Priority,
    /// Which run goes first.
    pub fairness: Fairness,
}

/// Checks a queue's name: 1 to 63 letters, digits, `-`, `_` and `.`, not beginning with a dot.
///
/// # Errors
/// [`BadName`].
pub fn check_queue_name(name: &str) -> Result<(), BadName> {
    crate::id::check_scoped("queue", name)
}

/// What a queue, or a project, may hold and holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueRoom {
    /// What it is called in a sentence, such as `queue bulk` or `project demo`.
    pub name: String,
    /// Why it takes no new work, in a word; `None` if it does.
    pub closed: Option<&'static str>,
    /// Most actions that may wait or run in it.
    pub depth: Option<u32>,
    /// Actions that wait.
    pub waiting: u64,
    /// Actions that run.
    pub running: u64,
}

impl QueueRoom {
    /// Actions that wait or run.
    pub fn held(&self) -> u64 {
        self.waiting + self.running
    }
}
