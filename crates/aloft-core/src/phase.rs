//! Phases of an action, as `flyteidl2.common.ActionPhase` names them.

use serde::{Deserialize, Serialize};

/// Where an action, or one attempt of it, is. Numbers are those of `flyteidl2.common.ActionPhase` and are persisted:
/// never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Phase {
    /// Accepted, waiting to be handed to a data plane.
    Queued = 1,
    /// Handed to a data plane that has no room for it yet.
    WaitingForResources = 2,
    /// Its environment is being prepared or its process is starting.
    Initializing = 3,
    /// User code runs.
    Running = 4,
    /// Ended well.
    Succeeded = 5,
    /// Ended with an error, retries used up.
    Failed = 6,
    /// Stopped by somebody, or by the end of an action above it.
    Aborted = 7,
    /// Stopped because a time limit passed.
    TimedOut = 8,
    /// A condition that waits for its signal.
    Paused = 9,
    /// Not run: its result was taken over from another run.
    Recovered = 10,
}

impl Phase {
    /// All phases, in the order of their numbers.
    pub const ALL: [Phase; 10] = [
        Phase::Queued,
        Phase::WaitingForResources,
        Phase::Initializing,
        Phase::Running,
        Phase::Succeeded,
        Phase::Failed,
        Phase::Aborted,
        Phase::TimedOut,
        Phase::Paused,
        Phase::Recovered,
    ];

    /// The number of this phase on the wire and in the database.
    pub const fn number(self) -> i32 {
        self as i32
    }

    /// The phase with this number.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.number() == number)
    }

    /// The phase in words.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::WaitingForResources => "waiting for resources",
            Self::Initializing => "initializing",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
            Self::TimedOut => "timed out",
            Self::Paused => "paused",
            Self::Recovered => "recovered",
        }
    }

    /// Whether nothing more can happen.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Aborted | Self::TimedOut | Self::Recovered)
    }

    /// How far an attempt has come; an attempt never goes back.
    pub(crate) const fn rank(self) -> u8 {
        match self {
            Self::Queued => 0,
            Self::WaitingForResources | Self::Paused => 1,
            Self::Initializing => 2,
            Self::Running => 3,
            Self::Succeeded | Self::Failed | Self::Aborted | Self::TimedOut | Self::Recovered => 4,
        }
    }
}
