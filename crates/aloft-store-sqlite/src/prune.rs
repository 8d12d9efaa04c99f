//! Giving up history. What there is to do is looked for on a reader's connection; the writer looks again at what it is told
//! and does it, a bounded part in each commit, so that those who share the commit wait for little.

use aloft_core::Time;
use aloft_store::{OPEN_DAYS, Pruned, Retention, Walk, day};
use parking_lot::Mutex;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};

use crate::{
    error::from_sqlite,
    read::{Result, get, rows},
};

type Written<T> = std::result::Result<T, rusqlite::Error>;

/// Rows of other tables that a run has besides its actions and its log, at least: what taking it out of sight removes.
const ROWS_OF_A_RUN: usize = 8;

/// Days of a place that one step looks at. Some 10 µs each.
const DAYS: usize = 200;

/// Pages that are given back to the file system in one commit: 1 MiB.
const PAGES: i64 = 256;

/// A step that seems worth doing.
#[derive(Debug)]
pub(crate) enum Step {
    /// Remove rows of runs that are out of sight.
    Rows,
    /// Take these runs out of sight, which ended at this time or before.
    Runs { ids: Vec<i64>, before: Time },
    /// Remove the uses of blobs of this place and day, and the blobs that nothing uses then.
    Uses(Day),
    /// Give free pages back to the file system.
    Space,
    /// Nothing yet: there is more to look at.
    Look,
}

/// A day of a place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Day {
    org: String,
    project: String,
    domain: String,
    day: i64,
}

/// What makes a run one that can be given up, besides its age: it has ended, none of its actions is live by its own record,
/// and no live run was made from it. A run can be made from one of another domain of its project.
const GIVEN_UP: &str = "i.ended_at IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM actions a INDEXED BY actions_live WHERE a.run_id = i.id AND a.ended_at IS NULL)
    AND NOT EXISTS (
        SELECT 1 FROM runs x
        WHERE x.org = i.org AND x.project = i.project AND x.related_to = i.name
          AND x.domain IN (SELECT i.domain UNION SELECT d.id FROM domains d WHERE d.org = i.org)
          AND (x.ended = 0 OR EXISTS (
              SELECT 1 FROM actions a INDEXED BY actions_live WHERE a.run_id = x.id AND a.ended_at IS NULL)))";

fn exists(db: &Connection, sql: &str, params: &[&dyn rusqlite::ToSql]) -> Result<bool> {
    db.prepare_cached(sql).and_then(|mut s| s.exists(params)).map_err(from_sqlite)
}

/// What to do next; `None` if there is nothing.
pub(crate) fn next(
    db: &Connection,
    retention: &Retention,
    now: Time,
    most: usize,
    walk: &Mutex<Walk<Day>>,
) -> Result<Option<Step>> {
    if exists(db, "SELECT 1 FROM pruning", &[])? {
        return Ok(Some(Step::Rows));
    }
    if let Some(found) = runs(db, retention, now, most)? {
        walk.lock().want();
        return Ok(Some(found));
    }
    if let Some(found) = unused_day(db, now, walk)? {
        return Ok(Some(found));
    }
    Ok(has_space(db)?.then_some(Step::Space))
}

/// Some runs of one place that can be given up, the oldest.
fn runs(db: &Connection, retention: &Retention, now: Time, most: usize) -> Result<Option<Step>> {
    let mut place = [String::new(), String::new(), String::new()];
    loop {
        let sql = "SELECT org, project, domain FROM run_index WHERE (org, project, domain) > (?1, ?2, ?3)
                   ORDER BY org, project, domain LIMIT 1";
        let found = rows(db, sql, &[&place[0], &place[1], &place[2]], |row| {
            Ok([get::<String>(row, 0)?, get(row, 1)?, get(row, 2)?])
        })?;
        let Some(found) = found.into_iter().next() else { return Ok(None) };
        place = found;
        let Some(before) = retention.before(&place[1], now) else { continue };
        // A run ends after it was created, so the index of creation narrows what is looked at.
        let sql = format!(
            "SELECT i.id FROM run_index i INDEXED BY run_index_by_time
             WHERE i.org = ?1 AND i.project = ?2 AND i.domain = ?3 AND i.created_at <= ?4 AND i.updated_at <= ?4
               AND {GIVEN_UP} ORDER BY i.created_at LIMIT ?5"
        );
        let limit = (most / ROWS_OF_A_RUN).max(1) as i64;
        let ids = rows(db, &sql, &[&place[0], &place[1], &place[2], &before.as_micros(), &limit], |row| get(row, 0))?;
        if !ids.is_empty() {
            return Ok(Some(Step::Runs { ids, before }));
        }
    }
}

/// Whether no run is left that was created on a day of a place. That of no place stands for every run up to its end.
fn is_unused(db: &Connection, of: &Day) -> Result<bool> {
    let (begins, ends) = (of.day * aloft_store::DAY, (of.day + 1) * aloft_store::DAY);
    if of.org.is_empty() {
        let sql = "SELECT 1 FROM runs WHERE id = (SELECT min(id) FROM runs) AND created_at < ?1";
        return Ok(!exists(db, sql, &[&ends])?);
    }
    let sql = "SELECT 1 FROM run_index
               WHERE org = ?1 AND project = ?2 AND domain = ?3 AND created_at >= ?4 AND created_at < ?5";
    Ok(!exists(db, sql, &[&of.org, &of.project, &of.domain, &begins, &ends])?)
}

/// Looks for a day of a place whose uses of blobs are no longer needed, some days further in each step.
fn unused_day(db: &Connection, now: Time, walk: &Mutex<Walk<Day>>) -> Result<Option<Step>> {
    let newest = day(now) - OPEN_DAYS;
    let start = Day { day: i64::MIN, ..Day::default() };
    let Some(mut at) = walk.lock().place(now, start) else { return Ok(None) };
    for _ in 0..DAYS {
        let sql = "SELECT org, project, domain, day FROM blob_uses
                   WHERE (org, project, domain, day) > (?1, ?2, ?3, ?4) ORDER BY org, project, domain, day LIMIT 1";
        let found = rows(db, sql, &[&at.org, &at.project, &at.domain, &at.day], |row| {
            Ok(Day { org: get(row, 0)?, project: get(row, 1)?, domain: get(row, 2)?, day: get(row, 3)? })
        })?;
        let Some(found) = found.into_iter().next() else {
            walk.lock().end(now);
            return Ok(None);
        };
        if found.day < newest && is_unused(db, &found)? {
            // Found again in the next step, should anything of it be left.
            walk.lock().go_on(at);
            return Ok(Some(Step::Uses(found)));
        }
        at = found;
    }
    walk.lock().go_on(at);
    Ok(Some(Step::Look))
}

fn pragma(db: &Connection, name: &str) -> Written<i64> {
    db.pragma_query_value(None, name, |row| row.get(0))
}

/// Whether more than a quarter of the file is free, and it can be given back.
fn has_space(db: &Connection) -> Result<bool> {
    let incremental = pragma(db, "auto_vacuum").map_err(from_sqlite)? == 2;
    let (free, all) =
        pragma(db, "freelist_count").and_then(|free| Ok((free, pragma(db, "page_count")?))).map_err(from_sqlite)?;
    Ok(incremental && free > PAGES && free > all / 4)
}

/// Does a step.
pub(crate) fn carry_out(tx: &Transaction<'_>, step: &Step, most: usize) -> Written<Pruned> {
    let mut pruned = Pruned { more: true, ..Pruned::default() };
    match step {
        Step::Rows => remove_rows(tx, most, &mut pruned)?,
        Step::Runs { ids, before } => {
            for id in ids {
                pruned.runs += u64::from(take(tx, *id, *before)?);
            }
        }
        Step::Uses(day) => remove_uses(tx, day, most, &mut pruned)?,
        Step::Space => {
            // Answers with a row for each page that it has given back.
            let mut statement = tx.prepare(&format!("PRAGMA incremental_vacuum({PAGES})"))?;
            let mut rows = statement.query([])?;
            while rows.next()?.is_some() {}
        }
        Step::Look => {}
    }
    Ok(pruned)
}

/// Takes a run out of sight, if it can still be given up. Its numbers will not be given out again.
fn take(tx: &Transaction<'_>, id: i64, before: Time) -> Written<bool> {
    let sql = format!("SELECT i.org FROM run_index i WHERE i.id = ?1 AND i.updated_at <= ?2 AND {GIVEN_UP}");
    let org: Option<String> =
        tx.prepare_cached(&sql)?.query_row(params![id, before.as_micros()], |row| row.get(0)).optional()?;
    let Some(org) = org else { return Ok(false) };
    tx.prepare_cached(
        "UPDATE marks SET run = max(run, (SELECT max(id) FROM runs)), pos = max(pos, (SELECT max(pos) FROM events)),
                          changed = max(changed, (SELECT max(changed) FROM run_index))",
    )?
    .execute([])?;
    tx.prepare_cached("INSERT INTO pruning (run_id, org) VALUES (?1, ?2)")?.execute(params![id, org])?;
    for sql in [
        "DELETE FROM runs WHERE id = ?1",
        "DELETE FROM run_index WHERE id = ?1",
        "DELETE FROM run_labels WHERE run_id = ?1",
        "DELETE FROM blobs WHERE run_id = ?1",
    ] {
        tx.prepare_cached(sql)?.execute([id])?;
    }
    Ok(true)
}

/// Removes up to `most` rows of runs that are out of sight.
fn remove_rows(tx: &Transaction<'_>, most: usize, pruned: &mut Pruned) -> Written<()> {
    let mut left = most;
    while left > 0 {
        let next = tx.prepare_cached("SELECT run_id, org FROM pruning ORDER BY run_id LIMIT 1")?;
        let Some((run_id, org)) = first(next, |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))? else {
            return Ok(());
        };
        let limit = left as i64;
        forget_latest(tx, run_id, &org, limit)?;
        let actions = tx
            .prepare_cached(
                "DELETE FROM actions WHERE id IN (SELECT id FROM actions WHERE run_id = ?1 ORDER BY name LIMIT ?2)",
            )?
            .execute(params![run_id, limit])?;
        pruned.actions += actions as u64;
        left -= actions.min(left);
        if left == 0 {
            return Ok(());
        }
        let events = tx
            .prepare_cached(
                "DELETE FROM events WHERE pos IN (SELECT pos FROM events WHERE run_id = ?1 ORDER BY seq LIMIT ?2)",
            )?
            .execute(params![run_id, left as i64])?;
        pruned.events += events as u64;
        if events == left {
            return Ok(());
        }
        left -= events;
        tx.prepare_cached("DELETE FROM pruning WHERE run_id = ?1")?.execute([run_id])?;
    }
    Ok(())
}

fn first<T>(
    mut statement: rusqlite::CachedStatement<'_>,
    decode: impl FnOnce(&rusqlite::Row<'_>) -> Written<T>,
) -> Written<Option<T>> {
    statement.query_row([], decode).optional()
}

/// The tasks whose latest run was this one, of the actions that are removed next: an older one that is left takes its place,
/// if it was started by the task itself.
fn forget_latest(tx: &Transaction<'_>, run_id: i64, org: &str, limit: i64) -> Written<()> {
    let mut statement = tx.prepare_cached(
        "SELECT DISTINCT t.project, t.domain, t.name, v.value
         FROM (SELECT kind, ifnull(task_project, '') AS project, ifnull(task_domain, '') AS domain, task_name AS name,
                      task_version AS version
               FROM actions WHERE run_id = ?1 ORDER BY actions.name LIMIT ?2) t,
              json_each(json_array('', t.version)) v
         WHERE t.kind = 1",
    )?;
    let tasks = statement
        .query_map(params![run_id, limit], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<Written<Vec<(String, String, String, String)>>>()?;
    for (project, domain, name, version) in tasks {
        let gone = tx
            .prepare_cached(
                "DELETE FROM task_runs WHERE org = ?1 AND project = ?2 AND domain = ?3 AND name = ?4 AND version = ?5
                                         AND run_id = ?6",
            )?
            .execute(params![org, project, domain, name, version, run_id])?;
        if gone > 0 {
            tx.prepare_cached(
                "INSERT INTO task_runs
                 SELECT org, project, domain, task_name, ?5, id FROM run_index INDEXED BY run_index_by_task
                 WHERE org = ?1 AND project = ?2 AND domain = ?3 AND task_name = ?4 AND (?5 = '' OR task_version = ?5)
                 ORDER BY created_at DESC LIMIT 1",
            )?
            .execute(params![org, project, domain, name, version])?;
        }
    }
    Ok(())
}

/// Removes up to `most` uses of a day of a place, and the blobs that nothing uses then.
fn remove_uses(tx: &Transaction<'_>, of: &Day, most: usize, pruned: &mut Pruned) -> Written<()> {
    let Day { org, project, domain, day } = of;
    let mut statement = tx.prepare_cached(
        "SELECT digest FROM blob_uses WHERE org = ?1 AND project = ?2 AND domain = ?3 AND day = ?4 LIMIT ?5",
    )?;
    let digests = statement
        .query_map(params![org, project, domain, day, most as i64], |row| row.get(0))?
        .collect::<Written<Vec<String>>>()?;
    for digest in digests {
        tx.prepare_cached(
            "DELETE FROM blob_uses WHERE org = ?1 AND project = ?2 AND domain = ?3 AND day = ?4 AND digest = ?5",
        )?
        .execute(params![org, project, domain, day, digest])?;
        let gone = tx
            .prepare_cached(
                "DELETE FROM blobs WHERE digest = ?1 AND run_id IS NULL
                   AND NOT EXISTS (SELECT 1 FROM blob_uses u WHERE u.digest = ?1)
                   AND NOT EXISTS (SELECT 1 FROM tasks t WHERE t.digest = ?1)",
            )?
            .execute([&digest])?;
        pruned.blobs += gone as u64;
    }
    Ok(())
}
