//! `flyteidl2.dataproxy.DataProxyService`, `flyteidl2.workflow.RunLogsService` and
//! `flyteidl2.imagebuilder.ImageService`: whose data it is is decided here, the data plane does the rest.

use aloft_core::{ActionName, ActionState, RunKey};
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
    logs::dataplane::LogLine,
    task::TaskSpec,
    workflow::{self, tail_logs_response::Logs as RunLogs},
};
use aloft_plane::{AttemptId, LogStream};
use buffa::Message as _;
use connectrpc::{ConnectError, ErrorCode};
use futures::{Stream, StreamExt as _, stream};
use tokio_util::sync::CancellationToken;

use super::{
    actions::Messages,
    convert,
    error::{Answer, invalid, not_found, stopping, unimplemented, wire},
    run, task,
    watch::HEARTBEAT,
};
use crate::Control;

pub(super) async fn create_upload_location(
    control: &Control,
    request: CreateUploadLocationRequest,
) -> Answer<CreateUploadLocationResponse> {
    let scope = control.scope(&request.org, &request.project, &request.domain)?;
    control.check_place(&scope).await?;
    control.data().create_upload_location(&scope, request).await.map_err(wire)
}

pub(super) async fn upload_inputs(control: &Control, request: UploadInputsRequest) -> Answer<UploadInputsResponse> {
    let scope = match &request.id {
        Some(Id::RunId(id)) => control.scope(&id.org, &id.project, &id.domain)?,
        Some(Id::ProjectId(id)) => control.project_scope(id)?,
        None => return Err(invalid("id: run_id or project_id is required")),
    };
    control.check_place(&scope).await?;
    let ignored = match &request.task {
        Some(Task::TaskSpec(spec)) => ignored_inputs(spec),
        Some(Task::TaskId(id)) => ignored_inputs(&task::stored_spec(control, id).await?),
        Some(Task::TriggerName(_)) => return Err(unimplemented("trigger_name: triggers are not built yet")),
        None => return Err(invalid("task: task_spec or task_id is required")),
    };
    let inputs = request.inputs.into_option().unwrap_or_default();
    let offloaded = control.data().upload_inputs(&scope, inputs, &ignored).await.map_err(wire)?;
    Ok(UploadInputsResponse { offloaded_input_data: offloaded.into(), ..Default::default() })
}

fn ignored_inputs(spec: &TaskSpec) -> Vec<String> {
    let metadata = spec.task_template.as_option().and_then(|t| t.metadata.as_option());
    metadata.map(|m| m.cache_ignore_input_vars.clone()).unwrap_or_default()
}

pub(super) async fn get_action_data(control: &Control, request: GetActionDataRequest) -> Answer<GetActionDataResponse> {
    let (run, action) = control.action_id(request.action_id.as_option())?;
    let state = run::find_action(control, &run, &action).await?;
    let (inputs_uri, outputs_uri) = run::data_uris(control, &run, &state);
    let (inputs, outputs) = control.data().read_data(&run.scope, &inputs_uri, &outputs_uri).await.map_err(wire)?;
    Ok(GetActionDataResponse {
        inputs: inputs.into(),
        outputs: outputs.into(),
        inputs_uri,
        outputs_uri,
        ..Default::default()
    })
}

pub(super) async fn create_download_link(
    control: &Control,
    request: CreateDownloadLinkRequest,
) -> Answer<CreateDownloadLinkResponse> {
    let Some(Source::ActionAttemptId(id)) = &request.source else {
        return Err(match &request.source {
            Some(Source::TaskId(_) | Source::AppId(_)) => {
                unimplemented("source: links for deployed tasks and apps are not built yet; name an action_attempt_id")
            }
            _ => invalid("action_attempt_id: is required"),
        });
    };
    let (run, action) = control.action_id(id.action_id.as_option())?;
    let state = run::find_action(control, &run, &action).await?;
    let uri = match request.artifact_type.as_known() {
        Some(ArtifactType::ARTIFACT_TYPE_REPORT) => report_uri(&state, id.attempt)?,
        Some(ArtifactType::ARTIFACT_TYPE_CODE_BUNDLE) => bundle_uri(control, &run, &state).await?,
        _ => return Err(invalid("artifact_type: must be REPORT or CODE_BUNDLE")),
    };
    let expires = request.expires_in.as_option().map(convert::length);
    let link = control.data().download_link(&run.scope, &uri, expires).await.map_err(wire)?;
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

async fn bundle_uri(control: &Control, run: &RunKey, state: &ActionState) -> Answer<String> {
    let digest = state.task().map(|t| t.task.digest.clone()).unwrap_or_default();
    let bytes = control.store().blob(&digest).await.map_err(wire)?.unwrap_or_default();
    let spec = TaskSpec::decode_from_slice(&bytes).unwrap_or_default();
    let found = convert::bundle_uris(&spec).into_iter().next();
    found.ok_or_else(|| not_found(format!("run {} has no code bundle: its code is in its image", run.name)))
}

/// The log of an attempt, once it is known to exist. Attempt 0 means the newest.
async fn open_log(control: &Control, id: Option<&ActionIdentifier>, attempt: u32) -> Answer<LogStream> {
    let (run, action): (RunKey, ActionName) = control.action_id(id)?;
    let state = run::find_action(control, &run, &action).await?;
    if state.is_tracked() {
        return Err(ConnectError::new(
            ErrorCode::FailedPrecondition,
            format!("action {action} is not run by Aloft but only reported: its output is where it runs"),
        ));
    }
    let number = if attempt == 0 { state.attempts.last().map_or(0, |a| a.number) } else { attempt };
    if !state.attempts.iter().any(|a| a.number == number) {
        return Err(not_found(format!("action {action} has no attempt {attempt}, so there is no log")));
    }
    control.data().tail_logs(&AttemptId { run, action, attempt: number }).await.map_err(wire)
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
