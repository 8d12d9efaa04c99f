//! Lists and what watches read beside the logs.

use std::collections::{BTreeMap, HashMap};

use aloft_core::{ActionName, ActionState, ErrorKind, Phase, RunKey, Scope, Subject, Time};
use aloft_store::{
    Cursor, Field, Filter, LatestRun, ListQuery, ListScope, Listed, Outline, OutlineItem, RunChanges, RunRecord,
    RunRow, RunSummary, RunTotals, TaskRow, error_index,
    sql::{self, Next, Source, Sql},
};
use rusqlite::{Connection, Row};

use crate::{
    error::{self, from_sqlite},
    list::{self, DIALECT},
    read::{self, Result, action_name, get, run_info, run_key},
    stored,
};

/// Appends the scope's conditions for `alias`.
fn push_scope(sql: &mut Sql, alias: &str, scope: &ListScope) {
    for (column, wanted) in [("org", &scope.org), ("project", &scope.project), ("domain", &scope.domain)] {
        if !wanted.is_empty() {
            sql.push(&format!(" AND {alias}.{column} = "));
            sql.text(wanted);
        }
    }
}

fn scoped(of: Listed, from: &'static str, alias: &'static str, id: &'static str, scope: &ListScope) -> Source {
    let mut within = Sql::default();
    push_scope(&mut within, alias, scope);
    Source { dialect: &DIALECT, of, with: Sql::default(), from, id, within, lost: false, scope: format!("{scope:?}") }
}

fn phase(row: &Row<'_>, column: usize) -> Result<Phase> {
    let number: i32 = get(row, column)?;
    Phase::from_number(number).ok_or_else(|| error::corrupt("a phase", format!("there is no phase {number}")))
}

fn time(row: &Row<'_>, column: usize) -> Result<Option<Time>> {
    Ok(get::<Option<i64>>(row, column)?.map(Time::from_micros))
}

fn number(row: &Row<'_>, column: usize) -> Result<u64> {
    Ok(u64::try_from(get::<Option<i64>>(row, column)?.unwrap_or(0)).unwrap_or(0))
}

// === Runs ===

fn runs(scope: &ListScope) -> Source {
    scoped(Listed::Runs, "run_index r", "r", "r.id", scope)
}

fn run_rows(db: &Connection, ids: &[i64]) -> Result<Vec<RunRow>> {
    let mut sql = Sql::new(
        "SELECT b.org, b.project, b.domain, b.name, b.created_at, b.info, a.state, r.changed
         FROM ",
    );
    DIALECT.push_ids(&mut sql, ids);
    sql.push(
        " j CROSS JOIN runs b ON b.id = j.value CROSS JOIN run_index r ON r.id = b.id
         CROSS JOIN actions a ON a.run_id = b.id AND a.name = 'a0' ORDER BY j.key",
    );
    list::rows(db, &sql, |row| {
        let run = RunRecord {
            key: run_key(row, 0)?,
            created_at: Time::from_micros(get(row, 4)?),
            info: run_info(&get::<Vec<u8>>(row, 5)?)?,
        };
        Ok(RunRow { run, root: stored::state(&get::<Vec<u8>>(row, 6)?)?, changed: number(row, 7)? })
    })
}

pub(crate) fn list_runs(
    db: &Connection,
    scope: &ListScope,
    query: &ListQuery,
    now: Time,
) -> Result<(Vec<RunRow>, Next)> {
    let found = list::select(db, &runs(scope), query, now)?;
    Ok((run_rows(db, &found.ids)?, found.next))
}

pub(crate) fn last_change(db: &Connection) -> Result<u64> {
    let sql = "SELECT max(ifnull((SELECT max(changed) FROM run_index), 0), m.changed) FROM marks m";
    db.query_row(sql, [], |row| row.get::<_, i64>(0)).map(|n| u64::try_from(n).unwrap_or(0)).map_err(from_sqlite)
}

pub(crate) fn runs_changed(
    db: &Connection,
    scope: &ListScope,
    filters: &[Filter],
    after: u64,
    limit: usize,
) -> Result<RunChanges> {
    // The index is named: without it every run of the scope would be looked at for the few that changed.
    let source = scoped(Listed::Runs, "run_index r INDEXED BY run_index_by_change", "r", "r.id", scope);
    let mut sql = source.select_with(filters, "r.id");
    sql.push(" AND r.changed > ");
    sql.bind(Cursor::Int(after.cast_signed()));
    sql.push(&format!(" ORDER BY r.changed LIMIT {limit}"));
    let found = list::rows(db, &sql, |row| Ok((get::<i64>(row, 0)?, get::<bool>(row, 1)?)))?;
    let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
    let rows = run_rows(db, &ids)?;
    let upto = match rows.last() {
        Some(last) if found.len() == limit => last.changed,
        _ => last_change(db)?,
    };
    Ok(RunChanges { rows: rows.into_iter().zip(found).map(|(row, (_, meets))| (row, meets)).collect(), upto })
}

fn error_kind(row: &Row<'_>, column: usize) -> Result<Option<ErrorKind>> {
    let text: Option<String> = get(row, column)?;
    text.map(|t| serde_json::from_value(t.into()).map_err(|e| error::corrupt("the kind of an error", e))).transpose()
}

pub(crate) fn run_totals(db: &Connection, scope: &ListScope, filters: &[Filter]) -> Result<RunTotals> {
    let source = runs(scope);
    let mut totals =
        RunTotals { upto: last_change(db)?, tasks: BTreeMap::new(), live: Vec::new(), subjects: Vec::new() };
    let mut sql = source.select(
        "r.task_name, r.phase, r.created_by, r.error_kind, count(*), count(r.ended_at), sum(r.duration_ms),
         count(r.started_at), sum(max(r.started_at - r.created_at, 0) / 1000), max(r.ended_at), max(r.id)",
    );
    sql::push_filters(&mut sql, &source, filters);
    sql.push(" GROUP BY 1, 2, 3, 4");
    let groups = list::rows(db, &sql, |row| {
        let sums = (number(row, 5)?, number(row, 6)?, number(row, 7)?, number(row, 8)?, time(row, 9)?);
        let key = (get::<String>(row, 0)?, phase(row, 1)?, get::<String>(row, 2)?, error_kind(row, 3)?);
        Ok((key, number(row, 4)?, sums, get::<i64>(row, 10)?))
    })?;
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
    totals.live = list::rows(db, &sql, |row| {
        Ok(RunSummary {
            run: run_key(row, 0)?,
            task_name: get(row, 4)?,
            created_by: get(row, 5)?,
            phase: phase(row, 6)?,
            created_at: Time::from_micros(get(row, 7)?),
            started_at: time(row, 8)?,
            ended_at: None,
            error: None,
        })
    })?;
    totals.subjects = subjects(db, &started.into_values().collect::<Vec<_>>())?;
    Ok(totals)
}

/// Who started these runs.
fn subjects(db: &Connection, runs: &[i64]) -> Result<Vec<Subject>> {
    let mut sql = Sql::new("SELECT b.info FROM runs b WHERE b.id IN (SELECT value FROM ");
    DIALECT.push_ids(&mut sql, runs);
    sql.push(")");
    list::rows(db, &sql, |row| Ok(run_info(&get::<Vec<u8>>(row, 0)?)?.created_by))
}

// === Actions ===

/// The actions of a run. `asked` are the fields that matter: those of which what is shown can differ from what is recorded
/// cost more while an ended action has live ones below it.
fn actions<'f>(db: &Connection, run: &RunKey, run_id: i64, asked: impl Iterator<Item = &'f Field>) -> Result<Source> {
    let mut asked = asked;
    let lost = asked.any(|f| matches!(f, Field::Phase | Field::EndedAt | Field::Duration)) && has_lost(db, run_id)?;
    let mut within = Sql::new(" AND r.id = ");
    within.bind(Cursor::Int(run_id));
    within.push(" AND a.run_id = ");
    within.bind(Cursor::Int(run_id));
    let mut with = Sql::default();
    if lost {
        // Live actions with the end of the action above each that ended it (design rule 5): the innermost that did not
        // itself end with one above it.
        with.push(
            "WITH lost AS MATERIALIZED (SELECT c.id AS id, (
                 WITH RECURSIVE above (name, far) AS (
                     SELECT c.parent, 1
                     UNION ALL
                     SELECT u.parent, far + 1 FROM above JOIN actions u ON u.run_id = c.run_id AND u.name = above.name
                     WHERE u.parent IS NOT NULL)
                 SELECT e.ended_at FROM above JOIN actions e ON e.run_id = c.run_id AND e.name = above.name
                 WHERE e.ended_at IS NOT NULL AND e.ended_above = 0 ORDER BY far LIMIT 1) AS ended_at
             FROM actions c WHERE c.ended_at IS NULL AND c.run_id = ",
        );
        with.bind(Cursor::Int(run_id));
        with.push(") ");
    }
    Ok(Source {
        dialect: &DIALECT,
        of: Listed::Actions,
        with,
        from: if lost {
            "run_index r CROSS JOIN actions a LEFT JOIN lost l ON l.id = a.id AND l.ended_at IS NOT NULL"
        } else {
            "run_index r CROSS JOIN actions a"
        },
        id: "a.id",
        within,
        lost,
        scope: run.to_string(),
    })
}

/// Whether an ended action of the run has live ones below it.
fn has_lost(db: &Connection, run_id: i64) -> Result<bool> {
    let sql = "SELECT EXISTS (SELECT 1 FROM actions INDEXED BY actions_unsettled
                              WHERE run_id = ?1 AND ended_at IS NOT NULL AND open_children > 0)";
    db.prepare_cached(sql).and_then(|mut s| s.query_row([run_id], |row| row.get(0))).map_err(from_sqlite)
}

pub(crate) fn list_actions(
    db: &Connection,
    run: &RunKey,
    query: &ListQuery,
    now: Time,
) -> Result<(Vec<ActionState>, Next)> {
    let Some((run_id, ..)) = read::find_run(db, run)? else { return Ok((Vec::new(), Next::End)) };
    let order = query.order();
    let asked = query.filters.iter().map(|f| &f.field).chain(order.iter().map(|s| &s.field));
    let found = list::select(db, &actions(db, run, run_id, asked)?, query, now)?;
    let mut sql = Sql::new("SELECT a.state FROM ");
    DIALECT.push_ids(&mut sql, &found.ids);
    sql.push(" j CROSS JOIN actions a ON a.id = j.value ORDER BY j.key");
    let states = list::rows(db, &sql, |row| stored::state(&get::<Vec<u8>>(row, 0)?))?;
    Ok((read::as_shown(db, run_id, states)?, found.next))
}

pub(crate) fn outline(db: &Connection, run: &RunKey) -> Result<Option<Outline>> {
    let Some((run_id, seq, _)) = read::find_run(db, run)? else { return Ok(None) };
    let sql = "SELECT name, parent, phase FROM actions WHERE run_id = ?1 ORDER BY id";
    let actions = read::rows(db, sql, &[&run_id], |row| {
        let parent = get::<Option<String>>(row, 1)?;
        let parent = parent.map(|_| action_name(row, 1)).transpose()?;
        Ok(OutlineItem { name: action_name(row, 0)?, parent, phase: phase(row, 2)? })
    })?;
    Ok(Some(Outline { seq, actions }))
}

pub(crate) fn matched(
    db: &Connection,
    run: &RunKey,
    names: &[ActionName],
    filters: &[Filter],
) -> Result<Vec<(ActionState, bool)>> {
    let Some((run_id, ..)) = read::find_run(db, run)? else { return Ok(Vec::new()) };
    let source = actions(db, run, run_id, filters.iter().map(|f| &f.field))?;
    let names: Vec<_> = names.iter().map(ActionName::as_str).collect();
    let mut sql = source.select_with(filters, "a.state");
    sql.push(" AND a.name IN (SELECT value FROM ");
    DIALECT.push_texts(&mut sql, &names);
    sql.push(") ORDER BY a.id");
    let found = list::rows(db, &sql, |row| Ok((stored::state(&get::<Vec<u8>>(row, 0)?)?, get::<bool>(row, 1)?)))?;
    let (states, meets): (Vec<_>, Vec<_>) = found.into_iter().unzip();
    Ok(read::as_shown(db, run_id, states)?.into_iter().zip(meets).collect())
}

// === Tasks ===

pub(crate) struct Tasks {
    pub(crate) rows: Vec<TaskRow>,
    pub(crate) next: Next,
    pub(crate) total: u64,
    pub(crate) filtered: u64,
}

pub(crate) fn list_tasks(
    db: &Connection,
    scope: &ListScope,
    latest: bool,
    query: &ListQuery,
    now: Time,
) -> Result<Tasks> {
    let source = if latest {
        scoped(Listed::Tasks, "task_names n CROSS JOIN tasks t ON t.id = n.newest", "n", "n.id", scope)
    } else {
        scoped(Listed::Versions, "tasks t", "t", "t.id", scope)
    };
    let found = list::select(db, &source, query, now)?;
    let mut sql = Sql::new(format!(
        "SELECT {}, r.org, r.project, r.domain, r.name, r.created_at, r.phase, r.task_name FROM ",
        read::TASK_COLUMNS
    ));
    DIALECT.push_ids(&mut sql, &found.ids);
    sql.push(if latest {
        " j CROSS JOIN task_names n ON n.id = j.value CROSS JOIN tasks t ON t.id = n.newest"
    } else {
        " j CROSS JOIN tasks t ON t.id = j.value"
    });
    sql.push(
        " LEFT JOIN task_runs u ON u.org = t.org AND u.project = t.project AND u.domain = t.domain AND u.name = t.name
                                AND u.version = ",
    );
    sql.push(if latest { "''" } else { "t.version" });
    sql.push(" LEFT JOIN run_index r ON r.id = u.run_id ORDER BY j.key");
    let rows = list::rows(db, &sql, |row| {
        let has_run = get::<Option<String>>(row, 11)?.is_some();
        let latest_run = has_run.then(|| latest_run(row, 11)).transpose()?;
        Ok(TaskRow { task: read::deployed(row, 0)?, latest_run })
    })?;
    let total = list::count(db, &source, &[])?;
    let filtered = if query.filters.is_empty() { total } else { list::count(db, &source, &query.filters)? };
    Ok(Tasks { rows, next: found.next, total, filtered })
}

fn latest_run(row: &Row<'_>, first: usize) -> Result<LatestRun> {
    let text = |i| get::<String>(row, first + i);
    Ok(LatestRun {
        run: RunKey { scope: Scope { org: text(0)?, project: text(1)?, domain: text(2)? }, name: text(3)? },
        at: Time::from_micros(get(row, first + 4)?),
        phase: phase(row, first + 5)?,
        root_task: text(6)?,
    })
}

#[cfg(test)]
mod tests {
    use aloft_store::{Cursor, Direction, Op, SortBy};

    use super::*;
    use crate::schema;

    /// How SQLite answers the first query of a list.
    fn plan(source: &Source, query: &ListQuery) -> String {
        let mut db = Connection::open_in_memory().unwrap();
        schema::migrate(&mut db).unwrap();
        crate::functions(&db).unwrap();
        let mut explained = Sql::new("EXPLAIN QUERY PLAN ");
        explained.append(&source.keys(query, None));
        list::rows(&db, &explained, |row| get::<String>(row, 3)).unwrap().join("; ")
    }

    fn project() -> ListScope {
        ListScope { org: "o".into(), project: "p".into(), domain: "d".into() }
    }

    /// The usual lists follow an index in their own order: they read as many rows as they return.
    #[test]
    fn usual_lists_need_no_sorting() {
        let phase = |values: &[i64]| Filter {
            field: Field::Phase,
            op: if values.len() == 1 { Op::Equal } else { Op::In },
            values: values.iter().map(|n| Cursor::Int(*n)).collect(),
        };
        let org = ListScope { org: "o".into(), ..ListScope::default() };
        let up = vec![SortBy { field: Field::CreatedAt, direction: Direction::Ascending }];
        let usual = [
            (runs(&project()), vec![], "run_index_by_time"),
            (runs(&org), vec![], "run_index_by_org"),
            (runs(&project()), vec![phase(&[6])], "run_index_by_phase"),
            (runs(&project()), vec![Filter::equal(Field::TaskName, "f")], "run_index_by_task"),
        ];
        for (source, filters, index) in usual {
            for sort in [Vec::new(), up.clone()] {
                let query = ListQuery { sort, ..ListQuery::newest(filters.clone(), 100) };
                let plan = plan(&source, &query);
                assert!(plan.contains(index) && !plan.contains("TEMP B-TREE"), "{filters:?}: {plan}");
            }
        }
        let mut db = Connection::open_in_memory().unwrap();
        schema::migrate(&mut db).unwrap();
        let run =
            RunKey { scope: Scope { org: "o".into(), project: "p".into(), domain: "d".into() }, name: "r".into() };
        let source = actions(&db, &run, 1, std::iter::empty()).unwrap();
        let plan = plan(&source, &ListQuery::newest(Vec::new(), 100));
        assert!(plan.contains("actions_by_time") && !plan.contains("TEMP B-TREE"), "{plan}");
    }
}
