//! What can be asked of a run.

use crate::{
    ActionName, ActionRef, ActionState, EndedBy, Lease, LeaseToken, OutputRefs, Phase, Recovered, RunInfo, Seed, Seen,
    SignalValue, Subject, TaskError, Time, TraceSeed, TrackedReport, WebhookOutcome,
};

/// How an attempt ended, as the data plane that ran it saw it.
#[derive(Clone, Debug, PartialEq)]
pub enum AttemptOutcome {
    /// It wrote its outputs.
    Succeeded(OutputRefs),
    /// The user's code failed. Whether it is tried again depends on `error.recoverable` and the retries left.
    Failed(TaskError, OutputRefs),
    /// The platform lost it: the worker or its process died, or could not start it.
    Lost(TaskError),
}

/// How far an attempt has come.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// The worker has no room for it yet.
    Waiting {
        /// What it waits for.
        reason: String,
    },
    /// It is being started.
    Initializing,
    /// User code runs.
    Running,
    /// It ended.
    Ended(AttemptOutcome),
}

impl Progress {
    /// The phase a live attempt enters; `None` if it ended.
    pub(crate) fn phase(&self) -> Option<Phase> {
        match self {
            Self::Waiting { .. } => Some(Phase::WaitingForResources),
            Self::Initializing => Some(Phase::Initializing),
            Self::Running => Some(Phase::Running),
            Self::Ended(_) => None,
        }
    }
}

/// A command to one run.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Start the run: create its root action. Again with the same work is success and changes nothing.
    CreateRun {
        /// The root's work.
        seed: Box<Seed>,
        /// What the run is started with.
        info: Box<RunInfo>,
        /// The result it takes over, if it recovers a run whose root succeeded with the same inputs.
        recovered: Option<Box<Recovered>>,
        /// The traces it takes over.
        traces: Vec<RecoveredTrace>,
    },
    /// Add an action below `parent`. Again with the same work is success and changes nothing.
    Enqueue {
        /// The new action.
        action: ActionName,
        /// Who starts it.
        parent: ActionName,
        /// Its group.
        group: String,
        /// Its work.
        seed: Box<Seed>,
        /// The result it takes over, if its run recovers another.
        recovered: Option<Box<Recovered>>,
        /// The traces below it that it takes over.
        traces: Vec<RecoveredTrace>,
    },
    /// Start a run that is carried out elsewhere and only reported. Again for the same execution is success and changes
    /// nothing.
    CreateTracked {
        /// The root's work.
        seed: Box<Seed>,
        /// What the run is started with.
        info: Box<RunInfo>,
        /// When the execution was started, if its reporter says: it tells two executions under one name apart.
        began: Option<Time>,
    },
    /// What the reporter of a run that is carried out elsewhere says of an action. Again is success and changes nothing.
    Track {
        /// The action.
        action: ActionName,
        /// Who started it. Counts only when the action is not known yet, as do the next two.
        parent: ActionName,
        /// Its group.
        group: String,
        /// When it began, by the reporter's clock, if not with this.
        began: Option<Time>,
        /// Its work, if this introduces it.
        seed: Option<Box<Seed>>,
        /// What is said of it.
        report: TrackedReport,
    },
    /// Give the action's waiting attempt to a worker.
    Lease {
        /// The action.
        action: ActionName,
        /// To whom.
        lease: Lease,
    },
    /// What the holder of a lease saw.
    Report {
        /// The action.
        action: ActionName,
        /// The attempt's number.
        attempt: u32,
        /// The holder's token.
        token: LeaseToken,
        /// What it saw.
        progress: Progress,
    },
    /// Abort the action, and all below it.
    Abort {
        /// The action; the root aborts the run.
        action: ActionName,
        /// By whom and why.
        by: EndedBy,
    },
    /// End those of `actions` that lie below an action that has ended.
    Settle {
        /// The candidates.
        actions: Vec<ActionName>,
    },
    /// End the action's attempt if one of its time limits has passed.
    CheckLimits {
        /// The action.
        action: ActionName,
    },
    /// Decide whether a cached result stands in for the action.
    LookUp {
        /// The action.
        action: ActionName,
        /// What was found when the result itself was looked at.
        seen: Seen,
    },
    /// Say why the action's waiting attempt is not handed out.
    Hold {
        /// The action.
        action: ActionName,
        /// What it waits for.
        reason: String,
    },
    /// Fail the action's waiting attempt, which can never be handed out.
    Reject {
        /// The action.
        action: ActionName,
        /// Why.
        error: TaskError,
    },
    /// Give a condition the value it waits for. Again with the same value is success and changes nothing.
    Signal {
        /// The condition.
        action: ActionName,
        /// The value.
        value: SignalValue,
        /// By whom.
        by: Subject,
    },
    /// Record what became of the call that a condition asked for.
    Called {
        /// The condition.
        action: ActionName,
        /// What became of it.
        outcome: WebhookOutcome,
    },
}

/// A trace that a recovering run takes over from the run it recovers.
#[derive(Clone, Debug, PartialEq)]
pub struct RecoveredTrace {
    /// Its name, the same in both runs.
    pub action: ActionName,
    /// Its group.
    pub group: String,
    /// What it was.
    pub seed: TraceSeed,
    /// Where it was recorded.
    pub from: ActionRef,
}

impl Command {
    /// Start a run that recovers nothing.
    pub fn create_run(seed: Seed, info: RunInfo) -> Self {
        Self::CreateRun { seed: Box::new(seed), info: Box::new(info), recovered: None, traces: Vec::new() }
    }

    /// Add an action that recovers nothing.
    pub fn enqueue(action: ActionName, parent: ActionName, group: &str, seed: Seed) -> Self {
        let (group, seed) = (group.to_owned(), Box::new(seed));
        Self::Enqueue { action, parent, group, seed, recovered: None, traces: Vec::new() }
    }

    /// Whether it makes its run, if that is not there yet.
    pub fn creates(&self) -> bool {
        matches!(self, Self::CreateRun { .. } | Self::CreateTracked { .. })
    }

    /// The actions whose states [`crate::decide`] looks at, besides the actions above them.
    pub fn touches(&self) -> Vec<ActionName> {
        match self {
            Self::CreateRun { .. } | Self::CreateTracked { .. } => vec![ActionName::root()],
            Self::Enqueue { action, parent, traces, .. } => {
                // A trace is not taken over where something of its name is.
                [action, parent].into_iter().chain(traces.iter().map(|t| &t.action)).cloned().collect()
            }
            Self::Track { action, parent, .. } => vec![action.clone(), parent.clone()],
            Self::Lease { action, .. }
            | Self::Report { action, .. }
            | Self::Abort { action, .. }
            | Self::CheckLimits { action }
            | Self::LookUp { action, .. }
            | Self::Hold { action, .. }
            | Self::Reject { action, .. }
            | Self::Signal { action, .. }
            | Self::Called { action, .. } => vec![action.clone()],
            Self::Settle { actions } => actions.clone(),
        }
    }
}

/// What became of a command that was not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// It changed the run.
    Done,
    /// It made the run; its root, so that who answers need not read it.
    Created(Box<ActionState>),
    /// A lease was taken; the action as that left it, so that who hands it out need not read it again.
    Leased(Box<ActionState>),
    /// It had been done before, or there was nothing to do.
    Unchanged,
}
