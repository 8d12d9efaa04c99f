//! Lists in Postgres' words (`aloft-store/src/sql.rs`).

use std::collections::HashSet;

use aloft_core::Time;
use aloft_store::{
    Cursor, Field, Filter, ListQuery, Listed, Position, StoreError,
    sql::{Dialect, Next, Selected, Source, Sql, Way},
};
use tokio_postgres::{Row, types::Type};

use crate::{order, read::Reader};

/// Postgres' words.
pub(crate) static DIALECT: Dialect = Dialect {
    column,
    differs: " IS DISTINCT FROM ",
    nulls: (" NULLS FIRST", " NULLS LAST"),
    ids: (
        "(SELECT e.value::bigint AS value, e.key FROM jsonb_array_elements_text(",
        "::jsonb) WITH ORDINALITY e (value, key))",
    ),
    texts: ("jsonb_array_elements_text(", "::jsonb)"),
};

fn column(source: &Source, field: &Field) -> &'static str {
    match source.of {
        Listed::Runs => run_column(field),
        Listed::Actions => match (field, source.lost) {
            (Field::Phase, true) => "(CASE WHEN l.id IS NULL THEN a.phase ELSE 7 END)",
            (Field::EndedAt, true) => "coalesce(a.ended_at, l.ended_at)",
            (Field::Duration, true) => "coalesce(a.duration_ms, (l.ended_at - a.created_at) / 1000)",
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
        // Phase 9, and nothing above it has ended.
        Field::PausedActions => {
            "(SELECT 1::bigint FROM live p WHERE p.run_id = r.id AND p.phase = 9 AND NOT EXISTS (
                  SELECT 1 FROM actions e
                  WHERE e.run_id = p.run_id AND e.name = ANY (p.ancestors) AND e.ended_at IS NOT NULL) LIMIT 1)"
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
        Field::Title => "(a.name || chr(10) || a.short_name || chr(10) || a.task_name)",
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

/// Rows of a kept order that are looked at together, at least: many may not meet the filters any more.
const LOOK: usize = 256;

fn id(row: &Row) -> Result<i64, StoreError> {
    Ok(row.get(0))
}

fn key(row: &Row, column: usize) -> Cursor {
    if *row.columns()[column].type_() == Type::INT8 {
        return row.get::<_, Option<i64>>(column).map_or(Cursor::Null, Cursor::Int);
    }
    if *row.columns()[column].type_() == Type::INT4 {
        return row.get::<_, Option<i32>>(column).map_or(Cursor::Null, |n| Cursor::Int(i64::from(n)));
    }
    row.get::<_, Option<String>>(column).map_or(Cursor::Null, Cursor::Text)
}

/// Selects the rows of the page that `query` asks for.
pub(crate) async fn select(db: &Reader, source: &Source, query: &ListQuery, now: Time) -> Result<Selected, StoreError> {
    let list = source.fingerprint(query);
    match Way::of(source, query)? {
        Way::Kept { order, at } => go_on(db, source, query, (order, at), now).await,
        Way::Whole => Selected::from_whole(db.list(&source.whole(query), id).await?, query.limit, list),
        Way::Keys(after) => {
            let after = after.as_ref().map(|(values, row)| (values.as_slice(), *row));
            let values = query.order().len();
            let found = db
                .list(&source.keys(query, after), |row| {
                    Ok((row.get(0), (1..=values).map(|i| key(row, i)).collect::<Vec<_>>()))
                })
                .await?;
            Ok(Selected::from_keys(found, query.limit, list))
        }
    }
}

async fn go_on(
    db: &Reader,
    source: &Source,
    query: &ListQuery,
    (order, mut at): (i64, usize),
    now: Time,
) -> Result<Selected, StoreError> {
    let list = source.fingerprint(query);
    let rows = order::rows(db, order, list, now).await?.ok_or(StoreError::Expired)?;
    let mut page = Vec::new();
    while page.len() < query.limit && at < rows {
        let mut some = order::part(db, order, at).await?;
        some.truncate(query.limit.max(LOOK));
        if some.is_empty() {
            return Err(StoreError::Expired);
        }
        let still: HashSet<i64> = db.list(&source.meeting(&query.filters, &some), id).await?.into_iter().collect();
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
pub(crate) async fn count(db: &Reader, source: &Source, filters: &[Filter]) -> Result<u64, StoreError> {
    let found = db.list(&source.count(filters), id).await?;
    Ok(found.first().map_or(0, |n| n.unsigned_abs()))
}

/// A list of one table before its filters.
pub(crate) fn source(of: Listed, from: &'static str, id: &'static str, within: Sql, scope: String) -> Source {
    Source { dialect: &DIALECT, of, with: Sql::default(), from, id, within, lost: false, scope }
}
