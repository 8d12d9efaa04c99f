//! Queues, what they hold, and the limits of projects.

use std::collections::BTreeMap;

use aloft_core::{Scope, Time};
use aloft_store::{Census, MAX_DELETED_QUEUES, ProjectLimits, Queue, QueueLoad};
use rusqlite::{Connection, Row, ToSql, params};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error,
    read::{Result, get, rows},
};

type Write = std::result::Result<bool, rusqlite::Error>;

fn json(record: &impl Serialize) -> std::result::Result<Vec<u8>, rusqlite::Error> {
    serde_json::to_vec(record).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

fn body<T: DeserializeOwned>(row: &Row<'_>, what: &str) -> Result<T> {
    serde_json::from_slice(&get::<Vec<u8>>(row, 0)?).map_err(|e| error::corrupt(what, e))
}

/// A generation as a column. One that is too large for it is none that was ever stored.
fn column(generation: u64) -> i64 {
    i64::try_from(generation).unwrap_or(-1)
}

pub(crate) fn create(db: &Connection, queue: &Queue) -> Write {
    // Those deleted longest ago go; what is brought back in the meantime is not deleted any more.
    db.prepare_cached(
        "DELETE FROM queues WHERE org = ?1 AND name IN (
             SELECT name FROM queues WHERE org = ?1 AND deleted_at IS NOT NULL
             ORDER BY deleted_at DESC, name LIMIT -1 OFFSET ?2)",
    )?
    .execute(params![queue.org, MAX_DELETED_QUEUES as i64])?;
    let sql = "INSERT OR IGNORE INTO queues (org, name, generation, deleted_at, body) VALUES (?1, ?2, ?3, ?4, ?5)";
    let deleted = queue.deleted_at.map(Time::as_micros);
    let changed = db.execute(sql, params![queue.org, queue.name, column(queue.generation), deleted, json(queue)?])?;
    Ok(changed > 0)
}

pub(crate) fn replace(db: &Connection, queue: &Queue, generation: u64) -> Write {
    let sql = "UPDATE queues SET generation = ?3, deleted_at = ?4, body = ?5
               WHERE org = ?1 AND name = ?2 AND generation = ?6";
    let (deleted, next, found) = (queue.deleted_at.map(Time::as_micros), column(queue.generation), column(generation));
    Ok(db.execute(sql, params![queue.org, queue.name, next, deleted, json(queue)?, found])? > 0)
}

pub(crate) fn one(db: &Connection, org: &str, name: &str) -> Result<Option<Queue>> {
    let sql = "SELECT body FROM queues WHERE org = ?1 AND name = ?2";
    Ok(rows(db, sql, &[&org, &name], |row| body(row, "a queue"))?.into_iter().next())
}

pub(crate) fn all(db: &Connection, org: &str) -> Result<Vec<Queue>> {
    rows(db, "SELECT body FROM queues WHERE org = ?1 ORDER BY name", &[&org], |row| body(row, "a queue"))
}

pub(crate) fn loads(db: &Connection, org: &str, name: Option<&str>) -> Result<BTreeMap<String, QueueLoad>> {
    let sql = "SELECT queue, sum(waiting), sum(held), sum(runs) FROM loads
               WHERE org = ?1 AND (?2 IS NULL OR queue = ?2) GROUP BY queue
               HAVING sum(waiting) > 0 OR sum(held) > 0 OR sum(runs) > 0";
    let params: [&dyn ToSql; 2] = [&org, &name];
    let number = |row: &Row<'_>, column| get::<i64>(row, column).map(|n| u64::try_from(n).unwrap_or(0));
    let found = rows(db, sql, &params, |row| {
        let load = QueueLoad { waiting: number(row, 1)?, running: number(row, 2)?, runs: number(row, 3)? };
        Ok((get::<String>(row, 0)?, load))
    })?;
    Ok(found.into_iter().collect())
}

pub(crate) fn census(db: &Connection) -> Result<Census> {
    let number = |row: &Row<'_>, column| get::<i64>(row, column).map(|n| u64::try_from(n).unwrap_or(0));
    let sql = "SELECT (SELECT count(*) FROM run_index WHERE ended_at IS NULL),
                      (SELECT count(*) FROM actions INDEXED BY actions_live WHERE ended_at IS NULL),
                      (SELECT count(DISTINCT worker) FROM actions WHERE worker IS NOT NULL)";
    let found = rows(db, sql, &[], |row| Ok((number(row, 0)?, number(row, 1)?, number(row, 2)?)))?;
    let (runs, actions, workers) = found.into_iter().next().unwrap_or_default();
    let mut census = Census { runs, actions, workers, ..Census::default() };
    let sql = "SELECT org, queue, sum(waiting), sum(held), sum(runs) FROM loads GROUP BY org, queue
               HAVING sum(waiting) + sum(held) + sum(runs) > 0";
    let queues = rows(db, sql, &[], |row| {
        let load = QueueLoad { waiting: number(row, 2)?, running: number(row, 3)?, runs: number(row, 4)? };
        Ok(((get(row, 0)?, get(row, 1)?), load))
    })?;
    census.queues = queues.into_iter().collect();
    Ok(census)
}

pub(crate) fn replace_limits(db: &Connection, limits: &ProjectLimits, generation: u64) -> Write {
    let (next, body) = (column(limits.generation), json(limits)?);
    let changed = if generation == 0 {
        let sql = "INSERT OR IGNORE INTO project_limits (org, project, domain, generation, body)
                   VALUES (?1, ?2, ?3, ?4, ?5)";
        db.execute(sql, params![limits.org, limits.project, limits.domain, next, body])?
    } else {
        let sql = "UPDATE project_limits SET generation = ?4, body = ?5
                   WHERE org = ?1 AND project = ?2 AND domain = ?3 AND generation = ?6";
        db.execute(sql, params![limits.org, limits.project, limits.domain, next, body, column(generation)])?
    };
    Ok(changed > 0)
}

pub(crate) fn limits(db: &Connection, org: &str) -> Result<Vec<ProjectLimits>> {
    let sql = "SELECT body FROM project_limits WHERE org = ?1 ORDER BY project, domain";
    rows(db, sql, &[&org], |row| body(row, "the limits of a project"))
}

/// The limits that apply to `scope`: of its project, and of its domain. Every enqueue asks, so it reads no others.
pub(crate) fn limits_of(db: &Connection, scope: &Scope) -> Result<Vec<ProjectLimits>> {
    let sql = "SELECT body FROM project_limits WHERE org = ?1 AND project = ?2 AND domain IN ('', ?3) ORDER BY domain";
    let params: [&dyn ToSql; 3] = [&scope.org, &scope.project, &scope.domain];
    rows(db, sql, &params, |row| body(row, "the limits of a project"))
}
