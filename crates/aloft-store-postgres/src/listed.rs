//! Lists and what watches read beside the logs.

use std::collections::{BTreeMap, HashMap};

use aloft_core::{ActionName, ActionState, ErrorKind, RunInfo, RunKey, Subject, Time};
use aloft_store::{
    Cursor, Field, Filter, LatestRun, ListQuery, ListScope, Listed, Outline, OutlineItem, RunChanges, RunRecord,
    RunRow, RunSummary, RunTotals, TaskRow, error_index,
    sql::{self, Next, Source, Sql},
};
use tokio_postgres::Row;

use crate::{
    error,
    list::{self, DIALECT},
    read::{self, Reader, Result, run_info, state},
    rows::{action_name, decode, maybe_time, number, phase, run_key, time},
};

fn scoped(of: Listed, from: &'static str, alias: &str, id: &'static str, scope: &ListScope) -> Source {
    let mut within = Sql::default();
    for (column, wanted) in [("org", &scope.org), ("project", &scope.project), ("domain", &scope.domain)] {
        if !wanted.is_empty() {
            within.push(&format!(" AND {alias}.{column} = "));
            within.text(wanted);
        }
    }
    list::source(of, from, id, within, format!("{scope:?}"))
}

// === Runs ===

fn runs(scope: &ListScope) -> Source {
    scoped(Listed::Runs, "run_index r", "r", "r.id", scope)
}

async fn run_rows(db: &Reader, ids: &[i64]) -> Result<Vec<RunRow>> {
    let sql = "SELECT b.org, b.project, b.domain, b.name, b.created_at, b.info, a.state, c.changed
               FROM unnest($1::bigint[]) WITH ORDINALITY j (id, n) JOIN runs b ON b.id = j.id
               JOIN actions a ON a.run_id = b.id AND a.name = 'a0' JOIN run_changes c ON c.run_id = b.id ORDER BY j.n";
    db.rows(sql, &[&ids], |row| {
        let run = RunRecord { key: run_key(row, 0), created_at: time(row, 4), info: run_info(row, 5)? };
        Ok(RunRow { run, root: state(row, 6)?, changed: number(row, 7) })
    })
    .await
}

pub(crate) async fn list_runs(
    db: &Reader,
    scope: &ListScope,
    query: &ListQuery,
    now: Time,
) -> Result<(Vec<RunRow>, Next)> {
    let found = list::select(db, &runs(scope), query, now).await?;
    Ok((run_rows(db, &found.ids).await?, found.next))
}

pub(crate) async fn last_change(db: &Reader) -> Result<u64> {
    let found = db.rows("SELECT max(changed) FROM run_changes", &[], |row| Ok(number(row, 0))).await?;
    Ok(found.first().copied().unwrap_or(0))
}

pub(crate) async fn runs_changed(
    db: &Reader,
    scope: &ListScope,
    filters: &[Filter],
    after: u64,
    limit: usize,
) -> Result<RunChanges> {
    let source = scoped(Listed::Runs, "run_changes c JOIN run_index r ON r.id = c.run_id", "r", "r.id", scope);
    let mut sql = source.select_with(filters, "r.id");
    sql.push(" AND c.changed > ");
    sql.bind(Cursor::Int(after.cast_signed()));
    sql.push(&format!(" ORDER BY c.changed LIMIT {limit}"));
    let found = db.list(&sql, |row| Ok((row.get::<_, i64>(0), row.get::<_, bool>(1)))).await?;
    let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
    let rows = run_rows(db, &ids).await?;
    let upto = match rows.last() {
        Some(last) if found.len() == limit => last.changed,
        _ => last_change(db).await?,
    };
    Ok(RunChanges { rows: rows.into_iter().zip(found).map(|(row, (_, meets))| (row, meets)).collect(), upto })
}

fn error_kind(row: &Row, column: usize) -> Result<Option<ErrorKind>> {
    let text: Option<String> = row.get(column);
    text.map(|t| serde_json::from_value(t.into()).map_err(|e| error::corrupt("the kind of an error", e))).transpose()
}

pub(crate) async fn run_totals(db: &Reader, scope: &ListScope, filters: &[Filter]) -> Result<RunTotals> {
    let source = runs(scope);
    let mut totals =
        RunTotals { upto: last_change(db).await?, tasks: BTreeMap::new(), live: Vec::new(), subjects: Vec::new() };
    let mut sql = source.select(
        "r.task_name, r.phase, r.created_by, r.error_kind, count(*), count(r.ended_at), sum(r.duration_ms)::bigint,
         count(r.started_at), sum(greatest(r.started_at - r.created_at, 0) / 1000)::bigint, max(r.ended_at), max(r.id)",
    );
    sql::push_filters(&mut sql, &source, filters);
    sql.push(" GROUP BY 1, 2, 3, 4");
    let groups = db
        .list(&sql, |row| {
            let sums = (number(row, 5), number(row, 6), number(row, 7), number(row, 8), maybe_time(row, 9));
            let key = (row.get::<_, String>(0), phase(row, 1)?, row.get::<_, String>(2), error_kind(row, 3)?);
            Ok((key, number(row, 4), sums, row.get::<_, i64>(10)))
        })
        .await?;
    // One run of each subject, to read who that is.
    let mut started: HashMap<String, i64> = HashMap::new();
    for ((task, phase, subject, error), runs, (ended, duration_ms, ran, waited_ms, latest_end), newest) in groups {
        started.entry(subject.clone()).or_insert(newest);
        let task = totals.tasks.entry(task).or_default();
        task.runs += runs;
        *task.phases.entry(phase.number()).or_default() += runs;
        *task.created_by.entry(subject).or_default() += runs;
        if let Some(kind) = error {
            task.errors[error_index(kind)] += runs;
        }
        task.ended += ended;
        task.duration_ms += duration_ms;
        task.started += ran;
        task.waited_ms += waited_ms;
        task.latest_end = task.latest_end.max(latest_end);
    }
    let mut sql = source
        .select("r.org, r.project, r.domain, r.name, r.task_name, r.created_by, r.phase, r.created_at, r.started_at");
    sql::push_filters(&mut sql, &source, filters);
    sql.push(" AND r.ended_at IS NULL");
    totals.live = db
        .list(&sql, |row| {
            Ok(RunSummary {
                run: run_key(row, 0),
                task_name: row.get(4),
                created_by: row.get(5),
                phase: phase(row, 6)?,
                created_at: time(row, 7),
                started_at: maybe_time(row, 8),
                ended_at: None,
                error: None,
            })
        })
        .await?;
    totals.subjects = subjects(db, &started.into_values().collect::<Vec<_>>()).await?;
    Ok(totals)
}

/// Who started these runs.
async fn subjects(db: &Reader, runs: &[i64]) -> Result<Vec<Subject>> {
    let sql = "SELECT info FROM runs WHERE id = ANY($1)";
    db.rows(sql, &[&runs], |row| Ok(decode::<RunInfo>(row, 0, "a run")?.created_by)).await
}

// === Actions ===

/// The actions of a run, found by `number` of the run: as it stands in the index by which they are found. `asked` are the
/// fields that matter: those of which what is shown can differ from what is recorded cost more while an ended action has live
/// ones below it.
async fn actions<'f>(
    db: &Reader,
    run: &RunKey,
    (run_id, number): (i64, &str),
    mut asked: impl Iterator<Item = &'f Field>,
) -> Result<Source> {
    let lost =
        asked.any(|f| matches!(f, Field::Phase | Field::EndedAt | Field::Duration)) && has_lost(db, run_id).await?;
    let mut within = Sql::new(" AND r.id = ");
    within.bind(Cursor::Int(run_id));
    within.push(&format!(" AND {number} = "));
    within.bind(Cursor::Int(run_id));
    let from = if lost {
        "run_index r CROSS JOIN actions a LEFT JOIN lost l ON l.id = a.id AND l.ended_at IS NOT NULL"
    } else {
        "run_index r CROSS JOIN actions a"
    };
    let mut source = list::source(Listed::Actions, from, "a.id", within, run.to_string());
    if lost {
        // Live actions with the end of the action above each that ended it (design rule 5): the innermost that did not
        // itself end with one above it.
        source.lost = true;
        source.with.push(
            "WITH lost AS MATERIALIZED (SELECT c.id AS id, (
                 SELECT e.ended_at FROM unnest(c.ancestors) WITH ORDINALITY j (name, n)
                 JOIN actions e ON e.run_id = c.run_id AND e.name = j.name
                 WHERE e.ended_at IS NOT NULL AND NOT e.ended_above ORDER BY j.n DESC LIMIT 1) AS ended_at
             FROM live c WHERE NOT c.ended AND c.run_id = ",
        );
        source.with.bind(Cursor::Int(run_id));
        source.with.push(") ");
    }
    Ok(source)
}

/// Whether an ended action of the run has live ones below it.
async fn has_lost(db: &Reader, run_id: i64) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM live WHERE run_id = $1 AND ended)";
    Ok(db.rows(sql, &[&run_id], |row| Ok(row.get(0))).await?.pop().unwrap_or(false))
}

pub(crate) async fn list_actions(
    db: &Reader,
    run: &RunKey,
    query: &ListQuery,
    now: Time,
) -> Result<(Vec<ActionState>, Next)> {
    let Some((run_id, ..)) = read::find_run(db, run).await? else { return Ok((Vec::new(), Next::End)) };
    let order = query.order();
    let asked = query.filters.iter().map(|f| &f.field).chain(order.iter().map(|s| &s.field));
    let source = actions(db, run, (run_id, "a.run_id + 0"), asked).await?;
    let found = list::select(db, &source, query, now).await?;
    let sql = "SELECT a.state FROM unnest($1::bigint[]) WITH ORDINALITY j (id, n) JOIN actions a ON a.id = j.id
               ORDER BY j.n";
    let states = db.rows(sql, &[&found.ids], |row| state(row, 0)).await?;
    Ok((read::as_shown(db, run_id, states).await?, found.next))
}

pub(crate) async fn outline(db: &Reader, run: &RunKey) -> Result<Option<Outline>> {
    let Some((run_id, seq, _)) = read::find_run(db, run).await? else { return Ok(None) };
    let sql = "SELECT name, parent, phase FROM actions WHERE id BETWEEN $1 AND $2 ORDER BY id";
    let (first, last) = read::places(run_id);
    let actions = db
        .rows(sql, &[&first, &last], |row| {
            let parent = row.get::<_, Option<&str>>(1).map(|_| action_name(row, 1)).transpose()?;
            Ok(OutlineItem { name: action_name(row, 0)?, parent, phase: phase(row, 2)? })
        })
        .await?;
    Ok(Some(Outline { seq, actions }))
}

pub(crate) async fn matched(
    db: &Reader,
    run: &RunKey,
    names: &[ActionName],
    filters: &[Filter],
) -> Result<Vec<(ActionState, bool)>> {
    let Some((run_id, ..)) = read::find_run(db, run).await? else { return Ok(Vec::new()) };
    let source = actions(db, run, (run_id, "a.run_id"), filters.iter().map(|f| &f.field)).await?;
    let names: Vec<_> = names.iter().map(ActionName::as_str).collect();
    let mut sql = source.select_with(filters, "a.state");
    sql.push(" AND a.name IN (SELECT value FROM ");
    DIALECT.push_texts(&mut sql, &names);
    sql.push(") ORDER BY a.id");
    let found = db.list(&sql, |row| Ok((state(row, 0)?, row.get::<_, bool>(1)))).await?;
    let (states, meets): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    Ok(read::as_shown(db, run_id, states).await?.into_iter().zip(meets).collect())
}

// === Tasks ===

pub(crate) struct Tasks {
    pub(crate) rows: Vec<TaskRow>,
    pub(crate) next: Next,
    pub(crate) total: u64,
    pub(crate) filtered: u64,
}

pub(crate) async fn list_tasks(
    db: &Reader,
    scope: &ListScope,
    latest: bool,
    query: &ListQuery,
    now: Time,
) -> Result<Tasks> {
    let source = if latest {
        scoped(Listed::Tasks, "task_names n JOIN tasks t ON t.id = n.newest", "n", "n.id", scope)
    } else {
        scoped(Listed::Versions, "tasks t", "t", "t.id", scope)
    };
    let found = list::select(db, &source, query, now).await?;
    let (join, version) = if latest {
        ("JOIN task_names n ON n.id = j.id JOIN tasks t ON t.id = n.newest", "''")
    } else {
        ("JOIN tasks t ON t.id = j.id", "t.version")
    };
    let sql = format!(
        "SELECT {}, r.org, r.project, r.domain, r.name, r.created_at, r.phase, r.task_name
         FROM unnest($1::bigint[]) WITH ORDINALITY j (id, n_) {join}
         LEFT JOIN task_runs u ON u.org = t.org AND u.project = t.project AND u.domain = t.domain AND u.name = t.name
                              AND u.version = {version}
         LEFT JOIN run_index r ON r.id = u.run_id ORDER BY j.n_",
        read::TASK_COLUMNS
    );
    let rows = db
        .rows(&sql, &[&found.ids], |row| {
            let has_run = row.get::<_, Option<&str>>(11).is_some();
            let latest_run = has_run.then(|| latest_run(row, 11)).transpose()?;
            Ok(TaskRow { task: read::deployed(row, 0)?, latest_run })
        })
        .await?;
    let total = list::count(db, &source, &[]).await?;
    let filtered = if query.filters.is_empty() { total } else { list::count(db, &source, &query.filters).await? };
    Ok(Tasks { rows, next: found.next, total, filtered })
}

fn latest_run(row: &Row, first: usize) -> Result<LatestRun> {
    Ok(LatestRun {
        run: run_key(row, first),
        at: Time::from_micros(row.get(first + 4)),
        phase: phase(row, first + 5)?,
        root_task: row.get(first + 6),
    })
}
