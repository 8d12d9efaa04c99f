//! Kept orders of lists (`aloft-store/src/page.rs`).

use aloft_core::Time;
use aloft_store::{KEPT_FOR, MAX_KEPT_TOGETHER, StoreError};

use crate::{
    Tx,
    error::from_postgres,
    read::Reader,
    rows::{amount, number},
};

/// Row numbers in one part: 32 KB, so that a page reads little of a long order.
const PART: usize = 4096;

/// What was made at this instant, in microseconds, or before has expired.
fn oldest(now: Time) -> i64 {
    now.as_micros().saturating_sub(i64::try_from(KEPT_FOR.as_micros()).unwrap_or(i64::MAX))
}

/// Keeps an order, drops those that have expired or have no room any more, and returns its number.
pub(crate) async fn keep(tx: &Tx, list: u64, ids: &[i64], now: Time) -> Result<i64, StoreError> {
    let rows = amount(ids.len() as u64);
    // The newest stay as long as all rows after them and the new ones fit.
    let sql = "WITH gone AS (
                   DELETE FROM list_orders o USING
                       (SELECT id, sum(rows) OVER (ORDER BY id DESC) AS younger FROM list_orders) y
                   WHERE o.id = y.id AND (o.made_at <= $1 OR y.younger + $2::bigint > $3::bigint) RETURNING o.id)
               DELETE FROM list_order_rows WHERE list_order IN (SELECT id FROM gone)";
    tx.execute(sql, &[&oldest(now), &rows, &amount(MAX_KEPT_TOGETHER as u64)]).await.map_err(from_postgres)?;
    let sql = "INSERT INTO list_orders (list, made_at, rows) VALUES ($1, $2, $3) RETURNING id";
    let made = tx.query_one(sql, &[&list.cast_signed(), &now.as_micros(), &rows]).await.map_err(from_postgres)?;
    let order: i64 = made.get(0);
    for (part, ids) in ids.chunks(PART).enumerate() {
        let sql = "INSERT INTO list_order_rows (list_order, part, ids) VALUES ($1, $2, $3)";
        tx.execute(sql, &[&order, &amount(part as u64), &ids]).await.map_err(from_postgres)?;
    }
    Ok(order)
}

/// How many rows a kept order has; `None` if it is gone, has expired, or belongs to another list.
pub(crate) async fn rows(db: &Reader, order: i64, list: u64, now: Time) -> Result<Option<usize>, StoreError> {
    let sql = "SELECT rows FROM list_orders WHERE id = $1 AND list = $2 AND made_at > $3";
    let found = db.rows(sql, &[&order, &list.cast_signed(), &oldest(now)], |row| Ok(number(row, 0))).await?;
    Ok(found.first().and_then(|n| usize::try_from(*n).ok()))
}

/// Row numbers of a kept order from place `at` to the end of its part.
pub(crate) async fn part(db: &Reader, order: i64, at: usize) -> Result<Vec<i64>, StoreError> {
    let sql = "SELECT ids FROM list_order_rows WHERE list_order = $1 AND part = $2";
    let found = db.rows(sql, &[&order, &amount((at / PART) as u64)], |row| Ok(row.get::<_, Vec<i64>>(0))).await?;
    Ok(found.into_iter().flatten().skip(at % PART).collect())
}
