//! Watches: a snapshot at number n, then what the log holds after n (design rule 1). Every stream ends UNAVAILABLE when
//! the server stops, and by itself when what it watches is over.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    time::Duration,
};

use aloft_core::{ActionName, ActionState, Phase, RunKey};
use aloft_flyteidl2::flyteidl2::workflow::{
    EnrichedAction, WatchActionDetailsRequest, WatchActionDetailsResponse, WatchActionsRequest, WatchActionsResponse,
    WatchClusterEventsRequest, WatchClusterEventsResponse, WatchRunDetailsRequest, WatchRunDetailsResponse,
    WatchRunsRequest, WatchRunsResponse, watch_runs_request::Target,
};
use aloft_store::{Cursor, Field, Filter, ListScope, Logged, Op, RunRecord, Which};
use futures::{StreamExt as _, stream::unfold};
use tokio::sync::watch;

use super::{
    actions::Messages,
    convert,
    error::{Answer, not_found, stopping, unimplemented, wire},
    list, run,
};
use crate::Control;

/// Time between signs of life on a quiet stream, below the idle timeouts of common proxies (60 s).
pub(super) const HEARTBEAT: Duration = Duration::from_secs(20);

/// Events read at a time.
const BATCH: usize = 1000;

/// Runs of the first message of a watch over runs.
const RUNS_SNAPSHOT: usize = 100;

/// Actions in one message of a watch over actions.
const ACTIONS_MESSAGE: usize = 500;

/// Why a watcher woke.
pub(super) enum Woken {
    /// The log has grown.
    Changed,
    /// Nothing happened for a while.
    Heartbeat,
}

/// One run's log, followed.
pub(super) struct Watched {
    control: Control,
    run: RunKey,
    hint: watch::Receiver<u64>,
}

impl Watched {
    /// Follows `run`. Subscribes before anything is read, so that what is committed in between is not missed.
    pub(super) fn new(control: &Control, run: RunKey) -> Self {
        let hint = control.store().changes(&run);
        Self { control: control.clone(), run, hint }
    }

    pub(super) async fn events_after(&mut self, seq: u64) -> Answer<Vec<Logged>> {
        self.hint.mark_unchanged();
        self.control.store().events_after(&self.run, seq, BATCH).await.map_err(wire)
    }

    /// Waits for the log to grow.
    pub(super) async fn changed(&mut self) -> Answer<Woken> {
        tokio::select! {
            biased;
            () = self.control.stopping().cancelled() => Err(stopping()),
            changed = self.hint.changed() => match changed {
                Ok(()) => Ok(Woken::Changed),
                // The hub dropped a channel that looked unwatched: take a new one and look again.
                Err(_) => {
                    self.hint = self.control.store().changes(&self.run);
                    Ok(Woken::Changed)
                }
            },
            () = tokio::time::sleep(HEARTBEAT) => Ok(Woken::Heartbeat),
        }
    }
}

/// What a stream does next.
enum Step<T> {
    Send(T),
    /// Send and end.
    Last(T),
    End,
}

/// A stream from a state and a function that makes its next message.
fn stream<S, T, F>(state: S, next: F) -> Messages<T>
where
    S: Send + 'static,
    T: Send + 'static,
    F: for<'s> Fn(&'s mut S) -> futures::future::BoxFuture<'s, Answer<Step<T>>> + Send + 'static,
{
    unfold(Some((state, next)), |current| async move {
        let (mut state, next) = current?;
        match next(&mut state).await {
            Ok(Step::Send(item)) => Some((Ok(item), Some((state, next)))),
            Ok(Step::Last(item)) => Some((Ok(item), None)),
            Ok(Step::End) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}

struct OneAction {
    control: Control,
    run: RunKey,
    action: ActionName,
    watched: Watched,
    /// The state last sent.
    sent: Option<ActionState>,
}

impl OneAction {
    fn new(control: Control, run: RunKey, action: ActionName) -> Self {
        let watched = Watched::new(&control, run.clone());
        Self { control, run, action, watched, sent: None }
    }

    /// The next state that differs from the one before; `None` once it has ended.
    async fn next(&mut self) -> Answer<Option<ActionState>> {
        if self.sent.as_ref().is_some_and(|s| s.phase.is_terminal()) {
            return Ok(None);
        }
        loop {
            self.watched.hint.mark_unchanged();
            let state = run::find_action(&self.control, &self.run, &self.action).await?;
            if self.sent.as_ref() != Some(&state) {
                self.sent = Some(state.clone());
                return Ok(Some(state));
            }
            self.watched.changed().await?;
        }
    }
}

pub(super) async fn action_details(
    control: Control,
    request: WatchActionDetailsRequest,
) -> Answer<Messages<WatchActionDetailsResponse>> {
    let (run, action) = control.action_id(request.action_id.as_option())?;
    let record = run::find_record(&control, &run).await?;
    run::find_action(&control, &run, &action).await?;
    let start = (OneAction::new(control, run, action), record);
    Ok(stream(start, |(watch, record)| {
        Box::pin(async move {
            let Some(state) = watch.next().await? else { return Ok(Step::End) };
            let details = run::details(&watch.control, record, &state).await?;
            let message = WatchActionDetailsResponse { details: details.into(), ..Default::default() };
            Ok(if state.phase.is_terminal() { Step::Last(message) } else { Step::Send(message) })
        })
    }))
}

pub(super) async fn run_details(
    control: Control,
    request: WatchRunDetailsRequest,
) -> Answer<Messages<WatchRunDetailsResponse>> {
    let run = control.run_id(request.run_id.as_option())?;
    run::find_record(&control, &run).await?;
    let start = OneAction::new(control, run, ActionName::root());
    Ok(stream(start, |watch| {
        Box::pin(async move {
            let Some(state) = watch.next().await? else { return Ok(Step::End) };
            let details = run::run_details(&watch.control, &watch.run).await?;
            let message = WatchRunDetailsResponse { details: details.into(), ..Default::default() };
            Ok(if state.phase.is_terminal() { Step::Last(message) } else { Step::Send(message) })
        })
    }))
}

/// Events of a cluster: the process executor has none, so the stream only waits for the action's end.
pub(super) async fn cluster_events(
    control: Control,
    request: WatchClusterEventsRequest,
) -> Answer<Messages<WatchClusterEventsResponse>> {
    let (run, action) = control.action_id(request.id.as_option())?;
    run::find_action(&control, &run, &action).await?;
    let start = OneAction::new(control, run, action);
    Ok(stream(start, |watch| {
        Box::pin(async move {
            while watch.next().await?.is_some() {}
            Ok(Step::End)
        })
    }))
}

// === Actions of a run ===

struct Tree {
    control: Control,
    record: RunRecord,
    watched: Watched,
    filters: Vec<Filter>,
    states: HashMap<ActionName, ActionState>,
    /// How many children of each action are in each phase.
    counts: HashMap<ActionName, BTreeMap<i32, i32>>,
    seq: Option<u64>,
    /// What has changed and is not sent yet, in the order of the changes, each once.
    pending: VecDeque<ActionName>,
    marked: HashSet<ActionName>,
}

pub(super) async fn actions(control: Control, request: WatchActionsRequest) -> Answer<Messages<WatchActionsResponse>> {
    let run = control.run_id(request.run_id.as_option())?;
    let record = run::find_record(&control, &run).await?;
    let start = Tree {
        watched: Watched::new(&control, run),
        control,
        record,
        filters: list::filters(list::Of::Actions, &request.filter)?,
        states: HashMap::new(),
        counts: HashMap::new(),
        seq: None,
        pending: VecDeque::new(),
        marked: HashSet::new(),
    };
    Ok(stream(start, |tree| Box::pin(tree.next())))
}

impl Tree {
    async fn next(&mut self) -> Answer<Step<WatchActionsResponse>> {
        while self.pending.is_empty() {
            if self.seq.is_some() && self.over() {
                return Ok(Step::End);
            }
            if let Woken::Heartbeat = self.read().await? {
                return Ok(Step::Send(WatchActionsResponse::default()));
            }
        }
        let batch: Vec<_> = self.pending.drain(..self.pending.len().min(ACTIONS_MESSAGE)).collect();
        for name in &batch {
            self.marked.remove(name);
        }
        let enriched_actions = batch.iter().filter_map(|name| self.enriched(name)).collect();
        Ok(Step::Send(WatchActionsResponse { enriched_actions, ..Default::default() }))
    }

    /// Nothing can change any more: the root has ended and so has all below it.
    fn over(&self) -> bool {
        !self.states.is_empty() && self.states.values().all(|s| s.phase.is_terminal())
    }

    /// Reads what is new, or waits for it.
    async fn read(&mut self) -> Answer<Woken> {
        let key = self.record.key.clone();
        let Some(seq) = self.seq else {
            let snapshot = self.control.store().snapshot(&key, Which::All).await.map_err(wire)?;
            let snapshot = snapshot.ok_or_else(|| not_found(format!("run {} does not exist", key.name)))?;
            self.seq = Some(snapshot.seq);
            for state in snapshot.actions {
                self.put(state);
            }
            return Ok(Woken::Changed);
        };
        let events = self.watched.events_after(seq).await?;
        let Some(last) = events.last() else {
            return self.watched.changed().await;
        };
        self.seq = Some(last.seq);
        let names: HashSet<_> = events.iter().map(|e| e.event.action().clone()).collect();
        for name in names {
            let state = run::find_action(&self.control, &key, &name).await?;
            let ended = state.phase.is_terminal();
            self.put(state);
            if ended {
                self.end_below(&name);
            }
        }
        Ok(Woken::Changed)
    }

    /// Shows what is live below an ended action as ended, as every other view does.
    fn end_below(&mut self, ended: &ActionName) {
        let Some(above) = self.states.get(ended).cloned() else { return };
        let live = |s: &&ActionState| !s.phase.is_terminal() && s.ancestors.contains(ended);
        let below: Vec<_> = self.states.values().filter(live).cloned().collect();
        for state in below {
            self.put(state.shown_under(&above));
        }
    }

    fn put(&mut self, state: ActionState) {
        let before = self.states.get(&state.name);
        if before == Some(&state) {
            return;
        }
        if let Some(parent) = state.parent().cloned() {
            let old = before.map(|s| s.phase);
            let counts = self.counts.entry(parent.clone()).or_default();
            if old != Some(state.phase) {
                if let Some(old) = old {
                    *counts.entry(old.number()).or_default() -= 1;
                }
                *counts.entry(state.phase.number()).or_default() += 1;
                self.mark(parent);
            }
        }
        self.mark(state.name.clone());
        self.states.insert(state.name.clone(), state);
    }

    fn mark(&mut self, name: ActionName) {
        if self.marked.insert(name.clone()) {
            self.pending.push_back(name);
        }
    }

    fn enriched(&self, name: &ActionName) -> Option<EnrichedAction> {
        let state = self.states.get(name)?;
        let counts = self.counts.get(name).into_iter().flatten().filter(|(_, n)| **n > 0);
        Some(EnrichedAction {
            action: convert::action(&self.record, state).into(),
            meets_filter: self.filters.iter().all(|f| meets(f, state)),
            children_phase_counts: counts.map(|(phase, n)| (*phase, *n)).collect(),
            ..Default::default()
        })
    }
}

/// Whether an action meets a filter on its phase or name, the two that the console sends.
fn meets(filter: &Filter, state: &ActionState) -> bool {
    let text = |wanted: &Cursor, no_case: bool| {
        let Cursor::Text(wanted) = wanted else { return false };
        let names = [state.name.to_string(), state.task().map(|t| t.task.short_name.clone()).unwrap_or_default()];
        names.iter().any(|n| {
            if no_case { n.to_lowercase().contains(&wanted.to_lowercase()) } else { n.contains(wanted.as_str()) }
        })
    };
    match (&filter.field, filter.op) {
        (Field::Phase, Op::Equal | Op::In) => filter.values.contains(&Cursor::Int(i64::from(state.phase.number()))),
        (Field::Phase, Op::NotEqual | Op::NotIn) => {
            !filter.values.contains(&Cursor::Int(i64::from(state.phase.number())))
        }
        (Field::Name, Op::Equal) => filter.values.first() == Some(&Cursor::Text(state.name.to_string())),
        (Field::Name, Op::Contains) => filter.values.first().is_some_and(|v| text(v, false)),
        (Field::Name, Op::ContainsNoCase) => filter.values.first().is_some_and(|v| text(v, true)),
        _ => true,
    }
}

// === Runs ===

struct Runs {
    control: Control,
    scope: ListScope,
    feed: watch::Receiver<u64>,
    pos: Option<u64>,
    sent: HashMap<RunKey, Phase>,
}

pub(super) async fn runs(control: Control, request: WatchRunsRequest) -> Answer<Messages<WatchRunsResponse>> {
    let scope = match &request.target {
        Some(Target::ProjectId(id)) => {
            let scope = control.project_scope(id)?;
            ListScope { org: scope.org, project: scope.project, domain: scope.domain }
        }
        Some(Target::Org(org)) => ListScope { org: control.org(org), ..ListScope::default() },
        None => ListScope { org: control.org(""), ..ListScope::default() },
        Some(Target::ClusterId(_) | Target::TaskId(_)) => {
            return Err(unimplemented(
                "target: watching the runs of a cluster or a task is not built yet; watch a project",
            ));
        }
    };
    let feed = control.store().feed();
    let start = Runs { control, scope, feed, pos: None, sent: HashMap::new() };
    Ok(stream(start, |runs| Box::pin(runs.next())))
}

impl Runs {
    async fn next(&mut self) -> Answer<Step<WatchRunsResponse>> {
        let Some(mut pos) = self.pos else {
            self.pos = Some(*self.feed.borrow_and_update());
            let mut query = list::query(list::Of::Runs, None)?;
            query.limit = RUNS_SNAPSHOT;
            let page = self.control.store().list_runs(&self.scope, &query).await.map_err(wire)?;
            let runs = page.rows.iter().map(|row| run::to_run(&row.run, &row.root)).collect();
            self.sent = page.rows.into_iter().map(|row| (row.run.key, row.root.phase)).collect();
            return Ok(Step::Send(WatchRunsResponse { runs, ..Default::default() }));
        };
        loop {
            let items = self.control.store().feed_after(pos, BATCH).await.map_err(wire)?;
            let Some(last) = items.last() else {
                tokio::select! {
                    biased;
                    () = self.control.stopping().cancelled() => return Err(stopping()),
                    _ = self.feed.changed() => continue,
                }
            };
            pos = last.pos;
            self.pos = Some(pos);
            let mut keys: Vec<_> = items
                .into_iter()
                .filter(|i| i.logged.event.action().is_root() && self.covers(&i.run))
                .map(|i| i.run)
                .collect();
            keys.sort();
            keys.dedup();
            let mut runs = Vec::new();
            for key in keys {
                let (record, root) = run::find_run(&self.control, &key).await?;
                if self.sent.insert(key, root.phase) != Some(root.phase) {
                    runs.push(run::to_run(&record, &root));
                }
            }
            self.sent.retain(|_, phase| !phase.is_terminal());
            if !runs.is_empty() {
                return Ok(Step::Send(WatchRunsResponse { runs, ..Default::default() }));
            }
        }
    }

    fn covers(&self, run: &RunKey) -> bool {
        let fits = |wanted: &str, actual: &str| wanted.is_empty() || wanted == actual;
        fits(&self.scope.org, &run.scope.org)
            && fits(&self.scope.project, &run.scope.project)
            && fits(&self.scope.domain, &run.scope.domain)
    }
}
