//! What a run is started with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ActionName, RunKey, Time};

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

/// How a run is related to another (`flyteidl2.common.Relation`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    /// The other run.
    pub to: RunKey,
    /// `flyteidl2.common.RelationType` number.
    pub kind: i32,
    /// The actions whose results are not taken over, if this run recovers the other. `None` if it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recover: Option<Vec<ActionName>>,
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
    /// Most actions of the run that run at a time; `None` is no limit. One with unfinished children does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_action_concurrency: Option<u32>,
    /// The run it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<Relation>,
    /// What its children inherit about caching: whether to compute in any case.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overwrite_cache: bool,
    /// Whose cached results may stand in.
    #[serde(default)]
    pub cache_scope: crate::CacheScope,
    /// The queue of actions that name none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub queue: String,
    /// What tells its output prefixes from those of an earlier run of the same name that has been given up; empty where no
    /// run is ever given up. No name of an action can be the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub apart: String,
}

impl RunInfo {
    /// Whether `action` is computed again whatever the run that this one recovers had achieved.
    pub fn forces(&self, action: &ActionName) -> bool {
        let forced = self.relation.as_ref().and_then(|r| r.recover.as_ref());
        forced.is_some_and(|forced| forced.contains(action))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_recovering_run_forces_and_only_what_it_names() {
        let name = |text: &str| ActionName::new(text).expect("a name");
        let scope = crate::Scope::new("o", "p", "d").expect("a scope");
        let to = RunKey::new(scope, "r").expect("a run");
        let made =
            |recover| RunInfo { relation: Some(Relation { to: to.clone(), kind: 2, recover }), ..RunInfo::default() };
        assert!(!RunInfo::default().forces(&name("x1")));
        assert!(!made(None).forces(&name("x1")));
        assert!(made(Some(vec![name("x1")])).forces(&name("x1")));
        assert!(!made(Some(vec![name("x1")])).forces(&name("x2")));
    }
}
