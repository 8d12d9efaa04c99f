//! Runs that are carried out elsewhere: what their reporters say, and how it travels.

use aloft_core::Time;
use aloft_flyteidl2::{
    flyteidl2::{
        common::ActionPhase,
        task::OutputReferences,
        workflow::{
            AbortRunRequest, AbortRunResponse, ActionEvent, CreateRunResponse, CreateTrackedRunRequest, ErrorInfo,
            GetRunDetailsRequest, GetRunDetailsResponse, ReportTrackedActionsRequest, ReportTrackedActionsResponse,
            TaskAction, TraceAction, TrackedActionUpdate, create_tracked_run_request, error_info,
            tracked_action_update::Spec,
        },
    },
    google::rpc::Status,
};
use serde::{Deserialize, Serialize};

use crate::{
    door::{CallError, Door, Refused},
    ids::{ActionId, Name, Place, RAISED, Reuse, RunId, RunLane},
    model::function,
    seen::{Details, Shown},
    spec,
    step::{Kind, Work},
};

/// Through which service a run is aborted: the one for runs that are carried out elsewhere.
pub const ABORT_HERE: u8 = 9;

/// What a reporter who stopped an attempt gives as its reason.
pub const STOPPED: &str = "stopped where it ran";

/// What a reporter says, by numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Which attempt.
    pub attempt: u8,
    /// Its count within the attempt.
    pub version: u8,
    /// How far it has come.
    pub stage: Stage,
    /// How long ago, in milliseconds; `None` if it does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ago: Option<i16>,
    /// Whether it names outputs.
    #[serde(default)]
    pub wrote: bool,
}

/// How far an attempt has come, as its reporter says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// It waits.
    Queued,
    /// It waits for room.
    Waiting,
    /// It is being started.
    Initializing,
    /// It runs.
    Running,
    /// It succeeded.
    Succeeded,
    /// It failed.
    Failed {
        /// Whether another attempt may help.
        again: bool,
    },
    /// A limit of its reporter's passed.
    TimedOut {
        /// Whether another attempt may help.
        again: bool,
    },
    /// It was stopped.
    Aborted,
}

/// What a reporter says, with all it names resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Which attempt.
    pub attempt: u32,
    /// Its count within the attempt.
    pub version: u32,
    /// How far it has come.
    pub stage: Stage,
    /// When, by the reporter's clock.
    pub at: Option<Time>,
    /// Where its outputs lie; empty for none.
    pub output: String,
}

/// Where an attempt writes that runs elsewhere.
pub fn output_prefix(action: &ActionId, attempt: u8) -> String {
    let place = &action.run.place;
    let base = crate::plane::tracked_base("local", &place.project, &place.domain, &action.run.name);
    format!("{base}/{}/{attempt}", action.name)
}

fn phase(stage: Stage) -> ActionPhase {
    match stage {
        Stage::Queued => ActionPhase::ACTION_PHASE_QUEUED,
        Stage::Waiting => ActionPhase::ACTION_PHASE_WAITING_FOR_RESOURCES,
        Stage::Initializing => ActionPhase::ACTION_PHASE_INITIALIZING,
        Stage::Running => ActionPhase::ACTION_PHASE_RUNNING,
        Stage::Succeeded => ActionPhase::ACTION_PHASE_SUCCEEDED,
        Stage::Failed { .. } => ActionPhase::ACTION_PHASE_FAILED,
        Stage::TimedOut { .. } => ActionPhase::ACTION_PHASE_TIMED_OUT,
        Stage::Aborted => ActionPhase::ACTION_PHASE_ABORTED,
    }
}

/// Why it ended, as the SDK words it.
fn error(stage: Stage) -> Option<ErrorInfo> {
    let (code, message) = RAISED;
    let (code, message) = match stage {
        Stage::Failed { again } | Stage::TimedOut { again } => {
            let recoverable = if again { "True" } else { "False" };
            let text = format!("Error(err=code: \"{code}\"\nmessage: \"{message}\"\n, recoverable={recoverable})");
            (String::new(), text)
        }
        Stage::Aborted => (String::new(), STOPPED.to_owned()),
        _ => return None,
    };
    Some(ErrorInfo { code, message, kind: error_info::Kind::KIND_USER.into(), ..Default::default() })
}

fn update(action: &ActionId, parent: &str, kind: Option<&Kind>, told: &Told) -> TrackedActionUpdate {
    let outputs = OutputReferences { output_uri: told.output.clone(), ..Default::default() };
    let event = ActionEvent {
        id: spec::action_id(action).into(),
        attempt: told.attempt,
        version: told.version,
        phase: phase(told.stage).into(),
        updated_time: told.at.map(spec::timestamp).into(),
        error_info: error(told.stage).into(),
        outputs: outputs.into(),
        ..Default::default()
    };
    let spec = kind.and_then(|kind| match kind {
        Kind::Task(work) => Some(Spec::from(TaskAction { spec: spec::task_spec(work).into(), ..Default::default() })),
        Kind::Trace { .. } => Some(Spec::from(TraceAction { name: function(kind), ..Default::default() })),
        Kind::Condition(_) => None,
    });
    TrackedActionUpdate {
        event: event.into(),
        parent_name: parent.to_owned(),
        group: "elsewhere".to_owned(),
        spec,
        ..Default::default()
    }
}

/// The codes of a status that reports are answered with.
fn code(number: i32) -> &'static str {
    match number {
        3 => "invalid_argument",
        5 => "not_found",
        6 => "already_exists",
        8 => "resource_exhausted",
        9 => "failed_precondition",
        10 => "aborted",
        14 => "unavailable",
        _ => "internal",
    }
}

fn taken(status: &Status) -> Result<(), CallError> {
    match status.code {
        0 => Ok(()),
        number => Err(CallError::Refused(Refused { code: code(number).to_owned(), message: status.message.clone() })),
    }
}

/// Reports on one action.
pub(crate) async fn tell(
    door: &Door,
    action: &ActionId,
    parent: &str,
    kind: Option<&Kind>,
    told: &Told,
) -> Result<(), CallError> {
    let request = ReportTrackedActionsRequest {
        run_id: spec::run_id(&action.run).into(),
        updates: vec![update(action, parent, kind, told)],
        ..Default::default()
    };
    let method = "workflow.TrackedRunService/ReportActions";
    let response = door.unary::<ReportTrackedActionsResponse>(method, &request, &[]).await?;
    match response.statuses.as_slice() {
        [status] => taken(status),
        other => Err(CallError::Garbled(format!("one update, {} statuses", other.len()))),
    }
}

/// Begins a run; how its first action is shown.
pub(crate) async fn begin(
    door: &Door,
    place: &Place,
    name: &Name,
    work: &Work,
    start: Option<u8>,
    lane: &RunLane,
) -> Result<Shown, CallError> {
    let mut header = Vec::new();
    let id = match name {
        Name::Given(name) => {
            let run = RunId { place: place.clone(), name: name.clone() };
            create_tracked_run_request::Id::from(spec::run_id(&run))
        }
        Name::ForRequest(id) => {
            header.push(("x-request-id", id.as_str()));
            create_tracked_run_request::Id::from(spec::project_id(place))
        }
        Name::Any => create_tracked_run_request::Id::from(spec::project_id(place)),
    };
    let start = start.map(|n| Time::from_micros(1_600_000_000_000_000 + i64::from(n)));
    let request = CreateTrackedRunRequest {
        id: Some(id),
        task: Some(spec::task_spec(work).into()),
        run_spec: spec::run_spec(lane, &Reuse::default()).into(),
        run_start_time: start.map(spec::timestamp).into(),
        ..Default::default()
    };
    let response = door.unary::<CreateRunResponse>("workflow.TrackedRunService/CreateRun", &request, &header).await?;
    Shown::read(&response.run.action).map_err(CallError::Garbled)
}

/// Aborts a run where nothing can stop it.
pub(crate) async fn abort(door: &Door, run: &RunId, reason: &str) -> Result<(), CallError> {
    let (run_id, reason) = (spec::run_id(run).into(), Some(reason.to_owned()));
    let request = AbortRunRequest { run_id, reason, ..Default::default() };
    door.unary::<AbortRunResponse>("workflow.TrackedRunService/AbortRun", &request, &[]).await.map(drop)
}

/// The first action of a run, as the service shows it that has only runs that are carried out elsewhere.
pub(crate) async fn root(door: &Door, run: &RunId) -> Result<Details, CallError> {
    let request = GetRunDetailsRequest { run_id: spec::run_id(run).into(), ..Default::default() };
    let method = "workflow.TrackedRunService/GetRunDetails";
    let response = door.unary::<GetRunDetailsResponse>(method, &request, &[]).await?;
    Details::read(&response.details.action).map_err(CallError::Garbled)
}
