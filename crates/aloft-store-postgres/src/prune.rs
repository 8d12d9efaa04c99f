//! Giving up history, a bounded part in each transaction. None waits for those who commit: what is locked is skipped, and the
//! commit of a part need not reach the disk, because whatever a crash takes back is done again.

use aloft_core::Time;
use aloft_store::{OPEN_DAYS, Pruned, Retention, StoreError, Walk, day};
use parking_lot::Mutex;
use tokio_postgres::{Row, error::SqlState, types::ToSql};

use crate::{
    Shared,
    batch::Open,
    error::from_postgres,
    rows::{amount, number},
};

type Result<T> = std::result::Result<T, StoreError>;

/// Held by who gives up history. "ALFT", and 2.
const LOCK: i64 = 0x414c_4654_0000_0002;

/// Rows of other tables that a run has besides its actions and its log, at least: what taking it out of sight removes.
const ROWS_OF_A_RUN: usize = 8;

/// Days of places that one step looks at. Some 100 µs each.
const DAYS: usize = 100;

/// Commits that one step looks at.
const COMMITS: u64 = 2000;

/// Where the looks for what is no longer needed go on.
#[derive(Debug, Default)]
pub(crate) struct Walks {
    days: Mutex<Walk<Day>>,
    commits: Mutex<Walk<u64>>,
}

/// A day of a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Day {
    org: String,
    project: String,
    domain: String,
    day: i64,
}

/// What makes a run one that can be given up, besides its age: it has ended, none of its actions is live by its own record,
/// and no live run was made from it. A run can be made from one of another domain of its project.
const GIVEN_UP: &str = "i.ended_at IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM live l WHERE l.run_id = i.id AND NOT l.ended)
    AND NOT EXISTS (
        SELECT 1 FROM runs x
        WHERE x.org = i.org AND x.project = i.project AND x.related_to = i.name
          AND x.domain IN (SELECT i.domain UNION SELECT d.id FROM domains d WHERE d.org = i.org)
          AND (NOT x.ended OR EXISTS (SELECT 1 FROM live l WHERE l.run_id = x.id AND NOT l.ended)))";

/// One step.
pub(crate) async fn step(shared: &Shared, retention: &Retention, now: Time, most: usize) -> Result<Pruned> {
    let tx = Tx(Open::begin(&shared.pool).await?);
    // No disk is waited for, and no other lock for long.
    tx.0.batch_execute("SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = '1s'")
        .await
        .map_err(from_postgres)?;
    let alone = tx.rows("SELECT pg_try_advisory_xact_lock($1)", &[&LOCK]).await?;
    let alone = alone.first().is_some_and(|row| row.get(0));
    let done = if alone { once(shared, &tx, retention, now, most).await? } else { None };
    let end = if done.is_some() { "COMMIT" } else { "ROLLBACK" };
    tx.0.end(end).await.map_err(from_postgres)?;
    match done {
        Some(pruned) => Ok(pruned),
        None if alone => blobs(shared, now, most).await,
        None => Ok(Pruned::default()),
    }
}

/// What can be done without keeping anybody waiting; `None` if there is nothing of it.
async fn once(shared: &Shared, tx: &Tx, retention: &Retention, now: Time, most: usize) -> Result<Option<Pruned>> {
    if let Some(pruned) = remove_rows(tx, most).await? {
        return Ok(Some(pruned));
    }
    let runs = take_runs(tx, retention, now, most).await?;
    if runs > 0 {
        shared.walks.days.lock().want();
        shared.walks.commits.lock().want();
        return Ok(Some(Pruned { runs, more: true, ..Pruned::default() }));
    }
    remove_commits(tx, &shared.walks.commits, now).await
}

/// A transaction under way.
struct Tx(Open);

impl Tx {
    async fn rows(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>> {
        let statement = self.0.prepare_cached(sql).await.map_err(from_postgres)?;
        self.0.query(&statement, params).await.map_err(from_postgres)
    }

    async fn execute(&self, sql: &str, params: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        let statement = self.0.prepare_cached(sql).await.map_err(from_postgres)?;
        self.0.execute(&statement, params).await.map_err(from_postgres)
    }
}

/// Takes some runs of one place out of sight, the oldest. How many.
async fn take_runs(tx: &Tx, retention: &Retention, now: Time, most: usize) -> Result<u64> {
    let mut place = [String::new(), String::new(), String::new()];
    loop {
        let sql = "SELECT org, project, domain FROM run_index WHERE (org, project, domain) > ($1, $2, $3)
                   ORDER BY org, project, domain LIMIT 1";
        let found = tx.rows(sql, &[&place[0], &place[1], &place[2]]).await?;
        let Some(row) = found.first() else { return Ok(0) };
        place = [row.get(0), row.get(1), row.get(2)];
        let Some(before) = retention.before(&place[1], now) else { continue };
        // A run ends after it was created, so the index of creation narrows what is looked at.
        let sql = format!(
            "SELECT r.id, i.org FROM run_index i JOIN runs r ON r.id = i.id
             WHERE i.org = $1 AND i.project = $2 AND i.domain = $3 AND i.created_at <= $4 AND i.updated_at <= $4
               AND {GIVEN_UP} ORDER BY i.created_at LIMIT $5 FOR UPDATE OF r SKIP LOCKED"
        );
        let limit = amount((most / ROWS_OF_A_RUN).max(1) as u64);
        let found = tx.rows(&sql, &[&place[0], &place[1], &place[2], &before.as_micros(), &limit]).await?;
        let ids: Vec<i64> = found.iter().map(|row| row.get(0)).collect();
        if ids.is_empty() {
            continue;
        }
        let sql = "INSERT INTO pruning (run_id, org) SELECT id, $2 FROM unnest($1::bigint[]) id";
        tx.execute(sql, &[&ids, &place[0]]).await?;
        for sql in [
            "DELETE FROM runs WHERE id = ANY($1)",
            "DELETE FROM run_index WHERE id = ANY($1)",
            "DELETE FROM run_changes WHERE run_id = ANY($1)",
            "DELETE FROM run_labels WHERE run_id = ANY($1)",
            "DELETE FROM blobs WHERE run_id = ANY($1)",
        ] {
            tx.execute(sql, &[&ids]).await?;
        }
        return Ok(ids.len() as u64);
    }
}

/// Removes up to `most` rows of runs that are out of sight; `None` if there are no such runs.
async fn remove_rows(tx: &Tx, most: usize) -> Result<Option<Pruned>> {
    let found = tx.rows("SELECT run_id FROM pruning ORDER BY run_id LIMIT $1", &[&amount(most as u64)]).await?;
    let ids: Vec<i64> = found.iter().map(|row| row.get(0)).collect();
    if ids.is_empty() {
        return Ok(None);
    }
    // The tasks whose latest run was one of these: an older one that is left takes its place, if it was started by the task
    // itself. Rows that somebody has locked are being given a newer run. What is inserted was deleted by the same statement's
    // transaction, so nobody else can have inserted it and be waited for.
    let sql = "WITH gone AS (
                   DELETE FROM actions WHERE ctid = ANY (ARRAY(
                       SELECT ctid FROM actions WHERE run_id = ANY($1) LIMIT $2))
                   RETURNING run_id, kind, task_project, task_domain, task_name, task_version),
               tasks AS (
                   SELECT DISTINCT p.org, coalesce(g.task_project, '') AS project, coalesce(g.task_domain, '') AS domain,
                          g.task_name AS name, v.version, g.run_id
                   FROM gone g JOIN pruning p ON p.run_id = g.run_id
                   CROSS JOIN LATERAL (VALUES (''), (g.task_version)) v (version) WHERE g.kind = 1),
               latest AS (
                   DELETE FROM task_runs WHERE ctid = ANY (ARRAY(
                       SELECT t.ctid FROM task_runs t JOIN tasks k
                         ON t.org = k.org AND t.project = k.project AND t.domain = k.domain AND t.name = k.name
                        AND t.version = k.version AND t.run_id = k.run_id FOR UPDATE OF t SKIP LOCKED))
                   RETURNING org, project, domain, name, version)
               SELECT (SELECT count(*) FROM gone), l.org, l.project, l.domain, l.name, l.version, o.id
               FROM (SELECT 1) one LEFT JOIN latest l ON true
               LEFT JOIN LATERAL (
                   SELECT i.id FROM run_index i
                   WHERE i.org = l.org AND i.project = l.project AND i.domain = l.domain AND i.task_name = l.name
                     AND (l.version = '' OR i.task_version = l.version) ORDER BY i.created_at DESC LIMIT 1) o ON true";
    let found = tx.rows(sql, &[&ids, &amount(most as u64)]).await?;
    let mut pruned = Pruned { more: true, ..Pruned::default() };
    pruned.actions = found.first().map_or(0, |row| number(row, 0));
    for row in &found {
        let Some(older) = row.get::<_, Option<i64>>(6) else { continue };
        let sql = "INSERT INTO task_runs (org, project, domain, name, version, run_id) VALUES ($1, $2, $3, $4, $5, $6)
                   ON CONFLICT DO NOTHING";
        let text = |i: usize| row.get::<_, String>(i);
        tx.execute(sql, &[&text(1), &text(2), &text(3), &text(4), &text(5), &older]).await?;
    }
    let left = (most as u64).saturating_sub(pruned.actions);
    if left > 0 {
        let sql = "DELETE FROM events WHERE ctid = ANY (ARRAY(
                       SELECT ctid FROM events WHERE run_id = ANY($1) LIMIT $2))";
        pruned.events = tx.execute(sql, &[&ids, &amount(left)]).await?;
        if pruned.events < left {
            tx.execute("DELETE FROM pruning WHERE run_id = ANY($1)", &[&ids]).await?;
        }
    }
    Ok(Some(pruned))
}

/// Removes commits of which no run is left, some further in each step; `None` if there is nothing to look at.
async fn remove_commits(tx: &Tx, walk: &Mutex<Walk<u64>>, now: Time) -> Result<Option<Pruned>> {
    let Some(after) = walk.lock().place(now, 0) else { return Ok(None) };
    let sql = "WITH c AS (SELECT pos, runs FROM commits WHERE pos > $1 ORDER BY pos LIMIT $2),
               d AS (DELETE FROM commits WHERE pos IN (
                         SELECT c.pos FROM c WHERE NOT EXISTS (SELECT 1 FROM runs r WHERE r.id = ANY (c.runs))))
               SELECT max(pos), count(*) FROM c";
    let found = tx.rows(sql, &[&amount(after), &amount(COMMITS)]).await?;
    let (last, looked) = found.first().map_or((0, 0), |row| (number(row, 0), number(row, 1)));
    if looked < COMMITS {
        walk.lock().end(now);
    } else {
        walk.lock().go_on(last);
    }
    Ok(Some(Pruned { more: true, ..Pruned::default() }))
}

// === Blobs that runs shared ===

/// Whether no run is left that was created on a day of a place. That of no place stands for every run up to its end.
async fn is_unused(tx: &Tx, of: &Day) -> Result<bool> {
    let (begins, ends) = (of.day * aloft_store::DAY, (of.day + 1) * aloft_store::DAY);
    let found = if of.org.is_empty() {
        let sql = "SELECT 1 FROM (SELECT created_at FROM runs ORDER BY id LIMIT 1) r WHERE r.created_at < $1";
        tx.rows(sql, &[&ends]).await?
    } else {
        let sql = "SELECT 1 FROM run_index
                   WHERE org = $1 AND project = $2 AND domain = $3 AND created_at >= $4 AND created_at < $5 LIMIT 1";
        tx.rows(sql, &[&of.org, &of.project, &of.domain, &begins, &ends]).await?
    };
    Ok(found.is_empty())
}

/// Looks for a day of a place of which no run is left, and removes up to `most` of the uses noted of it, with the blobs that
/// nothing uses then.
async fn blobs(shared: &Shared, now: Time, most: usize) -> Result<Pruned> {
    let newest = day(now) - OPEN_DAYS;
    let start = Day { day: i64::MIN, ..Day::default() };
    let Some(mut at) = shared.walks.days.lock().place(now, start) else { return Ok(Pruned::default()) };
    let tx = Tx(Open::begin(&shared.pool).await?);
    let mut found = None;
    let mut over = false;
    for _ in 0..DAYS {
        let sql = "SELECT org, project, domain, day FROM blob_uses
                   WHERE (org, project, domain, day) > ($1, $2, $3, $4) ORDER BY org, project, domain, day LIMIT 1";
        let next = tx.rows(sql, &[&at.org, &at.project, &at.domain, &at.day]).await?;
        let Some(row) = next.first() else {
            over = true;
            break;
        };
        let next = Day { org: row.get(0), project: row.get(1), domain: row.get(2), day: row.get(3) };
        if next.day < newest && is_unused(&tx, &next).await? {
            found = Some(next);
            break;
        }
        at = next;
    }
    let mut pruned = Pruned { more: true, ..Pruned::default() };
    if let Some(of) = found {
        match remove_uses(&tx, &of, most).await? {
            Some(blobs) => pruned.blobs = blobs,
            // Somebody else's long commit is in the way: the rest of the walk can wait for the next pass.
            None => {
                tx.0.end("ROLLBACK").await.map_err(from_postgres)?;
                return Ok(Pruned::default());
            }
        }
    }
    tx.0.end("COMMIT").await.map_err(from_postgres)?;
    let mut walk = shared.walks.days.lock();
    if over {
        walk.end(now)
    } else {
        walk.go_on(at)
    }
    Ok(pruned)
}

/// As said; `None` if the lock was not to be had soon.
async fn remove_uses(tx: &Tx, of: &Day, most: usize) -> Result<Option<u64>> {
    // Who commits holds a lock on `blob_uses` from before it looks whether a blob is there. With this one held there is no
    // use that is not seen, and who comes after it sees what is gone and brings it again.
    let lock = "SET LOCAL synchronous_commit = off; SET LOCAL lock_timeout = '50ms';
                LOCK TABLE blob_uses, tasks IN SHARE ROW EXCLUSIVE MODE";
    match tx.0.batch_execute(lock).await {
        Ok(()) => {}
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => return Ok(None),
        Err(error) => return Err(from_postgres(error)),
    }
    let sql = "WITH u AS (
                   DELETE FROM blob_uses WHERE ctid = ANY (ARRAY(
                       SELECT ctid FROM blob_uses WHERE org = $1 AND project = $2 AND domain = $3 AND day = $4 LIMIT $5))
                   RETURNING digest)
               DELETE FROM blobs b USING u WHERE b.digest = u.digest AND b.run_id IS NULL
                  AND NOT EXISTS (SELECT 1 FROM blob_uses o WHERE o.digest = u.digest
                                  AND (o.org, o.project, o.domain, o.day) <> ($1, $2, $3, $4))
                  AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.digest = u.digest)";
    let params: [&(dyn ToSql + Sync); 5] = [&of.org, &of.project, &of.domain, &of.day, &amount(most as u64)];
    Ok(Some(tx.execute(sql, &params).await?))
}
