//! Lists in SQLite's words (`aloft-store/src/sql.rs`).

use std::collections::HashSet;

use aloft_core::Time;
use aloft_store::{
    Cursor, Field, Filter, ListQuery, Listed, Position, StoreError,
    sql::{Dialect, Next, Selected, Source, Sql, Way},
};
use rusqlite::{Connection, Row, types::Value};

use crate::{error, order};

/// SQLite's words.
pub(crate) static DIALECT: Dialect =
    Dialect { column, differs: " IS NOT ", nulls: ("", ""), ids: ("json_each(", ")"), texts: ("json_each(", ")") };

/// The SQL expression of a field; `NULL` if the list does not have it.
fn column(source: &Source, field: &Field) -> &'static str {
    let Source { of, lost, .. } = source;
    match of {
        Listed::Runs => run_column(field),
        Listed::Actions => match (field, lost) {
            (Field::Phase, true) => "iif(l.id IS NULL, a.phase, 7)",
            (Field::EndedAt, true) => "ifnull(a.ended_at, l.ended_at)",
            (Field::Duration, true) => "ifnull(a.duration_ms, (l.ended_at - a.created_at) / 1000)",
            (field, _) => action_column(field),
        },
        Listed::Tasks | Listed::Versions => task_column(field),
    }
}

fn run_column(field: &Field) -> &'static str {
    match field {
        Field::Name | Field::RunName => "r.name",
        Field::Org => "r.org",
        Field::Project => "r.project",
        Field::Domain => "r.domain",
        Field::Phase => "r.phase",
        Field::CreatedAt => "r.created_at",
        Field::UpdatedAt => "r.updated_at",
        Field::StartedAt => "r.started_at",
        Field::EndedAt => "r.ended_at",
        Field::Duration => "r.duration_ms",
        Field::Attempts => "r.attempts",
        Field::CacheStatus => "r.cache_status",
        Field::TaskName => "r.task_name",
        Field::TaskVersion => "r.task_version",
        Field::TaskProject => "r.task_project",
        Field::TaskDomain => "r.task_domain",
        Field::ShortName => "r.short_name",
        Field::Environment => "r.environment",
        Field::CreatedBy => "r.created_by",
        Field::RelatedTo => "(SELECT x.related_to FROM runs x WHERE x.id = r.id)",
        Field::Source => "r.source",
        Field::Kind => "r.kind",
        // Live, phase 9, and nothing above it has ended.
        Field::PausedActions => {
            "(SELECT 1 FROM actions p WHERE p.run_id = r.id AND p.phase = 9 AND NOT EXISTS (
                  WITH RECURSIVE above (name) AS (
                      SELECT p.parent
                      UNION ALL
                      SELECT u.parent FROM above JOIN actions u ON u.run_id = p.run_id AND u.name = above.name)
                  SELECT 1 FROM above JOIN actions e ON e.run_id = p.run_id AND e.name = above.name
                  WHERE e.ended_at IS NOT NULL) LIMIT 1)"
        }
        _ => "NULL",
    }
}

fn action_column(field: &Field) -> &'static str {
    match field {
        Field::Name => "a.name",
        Field::Phase => "a.phase",
        Field::CreatedAt => "a.created_at",
        Field::UpdatedAt => "a.updated_at",
        Field::StartedAt => "a.started_at",
        Field::EndedAt => "a.ended_at",
        Field::Duration => "a.duration_ms",
        Field::Attempts => "a.attempts",
        Field::CacheStatus => "a.cache_status",
        Field::Title => "(a.name || char(10) || a.short_name || char(10) || a.task_name)",
        Field::TaskName => "a.task_name",
        Field::TaskVersion => "a.task_version",
        Field::TaskProject => "a.task_project",
        Field::TaskDomain => "a.task_domain",
        Field::ShortName => "a.short_name",
        Field::Environment => "a.environment",
        Field::Parent => "a.parent",
        Field::Group => "a.grp",
        Field::Kind => "a.kind",
        Field::RunName => "r.name",
        Field::Org => "r.org",
        Field::Project => "r.project",
        Field::Domain => "r.domain",
        Field::CreatedBy => "r.created_by",
        Field::Source => "r.source",
        _ => "NULL",
    }
}

fn task_column(field: &Field) -> &'static str {
    match field {
        Field::Name | Field::TaskName => "t.name",
        Field::TaskVersion => "t.version",
        Field::Org => "t.org",
        Field::Project | Field::TaskProject => "t.project",
        Field::Domain | Field::TaskDomain => "t.domain",
        Field::CreatedAt | Field::UpdatedAt => "t.deployed_at",
        Field::CreatedBy => "t.deployed_by",
        Field::ShortName => "t.short_name",
        Field::Environment => "t.environment",
        Field::Entrypoint => "t.entrypoint",
        _ => "NULL",
    }
}

/// A value as a parameter.
fn value(cursor: &Cursor) -> Value {
    match cursor {
        Cursor::Null => Value::Null,
        Cursor::Int(n) => Value::Integer(*n),
        Cursor::Text(t) => Value::Text(t.clone()),
    }
}

/// Every row of a statement, decoded.
pub(crate) fn rows<T>(
    db: &Connection,
    sql: &Sql,
    mut decode: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Vec<T>, StoreError> {
    let (text, params) = sql.render(|n, _| format!("?{n}"));
    let params: Vec<Value> = params.into_iter().map(value).collect();
    let mut statement = db.prepare_cached(&text).map_err(error::from_sqlite)?;
    let mut rows = statement.query(rusqlite::params_from_iter(params)).map_err(error::from_sqlite)?;
    let mut out = Vec::new();
    while let Some(row) = rows.next().map_err(error::from_sqlite)? {
        out.push(decode(row)?);
    }
    Ok(out)
}

fn ids(db: &Connection, sql: &Sql) -> Result<Vec<i64>, StoreError> {
    rows(db, sql, |row| row.get::<_, i64>(0).map_err(error::from_sqlite))
}

/// Rows of a kept order that are looked at together, at least: many may not meet the filters any more.
const LOOK: usize = 256;

/// Selects the rows of the page that `query` asks for.
pub(crate) fn select(db: &Connection, source: &Source, query: &ListQuery, now: Time) -> Result<Selected, StoreError> {
    let list = source.fingerprint(query);
    match Way::of(source, query)? {
        Way::Kept { order, at } => go_on(db, source, query, Kept { list, order, at }, now),
        Way::Whole => Selected::from_whole(ids(db, &source.whole(query))?, query.limit, list),
        Way::Keys(after) => {
            let after = after.as_ref().map(|(values, row)| (values.as_slice(), *row));
            let values = query.order().len();
            let found = rows(db, &source.keys(query, after), |row| {
                let id: i64 = row.get(0).map_err(error::from_sqlite)?;
                let key = |i| match row.get::<_, Value>(i).map_err(error::from_sqlite)? {
                    Value::Integer(n) => Ok(Cursor::Int(n)),
                    Value::Text(t) => Ok(Cursor::Text(t)),
                    _ => Ok(Cursor::Null),
                };
                Ok((id, (1..=values).map(key).collect::<Result<Vec<_>, StoreError>>()?))
            })?;
            Ok(Selected::from_keys(found, query.limit, list))
        }
    }
}

struct Kept {
    list: u64,
    order: i64,
    at: usize,
}

fn go_on(db: &Connection, source: &Source, query: &ListQuery, kept: Kept, now: Time) -> Result<Selected, StoreError> {
    let Kept { list, order, mut at } = kept;
    let rows = order::rows(db, order, list, now)?.ok_or(StoreError::Expired)?;
    let mut page = Vec::new();
    while page.len() < query.limit && at < rows {
        let mut some = order::part(db, order, at)?;
        some.truncate(query.limit.max(LOOK));
        if some.is_empty() {
            return Err(StoreError::Expired);
        }
        let still: HashSet<i64> = ids(db, &source.meeting(&query.filters, &some))?.into_iter().collect();
        for id in some {
            at += 1;
            if still.contains(&id) {
                page.push(id);
                if page.len() == query.limit {
                    break;
                }
            }
        }
    }
    let next = if at < rows { Next::At { list, position: Position::Kept { order, at } } } else { Next::End };
    Ok(Selected { ids: page, next })
}

/// How many rows meet the filters.
pub(crate) fn count(db: &Connection, source: &Source, filters: &[Filter]) -> Result<u64, StoreError> {
    let found = ids(db, &source.count(filters))?;
    Ok(found.first().map_or(0, |n| u64::try_from(*n).unwrap_or(0)))
}
