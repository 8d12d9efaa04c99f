//! Workers and their sessions.

use aloft_core::WorkerId;
use aloft_store::{AboutWorker, MAX_WORKERS, WorkerRecord};
use tokio_postgres::Row;

use crate::{
    Tx,
    read::{Reader, Result},
    records::write,
    rows::{amount, clean, decode, encode, number},
};

/// A number of a record as a column. One that is too large for it is none that was ever stored.
fn column(beat: u64) -> i64 {
    i64::try_from(beat).unwrap_or(-1)
}

fn record(row: &Row) -> Result<WorkerRecord> {
    Ok(WorkerRecord {
        id: WorkerId(row.get(0)),
        session: row.get::<_, i64>(1).cast_unsigned(),
        beat: number(row, 2),
        expired: row.get(3),
        about: decode(row, 4, "a worker")?,
    })
}

pub(crate) async fn put(tx: &Tx, worker: &WorkerRecord, beat: u64) -> Result<bool> {
    let (id, session, body) = (clean(&worker.id.0), worker.session.cast_signed(), encode(&worker.about)?);
    if beat == 0 {
        let sql = "INSERT INTO workers (id, session, beat, expired, body)
                   SELECT $1, $2, 1, $3, $4 WHERE (SELECT count(*) FROM workers) < $5 ON CONFLICT DO NOTHING";
        return write(tx, sql, &[&id, &session, &worker.expired, &body, &amount(MAX_WORKERS as u64)]).await;
    }
    let sql = "UPDATE workers SET session = $2, beat = beat + 1, expired = $3, body = $4 WHERE id = $1 AND beat = $5";
    write(tx, sql, &[&id, &session, &worker.expired, &body, &column(beat)]).await
}

pub(crate) async fn beat(tx: &Tx, id: &WorkerId, session: u64, about: &AboutWorker) -> Result<bool> {
    let sql = "UPDATE workers SET beat = beat + 1, body = $3 WHERE id = $1 AND session = $2 AND NOT expired";
    write(tx, sql, &[&clean(&id.0), &session.cast_signed(), &encode(about)?]).await
}

pub(crate) async fn forget(tx: &Tx, id: &WorkerId, beat: u64) -> Result<bool> {
    write(tx, "DELETE FROM workers WHERE id = $1 AND beat = $2", &[&clean(&id.0), &column(beat)]).await
}

pub(crate) async fn one(db: &Reader, id: &WorkerId) -> Result<Option<WorkerRecord>> {
    let sql = "SELECT id, session, beat, expired, body FROM workers WHERE id = $1";
    Ok(db.rows(sql, &[&clean(&id.0)], record).await?.pop())
}

pub(crate) async fn all(db: &Reader) -> Result<Vec<WorkerRecord>> {
    db.rows("SELECT id, session, beat, expired, body FROM workers ORDER BY id", &[], record).await
}

/// Steps from name to name in the index, instead of reading every lease.
pub(crate) async fn holders(db: &Reader) -> Result<Vec<WorkerId>> {
    let sql = "WITH RECURSIVE held (worker) AS (
                   (SELECT worker FROM live WHERE worker IS NOT NULL ORDER BY worker LIMIT 1)
                   UNION ALL
                   SELECT n.worker FROM held, LATERAL (
                       SELECT l.worker FROM live l WHERE l.worker > held.worker ORDER BY l.worker LIMIT 1) n)
               SELECT worker FROM held";
    db.rows(sql, &[], |row| Ok(WorkerId(row.get(0)))).await
}

pub(crate) async fn held_count(db: &Reader, worker: &WorkerId) -> Result<u64> {
    let sql = "SELECT count(*) FROM live WHERE worker = $1";
    Ok(db.rows(sql, &[&clean(&worker.0)], |row| Ok(number(row, 0))).await?.pop().unwrap_or_default())
}
