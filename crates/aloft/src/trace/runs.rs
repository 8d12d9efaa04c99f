//! Runs as traces: one trace for each run, a span for each action with those of its stages below it. Numbers of traces and
//! spans follow from names, so that control planes that each see a part of a run make one trace of it together.

use std::time::{Duration, SystemTime};

use aloft_core::{ActionName, ActionState, Attempt, Phase, RunKey, Stage, Time};
use opentelemetry::{
    Context, KeyValue,
    trace::{
        SamplingDecision, SamplingResult, Span as _, SpanContext, SpanId, SpanKind, Status, TraceContextExt as _,
        TraceFlags, TraceId, TraceState, Tracer as _,
    },
};
use opentelemetry_sdk::trace::SdkTracer;
use sha2::{Digest as _, Sha256};

use super::Sampling;

/// Makes spans of actions that have ended.
pub(crate) struct Runs {
    tracer: SdkTracer,
    sampling: Sampling,
}

/// A part of an action's life.
#[derive(Debug, PartialEq)]
struct Part {
    stage: Stage,
    attempt: u32,
    from: Time,
    to: Time,
    failed: bool,
}

/// The trace of a run.
fn trace_id(run: &RunKey) -> TraceId {
    let digest = Sha256::digest(format!("trace of {run}").as_bytes());
    TraceId::from_bytes(std::array::from_fn(|i| digest[i]))
}

/// The span of an action of it, or of a part of that.
fn span_id(run: &RunKey, action: &ActionName, part: &str) -> SpanId {
    let digest = Sha256::digest(format!("span of {run}/{action}/{part}").as_bytes());
    SpanId::from_bytes(std::array::from_fn(|i| digest[i]))
}

/// What an action's attempts went through.
fn parts(state: &ActionState) -> Vec<Part> {
    let of = |attempt: &Attempt| {
        let end = attempt.ended_at.or(state.ended_at).unwrap_or(attempt.ready_at);
        let running = attempt.entered(Phase::Running);
        let prepared = attempt.entered(Phase::Initializing).or(running);
        let failed = matches!(attempt.phase, Phase::Failed | Phase::TimedOut);
        let part = |stage, from: Option<Time>, to: Option<Time>, failed| {
            let from = from?;
            Some(Part { stage, attempt: attempt.number, from, to: to.unwrap_or(end).max(from), failed })
        };
        [
            part(Stage::Queue, Some(attempt.ready_at), prepared, prepared.is_none() && failed),
            part(Stage::Transition, prepared, running, prepared.is_some() && running.is_none() && failed),
            part(Stage::Execution, running, Some(end), failed),
        ]
    };
    state.attempts.iter().flat_map(of).flatten().collect()
}

fn at(time: Time) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(time.as_micros()).unwrap_or(0))
}

impl Runs {
    /// With a tracer; what is kept is decided for whole runs.
    pub(super) fn new(tracer: SdkTracer, sampling: Sampling) -> Self {
        Self { tracer, sampling }
    }

    /// Whether the trace of a run is kept.
    pub(crate) fn keeps(&self, run: &RunKey) -> bool {
        self.sampling.keeps(trace_id(run))
    }

    /// Makes the spans of an action of a kept run that has just ended.
    pub(crate) fn trace(&self, run: &RunKey, state: &ActionState) {
        let trace = trace_id(run);
        let own = span_id(run, &state.name, "");
        let above = state.parent().map(|parent| span_id(run, parent, ""));
        let end = state.ended_at.unwrap_or(state.created_at);
        let scope = &run.scope;
        let mut attributes = vec![
            KeyValue::new("aloft.run", run.name.clone()),
            KeyValue::new("aloft.action", state.name.to_string()),
            KeyValue::new("aloft.project", scope.project.clone()),
            KeyValue::new("aloft.domain", scope.domain.clone()),
            KeyValue::new("aloft.phase", state.phase.words()),
            KeyValue::new("aloft.attempts", i64::try_from(state.attempts.len()).unwrap_or(i64::MAX)),
        ];
        // The code and not the message, which may repeat what a user's value was.
        let failed = matches!(state.phase, Phase::Failed | Phase::TimedOut);
        let code = state.error.as_ref().map(|e| e.code.clone()).unwrap_or_default();
        if !code.is_empty() {
            attributes.push(KeyValue::new("error.type", code.clone()));
        }
        let status = if failed { Status::error(code) } else { Status::Unset };
        let name = state.title().to_owned();
        self.span(trace, own, above, name, (state.created_at, end), attributes, status);
        for part in parts(state) {
            let number = span_id(run, &state.name, &format!("{}/{}", part.attempt, part.stage.name()));
            let attempt = vec![KeyValue::new("aloft.attempt", i64::from(part.attempt))];
            let status = if part.failed { Status::error("") } else { Status::Unset };
            let name = part.stage.name().to_owned();
            self.span(trace, number, Some(own), name, (part.from, part.to), attempt, status);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "all there is to a span")]
    fn span(
        &self,
        trace: TraceId,
        number: SpanId,
        above: Option<SpanId>,
        name: String,
        (from, to): (Time, Time),
        attributes: Vec<KeyValue>,
        status: Status,
    ) {
        let context = match above {
            None => Context::new(),
            Some(above) => {
                let state = TraceState::default();
                let above = SpanContext::new(trace, above, TraceFlags::SAMPLED, true, state);
                Context::new().with_remote_span_context(above)
            }
        };
        let kept = SamplingResult {
            decision: SamplingDecision::RecordAndSample,
            attributes: Vec::new(),
            trace_state: TraceState::default(),
        };
        let builder = self
            .tracer
            .span_builder(name)
            .with_trace_id(trace)
            .with_span_id(number)
            .with_kind(SpanKind::Internal)
            .with_start_time(at(from))
            .with_attributes(attributes)
            .with_sampling_result(kept);
        let mut span = builder.start_with_context(&self.tracer, &context);
        span.set_status(status);
        span.end_with_timestamp(at(to));
    }
}
