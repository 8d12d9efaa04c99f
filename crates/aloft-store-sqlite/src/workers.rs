//! Workers and their sessions.

use aloft_core::WorkerId;
use aloft_store::{AboutWorker, MAX_WORKERS, WorkerRecord};
use rusqlite::{Connection, Row, params};

use crate::{
    error,
    read::{Result, get, rows},
};

type Write = std::result::Result<bool, rusqlite::Error>;

fn json(about: &AboutWorker) -> std::result::Result<Vec<u8>, rusqlite::Error> {
    serde_json::to_vec(about).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

/// A number of a record as a column. One that is too large for it is none that was ever stored.
fn column(beat: u64) -> i64 {
    i64::try_from(beat).unwrap_or(-1)
}

fn record(row: &Row<'_>) -> Result<WorkerRecord> {
    Ok(WorkerRecord {
        id: WorkerId(get(row, 0)?),
        session: get::<i64>(row, 1)?.cast_unsigned(),
        beat: get::<i64>(row, 2)?.cast_unsigned(),
        expired: get(row, 3)?,
        about: serde_json::from_slice(&get::<Vec<u8>>(row, 4)?).map_err(|e| error::corrupt("a worker", e))?,
    })
}

pub(crate) fn put(db: &Connection, worker: &WorkerRecord, beat: u64) -> Write {
    let (session, body) = (worker.session.cast_signed(), json(&worker.about)?);
    let changed = if beat == 0 {
        let sql = "INSERT OR IGNORE INTO workers (id, session, beat, expired, body)
                   SELECT ?1, ?2, 1, ?3, ?4 WHERE (SELECT count(*) FROM workers) < ?5";
        db.execute(sql, params![worker.id.0, session, worker.expired, body, MAX_WORKERS as i64])?
    } else {
        let sql =
            "UPDATE workers SET session = ?2, beat = beat + 1, expired = ?3, body = ?4 WHERE id = ?1 AND beat = ?5";
        db.execute(sql, params![worker.id.0, session, worker.expired, body, column(beat)])?
    };
    Ok(changed > 0)
}

pub(crate) fn beat(db: &Connection, id: &WorkerId, session: u64, about: &AboutWorker) -> Write {
    let sql = "UPDATE workers SET beat = beat + 1, body = ?3 WHERE id = ?1 AND session = ?2 AND NOT expired";
    Ok(db.execute(sql, params![id.0, session.cast_signed(), json(about)?])? > 0)
}

pub(crate) fn forget(db: &Connection, id: &WorkerId, beat: u64) -> Write {
    Ok(db.execute("DELETE FROM workers WHERE id = ?1 AND beat = ?2", params![id.0, column(beat)])? > 0)
}

pub(crate) fn one(db: &Connection, id: &WorkerId) -> Result<Option<WorkerRecord>> {
    let sql = "SELECT id, session, beat, expired, body FROM workers WHERE id = ?1";
    Ok(rows(db, sql, &[&id.0], record)?.pop())
}

pub(crate) fn all(db: &Connection) -> Result<Vec<WorkerRecord>> {
    rows(db, "SELECT id, session, beat, expired, body FROM workers ORDER BY id", &[], record)
}

/// Steps from name to name in the index, instead of reading every lease.
pub(crate) fn holders(db: &Connection) -> Result<Vec<WorkerId>> {
    let sql = "WITH RECURSIVE held (worker) AS (
                   SELECT min(worker) FROM actions WHERE worker IS NOT NULL
                   UNION ALL
                   SELECT (SELECT min(a.worker) FROM actions a WHERE a.worker > held.worker)
                   FROM held WHERE held.worker IS NOT NULL)
               SELECT worker FROM held WHERE worker IS NOT NULL";
    rows(db, sql, &[], |row| get(row, 0).map(WorkerId))
}

pub(crate) fn held_count(db: &Connection, worker: &WorkerId) -> Result<u64> {
    let sql = "SELECT count(*) FROM actions WHERE worker = ?1";
    Ok(rows(db, sql, &[&worker.0], |row| get::<i64>(row, 0))?.pop().map_or(0, i64::cast_unsigned))
}
