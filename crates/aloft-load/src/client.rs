//! Requests as the SDK's controller and the console make them.

use aloft_flyteidl2::flyteidl2::{
    actions::{
        Action as WireAction, EnqueueRequest, EnqueueResponse, WatchForUpdatesRequest, WatchForUpdatesResponse, action,
        watch_for_updates_request, watch_for_updates_response,
    },
    common::{ActionPhase, ListRequest, ProjectIdentifier},
    core::{self, Container, Identifier, KeyValuePair, TaskTemplate, task_template},
    dataproxy::{UploadInputsRequest, UploadInputsResponse},
    task::TaskSpec,
    workflow::{
        CreateRunRequest, CreateRunResponse, GetActionDetailsRequest, GetActionDetailsResponse, ListActionsRequest,
        ListActionsResponse, ListRunsRequest, ListRunsResponse, TaskAction, WatchActionsRequest, WatchActionsResponse,
        create_run_request, list_runs_request,
    },
};
use aloft_sim::{
    door::{CallError, Door, Stream},
    ids::{Place, RunId},
    plane::BUCKET,
    spec,
};
use anyhow::{Result, anyhow};

/// The project that everything is in.
pub(crate) const PROJECT: &str = "flytesnacks";

/// Its domain.
const DOMAIN: &str = "development";

/// What actions do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Whatever the load's own worker does.
    Nothing,
    /// They sleep for an hour on the real server.
    Sleep,
}

/// A client.
#[derive(Clone)]
pub(crate) struct Client {
    door: Door,
    task: TaskSpec,
    inputs: String,
}

fn refused(what: &str, error: CallError) -> anyhow::Error {
    anyhow!("{what}: {error:?}")
}

/// A run of the project.
pub(crate) fn run(name: &str) -> RunId {
    let place = Place { project: PROJECT.to_owned(), domain: DOMAIN.to_owned() };
    RunId { place, name: name.to_owned() }
}

/// The specification of a task as the SDK sends it, of the usual size.
fn task_spec(work: Work) -> TaskSpec {
    let id = Identifier {
        resource_type: core::ResourceType::TASK.into(),
        name: "load.noop".to_owned(),
        version: "f3a1c29e5b7d4860".to_owned(),
        ..Default::default()
    };
    let bundle = format!("{BUCKET}/local/{PROJECT}/{DOMAIN}/uploads/f3a1c29e5b7d4860/fast12345678.tar.gz");
    let args = [
        "a0",
        "--inputs",
        "{{.input}}",
        "--outputs-path",
        "{{.outputPrefix}}",
        "--version",
        "{{.version}}",
        "--raw-data-path",
        "{{.rawOutputDataPrefix}}",
        "--checkpoint-path",
        "{{.checkpointOutputPrefix}}",
        "--prev-checkpoint",
        "{{.prevCheckpointPrefix}}",
        "--run-name",
        "{{.runName}}",
        "--name",
        "{{.actionName}}",
        "--destination",
        ".",
        "--resolver",
        "flyte._internal.resolvers.default.DefaultTaskResolver",
        "mod",
        "load",
        "instance",
        "noop",
    ]; // fmt: skip
    let env =
        |key: &str, value: &str| KeyValuePair { key: key.to_owned(), value: value.to_owned(), ..Default::default() };
    let container = Container {
        args: args.map(str::to_owned).to_vec(),
        env: vec![env("LOG_LEVEL", "30"), env("BUNDLE", &bundle)],
        ..Default::default()
    };
    let template = TaskTemplate {
        id: id.into(),
        r#type: if work == Work::Sleep { "core-sleep" } else { "python" }.to_owned(),
        target: Some(task_template::Target::from(container)),
        ..Default::default()
    };
    TaskSpec { task_template: template.into(), short_name: "noop".to_owned(), ..Default::default() }
}

impl Client {
    /// A client of the server at `url` whose actions do `work`.
    pub(crate) async fn new(url: &str, work: Work) -> Result<Self> {
        let (door, task) = (Door::port(url), task_spec(work));
        let place = Place { project: PROJECT.to_owned(), domain: DOMAIN.to_owned() };
        let request = UploadInputsRequest {
            id: Some(spec::project_id(&place).into()),
            task: Some(task.clone().into()),
            inputs: match work {
                Work::Nothing => Default::default(),
                Work::Sleep => spec::inputs(2).into(),
            },
            ..Default::default()
        };
        let method = "dataproxy.DataProxyService/UploadInputs";
        let uploaded: UploadInputsResponse =
            door.unary(method, &request, &[]).await.map_err(|e| refused("UploadInputs", e))?;
        let inputs = uploaded.offloaded_input_data.into_option().unwrap_or_default().uri;
        Ok(Self { door, task, inputs })
    }

    /// Creates a run.
    pub(crate) async fn create(&self, name: &str) -> Result<()> {
        let mut inputs = aloft_flyteidl2::flyteidl2::common::OffloadedInputData::default();
        inputs.uri.clone_from(&self.inputs);
        let request = CreateRunRequest {
            id: Some(create_run_request::Id::from(spec::run_id(&run(name)))),
            task: Some(self.task.clone().into()),
            input_wrapper: Some(inputs.into()),
            ..Default::default()
        };
        let answer: Result<CreateRunResponse, _> =
            self.door.unary("workflow.RunService/CreateRun", &request, &[]).await;
        answer.map(drop).map_err(|e| refused("CreateRun", e))
    }

    /// Enqueues a child of a run's root.
    pub(crate) async fn enqueue(&self, of: &RunId, name: &str, group: &str) -> Result<()> {
        let task = TaskAction { spec: self.task.clone().into(), ..Default::default() };
        let action = WireAction {
            action_id: spec::action_id(&of.action(name)).into(),
            parent_action_name: Some("a0".to_owned()),
            input_uri: self.inputs.clone(),
            run_output_base: format!("{BUCKET}/local/{PROJECT}/{DOMAIN}/runs/{}", of.name),
            group: group.to_owned(),
            spec: Some(action::Spec::from(task)),
            ..Default::default()
        };
        let request = EnqueueRequest { action: action.into(), ..Default::default() };
        let answer: Result<EnqueueResponse, _> = self.door.unary("actions.ActionsService/Enqueue", &request, &[]).await;
        answer.map(drop).map_err(|e| refused("Enqueue", e))
    }

    /// The first runs of the project, as the console asks for them.
    pub(crate) async fn list_runs(&self, limit: u32) -> Result<usize> {
        let project = ProjectIdentifier { name: PROJECT.to_owned(), domain: DOMAIN.to_owned(), ..Default::default() };
        let request = ListRunsRequest {
            request: ListRequest { limit, ..Default::default() }.into(),
            scope_by: Some(list_runs_request::ScopeBy::from(project)),
            ..Default::default()
        };
        let answer: Result<ListRunsResponse, _> = self.door.unary("workflow.RunService/ListRuns", &request, &[]).await;
        answer.map(|a| a.runs.len()).map_err(|e| refused("ListRuns", e))
    }

    /// The first actions of a run.
    pub(crate) async fn list_actions(&self, of: &RunId, limit: u32) -> Result<usize> {
        let request = ListActionsRequest {
            request: ListRequest { limit, ..Default::default() }.into(),
            run_id: spec::run_id(of).into(),
            ..Default::default()
        };
        let answer: Result<ListActionsResponse, _> =
            self.door.unary("workflow.RunService/ListActions", &request, &[]).await;
        answer.map(|a| a.actions.len()).map_err(|e| refused("ListActions", e))
    }

    /// The details of one action.
    pub(crate) async fn details(&self, of: &RunId, name: &str) -> Result<()> {
        let request =
            GetActionDetailsRequest { action_id: spec::action_id(&of.action(name)).into(), ..Default::default() };
        let answer: Result<GetActionDetailsResponse, _> =
            self.door.unary("workflow.RunService/GetActionDetails", &request, &[]).await;
        answer.map(drop).map_err(|e| refused("GetActionDetails", e))
    }

    /// Watches the children of a run's root, as its parent does.
    pub(crate) async fn watch_children(&self, of: &RunId) -> Result<Children> {
        let id = spec::action_id(&of.action("a0"));
        let request =
            WatchForUpdatesRequest { filter: Some(watch_for_updates_request::Filter::from(id)), ..Default::default() };
        let stream = self.door.stream("actions.ActionsService/WatchForUpdates", &request).await;
        Ok(Children(stream.map_err(|e| refused("WatchForUpdates", e))?))
    }

    /// Watches the tree of a run, as the console does.
    pub(crate) async fn watch_tree(&self, of: &RunId) -> Result<Tree> {
        let request = WatchActionsRequest { run_id: spec::run_id(of).into(), ..Default::default() };
        let stream = self.door.stream("workflow.RunService/WatchActions", &request).await;
        Ok(Tree(stream.map_err(|e| refused("WatchActions", e))?))
    }
}

/// What a watcher heard of one action.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// Its name.
    pub(crate) name: String,
    /// Whether it has succeeded.
    pub(crate) succeeded: bool,
}

/// A watch of a root's children.
pub(crate) struct Children(Stream);

impl Children {
    /// The next word; `None` for a sign of life.
    pub(crate) async fn next(&mut self) -> Result<Option<Told>> {
        let answer: WatchForUpdatesResponse =
            self.0.next().await.map_err(|e| anyhow!("WatchForUpdates ended: {e:?}"))?;
        let Some(watch_for_updates_response::Message::ActionUpdate(update)) = answer.message else { return Ok(None) };
        let name = update.action_id.as_option().map(|id| id.name.clone()).unwrap_or_default();
        let succeeded = update.phase.as_known() == Some(ActionPhase::ACTION_PHASE_SUCCEEDED);
        Ok(Some(Told { name, succeeded }))
    }
}

/// A watch of a run's tree.
pub(crate) struct Tree(Stream);

impl Tree {
    /// The next words; none for a sign of life.
    pub(crate) async fn next(&mut self) -> Result<Vec<Told>> {
        let answer: WatchActionsResponse = self.0.next().await.map_err(|e| anyhow!("WatchActions ended: {e:?}"))?;
        let told = answer.enriched_actions.into_iter().filter_map(|enriched| {
            let action = enriched.action.into_option()?;
            let name = action.id.as_option()?.name.clone();
            let phase = action.status.as_option()?.phase.as_known();
            Some(Told { name, succeeded: phase == Some(ActionPhase::ACTION_PHASE_SUCCEEDED) })
        });
        Ok(told.collect())
    }
}
