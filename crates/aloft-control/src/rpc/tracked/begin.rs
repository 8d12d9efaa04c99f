//! How a tracked run begins.

use aloft_core::{Command, DEFAULT_QUEUE, Relation, RunInfo, RunKey, Seed, TaskSeed};
use aloft_flyteidl2::flyteidl2::{
    common::OffloadedInputData,
    task::RunSpec,
    workflow::{
        CreateRunResponse, CreateTrackedRunRequest, create_run_request,
        create_tracked_run_request::{Id, Task},
    },
};
use aloft_store::Submission;
use connectrpc::RequestContext;

use super::SOURCE;
use crate::{
    Control,
    rpc::{
        convert::{self, Spec},
        error::{Answer, invalid, shortened},
        run,
    },
};

/// What names that people give to tracked runs may not begin with: the platform's own begin so.
const RESERVED: [char; 2] = ['u', 'r'];

pub(in crate::rpc) async fn create_run(
    control: &Control,
    context: &RequestContext,
    request: CreateTrackedRunRequest,
) -> Answer<CreateRunResponse> {
    let run = run_key(control, context, request.id)?;
    control.site(&run.scope).await?;
    let task = request.task.map(|task| match task {
        Task::TaskId(id) => create_run_request::Task::TaskId(id),
        Task::TaskSpec(spec) => create_run_request::Task::TaskSpec(spec),
    });
    let spec = convert::spec(&run::requested_task(control, task).await?)?;
    let input_uri = input_uri(control, &run, request.offloaded_input_data.as_option())?;
    let began = request.run_start_time.as_option();
    let began = began.map(|at| convert::checked_time("run_start_time", at)).transpose()?;
    let start_time = began.unwrap_or_else(|| control.now());

    let mut run_spec = request.run_spec.into_option().unwrap_or_default();
    if !request.labels.is_empty() {
        run_spec.labels.get_or_insert_default().values.extend(request.labels);
    }
    let labels = run_spec.labels.as_option().map(|l| l.values.clone()).unwrap_or_default();
    convert::check_labels("labels", &labels)?;
    run_spec.run_start_time = convert::timestamp(start_time).into();
    let run_blob = convert::own_blob(&run, convert::encoded("run_spec", &run_spec)?);
    let info = RunInfo {
        spec_digest: run_blob.digest.clone(),
        source: SOURCE,
        created_by: Control::anonymous(),
        labels: labels.into_iter().collect(),
        start_time,
        relation: relation(control, &run, &run_spec).await?,
        ..RunInfo::default()
    };
    let task_blob = spec.blob.clone();
    let seed = Seed::Task(task_seed(spec, input_uri, control.data().tracked_base(&run)));
    let command = Command::CreateTracked { seed: Box::new(seed), info: Box::new(info), began };
    run::submit(control, Submission { blobs: vec![task_blob, run_blob], ..Submission::new(run.clone(), command) })
        .await?;
    let (record, root) = run::find_run(control, &run).await?;
    Ok(CreateRunResponse { run: run::to_run(&record, &root).into(), ..Default::default() })
}

fn run_key(control: &Control, context: &RequestContext, id: Option<Id>) -> Answer<RunKey> {
    let id = match id {
        Some(Id::RunId(id)) if id.name.starts_with(RESERVED) => {
            return Err(invalid(format!(
                "run_id.name: {:?} begins with {:?}, which the platform keeps for its own names; choose a name for this \
                 tracked run that begins with neither 'u' nor 'r'",
                shortened(&id.name),
                id.name.chars().next().unwrap_or_default()
            )));
        }
        Some(Id::RunId(id)) => create_run_request::Id::RunId(id),
        Some(Id::ProjectId(id)) => create_run_request::Id::ProjectId(id),
        None => return Err(invalid("id: run_id or project_id is required")),
    };
    run::new_run_key(control, context, Some(&id))
}

/// What an action is whose work is done elsewhere. Nothing of it is queued, cached or given room here.
pub(super) fn task_seed(spec: Spec, input_uri: String, run_output_base: String) -> TaskSeed {
    TaskSeed {
        task: spec.task,
        policy: spec.policy,
        input_uri,
        run_output_base,
        cache: None,
        queue: DEFAULT_QUEUE.to_owned(),
        asks: aloft_core::Asks::default(),
    }
}

fn input_uri(control: &Control, run: &RunKey, data: Option<&OffloadedInputData>) -> Answer<String> {
    match data.map(|d| d.uri.as_str()).filter(|uri| !uri.is_empty()) {
        None => Ok(run::inputs_file(&format!("{}/{}", control.data().tracked_base(run), aloft_core::ROOT_ACTION))),
        Some(uri) if control.data().owns(&run.scope, uri) => Ok(run::inputs_file(uri)),
        Some(uri) => Err(invalid(format!(
            "offloaded_input_data.uri: {} is not in the storage of project {}; upload the inputs through \
             CreateUploadLocation",
            shortened(uri),
            run.scope.project
        ))),
    }
}

/// The run that a tracked one is made from. Where it runs, nothing can be taken over from there.
async fn relation(control: &Control, run: &RunKey, spec: &RunSpec) -> Answer<Option<Relation>> {
    let relation = run::relation(control, run, spec).await?;
    if relation.as_ref().is_some_and(|r| r.recover.is_some()) {
        return Err(invalid(
            "run_spec.relation: a tracked run is carried out elsewhere and cannot take over results here; create it \
             without RELATION_TYPE_RECOVER",
        ));
    }
    Ok(relation)
}
