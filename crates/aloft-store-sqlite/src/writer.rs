//! The one writer: a thread that takes what waits, does it in one transaction, and answers after the commit.
//!
//! Requests that arrive while a commit is under way share the next one, so the cost of an fsync is divided among them
//! without anybody waiting for a timer. A job whose command is refused writes nothing; a job that fails on the database
//! itself takes its whole batch with it, because half a batch must not be acknowledged.

use std::{cell::RefCell, collections::HashMap, time::Instant};

use aloft_core::{
    ActionName, ActionState, CacheView, Command, EndedBelow, Event, QueueRoom, Reply, Reservation, RunKey, Time, View,
    apply, decide, effects,
};
use aloft_store::{Committed, Hub, Observer, Seen, StoreError, Submission, SubmitError, day, shared_blob};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::{mpsc, oneshot};

use crate::{Clock, cache, error, lanes};

/// Most jobs of one transaction. Two thousand rows keep a batch under ~50 ms here, which bounds the wait of the next one.
const MAX_BATCH: usize = 1024;

type Done<T> = oneshot::Sender<Result<T, SubmitError>>;
/// A write that is not a command to a run.
pub(crate) type RecordJob = Box<dyn FnOnce(&Transaction<'_>, Time) -> Result<bool, rusqlite::Error> + Send>;

pub(crate) enum Job {
    Submit { submission: Box<Submission>, done: Done<Reply> },
    Record { write: RecordJob, done: Done<bool> },
}

enum Answer {
    Submit(Done<Reply>, Result<Reply, SubmitError>),
    Record(Done<bool>, Result<bool, SubmitError>),
}

impl Answer {
    fn send(self, failure: Option<&StoreError>) {
        // A receiver that is gone has given up waiting; the write stands either way.
        match self {
            Self::Submit(done, result) => drop(done.send(overridden(result, failure))),
            Self::Record(done, result) => drop(done.send(overridden(result, failure))),
        }
    }
}

fn overridden<T>(result: Result<T, SubmitError>, failure: Option<&StoreError>) -> Result<T, SubmitError> {
    match failure {
        Some(error) => Err(SubmitError::Store(error.clone())),
        None => result,
    }
}

/// What a batch changed, to wake watchers once it is committed.
#[derive(Default)]
struct Touched {
    runs: HashMap<RunKey, u64>,
    pos: Option<u64>,
    /// Whether a submission has begun to write and not finished.
    half_written: bool,
    /// The run and the shared blob whose use was noted last: most actions are started beside others of their kind.
    noted: Option<(i64, String)>,
    /// What there is to tell of it, if somebody listens.
    committed: Committed,
}

/// Runs until every sender is gone.
pub(crate) fn run(mut db: Connection, mut jobs: mpsc::Receiver<Job>, hub: Hub, clock: Clock) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    while let Some(first) = jobs.blocking_recv() {
        batch.push(first);
        while batch.len() < MAX_BATCH {
            match jobs.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        commit_batch(&mut db, batch.drain(..), &hub, clock());
    }
    if let Err(error) = db.pragma_update(None, "wal_checkpoint", "TRUNCATE") {
        tracing::debug!(%error, "no final checkpoint");
    }
}

fn commit_batch(db: &mut Connection, jobs: impl Iterator<Item = Job>, hub: &Hub, now: Time) {
    let mut answers = Vec::new();
    let mut touched = Touched::default();
    let began = Instant::now();
    let failure = match carry_out(db, jobs, hub, &mut answers, &mut touched, now) {
        Ok(()) => None,
        Err(error) => {
            tracing::error!(%error, jobs = answers.len(), "a batch of writes failed and was rolled back");
            Some(error)
        }
    };
    let took = began.elapsed();
    let commands = answers.len();
    for answer in answers {
        answer.send(failure.as_ref());
    }
    if failure.is_none() {
        hub.publish(touched.runs, touched.pos);
        if let Some(observer) = hub.observer() {
            observer.committed(Committed { commands, took, ..touched.committed });
        }
    }
}

fn carry_out(
    db: &mut Connection,
    jobs: impl Iterator<Item = Job>,
    hub: &Hub,
    answers: &mut Vec<Answer>,
    touched: &mut Touched,
    now: Time,
) -> Result<(), StoreError> {
    let mut failure = None;
    // Answers must be kept even when a job fails, so that nobody waits for ever.
    let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(error::from_sqlite);
    let tx = match tx {
        Ok(tx) => Some(tx),
        Err(error) => {
            failure = Some(error);
            None
        }
    };
    for job in jobs {
        let usable = tx.as_ref().filter(|_| failure.is_none());
        match job {
            Job::Submit { submission, done } => {
                let result = match usable {
                    Some(tx) => submit(tx, &submission, hub.observer(), touched, now),
                    None => Ok(Reply::Unchanged),
                };
                match &result {
                    // One run that cannot be read must not stop the others; nothing was written for it yet.
                    Err(SubmitError::Store(error @ StoreError::Corrupt(_))) if !touched.half_written => {
                        tracing::error!(%error, run = %submission.run, "a run is damaged");
                    }
                    Err(SubmitError::Store(error)) => failure = Some(error.clone()),
                    Ok(_) | Err(SubmitError::Refused(_)) => {}
                }
                answers.push(Answer::Submit(done, result));
            }
            Job::Record { write, done } => {
                let result = match usable {
                    Some(tx) => write(tx, now).map_err(|e| SubmitError::Store(error::from_sqlite(e))),
                    None => Ok(false),
                };
                if let Err(SubmitError::Store(error)) = &result {
                    failure = Some(error.clone());
                }
                answers.push(Answer::Record(done, result));
            }
        }
    }
    match (failure, tx) {
        (Some(error), _) => Err(error),
        (None, Some(tx)) => tx.commit().map_err(error::from_sqlite),
        (None, None) => Ok(()),
    }
}

/// What a decision looks at: states as loaded, records as asked for.
struct Loaded<'t> {
    tx: &'t Transaction<'t>,
    run: &'t RunKey,
    /// The run's row; `None` if it does not exist.
    run_id: Option<i64>,
    states: HashMap<ActionName, ActionState>,
    /// The first read that failed. The decision made without it is thrown away.
    failure: RefCell<Option<StoreError>>,
}

impl Loaded<'_> {
    fn read<T: Default>(&self, read: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>) -> T {
        read(self.tx).unwrap_or_else(|error| {
            self.failure.borrow_mut().get_or_insert(error);
            T::default()
        })
    }
}

impl View for Loaded<'_> {
    fn action(&self, name: &ActionName) -> Option<&ActionState> {
        self.states.get(name)
    }

    fn open_children(&self, name: &ActionName) -> EndedBelow {
        let Some(run_id) = self.run_id else { return EndedBelow::default() };
        self.read(|tx| lanes::open_children(tx, run_id, name))
    }

    fn cache(&self, state: &ActionState) -> CacheView {
        let me = Reservation::owner_of(self.run, &state.name);
        let Some(plan) = state.pending_lookup() else { return CacheView { me, ..CacheView::default() } };
        self.read(|tx| {
            let entries = cache::entries(tx, &self.run.scope, plan)?;
            let holder = cache::holder(tx, &cache::place(&self.run.scope, plan))?;
            Ok(CacheView { entries, holder, me })
        })
    }

    fn queue(&self, name: &str) -> Option<QueueRoom> {
        self.read(|tx| lanes::queue_room(tx, &self.run.scope.org, name))
    }

    fn places(&self) -> Vec<QueueRoom> {
        self.read(|tx| lanes::place_rooms(tx, &self.run.scope))
    }
}

fn submit(
    tx: &Transaction<'_>,
    submission: &Submission,
    observer: Option<&dyn Observer>,
    touched: &mut Touched,
    now: Time,
) -> Result<Reply, SubmitError> {
    let Submission { run, command, blobs } = submission;
    let found = find_run(tx, run)?;
    let run_id = found.map(|run| run.id);
    let mut view = Loaded { tx, run, run_id, states: HashMap::new(), failure: RefCell::default() };
    if let Some(run_id) = run_id {
        load(tx, run_id, command, &mut view.states)?;
    }
    let decision = decide(&view, command, now);
    if let Some(failure) = view.failure.take() {
        return Err(failure.into());
    }
    let decision = decision?;
    touched.half_written = true;
    if let (Command::LookUp { action, .. }, Some(run_id)) = (command, run_id) {
        park(tx, run_id, &view, action, now)?;
    }
    if decision.events.is_empty() {
        touched.half_written = false;
        return Ok(decision.reply);
    }
    let Found { id: run_id, mut seq, created_at } = match found {
        Some(found) => found,
        None => Found { id: insert_run(tx, run, &decision.events, now)?, seq: 0, created_at: now },
    };
    for blob in blobs {
        tx.prepare_cached("INSERT OR IGNORE INTO blobs (digest, bytes, run_id) VALUES (?1, ?2, ?3)")
            .and_then(|mut s| s.execute(params![blob.digest, blob.bytes.as_ref(), blob.own.then_some(run_id)]))
            .map_err(error::from_sqlite)?;
    }
    for event in &decision.events {
        seq += 1;
        let name = event.action();
        let before = view.states.remove(name);
        let state = apply(before.clone(), event, now)
            .ok_or_else(|| StoreError::Corrupt(format!("event {seq} of run {run} does not fit action {name}")))?;
        touched.pos = Some(append(tx, run_id, seq, event, now)?);
        touched.committed.events += 1;
        if let Some(observer) = observer {
            Seen::add(&mut touched.committed.seen, observer, run, before.as_ref(), event, &state, now);
        }
        save(tx, run_id, before.as_ref(), &state, now)?;
        if before.is_none() {
            note_use(tx, touched, run, run_id, created_at, &state)?;
        }
        for effect in effects(run, before.as_ref(), &state, now) {
            cache::carry_out(tx, &run.scope, &effect, now)?;
        }
        view.states.insert(name.clone(), state);
    }
    tx.prepare_cached("UPDATE runs SET seq = ?2 WHERE id = ?1")
        .and_then(|mut s| s.execute(params![run_id, seq as i64]))
        .map_err(error::from_sqlite)?;
    touched.runs.insert(run.clone(), seq);
    touched.half_written = false;
    Ok(decision.reply)
}

/// Puts off the lookup of an action that has to wait for another's result, until that one gives its reservation back or
/// lets it lapse. What is decided otherwise is saved after this.
fn park(tx: &Transaction<'_>, run_id: i64, view: &Loaded<'_>, name: &ActionName, now: Time) -> Result<(), StoreError> {
    let Some(state) = view.states.get(name).filter(|s| s.pending_lookup().is_some_and(|plan| plan.serialize)) else {
        return Ok(());
    };
    let found = view.cache(state);
    let Some(holder) = found.holder.filter(|h| h.owner != found.me && h.holds(now)) else { return Ok(()) };
    tx.prepare_cached("UPDATE actions SET lookup_at = ?3 WHERE run_id = ?1 AND name = ?2")
        .and_then(|mut s| s.execute(params![run_id, name.as_str(), holder.expires_at.map(Time::as_micros)]))
        .map(drop)
        .map_err(error::from_sqlite)
}

/// Notes that the runs of this place and day use the blob that a new action refers to.
fn note_use(
    tx: &Transaction<'_>,
    touched: &mut Touched,
    run: &RunKey,
    run_id: i64,
    created_at: Time,
    state: &ActionState,
) -> Result<(), StoreError> {
    let Some(digest) = shared_blob(state) else { return Ok(()) };
    if touched.noted.as_ref().is_some_and(|(noted, last)| *noted == run_id && last == digest) {
        return Ok(());
    }
    let scope = &run.scope;
    tx.prepare_cached(
        "INSERT OR IGNORE INTO blob_uses (org, project, domain, day, digest) VALUES (?1, ?2, ?3, ?4, ?5)",
    )
    .and_then(|mut s| s.execute(params![scope.org, scope.project, scope.domain, day(created_at), digest]))
    .map_err(error::from_sqlite)?;
    touched.noted = Some((run_id, digest.to_owned()));
    Ok(())
}

/// A run's row.
#[derive(Clone, Copy)]
struct Found {
    id: i64,
    seq: u64,
    created_at: Time,
}

fn find_run(tx: &Transaction<'_>, run: &RunKey) -> Result<Option<Found>, StoreError> {
    tx.prepare_cached(
        "SELECT id, seq, created_at FROM runs WHERE org = ?1 AND project = ?2 AND domain = ?3 AND name = ?4",
    )
    .and_then(|mut s| {
        let key = params![run.scope.org, run.scope.project, run.scope.domain, run.name];
        let found = |row: &rusqlite::Row<'_>| {
            let (id, seq) = (row.get(0)?, row.get::<_, i64>(1)? as u64);
            Ok(Found { id, seq, created_at: Time::from_micros(row.get(2)?) })
        };
        s.query_row(key, found).optional()
    })
    .map_err(error::from_sqlite)
}

/// Loads what the command touches and everything above it. The root comes too: it tells a missing run from a missing action.
fn load(
    tx: &Transaction<'_>,
    run_id: i64,
    command: &Command,
    states: &mut HashMap<ActionName, ActionState>,
) -> Result<(), StoreError> {
    let mut wanted = command.touches();
    wanted.push(ActionName::root());
    while let Some(name) = wanted.pop() {
        if states.contains_key(&name) {
            continue;
        }
        if let Some(state) = load_action(tx, run_id, &name)? {
            wanted.extend(state.ancestors.iter().cloned());
            states.insert(name, state);
        }
    }
    Ok(())
}

pub(crate) fn load_action(db: &Connection, run_id: i64, name: &ActionName) -> Result<Option<ActionState>, StoreError> {
    let bytes: Option<Vec<u8>> = db
        .prepare_cached("SELECT state FROM actions WHERE run_id = ?1 AND name = ?2")
        .and_then(|mut s| s.query_row(params![run_id, name.as_str()], |row| row.get(0)).optional())
        .map_err(error::from_sqlite)?;
    bytes.map(|b| decode_state(&b)).transpose()
}

pub(crate) fn decode_state(bytes: &[u8]) -> Result<ActionState, StoreError> {
    serde_json::from_slice(bytes).map_err(|e| error::corrupt("the state of an action", e))
}

fn insert_run(tx: &Transaction<'_>, run: &RunKey, events: &[Event], now: Time) -> Result<i64, StoreError> {
    let Some(Event::Created { run: Some(info), seed, .. }) = events.first() else {
        return Err(StoreError::Corrupt(format!("the log of run {run} does not begin with its creation")));
    };
    let json = serde_json::to_vec(info).map_err(|e| error::corrupt("run", e))?;
    let queue = match seed.as_ref() {
        aloft_core::Seed::Task(task) => task.queue.as_str(),
        aloft_core::Seed::Trace(_) | aloft_core::Seed::Condition(_) => aloft_core::DEFAULT_QUEUE,
    };
    let related = info.relation.as_ref().map(|r| r.to.name.as_str());
    tx.prepare_cached(
        "INSERT INTO runs (id, org, project, domain, name, seq, created_at, created_by, source, info, max_actions, queue,
                           related_to)
         SELECT max(ifnull((SELECT max(id) FROM runs), 0), m.run) + 1, ?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8, ?9, ?10, ?11
         FROM marks m",
    )
    .and_then(|mut s| {
        s.insert(params![
            run.scope.org,
            run.scope.project,
            run.scope.domain,
            run.name,
            now.as_micros(),
            info.created_by.id,
            info.source,
            json,
            info.max_action_concurrency,
            queue,
            related,
        ])
    })
    .map_err(error::from_sqlite)
}

fn append(tx: &Transaction<'_>, run_id: i64, seq: u64, event: &Event, now: Time) -> Result<u64, StoreError> {
    let body = serde_json::to_vec(event).map_err(|e| error::corrupt("event", e))?;
    tx.prepare_cached(
        "INSERT INTO events (pos, run_id, seq, at, body)
         SELECT max(ifnull((SELECT max(pos) FROM events), 0), m.pos) + 1, ?1, ?2, ?3, ?4 FROM marks m",
    )
    .and_then(|mut s| s.insert(params![run_id, seq as i64, now.as_micros(), body]))
    .map(|pos| pos as u64)
    .map_err(error::from_sqlite)
}

/// Keeps the projection of one action, and what it changes of its parent's and its run's.
fn save(
    tx: &Transaction<'_>,
    run_id: i64,
    before: Option<&ActionState>,
    state: &ActionState,
    now: Time,
) -> Result<(), StoreError> {
    let json = serde_json::to_vec(state).map_err(|e| error::corrupt("action", e))?;
    let task = state.task().map(|t| &t.task);
    let asks = state.task().map(|t| t.asks).unwrap_or_default();
    let duration = state.ended_at.map(|end| i64::try_from(end.since(state.created_at).as_millis()).unwrap_or(i64::MAX));
    let pending = state.pending_lookup();
    // A lookup becomes due when it is first to come; `park` puts it off, and a release brings it back.
    let lookup_at = pending.filter(|_| before.is_none()).map(|_| now.as_micros());
    let amount = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    tx.prepare_cached(
        "INSERT INTO actions (run_id, name, parent, depth, grp, kind, phase, created_at, updated_at, ended_at,
                              duration_ms, task_name, task_version, short_name, environment, ready_at, due_at, worker,
                              state, queue, asks_memory, asks_cpu, asks_gpu, lookup_at, cache_key, call_at, counted)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
                 ?24, ?25, ?26, ?27)
         ON CONFLICT (run_id, name) DO UPDATE SET
             phase = excluded.phase, updated_at = excluded.updated_at, ended_at = excluded.ended_at,
             duration_ms = excluded.duration_ms, ready_at = excluded.ready_at, due_at = excluded.due_at,
             worker = excluded.worker, state = excluded.state, cache_key = excluded.cache_key,
             lookup_at = iif(excluded.cache_key IS NULL, NULL, lookup_at), call_at = excluded.call_at,
             counted = iif(open_children = 0, excluded.counted, 0)",
    )
    .and_then(|mut s| {
        s.execute(params![
            run_id,
            state.name.as_str(),
            state.parent().map(ActionName::as_str),
            state.ancestors.len() as i64,
            state.group,
            state.kind().number(),
            state.phase.number(),
            state.created_at.as_micros(),
            now.as_micros(),
            state.ended_at.map(Time::as_micros),
            duration,
            state.title(),
            task.map_or("", |t| &t.version),
            task.map_or("", |t| &t.short_name),
            task.map_or("", |t| &t.environment),
            state.ready_at().map(Time::as_micros),
            state.due_at().map(Time::as_micros),
            state.live_lease().map(|l| l.worker.0.as_str()),
            json,
            state.queue(),
            amount(asks.memory),
            amount(asks.cpu),
            amount(asks.gpu),
            lookup_at,
            pending.map(|plan| plan.key.as_str()),
            state.webhook_is_due().then(|| state.created_at.as_micros()),
            state.counts(0),
        ])
    })
    .map_err(error::from_sqlite)?;
    let (was, is) = (before.is_some_and(|b| !b.phase.is_terminal()), !state.phase.is_terminal());
    if let Some(parent) = state.parent().filter(|_| was != is) {
        tx.prepare_cached(
            "UPDATE actions SET open_children = open_children + ?3,
                                counted = worker IS NOT NULL AND open_children + ?3 = 0
             WHERE run_id = ?1 AND name = ?2",
        )
        .and_then(|mut s| s.execute(params![run_id, parent.as_str(), if is { 1 } else { -1 }]))
        .map_err(error::from_sqlite)?;
    }
    if state.name.is_root() {
        tx.prepare_cached("UPDATE runs SET started = max(started, ?2), ended = ?3 WHERE id = ?1")
            .and_then(|mut s| s.execute(params![run_id, state.live_lease().is_some(), !is]))
            .map_err(error::from_sqlite)?;
    }
    Ok(())
}
