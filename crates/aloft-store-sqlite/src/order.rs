//! Kept orders of lists (`aloft-store/src/page.rs`).

use aloft_core::Time;
use aloft_store::{KEPT_FOR, MAX_KEPT_TOGETHER, StoreError};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use crate::error::from_sqlite;

/// Row numbers in one part: 32 KB, so that a page reads little of a long order.
const PART: usize = 4096;

/// What was made at this instant, in microseconds, or before has expired.
fn oldest(now: Time) -> i64 {
    now.as_micros().saturating_sub(i64::try_from(KEPT_FOR.as_micros()).unwrap_or(i64::MAX))
}

/// Keeps an order, drops those that have expired or have no room any more, and returns its number.
pub(crate) fn keep(tx: &Transaction<'_>, list: u64, ids: &[i64], now: Time) -> Result<i64, rusqlite::Error> {
    let rows = ids.len() as i64;
    // The newest stay as long as all rows after them and the new ones fit.
    let dropped: Vec<i64> = tx
        .prepare_cached(
            "SELECT id FROM (SELECT id, made_at, sum(rows) OVER (ORDER BY id DESC) AS younger FROM list_orders)
             WHERE made_at <= ?1 OR younger + ?2 > ?3",
        )?
        .query_map(params![oldest(now), rows, MAX_KEPT_TOGETHER as i64], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for order in dropped {
        tx.prepare_cached("DELETE FROM list_order_rows WHERE list_order = ?1")?.execute([order])?;
        tx.prepare_cached("DELETE FROM list_orders WHERE id = ?1")?.execute([order])?;
    }
    let order = tx
        .prepare_cached("INSERT INTO list_orders (list, made_at, rows) VALUES (?1, ?2, ?3)")?
        .insert(params![list.cast_signed(), now.as_micros(), rows])?;
    let mut insert = tx.prepare_cached("INSERT INTO list_order_rows (list_order, part, ids) VALUES (?1, ?2, ?3)")?;
    for (part, ids) in ids.chunks(PART).enumerate() {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        insert.execute(params![order, part as i64, bytes])?;
    }
    Ok(order)
}

/// How many rows a kept order has; `None` if it is gone, has expired, or belongs to another list.
pub(crate) fn rows(db: &Connection, order: i64, list: u64, now: Time) -> Result<Option<usize>, StoreError> {
    db.prepare_cached("SELECT rows FROM list_orders WHERE id = ?1 AND list = ?2 AND made_at > ?3")
        .and_then(|mut s| {
            s.query_row(params![order, list.cast_signed(), oldest(now)], |row| row.get::<_, i64>(0)).optional()
        })
        .map(|found| found.and_then(|n| usize::try_from(n).ok()))
        .map_err(from_sqlite)
}

/// Row numbers of a kept order from place `at` to the end of its part.
pub(crate) fn part(db: &Connection, order: i64, at: usize) -> Result<Vec<i64>, StoreError> {
    let bytes: Option<Vec<u8>> = db
        .prepare_cached("SELECT ids FROM list_order_rows WHERE list_order = ?1 AND part = ?2")
        .and_then(|mut s| s.query_row(params![order, (at / PART) as i64], |row| row.get(0)).optional())
        .map_err(from_sqlite)?;
    let bytes = bytes.unwrap_or_default();
    let ids = bytes.as_chunks::<8>().0.iter().map(|chunk| i64::from_le_bytes(*chunk));
    Ok(ids.skip(at % PART).collect())
}
