//! The one writer: a thread that takes what waits, does it in one transaction, and answers after the commit.
//!
//! Requests that arrive while a commit is under way share the next one, so the cost of an fsync is divided among them
//! without anybody waiting for a timer. A job whose command is refused writes nothing; a job that fails on the database
//! itself takes its whole batch with it, because half a batch must not be acknowledged.

use std::collections::HashMap;

use aloft_core::{ActionName, ActionState, Command, Event, Reply, RunKey, Time, View, apply, decide};
use aloft_store::{StoreError, Submission, SubmitError};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use tokio::sync::{mpsc, oneshot};

use crate::{Clock, error, hub::Hub};

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
    let failure = match carry_out(db, jobs, &mut answers, &mut touched, now) {
        Ok(()) => None,
        Err(error) => {
            tracing::error!(%error, jobs = answers.len(), "a batch of writes failed and was rolled back");
            Some(error)
        }
    };
    for answer in answers {
        answer.send(failure.as_ref());
    }
    if failure.is_none() {
        hub.publish(touched.runs, touched.pos);
    }
}

fn carry_out(
    db: &mut Connection,
    jobs: impl Iterator<Item = Job>,
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
                    Some(tx) => submit(tx, &submission, touched, now),
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

/// The states a decision looks at, as loaded.
struct Loaded(HashMap<ActionName, ActionState>);

impl View for Loaded {
    fn action(&self, name: &ActionName) -> Option<&ActionState> {
        self.0.get(name)
    }
}

fn submit(
    tx: &Transaction<'_>,
    submission: &Submission,
    touched: &mut Touched,
    now: Time,
) -> Result<Reply, SubmitError> {
    let Submission { run, command, blobs } = submission;
    let found = find_run(tx, run)?;
    let mut view = Loaded(HashMap::new());
    if let Some((run_id, _)) = found {
        load(tx, run_id, command, &mut view.0)?;
    }
    let decision = decide(&view, command, now)?;
    if decision.events.is_empty() {
        return Ok(decision.reply);
    }
    touched.half_written = true;
    for blob in blobs {
        tx.prepare_cached("INSERT OR IGNORE INTO blobs (digest, bytes) VALUES (?1, ?2)")
            .and_then(|mut s| s.execute(params![blob.digest, blob.bytes.as_ref()]))
            .map_err(error::from_sqlite)?;
    }
    let (run_id, mut seq) = match found {
        Some(found) => found,
        None => (insert_run(tx, run, &decision.events, now)?, 0),
    };
    for event in &decision.events {
        seq += 1;
        let name = event.action();
        let state = apply(view.0.remove(name), event, now)
            .ok_or_else(|| StoreError::Corrupt(format!("event {seq} of run {run} does not fit action {name}")))?;
        touched.pos = Some(append(tx, run_id, seq, event, now)?);
        save(tx, run_id, &state, now)?;
        view.0.insert(name.clone(), state);
    }
    tx.prepare_cached("UPDATE runs SET seq = ?2 WHERE id = ?1")
        .and_then(|mut s| s.execute(params![run_id, seq as i64]))
        .map_err(error::from_sqlite)?;
    touched.runs.insert(run.clone(), seq);
    touched.half_written = false;
    Ok(decision.reply)
}

fn find_run(tx: &Transaction<'_>, run: &RunKey) -> Result<Option<(i64, u64)>, StoreError> {
    tx.prepare_cached("SELECT id, seq FROM runs WHERE org = ?1 AND project = ?2 AND domain = ?3 AND name = ?4")
        .and_then(|mut s| {
            let key = params![run.scope.org, run.scope.project, run.scope.domain, run.name];
            s.query_row(key, |row| Ok((row.get(0)?, row.get::<_, i64>(1)? as u64))).optional()
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
    let Some(Event::Created { run: Some(info), .. }) = events.first() else {
        return Err(StoreError::Corrupt(format!("the log of run {run} does not begin with its creation")));
    };
    let json = serde_json::to_vec(info).map_err(|e| error::corrupt("run", e))?;
    tx.prepare_cached(
        "INSERT INTO runs (org, project, domain, name, seq, created_at, created_by, source, info)
         VALUES (?1, ?2, ?3, ?4, 0, ?5, ?6, ?7, ?8)",
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
            json
        ])
    })
    .map_err(error::from_sqlite)
}

fn append(tx: &Transaction<'_>, run_id: i64, seq: u64, event: &Event, now: Time) -> Result<u64, StoreError> {
    let body = serde_json::to_vec(event).map_err(|e| error::corrupt("event", e))?;
    tx.prepare_cached("INSERT INTO events (run_id, seq, at, body) VALUES (?1, ?2, ?3, ?4)")
        .and_then(|mut s| s.insert(params![run_id, seq as i64, now.as_micros(), body]))
        .map(|pos| pos as u64)
        .map_err(error::from_sqlite)
}

fn save(tx: &Transaction<'_>, run_id: i64, state: &ActionState, now: Time) -> Result<(), StoreError> {
    let json = serde_json::to_vec(state).map_err(|e| error::corrupt("action", e))?;
    let task = state.task().map(|t| &t.task);
    let name = match &state.seed {
        aloft_core::Seed::Task(t) => &t.task.name,
        aloft_core::Seed::Trace(t) => &t.name,
    };
    let duration = state.ended_at.map(|end| i64::try_from(end.since(state.created_at).as_millis()).unwrap_or(i64::MAX));
    let kind = match state.kind() {
        aloft_core::ActionKind::Task => 1,
        aloft_core::ActionKind::Trace => 2,
    };
    tx.prepare_cached(
        "INSERT INTO actions (run_id, name, parent, depth, grp, kind, phase, created_at, updated_at, ended_at,
                              duration_ms, task_name, task_version, short_name, environment, ready_at, due_at, worker,
                              state)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19)
         ON CONFLICT (run_id, name) DO UPDATE SET
             phase = excluded.phase, updated_at = excluded.updated_at, ended_at = excluded.ended_at,
             duration_ms = excluded.duration_ms, ready_at = excluded.ready_at, due_at = excluded.due_at,
             worker = excluded.worker, state = excluded.state",
    )
    .and_then(|mut s| {
        s.execute(params![
            run_id,
            state.name.as_str(),
            state.parent().map(ActionName::as_str),
            state.ancestors.len() as i64,
            state.group,
            kind,
            state.phase.number(),
            state.created_at.as_micros(),
            now.as_micros(),
            state.ended_at.map(Time::as_micros),
            duration,
            name,
            task.map_or("", |t| &t.version),
            task.map_or("", |t| &t.short_name),
            task.map_or("", |t| &t.environment),
            state.ready_at().map(Time::as_micros),
            state.next_limit().map(|(at, _)| at.as_micros()),
            state.live_lease().map(|l| l.worker.0.as_str()),
            json
        ])
    })
    .map(drop)
    .map_err(error::from_sqlite)
}
