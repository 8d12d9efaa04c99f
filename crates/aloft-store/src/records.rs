//! Records that are not run state.

use std::collections::BTreeMap;

use aloft_core::{Scope, Subject, Time};
use bytes::Bytes;
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
    /// When it was created; the epoch if that was not recorded.
    #[serde(default)]
    pub created_at: Time,
}

/// A domain: a part of every project of its organisation, such as `production`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domain {
    /// Organisation.
    pub org: String,
    /// Identifier.
    pub id: String,
    /// Name shown to people.
    pub name: String,
    /// When it was created; the epoch if that was not recorded.
    pub created_at: Time,
}

/// What there is in a domain. While there is anything it is not deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DomainUse {
    /// Runs, ended ones included.
    pub runs: u64,
    /// Versions of deployed tasks, without those of the platform's own projects: they come back by themselves.
    pub tasks: u64,
}

/// A level that settings are kept for: an organisation, a domain of it, or a project in a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SettingsKey {
    /// Organisation.
    pub org: String,
    /// Domain; empty for the organisation.
    pub domain: String,
    /// Project; empty for the organisation and for a domain.
    pub project: String,
}

impl SettingsKey {
    /// The levels that count at this one, widest first, itself last.
    pub fn levels(&self) -> Vec<Self> {
        let mut levels = vec![Self { org: self.org.clone(), ..Self::default() }];
        if !self.domain.is_empty() {
            levels.push(Self { project: String::new(), ..self.clone() });
        }
        if !self.project.is_empty() {
            levels.push(self.clone());
        }
        levels
    }
}

/// One version of the settings of a level. Versions are never changed: an edit adds one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsVersion {
    /// The level.
    pub key: SettingsKey,
    /// Number from 1, without gaps.
    pub version: u64,
    /// Serialized `flyteidl2.settings.Settings`: what this level itself says.
    pub body: Bytes,
    /// When it was made.
    pub edited_at: Time,
    /// By whom.
    pub edited_by: Subject,
    /// Identifier of the request that made it, by which its repetition is known; empty if it had none.
    pub request: String,
}
