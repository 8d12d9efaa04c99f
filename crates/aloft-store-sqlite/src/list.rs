//! Lists as SQL: filters, orders, pages.
//!
//! A list is read in two steps: which rows, from narrow tables and indexes, then those rows. So an order that no index has
//! sorts numbers and not texts.

use aloft_core::Time;
use aloft_store::{
    Cursor, Direction, Field, FieldType, Filter, ListQuery, Listed, MAX_KEPT, Op, Position, SortBy, StoreError,
};
use rusqlite::{Connection, Row, ToSql, types::Value};

use crate::{error, order};

/// SQL text with its parameters.
#[derive(Clone, Default)]
pub(crate) struct Sql {
    pub(crate) text: String,
    pub(crate) params: Vec<Value>,
}

impl Sql {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), params: Vec::new() }
    }

    pub(crate) fn push(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub(crate) fn bind(&mut self, value: Value) {
        self.params.push(value);
        self.text.push('?');
        self.text.push_str(&self.params.len().to_string());
    }

    pub(crate) fn text(&mut self, value: &str) {
        self.bind(Value::Text(value.to_owned()));
    }

    pub(crate) fn rows<T>(
        &self,
        db: &Connection,
        mut decode: impl FnMut(&Row<'_>) -> Result<T, StoreError>,
    ) -> Result<Vec<T>, StoreError> {
        let mut statement = db.prepare_cached(&self.text).map_err(error::from_sqlite)?;
        let params: Vec<&dyn ToSql> = self.params.iter().map(|v| v as &dyn ToSql).collect();
        let mut rows = statement.query(params.as_slice()).map_err(error::from_sqlite)?;
        let mut out = Vec::new();
        while let Some(row) = rows.next().map_err(error::from_sqlite)? {
            out.push(decode(row)?);
        }
        Ok(out)
    }
}

/// A list before its filters: what it is of, where its rows are, and which of them it covers.
#[derive(Clone)]
pub(crate) struct Source {
    pub(crate) of: Listed,
    /// A `WITH` clause, or nothing.
    pub(crate) with: Sql,
    /// The tables.
    pub(crate) from: &'static str,
    /// The row number.
    pub(crate) id: &'static str,
    /// The scope: conditions joined by `AND`, the first with one in front.
    pub(crate) within: Sql,
    /// Whether some actions are shown as aborted that are not recorded so (`with` then has them as `lost`).
    pub(crate) lost: bool,
    /// What tells this scope from others, for tokens.
    pub(crate) scope: String,
}

impl Source {
    /// `SELECT {columns} FROM ... WHERE ...` with the scope.
    pub(crate) fn select(&self, columns: &str) -> Sql {
        let mut sql = self.with.clone();
        sql.push(&format!("SELECT {columns} FROM {} WHERE 1", self.from));
        self.push_scope(&mut sql);
        sql
    }

    /// As [`Source::select`], with whether the row meets `filters` as a further column.
    pub(crate) fn select_with(&self, filters: &[Filter], columns: &str) -> Sql {
        let mut sql = self.with.clone();
        sql.push(&format!("SELECT {columns}, ifnull((1"));
        push_filters(&mut sql, self, filters);
        sql.push(&format!("), 0) FROM {} WHERE 1", self.from));
        self.push_scope(&mut sql);
        sql
    }

    /// The scope's parameters are numbered anew behind those that are there already.
    fn push_scope(&self, sql: &mut Sql) {
        let mut rest = self.within.text.as_str();
        for value in &self.within.params {
            let (before, after) = rest.split_once('?').unwrap_or((rest, ""));
            sql.push(before);
            sql.bind(value.clone());
            rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
        }
        sql.push(rest);
    }
}

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
                  SELECT 1 FROM json_each(CAST(p.state AS TEXT), '$.ancestors') j
                  JOIN actions e ON e.run_id = p.run_id AND e.name = j.value WHERE e.ended_at IS NOT NULL) LIMIT 1)"
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
        Field::StartedAt => "(CAST(a.state AS TEXT) ->> '$.started_at')",
        Field::EndedAt => "a.ended_at",
        Field::Duration => "a.duration_ms",
        Field::Attempts => "ifnull(json_array_length(CAST(a.state AS TEXT), '$.attempts'), 0)",
        Field::CacheStatus => "ifnull(CAST(a.state AS TEXT) ->> '$.cache.status', 'disabled')",
        Field::Title => "(a.name || char(10) || a.short_name || char(10) || a.task_name)",
        Field::TaskName => "a.task_name",
        Field::TaskVersion => "a.task_version",
        Field::TaskProject => "(CAST(a.state AS TEXT) ->> '$.seed.task.task.project')",
        Field::TaskDomain => "(CAST(a.state AS TEXT) ->> '$.seed.task.task.domain')",
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

fn value(cursor: &Cursor) -> Value {
    match cursor {
        Cursor::Null => Value::Null,
        Cursor::Int(n) => Value::Integer(*n),
        Cursor::Text(t) => Value::Text(t.clone()),
    }
}

/// The expression of a field, its key bound if it is a label, so that no key can change the query.
fn push_field(sql: &mut Sql, source: &Source, field: &Field) {
    match field {
        Field::Label(key) if source.of == Listed::Runs => {
            sql.push("(SELECT b.value FROM run_labels b WHERE b.run_id = r.id AND b.key = ");
            sql.text(key);
            sql.push(")");
        }
        field => sql.push(column(source, field)),
    }
}

/// Appends ` AND (condition)` for each filter.
pub(crate) fn push_filters(sql: &mut Sql, source: &Source, filters: &[Filter]) {
    for filter in filters {
        sql.push(" AND (");
        push_filter(sql, source, filter);
        sql.push(")");
    }
}

fn push_filter(sql: &mut Sql, source: &Source, filter: &Filter) {
    let Filter { field, op, values } = filter;
    if let (Field::Label(key), Listed::Runs, Op::Equal | Op::In) = (field, source.of, op) {
        // By value and not by run: few runs have it.
        sql.push("r.id IN (SELECT b.run_id FROM run_labels b WHERE b.key = ");
        sql.text(key);
        sql.push(" AND b.value IN ");
        push_list(sql, values);
        return sql.push(")");
    }
    let first = || values.first().map_or(Value::Null, value);
    let mut compare = |op: &str| {
        push_field(sql, source, field);
        sql.push(op);
        sql.bind(first());
    };
    match op {
        Op::Equal => compare(" = "),
        Op::NotEqual => compare(" IS NOT "),
        Op::Greater => compare(" > "),
        Op::GreaterOrEqual => compare(" >= "),
        Op::Less => compare(" < "),
        Op::LessOrEqual => compare(" <= "),
        Op::Contains | Op::ContainsNoCase => {
            let fold = *op == Op::ContainsNoCase;
            sql.push(if fold { "instr(folded(" } else { "instr(" });
            push_field(sql, source, field);
            sql.push(if fold { "), folded(" } else { ", " });
            sql.bind(first());
            sql.push(if fold { ")) > 0" } else { ") > 0" });
        }
        Op::EndsWith | Op::NotEndsWith => {
            if *op == Op::NotEndsWith {
                sql.push("NOT ifnull(");
            }
            sql.push("ends_with(");
            push_field(sql, source, field);
            sql.push(", ");
            sql.bind(first());
            sql.push(if *op == Op::NotEndsWith { "), 0)" } else { ")" });
        }
        Op::In => {
            push_field(sql, source, field);
            sql.push(" IN ");
            push_list(sql, values);
        }
        Op::NotIn => {
            sql.push("ifnull(");
            push_field(sql, source, field);
            sql.push(" NOT IN ");
            push_list(sql, values);
            sql.push(", 1)");
        }
        Op::Exists | Op::NotExists => {
            let text = field.value_type() == FieldType::Text && !matches!(field, Field::Label(_));
            sql.push(if text { "nullif(" } else { "(" });
            push_field(sql, source, field);
            sql.push(if text { ", '')" } else { ")" });
            sql.push(if *op == Op::Exists { " IS NOT NULL" } else { " IS NULL" });
        }
    }
}

fn push_list(sql: &mut Sql, values: &[Cursor]) {
    sql.push("(");
    for (i, v) in values.iter().enumerate() {
        if i > 0 {
            sql.push(", ");
        }
        sql.bind(value(v));
    }
    sql.push(")");
}

/// A sort key as an expression. One that a list goes on from is never `NULL`, which has no place in a comparison.
fn push_key(sql: &mut Sql, source: &Source, sort: &SortBy) {
    let field = &sort.field;
    let may_be_null = matches!(field, Field::Label(_) | Field::Parent | Field::TaskProject | Field::TaskDomain);
    if field.is_fixed(source.of) && (may_be_null || column(source, field) == "NULL") {
        sql.push("ifnull(");
        push_field(sql, source, field);
        sql.push(if field.value_type() == FieldType::Text { ", '')" } else { ", -1)" });
    } else {
        push_field(sql, source, field);
    }
}

fn direction(direction: Direction) -> &'static str {
    if direction == Direction::Ascending { " ASC" } else { " DESC" }
}

fn push_order(sql: &mut Sql, source: &Source, query: &ListQuery) {
    sql.push(" ORDER BY ");
    for sort in query.order() {
        push_key(sql, source, &sort);
        sql.push(direction(sort.direction));
        sql.push(", ");
    }
    sql.push(source.id);
    sql.push(direction(query.tie()));
}

/// Appends the condition that a row comes after the one with these sort values and this number.
fn push_after(sql: &mut Sql, source: &Source, query: &ListQuery, values: &[Cursor], row: i64) {
    let order = query.order();
    let beyond = |d: Direction| if d == Direction::Ascending { " > " } else { " < " };
    if let [only] = order.as_slice() {
        // As one comparison of rows, which an index answers.
        sql.push(" AND (");
        push_key(sql, source, only);
        sql.push(", ");
        sql.push(source.id);
        sql.push(")");
        sql.push(beyond(only.direction));
        sql.push("(");
        sql.bind(values.first().map_or(Value::Null, value));
        sql.push(", ");
        sql.bind(Value::Integer(row));
        return sql.push(")");
    }
    // Equal in the first n keys and beyond in the next, for every n.
    sql.push(" AND (");
    for n in 0..=order.len() {
        sql.push(if n == 0 { "(" } else { " OR (" });
        for (sort, v) in order.iter().zip(values).take(n) {
            push_key(sql, source, sort);
            sql.push(" = ");
            sql.bind(value(v));
            sql.push(" AND ");
        }
        match order.get(n) {
            Some(sort) => {
                push_key(sql, source, sort);
                sql.push(beyond(sort.direction));
                sql.bind(values.get(n).map_or(Value::Null, value));
            }
            None => {
                sql.push(source.id);
                sql.push(beyond(query.tie()));
                sql.bind(Value::Integer(row));
            }
        }
        sql.push(")");
    }
    sql.push(")");
}

/// Rows of a kept order that are looked at together, at least: many may not meet the filters any more.
const LOOK: usize = 256;

/// The rows of a page, and how to go on.
#[derive(Debug, PartialEq)]
pub(crate) struct Selected {
    /// Row numbers, in order.
    pub(crate) ids: Vec<i64>,
    pub(crate) next: Next,
}

/// How a list goes on after a page.
#[derive(Debug, PartialEq)]
pub(crate) enum Next {
    End,
    At {
        list: u64,
        position: Position,
    },
    /// From `at` on, once this order is kept.
    Keep {
        list: u64,
        order: Vec<i64>,
        at: usize,
    },
}

/// Selects the rows of the page that `query` asks for.
pub(crate) fn select(db: &Connection, source: &Source, query: &ListQuery, now: Time) -> Result<Selected, StoreError> {
    let list = query.fingerprint(source.of, &source.scope);
    match query.position(list)? {
        Position::Kept { order, at } => go_on(db, source, query, Kept { list, order, at }, now),
        Position::Start if !query.is_fixed(source.of) => begin_kept(db, source, query, list),
        Position::Start => from_key(db, source, query, list, None),
        Position::After(values, row) if query.is_fixed(source.of) => {
            from_key(db, source, query, list, Some((&values, row)))
        }
        Position::After(..) => Err(StoreError::BadToken),
    }
}

/// The row numbers of a page with the keys they are sorted by: the last ones make the token.
pub(crate) fn keys(source: &Source, query: &ListQuery, after: Option<(&[Cursor], i64)>) -> Sql {
    let mut sql = source.with.clone();
    sql.push(&format!("SELECT {}", source.id));
    for sort in query.order() {
        sql.push(", ");
        push_key(&mut sql, source, &sort);
    }
    sql.push(&format!(" FROM {} WHERE 1", source.from));
    source.push_scope(&mut sql);
    push_filters(&mut sql, source, &query.filters);
    if let Some((values, row)) = after {
        push_after(&mut sql, source, query, values, row);
    }
    push_order(&mut sql, source, query);
    sql.push(&format!(" LIMIT {}", query.limit + 1));
    sql
}

fn from_key(
    db: &Connection,
    source: &Source,
    query: &ListQuery,
    list: u64,
    after: Option<(&[Cursor], i64)>,
) -> Result<Selected, StoreError> {
    let values = query.order().len();
    let mut found = keys(source, query, after).rows(db, |row| {
        let id: i64 = row.get(0).map_err(error::from_sqlite)?;
        let key = |i| match row.get::<_, Value>(i).map_err(error::from_sqlite)? {
            Value::Integer(n) => Ok(Cursor::Int(n)),
            Value::Text(t) => Ok(Cursor::Text(t)),
            _ => Ok(Cursor::Null),
        };
        Ok((id, (1..=values).map(key).collect::<Result<Vec<_>, StoreError>>()?))
    })?;
    let more = found.len() > query.limit;
    found.truncate(query.limit);
    let next = match found.last() {
        Some((id, values)) if more => Next::At { list, position: Position::After(values.clone(), *id) },
        _ => Next::End,
    };
    Ok(Selected { ids: found.into_iter().map(|(id, _)| id).collect(), next })
}

fn begin_kept(db: &Connection, source: &Source, query: &ListQuery, list: u64) -> Result<Selected, StoreError> {
    let mut sql = source.select(source.id);
    push_filters(&mut sql, source, &query.filters);
    push_order(&mut sql, source, query);
    sql.push(&format!(" LIMIT {}", MAX_KEPT + 1));
    let order = sql.rows(db, |row| row.get::<_, i64>(0).map_err(error::from_sqlite))?;
    if order.len() > MAX_KEPT {
        return Err(StoreError::TooManyRows);
    }
    let ids: Vec<_> = order.iter().copied().take(query.limit).collect();
    let at = ids.len();
    let next = if at < order.len() { Next::Keep { list, order, at } } else { Next::End };
    Ok(Selected { ids, next })
}

struct Kept {
    list: u64,
    order: i64,
    at: usize,
}

fn go_on(db: &Connection, source: &Source, query: &ListQuery, kept: Kept, now: Time) -> Result<Selected, StoreError> {
    let Kept { list, order, mut at } = kept;
    let rows = order::rows(db, order, list, now)?.ok_or(StoreError::Expired)?;
    let mut ids = Vec::new();
    while ids.len() < query.limit && at < rows {
        let mut some = order::part(db, order, at)?;
        some.truncate(query.limit.max(LOOK));
        if some.is_empty() {
            return Err(StoreError::Expired);
        }
        let still = meeting(db, source, &query.filters, &some)?;
        for id in some {
            at += 1;
            if still.contains(&id) {
                ids.push(id);
                if ids.len() == query.limit {
                    break;
                }
            }
        }
    }
    let next = if at < rows { Next::At { list, position: Position::Kept { order, at } } } else { Next::End };
    Ok(Selected { ids, next })
}

/// Those of the rows `ids` that meet the filters now.
fn meeting(
    db: &Connection,
    source: &Source,
    filters: &[Filter],
    ids: &[i64],
) -> Result<std::collections::HashSet<i64>, StoreError> {
    // From the rows to the scope: the other way round would look at every row of the scope.
    let mut sql = source.with.clone();
    sql.push(&format!("SELECT {} FROM json_each(", source.id));
    sql.text(&ids_json(ids));
    sql.push(&format!(") kept CROSS JOIN {} WHERE {} = kept.value", source.from, source.id));
    source.push_scope(&mut sql);
    push_filters(&mut sql, source, filters);
    Ok(sql.rows(db, |row| row.get::<_, i64>(0).map_err(error::from_sqlite))?.into_iter().collect())
}

/// How many rows meet the filters.
pub(crate) fn count(db: &Connection, source: &Source, filters: &[Filter]) -> Result<u64, StoreError> {
    let mut sql = source.select("count(*)");
    push_filters(&mut sql, source, filters);
    let found = sql.rows(db, |row| row.get::<_, i64>(0).map_err(error::from_sqlite))?;
    Ok(found.first().map_or(0, |n| u64::try_from(*n).unwrap_or(0)))
}

/// Row numbers as a JSON list, to bind as one parameter whatever their number.
pub(crate) fn ids_json(ids: &[i64]) -> String {
    serde_json::to_string(ids).unwrap_or_default()
}
