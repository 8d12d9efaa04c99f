//! Queues and limits: what is declared, what an administrator asks, and how both travel.

use aloft_proto::v1;
use serde::{Deserialize, Serialize};

use crate::{door::CallError, door::Door, ids::ActionId};

/// Where the actions of a run wait, and how many of them may run at a time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lane {
    /// Which queue; none names none.
    #[serde(default)]
    pub queue: Option<u8>,
    /// `max_action_concurrency`; 0 is no limit.
    #[serde(default)]
    pub most: u8,
}

/// What a queue declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSpec {
    /// Most runs that have started.
    #[serde(default)]
    pub runs: Option<u8>,
    /// Most actions that run.
    #[serde(default)]
    pub actions: Option<u8>,
    /// Most actions that wait or run.
    #[serde(default)]
    pub depth: Option<u8>,
    /// Whether it goes before others.
    #[serde(default)]
    pub urgent: bool,
    /// Whether its runs wait in line instead of taking turns.
    #[serde(default)]
    pub in_line: bool,
}

/// What an administrator asks of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Create it.
    Create(QueueSpec),
    /// Declare this instead.
    Update(QueueSpec),
    /// Let it take work.
    Activate,
    /// Let it take no more.
    Drain,
    /// Delete it.
    Delete,
    /// Bring it back.
    Undelete,
}

/// What a queue is shown to be doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It takes work.
    Active,
    /// It takes none, and has some.
    Draining,
    /// It takes none and has none.
    Drained,
}

/// A queue as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShownQueue {
    /// What it declares.
    pub spec: QueueSpec,
    /// What it does.
    pub state: State,
    /// Whether it is deleted.
    pub deleted: bool,
    /// How often it was changed.
    pub generation: u64,
    /// Actions that wait, actions that were handed out, runs that have started.
    pub load: [u64; 3],
}

/// An action that is shown as waiting for resources, and what it says it waits for.
pub type Waiting = (ActionId, Vec<String>);

impl QueueSpec {
    fn wire(self) -> v1::QueueSpec {
        v1::QueueSpec {
            run_concurrency: self.runs.map(u32::from),
            action_concurrency: self.actions.map(u32::from),
            depth: self.depth.map(u32::from),
            priority: if self.urgent { v1::QueuePriority::High } else { v1::QueuePriority::Medium }.into(),
            fairness: if self.in_line { v1::QueueFairness::FirstInFirstOut } else { v1::QueueFairness::RoundRobin }
                .into(),
            ..Default::default()
        }
    }

    fn read(shown: &v1::QueueSpec) -> Result<Self, String> {
        let small = |n: Option<u32>| n.map(u8::try_from).transpose().map_err(|_| format!("nobody declares {shown:?}"));
        let spec = Self {
            runs: small(shown.run_concurrency)?,
            actions: small(shown.action_concurrency)?,
            depth: small(shown.depth)?,
            urgent: shown.priority == v1::QueuePriority::High,
            in_line: shown.fairness == v1::QueueFairness::FirstInFirstOut,
        };
        if spec.wire() == *shown { Ok(spec) } else { Err(format!("nobody declares {shown:?}")) }
    }
}

impl ShownQueue {
    fn read(name: &str, shown: &v1::Queue) -> Result<Self, String> {
        if shown.id.name != name {
            return Err(format!("asked for queue {name}, shown is {}", shown.id.name));
        }
        let state = match shown.state.as_known() {
            Some(v1::QueueState::Active) => State::Active,
            Some(v1::QueueState::Draining) => State::Draining,
            Some(v1::QueueState::Drained) => State::Drained,
            other => return Err(format!("queue {name} is {other:?}")),
        };
        let load = [shown.load.waiting_actions, shown.load.running_actions, shown.load.running_runs];
        Ok(Self {
            spec: QueueSpec::read(&shown.spec)?,
            state,
            deleted: shown.deleted_at.is_set(),
            generation: shown.generation,
            load,
        })
    }
}

const SERVICE: &str = "aloft.v1.QueueService";

/// Asks for a change of queue `name`.
///
/// # Errors
/// [`CallError`], also for what cannot be read.
pub async fn change(door: &Door, name: &str, change: Change) -> Result<ShownQueue, CallError> {
    let id = || v1::QueueId { name: name.to_owned(), ..Default::default() }.into();
    let call = |method: &str| format!("{SERVICE}/{method}");
    let shown = match change {
        Change::Create(spec) => {
            let request = v1::CreateQueueRequest { id: id(), spec: spec.wire().into(), ..Default::default() };
            door.unary::<v1::CreateQueueResponse>(&call("CreateQueue"), &request, &[]).await?.queue
        }
        Change::Update(spec) => {
            let request = v1::UpdateQueueRequest { id: id(), spec: spec.wire().into(), ..Default::default() };
            door.unary::<v1::UpdateQueueResponse>(&call("UpdateQueue"), &request, &[]).await?.queue
        }
        Change::Activate | Change::Drain => {
            let state = if change == Change::Drain { v1::QueueState::Draining } else { v1::QueueState::Active };
            let request = v1::UpdateQueueStateRequest { id: id(), state: state.into(), ..Default::default() };
            door.unary::<v1::UpdateQueueStateResponse>(&call("UpdateQueueState"), &request, &[]).await?.queue
        }
        Change::Delete => {
            let request = v1::DeleteQueueRequest { id: id(), ..Default::default() };
            door.unary::<v1::DeleteQueueResponse>(&call("DeleteQueue"), &request, &[]).await?.queue
        }
        Change::Undelete => {
            let request = v1::UndeleteQueueRequest { id: id(), ..Default::default() };
            door.unary::<v1::UndeleteQueueResponse>(&call("UndeleteQueue"), &request, &[]).await?.queue
        }
    };
    ShownQueue::read(name, &shown).map_err(CallError::Garbled)
}

/// How queue `name` stands.
///
/// # Errors
/// [`CallError`], also for what cannot be read.
pub async fn get(door: &Door, name: &str) -> Result<ShownQueue, CallError> {
    let id = v1::QueueId { name: name.to_owned(), ..Default::default() };
    let request = v1::GetQueueRequest { id: id.into(), ..Default::default() };
    let response = door.unary::<v1::GetQueueResponse>(&format!("{SERVICE}/GetQueue"), &request, &[]).await?;
    ShownQueue::read(name, &response.queue).map_err(CallError::Garbled)
}
