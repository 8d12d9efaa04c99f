//! The contract's messages of the simulation's work.

use aloft_core::Time;
use aloft_flyteidl2::flyteidl2::{
    common::{ActionIdentifier, ActionPhase, ProjectIdentifier, RunIdentifier},
    core::{
        self, Backoff, Container, Identifier, Literal, Primitive, RetryStrategy, Scalar, TaskMetadata, TaskTemplate,
        TimeoutStrategy, literal, primitive, scalar, task_template,
    },
    task::{Inputs, NamedLiteral, OutputReferences, RunSpec, TaskSpec},
    workflow::{TaskAction, TraceAction},
};
use buffa_types::google::protobuf::{Duration, Timestamp};

use crate::{
    ids::{ActionId, Place, RunId, RunLane, output_prefix},
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

fn timestamp(at: Time) -> Timestamp {
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

/// What a run declares.
pub fn run_spec(lane: &RunLane) -> RunSpec {
    RunSpec { queue: lane.queue.clone(), max_action_concurrency: lane.most.into(), ..Default::default() }
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

/// The task of an enqueue.
pub fn task_action(work: &Work, queue: &str) -> TaskAction {
    TaskAction { spec: task_spec(work).into(), queue: queue.to_owned(), ..Default::default() }
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
