//! Records that are not run state.

use std::collections::BTreeMap;

use aloft_core::{Scope, Subject, Time};
use serde::{Deserialize, Serialize};

/// What identifies a version of a deployed task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskId {
    /// Where it lives.
    pub scope: Scope,
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// A version of a deployed task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeployedTask {
    /// What identifies it.
    pub id: TaskId,
    /// Digest of its stored specification.
    pub digest: String,
    /// Name shown to people.
    pub short_name: String,
    /// Its environment.
    pub environment: String,
    /// Whether people are meant to start it.
    pub entrypoint: bool,
    /// When it was deployed.
    pub deployed_at: Time,
    /// By whom.
    pub deployed_by: Subject,
}

/// A project.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Organisation.
    pub org: String,
    /// Identifier.
    pub id: String,
    /// Name shown to people.
    pub name: String,
    /// What it is for.
    pub description: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `flyteidl2.project.ProjectState` number.
    pub state: i32,
}
