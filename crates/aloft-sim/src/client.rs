//! A client: requests as the SDK, the console and a task's controller make them, and every view as plain data.

use std::{collections::HashMap, sync::Arc};

use aloft_core::Phase;
use aloft_flyteidl2::flyteidl2::{
    actions::{
        AbortRequest, AbortResponse, Action as WireAction, EnqueueRequest, EnqueueResponse, SignalRequest,
        SignalResponse, WatchForUpdatesRequest, action, watch_for_updates_request,
    },
    common::{Filter, ListRequest, OffloadedInputData, Sort, filter, sort},
    dataproxy::{UploadInputsRequest, UploadInputsResponse},
    project::{CreateProjectRequest, CreateProjectResponse, Project},
    workflow::{
        AbortActionRequest, AbortActionResponse, AbortQueuedActionRequest, AbortQueuedActionResponse,
        AbortQueuedRunRequest, AbortQueuedRunResponse, AbortRunRequest, AbortRunResponse, CreateRunRequest,
        CreateRunResponse, EnqueueActionRequest, EnqueueActionResponse, GetActionDetailsRequest,
        GetActionDetailsResponse, GetRunDetailsRequest, GetRunDetailsResponse, ListActionsRequest, ListActionsResponse,
        ListRunsRequest, ListRunsResponse, SignalEventRequest, SignalEventResponse, WatchActionDetailsRequest,
        WatchActionsRequest, WatchRequest, WatchRunDetailsRequest, WatchRunsRequest, create_run_request,
        enqueue_action_request, list_runs_request, watch_request, watch_runs_request,
    },
};
use parking_lot::Mutex;

use crate::{
    door::{CallError, Door, Stream},
    elsewhere::{self, ABORT_HERE},
    ids::{ActionId, Name, Place, Request, Reuse, RunId, RunLane},
    lanes::{self, ShownQueue},
    rules::{
        Check,
        answers::{Answer, Reply, rule_9_an_error_is_one_of_the_contract},
        views::rule_1_every_view_can_be_read,
    },
    seen::{Details, Shown},
    signal::Value,
    spec,
    step::{Kind, Work},
};

/// Rows of the largest page that is asked for.
const PAGE: u32 = 1000;

/// A client of the server behind a door.
#[derive(Clone)]
pub struct Client {
    door: Door,
    inputs: Arc<Mutex<HashMap<(Place, u8), OffloadedInputData>>>,
}

/// What a client can watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    /// The children of an action.
    Children(ActionId),
    /// As [`Self::Children`], through the older `StateService`.
    ChildrenOld(ActionId),
    /// The actions of a run.
    Actions(RunId),
    /// One action.
    Action(ActionId),
    /// A run.
    Run(RunId),
    /// The runs of a project and domain.
    Runs(Place),
}

fn page(limit: u32, token: &str) -> ListRequest {
    ListRequest { limit, token: token.to_owned(), ..Default::default() }
}

impl Client {
    /// A client that comes through `door`.
    pub fn new(door: Door) -> Self {
        Self { door, inputs: Arc::default() }
    }

    /// Asks, and waits for the answer. Workers' requests are not a client's.
    ///
    /// # Errors
    /// An answer that is none of the contract's.
    pub async fn ask(&self, request: &Request) -> Check<Answer> {
        match request {
            Request::Create { place, name, work, lane, reuse } => self.create(place, name, work, (lane, reuse)).await,
            Request::Enqueue { action, parent, kind, group, old, queue } => {
                let called = self.enqueue(action, parent, kind, group, *old, queue).await;
                rule_9_an_error_is_one_of_the_contract(called.map(|()| Reply::Nothing))
            }
            Request::Abort { run, action, reason, via } => {
                let called = self.abort(run, action.as_deref(), reason, *via).await;
                rule_9_an_error_is_one_of_the_contract(called.map(|()| Reply::Nothing))
            }
            Request::Signal { action, value, via } => {
                let called = self.signal(action, *value, *via).await;
                rule_9_an_error_is_one_of_the_contract(called.map(|()| Reply::Nothing))
            }
            Request::Queue { name, change } => {
                let called = lanes::change(&self.door, name, *change).await;
                rule_9_an_error_is_one_of_the_contract(called.map(|shown| Reply::Queue(Box::new(shown))))
            }
            Request::Track { place, name, work, start, lane } => {
                let called = elsewhere::begin(&self.door, place, name, work, *start, lane).await;
                rule_9_an_error_is_one_of_the_contract(called.map(|shown| Reply::Run(Box::new(shown))))
            }
            Request::Tell { action, parent, kind, told } => {
                let called = elsewhere::tell(&self.door, action, parent, kind.as_ref(), told).await;
                rule_9_an_error_is_one_of_the_contract(called.map(|()| Reply::Nothing))
            }
            // A worker's or a reconciler's, who is no client.
            Request::Lease { .. } | Request::Report { .. } | Request::TimeOut => Ok(Answer::Lost),
        }
    }

    async fn create(
        &self,
        place: &Place,
        name: &Name,
        work: &Work,
        (lane, reuse): (&RunLane, &Reuse),
    ) -> Check<Answer> {
        let mut header = Vec::new();
        let id = match name {
            Name::Given(name) => {
                let run = RunId { place: place.clone(), name: name.clone() };
                create_run_request::Id::from(spec::run_id(&run))
            }
            Name::ForRequest(id) => {
                header.push(("x-request-id", id.as_str()));
                create_run_request::Id::from(spec::project_id(place))
            }
            Name::Any => create_run_request::Id::from(spec::project_id(place)),
        };
        let request = CreateRunRequest {
            id: Some(id),
            task: Some(spec::task_spec(work).into()),
            input_wrapper: Some(spec::inputs(work.input).into()),
            run_spec: spec::run_spec(lane, reuse).into(),
            ..Default::default()
        };
        let called = self.door.unary::<CreateRunResponse>("workflow.RunService/CreateRun", &request, &header).await;
        match called {
            Ok(response) => {
                let shown = rule_1_every_view_can_be_read(Shown::read(&response.run.action))?;
                Ok(Answer::Done(Reply::Run(Box::new(shown))))
            }
            Err(error) => rule_9_an_error_is_one_of_the_contract(Err(error)),
        }
    }

    async fn enqueue(
        &self,
        id: &ActionId,
        parent: &str,
        kind: &Kind,
        group: &str,
        old: bool,
        queue: &str,
    ) -> Result<(), CallError> {
        let uploaded = match kind {
            Kind::Task(work) => self.uploaded(&id.run.place, work).await?,
            Kind::Trace { .. } | Kind::Condition(_) => OffloadedInputData::default(),
        };
        let (input_uri, hash) = (uploaded.uri, uploaded.inputs_hash);
        let (action_id, parent) = (spec::action_id(id).into(), Some(parent.to_owned()));
        // An empty base is the run's own.
        let (run_output_base, group) = (String::new(), group.to_owned());
        if old {
            let spec = match kind {
                Kind::Task(work) => enqueue_action_request::Spec::from(spec::task_action(work, &hash, queue)),
                Kind::Trace { failed, .. } => enqueue_action_request::Spec::from(spec::trace_action(id, kind, *failed)),
                Kind::Condition(condition) => enqueue_action_request::Spec::from(condition.wire()),
            };
            let request = EnqueueActionRequest {
                action_id,
                parent_action_name: parent,
                input_uri,
                run_output_base,
                group,
                spec: Some(spec),
                ..Default::default()
            };
            let method = "workflow.QueueService/EnqueueAction";
            return self.door.unary::<EnqueueActionResponse>(method, &request, &[]).await.map(drop);
        }
        let spec = match kind {
            Kind::Task(work) => action::Spec::from(spec::task_action(work, &hash, queue)),
            Kind::Trace { failed, .. } => action::Spec::from(spec::trace_action(id, kind, *failed)),
            Kind::Condition(condition) => action::Spec::from(condition.wire()),
        };
        let action = WireAction {
            action_id,
            parent_action_name: parent,
            input_uri,
            run_output_base,
            group,
            spec: Some(spec),
            ..Default::default()
        };
        let request = EnqueueRequest { action: action.into(), ..Default::default() };
        self.door.unary::<EnqueueResponse>("actions.ActionsService/Enqueue", &request, &[]).await.map(drop)
    }

    /// Where the inputs of `work` lie in a project: uploaded as a parent does, once.
    async fn uploaded(&self, place: &Place, work: &Work) -> Result<OffloadedInputData, CallError> {
        let key = (place.clone(), work.input);
        if let Some(found) = self.inputs.lock().get(&key) {
            return Ok(found.clone());
        }
        let request = UploadInputsRequest {
            id: Some(spec::project_id(place).into()),
            task: Some(spec::task_spec(work).into()),
            inputs: spec::inputs(work.input).into(),
            ..Default::default()
        };
        let method = "dataproxy.DataProxyService/UploadInputs";
        let response = self.door.unary::<UploadInputsResponse>(method, &request, &[]).await?;
        let uploaded = response.offloaded_input_data.into_option().unwrap_or_default();
        self.inputs.lock().insert(key, uploaded.clone());
        Ok(uploaded)
    }

    async fn abort(&self, run: &RunId, action: Option<&str>, reason: &str, via: u8) -> Result<(), CallError> {
        let door = &self.door;
        let Some(action) = action else {
            if via == ABORT_HERE {
                return elsewhere::abort(door, run, reason).await;
            }
            let (run_id, reason) = (spec::run_id(run).into(), Some(reason.to_owned()));
            if via == 0 {
                let request = AbortRunRequest { run_id, reason, ..Default::default() };
                return door.unary::<AbortRunResponse>("workflow.RunService/AbortRun", &request, &[]).await.map(drop);
            }
            let request = AbortQueuedRunRequest { run_id, reason, ..Default::default() };
            let method = "workflow.QueueService/AbortQueuedRun";
            return door.unary::<AbortQueuedRunResponse>(method, &request, &[]).await.map(drop);
        };
        let action_id = spec::action_id(&run.action(action)).into();
        match via {
            0 => {
                let request = AbortActionRequest { action_id, reason: reason.to_owned(), ..Default::default() };
                door.unary::<AbortActionResponse>("workflow.RunService/AbortAction", &request, &[]).await.map(drop)
            }
            1 => {
                let request = AbortRequest { action_id, reason: Some(reason.to_owned()), ..Default::default() };
                door.unary::<AbortResponse>("actions.ActionsService/Abort", &request, &[]).await.map(drop)
            }
            _ => {
                let reason = Some(reason.to_owned());
                let request = AbortQueuedActionRequest { action_id, reason, ..Default::default() };
                let method = "workflow.QueueService/AbortQueuedAction";
                door.unary::<AbortQueuedActionResponse>(method, &request, &[]).await.map(drop)
            }
        }
    }

    async fn signal(&self, id: &ActionId, value: Value, via: u8) -> Result<(), CallError> {
        let action_id = spec::action_id(id).into();
        if via == 0 {
            let request = SignalEventRequest { action_id, payload: value.payload().into(), ..Default::default() };
            let method = "workflow.RunService/SignalEvent";
            return self.door.unary::<SignalEventResponse>(method, &request, &[]).await.map(drop);
        }
        let request = SignalRequest { action_id, value: value.literal().into(), ..Default::default() };
        self.door.unary::<SignalResponse>("actions.ActionsService/Signal", &request, &[]).await.map(drop)
    }

    /// How a queue stands.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn queue(&self, name: &str) -> Check<ShownQueue> {
        rule_1_every_view_can_be_read(lanes::get(&self.door, name).await)
    }

    /// Makes a project.
    ///
    /// # Errors
    /// If it was refused.
    pub async fn create_project(&self, id: &str) -> Check {
        let project = Project { id: id.to_owned(), name: id.to_owned(), ..Default::default() };
        let request = CreateProjectRequest { project: project.into(), ..Default::default() };
        let method = "project.ProjectService/CreateProject";
        rule_1_every_view_can_be_read(self.door.unary::<CreateProjectResponse>(method, &request, &[]).await).map(drop)
    }

    /// `GetActionDetails`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn details(&self, id: &ActionId) -> Check<Details> {
        let request = GetActionDetailsRequest { action_id: spec::action_id(id).into(), ..Default::default() };
        let method = "workflow.RunService/GetActionDetails";
        let response =
            rule_1_every_view_can_be_read(self.door.unary::<GetActionDetailsResponse>(method, &request, &[]).await)?;
        rule_1_every_view_can_be_read(Details::read(&response.details))
    }

    /// `GetRunDetails`: its root.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn run(&self, id: &RunId) -> Check<Details> {
        let request = GetRunDetailsRequest { run_id: spec::run_id(id).into(), ..Default::default() };
        let method = "workflow.RunService/GetRunDetails";
        let response =
            rule_1_every_view_can_be_read(self.door.unary::<GetRunDetailsResponse>(method, &request, &[]).await)?;
        rule_1_every_view_can_be_read(Details::read(&response.details.action))
    }

    /// As [`Self::run`], by the service that has only runs that are carried out elsewhere; `None` if it does not have it.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn run_elsewhere(&self, id: &RunId) -> Check<Option<Details>> {
        match elsewhere::root(&self.door, id).await {
            Err(CallError::Refused(r)) if r.code == "not_found" => Ok(None),
            read => rule_1_every_view_can_be_read(read).map(Some),
        }
    }

    /// `ListActions`, the whole list.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn actions(&self, run: &RunId) -> Check<Vec<Shown>> {
        self.actions_page(run, page(PAGE, "")).await.map(|(rows, _)| rows)
    }

    async fn actions_page(&self, run: &RunId, page: ListRequest) -> Check<(Vec<Shown>, String)> {
        let request =
            ListActionsRequest { run_id: spec::run_id(run).into(), request: page.into(), ..Default::default() };
        let method = "workflow.RunService/ListActions";
        let response =
            rule_1_every_view_can_be_read(self.door.unary::<ListActionsResponse>(method, &request, &[]).await)?;
        let rows =
            response.actions.iter().map(|a| rule_1_every_view_can_be_read(Shown::read(a))).collect::<Check<_>>()?;
        Ok((rows, response.token))
    }

    /// `ListActions` in pages of `limit` rows, sorted by `key`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn action_pages(&self, run: &RunId, limit: u32, key: &str) -> Check<Vec<Vec<Shown>>> {
        let mut pages = Vec::new();
        let mut token = String::new();
        loop {
            let sort = Sort { key: key.to_owned(), direction: sort::Direction::ASCENDING.into(), ..Default::default() };
            let mut request = page(limit, &token);
            request.sort_by = sort.into();
            let (rows, next) = self.actions_page(run, request).await?;
            // A token that leads nowhere would go on for ever.
            let over = next.is_empty() || rows.is_empty();
            pages.push(rows);
            if over {
                return Ok(pages);
            }
            token = next;
        }
    }

    /// `ListActions` of those in `phase`, the oldest first.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn actions_in(&self, run: &RunId, phase: Phase) -> Check<Vec<Shown>> {
        let mut request = page(PAGE, "");
        request.filters.push(Filter {
            function: filter::Function::EQUAL.into(),
            field: "phase".to_owned(),
            values: vec![phase.number().to_string()],
            ..Default::default()
        });
        self.actions_page(run, request).await.map(|(rows, _)| rows)
    }

    /// `ListRuns` of a project and domain: their roots.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn runs(&self, place: &Place) -> Check<Vec<Shown>> {
        self.listed_runs(place, page(PAGE, "")).await
    }

    /// `ListRuns` of those that were made from the run called `name`.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn runs_from(&self, place: &Place, name: &str) -> Check<Vec<Shown>> {
        let mut request = page(PAGE, "");
        request.filters.push(Filter {
            function: filter::Function::EQUAL.into(),
            field: "related_to".to_owned(),
            values: vec![name.to_owned()],
            ..Default::default()
        });
        self.listed_runs(place, request).await
    }

    async fn listed_runs(&self, place: &Place, page: ListRequest) -> Check<Vec<Shown>> {
        let request = ListRunsRequest {
            request: page.into(),
            scope_by: Some(list_runs_request::ScopeBy::from(spec::project_id(place))),
            ..Default::default()
        };
        let response = rule_1_every_view_can_be_read(
            self.door.unary::<ListRunsResponse>("workflow.RunService/ListRuns", &request, &[]).await,
        )?;
        response.runs.iter().map(|run| rule_1_every_view_can_be_read(Shown::read(&run.action))).collect()
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub async fn watch(&self, watched: &Watched) -> Check<Stream> {
        let door = &self.door;
        rule_1_every_view_can_be_read(match watched {
            Watched::Children(parent) => {
                let filter = watch_for_updates_request::Filter::from(spec::action_id(parent));
                let request = WatchForUpdatesRequest { filter: Some(filter), ..Default::default() };
                door.stream("actions.ActionsService/WatchForUpdates", &request).await
            }
            Watched::ChildrenOld(parent) => {
                let filter = watch_request::Filter::from(spec::action_id(parent));
                let request = WatchRequest { filter: Some(filter), ..Default::default() };
                door.stream("workflow.StateService/Watch", &request).await
            }
            Watched::Actions(run) => {
                let request = WatchActionsRequest { run_id: spec::run_id(run).into(), ..Default::default() };
                door.stream("workflow.RunService/WatchActions", &request).await
            }
            Watched::Action(id) => {
                let request = WatchActionDetailsRequest { action_id: spec::action_id(id).into(), ..Default::default() };
                door.stream("workflow.RunService/WatchActionDetails", &request).await
            }
            Watched::Run(run) => {
                let request = WatchRunDetailsRequest { run_id: spec::run_id(run).into(), ..Default::default() };
                door.stream("workflow.RunService/WatchRunDetails", &request).await
            }
            Watched::Runs(place) => {
                let target = watch_runs_request::Target::from(spec::project_id(place));
                let request = WatchRunsRequest { target: Some(target), ..Default::default() };
                door.stream("workflow.RunService/WatchRuns", &request).await
            }
        })
    }
}
