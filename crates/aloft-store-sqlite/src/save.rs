//! What the writer reads and writes, a row at a time.

use std::collections::BTreeMap;

use aloft_core::{ActionName, ActionState, Event, RunKey, Scope, Time};
use aloft_store::{Blob, Share, StoreError, day};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use crate::{
    error::{self, from_sqlite},
    hot::{HotAction, HotRun, Unwritten},
    stored,
};

/// A task as lists name it: organisation, project, domain, name and version; without a version all of its versions.
pub(crate) type TaskKey = [String; 5];

/// A run as its row says.
pub(crate) fn find_run(tx: &Connection, run: &RunKey) -> Result<Option<HotRun>, StoreError> {
    tx.prepare_cached(
        "SELECT id, created_at, seq, started, ended FROM runs
         WHERE org = ?1 AND project = ?2 AND domain = ?3 AND name = ?4",
    )
    .and_then(|mut s| {
        let key = params![run.scope.org, run.scope.project, run.scope.domain, run.name];
        let found = |row: &rusqlite::Row<'_>| {
            let mut found = HotRun::new(row.get(0)?, Time::from_micros(row.get(1)?));
            (found.seq, found.started, found.ended) = (row.get::<_, i64>(2)? as u64, row.get(3)?, row.get(4)?);
            Ok(found)
        };
        s.query_row(key, found).optional()
    })
    .map_err(from_sqlite)
}

/// The row of an action: its number, its state, and how many of its children have not ended.
pub(crate) fn load(
    tx: &Connection,
    run_id: i64,
    name: &ActionName,
) -> Result<Option<(i64, ActionState, i64)>, StoreError> {
    let found: Option<(i64, Vec<u8>, i64)> = tx
        .prepare_cached("SELECT id, state, open_children FROM actions WHERE run_id = ?1 AND name = ?2")
        .and_then(|mut s| {
            s.query_row(params![run_id, name.as_str()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()
        })
        .map_err(from_sqlite)?;
    found.map(|(row, state, open)| Ok((row, stored::state(&state)?, open))).transpose()
}

/// Stores a blob that run `run_id` brings.
pub(crate) fn blob(tx: &Transaction<'_>, blob: &Blob, run_id: i64) -> Result<(), StoreError> {
    tx.prepare_cached("INSERT OR IGNORE INTO blobs (digest, bytes, run_id) VALUES (?1, ?2, ?3)")
        .and_then(|mut s| s.execute(params![blob.digest, blob.bytes.as_ref(), blob.own.then_some(run_id)]))
        .map(drop)
        .map_err(from_sqlite)
}

/// Notes that the runs of this place and day use the blob that a new action refers to.
pub(crate) fn blob_use(tx: &Transaction<'_>, run: &RunKey, created_at: Time, digest: &str) -> Result<(), StoreError> {
    let scope = &run.scope;
    tx.prepare_cached("INSERT OR IGNORE INTO blob_uses (org, project, domain, day, digest) VALUES (?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut s| s.execute(params![scope.org, scope.project, scope.domain, day(created_at), digest]))
        .map(drop)
        .map_err(from_sqlite)
}

pub(crate) fn insert_run(tx: &Transaction<'_>, run: &RunKey, events: &[Event], now: Time) -> Result<i64, StoreError> {
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
    .map_err(from_sqlite)
}

/// Appends an event to its run's log, and returns its place in the feed.
pub(crate) fn append(tx: &Transaction<'_>, run_id: i64, seq: u64, event: &Event, now: Time) -> Result<u64, StoreError> {
    let body = stored::of_event(event)?;
    tx.prepare_cached(
        "INSERT INTO events (pos, run_id, seq, at, body)
         SELECT max(ifnull((SELECT max(pos) FROM events), 0), m.pos) + 1, ?1, ?2, ?3, ?4 FROM marks m",
    )
    .and_then(|mut s| s.insert(params![run_id, seq as i64, now.as_micros(), body]))
    .map(|pos| pos as u64)
    .map_err(from_sqlite)
}

/// The word that a value is stored as in a column.
fn word(value: &impl serde::Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// Writes what is not written of an action.
pub(crate) fn action(tx: &Transaction<'_>, run_id: i64, hot: &mut HotAction, now: Time) -> Result<(), StoreError> {
    match (hot.unwritten, hot.row) {
        (Unwritten::Nothing, _) => Ok(()),
        (Unwritten::State, None) => {
            hot.row = Some(insert(tx, run_id, hot, now)?);
            Ok(())
        }
        (Unwritten::State, Some(row)) => update(tx, row, hot, now),
        (Unwritten::Children, row) => tx
            .prepare_cached("UPDATE actions SET open_children = ?2 WHERE id = ?1")
            .and_then(|mut s| s.execute(params![row, hot.open_children]))
            .map(drop)
            .map_err(from_sqlite),
    }
}

fn duration(state: &ActionState) -> Option<i64> {
    state.ended_at.map(|end| i64::try_from(end.since(state.created_at).as_millis()).unwrap_or(i64::MAX))
}

fn ended_above(state: &ActionState) -> bool {
    state.aborted.as_ref().is_some_and(|by| by.above.is_some())
}

fn insert(tx: &Transaction<'_>, run_id: i64, hot: &HotAction, now: Time) -> Result<i64, StoreError> {
    let state = &hot.state;
    let task = state.task().map(|t| &t.task);
    let asks = state.task().map(|t| t.asks).unwrap_or_default();
    let pending = state.pending_lookup();
    let amount = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    tx.prepare_cached(
        "INSERT INTO actions (run_id, name, parent, depth, grp, kind, phase, created_at, updated_at, started_at, ended_at,
                              duration_ms, attempts, error_kind, cache_status, ended_above, task_project, task_domain,
                              task_name, task_version, short_name, environment, ready_at, due_at, worker, state, queue,
                              asks_memory, asks_cpu, asks_gpu, lookup_at, cache_key, call_at, open_children)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
                 ?24, ?25, ?26, ?27, ?28, ?29, ?30, ?31, ?32, ?33, ?34)",
    )
    .and_then(|mut s| {
        s.insert(params![
            run_id,
            state.name.as_str(),
            state.parent().map(ActionName::as_str),
            state.ancestors.len() as i64,
            state.group,
            state.kind().number(),
            state.phase.number(),
            state.created_at.as_micros(),
            now.as_micros(),
            state.started_at.map(Time::as_micros),
            state.ended_at.map(Time::as_micros),
            duration(state),
            state.attempts.len() as i64,
            state.error.as_ref().map(|e| word(&e.kind)),
            word(&state.cache.status),
            ended_above(state),
            task.map(|t| &t.project),
            task.map(|t| &t.domain),
            state.title(),
            task.map_or("", |t| &t.version),
            task.map_or("", |t| &t.short_name),
            task.map_or("", |t| &t.environment),
            state.ready_at().map(Time::as_micros),
            state.due_at().map(Time::as_micros),
            state.live_lease().map(|l| l.worker.0.as_str()),
            stored::of_state(state).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?,
            state.queue(),
            amount(asks.memory),
            amount(asks.cpu),
            amount(asks.gpu),
            // A lookup becomes due when it is first to come; `put_off` changes that, and a release brings it back.
            pending.map(|_| now.as_micros()),
            pending.map(|plan| plan.key.as_str()),
            state.webhook_is_due().then(|| state.created_at.as_micros()),
            hot.open_children,
        ])
    })
    .map_err(from_sqlite)
}

fn update(tx: &Transaction<'_>, row: i64, hot: &HotAction, now: Time) -> Result<(), StoreError> {
    let state = &hot.state;
    tx.prepare_cached(
        "UPDATE actions SET
             phase = ?2, updated_at = ?3, started_at = ?4, ended_at = ?5, duration_ms = ?6, attempts = ?7,
             error_kind = ?8, cache_status = ?9, ended_above = ?10, ready_at = ?11, due_at = ?12, worker = ?13, state = ?14,
             cache_key = ?15, lookup_at = iif(?15 IS NULL, NULL, lookup_at), call_at = ?16, open_children = ?17
         WHERE id = ?1",
    )
    .and_then(|mut s| {
        s.execute(params![
            row,
            state.phase.number(),
            now.as_micros(),
            state.started_at.map(Time::as_micros),
            state.ended_at.map(Time::as_micros),
            duration(state),
            state.attempts.len() as i64,
            state.error.as_ref().map(|e| word(&e.kind)),
            word(&state.cache.status),
            ended_above(state),
            state.ready_at().map(Time::as_micros),
            state.due_at().map(Time::as_micros),
            state.live_lease().map(|l| l.worker.0.as_str()),
            stored::of_state(state).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?,
            state.pending_lookup().map(|plan| plan.key.as_str()),
            state.webhook_is_due().then(|| state.created_at.as_micros()),
            hot.open_children,
        ])
    })
    .map(drop)
    .map_err(from_sqlite)
}

/// Writes what has changed of a run.
pub(crate) fn run(tx: &Transaction<'_>, hot: &HotRun) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE runs SET seq = ?2, started = ?3, ended = ?4, in_flight = in_flight + ?5 WHERE id = ?1")
        .and_then(|mut s| s.execute(params![hot.id, hot.seq as i64, hot.started, hot.ended, hot.in_flight]))
        .map(drop)
        .map_err(from_sqlite)
}

/// Puts off the lookup of an action that has to wait for another's result. What is decided otherwise is saved after this.
pub(crate) fn put_off(
    tx: &Transaction<'_>,
    run_id: i64,
    name: &ActionName,
    until: Option<Time>,
) -> Result<(), StoreError> {
    tx.prepare_cached("UPDATE actions SET lookup_at = ?3 WHERE run_id = ?1 AND name = ?2")
        .and_then(|mut s| s.execute(params![run_id, name.as_str(), until.map(Time::as_micros)]))
        .map(drop)
        .map_err(from_sqlite)
}

/// Adds to what queues hold.
pub(crate) fn shares(tx: &Transaction<'_>, shares: &BTreeMap<(Scope, String), Share>) -> Result<(), StoreError> {
    for ((scope, queue), share) in shares.iter().filter(|(_, share)| **share != Share::default()) {
        let Share { waiting, held, counted, memory, cpu, gpu, runs } = share;
        tx.prepare_cached(
            "INSERT INTO loads VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)
             ON CONFLICT DO UPDATE SET waiting = waiting + ?5, held = held + ?6, counted = counted + ?7,
                 memory = memory + ?8, cpu = cpu + ?9, gpu = gpu + ?10, runs = runs + ?11",
        )
        .and_then(|mut s| {
            let place = (&scope.org, &scope.project, &scope.domain);
            s.execute(params![place.0, place.1, place.2, queue, waiting, held, counted, memory, cpu, gpu, runs])
        })
        .map_err(from_sqlite)?;
    }
    Ok(())
}

/// Notes that `run` is the newest that has an action of its task.
pub(crate) fn newest_run(newest: &mut BTreeMap<TaskKey, i64>, run: &RunKey, run_id: i64, state: &ActionState) {
    let Some(task) = state.task().map(|t| &t.task) else { return };
    for version in ["", task.version.as_str()] {
        let key = [&run.scope.org, &task.project, &task.domain, &task.name].map(|t| t.as_str());
        let [org, project, domain, name] = key.map(str::to_owned);
        let known = newest.entry([org, project, domain, name, version.to_owned()]).or_insert(run_id);
        *known = run_id.max(*known);
    }
}

/// Remembers the run that each task was last part of. The newer of two runs is the one with the larger row number.
pub(crate) fn task_runs(tx: &Transaction<'_>, newest: &BTreeMap<TaskKey, i64>) -> Result<(), StoreError> {
    for ([org, project, domain, name, version], run_id) in newest {
        tx.prepare_cached(
            "INSERT INTO task_runs VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT DO UPDATE SET run_id = excluded.run_id WHERE excluded.run_id > run_id",
        )
        .and_then(|mut s| s.execute(params![org, project, domain, name, version, run_id]))
        .map_err(from_sqlite)?;
    }
    Ok(())
}
