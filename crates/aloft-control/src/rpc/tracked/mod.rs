//! `flyteidl2.workflow.TrackedRunService`: runs that are carried out elsewhere and reported.
//!
//! They are runs in the same log as any other, so `RunService` shows them too; what this service shows are only they.

mod begin;
mod failure;
mod report;

use std::sync::Arc;

use aloft_core::RunKey;
use aloft_flyteidl2::flyteidl2::{
    common::{Filter as WireFilter, filter::Function},
    workflow::{
        AbortRunRequest, AbortRunResponse, GetActionDetailsRequest, GetActionDetailsResponse, GetRunDetailsRequest,
        GetRunDetailsResponse, ListActionsRequest, ListActionsResponse, ListRunsRequest, ListRunsResponse, RunSource,
        WatchActionDetailsRequest, WatchActionDetailsResponse, WatchActionsRequest, WatchActionsResponse,
        WatchRunDetailsRequest, WatchRunDetailsResponse, WatchRunsRequest, WatchRunsResponse,
    },
};
use aloft_store::{Field, Op, RunRecord};
use buffa::EnumValue;

pub(super) use self::{begin::create_run, report::report_actions};
use super::{
    actions::Messages,
    error::{Answer, invalid, not_found},
    list, run, watch,
};
use crate::Control;

/// What every tracked run has as its source, and no other run.
const SOURCE: i32 = RunSource::RUN_SOURCE_TRACKED as i32;

/// The source of a run that is carried out here.
pub(super) fn source_here(source: EnumValue<RunSource>) -> Answer<i32> {
    match source.to_i32() {
        SOURCE => Err(invalid(
            "source: RUN_SOURCE_TRACKED is for runs that are carried out elsewhere; create those with \
             TrackedRunService.CreateRun, or name another source",
        )),
        source => Ok(source),
    }
}

/// The record of a run that must be a tracked one.
async fn tracked(control: &Control, run: &RunKey) -> Answer<Arc<RunRecord>> {
    let record = run::find_record(control, run).await?;
    if record.info.source == SOURCE {
        return Ok(record);
    }
    Err(not_found(format!(
        "run {} is not a tracked run: it is carried out by Aloft itself, and RunService has it",
        run.name
    )))
}

pub(super) async fn get_run_details(control: &Control, request: GetRunDetailsRequest) -> Answer<GetRunDetailsResponse> {
    tracked(control, &control.run_id(request.run_id.as_option())?).await?;
    run::get_run_details(control, request).await
}

pub(super) async fn get_action_details(
    control: &Control,
    request: GetActionDetailsRequest,
) -> Answer<GetActionDetailsResponse> {
    tracked(control, &control.action_id(request.action_id.as_option())?.0).await?;
    run::get_action_details(control, request).await
}

pub(super) async fn list_actions(control: &Control, request: ListActionsRequest) -> Answer<ListActionsResponse> {
    tracked(control, &control.run_id(request.run_id.as_option())?).await?;
    list::list_actions(control, request).await
}

pub(super) async fn list_runs(control: &Control, mut request: ListRunsRequest) -> Answer<ListRunsResponse> {
    let only = WireFilter {
        function: Function::EQUAL.into(),
        field: "run_source".to_owned(),
        values: vec![SOURCE.to_string()],
        ..Default::default()
    };
    request.request.get_or_insert_default().filters.push(only);
    list::list_runs(control, request).await
}

/// Marks the run as aborted. Nothing stops it where it runs; its reporter hears of it when it reports again.
pub(super) async fn abort_run(control: &Control, request: AbortRunRequest) -> Answer<AbortRunResponse> {
    tracked(control, &control.run_id(request.run_id.as_option())?).await?;
    run::abort_run(control, request).await
}

pub(super) async fn watch_run_details(
    control: Control,
    request: WatchRunDetailsRequest,
) -> Answer<Messages<WatchRunDetailsResponse>> {
    tracked(&control, &control.run_id(request.run_id.as_option())?).await?;
    watch::run_details(control, request).await
}

pub(super) async fn watch_action_details(
    control: Control,
    request: WatchActionDetailsRequest,
) -> Answer<Messages<WatchActionDetailsResponse>> {
    tracked(&control, &control.action_id(request.action_id.as_option())?.0).await?;
    watch::action_details(control, request).await
}

pub(super) async fn watch_actions(
    control: Control,
    request: WatchActionsRequest,
) -> Answer<Messages<WatchActionsResponse>> {
    tracked(&control, &control.run_id(request.run_id.as_option())?).await?;
    watch::actions(control, request).await
}

pub(super) async fn watch_runs(control: Control, request: WatchRunsRequest) -> Answer<Messages<WatchRunsResponse>> {
    let only = list::number(Field::Source, Op::Equal, [i64::from(SOURCE)]);
    watch::runs_that(control, request, vec![only]).await
}
