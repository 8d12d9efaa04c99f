//! `flyteidl2.task.TaskService`: deployed tasks.

use aloft_flyteidl2::flyteidl2::task::{
    DeployTaskRequest, DeployTaskResponse, GetTaskDetailsRequest, GetTaskDetailsResponse, ListTasksRequest,
    ListTasksResponse, ListVersionsRequest, ListVersionsResponse, Task, TaskDetails, TaskIdentifier, TaskMetadata,
    TaskSpec,
    list_tasks_request::{KnownFilter, ScopeBy, known_filter::FilterBy},
    list_versions_response::VersionResponse,
};
use aloft_store::{Cursor, DeployedTask, Field, Filter, ListScope, Op, StoreError, TaskId};
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
    control.check_place(&task_id(control, id)?.scope).await?;
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
        let mut query = list::query(list::Of::Tasks, None)?;
        query.filters.push(equal(Field::Name, &id.name));
        query.limit = 1;
        let scope =
            ListScope { org: id.scope.org.clone(), project: id.scope.project.clone(), domain: id.scope.domain.clone() };
        control.store().list_tasks(&scope, true, &query).await.map_err(wire)?.rows.into_iter().next()
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

fn equal(field: Field, value: &str) -> Filter {
    Filter { field, op: Op::Equal, values: vec![Cursor::Text(value.to_owned())] }
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

pub(super) async fn list(control: &Control, request: ListTasksRequest) -> Answer<ListTasksResponse> {
    let mut query = list::query(list::Of::Tasks, request.request.as_option())?;
    for KnownFilter { filter_by, .. } in &request.known_filters {
        match filter_by {
            Some(FilterBy::DeployedBy(subject)) => query.filters.push(equal(Field::CreatedBy, subject)),
            Some(FilterBy::IsEntrypoint(wanted)) => query.filters.push(Filter {
                field: Field::Entrypoint,
                op: Op::Equal,
                values: vec![Cursor::Int(i64::from(*wanted))],
            }),
            None => {}
        }
    }
    let scope = match &request.scope_by {
        Some(ScopeBy::ProjectId(id)) => {
            ListScope { org: control.org(&id.organization), project: id.name.clone(), domain: id.domain.clone() }
        }
        Some(ScopeBy::Org(org)) => ListScope { org: control.org(org), ..ListScope::default() },
        None => ListScope { org: control.org(""), ..ListScope::default() },
    };
    // Asked for one name, every version is of interest; else each name once, with its newest version.
    let one_name = query.filters.iter().any(|f| f.field == Field::Name && f.op == Op::Equal);
    let page = control.store().list_tasks(&scope, !one_name, &query).await.map_err(wire)?;
    let tasks = page.rows.iter().map(|task| Task {
        task_id: to_wire(&task.id).into(),
        metadata: metadata(task).into(),
        ..Default::default()
    });
    Ok(ListTasksResponse { tasks: tasks.collect(), token: page.next, ..Default::default() })
}

pub(super) async fn list_versions(control: &Control, request: ListVersionsRequest) -> Answer<ListVersionsResponse> {
    let name = request.task_name.as_option().ok_or_else(|| invalid("task_name: is required"))?;
    let mut query = list::query(list::Of::Tasks, request.request.as_option())?;
    query.filters.push(equal(Field::Name, &name.name));
    let scope = ListScope { org: control.org(&name.org), project: name.project.clone(), domain: name.domain.clone() };
    let page = control.store().list_tasks(&scope, false, &query).await.map_err(wire)?;
    let versions = page.rows.iter().map(|task| VersionResponse {
        version: task.id.version.clone(),
        deployed_at: convert::timestamp(task.deployed_at).into(),
        deployed_by: run::created_by(&task.deployed_by).into(),
        ..Default::default()
    });
    Ok(ListVersionsResponse { versions: versions.collect(), token: page.next, ..Default::default() })
}
