//! The state of one action: the fold of its events.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    ActionName, Backoff, CachePlan, CacheUse, ConditionSeed, DEFAULT_QUEUE, LeaseToken, Phase, RunKey, Signal,
    TaskError, Time, Tracking, WebhookOutcome, WorkerId,
};

/// What kind of work an action is (`flyteidl2.workflow.ActionType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// A task that a data plane runs.
    Task,
    /// A function that its parent ran in its own process and recorded.
    Trace,
    /// A wait for somebody's word.
    Condition,
}

impl ActionKind {
    /// The number of this kind on the wire and in the database.
    pub const fn number(self) -> i32 {
        match self {
            Self::Task => 1,
            Self::Trace => 2,
            Self::Condition => 3,
        }
    }
}

/// Which task an action runs. The specification itself is stored once, by digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TaskRef {
    /// Hex digest of the stored task specification.
    pub digest: String,
    /// Project of the task's own identifier.
    pub project: String,
    /// Domain of the task's own identifier.
    pub domain: String,
    /// Full name, such as `env.function`.
    pub name: String,
    /// Version.
    pub version: String,
    /// Task type, such as `python`.
    pub task_type: String,
    /// Name shown to people.
    pub short_name: String,
    /// Environment the task belongs to.
    pub environment: String,
}

/// What the task declares about how it is run, as far as the core decides on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskPolicy {
    /// Attempts after the first that user failures may use.
    pub retries: u32,
    /// Pause between them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// Longest run of one attempt, from user code's start, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_runtime_ms: Option<u64>,
    /// Longest wait of one attempt before it starts, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_timeout_ms: Option<u64>,
    /// Longest life of the whole action, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// Which time limit passed, with the code the SDK maps to its exception (contract, section 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeLimit {
    /// `metadata.timeout`.
    MaxRuntime,
    /// `timeouts.queued_timeout`.
    Queued,
    /// `timeouts.deadline`.
    Deadline,
    /// `ConditionAction.timeout`.
    Signal,
}

impl TimeLimit {
    /// The error code of this limit.
    pub const fn code(self) -> &'static str {
        match self {
            Self::MaxRuntime => "MAX_RUNTIME_EXCEEDED",
            Self::Queued => "QUEUED_TIMEOUT_EXCEEDED",
            Self::Deadline => "DEADLINE_EXCEEDED",
            Self::Signal => "CONDITION_TIMED_OUT",
        }
    }
}

/// Where an attempt's results lie.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputRefs {
    /// For a task its output prefix, for a trace its `outputs.pb`; empty if it returned nothing.
    pub output_uri: String,
    /// Its HTML report, if it wrote one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub report_uri: String,
}

/// Everything that names the work of a task action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskSeed {
    /// Which task.
    pub task: TaskRef,
    /// How it is run.
    pub policy: TaskPolicy,
    /// Where its inputs lie.
    pub input_uri: String,
    /// The prefix below which the action's outputs go: `{base}/{action}/{attempt}`.
    pub run_output_base: String,
    /// How its result is cached; `None` if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CachePlan>,
    /// The queue it waits in.
    #[serde(default = "default_queue")]
    pub queue: String,
    /// What it asks for, as far as queues limit that.
    #[serde(default)]
    pub asks: Asks,
}

fn default_queue() -> String {
    DEFAULT_QUEUE.to_owned()
}

/// What a task asks for: the requests it declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Asks {
    /// Memory, in bytes.
    pub memory: u64,
    /// Processors, in thousandths.
    pub cpu: u64,
    /// Accelerators.
    pub gpu: u64,
}

/// Everything that names a trace, which has ended when it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TraceSeed {
    /// The traced function.
    pub name: String,
    /// How it ended. One whose work is done elsewhere is recorded when it begins; this and what follows say nothing then.
    pub phase: Phase,
    /// When it began.
    pub started_at: Time,
    /// When it ended.
    pub ended_at: Time,
    /// Where its result lies.
    pub outputs: OutputRefs,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// Hex digest of its stored interface; empty if none was declared.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub spec_digest: String,
}

/// What a new action is.
#[expect(clippy::large_enum_variant, reason = "almost every action is a task")]
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seed {
    /// A task to run.
    Task(TaskSeed),
    /// A trace to record.
    Trace(TraceSeed),
    /// A condition to wait for.
    Condition(ConditionSeed),
}

impl Seed {
    /// The name its author knows it by: of the task, the traced function or the condition.
    pub fn title(&self) -> &str {
        match self {
            Self::Task(t) => &t.task.name,
            Self::Trace(t) => &t.name,
            Self::Condition(c) => &c.name,
        }
    }
}

/// An action of another run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActionRef {
    /// The run.
    pub run: RunKey,
    /// The action.
    pub action: ActionName,
}

/// A result taken over from another run instead of being computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recovered {
    /// Whose result it is.
    pub from: ActionRef,
    /// Where it lies.
    pub outputs: OutputRefs,
    /// How it was signalled, if it is a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
}

/// The actions that the end of an action above them ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedBelow {
    /// How many of its children were under way.
    pub count: u64,
    /// The first of them.
    pub names: Vec<ActionName>,
}

impl EndedBelow {
    /// Most names that are kept.
    pub const NAMES: usize = 20;

    /// Whether there were none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What to say about them; empty if there were none.
    pub fn words(&self) -> String {
        if self.is_empty() {
            return String::new();
        }
        let names: Vec<_> = self.names.iter().map(ActionName::as_str).collect();
        let more = if self.count > names.len() as u64 { ", …" } else { "" };
        let actions = if self.count == 1 { "action" } else { "actions" };
        format!("ended {} {actions} under it that had not ended: {}{more}", self.count, names.join(", "))
    }
}

/// Who holds an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The worker.
    pub worker: WorkerId,
    /// The token that its reports must carry.
    pub token: LeaseToken,
}

/// One step of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTransition {
    /// The phase entered.
    pub phase: Phase,
    /// When.
    pub at: Time,
    /// Why, if there is more to say than the phase.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// One try at a task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// Number from 1.
    pub number: u32,
    /// Where it is.
    pub phase: Phase,
    /// When it may be handed out; later than its creation after a backoff.
    pub ready_at: Time,
    /// The phases it went through, first to last.
    pub transitions: Vec<PhaseTransition>,
    /// Who holds it, or held it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<Lease>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// Where its results lie.
    #[serde(default)]
    pub outputs: OutputRefs,
}

impl Attempt {
    pub(crate) fn queued(number: u32, at: Time, ready_at: Time) -> Self {
        Self {
            number,
            phase: Phase::Queued,
            ready_at,
            transitions: vec![PhaseTransition { phase: Phase::Queued, at, reason: String::new() }],
            lease: None,
            ended_at: None,
            error: None,
            outputs: OutputRefs::default(),
        }
    }

    /// When it was created.
    pub fn created_at(&self) -> Time {
        self.transitions.first().map_or(self.ready_at, |t| t.at)
    }

    /// When it first entered `phase`.
    pub fn entered(&self, phase: Phase) -> Option<Time> {
        self.transitions.iter().find(|t| t.phase == phase).map(|t| t.at)
    }
}

/// Who ended an action that did not end by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedBy {
    /// Subject of the person or program; empty if it was Aloft itself.
    #[serde(default)]
    pub subject: String,
    /// Why.
    pub reason: String,
    /// The action above it whose end ended it too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<ActionName>,
}

impl EndedBy {
    /// Ended on the word of `subject`.
    pub fn asked(subject: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { subject: subject.into(), reason: reason.into(), above: None }
    }

    /// Ended because `ancestor` has.
    pub(crate) fn above(ancestor: &ActionState) -> Self {
        Self { subject: String::new(), reason: ended_reason(ancestor), above: Some(ancestor.name.clone()) }
    }
}

/// The state of one action.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionState {
    /// Its name.
    pub name: ActionName,
    /// The actions above it, the root first, its parent last. Empty for the root.
    pub ancestors: Vec<ActionName>,
    /// The group it was started in, as its parent named it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// What it is.
    pub seed: Seed,
    /// Where it is.
    pub phase: Phase,
    /// When it was created.
    pub created_at: Time,
    /// When it first ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Time>,
    /// Its attempts, oldest first. Empty for a trace, unless its work is done elsewhere.
    #[serde(default)]
    pub attempts: Vec<Attempt>,
    /// How many attempts failed by the user's code.
    #[serde(default)]
    pub user_failures: u32,
    /// How many attempts were lost to the platform.
    #[serde(default)]
    pub system_failures: u32,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<TaskError>,
    /// Where its results lie.
    #[serde(default)]
    pub outputs: OutputRefs,
    /// Who aborted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aborted: Option<EndedBy>,
    /// Which of its children its end ended.
    #[serde(default, skip_serializing_if = "EndedBelow::is_empty")]
    pub ended_below: EndedBelow,
    /// What the cache did for it.
    #[serde(default)]
    pub cache: CacheUse,
    /// Whose result it took over, if it was recovered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_from: Option<ActionRef>,
    /// How it was signalled, if it is a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<Signal>,
    /// What became of the call it asked for, if it is a condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub webhook: Option<WebhookOutcome>,
    /// What is known of its reporter, if its work is done elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tracking: Option<Tracking>,
}

impl ActionState {
    /// What kind of work it is.
    pub fn kind(&self) -> ActionKind {
        match self.seed {
            Seed::Task(_) => ActionKind::Task,
            Seed::Trace(_) => ActionKind::Trace,
            Seed::Condition(_) => ActionKind::Condition,
        }
    }

    /// The task it runs, if it is a task.
    pub fn task(&self) -> Option<&TaskSeed> {
        match &self.seed {
            Seed::Task(t) => Some(t),
            Seed::Trace(_) | Seed::Condition(_) => None,
        }
    }

    /// What it waits for, if it is a condition.
    pub fn condition(&self) -> Option<&ConditionSeed> {
        match &self.seed {
            Seed::Condition(c) => Some(c),
            Seed::Task(_) | Seed::Trace(_) => None,
        }
    }

    /// The name its author knows it by.
    pub fn title(&self) -> &str {
        self.seed.title()
    }

    /// The queue it waits or waited in, if it is a task for a data plane.
    pub fn queue(&self) -> Option<&str> {
        self.task().filter(|_| !self.is_tracked()).map(|t| t.queue.as_str())
    }

    /// The action that started it; `None` for the root.
    pub fn parent(&self) -> Option<&ActionName> {
        self.ancestors.last()
    }

    /// The attempt that is under way or was the last.
    pub fn current(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    /// When a worker may take it, if it waits for one.
    pub fn ready_at(&self) -> Option<Time> {
        let attempt = self.current().filter(|_| !self.is_tracked())?;
        (!self.phase.is_terminal() && !self.cache.pending && attempt.lease.is_none()).then_some(attempt.ready_at)
    }

    /// The key to look up in the cache, while that is to come.
    pub fn pending_lookup(&self) -> Option<&CachePlan> {
        let plan = self.task()?.cache.as_ref()?;
        (self.cache.pending && !self.phase.is_terminal()).then_some(plan)
    }

    /// Whether it counts against limits of concurrency: a worker has it, and it does not merely wait for what it started.
    pub fn counts(&self, open_children: u64) -> bool {
        self.live_lease().is_some() && open_children == 0
    }

    /// Whether somebody is still to be called about it.
    pub fn webhook_is_due(&self) -> bool {
        self.phase == Phase::Paused && self.webhook.is_none() && self.condition().is_some_and(|c| c.webhook)
    }

    /// The lease on its current attempt, while that attempt is under way.
    pub fn live_lease(&self) -> Option<&Lease> {
        let attempt = self.current()?;
        if attempt.phase.is_terminal() { None } else { attempt.lease.as_ref() }
    }

    /// When to look whether time has ended it: [`crate::Command::CheckLimits`].
    pub fn due_at(&self) -> Option<Time> {
        self.next_attempt_by().or_else(|| self.next_limit().map(|(at, _)| at))
    }

    /// The time limit that passes first, and when. Recomputed from the state, so a timer that fires late, twice or for a
    /// state that has moved on does nothing.
    pub fn next_limit(&self) -> Option<(Time, TimeLimit)> {
        // How long work that is done elsewhere may take is its reporter's business.
        if self.phase.is_terminal() || self.is_tracked() {
            return None;
        }
        let ms = Duration::from_millis;
        if let Some(condition) = self.condition() {
            return condition.timeout_ms.map(|d| (self.created_at.plus(ms(d)), TimeLimit::Signal));
        }
        let policy = &self.task()?.policy;
        let attempt = self.current()?;
        let deadline = policy.deadline_ms.map(|d| (self.created_at.plus(ms(d)), TimeLimit::Deadline));
        let running = attempt.entered(Phase::Running);
        let queued = match running {
            None => policy.queued_timeout_ms.map(|d| (attempt.ready_at.plus(ms(d)), TimeLimit::Queued)),
            Some(_) => None,
        };
        let runtime = running.zip(policy.max_runtime_ms).map(|(at, d)| (at.plus(ms(d)), TimeLimit::MaxRuntime));
        [deadline, queued, runtime].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// This state as it must be shown while `ended`, an action above it, has ended and its own record has not followed
    /// yet (design rule 5).
    #[must_use]
    pub fn shown_under(mut self, ended: &ActionState) -> Self {
        if !self.phase.is_terminal() {
            let at = ended.ended_at.unwrap_or(self.created_at);
            crate::event::end_aborted(&mut self, at, EndedBy::above(ended), &EndedBelow::default());
        }
        self
    }

    /// Of the actions above one, root first, the one whose end ended it: the innermost that did not itself end with one
    /// above it. It ended first, since nothing ends by itself below what has ended, so later ends change nothing of what
    /// is shown below it.
    pub fn that_ended_below<'a>(above: impl DoubleEndedIterator<Item = &'a Self>) -> Option<&'a Self> {
        above.rev().find(|a| a.phase.is_terminal() && a.aborted.as_ref().is_none_or(|by| by.above.is_none()))
    }
}

/// Why an action is aborted when `ancestor` has ended.
fn ended_reason(ancestor: &ActionState) -> String {
    match (&ancestor.aborted, ancestor.phase) {
        (Some(by), Phase::Aborted) => format!("{} (action {} above it was aborted)", by.reason, ancestor.name),
        (_, phase) => {
            format!("action {} above it ended ({}) while this was still under way", ancestor.name, phase.words())
        }
    }
}
