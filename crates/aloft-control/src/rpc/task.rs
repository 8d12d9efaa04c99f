//! `flyteidl2.task.TaskService`: deployed tasks.

use aloft_flyteidl2::flyteidl2::task::{
    DeployTaskRequest, DeployTaskResponse, GetTaskDetailsRequest, GetTaskDetailsResponse, LatestRunSummary,
    ListTasksRequest, ListTasksResponse, ListVersionsRequest, ListVersionsResponse, Task, TaskDetails, TaskIdentifier,
    TaskMetadata, TaskSpec, TaskSummary,
    list_tasks_request::{KnownFilter, ScopeBy, known_filter::FilterBy},
    list_tasks_response::ListTasksMetadata,
    list_versions_response::VersionResponse,
};
use aloft_store::{DeployedTask, Field, Filter, LatestRun, ListQuery, Listed, Op, StoreError, TaskId, TaskRow};
use buffa::Message as _;
use connectrpc::{ConnectError, ErrorCode};

use super::{
    convert,
    error::{Answer, invalid, not_found, unimplemented, wire},
    list, run,
};
use crate::Control;

fn task_id(control: &Control, id: &TaskIdentifier) -> Answer<TaskId> {
    if id.name.is_empty() || id.name.len() > 255 {
        return Err(invalid("task_id.name: must have 1 to 255 bytes"));
    }
    if id.version.len() > 255 {
        return Err(invalid("task_id.version: is longer than 255 bytes"));
    }
    let scope = control.scope(&id.org, &id.project, &id.domain)?;
    Ok(TaskId { scope, name: id.name.clone(), version: id.version.clone() })
}

fn to_wire(id: &TaskId) -> TaskIdentifier {
    TaskIdentifier {
        org: id.scope.org.clone(),
        project: id.scope.project.clone(),
        domain: id.scope.domain.clone(),
        name: id.name.clone(),
        version: id.version.clone(),
        ..Default::default()
    }
}

fn metadata(task: &DeployedTask) -> TaskMetadata {
    TaskMetadata {
        deployed_by: run::created_by(&task.deployed_by).into(),
        short_name: task.short_name.clone(),
        deployed_at: convert::timestamp(task.deployed_at).into(),
        environment_name: task.environment.clone(),
        ..Default::default()
    }
}

impl Control {
    /// Deploys a task of the platform itself, such as `build-image`; again with the same version changes nothing.
    ///
    /// # Errors
    /// A sentence, if the specification is wrong or the store cannot be written.
    pub async fn deploy_system_task(&self, id: TaskIdentifier, spec: TaskSpec) -> Result<(), String> {
        match put(self, &id, &spec).await {
            Ok(_) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Stores a version of a task; `false` if it exists.
async fn put(control: &Control, id: &TaskIdentifier, spec: &TaskSpec) -> Answer<bool> {
    let id = task_id(control, id)?;
    if id.version.is_empty() {
        return Err(invalid("task_id.version: is required"));
    }
    let stored = convert::spec(spec)?;
    let template_metadata = spec.task_template.as_option().and_then(|t| t.metadata.as_option());
    let task = DeployedTask {
        id,
        digest: stored.task.digest,
        short_name: stored.task.short_name,
        environment: stored.task.environment,
        entrypoint: template_metadata.is_some_and(|m| m.is_entrypoint),
        deployed_at: control.now(),
        deployed_by: Control::anonymous(),
    };
    control.store().put_task(task, stored.blob).await.map_err(wire)
}

pub(super) async fn deploy(control: &Control, request: DeployTaskRequest) -> Answer<DeployTaskResponse> {
    let id = request.task_id.as_option().ok_or_else(|| invalid("task_id: is required"))?;
    let spec = request.spec.as_option().ok_or_else(|| invalid("spec: is required"))?;
    if let Some(trigger) = request.triggers.first() {
        return Err(unimplemented(format!(
            "triggers: triggers are not built yet, so {:?} would never fire; deploy the task without it",
            trigger.name
        )));
    }
    control.site(&task_id(control, id)?.scope).await?;
    if put(control, id, spec).await? {
        Ok(DeployTaskResponse::default())
    } else {
        let message = format!("task {} version {} exists already; deploy another version", id.name, id.version);
        Err(ConnectError::new(ErrorCode::AlreadyExists, message))
    }
}

/// The deployed task a request names; without a version, the newest.
async fn find(control: &Control, id: &TaskIdentifier) -> Answer<DeployedTask> {
    let id = task_id(control, id)?;
    let found = if id.version.is_empty() {
        let query = ListQuery::newest(vec![Filter::equal(Field::Name, &id.name)], 1);
        let scope = list::scope(id.scope.org.clone(), &id.scope.project, &id.scope.domain);
        let list = control.store().list_tasks(&scope, true, &query).await.map_err(wire)?;
        list.page.rows.into_iter().next().map(|row| row.task)
    } else {
        control.store().task(&id).await.map_err(wire)?
    };
    found.ok_or_else(|| {
        not_found(format!(
            "task {} {}is not deployed in project {}, domain {}",
            id.name,
            if id.version.is_empty() { String::new() } else { format!("version {} ", id.version) },
            id.scope.project,
            id.scope.domain
        ))
    })
}

async fn load_spec(control: &Control, task: &DeployedTask) -> Answer<TaskSpec> {
    let bytes = control.store().blob(&task.digest).await.map_err(wire)?.unwrap_or_default();
    TaskSpec::decode_from_slice(&bytes)
        .map_err(|e| wire(StoreError::Corrupt(format!("the specification of task {}: {e}", task.id.name))))
}

/// The specification of a deployed task.
pub(super) async fn stored_spec(control: &Control, id: &TaskIdentifier) -> Answer<TaskSpec> {
    let task = find(control, id).await?;
    load_spec(control, &task).await
}

pub(super) async fn get_details(control: &Control, request: GetTaskDetailsRequest) -> Answer<GetTaskDetailsResponse> {
    let id = request.task_id.as_option().ok_or_else(|| invalid("task_id: is required"))?;
    let task = find(control, id).await?;
    let details = TaskDetails {
        task_id: to_wire(&task.id).into(),
        metadata: metadata(&task).into(),
        spec: load_spec(control, &task).await?.into(),
        ..Default::default()
    };
    Ok(GetTaskDetailsResponse { details: details.into(), ..Default::default() })
}

fn latest_run(run: &LatestRun) -> LatestRunSummary {
    LatestRunSummary {
        run_id: convert::run_id(&run.run).into(),
        run_time: convert::timestamp(run.at).into(),
        phase: convert::phase(run.phase).into(),
        root_task_name: run.root_task.clone(),
        ..Default::default()
    }
}

pub(super) async fn list(control: &Control, request: ListTasksRequest) -> Answer<ListTasksResponse> {
    let mut query = list::query(Listed::Tasks, request.request.as_option())?;
    for KnownFilter { filter_by, .. } in &request.known_filters {
        match filter_by {
            Some(FilterBy::DeployedBy(subject)) => query.filters.push(Filter::equal(Field::CreatedBy, subject)),
            Some(FilterBy::IsEntrypoint(wanted)) => {
                query.filters.push(list::number(Field::Entrypoint, Op::Equal, [i64::from(*wanted)]));
            }
            None => {}
        }
    }
    let scope = match &request.scope_by {
        Some(ScopeBy::ProjectId(id)) => list::scope(control.org(&id.organization), &id.name, &id.domain),
        Some(ScopeBy::Org(org)) => list::scope(control.org(org), "", ""),
        None => list::scope(control.org(""), "", ""),
    };
    // Asked for one name, every version is of interest; else each name once, with its newest version.
    let one_name = query.filters.iter().any(|f| f.field == Field::Name && f.op == Op::Equal);
    let found = control.store().list_tasks(&scope, !one_name, &query).await.map_err(wire)?;
    let tasks = found.page.rows.iter().map(|TaskRow { task, latest_run: run }| {
        let summary = run.as_ref().map(|r| TaskSummary { latest_run: latest_run(r).into(), ..Default::default() });
        Task {
            task_id: to_wire(&task.id).into(),
            metadata: metadata(task).into(),
            task_summary: summary.into(),
            ..Default::default()
        }
    });
    let metadata = ListTasksMetadata {
        total: u32::try_from(found.total).unwrap_or(u32::MAX),
        filtered_total: u32::try_from(found.filtered).unwrap_or(u32::MAX),
        ..Default::default()
    };
    Ok(ListTasksResponse {
        tasks: tasks.collect(),
        token: found.page.next,
        metadata: metadata.into(),
        ..Default::default()
    })
}

pub(super) async fn list_versions(control: &Control, request: ListVersionsRequest) -> Answer<ListVersionsResponse> {
    let name = request.task_name.as_option().ok_or_else(|| invalid("task_name: is required"))?;
    let mut query = list::query(Listed::Versions, request.request.as_option())?;
    query.filters.push(Filter::equal(Field::Name, &name.name));
    let scope = list::scope(control.org(&name.org), &name.project, &name.domain);
    let found = control.store().list_tasks(&scope, false, &query).await.map_err(wire)?;
    let versions = found.page.rows.iter().map(|TaskRow { task, latest_run: run }| VersionResponse {
        version: task.id.version.clone(),
        deployed_at: convert::timestamp(task.deployed_at).into(),
        deployed_by: run::created_by(&task.deployed_by).into(),
        latest_run: run.as_ref().map(latest_run).into(),
        ..Default::default()
    });
    Ok(ListVersionsResponse { versions: versions.collect(), token: found.page.next, ..Default::default() })
}
