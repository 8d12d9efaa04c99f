//! Caching: which results stand in for work that need not be done again.
//!
//! A cache entry is a record of its own, written by the transaction that ends the action which computed it and read by
//! the one that decides on a lookup. So is a reservation, by which at most one of several identical actions computes.

use serde::{Deserialize, Serialize};

use crate::{ActionName, OutputRefs, RunKey, Time};

/// Whose results may stand in (`flyteidl2.task.CacheLookupScope`). Never those of another project: a task reads in its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheScope {
    /// Those of any domain of the project; the action's own domain first.
    #[default]
    Global,
    /// Those of the same project and domain.
    ProjectDomain,
}

/// How the result of a task is cached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CachePlan {
    /// What identical work shares: the SDK's own key over inputs, task, interface and cache version.
    pub key: String,
    /// Whose results may stand in.
    pub scope: CacheScope,
    /// Whether at most one of several identical actions computes at a time.
    pub serialize: bool,
    /// How old a result may be, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age_ms: Option<u64>,
    /// Whether to compute in any case, and replace what is cached.
    pub overwrite: bool,
}

/// What caching did for an action (`flyteidl2.core.CatalogCacheStatus`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheStatus {
    /// The task is not cached.
    #[default]
    Disabled,
    /// Nothing usable was found; the action computes.
    Miss,
    /// The result of another action stands in.
    Hit,
    /// The action computed, and its result is cached now.
    Populated,
    /// Looking failed; the action computes.
    LookupFailed,
    /// Nobody looked, because the run overwrites; the action computes.
    Skipped,
}

/// What the cache is doing or did for an action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheUse {
    /// What came of it; [`CacheStatus::Disabled`] too while the lookup is to come.
    pub status: CacheStatus,
    /// Whether a lookup is to come.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pending: bool,
    /// Whether the action holds the reservation of its key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub reserved: bool,
    /// What the lookup came to, once the result is cached: it stays true of the attempts before the one that succeeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub looked: Option<CacheStatus>,
    /// Whose result stands in, after a hit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<CacheSource>,
}

/// The attempt that computed a cached result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheSource {
    /// Its run.
    pub run: RunKey,
    /// Its action.
    pub action: ActionName,
    /// Its number.
    pub attempt: u32,
}

/// A cached result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheEntry {
    /// Where the result lies.
    pub outputs: OutputRefs,
    /// Who computed it; `None` if a client of the cache service put it there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<CacheSource>,
    /// What a client of the cache service attached, as it encoded it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metadata: Vec<u8>,
    /// When it was computed.
    pub created_at: Time,
    /// When it was last replaced.
    pub updated_at: Time,
}

impl CacheEntry {
    /// Whether it may still stand in at `now` for work that takes results up to `max_age_ms` old.
    pub fn is_fresh(&self, max_age_ms: Option<u64>, now: Time) -> bool {
        max_age_ms.is_none_or(|max| now.since(self.updated_at).as_micros() <= u128::from(max) * 1000)
    }
}

/// Who computes what others wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// The holder: `{run}/{action}` for an action, what it calls itself for a client of the cache service.
    pub owner: String,
    /// When it lapses unless extended. `None` for an action: it is released by the commit that ends the action.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

impl Reservation {
    /// What the action `action` of `run` calls itself.
    pub fn owner_of(run: &RunKey, action: &ActionName) -> String {
        format!("{run}/{action}")
    }

    /// Whether it holds at `now`.
    pub fn holds(&self, now: Time) -> bool {
        self.expires_at.is_none_or(|at| at > now)
    }
}

/// The cache as a lookup finds it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheView {
    /// The entries that the action's scope lets it use, fresh or not, the first first.
    pub entries: Vec<CacheEntry>,
    /// Who holds the reservation, if somebody does.
    pub holder: Option<Reservation>,
    /// What the looking action is called as a holder.
    pub me: String,
}

/// What was found when the result itself was looked at, before the lookup is decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There was no usable entry.
    Nothing,
    /// The entry's result is there.
    Data {
        /// Where.
        output_uri: String,
    },
    /// It could not be found out.
    Failed,
}
