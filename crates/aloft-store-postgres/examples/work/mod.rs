//! What the examples let a store do.

use aloft_core::{Asks, DEFAULT_QUEUE, RunKey, Scope, Seed, TaskPolicy, TaskRef, TaskSeed};

/// A task as the SDK declares one, with names of the usual lengths.
pub(crate) fn seed() -> Seed {
    let task = TaskRef {
        digest: "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9".into(),
        project: "flytesnacks".into(),
        domain: "development".into(),
        name: "env.noop".into(),
        version: "0123456789abcdef".into(),
        task_type: "python".into(),
        short_name: "noop".into(),
        environment: "env".into(),
    };
    Seed::Task(TaskSeed {
        task,
        policy: TaskPolicy::default(),
        input_uri: "s3://aloft/local/flytesnacks/development/r0123456789/inputs.pb".into(),
        run_output_base: "s3://aloft/local/flytesnacks/development/r0123456789".into(),
        cache: None,
        queue: DEFAULT_QUEUE.into(),
        asks: Asks::default(),
    })
}

/// A run of the usual place.
pub(crate) fn run(name: String) -> RunKey {
    RunKey::new(Scope::new("local", "flytesnacks", "development").unwrap(), &name).unwrap()
}
