//! The contract's messages of the simulation's work.

use aloft_core::Time;
use aloft_flyteidl2::flyteidl2::{
    common::{ActionIdentifier, ActionPhase, ProjectIdentifier, Relation, RelationType, RunIdentifier},
    core::{
        self, Backoff, Container, Identifier, Literal, Primitive, RetryStrategy, Scalar, TaskMetadata, TaskTemplate,
        TimeoutStrategy, literal, primitive, scalar, task_template,
    },
    task::{CacheConfig, CacheLookupScope, Inputs, NamedLiteral, OutputReferences, Recover, RunSpec, TaskSpec},
    workflow::{TaskAction, TraceAction},
};
use base64::Engine as _;
use buffa_types::google::protobuf::{Duration, StringValue, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::{
    ids::{ActionId, Place, Reuse, RunId, RunLane, output_prefix},
    model::{function, trace_times},
    step::{Kind, Policy, Work},
};

/// What every value that the simulation sends begins with, to look for it where no value may be (rule 7).
pub const CANARY: &str = "canary-value-of-a-user";

/// A project and domain on the wire.
pub fn project_id(place: &Place) -> ProjectIdentifier {
    ProjectIdentifier { name: place.project.clone(), domain: place.domain.clone(), ..Default::default() }
}

/// A run on the wire.
pub fn run_id(run: &RunId) -> RunIdentifier {
    RunIdentifier {
        project: run.place.project.clone(),
        domain: run.place.domain.clone(),
        name: run.name.clone(),
        ..Default::default()
    }
}

/// An action on the wire.
pub fn action_id(action: &ActionId) -> ActionIdentifier {
    ActionIdentifier { run: run_id(&action.run).into(), name: action.name.clone(), ..Default::default() }
}

fn length(millis: u16) -> Duration {
    let (seconds, millis) = (millis / 1000, millis % 1000);
    Duration { seconds: i64::from(seconds), nanos: i32::from(millis) * 1_000_000, ..Default::default() }
}

/// A time on the wire.
pub(crate) fn timestamp(at: Time) -> Timestamp {
    let micros = at.as_micros();
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1000).unwrap_or(0);
    Timestamp { seconds: micros.div_euclid(1_000_000), nanos, ..Default::default() }
}

fn metadata(policy: &Policy) -> TaskMetadata {
    let backoff = policy.backoff.as_ref().map(|b| Backoff {
        base: length(b.base).into(),
        factor: Some(f64::from(b.factor)),
        cap: b.cap.map(length).into(),
        ..Default::default()
    });
    let retries = RetryStrategy { retries: u32::from(policy.retries), backoff: backoff.into(), ..Default::default() };
    let timeouts = TimeoutStrategy {
        queued_timeout: policy.queued_timeout.map(length).into(),
        deadline: policy.deadline.map(length).into(),
        ..Default::default()
    };
    TaskMetadata {
        retries: retries.into(),
        timeout: policy.max_runtime.map(length).into(),
        timeouts: timeouts.into(),
        discoverable: policy.cache.is_some(),
        // The SDK says a version in any case.
        discovery_version: policy.cache.as_ref().map_or_else(|| "0".to_owned(), |c| c.version.to_string()),
        cache_serializable: policy.cache.as_ref().is_some_and(|c| c.serialize),
        cache_max_age: policy.cache.as_ref().and_then(|c| c.max_age).map(length).into(),
        ..Default::default()
    }
}

/// The specification of a task: one that sleeps without a process, or one that cannot be started.
pub fn task_spec(work: &Work) -> TaskSpec {
    let name = format!("sim.{}", function(&Kind::Task(work.clone())));
    let id = Identifier {
        resource_type: core::ResourceType::TASK.into(),
        name,
        version: "1".to_owned(),
        ..Default::default()
    };
    let container = Container { args: vec!["no-such-program".to_owned()], ..Default::default() };
    let template = TaskTemplate {
        id: id.into(),
        r#type: if work.task == 0 { "core-sleep" } else { "python" }.to_owned(),
        metadata: metadata(&work.policy).into(),
        target: Some(task_template::Target::from(container)),
        ..Default::default()
    };
    let short_name = function(&Kind::Task(work.clone()));
    TaskSpec { task_template: template.into(), short_name, ..Default::default() }
}

/// How long the tasks that sleep do so, in seconds, by their input: not at all, a moment, for good.
const SLEEPS: [f64; 3] = [0.0, 0.03, 3600.0];

/// The inputs of a task.
pub fn inputs(input: u8) -> Inputs {
    let named = |name: &str, value| {
        let value = Primitive { value: Some(value), ..Default::default() };
        let scalar = Scalar { value: Some(scalar::Value::from(value)), ..Default::default() };
        let literal = Literal { value: Some(literal::Value::from(scalar)), ..Default::default() };
        NamedLiteral { name: name.to_owned(), value: literal.into(), ..Default::default() }
    };
    let sleep = primitive::Value::FloatValue(SLEEPS[usize::from(input) % SLEEPS.len()]);
    let text = primitive::Value::StringValue(format!("{CANARY}-{input}"));
    Inputs { literals: vec![named("duration", sleep), named("text", text)], ..Default::default() }
}

/// The task of an enqueue whose inputs have this hash. What identical work shares is computed as the SDK does it; these
/// tasks have no interface.
pub fn task_action(work: &Work, inputs_hash: &str, queue: &str) -> TaskAction {
    let spec = task_spec(work);
    let name = &spec.task_template.id.name;
    let key = work.policy.cache.as_ref().map(|cache| {
        let key = Sha256::digest(format!("{inputs_hash}{name}{}", cache.version));
        StringValue { value: base64::engine::general_purpose::STANDARD.encode(key), ..Default::default() }
    });
    TaskAction { spec: spec.into(), cache_key: key.into(), queue: queue.to_owned(), ..Default::default() }
}

/// What a run says beside its task.
pub fn run_spec(lane: &RunLane, reuse: &Reuse) -> RunSpec {
    let scope = match reuse.own_domain {
        true => CacheLookupScope::CACHE_LOOKUP_SCOPE_PROJECT_DOMAIN,
        false => CacheLookupScope::CACHE_LOOKUP_SCOPE_GLOBAL,
    };
    let cache_config =
        CacheConfig { overwrite_cache: reuse.overwrite, cache_lookup_scope: scope.into(), ..Default::default() };
    let relation = reuse.from.as_ref().map(|from| Relation {
        related_to: run_id(&from.run).into(),
        relation_type: match from.recover {
            Some(_) => RelationType::RELATION_TYPE_RECOVER,
            None => RelationType::RELATION_TYPE_RERUN,
        }
        .into(),
        ..Default::default()
    });
    let forced = reuse.from.as_ref().and_then(|from| from.recover.clone());
    let recover = forced.map(|force_rerun_actions| Recover { force_rerun_actions, ..Default::default() });
    RunSpec {
        queue: lane.queue.clone(),
        max_action_concurrency: lane.most.into(),
        cache_config: cache_config.into(),
        relation: relation.into(),
        recover: recover.into(),
        ..Default::default()
    }
}

/// The trace of an enqueue.
pub fn trace_action(id: &ActionId, kind: &Kind, failed: bool) -> TraceAction {
    let (start, end) = trace_times();
    let phase = if failed { ActionPhase::ACTION_PHASE_FAILED } else { ActionPhase::ACTION_PHASE_SUCCEEDED };
    let outputs = OutputReferences { output_uri: output_prefix(id, 1), ..Default::default() };
    TraceAction {
        name: function(kind),
        phase: phase.into(),
        start_time: timestamp(start).into(),
        end_time: timestamp(end).into(),
        outputs: outputs.into(),
        ..Default::default()
    }
}
