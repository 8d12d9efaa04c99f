//! Reads, each on one connection in one transaction.

use std::collections::HashMap;

use aloft_core::{ActionName, ActionState, RunInfo, RunKey, Scope, Subject, Time, WorkerId};
use aloft_store::{
    DeployedTask, FeedItem, Logged, Project, RunRecord, Sift, Sifted, Snapshot, StoreError, TaskId, Which, unpack,
};
use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, Row, ToSql, params};

use crate::{
    error::{self, from_sqlite},
    save, stored,
};

pub(crate) type Result<T> = std::result::Result<T, StoreError>;

/// Every row of a query, decoded.
pub(crate) fn rows<T>(
    db: &Connection,
    sql: &str,
    params: &[&dyn ToSql],
    mut decode: impl FnMut(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = db.prepare_cached(sql).map_err(from_sqlite)?;
    let mut rows = statement.query(params).map_err(from_sqlite)?;
    let mut out = Vec::new();
    while let Some(row) = rows.next().map_err(from_sqlite)? {
        out.push(decode(row)?);
    }
    Ok(out)
}

/// One column of a row.
pub(crate) fn get<T: rusqlite::types::FromSql>(row: &Row<'_>, column: usize) -> Result<T> {
    row.get(column).map_err(from_sqlite)
}

pub(crate) fn run_key(row: &Row<'_>, first: usize) -> Result<RunKey> {
    let text = |i| get::<String>(row, first + i);
    let scope = Scope { org: text(0)?, project: text(1)?, domain: text(2)? };
    Ok(RunKey { scope, name: text(3)? })
}

pub(crate) fn action_name(row: &Row<'_>, column: usize) -> Result<ActionName> {
    ActionName::new(&get::<String>(row, column)?).map_err(|e| error::corrupt("the name of an action", e))
}

pub(crate) fn blob(db: &Connection, digest: &str) -> Result<Option<Bytes>> {
    db.prepare_cached("SELECT bytes FROM blobs WHERE digest = ?1")
        .and_then(|mut s| s.query_row([digest], |row| row.get::<_, Vec<u8>>(0)).optional())
        .map(|found| found.map(Bytes::from))
        .map_err(from_sqlite)
}

/// The run's row number, the number of its last event, and its record.
pub(crate) fn find_run(db: &Connection, run: &RunKey) -> Result<Option<(i64, u64, RunRecord)>> {
    let sql =
        "SELECT id, seq, created_at, info FROM runs WHERE org = ?1 AND project = ?2 AND domain = ?3 AND name = ?4";
    let params: [&dyn ToSql; 4] = [&run.scope.org, &run.scope.project, &run.scope.domain, &run.name];
    let found = rows(db, sql, &params, |row| {
        let record = RunRecord {
            key: run.clone(),
            created_at: Time::from_micros(get(row, 2)?),
            info: run_info(&get::<Vec<u8>>(row, 3)?)?,
        };
        Ok((get(row, 0)?, get::<i64>(row, 1)? as u64, record))
    })?;
    Ok(found.into_iter().next())
}

pub(crate) fn run_info(bytes: &[u8]) -> Result<RunInfo> {
    serde_json::from_slice(bytes).map_err(|e| error::corrupt("a run", e))
}

pub(crate) fn run(db: &Connection, run: &RunKey) -> Result<Option<RunRecord>> {
    Ok(find_run(db, run)?.map(|(_, _, record)| record))
}

/// The state of an action by its own record.
pub(crate) fn load_action(db: &Connection, run_id: i64, name: &ActionName) -> Result<Option<ActionState>> {
    Ok(save::load(db, run_id, name)?.map(|(_, state, _)| state))
}

/// Shows live actions below an ended one as ended, whatever their own record says yet (design rule 5).
pub(crate) fn as_shown(db: &Connection, run_id: i64, states: Vec<ActionState>) -> Result<Vec<ActionState>> {
    let mut above: HashMap<ActionName, Option<ActionState>> = HashMap::new();
    let mut shown = Vec::with_capacity(states.len());
    for state in states {
        if !state.phase.is_terminal() {
            for name in &state.ancestors {
                if !above.contains_key(name) {
                    above.insert(name.clone(), load_action(db, run_id, name)?);
                }
            }
            let ended = state.ancestors.iter().filter_map(|name| above.get(name)?.as_ref());
            if let Some(ended) = ActionState::that_ended_below(ended) {
                shown.push(state.shown_under(ended));
                continue;
            }
        }
        shown.push(state);
    }
    Ok(shown)
}

pub(crate) fn snapshot(db: &Connection, run: &RunKey, which: &Which) -> Result<Option<Snapshot>> {
    let Some((run_id, seq, _)) = find_run(db, run)? else { return Ok(None) };
    let state = |row: &Row<'_>| stored::state(&get::<Vec<u8>>(row, 0)?);
    let actions = match which {
        Which::All => rows(db, "SELECT state FROM actions WHERE run_id = ?1 ORDER BY id", &[&run_id], state)?,
        Which::One(name) => load_action(db, run_id, name)?.into_iter().collect(),
        Which::ChildrenOf(parent) => {
            let sql = "SELECT state FROM actions WHERE run_id = ?1 AND parent = ?2 ORDER BY id";
            rows(db, sql, &[&run_id, &parent.as_str()], state)?
        }
    };
    Ok(Some(Snapshot { seq, actions: as_shown(db, run_id, actions)? }))
}

pub(crate) fn events_after(db: &Connection, run: &RunKey, seq: u64, limit: usize) -> Result<Vec<Logged>> {
    let sql = "SELECT e.seq, e.at, e.body FROM runs r JOIN events e ON e.run_id = r.id
               WHERE r.org = ?1 AND r.project = ?2 AND r.domain = ?3 AND r.name = ?4 AND e.seq > ?5
               ORDER BY e.seq LIMIT ?6";
    let (seq, limit) = (seq as i64, limit as i64);
    let params: [&dyn ToSql; 6] = [&run.scope.org, &run.scope.project, &run.scope.domain, &run.name, &seq, &limit];
    rows(db, sql, &params, |row| logged(row, 0))
}

fn logged(row: &Row<'_>, first: usize) -> Result<Logged> {
    Ok(Logged {
        seq: get::<i64>(row, first)? as u64,
        at: Time::from_micros(get(row, first + 1)?),
        event: stored::event(&get::<Vec<u8>>(row, first + 2)?)?,
    })
}

pub(crate) fn feed_after(db: &Connection, pos: u64, limit: usize) -> Result<Vec<FeedItem>> {
    let sql = "SELECT e.pos, r.org, r.project, r.domain, r.name, e.seq, e.at, e.body
               FROM events e JOIN runs r ON r.id = e.run_id WHERE e.pos > ?1 ORDER BY e.pos LIMIT ?2";
    rows(db, sql, &[&(pos as i64), &(limit as i64)], |row| {
        Ok(FeedItem { pos: get::<i64>(row, 0)? as u64, run: run_key(row, 1)?, logged: logged(row, 5)? })
    })
}

pub(crate) fn sift_feed(db: &Connection, pos: u64, limit: usize, of: Sift) -> Result<Sifted> {
    let sql = "SELECT pos, run_id, seq, at, body FROM events WHERE pos > ?1 ORDER BY pos LIMIT ?2";
    let (mut upto, mut looked) = (pos, 0);
    let found = rows(db, sql, &[&(pos as i64), &(limit as i64)], |row| {
        upto = get::<i64>(row, 0)? as u64;
        looked += 1;
        let body: Vec<u8> = get(row, 4)?;
        let json = unpack(&body).map_err(|e| error::corrupt("an event", e))?;
        if !of.takes(&json) {
            return Ok(None);
        }
        Ok(Some((upto, get::<i64>(row, 1)?, logged(row, 2)?)))
    })?;
    let mut items = Vec::new();
    for (pos, run_id, logged) in found.into_iter().flatten() {
        let sql = "SELECT org, project, domain, name FROM runs WHERE id = ?1";
        let run = rows(db, sql, &[&run_id], |row| run_key(row, 0))?.pop();
        items.extend(run.map(|run| FeedItem { pos, run, logged }));
    }
    Ok(Sifted { items, upto, more: looked == limit })
}

pub(crate) fn last_pos(db: &Connection) -> Result<u64> {
    let sql = "SELECT max(ifnull((SELECT max(pos) FROM events), 0), m.pos) FROM marks m";
    db.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|pos| pos as u64).map_err(from_sqlite)
}

fn named(row: &Row<'_>) -> Result<(RunKey, ActionName)> {
    Ok((run_key(row, 0)?, action_name(row, 4)?))
}

type Timed = (Vec<(RunKey, ActionName)>, Option<Time>);

pub(crate) fn next(db: &Connection, column: &str, now: i64) -> Result<Option<Time>> {
    let sql = format!("SELECT min({column}) FROM actions WHERE {column} > ?1");
    db.prepare_cached(&sql)
        .and_then(|mut s| s.query_row([now], |row| row.get::<_, Option<i64>>(0)))
        .map(|at| at.map(Time::from_micros))
        .map_err(from_sqlite)
}

pub(crate) fn lookups(db: &Connection, now: Time, limit: usize) -> Result<(Vec<Held>, Option<Time>)> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.state FROM actions a JOIN runs r ON r.id = a.run_id
               WHERE a.lookup_at <= ?1 ORDER BY a.lookup_at LIMIT ?2";
    let now = now.as_micros();
    Ok((rows(db, sql, &[&now, &(limit as i64)], with_state)?, next(db, "lookup_at", now)?))
}

pub(crate) fn calls_due(db: &Connection, limit: usize) -> Result<Vec<(RunKey, ActionState)>> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.state FROM actions a JOIN runs r ON r.id = a.run_id
               WHERE a.call_at IS NOT NULL ORDER BY a.call_at LIMIT ?1";
    rows(db, sql, &[&(limit as i64)], with_state)
}

/// An action with its run.
type Held = (RunKey, ActionState);

fn with_state(row: &Row<'_>) -> Result<Held> {
    Ok((run_key(row, 0)?, stored::state(&get::<Vec<u8>>(row, 4)?)?))
}

pub(crate) fn due(db: &Connection, now: Time, limit: usize) -> Result<Timed> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.name FROM actions a JOIN runs r ON r.id = a.run_id
               WHERE a.due_at <= ?1 ORDER BY a.due_at LIMIT ?2";
    let now = now.as_micros();
    Ok((rows(db, sql, &[&now, &(limit as i64)], named)?, next(db, "due_at", now)?))
}

pub(crate) fn held_by(db: &Connection, worker: &WorkerId) -> Result<Vec<(RunKey, ActionState)>> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.state FROM actions a JOIN runs r ON r.id = a.run_id
               WHERE a.worker = ?1 ORDER BY a.id";
    rows(db, sql, &[&worker.0], with_state)
}

/// Up to `limit` actions that `worker` holds after row `after`, and the last row if there may be more.
pub(crate) fn held_part(
    db: &Connection,
    worker: &WorkerId,
    after: Option<i64>,
    limit: usize,
) -> Result<(Vec<Held>, Option<i64>)> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.state, a.id FROM actions a JOIN runs r ON r.id = a.run_id
               WHERE a.worker = ?1 AND a.id > ?2 ORDER BY a.id LIMIT ?3";
    let mut last = None;
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let held = rows(db, sql, &[&worker.0, &after.unwrap_or(i64::MIN), &most], |row| {
        last = Some(get(row, 5)?);
        with_state(row)
    })?;
    let next = last.filter(|_| held.len() == limit);
    Ok((held, next))
}

pub(crate) fn unsettled(db: &Connection, limit: usize) -> Result<Vec<(RunKey, ActionName)>> {
    let sql = "SELECT r.org, r.project, r.domain, r.name, a.name
               FROM actions p INDEXED BY actions_unsettled
               CROSS JOIN actions a INDEXED BY actions_live
                   ON a.run_id = p.run_id AND a.parent = p.name AND a.ended_at IS NULL
               JOIN runs r ON r.id = a.run_id
               WHERE p.ended_at IS NOT NULL AND p.open_children > 0 LIMIT ?1";
    rows(db, sql, &[&(limit as i64)], named)
}

pub(crate) const TASK_COLUMNS: &str =
    "t.org, t.project, t.domain, t.name, t.version, t.digest, t.short_name, t.environment,
                            t.entrypoint, t.deployed_at, t.deployer";

pub(crate) fn deployed(row: &Row<'_>, first: usize) -> Result<DeployedTask> {
    let text = |i| get::<String>(row, first + i);
    let deployer: Subject = serde_json::from_slice(&get::<Vec<u8>>(row, first + 10)?)
        .map_err(|e| error::corrupt("the deployer of a task", e))?;
    Ok(DeployedTask {
        id: TaskId {
            scope: Scope { org: text(0)?, project: text(1)?, domain: text(2)? },
            name: text(3)?,
            version: text(4)?,
        },
        digest: text(5)?,
        short_name: text(6)?,
        environment: text(7)?,
        entrypoint: get::<i64>(row, first + 8)? != 0,
        deployed_at: Time::from_micros(get(row, first + 9)?),
        deployed_by: deployer,
    })
}

pub(crate) fn task(db: &Connection, id: &TaskId) -> Result<Option<DeployedTask>> {
    let sql = format!(
        "SELECT {TASK_COLUMNS} FROM tasks t
         WHERE t.org = ?1 AND t.project = ?2 AND t.domain = ?3 AND t.name = ?4 AND t.version = ?5"
    );
    let params: [&dyn ToSql; 5] = [&id.scope.org, &id.scope.project, &id.scope.domain, &id.name, &id.version];
    Ok(rows(db, &sql, &params, |row| deployed(row, 0))?.into_iter().next())
}

fn project_body(row: &Row<'_>) -> Result<Project> {
    serde_json::from_slice(&get::<Vec<u8>>(row, 0)?).map_err(|e| error::corrupt("a project", e))
}

pub(crate) fn project(db: &Connection, org: &str, id: &str) -> Result<Option<Project>> {
    let sql = "SELECT body FROM projects WHERE org = ?1 AND id = ?2";
    Ok(rows(db, sql, &[&org, &id], project_body)?.into_iter().next())
}

pub(crate) fn projects(db: &Connection, org: &str) -> Result<Vec<Project>> {
    rows(db, "SELECT body FROM projects WHERE org = ?1 ORDER BY id", &[&org], project_body)
}

/// The parameters of an insert into `tasks`, in the order of its columns.
pub(crate) fn insert_task(db: &Connection, task: &DeployedTask) -> std::result::Result<bool, rusqlite::Error> {
    let deployer =
        serde_json::to_vec(&task.deployed_by).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
    let changed = db
        .prepare_cached(
            "INSERT OR IGNORE INTO tasks (org, project, domain, name, version, digest, short_name, environment, entrypoint,
                                          deployed_at, deployed_by, deployer)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        )?
        .execute(params![
            task.id.scope.org,
            task.id.scope.project,
            task.id.scope.domain,
            task.id.name,
            task.id.version,
            task.digest,
            task.short_name,
            task.environment,
            i64::from(task.entrypoint),
            task.deployed_at.as_micros(),
            task.deployed_by.id,
            deployer
        ])?;
    Ok(changed > 0)
}
