//! The seam between the control plane and a data plane.
//!
//! [`ControlPlane`] is what a data plane asks: work, and where to report it. [`DataPlane`] is what the control plane asks:
//! everything that touches users' bytes (design rule 7). In `aloft dev` both are function calls; across the tunnel the
//! same two traits are spoken over connections that the data plane opened.
//!
//! Messages that only pass through (inputs, outputs, log lines) are the contract's own types, relayed and never looked at.

pub mod canonical;
pub mod quantity;
pub mod wire;

use std::time::Duration;

use aloft_core::{ActionName, LeaseToken, Phase, Progress, RunKey, Scope, TaskError, Time};
use aloft_flyteidl2::flyteidl2::{
    common::OffloadedInputData,
    dataproxy::{CreateUploadLocationRequest, CreateUploadLocationResponse},
    logs::dataplane::LogLine,
    task::{Inputs, Outputs, TaskResourceDefaults},
    workflow::{
        JsonValuesToLiteralsRequest, JsonValuesToLiteralsResponse, LaunchFormJsonToLiteralsRequest,
        LaunchFormJsonToLiteralsResponse, LiteralsToLaunchFormJsonRequest, LiteralsToLaunchFormJsonResponse,
        TaskSpecToLaunchFormJsonRequest, TaskSpecToLaunchFormJsonResponse,
    },
};
pub use async_trait::async_trait;
use bytes::Bytes;
use futures::{TryStreamExt as _, stream::BoxStream};

/// The type of tasks that sleep as long as their input says.
pub const SLEEP_TASK: &str = "core-sleep";

/// The type of tasks that give their inputs back.
pub const ECHO_TASK: &str = "echo";

/// Whether tasks of this type are done by the data plane itself, without a process: then there is no log, no pod, and
/// nothing of the machine to wait for.
pub fn is_inline(task_type: &str) -> bool {
    matches!(task_type, SLEEP_TASK | ECHO_TASK)
}

/// Which attempt of which action.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttemptId {
    /// The run.
    pub run: RunKey,
    /// The action.
    pub action: ActionName,
    /// The attempt's number, from 1.
    pub attempt: u32,
}

impl std::fmt::Display for AttemptId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.run, self.action, self.attempt)
    }
}

/// An attempt and the token that proves its lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LeaseRef {
    /// The attempt.
    pub id: AttemptId,
    /// The fencing token.
    pub token: LeaseToken,
}

/// An attempt handed to a worker, with all that is needed to run it.
#[derive(Clone, Debug, PartialEq)]
pub struct LeasedAttempt {
    /// The attempt and its token.
    pub lease: LeaseRef,
    /// Where it is. `Queued` when it is handed out; further when it is reclaimed.
    pub phase: Phase,
    /// The action that started it; `None` for the root.
    pub parent: Option<ActionName>,
    /// How many actions are above it. Deeper work is what the work above waits for.
    pub depth: u32,
    /// Serialized `flyteidl2.task.TaskSpec`.
    pub task_spec: Bytes,
    /// Where its inputs lie: the `inputs.pb` itself.
    pub input_uri: String,
    /// The prefix its outputs go below. Used by this attempt only.
    pub output_prefix: String,
    /// The prefix below which the inputs and outputs of the run's actions lie.
    pub run_base: String,
    /// The prefix for large values that the user's run names; empty for the output prefix.
    pub raw_data_prefix: String,
    /// The output prefix of the attempt before, where its checkpoint lies; empty for the first.
    pub previous_prefix: String,
    /// Environment variables that the settings of the project give. The task's own and those of the run win.
    pub default_envs: Vec<(String, String)>,
    /// Environment variables of the run.
    pub envs: Vec<(String, String)>,
    /// What a task gets that does not say what it needs, and the most that any may have.
    pub resource_defaults: TaskResourceDefaults,
    /// When the run was started.
    pub run_start_time: Time,
}

impl LeasedAttempt {
    /// The prefix that its large values go below. One that the run names is shared by all of its actions, so each attempt
    /// gets its own part of it.
    pub fn raw_prefix(&self) -> String {
        let id = &self.lease.id;
        match self.raw_data_prefix.trim_end_matches('/') {
            "" => self.output_prefix.clone(),
            prefix => format!("{prefix}/{}/{}/{}", id.run.name, id.action, id.attempt),
        }
    }
}

/// Why a report was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// The attempt has ended by another hand (aborted, timed out) or belongs to another worker: stop it.
    #[error("the attempt is no longer held by this worker")]
    Over,
    /// The control plane cannot be reached or cannot write: keep running, report again.
    #[error("the control plane is unavailable: {0}")]
    Unavailable(String),
    /// Another process has taken this worker's name: nothing that runs here is this worker's any more.
    #[error("{0}")]
    Displaced(String),
}

/// The code of the error of an attempt whose worker was given up.
pub const WORKER_LOST: &str = "WorkerLost";

/// What a worker holds, a part at a time. After an error it is not known, and no session has begun.
pub type HeldParts<'a> = BoxStream<'a, Result<Vec<LeasedAttempt>, ReportError>>;

/// What one worker of a data plane asks of the control plane: its line to it.
///
/// The worker holds what it was handed under a session, which [`ControlPlane::reclaim`] begins. A session ends when the
/// control plane has not heard of the worker for the time of a lease: whoever implements this says that the worker lives.
#[async_trait]
pub trait ControlPlane: Send + Sync {
    /// Up to `max` attempts that are ready, leased to this worker. Waits up to `wait` for the first; empty if none came.
    /// After an error nothing can be leased before the next `reclaim`.
    async fn lease(&self, max: usize, wait: Duration) -> Result<Vec<LeasedAttempt>, ReportError>;

    /// Begins a session, and names every attempt that this worker holds by the control plane's record: in parts of bounded
    /// size, the first of which may be empty and says that the session begins. Asked after a start and after every error of
    /// `lease`, and heard to its end: what the worker does not know any more it must report as lost, what it runs beyond what
    /// was named it must stop, before any of it can be handed out again.
    fn reclaim_in_parts(&self) -> HeldParts<'_>;

    /// As [`ControlPlane::reclaim_in_parts`], all at once: for who holds little.
    async fn reclaim(&self) -> Result<Vec<LeasedAttempt>, ReportError> {
        self.reclaim_in_parts().try_concat().await
    }

    /// What the worker saw of an attempt. Durable when it returns.
    async fn report(&self, lease: &LeaseRef, progress: Progress) -> Result<(), ReportError>;

    /// Waits until attempts leased to this worker have ended by another hand, and names them. They must be stopped.
    async fn revoked(&self) -> Result<Vec<LeaseRef>, ReportError>;
}

/// Why the data plane did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaneError {
    /// There is no such object.
    #[error("{0}")]
    NotFound(String),
    /// A field of the request is wrong.
    #[error("{field}: {reason}")]
    Invalid {
        /// Which.
        field: String,
        /// Why, and what to do.
        reason: String,
    },
    /// It exists and is something else.
    #[error("{0}")]
    Exists(String),
    /// The object lies outside what the caller may touch.
    #[error("{0}")]
    Denied(String),
    /// Too large, or no room left.
    #[error("{0}")]
    Exhausted(String),
    /// A kind of value that is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// Cannot be reached or does not answer; try again.
    #[error("{0}")]
    Unavailable(String),
}

/// The hash of no inputs. The SDK says the empty text, which the contract does not let a server answer
/// (`OffloadedInputData.inputs_hash` has `min_len` 1), so this is the digest of nothing: what computes a cache key takes it
/// for the empty text.
pub const NO_INPUTS_HASH: &str = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";

/// A call to somebody outside: a condition that asks for an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Whom: an `http` or `https` URL.
    pub url: String,
    /// What to say: JSON.
    pub body: Bytes,
    /// The same for every repetition of the call, so that its receiver can tell.
    pub id: String,
}

/// An image by the name the SDK asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuiltImage {
    /// What goes into `container.image`.
    pub fqin: String,
    /// The run that built it, if it is known.
    pub build_run: Option<RunKey>,
}

/// A link that anyone who holds it can open until it expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The URL.
    pub url: String,
    /// When it stops working.
    pub expires_at: Time,
}

/// Lines of a log, oldest first.
pub type LogStream = BoxStream<'static, Result<Vec<LogLine>, PlaneError>>;

/// What the control plane asks of a data plane: everything that touches users' bytes.
#[async_trait]
pub trait DataPlane: Send + Sync {
    /// The prefix below which everything of `run` lies.
    fn run_base(&self, run: &RunKey) -> String;

    /// The prefix below which the reporter of a run that is carried out elsewhere uploads what there is of it, where
    /// [`DataPlane::create_upload_location`] puts the filename root `tracked-runs/{run}`.
    fn tracked_base(&self, run: &RunKey) -> String;

    /// Whether `uri` lies in the storage of `scope`'s project. The path of other tenants never does.
    fn owns(&self, scope: &Scope, uri: &str) -> bool;

    /// A presigned URL to upload one file to.
    async fn create_upload_location(
        &self,
        scope: &Scope,
        request: CreateUploadLocationRequest,
    ) -> Result<CreateUploadLocationResponse, PlaneError>;

    /// Stores inputs once, by their content, and names them by their hash without `ignored` variables. They go below
    /// `base`, or to a place of the data plane's choice if that is empty.
    async fn upload_inputs(
        &self,
        scope: &Scope,
        base: &str,
        inputs: Inputs,
        ignored: &[String],
    ) -> Result<OffloadedInputData, PlaneError>;

    /// Reads inputs and outputs: none for an empty URI, `None` for an object that does not exist. One that is larger than
    /// can be shown is [`PlaneError::Exhausted`] with its URI.
    async fn read_data(
        &self,
        scope: &Scope,
        inputs_uri: &str,
        outputs_uri: &str,
    ) -> Result<(Option<Inputs>, Option<Outputs>), PlaneError>;

    /// Which of `uris` do not exist.
    async fn missing(&self, scope: &Scope, uris: &[String]) -> Result<Vec<String>, PlaneError>;

    /// The error document below `prefix`, its message cut to what is kept; `None` if there is none that can be read.
    async fn read_error(&self, scope: &Scope, prefix: &str) -> Result<Option<TaskError>, PlaneError>;

    /// Makes a call from the users' own network, with POST. An answer other than 2xx is [`PlaneError::Unavailable`] if
    /// asking again may help and [`PlaneError::Denied`] if not.
    async fn call(&self, call: &Call) -> Result<(), PlaneError>;

    /// A link to read one object; [`PlaneError::NotFound`] if it does not exist.
    async fn download_link(&self, scope: &Scope, uri: &str, expires: Option<Duration>) -> Result<Link, PlaneError>;

    /// The log of one attempt: what there is, and while it runs what comes. Ends when the attempt's process has ended.
    async fn tail_logs(&self, attempt: &AttemptId) -> Result<LogStream, PlaneError>;

    /// The image called `name` (`image name:tag`), if it was built.
    async fn get_image(&self, scope: &Scope, name: &str) -> Result<Option<BuiltImage>, PlaneError>;

    /// Values as a launch form. A `literals_uri` in the request must have been checked against what its owner recorded.
    async fn literals_to_form(
        &self,
        scope: &Scope,
        request: LiteralsToLaunchFormJsonRequest,
    ) -> Result<LiteralsToLaunchFormJsonResponse, PlaneError>;

    /// A launch form as values.
    async fn form_to_literals(
        &self,
        request: LaunchFormJsonToLiteralsRequest,
    ) -> Result<LaunchFormJsonToLiteralsResponse, PlaneError>;

    /// The launch form of a task.
    async fn task_spec_to_form(
        &self,
        request: TaskSpecToLaunchFormJsonRequest,
    ) -> Result<TaskSpecToLaunchFormJsonResponse, PlaneError>;

    /// Plain JSON values as literals.
    async fn values_to_literals(
        &self,
        request: JsonValuesToLiteralsRequest,
    ) -> Result<JsonValuesToLiteralsResponse, PlaneError>;
}
