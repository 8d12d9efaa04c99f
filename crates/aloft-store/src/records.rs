//! Records that are not run state.

use std::collections::BTreeMap;

use aloft_core::{Phase, QueueSpec, QueueState, RunKey, Scope, Subject, Time};
use bytes::Bytes;
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

/// Most deleted queues of an organisation that are kept, so that they can be brought back. The dispatcher reads every one on
/// each of its rounds, and a script that makes queues of ever new names must not make that slow.
pub const MAX_DELETED_QUEUES: usize = 1000;

/// A queue. The one called [`aloft_core::DEFAULT_QUEUE`] has no record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Queue {
    /// Organisation.
    pub org: String,
    /// Name, unique in the organisation.
    pub name: String,
    /// What was declared.
    pub spec: QueueSpec,
    /// What was asked for: a draining queue that holds nothing any more is drained ([`Queue::state_under`]).
    pub state: QueueState,
    /// From 1; grows by 1 with every change.
    pub generation: u64,
    /// When it was created.
    pub created_at: Time,
    /// By whom.
    pub created_by: Subject,
    /// When it was changed last.
    pub updated_at: Time,
    /// Since when it is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<Time>,
}

impl Queue {
    /// Its state while it holds `load`. Computed, so that nothing has to watch queues for becoming empty.
    pub fn state_under(&self, load: QueueLoad) -> QueueState {
        match self.state {
            QueueState::Draining if load.is_empty() => QueueState::Drained,
            state => state,
        }
    }
}

/// What a queue holds at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLoad {
    /// Actions that wait to be handed out.
    pub waiting: u64,
    /// Actions that were handed out and have not ended, whether or not they count against a limit.
    pub running: u64,
    /// Runs whose root has started and not ended.
    pub runs: u64,
}

impl QueueLoad {
    /// Actions that wait or run: what its depth bounds.
    pub fn held(self) -> u64 {
        self.waiting.saturating_add(self.running)
    }

    /// Whether nothing of it is left.
    pub fn is_empty(self) -> bool {
        self.held() == 0 && self.runs == 0
    }
}

/// What lives at a moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// What each queue holds, by organisation and name; without those that hold nothing.
    pub queues: BTreeMap<(String, String), QueueLoad>,
    /// Runs that have not ended.
    pub runs: u64,
    /// Actions that have not ended, by their own record.
    pub actions: u64,
    /// Workers that hold attempts.
    pub workers: u64,
}

/// What a project, or a domain of it, may run and hold. `None` is no limit; 0 forbids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProjectLimits {
    /// Organisation.
    pub org: String,
    /// Project.
    pub project: String,
    /// Domain; empty for all domains of the project together.
    pub domain: String,
    /// Most runs whose root has started and not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_concurrency: Option<u32>,
    /// Most actions that run at a time. One with unfinished children does not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action_concurrency: Option<u32>,
    /// Most actions that wait or run; one more is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u32>,
    /// From 1; grows by 1 with every change.
    pub generation: u64,
    /// When they were changed last.
    pub updated_at: Time,
    /// By whom.
    pub updated_by: Subject,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draining_queue_is_drained_once_it_holds_nothing() {
        let shown = |state, load| {
            let queue = Queue {
                org: "local".into(),
                name: "q".into(),
                spec: QueueSpec::default(),
                state,
                generation: 1,
                created_at: Time::default(),
                created_by: Subject::default(),
                updated_at: Time::default(),
                deleted_at: None,
            };
            queue.state_under(load)
        };
        let empty = QueueLoad::default();
        assert_eq!(shown(QueueState::Draining, empty), QueueState::Drained);
        for load in
            [QueueLoad { waiting: 1, ..empty }, QueueLoad { running: 1, ..empty }, QueueLoad { runs: 1, ..empty }]
        {
            assert_eq!(shown(QueueState::Draining, load), QueueState::Draining, "{load:?}");
        }
        assert_eq!(shown(QueueState::Active, empty), QueueState::Active);
        assert_eq!(shown(QueueState::Drained, empty), QueueState::Drained);
    }
}
