//! `flyteidl2.dataproxy.DataProxyService`, `flyteidl2.workflow.RunLogsService` and
//! `flyteidl2.imagebuilder.ImageService`: whose data it is is decided here, the data plane does the rest.

use aloft_core::{ActionName, ActionState, RunKey, Time};
use aloft_flyteidl2::flyteidl2::{
    common::ActionIdentifier,
    dataproxy::{
        ArtifactType, CreateDownloadLinkRequest, CreateDownloadLinkResponse, CreateUploadLocationRequest,
        CreateUploadLocationResponse, GetActionDataRequest, GetActionDataResponse, PreSignedURLs, TailLogsRequest,
        TailLogsResponse, UploadInputsRequest, UploadInputsResponse,
        create_download_link_request::Source,
        tail_logs_response::Logs,
        upload_inputs_request::{Id, Task},
    },
    imagebuilder::{GetImageRequest, GetImageResponse, Image, ImageIdentifier},
    logs::dataplane::{LogLine, LogLineOriginator},
    task::{Inputs, TaskSpec},
    workflow::{self, tail_logs_response::Logs as RunLogs},
};
use aloft_plane::{AttemptId, LogStream, PlaneError};
use aloft_store::StoreError;
use buffa::Message as _;
use futures::{Stream, StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::{
    actions::Messages,
    convert,
    error::{Answer, invalid, not_found, shortened, stopping, unimplemented, wire},
    run, task,
    watch::HEARTBEAT,
};
use crate::Control;

pub(super) async fn create_upload_location(
    control: &Control,
    request: CreateUploadLocationRequest,
) -> Answer<CreateUploadLocationResponse> {
    let scope = control.scope(&request.org, &request.project, &request.domain)?;
    control.site(&scope).await?;
    control.data().create_upload_location(&scope, request).await.map_err(wire)
}

pub(super) async fn upload_inputs(control: &Control, request: UploadInputsRequest) -> Answer<UploadInputsResponse> {
    let scope = match &request.id {
        Some(Id::RunId(id)) => control.scope(&id.org, &id.project, &id.domain)?,
        Some(Id::ProjectId(id)) => control.project_scope(id)?,
        None => return Err(invalid("id: run_id or project_id is required")),
    };
    control.site(&scope).await?;
    let ignored = match &request.task {
        Some(Task::TaskSpec(spec)) => ignored_inputs(spec),
        Some(Task::TaskId(id)) => ignored_inputs(&task::stored_spec(control, id).await?),
        Some(Task::TriggerName(_)) => return Err(unimplemented("trigger_name: triggers are not built yet")),
        None => return Err(invalid("task: task_spec or task_id is required")),
    };
    if !request.base_dir.is_empty() && !control.data().owns(&scope, &request.base_dir) {
        return Err(invalid(format!(
            "base_dir: {} is not in the storage of project {}; leave it empty for the default",
            shortened(&request.base_dir),
            scope.project
        )));
    }
    let inputs = request.inputs.into_option().unwrap_or_default();
    let offloaded = control.data().upload_inputs(&scope, &request.base_dir, inputs, &ignored).await.map_err(wire)?;
    Ok(UploadInputsResponse { offloaded_input_data: offloaded.into(), ..Default::default() })
}

fn ignored_inputs(spec: &TaskSpec) -> Vec<String> {
    let metadata = spec.task_template.as_option().and_then(|t| t.metadata.as_option());
    metadata.map(|m| m.cache_ignore_input_vars.clone()).unwrap_or_default()
}

pub(super) async fn get_action_data(control: &Control, request: GetActionDataRequest) -> Answer<GetActionDataResponse> {
    action_data(control, request.action_id.as_option()).await
}

/// The inputs and outputs of an action, whatever ran it: what is recorded as its data must be there, and what is recorded as
/// none is empty.
pub(super) async fn action_data(control: &Control, id: Option<&ActionIdentifier>) -> Answer<GetActionDataResponse> {
    let (run, action) = control.action_id(id)?;
    let state = run::find_action(control, &run, &action).await?;
    let (inputs_uri, outputs_uri) = run::data_uris(control, &run, &state);
    let (inputs, outputs) = control.data().read_data(&run.scope, &inputs_uri, &outputs_uri).await.map_err(wire)?;
    let gone = |what: &str, uri: &str| {
        not_found(format!("the {what} of action {action} are gone: {uri} does not exist any more"))
    };
    let inputs = match inputs {
        Some(inputs) => inputs,
        // Who starts a task that takes nothing need not write that down, and a reporter need not upload anything.
        None if state.is_tracked() => Inputs::default(),
        None if takes_nothing(control, &state).await? => Inputs::default(),
        None => return Err(gone("inputs", &inputs_uri)),
    };
    let outputs = outputs.ok_or_else(|| gone("outputs", &outputs_uri))?;
    Ok(GetActionDataResponse {
        inputs: inputs.into(),
        outputs: outputs.into(),
        inputs_uri,
        outputs_uri,
        ..Default::default()
    })
}

async fn takes_nothing(control: &Control, state: &ActionState) -> Answer<bool> {
    let spec = stored_spec(control, state).await?;
    let template = spec.task_template.as_option();
    let inputs = template.and_then(|t| t.interface.as_option()).and_then(|i| i.inputs.as_option());
    Ok(inputs.is_none_or(|inputs| inputs.variables.is_empty()))
}

pub(super) async fn create_download_link(
    control: &Control,
    request: CreateDownloadLinkRequest,
) -> Answer<CreateDownloadLinkResponse> {
    let Some(source) = &request.source else {
        return Err(invalid("action_attempt_id: is required, unless a task_id names a deployed task"));
    };
    let (report, bundle) = (ArtifactType::ARTIFACT_TYPE_REPORT, ArtifactType::ARTIFACT_TYPE_CODE_BUNDLE);
    let wanted = request.artifact_type.as_known();
    let wanted = wanted
        .filter(|kind| [report, bundle].contains(kind))
        .ok_or_else(|| invalid("artifact_type: must be REPORT or CODE_BUNDLE"))?;
    let (scope, uri) = match source {
        Source::ActionAttemptId(id) => {
            let (run, action) = control.action_id(id.action_id.as_option())?;
            let state = run::find_action(control, &run, &action).await?;
            let uri = match wanted == report {
                true => report_uri(&state, id.attempt)?,
                false => bundle_uri(&stored_spec(control, &state).await?, &format!("run {}", run.name))?,
            };
            (run.scope, uri)
        }
        Source::TaskId(_) if wanted == report => {
            return Err(invalid("artifact_type: a deployed task has a CODE_BUNDLE; a REPORT is of an action"));
        }
        Source::TaskId(id) => {
            let scope = control.scope(&id.org, &id.project, &id.domain)?;
            let spec = task::stored_spec(control, id).await?;
            (scope, bundle_uri(&spec, &format!("task {} {}", id.name, id.version))?)
        }
        Source::AppId(_) => {
            return Err(unimplemented("app_id: apps are not built yet; name an action_attempt_id or a task_id"));
        }
    };
    let expires = match request.expires_in.as_option() {
        Some(length) if length.seconds < 0 || length.nanos < 0 => return Err(invalid("expires_in: is negative")),
        other => other.map(convert::length),
    };
    let link = control.data().download_link(&scope, &uri, expires).await.map_err(wire)?;
    let urls = PreSignedURLs {
        signed_url: vec![link.url],
        expires_at: convert::timestamp(link.expires_at).into(),
        ..Default::default()
    };
    Ok(CreateDownloadLinkResponse { pre_signed_urls: urls.into(), ..Default::default() })
}

/// Where an attempt's report lies. While it runs nothing is recorded yet, but the SDK flushes it to its usual place.
fn report_uri(state: &ActionState, attempt: u32) -> Answer<String> {
    let attempt = match attempt {
        0 => state.attempts.last(),
        number => state.attempts.iter().find(|a| a.number == number),
    };
    let attempt = attempt.ok_or_else(|| not_found(format!("action {} has no such attempt", state.name)))?;
    if !attempt.outputs.report_uri.is_empty() {
        return Ok(attempt.outputs.report_uri.clone());
    }
    let base = state.task().map_or("", |t| t.run_output_base.trim_end_matches('/'));
    Ok(format!("{base}/{}/{}/report.html", state.name, attempt.number))
}

/// The specification that an action runs; empty if it runs none.
async fn stored_spec(control: &Control, state: &ActionState) -> Answer<TaskSpec> {
    let Some(task) = state.task() else { return Ok(TaskSpec::default()) };
    let bytes = control.store().blob(&task.task.digest).await.map_err(wire)?.unwrap_or_default();
    TaskSpec::decode_from_slice(&bytes)
        .map_err(|e| wire(StoreError::Corrupt(format!("the specification of task {}: {e}", task.task.name))))
}

fn bundle_uri(spec: &TaskSpec, of: &str) -> Answer<String> {
    let found = convert::bundle_uris(spec).into_iter().next();
    found.ok_or_else(|| not_found(format!("{of} has no code bundle: its code is in its image")))
}

/// The log of an attempt, once it is known to exist. Attempt 0 means the newest. An attempt that wrote none says why.
async fn open_log(control: &Control, id: Option<&ActionIdentifier>, attempt: u32) -> Answer<LogStream> {
    let (run, action): (RunKey, ActionName) = control.action_id(id)?;
    let state = run::find_action(control, &run, &action).await?;
    let found = match attempt {
        0 => state.attempts.last(),
        number => state.attempts.iter().find(|a| a.number == number),
    };
    let Some(found) = found else {
        return Err(not_found(format!("action {action} has no attempt {attempt}, so there is no log")));
    };
    let at = found.ended_at.unwrap_or_else(|| found.created_at());
    if state.is_tracked() {
        return Ok(said(at, "This action is not run by Aloft but only reported, so its log is where it runs."));
    }
    if state.task().is_some_and(|task| aloft_plane::is_inline(&task.task.task_type)) {
        return Ok(said(at, "This task is done by Aloft itself, without a process, so it writes no log."));
    }
    let id = AttemptId { run, action, attempt: found.number };
    match control.data().tail_logs(&id).await {
        Err(PlaneError::NotFound(_)) if found.phase.is_terminal() => Ok(said(
            at,
            &format!(
                "Attempt {} ended ({}) before it was started, so it wrote no log.",
                found.number,
                found.phase.words()
            ),
        )),
        log => log.map_err(wire),
    }
}

/// A log of one line, which Aloft itself says.
fn said(at: Time, text: &str) -> LogStream {
    let line = LogLine {
        timestamp: convert::timestamp(at).into(),
        message: format!("{text}\n"),
        originator: LogLineOriginator::SYSTEM.into(),
        ..Default::default()
    };
    stream::iter([Ok(vec![line])]).boxed()
}

/// A log with an empty batch whenever it was silent for a while, and UNAVAILABLE at its end when the server stops.
///
/// Clients give up on a silent stream: the SDK's `--follow` cancels it after 30 s to ask whether the action still runs, and
/// then fails on the stream it cancelled. And a clean end would say that there is no more of it.
fn followed(stopped: CancellationToken, log: LogStream) -> impl Stream<Item = Answer<Vec<LogLine>>> + Send + 'static {
    let ended = stopped.clone();
    let tail = stream::once(async move { ended.is_cancelled().then(|| Err(stopping())) });
    let signs = stream::unfold(log, |mut log| async move {
        match tokio::time::timeout(HEARTBEAT, log.next()).await {
            Ok(lines) => lines.map(|lines| (lines.map_err(wire), log)),
            Err(_) => Some((Ok(Vec::new()), log)),
        }
    });
    signs.take_until(stopped.cancelled_owned()).chain(tail.filter_map(futures::future::ready))
}

pub(super) async fn tail_logs(control: Control, request: TailLogsRequest) -> Answer<Messages<TailLogsResponse>> {
    let log = open_log(&control, request.action_id.as_option(), request.attempt).await?;
    let messages = followed(control.stopping().clone(), log).map(|lines| {
        let lines = lines?;
        let logs = if lines.is_empty() { Vec::new() } else { vec![Logs { lines, ..Default::default() }] };
        Ok(TailLogsResponse { logs, ..Default::default() })
    });
    Ok(messages.boxed())
}

pub(super) async fn tail_run_logs(
    control: Control,
    request: workflow::TailLogsRequest,
) -> Answer<Messages<workflow::TailLogsResponse>> {
    let log = open_log(&control, request.action_id.as_option(), request.attempt).await?;
    let messages = followed(control.stopping().clone(), log).map(|lines| {
        let lines = lines?;
        let logs = if lines.is_empty() { Vec::new() } else { vec![RunLogs { lines, ..Default::default() }] };
        Ok(workflow::TailLogsResponse { logs, ..Default::default() })
    });
    Ok(messages.boxed())
}

pub(super) async fn get_image(control: &Control, request: GetImageRequest) -> Answer<GetImageResponse> {
    let name = request.id.as_option().map(|id| id.name.clone()).unwrap_or_default();
    if name.is_empty() {
        return Err(invalid("id.name: is required"));
    }
    let scope = match request.project_id.as_option() {
        Some(id) => control.project_scope(id)?,
        None => return Err(invalid("project_id: is required")),
    };
    let image = control.data().get_image(&scope, &name).await.map_err(wire)?;
    let image = image.ok_or_else(|| not_found(format!("image {name} has not been built here")))?;
    let image = Image {
        id: ImageIdentifier { name, ..Default::default() }.into(),
        fqin: image.fqin,
        build_run: image.build_run.as_ref().map(convert::run_id).into(),
        ..Default::default()
    };
    Ok(GetImageResponse { image: image.into(), ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_silent_log_shows_signs_of_life_and_loses_nothing() {
        let line = LogLine { message: "late\n".to_owned(), ..Default::default() };
        let late = stream::once(async move {
            tokio::time::sleep(HEARTBEAT * 5 / 2).await;
            Ok(vec![line])
        });
        let seen: Vec<_> =
            followed(CancellationToken::new(), late.boxed()).map(|item| item.unwrap().len()).collect().await;
        assert_eq!(seen, [0, 0, 1]);
    }

    #[tokio::test]
    async fn a_log_that_the_server_cuts_off_does_not_end_cleanly() {
        let stopping = CancellationToken::new();
        stopping.cancel();
        let log = followed(stopping, stream::pending().boxed());
        let ends: Vec<_> = log.map(|item| item.unwrap_err().code).collect().await;
        assert_eq!(ends, [connectrpc::ErrorCode::Unavailable]);
    }
}
