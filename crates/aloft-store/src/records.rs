//! Records that are not run state.

use std::collections::BTreeMap;

use aloft_core::{Phase, RunKey, Scope, Subject, Time};
use serde::{Deserialize, Serialize};

use crate::Page;

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

/// The latest run that a task was part of, as its root or below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatestRun {
    /// The run.
    pub run: RunKey,
    /// When it was created.
    pub at: Time,
    /// Where it is.
    pub phase: Phase,
    /// Full name of its root task.
    pub root_task: String,
}

/// A deployed task as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskRow {
    /// The task.
    pub task: DeployedTask,
    /// The latest run of this version; in a list of names, of any version.
    pub latest_run: Option<LatestRun>,
}

/// A page of tasks, and how many there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskList {
    /// The page.
    pub page: Page<TaskRow>,
    /// How many the scope has.
    pub total: u64,
    /// How many meet the filters.
    pub filtered: u64,
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
