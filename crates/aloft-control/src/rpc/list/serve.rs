//! `ListRuns` and `ListActions`.

use aloft_flyteidl2::flyteidl2::workflow::{
    ListActionsRequest, ListActionsResponse, ListRunsRequest, ListRunsResponse, list_runs_request::ScopeBy,
};
use aloft_store::{Field, Filter, Listed, Op};

use super::super::{
    convert,
    error::{Answer, wire},
    run,
};
use crate::Control;

pub(in super::super) async fn list_runs(control: &Control, request: ListRunsRequest) -> Answer<ListRunsResponse> {
    let mut query = super::query(Listed::Runs, request.request.as_option())?;
    let mut only = |field, value: &str| query.filters.push(Filter::equal(field, value));
    let scope = match &request.scope_by {
        Some(ScopeBy::Org(org)) => super::scope(control.org(org), "", ""),
        Some(ScopeBy::ProjectId(id)) => super::scope(control.org(&id.organization), &id.name, &id.domain),
        Some(ScopeBy::TaskName(task)) => {
            only(Field::TaskName, &task.name);
            super::scope(control.org(&task.org), &task.project, &task.domain)
        }
        Some(ScopeBy::TaskId(task)) => {
            only(Field::TaskName, &task.name);
            only(Field::TaskVersion, &task.version);
            super::scope(control.org(&task.org), &task.project, &task.domain)
        }
        Some(ScopeBy::TriggerName(trigger)) => {
            only(Field::TriggerName, &trigger.name);
            if !trigger.task_name.is_empty() {
                only(Field::TriggerTask, &trigger.task_name);
            }
            super::scope(control.org(&trigger.org), &trigger.project, &trigger.domain)
        }
        None => super::scope(control.org(""), "", ""),
    };
    if request.paused_actions_only {
        query.filters.push(Filter { field: Field::PausedActions, op: Op::Exists, values: Vec::new() });
    }
    let page = control.store().list_runs(&scope, &query).await.map_err(wire)?;
    let runs = page.rows.iter().map(|row| run::to_run(&row.run, &row.root)).collect();
    Ok(ListRunsResponse { runs, token: page.next, ..Default::default() })
}

pub(in super::super) async fn list_actions(
    control: &Control,
    request: ListActionsRequest,
) -> Answer<ListActionsResponse> {
    let run = control.run_id(request.run_id.as_option())?;
    let record = run::find_record(control, &run).await?;
    let query = super::query(Listed::Actions, request.request.as_option())?;
    let page = control.store().list_actions(&run, &query).await.map_err(wire)?;
    let actions = page.rows.iter().map(|state| convert::action(&record, state)).collect();
    Ok(ListActionsResponse { actions, token: page.next, ..Default::default() })
}
