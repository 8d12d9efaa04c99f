//! The pure core of Aloft: what may happen to a run and its actions.
//!
//! Everything here is a function of (state, command, now). [`decide`] turns a [`Command`] into the [`Event`]s to append
//! to the run's log, or a [`Refusal`]; [`apply`] folds one event into an [`ActionState`]. Storage, time, randomness and
//! the network come in from outside, so the same code runs in production, in property tests and in simulation.
//!
//! **Invariants** (asserted in `tests.rs` over random command sequences):
//! within an attempt phases only advance; attempts only increase; a terminal action is final; one live lease at most per
//! action, and only its holder can report.

mod action;
mod cache;
mod command;
mod condition;
mod decide;
mod dispatch;
mod effects;
mod error;
mod event;
mod id;
mod phase;
mod queue;
mod retry;
mod run;
mod stage;
mod time;
mod tracked;

#[cfg(test)]
mod tests;

pub use action::{
    ActionKind, ActionRef, ActionState, Asks, Attempt, EndedBelow, EndedBy, Lease, OutputRefs, PhaseTransition,
    Recovered, Seed, TaskPolicy, TaskRef, TaskSeed, TimeLimit, TraceSeed,
};
pub use cache::{CacheEntry, CachePlan, CacheScope, CacheSource, CacheStatus, CacheUse, CacheView, Reservation, Seen};
pub use command::{AttemptOutcome, Command, Progress, RecoveredTrace, Reply};
pub use condition::{ConditionSeed, Signal, SignalKind, SignalValue, WebhookOutcome};
pub use decide::{Decision, View, decide};
pub use dispatch::{Candidate, Grant, Group, Held, Lane, Load, Never, Offer, Plan, WaitingRun, plan};
pub use effects::{Effect, effects};
pub use error::{ErrorKind, Refusal, TaskError};
pub use event::{Event, apply};
pub use id::{ActionName, BadName, LeaseToken, RunKey, Scope, WorkerId};
pub use phase::Phase;
pub use queue::{
    DEFAULT_DEPTH, DEFAULT_QUEUE, Fairness, Priority, QueueLimits, QueueRoom, QueueSpec, QueueState, ResourceCaps,
    check_queue_name,
};
pub use retry::{Backoff, MAX_SYSTEM_FAILURES};
pub use run::{Relation, RunInfo, Subject};
pub use stage::{Stage, Was, stages};
pub use time::Time;
pub use tracked::{Heard, Tracked, TrackedReport, TrackedStep, Tracking};

/// The name of the action that every run starts with.
pub const ROOT_ACTION: &str = "a0";
