//! What a run is started with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Time;

/// A person or program that acts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// Stable identifier at the identity provider; `anonymous` while there is none.
    pub id: String,
    /// Name shown to people.
    #[serde(default)]
    pub name: String,
    /// Mail address, if known.
    #[serde(default)]
    pub email: String,
}

/// What a run is started with; never changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunInfo {
    /// Hex digest of the stored run specification.
    pub spec_digest: String,
    /// `flyteidl2.workflow.RunSource` number.
    pub source: i32,
    /// Who started it.
    pub created_by: Subject,
    /// Labels, for filters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The time that tasks are told the run started at.
    pub start_time: Time,
}
