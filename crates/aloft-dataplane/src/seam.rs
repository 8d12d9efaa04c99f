//! What running attempts needs from the rest of the data plane.

use std::path::PathBuf;

use aloft_core::{AttemptOutcome, TaskError};
use aloft_plane::{LeasedAttempt, PlaneError};
use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::logs::LogSink;

/// A Python environment that tasks can run in.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PyEnv {
    /// The directory of its console scripts, `a0` among them.
    pub bin_dir: PathBuf,
    /// Its interpreter.
    pub python: PathBuf,
    /// What tells it from others: two environments of one id are the same files.
    pub id: String,
    /// Variables that its image sets.
    pub vars: Vec<(String, String)>,
    /// Files that its image copied in, to be laid out in the working directory.
    pub files: Option<PathBuf>,
}

/// Finds or makes the Python environment that stands for an image.
#[async_trait]
pub trait Environments: Send + Sync {
    /// The environment of `container.image`, for a task that was submitted by version `flyte_version` of the SDK.
    async fn resolve(&self, image: &str, flyte_version: &str) -> Result<PyEnv, TaskError>;
}

/// Work that Aloft does itself instead of starting a process, such as building an image.
///
/// It writes its `outputs.pb` before it says that it succeeded. After a restart of Aloft it is run again as the same
/// attempt, so running it twice must do no harm.
#[async_trait]
pub trait NativeTask: Send + Sync {
    /// Does the work. Returns soon after `cancelled`; what it returns then is not looked at.
    async fn run(&self, attempt: &LeasedAttempt, log: LogSink, cancelled: CancellationToken) -> AttemptOutcome;
}

/// Reads what an attempt left in the object store, and writes what it gives back if no process of its own does.
#[async_trait]
pub trait ResultStore: Send + Sync {
    /// The object at `uri`, up to `max` bytes of it; `None` if it does not exist.
    async fn get(&self, uri: &str, max: usize) -> Result<Option<Bytes>, PlaneError>;

    /// Whether there is an object at `uri`.
    async fn exists(&self, uri: &str) -> Result<bool, PlaneError>;

    /// Writes the object at `uri`, durably, replacing what was there.
    async fn put(&self, uri: &str, content: Bytes) -> Result<(), PlaneError>;
}
