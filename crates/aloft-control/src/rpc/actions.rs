//! What a running task's controller asks: `flyteidl2.actions.ActionsService`, and as thin adapters over the same
//! functions the older `QueueService` and `StateService`.

use std::{collections::HashMap, sync::Arc};

use aloft_core::{
    ActionName, ActionState, Command, ErrorKind, Event, OutputRefs, Phase, Reply, RunKey, Seed, TaskError, TaskSeed,
    TraceSeed,
};
use aloft_flyteidl2::flyteidl2::{
    actions::{
        AbortRequest, AbortResponse, EnqueueRequest, EnqueueResponse, WatchForUpdatesRequest, WatchForUpdatesResponse,
        action, watch_for_updates_request, watch_for_updates_response,
    },
    common::{ActionIdentifier, ActionPhase},
    task::TaskSpec,
    workflow::{
        AbortQueuedActionRequest, AbortQueuedActionResponse, AbortQueuedRunRequest, AbortQueuedRunResponse,
        ActionUpdate, ConditionAction, ControlMessage, EnqueueActionRequest, EnqueueActionResponse, TaskAction,
        TraceAction, WatchRequest, WatchResponse, enqueue_action_request, watch_request, watch_response,
    },
};
use aloft_store::{Blob, Logged, RunRecord, Submission, Which};
use connectrpc::ConnectError;
use futures::{Stream, StreamExt as _};
use tokio::time::Instant;

use super::{
    condition, convert,
    error::{Answer, bounded, invalid, not_found, shortened, wire},
    run, task,
    watch::{self, Look, Watched},
};
use crate::{Control, meter::task_of};

/// Longest cache key, in bytes.
const MAX_CACHE_KEY: usize = 1024;

/// An enqueue, whichever service it came through.
struct Enqueue<'r> {
    action_id: Option<&'r ActionIdentifier>,
    parent: &'r str,
    input_uri: &'r str,
    run_output_base: &'r str,
    group: &'r str,
    work: Work<'r>,
}

enum Work<'r> {
    Task(&'r TaskAction),
    Trace(&'r TraceAction),
    Condition(&'r ConditionAction),
    Nothing,
}

async fn do_enqueue(control: &Control, request: Enqueue<'_>) -> Answer<Reply> {
    let began = Instant::now();
    let (run, action) = control.action_id(request.action_id)?;
    if action.is_root() {
        return Err(invalid("action_id.name: a0 is the run's first action and is created by CreateRun"));
    }
    let parent = if request.parent.is_empty() { "a0" } else { request.parent };
    let parent =
        ActionName::new(parent).map_err(|e| invalid(format!("parent_action_name: {:?} {}", e.value, e.reason)))?;
    for (field, uri) in [("input_uri", request.input_uri), ("run_output_base", request.run_output_base)] {
        if !uri.is_empty() && !control.data().owns(&run.scope, uri) {
            return Err(not_owned(field, uri, &run));
        }
    }
    bounded("group", request.group, convert::MAX_TEXT)?;
    check_work(&request)?;
    let record = run::find_record(control, &run).await?;
    let (seed, blobs) = match request.work {
        Work::Task(task) => task_seed(control, &record, &action, &request, task).await?,
        Work::Trace(trace) => trace_seed(control, &record, &action, &request, trace).await?,
        Work::Condition(condition) => {
            let (seed, blob) = condition::seed(condition)?;
            (seed, vec![blob])
        }
        Work::Nothing => return Err(invalid("spec: task, trace or condition is required")),
    };
    let taken = control.taken_over(&run, record.info.relation.as_ref(), &action, &seed).await.map_err(wire)?;
    let task = task_of(&seed, taken.recovered.is_some());
    let command = Command::Enqueue {
        action,
        parent,
        group: request.group.to_owned(),
        seed: Box::new(seed),
        recovered: taken.recovered,
        traces: taken.traces,
    };
    let reply = run::submit(control, Submission { blobs, ..Submission::new(run.clone(), command) }).await?;
    if reply == Reply::Done {
        control.accepted(&run, task.as_deref(), began);
    }
    Ok(reply)
}

/// Refuses work that lacks what it cannot do without.
fn check_work(request: &Enqueue<'_>) -> Answer<()> {
    match request.work {
        Work::Task(task) if !(task.spec.is_set() || task.id.is_set()) => Err(invalid("task.spec: is required")),
        Work::Task(_) if request.input_uri.is_empty() => Err(invalid("input_uri: is required for a task")),
        Work::Nothing => Err(invalid("spec: task, trace or condition is required")),
        Work::Task(_) | Work::Trace(_) | Work::Condition(_) => Ok(()),
    }
}

fn not_owned(field: &str, uri: &str, run: &RunKey) -> ConnectError {
    invalid(format!("{field}: {} is not in the storage of project {}", shortened(uri), run.scope.project))
}

async fn task_seed(
    control: &Control,
    run: &RunRecord,
    action: &ActionName,
    request: &Enqueue<'_>,
    task: &TaskAction,
) -> Answer<(Seed, Vec<Blob>)> {
    let stored;
    let spec: &TaskSpec = match (task.spec.as_option(), task.id.as_option()) {
        (Some(spec), _) => spec,
        (None, Some(id)) => {
            stored = task::stored_spec(control, id).await?;
            &stored
        }
        (None, None) => return Err(invalid("task.spec: is required")),
    };
    let spec = convert::spec(spec)?;
    let cache_key = task.cache_key.as_option().map(|k| k.value.clone()).unwrap_or_default();
    bounded("task.cache_key", &cache_key, MAX_CACHE_KEY)?;
    let base = output_base(control, run, request).await?;
    let seed = TaskSeed {
        task: spec.task,
        policy: spec.policy,
        input_uri: run::inputs_file(request.input_uri),
        run_output_base: base,
        // Not cached without a key: it takes the inputs' hash, which only the parent knows.
        cache: spec
            .cache
            .filter(|_| !cache_key.is_empty())
            .map(|cached| run::cache_plan(&run.info, action, cached, cache_key)),
        queue: run::queue(&task.queue, &run.info.queue)?,
        asks: spec.asks,
    };
    Ok((Seed::Task(seed), vec![spec.blob]))
}

async fn trace_seed(
    control: &Control,
    record: &RunRecord,
    action: &ActionName,
    request: &Enqueue<'_>,
    trace: &TraceAction,
) -> Answer<(Seed, Vec<Blob>)> {
    let phase = match trace.phase.as_known() {
        Some(ActionPhase::ACTION_PHASE_FAILED) => Phase::Failed,
        Some(ActionPhase::ACTION_PHASE_SUCCEEDED) => Phase::Succeeded,
        Some(ActionPhase::ACTION_PHASE_ABORTED) => Phase::Aborted,
        Some(ActionPhase::ACTION_PHASE_TIMED_OUT) => Phase::TimedOut,
        _ => return Err(invalid("trace.phase: a trace is recorded when it has ended: SUCCEEDED or FAILED")),
    };
    let run = &record.key;
    bounded("trace.name", &trace.name, convert::MAX_TEXT)?;
    let refs = trace.outputs.as_option();
    let outputs = OutputRefs {
        output_uri: refs.map(|o| o.output_uri.clone()).unwrap_or_default(),
        report_uri: refs.map(|o| o.report_uri.clone()).unwrap_or_default(),
    };
    let named = [("trace.outputs.output_uri", &outputs.output_uri), ("trace.outputs.report_uri", &outputs.report_uri)];
    for (field, uri) in named {
        if !uri.is_empty() && !control.data().owns(&run.scope, uri) {
            return Err(not_owned(field, uri, run));
        }
    }
    let now = control.now();
    let at = |field, time: Option<&_>| time.map_or(Ok(now), |at| convert::checked_time(field, at));
    let started_at = at("trace.start_time", trace.start_time.as_option())?;
    let ended_at = at("trace.end_time", trace.end_time.as_option())?;
    let spec = trace.spec.as_option().map(|spec| convert::encoded("trace.spec", spec)).transpose()?;
    let blob = spec.map(convert::blob);
    let error = match phase {
        Phase::Succeeded => None,
        _ => Some(trace_error(control, record, action, request, trace).await?),
    };
    let seed = TraceSeed {
        name: trace.name.clone(),
        phase,
        started_at,
        ended_at,
        outputs,
        error,
        spec_digest: blob.as_ref().map(|b| b.digest.clone()).unwrap_or_default(),
    };
    Ok((Seed::Trace(seed), blob.into_iter().collect()))
}

/// Where the outputs of the run's actions go: the SDK always says; who does not means the run's own place.
async fn output_base(control: &Control, run: &RunRecord, request: &Enqueue<'_>) -> Answer<String> {
    if !request.run_output_base.is_empty() {
        return Ok(request.run_output_base.to_owned());
    }
    let spec = run::stored_run_spec(control, run).await?;
    Ok(control.run_base(&run.key, &run.info, &spec))
}

/// Why a trace failed: what its parent left beside it, so that a replay raises the same error, or runs the function again
/// if it may help.
async fn trace_error(
    control: &Control,
    record: &RunRecord,
    action: &ActionName,
    request: &Enqueue<'_>,
    trace: &TraceAction,
) -> Answer<TaskError> {
    let base = output_base(control, record, request).await?;
    let run = &record.key;
    let prefix = format!("{}/{action}", base.trim_end_matches('/'));
    let stored = control.data().read_error(&run.scope, &prefix).await.map_err(wire)?;
    Ok(stored.unwrap_or_else(|| {
        let message = format!("the traced function {} raised an exception; its parent's log has it", trace.name);
        TaskError::new("TraceFailed", message, ErrorKind::User, false)
    }))
}

pub(super) async fn enqueue(control: &Control, request: EnqueueRequest) -> Answer<EnqueueResponse> {
    let action = request.action.as_option().ok_or_else(|| invalid("action: is required"))?;
    let work = match &action.spec {
        Some(action::Spec::Task(task)) => Work::Task(task),
        Some(action::Spec::Trace(trace)) => Work::Trace(trace),
        Some(action::Spec::Condition(condition)) => Work::Condition(condition),
        None => Work::Nothing,
    };
    let enqueue = Enqueue {
        action_id: action.action_id.as_option(),
        parent: action.parent_action_name.as_deref().unwrap_or_default(),
        input_uri: &action.input_uri,
        run_output_base: &action.run_output_base,
        group: &action.group,
        work,
    };
    do_enqueue(control, enqueue).await?;
    Ok(EnqueueResponse::default())
}

pub(super) async fn enqueue_queued(control: &Control, request: EnqueueActionRequest) -> Answer<EnqueueActionResponse> {
    let work = match &request.spec {
        Some(enqueue_action_request::Spec::Task(task)) => Work::Task(task),
        Some(enqueue_action_request::Spec::Trace(trace)) => Work::Trace(trace),
        Some(enqueue_action_request::Spec::Condition(condition)) => Work::Condition(condition),
        None => Work::Nothing,
    };
    let enqueue = Enqueue {
        action_id: request.action_id.as_option(),
        parent: request.parent_action_name.as_deref().unwrap_or_default(),
        input_uri: &request.input_uri,
        run_output_base: &request.run_output_base,
        group: &request.group,
        work,
    };
    do_enqueue(control, enqueue).await?;
    Ok(EnqueueActionResponse::default())
}

pub(super) async fn abort(control: &Control, request: AbortRequest) -> Answer<AbortResponse> {
    let (run, action) = control.action_id(request.action_id.as_option())?;
    run::abort(control, run, action, request.reason.as_deref().unwrap_or_default()).await?;
    Ok(AbortResponse::default())
}

pub(super) async fn abort_queued_action(
    control: &Control,
    request: AbortQueuedActionRequest,
) -> Answer<AbortQueuedActionResponse> {
    let (run, action) = control.action_id(request.action_id.as_option())?;
    run::abort(control, run, action, request.reason.as_deref().unwrap_or_default()).await?;
    Ok(AbortQueuedActionResponse::default())
}

pub(super) async fn abort_queued_run(
    control: &Control,
    request: AbortQueuedRunRequest,
) -> Answer<AbortQueuedRunResponse> {
    let run = control.run_id(request.run_id.as_option())?;
    run::find_record(control, &run).await?;
    run::abort(control, run, ActionName::root(), request.reason.as_deref().unwrap_or_default()).await?;
    Ok(AbortQueuedRunResponse::default())
}

// === Watch ===

/// What a parent's informer hears.
enum Update {
    Action(Box<ActionUpdate>),
    /// The snapshot is complete, or the stream is alive.
    Sentinel,
}

fn update(run: &RunKey, state: &ActionState) -> ActionUpdate {
    ActionUpdate {
        action_id: convert::action_id(run, &state.name).into(),
        phase: convert::phase(state.phase).into(),
        error: state.error.as_ref().map(|e| convert::execution_error(e, state.ended_at)).into(),
        output_uri: output_uri(state),
        value: state.signal.as_ref().map(|s| condition::to_literal(&s.value)).into(),
        ..Default::default()
    }
}

/// Where the action's outputs are or will be. Named in every phase: the SDK warns about an update that has none.
fn output_uri(state: &ActionState) -> String {
    match (state.task(), state.current()) {
        (Some(task), Some(attempt)) if state.outputs.output_uri.is_empty() => {
            format!("{}/{}/{}", task.run_output_base.trim_end_matches('/'), state.name, attempt.number)
        }
        _ => state.outputs.output_uri.clone(),
    }
}

/// The children of one action: a snapshot, a sentinel, then every change in order, with heartbeats.
///
/// A message is sent only when a child's phase differs from the one sent before: `merge_state` in the SDK reads error and
/// output only when the phase changes, so they travel in the message of the terminal phase (contract, 6.3).
fn children(control: Control, run: RunKey, parent: ActionName) -> impl Stream<Item = Answer<Update>> + Send {
    let watched = Watched::new(&control, run.clone());
    let (sent, above) = (HashMap::new(), Vec::new());
    let start = Children { control, run, parent, watched, sent, seq: None, above, over: false };
    futures::stream::unfold(Some(start), |state| async move {
        let mut state = state.filter(|s| !s.over)?;
        match state.next().await {
            Ok(batch) => Some((Ok(batch), Some(state))),
            Err(error) => Some((Err(error), None)),
        }
    })
    .flat_map(|batch| {
        let items: Vec<Answer<Update>> = match batch {
            Ok(updates) => updates.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        futures::stream::iter(items)
    })
}

struct Children {
    control: Control,
    run: RunKey,
    parent: ActionName,
    watched: Watched,
    /// The phase last sent of each child.
    sent: HashMap<ActionName, Phase>,
    /// The number up to which the log has been read; `None` before the snapshot.
    seq: Option<u64>,
    /// The parent and what is above it: when one of them ends, every live child does.
    above: Vec<ActionName>,
    /// Whether nothing can change any more: the parent has ended, and with it all below.
    over: bool,
}

impl Children {
    async fn next(&mut self) -> Answer<Vec<Update>> {
        let Some(seq) = self.seq else {
            let parent = run::find_action(&self.control, &self.run, &self.parent).await?;
            self.above = parent.ancestors;
            self.above.push(parent.name);
            let mut updates = self.snapshot().await?;
            updates.push(Update::Sentinel);
            return Ok(updates);
        };
        loop {
            let events = self.watched.events_after(seq).await?;
            let Some(last) = events.last() else {
                match self.watched.changed().await? {
                    watch::Woken::Changed => continue,
                    watch::Woken::Heartbeat => return Ok(vec![Update::Sentinel]),
                }
            };
            // Any terminal event above ends the children by one record, theirs follow later: read them all again.
            let above_ended = events.iter().any(|e| self.above.contains(e.event.action()) && e.event.may_end());
            if above_ended {
                return self.snapshot().await;
            }
            let upto = last.seq;
            self.seq = Some(upto);
            let looks = self.changed_children(&events);
            // As they are by now: a child that went through several phases is told once.
            let found = self.watched.look(&[], &looks, upto).await?;
            return Ok(found.iter().filter_map(|shown| self.changed(&shown.state)).collect());
        }
    }

    /// The children that these events happened to, in the order of their first.
    fn changed_children(&self, events: &[Arc<Logged>]) -> Vec<Look> {
        let mut places: HashMap<&ActionName, usize> = HashMap::new();
        let mut looks: Vec<Look> = Vec::new();
        for logged in events {
            let name = logged.event.action();
            let is_mine = match &logged.event {
                Event::Created { ancestors, .. } => ancestors.last() == Some(&self.parent),
                _ => places.contains_key(name) || self.sent.contains_key(name),
            };
            if !is_mine {
                continue;
            }
            let since = Some(logged.seq);
            match places.get(name) {
                Some(place) => looks[*place].since = since,
                None => {
                    places.insert(name, looks.len());
                    looks.push(Look { name: name.as_str().into(), since });
                }
            }
        }
        looks
    }

    async fn snapshot(&mut self) -> Answer<Vec<Update>> {
        let mut updates = self.read().await?;
        let parent = run::find_action(&self.control, &self.run, &self.parent).await?;
        if parent.phase.is_terminal() {
            // It may have ended since its children were read: they are read as they will stay.
            updates.extend(self.read().await?);
            self.over = true;
        }
        Ok(updates)
    }

    async fn read(&mut self) -> Answer<Vec<Update>> {
        let which = Which::ChildrenOf(self.parent.clone());
        let snapshot = self.control.store().snapshot(&self.run, which).await.map_err(wire)?;
        let snapshot = snapshot.ok_or_else(|| not_found(format!("run {} does not exist", self.run.name)))?;
        self.seq = Some(snapshot.seq);
        Ok(snapshot.actions.iter().filter_map(|state| self.changed(state)).collect())
    }

    fn changed(&mut self, state: &ActionState) -> Option<Update> {
        let before = self.sent.insert(state.name.clone(), state.phase);
        (before != Some(state.phase)).then(|| Update::Action(Box::new(update(&self.run, state))))
    }
}

pub(super) type Messages<T> = futures::stream::BoxStream<'static, Result<T, ConnectError>>;

pub(super) async fn watch_for_updates(
    control: Control,
    request: WatchForUpdatesRequest,
) -> Answer<Messages<WatchForUpdatesResponse>> {
    let Some(watch_for_updates_request::Filter::ParentActionId(id)) = &request.filter else {
        return Err(invalid("parent_action_id: is required"));
    };
    let (run, parent) = control.action_id(Some(id))?;
    let messages = children(control, run, parent).map(|item| {
        item.map(|update| WatchForUpdatesResponse {
            message: Some(match update {
                Update::Action(update) => watch_for_updates_response::Message::ActionUpdate(update),
                Update::Sentinel => ControlMessage { sentinel: true, ..Default::default() }.into(),
            }),
            ..Default::default()
        })
    });
    Ok(messages.boxed())
}

pub(super) async fn watch_state(control: Control, request: WatchRequest) -> Answer<Messages<WatchResponse>> {
    let Some(watch_request::Filter::ParentActionId(id)) = &request.filter else {
        return Err(invalid("parent_action_id: is required"));
    };
    let (run, parent) = control.action_id(Some(id))?;
    let messages = children(control, run, parent).map(|item| {
        item.map(|update| WatchResponse {
            message: Some(match update {
                Update::Action(update) => watch_response::Message::ActionUpdate(update),
                Update::Sentinel => ControlMessage { sentinel: true, ..Default::default() }.into(),
            }),
            ..Default::default()
        })
    });
    Ok(messages.boxed())
}
