//! `flyteidl2.workflow.RunService`, without its watches.

use std::sync::Arc;

use aloft_core::{
    ActionName, ActionState, CachePlan, CacheScope, Command, DEFAULT_QUEUE, EndedBy, Refusal, Relation, Reply, RunInfo,
    RunKey, Scope, Seed, Subject, TaskSeed,
};
use aloft_flyteidl2::flyteidl2::{
    common::RelationType,
    core::parameter,
    task::{CacheLookupScope, Inputs, NamedLiteral, RunSpec, TaskSpec},
    workflow::{
        AbortActionRequest, AbortActionResponse, AbortRunRequest, AbortRunResponse, CreateRunRequest,
        CreateRunResponse, GetActionDataRequest, GetActionDataResponse, GetActionDataURIsRequest,
        GetActionDataURIsResponse, GetActionDetailsRequest, GetActionDetailsResponse, GetActionLogContextRequest,
        GetActionLogContextResponse, GetRunDetailsRequest, GetRunDetailsResponse, Run, RunDetails,
        create_run_request::{Id, InputWrapper, Task},
    },
};
use aloft_store::{RunRecord, Site, StoreError, Submission, SubmitError, Which};
use buffa::Message as _;
use connectrpc::RequestContext;
use tokio::time::Instant;

use super::{
    convert::{self, Spec},
    data,
    error::{Answer, invalid, not_found, shortened, unimplemented, wire},
    settings, task, tracked,
};
use crate::{Control, meter::task_of, names};

/// How the refusal for a missing bundle ends: the client believes for a day that it uploaded it.
const STALE_CACHE: &str = "the client remembers uploads for a day; run `flyte delete local-cache` and try again";

/// Times that a run is made anew because what it was made by has changed meanwhile.
const MAX_TRIES: usize = 5;

pub(super) async fn create_run(
    control: &Control,
    context: &RequestContext,
    request: CreateRunRequest,
) -> Answer<CreateRunResponse> {
    let began = Instant::now();
    let run = new_run_key(control, context, request.id.as_ref())?;
    for _ in 0..MAX_TRIES {
        let site = control.known_site(&run.scope).await?;
        if let Some(created) = create_by(control, &run, &site, request.clone(), began).await? {
            return Ok(created);
        }
        control.forget_site(&run.scope, &site);
    }
    Err(wire(Refusal::Outdated))
}

/// Creates a run by what is known of its place; `None` if that is outdated.
async fn create_by(
    control: &Control,
    run: &RunKey,
    site: &Site,
    request: CreateRunRequest,
    began: Instant,
) -> Answer<Option<CreateRunResponse>> {
    let run = run.clone();
    let task_spec = requested_task(control, request.task).await?;
    let spec = convert::spec(&task_spec)?;
    let mut run_spec = request.run_spec.into_option().unwrap_or_default();
    check_run_spec(control, &run, &run_spec)?;
    let settings = settings::apply_to_run(&site.settings, &run, &mut run_spec, &task_spec)?;
    check_code(control, &run.scope, &task_spec).await?;

    let start_time = request.run_start_time.as_option().or_else(|| run_spec.run_start_time.as_option());
    let start_time = match start_time {
        Some(at) => convert::checked_time("run_start_time", at)?,
        None => control.now(),
    };
    run_spec.run_start_time = convert::timestamp(start_time).into();

    // Users' bytes are at the data plane before the run is committed (design rule 7), so a committed run can start.
    let inputs = store_inputs(control, &run, request.input_wrapper, &task_spec).await?;
    let run_blob = convert::own_blob(&run, convert::encoded("run_spec", &run_spec)?);
    let info = RunInfo {
        spec_digest: run_blob.digest.clone(),
        source: tracked::source_here(request.source)?,
        created_by: Control::anonymous(),
        labels: run_spec.labels.as_option().map(|l| l.values.clone()).unwrap_or_default().into_iter().collect(),
        start_time,
        max_action_concurrency: Some(run_spec.max_action_concurrency).filter(|max| *max > 0),
        relation: relation(control, &run, &run_spec).await?,
        overwrite_cache: run_spec.overwrite_cache
            || run_spec.cache_config.as_option().is_some_and(|c| c.overwrite_cache),
        cache_scope: cache_scope(&run_spec),
        queue: queue(&run_spec.queue, "")?,
        apart: control.apart(&run),
    };
    let task_blob = spec.blob.clone();
    let seed = root_seed(control.run_base(&run, &info, &run_spec), spec, inputs, &info);
    let taken = control.taken_over(&run, info.relation.as_ref(), &ActionName::root(), &seed).await.map_err(wire)?;
    let task = task_of(&seed, taken.recovered.is_some());
    let submission = Submission {
        run: run.clone(),
        command: Command::CreateRun {
            seed: Box::new(seed),
            info: Box::new(info.clone()),
            recovered: taken.recovered,
            traces: taken.traces,
        },
        blobs: [task_blob, run_blob.clone()].into_iter().chain(settings).collect(),
        site_revision: Some(site.revision),
        turn: None,
    };
    let reply = match control.store().submit(submission).await {
        Err(SubmitError::Refused(Refusal::Outdated)) => return Ok(None),
        Err(error) => return Err(named_refusal(control, &run, error).await),
        Ok(reply) => reply,
    };
    let (record, root) = match reply {
        Reply::Created(root) => {
            control.accepted(&run, task.as_deref(), began);
            let record = RunRecord { key: run, created_at: root.created_at, info };
            // Whoever hands it out next asks for both.
            control.remember(&run_blob.digest, &run_blob.bytes);
            (control.remember_run(record), *root)
        }
        Reply::Done | Reply::Leased(_) | Reply::Unchanged => find_run(control, &run).await?,
    };
    Ok(Some(CreateRunResponse { run: to_run(&record, &root).into(), ..Default::default() }))
}

/// Submits a command, and names the run in what is refused.
pub(super) async fn submit(control: &Control, submission: Submission) -> Answer<Reply> {
    let run = submission.run.clone();
    match control.store().submit(submission).await {
        Ok(reply) => Ok(reply),
        Err(error) => Err(named_refusal(control, &run, error).await),
    }
}

/// The wire's error for a command that failed. The core decides within one run and does not know its name.
async fn named_refusal(control: &Control, run: &RunKey, error: SubmitError) -> connectrpc::ConnectError {
    let what = match error {
        SubmitError::Refused(Refusal::DifferentWork { what: "run", difference, .. }) => {
            return wire(Refusal::DifferentWork { what: "run", name: run.name.clone(), difference });
        }
        SubmitError::Refused(Refusal::NoSuchRun) => return no_run(control, run),
        SubmitError::Refused(Refusal::NoSuchAction(name)) => format!("action {name}"),
        SubmitError::Refused(Refusal::NoSuchParent(name)) => format!("parent action {name}"),
        other => return wire(other),
    };
    match find_record(control, run).await {
        Ok(_) => not_found(format!("{what} does not exist in run {}", run.name)),
        Err(error) => error,
    }
}

/// The queue of an action: the one it names, or else the run's, or else the default.
pub(super) fn queue(own: &str, inherited: &str) -> Answer<String> {
    let name = [own, inherited].into_iter().find(|name| !name.is_empty()).unwrap_or(DEFAULT_QUEUE);
    aloft_core::check_queue_name(name).map_err(wire)?;
    Ok(name.to_owned())
}

fn cache_scope(spec: &RunSpec) -> CacheScope {
    match spec.cache_config.as_option().and_then(|c| c.cache_lookup_scope.as_known()) {
        Some(CacheLookupScope::CACHE_LOOKUP_SCOPE_PROJECT_DOMAIN) => CacheScope::ProjectDomain,
        _ => CacheScope::Global,
    }
}

/// How the action `name` of a run with this `info` is cached. What is to be computed again is not found in the cache either:
/// there lies the very result that is not wanted.
pub(super) fn cache_plan(info: &RunInfo, name: &ActionName, cached: convert::Cached, key: String) -> CachePlan {
    CachePlan {
        key,
        scope: info.cache_scope,
        serialize: cached.serialize,
        max_age_ms: cached.max_age_ms,
        overwrite: info.overwrite_cache || info.forces(name),
    }
}

/// The run that a new one is made from.
pub(super) async fn relation(control: &Control, run: &RunKey, spec: &RunSpec) -> Answer<Option<Relation>> {
    let forced = spec.recover.as_option().map(|r| r.force_rerun_actions.as_slice()).unwrap_or_default();
    let (to, kind) = match spec.relation.as_option() {
        Some(relation) => (relation.related_to.as_option(), relation.relation_type),
        None => (spec.related_to.as_option(), RelationType::RELATION_TYPE_RERUN.into()),
    };
    let recovers = kind.as_known() == Some(RelationType::RELATION_TYPE_RECOVER);
    if spec.recover.is_set() && !recovers {
        return Err(invalid("run_spec.recover: only a run whose relation is of the type RECOVER recovers another"));
    }
    let Some(to) = to else {
        return if recovers {
            Err(invalid("run_spec.relation.related_to: a recovering run must name a run"))
        } else {
            Ok(None)
        };
    };
    let to = control.run_id_at("run_spec.relation.related_to", Some(to))?;
    if recovers {
        if to.scope.org != run.scope.org || to.scope.project != run.scope.project {
            return Err(invalid(
                "run_spec.relation.related_to: a run can only recover one of its own project, whose data it may read",
            ));
        }
        find_record(control, &to).await?;
    }
    // Names that are no names of actions match none.
    let forced = forced.iter().filter_map(|name| ActionName::new(name).ok()).collect();
    Ok(Some(Relation { to, kind: kind.to_i32(), recover: recovers.then_some(forced) }))
}

pub(super) fn new_run_key(control: &Control, context: &RequestContext, id: Option<&Id>) -> Answer<RunKey> {
    match id {
        Some(Id::RunId(id)) => control.run_id(Some(id)),
        Some(Id::ProjectId(id)) => {
            let scope = control.project_scope(id)?;
            let name = match request_id(context) {
                // The SDK repeats a request under its identifier: the same name makes the repetition find the first run.
                Some(id) => names::run_name_for(&scope.to_string(), id),
                None => names::run_name(),
            };
            RunKey::new(scope, &name).map_err(wire)
        }
        None => Err(invalid("id: run_id or project_id is required")),
    }
}

/// What a request and its repetitions have in common, and no other request has.
pub(super) fn request_id(context: &RequestContext) -> Option<&str> {
    context.header("x-request-id").and_then(|v| v.to_str().ok()).filter(|v| is_uuid(v))
}

/// Whether a request identifier is unique by construction. In tasks it is a few random letters, which may repeat.
fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

pub(super) async fn requested_task(control: &Control, task: Option<Task>) -> Answer<TaskSpec> {
    match task {
        Some(Task::TaskSpec(spec)) => Ok(*spec),
        Some(Task::TaskId(id)) => task::stored_spec(control, &id).await,
        Some(Task::TriggerName(name)) => {
            Err(unimplemented(format!("trigger_name: triggers are not built yet, so {:?} cannot be fired", name.name)))
        }
        None => Err(invalid("task: task_spec or task_id is required")),
    }
}

/// Refuses what would not be done, and prefixes outside the project's own storage: tasks would write there with
/// credentials that forbid it.
fn check_run_spec(control: &Control, run: &RunKey, spec: &RunSpec) -> Answer<()> {
    if let Some(labels) = spec.labels.as_option() {
        convert::check_labels("run_spec.labels", &labels.values)?;
    }
    let raw = spec.raw_data_storage.as_option().map_or("", |r| r.raw_data_prefix.as_str());
    for (field, uri) in [("run_base_dir", spec.run_base_dir.as_str()), ("raw_data_storage.raw_data_prefix", raw)] {
        if !uri.is_empty() && !control.data().owns(&run.scope, uri) {
            return Err(invalid(format!(
                "run_spec.{field}: {} is not in the storage of project {}; leave it empty for the default, or name a \
                 prefix below {}",
                shortened(uri),
                run.scope.project,
                control.data().run_base(run)
            )));
        }
    }
    Ok(())
}

/// Refuses a run whose code or image is not there, instead of letting every task of it fail.
async fn check_code(control: &Control, scope: &Scope, spec: &TaskSpec) -> Answer<()> {
    let mut wanted = convert::bundle_uris(spec);
    wanted.extend(convert::image(spec).map(str::to_owned));
    let missing = control.data().missing(scope, &wanted).await.map_err(wire)?;
    match missing.first() {
        None => Ok(()),
        Some(uri) => {
            Err(invalid(format!("task_spec: {} does not exist on this server: {STALE_CACHE}", shortened(uri))))
        }
    }
}

/// Where the root's inputs lie, and what identical ones share.
struct StoredInputs {
    uri: String,
    hash: String,
}

/// Stores the root's inputs, unless the client has.
async fn store_inputs(
    control: &Control,
    run: &RunKey,
    wrapper: Option<InputWrapper>,
    spec: &TaskSpec,
) -> Answer<StoredInputs> {
    let inputs = match wrapper {
        Some(InputWrapper::OffloadedInputData(data)) => {
            if !control.data().owns(&run.scope, &data.uri) {
                return Err(invalid(format!(
                    "offloaded_input_data.uri: {} is not in the storage of project {}",
                    shortened(&data.uri),
                    run.scope.project
                )));
            }
            return Ok(StoredInputs { uri: inputs_file(&data.uri), hash: data.inputs_hash });
        }
        Some(InputWrapper::Inputs(inputs)) => *inputs,
        None => Inputs::default(),
    };
    let inputs = with_defaults(inputs, spec)?;
    let metadata = spec.task_template.as_option().and_then(|t| t.metadata.as_option());
    let ignored = metadata.map(|m| m.cache_ignore_input_vars.as_slice()).unwrap_or_default();
    let offloaded = control.data().upload_inputs(&run.scope, "", inputs, ignored).await.map_err(wire)?;
    Ok(StoredInputs { uri: inputs_file(&offloaded.uri), hash: offloaded.inputs_hash })
}

/// The `inputs.pb` that `uri` names, itself or as its directory.
pub(super) fn inputs_file(uri: &str) -> String {
    if uri.ends_with(".pb") { uri.to_owned() } else { format!("{}/inputs.pb", uri.trim_end_matches('/')) }
}

/// Fills in the defaults that the task declares, and refuses a run that lacks a required input.
fn with_defaults(mut inputs: Inputs, spec: &TaskSpec) -> Answer<Inputs> {
    for default in &spec.default_inputs {
        if inputs.literals.iter().any(|l| l.name == default.name) {
            continue;
        }
        match default.parameter.as_option().and_then(|p| p.behavior.as_ref()) {
            Some(parameter::Behavior::Default(value)) => inputs.literals.push(NamedLiteral {
                name: default.name.clone(),
                value: (**value).clone().into(),
                ..Default::default()
            }),
            Some(parameter::Behavior::Required(true)) => {
                return Err(invalid(format!("inputs: {:?} is required by task and missing", default.name)));
            }
            _ => {}
        }
    }
    Ok(inputs)
}

fn root_seed(run_output_base: String, spec: Spec, inputs: StoredInputs, info: &RunInfo) -> Seed {
    let key = spec.cache.as_ref().map(|c| c.key(&spec.task.name, &inputs.hash)).unwrap_or_default();
    Seed::Task(TaskSeed {
        task: spec.task,
        policy: spec.policy,
        input_uri: inputs.uri,
        run_output_base,
        // Without a hash nothing is known of the inputs, so nothing can be identical.
        cache: spec
            .cache
            .filter(|_| !inputs.hash.is_empty())
            .map(|cached| cache_plan(info, &ActionName::root(), cached, key)),
        queue: info.queue.clone(),
        asks: spec.asks,
    })
}

fn no_run(control: &Control, run: &RunKey) -> connectrpc::ConnectError {
    let RunKey { scope, name } = run;
    // Who follows an old link wants to know whether it was ever right.
    let kept = match control.settings().retention.kept.of(&scope.project) {
        None => String::new(),
        Some(time) => format!("; runs of this project are kept for {} after their end", convert::in_words(time)),
    };
    not_found(format!("run {name} does not exist in project {}, domain {}{kept}", scope.project, scope.domain))
}

/// A run and its root action.
pub(super) async fn find_run(control: &Control, run: &RunKey) -> Answer<(Arc<RunRecord>, ActionState)> {
    let root = ActionName::root();
    tokio::try_join!(find_record(control, run), find_action(control, run, &root))
}

pub(super) async fn find_record(control: &Control, run: &RunKey) -> Answer<Arc<RunRecord>> {
    control.record(run).await.map_err(wire)?.ok_or_else(|| no_run(control, run))
}

pub(super) async fn find_action(control: &Control, run: &RunKey, action: &ActionName) -> Answer<ActionState> {
    let snapshot = control.store().snapshot(run, Which::One(action.clone())).await.map_err(wire)?;
    let snapshot = snapshot.ok_or_else(|| no_run(control, run))?;
    let found = snapshot.actions.into_iter().next();
    found.ok_or_else(|| not_found(format!("action {action} does not exist in run {}", run.name)))
}

pub(super) fn to_run(record: &RunRecord, root: &ActionState) -> Run {
    Run {
        action: convert::action(record, root).into(),
        labels: record.info.labels.clone().into_iter().collect(),
        ..Default::default()
    }
}

/// Everything about an action, its stored specification included.
pub(super) async fn details(
    control: &Control,
    record: &RunRecord,
    state: &ActionState,
) -> Answer<aloft_flyteidl2::flyteidl2::workflow::ActionDetails> {
    let digest = match &state.seed {
        Seed::Task(task) => &task.task.digest,
        Seed::Trace(trace) => &trace.spec_digest,
        Seed::Condition(condition) => &condition.spec_digest,
    };
    let stored = if digest.is_empty() { None } else { control.stored(digest).await.map_err(wire)? };
    convert::details(control, record, state, stored)
}

/// Everything about a run whose root is in the state `root`.
/// What the run was started with, as it is stored.
pub(super) async fn stored_run_spec(control: &Control, run: &RunRecord) -> Answer<RunSpec> {
    let bytes = control.stored(&run.info.spec_digest).await.map_err(wire)?.unwrap_or_default();
    RunSpec::decode_from_slice(&bytes)
        .map_err(|e| wire(StoreError::Corrupt(format!("the specification of run {}: {e}", run.key))))
}

pub(super) async fn run_details(control: &Control, record: &RunRecord, root: &ActionState) -> Answer<RunDetails> {
    let run_spec = stored_run_spec(control, record).await?;
    let action = details(control, record, root).await?;
    Ok(RunDetails { run_spec: run_spec.into(), action: action.into(), ..Default::default() })
}

pub(super) async fn get_run_details(control: &Control, request: GetRunDetailsRequest) -> Answer<GetRunDetailsResponse> {
    let run = control.run_id(request.run_id.as_option())?;
    let (record, root) = find_run(control, &run).await?;
    let details = run_details(control, &record, &root).await?;
    Ok(GetRunDetailsResponse { details: details.into(), ..Default::default() })
}

pub(super) async fn get_action_details(
    control: &Control,
    request: GetActionDetailsRequest,
) -> Answer<GetActionDetailsResponse> {
    let (run, action) = control.action_id(request.action_id.as_option())?;
    let record = find_record(control, &run).await?;
    let state = find_action(control, &run, &action).await?;
    Ok(GetActionDetailsResponse { details: details(control, &record, &state).await?.into(), ..Default::default() })
}

/// Aborts an action and all below it. Aborting what was aborted already is success, so that a retry is harmless.
pub(super) async fn abort(control: &Control, run: RunKey, action: ActionName, reason: &str) -> Answer<()> {
    let reason = if reason.is_empty() { "aborted" } else { reason };
    let reason: String = reason.chars().take(1000).collect();
    let by = EndedBy::asked(Control::anonymous().id, reason);
    let command = Command::Abort { action: action.clone(), by };
    match control.store().submit(Submission::new(run.clone(), command)).await {
        Ok(_) | Err(SubmitError::Refused(Refusal::Ended { phase: aloft_core::Phase::Aborted, .. })) => Ok(()),
        Err(error) => Err(named_refusal(control, &run, error).await),
    }
}

pub(super) async fn abort_run(control: &Control, request: AbortRunRequest) -> Answer<AbortRunResponse> {
    let run = control.run_id(request.run_id.as_option())?;
    find_record(control, &run).await?;
    abort(control, run, ActionName::root(), request.reason.as_deref().unwrap_or_default()).await?;
    Ok(AbortRunResponse::default())
}

pub(super) async fn abort_action(control: &Control, request: AbortActionRequest) -> Answer<AbortActionResponse> {
    let (run, action) = control.action_id(request.action_id.as_option())?;
    abort(control, run, action, &request.reason).await?;
    Ok(AbortActionResponse::default())
}

pub(super) async fn get_action_data_uris(
    control: &Control,
    request: GetActionDataURIsRequest,
) -> Answer<GetActionDataURIsResponse> {
    let (run, action) = control.action_id(request.action_id.as_option())?;
    let state = find_action(control, &run, &action).await?;
    let (inputs_uri, outputs_uri) = data_uris(control, &run, &state);
    Ok(GetActionDataURIsResponse { inputs_uri, outputs_uri, ..Default::default() })
}

/// Where the inputs and outputs of an action lie, as files; empty for what there is not.
pub(super) fn data_uris(control: &Control, run: &RunKey, state: &ActionState) -> (String, String) {
    let inputs = match state.task() {
        Some(task) => inputs_file(&task.input_uri),
        None if state.is_tracked() => inputs_file(&format!("{}/{}", control.data().tracked_base(run), state.name)),
        None => String::new(),
    };
    let outputs = match state.outputs.output_uri.as_str() {
        "" => String::new(),
        uri if uri.ends_with(".pb") => uri.to_owned(),
        uri => format!("{}/outputs.pb", uri.trim_end_matches('/')),
    };
    (inputs, outputs)
}

pub(super) async fn get_action_data(control: &Control, request: GetActionDataRequest) -> Answer<GetActionDataResponse> {
    let found = data::action_data(control, request.action_id.as_option()).await?;
    Ok(GetActionDataResponse { inputs: found.inputs, outputs: found.outputs, ..Default::default() })
}

pub(super) async fn get_action_log_context(
    control: &Control,
    request: GetActionLogContextRequest,
) -> Answer<GetActionLogContextResponse> {
    let (run, action) = control.action_id(request.action_id.as_option())?;
    let state = find_action(control, &run, &action).await?;
    let attempt = state.attempts.iter().find(|a| a.number == request.attempt.max(1));
    let attempt = attempt.ok_or_else(|| not_found(format!("action {action} has no attempt {}", request.attempt)))?;
    Ok(GetActionLogContextResponse {
        cluster: control.settings().cluster.clone(),
        start_time: convert::timestamp(attempt.created_at()).into(),
        end_time: attempt.ended_at.map(convert::timestamp).into(),
        ..Default::default()
    })
}

/// Who created what, for records that carry a subject.
pub(super) fn created_by(subject: &Subject) -> aloft_flyteidl2::flyteidl2::common::EnrichedIdentity {
    convert::identity(subject)
}
