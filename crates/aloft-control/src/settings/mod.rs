//! Settings: what administrators fix for the runs of an organisation, a domain, or a project in a domain.
//!
//! [`resolve`] says what counts at a place, [`check`] what may be set, [`apply`] what a run gets of it, and [`wire`] how it
//! is written in messages and in the store. To add a setting: a line in [`keys`], one in `wire::leaves`, its rule in
//! `check`, what it does in `apply`, and a row in `docs/settings.md`.

pub(crate) mod apply;
pub(crate) mod check;
pub(crate) mod resolve;
pub(crate) mod wire;

use std::{collections::BTreeMap, fmt};

use aloft_flyteidl2::flyteidl2::core::GPUAccelerator;
use aloft_store::SettingsKey;

/// Where a value was set. A narrower level wins over a wider one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// The organisation.
    Org,
    /// A domain of it.
    Domain,
    /// A project in a domain.
    Project,
}

impl Level {
    /// The level that `key` names.
    pub(crate) fn of(key: &SettingsKey) -> Self {
        match (key.domain.is_empty(), key.project.is_empty()) {
            (true, true) => Self::Org,
            (false, true) => Self::Domain,
            (_, false) => Self::Project,
        }
    }
}

/// A level as people read it.
pub(crate) fn place(key: &SettingsKey) -> String {
    match Level::of(key) {
        Level::Org => format!("organisation {}", key.org),
        Level::Domain => format!("domain {}", key.domain),
        Level::Project => format!("project {} in domain {}", key.project, key.domain),
    }
}

macro_rules! keys {
    ($($(#[$doc:meta])* $key:ident $name:literal),* $(,)?) => {
        /// A setting.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) enum Key { $($(#[$doc])* $key),* }

        impl Key {
            /// Every setting, in the order of the contract.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$key),*];

            /// Its path in `flyteidl2.settings.Settings`, by which the CLI calls it too.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$key => $name),* }
            }
        }
    };
}

keys! {
    /// The queue of runs that name none.
    DefaultQueue "run.default_queue",
    /// How many actions of a run may run at a time; 0 is without limit.
    MaxActionConcurrency "run.max_action_concurrency",
    /// The prefix below which the inputs and outputs of a run's actions lie.
    RunBaseDir "run.run_base_dir",
    /// The Kubernetes service account of tasks.
    ServiceAccount "security.service_account",
    /// The prefix for large values.
    RawDataPath "storage.raw_data_path",
    /// Processors of a task that declares none.
    MinCpu "task_resource.min.cpu",
    /// Accelerators of a task that declares none.
    MinGpu "task_resource.min.gpu",
    /// Memory of a task that declares none.
    MinMemory "task_resource.min.memory",
    /// Disk of a task that declares none.
    MinStorage "task_resource.min.storage",
    /// Most processors of a task.
    MaxCpu "task_resource.max.cpu",
    /// Most accelerators of a task.
    MaxGpu "task_resource.max.gpu",
    /// Most memory of a task.
    MaxMemory "task_resource.max.memory",
    /// Most disk of a task.
    MaxStorage "task_resource.max.storage",
    /// Whether limits that a task does not declare are its requests.
    MirrorLimits "task_resource.mirror_limits_request",
    /// The accelerator of a task that asks for one and names none.
    DefaultAccelerator "task_resource.default_accelerator",
    /// Labels of runs.
    Labels "labels",
    /// Annotations of runs.
    Annotations "annotations",
    /// Environment variables of tasks.
    Environment "environment_variables",
    /// Whether apps can be opened without signing in.
    DisallowAnonymous "app.disallow_anonymous",
    /// Under which names apps are reached.
    AppDns "app.app_dns_strategy",
    /// The PodTemplate that pods of tasks start from.
    PodTemplate "pod_template_name",
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The value of a setting. Which kind it has follows from its key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Text, amounts of resources included.
    Text(String),
    /// A number.
    Number(i64),
    /// Yes or no.
    Flag(bool),
    /// Keys and values. Those of a narrower level are added to those of a wider one.
    Map(BTreeMap<String, String>),
    /// An accelerator.
    Accelerator(GPUAccelerator),
}

/// What a level says of a setting. One that it says nothing of is not in its [`Choices`].
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Choice {
    /// Nothing, and what wider levels say does not count.
    Unset,
    /// This.
    Value(Value),
}

/// What one level says.
pub(crate) type Choices = BTreeMap<Key, Choice>;

/// A setting that cannot be as it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    /// Which.
    pub(crate) key: Key,
    /// What is wrong and what is allowed.
    pub(crate) reason: String,
}

impl Wrong {
    pub(crate) fn new(key: Key, reason: impl Into<String>) -> Self {
        Self { key, reason: reason.into() }
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "settings.{}: {}", self.key, self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_explained() {
        let page = include_str!("../../../../docs/settings.md");
        for key in Key::ALL {
            assert!(page.contains(&format!("`{key}`")), "docs/settings.md says nothing of {key}");
        }
    }
}
