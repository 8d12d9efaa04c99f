//! What reporters say: many things of one run at a time, each answered by itself.

use std::{collections::VecDeque, ops::RangeInclusive};

use aloft_core::{
    ActionName, CacheStatus, Command, EndedBy, OutputRefs, Phase, Refusal, RunKey, Seed, Time, TraceSeed,
    TrackedReport, TrackedStep,
};
use aloft_flyteidl2::{
    flyteidl2::{
        common::ActionPhase,
        core::CatalogCacheStatus,
        task::OutputReferences,
        workflow::{
            ActionEvent, ReportTrackedActionsRequest, ReportTrackedActionsResponse, TaskAction, TraceAction,
            TrackedActionUpdate, tracked_action_update::Spec,
        },
    },
    google::rpc::Status,
};
use aloft_store::{Blob, Submission, SubmitError};
use buffa_types::google::protobuf::Timestamp;
use connectrpc::{ConnectError, ErrorCode};

use super::{begin, failure, tracked};
use crate::{
    Control,
    rpc::{
        convert,
        error::{Answer, bounded, invalid, shortened, wire},
        run, task,
    },
};

/// Updates that are read and submitted at a time: it bounds the memory of a request of many, and shares commits well.
const CHUNK: usize = 256;

/// Numbers that attempts may have: every attempt stays on record, so the retries of a task are bounded too.
const ATTEMPTS: RangeInclusive<u32> = 1..=convert::MAX_RETRIES + 1;

/// Longest reason that is kept of an abort, in characters.
const MAX_REASON: usize = 1000;

pub(in crate::rpc) async fn report_actions(
    control: &Control,
    request: ReportTrackedActionsRequest,
) -> Answer<ReportTrackedActionsResponse> {
    let run = control.run_id(request.run_id.as_option())?;
    if request.updates.is_empty() {
        return Err(invalid("updates: at least one is required"));
    }
    tracked(control, &run).await?;
    let mut statuses = Vec::with_capacity(request.updates.len());
    for updates in request.updates.chunks(CHUNK) {
        statuses.extend(take(control, &run, updates).await?);
    }
    Ok(ReportTrackedActionsResponse { statuses, ..Default::default() })
}

/// Takes some updates, in order. Only what keeps all of them from being taken is an error.
async fn take(control: &Control, run: &RunKey, updates: &[TrackedActionUpdate]) -> Answer<Vec<Status>> {
    let mut read = Vec::with_capacity(updates.len());
    let mut submissions = Vec::with_capacity(updates.len());
    for update in updates {
        read.push(match submission(control, run, update).await {
            Ok(submission) => {
                submissions.push(submission);
                None
            }
            Err(error) if is_for_later(&error) => return Err(error),
            Err(error) => Some(error),
        });
    }
    let mut results = VecDeque::from(control.store().submit_in_order(submissions).await);
    let mut statuses = Vec::with_capacity(updates.len());
    for unreadable in read {
        let status = match unreadable {
            Some(error) => refused(&error),
            None => match results.pop_front() {
                Some(Ok(_)) => Status::default(),
                Some(Err(SubmitError::Refused(refusal))) => refused(&refusal_of(refusal)),
                // The client repeats the whole request then; what was taken of it already changes nothing.
                Some(Err(SubmitError::Store(error))) => return Err(wire(error)),
                None => return Err(ConnectError::new(ErrorCode::Unavailable, "not every update was taken; try again")),
            },
        };
        statuses.push(status);
    }
    Ok(statuses)
}

/// Whether an error says nothing about the request itself.
fn is_for_later(error: &ConnectError) -> bool {
    matches!(error.code, ErrorCode::Unavailable | ErrorCode::DataLoss | ErrorCode::ResourceExhausted)
}

fn refused(error: &ConnectError) -> Status {
    let code = i32::try_from(error.code.grpc_code()).unwrap_or_default();
    Status { code, message: error.message.clone().unwrap_or_default(), ..Default::default() }
}

fn refusal_of(refusal: Refusal) -> ConnectError {
    match refusal {
        // ABORTED would tell the SDK's own controller to stop; a reporter only hears why its report came too late.
        Refusal::AncestorEnded { .. } => ConnectError::new(ErrorCode::FailedPrecondition, refusal.to_string()),
        other => wire(other),
    }
}

async fn submission(control: &Control, run: &RunKey, update: &TrackedActionUpdate) -> Answer<Submission> {
    let event = update.event.as_option().ok_or_else(|| invalid("event: is required"))?;
    let id = event.id.as_option().ok_or_else(|| invalid("event.id: is required"))?;
    let (named, action) = control.action_id(Some(id))?;
    if named != *run {
        return Err(invalid(format!("event.id.run: is run {}, but the request is about run {}", named.name, run.name)));
    }
    let parent = match update.parent_name.as_str() {
        "" => ActionName::root(),
        name => ActionName::new(name).map_err(|e| invalid(format!("parent_name: {}", e.reason)))?,
    };
    bounded("group", &update.group, convert::MAX_TEXT)?;
    let report = TrackedReport {
        attempt: attempt(event.attempt)?,
        version: event.version,
        step: step(event)?,
        at: at(control, update, event)?,
        outputs: outputs(control, run, event.outputs.as_option())?,
        cache: cache(update, event),
    };
    let introduced = match &update.spec {
        Some(Spec::Task(task)) => Some(task_seed(control, run, &action, task).await?),
        Some(Spec::Trace(trace)) => Some(trace_seed(trace, &report)?),
        None => None,
    };
    let (seed, blob) = introduced.unzip();
    let command = Command::Track {
        action,
        parent,
        group: update.group.clone(),
        seed: seed.map(Box::new),
        began: began(update, event)?,
        report,
    };
    Ok(Submission { blobs: blob.flatten().into_iter().collect(), ..Submission::new(run.clone(), command) })
}

fn attempt(number: u32) -> Answer<u32> {
    if ATTEMPTS.contains(&number) {
        return Ok(number);
    }
    Err(invalid(format!("event.attempt: is {number}; attempts are numbered from 1 to {}", ATTEMPTS.end())))
}

fn step(event: &ActionEvent) -> Answer<TrackedStep> {
    let failure = || failure::read(event.error_info.as_option());
    Ok(match event.phase.as_known() {
        Some(ActionPhase::ACTION_PHASE_QUEUED) => TrackedStep::Queued,
        Some(ActionPhase::ACTION_PHASE_WAITING_FOR_RESOURCES) => TrackedStep::WaitingForResources,
        Some(ActionPhase::ACTION_PHASE_INITIALIZING) => TrackedStep::Initializing,
        Some(ActionPhase::ACTION_PHASE_RUNNING) => TrackedStep::Running,
        Some(ActionPhase::ACTION_PHASE_SUCCEEDED) => TrackedStep::Succeeded,
        Some(ActionPhase::ACTION_PHASE_FAILED) => TrackedStep::Failed(failure()),
        Some(ActionPhase::ACTION_PHASE_TIMED_OUT) => TrackedStep::TimedOut(failure()),
        Some(ActionPhase::ACTION_PHASE_ABORTED) => {
            let said = event.error_info.as_option().map(|e| e.message.as_str()).filter(|m| !m.is_empty());
            let reason: String = said.unwrap_or("aborted where it runs").chars().take(MAX_REASON).collect();
            TrackedStep::Aborted(EndedBy::asked(Control::anonymous().id, reason))
        }
        Some(
            ActionPhase::ACTION_PHASE_UNSPECIFIED
            | ActionPhase::ACTION_PHASE_PAUSED
            | ActionPhase::ACTION_PHASE_RECOVERED,
        )
        | None => {
            return Err(invalid(
                "event.phase: must be one of QUEUED, WAITING_FOR_RESOURCES, INITIALIZING, RUNNING, SUCCEEDED, FAILED, \
                 ABORTED and TIMED_OUT",
            ));
        }
    })
}

/// The first of some times that is set.
fn first<'t>(times: impl IntoIterator<Item = (&'static str, Option<&'t Timestamp>)>) -> Answer<Option<Time>> {
    let set = times.into_iter().find_map(|(field, at)| Some((field, at?)));
    set.map(|(field, at)| convert::checked_time(field, at)).transpose()
}

/// When what is reported happened, by the reporter's clock.
fn at(control: &Control, update: &TrackedActionUpdate, event: &ActionEvent) -> Answer<Time> {
    let end = [
        ("event.end_time", event.end_time.as_option()),
        ("status.end_time", update.status.as_option().and_then(|s| s.end_time.as_option())),
    ];
    let step = [
        ("event.updated_time", event.updated_time.as_option()),
        ("event.reported_time", event.reported_time.as_option()),
    ];
    Ok(first(end.into_iter().chain(step))?.unwrap_or_else(|| control.now()))
}

/// When the action began, by the reporter's clock.
fn began(update: &TrackedActionUpdate, event: &ActionEvent) -> Answer<Option<Time>> {
    first([
        ("event.start_time", event.start_time.as_option()),
        ("status.start_time", update.status.as_option().and_then(|s| s.start_time.as_option())),
    ])
}

fn outputs(control: &Control, run: &RunKey, said: Option<&OutputReferences>) -> Answer<OutputRefs> {
    let Some(said) = said else { return Ok(OutputRefs::default()) };
    for (field, uri) in [("output_uri", &said.output_uri), ("report_uri", &said.report_uri)] {
        if !uri.is_empty() && !control.data().owns(&run.scope, uri) {
            return Err(invalid(format!(
                "event.outputs.{field}: {} is not in the storage of project {}; upload it through CreateUploadLocation",
                shortened(uri),
                run.scope.project
            )));
        }
    }
    Ok(OutputRefs { output_uri: said.output_uri.clone(), report_uri: said.report_uri.clone() })
}

fn cache(update: &TrackedActionUpdate, event: &ActionEvent) -> CacheStatus {
    let told = [Some(&event.cache_status), update.status.as_option().map(|s| &s.cache_status)];
    let told = told.into_iter().flatten().filter_map(|s| s.as_known());
    match told.into_iter().find(|s| *s != CatalogCacheStatus::CACHE_DISABLED) {
        None | Some(CatalogCacheStatus::CACHE_DISABLED) => CacheStatus::Disabled,
        // What could not be kept, or was thrown out, had to be computed.
        Some(
            CatalogCacheStatus::CACHE_MISS | CatalogCacheStatus::CACHE_PUT_FAILURE | CatalogCacheStatus::CACHE_EVICTED,
        ) => CacheStatus::Miss,
        Some(CatalogCacheStatus::CACHE_HIT) => CacheStatus::Hit,
        Some(CatalogCacheStatus::CACHE_POPULATED) => CacheStatus::Populated,
        Some(CatalogCacheStatus::CACHE_LOOKUP_FAILURE) => CacheStatus::LookupFailed,
        Some(CatalogCacheStatus::CACHE_SKIPPED) => CacheStatus::Skipped,
    }
}

async fn task_seed(
    control: &Control,
    run: &RunKey,
    action: &ActionName,
    task: &TaskAction,
) -> Answer<(Seed, Option<Blob>)> {
    let stored;
    let spec = match (task.spec.as_option(), task.id.as_option()) {
        (Some(spec), _) => spec,
        (None, Some(id)) => {
            stored = task::stored_spec(control, id).await?;
            &stored
        }
        (None, None) => return Err(invalid("task.spec: is required")),
    };
    let spec = convert::spec(spec)?;
    let blob = spec.blob.clone();
    let base = control.data().tracked_base(run);
    let input_uri = run::inputs_file(&format!("{base}/{action}"));
    Ok((Seed::Task(begin::task_seed(spec, input_uri, base)), Some(blob)))
}

fn trace_seed(trace: &TraceAction, report: &TrackedReport) -> Answer<(Seed, Option<Blob>)> {
    bounded("trace.name", &trace.name, convert::MAX_TEXT)?;
    let spec = trace.spec.as_option().map(|spec| convert::encoded("trace.spec", spec)).transpose()?;
    let blob = spec.map(convert::blob);
    let seed = TraceSeed {
        name: trace.name.clone(),
        phase: Phase::Queued,
        started_at: report.at,
        ended_at: report.at,
        outputs: OutputRefs::default(),
        error: None,
        spec_digest: blob.as_ref().map(|b| b.digest.clone()).unwrap_or_default(),
    };
    Ok((Seed::Trace(seed), blob))
}
