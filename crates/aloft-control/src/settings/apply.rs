//! What a run gets of the settings of its place. What its caller and its task say always wins.

use aloft_core::RunKey;
use aloft_flyteidl2::flyteidl2::{
    core::resources::{ResourceEntry, ResourceName},
    task::{DefaultSettings, RunSpec, TaskResourceDefaults, TaskSpec},
};
use sha2::{Digest as _, Sha256};

use super::{Key, resolve::Resolved};

/// Fills in what `run` does not say. [`RunSpec::default_settings`] is the server's own field: it is replaced.
///
/// Environment variables are not filled in here: they lie below those of each task, and not only of the root's, so the
/// dispatcher hands them on apart from the run's own ([`environment`]).
pub(crate) fn apply(effective: &Resolved, run: &mut RunSpec, task: &TaskSpec) {
    let text = |key| effective.text(key).map(str::to_owned);
    fill(&mut run.queue, text(Key::DefaultQueue));
    fill(&mut run.run_base_dir, text(Key::RunBaseDir));
    if let Some(prefix) = text(Key::RawDataPath) {
        fill(&mut run.raw_data_storage.get_or_insert_default().raw_data_prefix, Some(prefix));
    }
    if run.max_action_concurrency == 0 {
        let most = effective.number(Key::MaxActionConcurrency).and_then(|n| u32::try_from(n).ok());
        run.max_action_concurrency = most.unwrap_or(0);
    }
    let declared = &task.task_template.security_context.run_as.k8s_service_account;
    if let Some(account) = text(Key::ServiceAccount).filter(|_| declared.is_empty()) {
        let run_as = run.security_context.get_or_insert_default().run_as.get_or_insert_default();
        fill(&mut run_as.k8s_service_account, Some(account));
    }
    for (key, value) in effective.map(Key::Labels) {
        let labels = &mut run.labels.get_or_insert_default().values;
        labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    for (key, value) in effective.map(Key::Annotations) {
        let annotations = &mut run.annotations.get_or_insert_default().values;
        annotations.entry(key.clone()).or_insert_with(|| value.clone());
    }
    run.default_settings = effective.has_values().then(|| default_settings(effective)).into();
}

fn fill(field: &mut String, default: Option<String>) {
    if field.is_empty() {
        *field = default.unwrap_or_default();
    }
}

fn default_settings(effective: &Resolved) -> DefaultSettings {
    use ResourceName::{CPU, EPHEMERAL_STORAGE, GPU, MEMORY};
    let entries = |keys: [(ResourceName, Key); 4]| -> Vec<ResourceEntry> {
        let entry = |(name, key): (ResourceName, Key)| {
            let value = effective.text(key)?.to_owned();
            Some(ResourceEntry { name: name.into(), value, ..ResourceEntry::default() })
        };
        keys.into_iter().filter_map(entry).collect()
    };
    let min = [(CPU, Key::MinCpu), (GPU, Key::MinGpu), (MEMORY, Key::MinMemory), (EPHEMERAL_STORAGE, Key::MinStorage)];
    let max = [(CPU, Key::MaxCpu), (GPU, Key::MaxGpu), (MEMORY, Key::MaxMemory), (EPHEMERAL_STORAGE, Key::MaxStorage)];
    let resources = TaskResourceDefaults {
        requests: entries(min),
        max: entries(max),
        default_accelerator: effective.accelerator(Key::DefaultAccelerator).cloned().into(),
        ..TaskResourceDefaults::default()
    };
    DefaultSettings {
        pod_template_name: effective.text(Key::PodTemplate).unwrap_or_default().to_owned(),
        task_resource_defaults: resources.into(),
        ..DefaultSettings::default()
    }
}

/// The variables that every task of a run gets, unless it or the run has its own.
pub(crate) fn environment(effective: &Resolved) -> Vec<(String, String)> {
    effective.map(Key::Environment).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// What identifies the settings that `run` was created with, among the blobs of the store. They are kept because editing
/// settings must not change a run that has begun.
pub(crate) fn digest(run: &RunKey) -> String {
    let digest = Sha256::digest(format!("the settings of run {run}").as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use aloft_flyteidl2::flyteidl2::{
        core::{Identity, SecurityContext, TaskTemplate},
        task::{Annotations, Labels, RawDataStorage},
    };
    use proptest::prelude::*;

    use super::*;
    use crate::settings::{Choice, Choices, Level, Value, resolve::tests::choices};

    fn resolved(choices: Choices) -> Resolved {
        Resolved::of(Level::Project, choices)
    }

    fn service_account(run: &RunSpec) -> &str {
        &run.security_context.run_as.k8s_service_account
    }

    fn runs_as(account: &str) -> SecurityContext {
        let run_as = Identity { k8s_service_account: account.to_owned(), ..Identity::default() };
        SecurityContext { run_as: run_as.into(), ..SecurityContext::default() }
    }

    #[test]
    fn without_settings_a_run_stays_as_it_is() {
        let mut run = RunSpec { queue: "mine".into(), ..RunSpec::default() };
        apply(&Resolved::default(), &mut run, &TaskSpec::default());
        assert_eq!(run, RunSpec { queue: "mine".into(), ..RunSpec::default() });
    }

    #[test]
    fn a_task_keeps_the_account_it_declares() {
        let settings = resolved([(Key::ServiceAccount, Choice::Value(Value::Text("ours".into())))].into());
        let template = TaskTemplate { security_context: runs_as("its-own").into(), ..TaskTemplate::default() };
        let task = TaskSpec { task_template: template.into(), ..TaskSpec::default() };
        let mut run = RunSpec::default();
        apply(&settings, &mut run, &task);
        assert_eq!(service_account(&run), "");
        apply(&settings, &mut run, &TaskSpec::default());
        assert_eq!(service_account(&run), "ours");
    }

    #[test]
    fn defaults_of_resources_are_the_servers_own() {
        let amount = |key, text: &str| (key, Choice::Value(Value::Text(text.to_owned())));
        let settings = resolved([amount(Key::MinCpu, "1"), amount(Key::MaxMemory, "2Gi")].into());
        let forged = DefaultSettings { pod_template_name: "root".into(), ..DefaultSettings::default() };
        let mut run = RunSpec { default_settings: forged.into(), ..RunSpec::default() };
        apply(&settings, &mut run, &TaskSpec::default());
        let defaults = &run.default_settings.task_resource_defaults;
        assert_eq!(run.default_settings.pod_template_name, "");
        assert_eq!((defaults.requests[0].name, defaults.requests[0].value.as_str()), (ResourceName::CPU.into(), "1"));
        assert_eq!((defaults.max[0].name, defaults.max[0].value.as_str()), (ResourceName::MEMORY.into(), "2Gi"));
        apply(&Resolved::default(), &mut run, &TaskSpec::default());
        assert!(run.default_settings.is_unset());
    }

    /// A run of which anything may be said or not.
    fn runs() -> impl Strategy<Value = RunSpec> {
        let maybe = || prop_oneof![Just(String::new()), "[a-c]"];
        let map = || proptest::collection::btree_map("[a-d]", "[m-p]", 0..3);
        (maybe(), maybe(), maybe(), maybe(), 0..3u32, map(), map()).prop_map(
            |(queue, run_base_dir, raw_data_prefix, account, max_action_concurrency, labels, annotations)| RunSpec {
                queue,
                run_base_dir,
                raw_data_storage: RawDataStorage { raw_data_prefix, ..RawDataStorage::default() }.into(),
                security_context: runs_as(&account).into(),
                max_action_concurrency,
                labels: Labels { values: labels, ..Labels::default() }.into(),
                annotations: Annotations { values: annotations, ..Annotations::default() }.into(),
                ..RunSpec::default()
            },
        )
    }

    proptest! {
        #[test]
        fn what_the_caller_gave_is_never_changed(settings in choices(), given in runs()) {
            let settings = resolved(settings);
            let mut run = given.clone();
            apply(&settings, &mut run, &TaskSpec::default());
            let kept = |given: &str, now: &str| given.is_empty() || given == now;
            prop_assert!(kept(&given.queue, &run.queue));
            prop_assert!(kept(&given.run_base_dir, &run.run_base_dir));
            prop_assert!(kept(&given.raw_data_storage.raw_data_prefix, &run.raw_data_storage.raw_data_prefix));
            prop_assert!(kept(service_account(&given), service_account(&run)));
            prop_assert!(matches!(given.max_action_concurrency, 0) || given.max_action_concurrency == run.max_action_concurrency);
            prop_assert!(given.labels.values.iter().all(|(k, v)| &run.labels.values[k] == v));
            prop_assert!(given.annotations.values.iter().all(|(k, v)| &run.annotations.values[k] == v));
            prop_assert_eq!(&given.envs, &run.envs);
        }

        #[test]
        fn what_the_caller_left_open_is_filled_in_once(settings in choices(), given in runs()) {
            let settings = resolved(settings);
            let mut run = given.clone();
            apply(&settings, &mut run, &TaskSpec::default());
            let filled = |given: &str, now: &str, key| !given.is_empty() || now == settings.text(key).unwrap_or_default();
            prop_assert!(filled(&given.queue, &run.queue, Key::DefaultQueue));
            prop_assert!(filled(&given.run_base_dir, &run.run_base_dir, Key::RunBaseDir));
            prop_assert!(filled(service_account(&given), service_account(&run), Key::ServiceAccount));
            prop_assert!(settings.map(Key::Labels).all(|(k, v)| given.labels.values.contains_key(k) || &run.labels.values[k] == v));
            let once = run.clone();
            apply(&settings, &mut run, &TaskSpec::default());
            prop_assert_eq!(run, once);
        }
    }
}
