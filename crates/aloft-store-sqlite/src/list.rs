//! Lists as SQL: filters, keyset pages, orders.

use aloft_store::{Cursor, Direction, Field, Filter, ListQuery, ListScope, Op, Page, StoreError};
use rusqlite::{Connection, Row, ToSql, types::Value};

use crate::error;

/// Which table a list reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Runs,
    Actions,
    Tasks,
}

/// The SQL expression of a field, if the list has it.
fn column(of: Of, field: &Field) -> Option<&'static str> {
    Some(match (of, field) {
        (Of::Runs, Field::Name) => "r.name",
        (Of::Actions, Field::Name) => "a.name",
        (Of::Runs, Field::CreatedAt) => "r.created_at",
        (Of::Runs, Field::CreatedBy) => "r.created_by",
        (Of::Runs, Field::Source) => "r.source",
        (Of::Tasks, Field::Name | Field::TaskName) => "t.name",
        (Of::Tasks, Field::CreatedAt | Field::UpdatedAt) => "t.deployed_at",
        (Of::Tasks, Field::CreatedBy) => "t.deployed_by",
        (Of::Tasks, Field::Version | Field::TaskVersion) => "t.version",
        (Of::Tasks, Field::ShortName) => "t.short_name",
        (Of::Tasks, Field::Environment) => "t.environment",
        (Of::Tasks, Field::Entrypoint) => "t.entrypoint",
        (Of::Tasks, _) => return None,
        (_, Field::Phase) => "a.phase",
        (_, Field::CreatedAt) => "a.created_at",
        (_, Field::UpdatedAt) => "a.updated_at",
        (_, Field::EndedAt) => "a.ended_at",
        (_, Field::Duration) => "a.duration_ms",
        (_, Field::TaskName) => "a.task_name",
        (_, Field::TaskVersion) => "a.task_version",
        (_, Field::ShortName) => "a.short_name",
        (_, Field::Environment) => "a.environment",
        (_, Field::Parent) => "a.parent",
        (_, Field::Group) => "a.grp",
        (_, Field::Kind) => "a.kind",
        _ => return None,
    })
}

/// SQL text with its parameters.
pub(crate) struct Sql {
    pub(crate) text: String,
    pub(crate) params: Vec<Value>,
}

impl Sql {
    pub(crate) fn bind(&mut self, value: Value) {
        self.params.push(value);
        self.text.push('?');
        self.text.push_str(&self.params.len().to_string());
    }
}

fn value(cursor: &Cursor) -> Value {
    match cursor {
        Cursor::Null => Value::Null,
        Cursor::Int(n) => Value::Integer(*n),
        Cursor::Text(t) => Value::Text(t.clone()),
    }
}

/// Appends ` AND (condition)`.
fn push_filter(sql: &mut Sql, of: Of, filter: &Filter) {
    sql.text.push_str(" AND (");
    let expression = match &filter.field {
        Field::Label(key) if of == Of::Runs => {
            // The value of the label by exact key; the key is bound, so that no key can change the query.
            let mut part = Sql {
                text: "(SELECT j.value FROM json_each(r.info, '$.labels') j WHERE j.key = ".to_owned(),
                params: std::mem::take(&mut sql.params),
            };
            part.bind(Value::Text(key.clone()));
            part.text.push(')');
            sql.params = part.params;
            Some(part.text)
        }
        field => column(of, field).map(str::to_owned),
    };
    let Some(expression) = expression else {
        // A field this list does not have: nothing matches, except conditions of absence.
        sql.text.push_str(if matches!(filter.op, Op::NotExists | Op::NotIn | Op::NotEqual) { "1)" } else { "0)" });
        return;
    };
    let first = filter.values.first().map_or(Value::Null, value);
    let compare = |sql: &mut Sql, op: &str| {
        sql.text.push_str(&format!("{expression} {op} "));
        sql.bind(first.clone());
    };
    match filter.op {
        Op::Equal => compare(sql, "="),
        Op::NotEqual => compare(sql, "IS NOT"),
        Op::Greater => compare(sql, ">"),
        Op::GreaterOrEqual => compare(sql, ">="),
        Op::Less => compare(sql, "<"),
        Op::LessOrEqual => compare(sql, "<="),
        Op::Contains => {
            sql.text.push_str(&format!("instr({expression}, "));
            sql.bind(first);
            sql.text.push_str(") > 0");
        }
        Op::ContainsNoCase => {
            sql.text.push_str(&format!("instr(lower({expression}), lower("));
            sql.bind(first);
            sql.text.push_str(")) > 0");
        }
        Op::EndsWith | Op::NotEndsWith => {
            let text = if let Value::Text(t) = &first { t.clone() } else { String::new() };
            let length = text.chars().count();
            let op = if filter.op == Op::EndsWith { "=" } else { "IS NOT" };
            if length == 0 {
                sql.text.push_str(if filter.op == Op::EndsWith { "1" } else { "0" });
            } else {
                sql.text.push_str(&format!("substr({expression}, -{length}) {op} "));
                sql.bind(Value::Text(text));
            }
        }
        Op::In | Op::NotIn => {
            sql.text.push_str(&format!("{expression} {} (", if filter.op == Op::In { "IN" } else { "NOT IN" }));
            for (i, v) in filter.values.iter().enumerate() {
                if i > 0 {
                    sql.text.push_str(", ");
                }
                sql.bind(value(v));
            }
            sql.text.push(')');
        }
        Op::Exists => sql.text.push_str(&format!("{expression} IS NOT NULL")),
        Op::NotExists => sql.text.push_str(&format!("{expression} IS NULL")),
    }
    sql.text.push(')');
}

/// Appends the scope's conditions for `alias`.
pub(crate) fn push_scope(sql: &mut Sql, alias: &str, scope: &ListScope) {
    for (column, wanted) in [("org", &scope.org), ("project", &scope.project), ("domain", &scope.domain)] {
        if !wanted.is_empty() {
            sql.text.push_str(&format!(" AND {alias}.{column} = "));
            sql.bind(Value::Text(wanted.clone()));
        }
    }
}

/// Runs a list whose `sql` ends in its `WHERE`. `id` is the row number expression; the select list must begin with the
/// row number and have room for the sort value as its second column, written as `$sort`.
pub(crate) fn page<T>(
    db: &Connection,
    mut sql: Sql,
    of: Of,
    id: &str,
    query: &ListQuery,
    decode: impl Fn(&Row<'_>) -> Result<T, StoreError>,
) -> Result<Page<T>, StoreError> {
    for filter in &query.filters {
        push_filter(&mut sql, of, filter);
    }
    let sort = column(of, &query.sort.field).unwrap_or(match of {
        Of::Runs => "r.created_at",
        Of::Actions => "a.created_at",
        Of::Tasks => "t.deployed_at",
    });
    // NULL sorts as the smallest in SQLite; -1 keeps that and makes row values comparable.
    let sort = format!("ifnull({sort}, -1)");
    let (op, order) = match query.sort.direction {
        Direction::Ascending => (">", "ASC"),
        Direction::Descending => ("<", "DESC"),
    };
    if let Some((last, row)) = query.after()? {
        sql.text.push_str(&format!(" AND ({sort}, {id}) {op} ("));
        sql.bind(value(&last));
        sql.text.push_str(", ");
        sql.bind(Value::Integer(row));
        sql.text.push(')');
    }
    sql.text.push_str(&format!(" ORDER BY {sort} {order}, {id} {order} LIMIT {}", query.limit + 1));
    let text = sql.text.replace("$sort", &sort);
    let mut statement = db.prepare_cached(&text).map_err(error::from_sqlite)?;
    let params: Vec<&dyn ToSql> = sql.params.iter().map(|v| v as &dyn ToSql).collect();
    let mut rows = statement.query(params.as_slice()).map_err(error::from_sqlite)?;
    let mut page = Page { rows: Vec::new(), next: String::new() };
    let mut last = None;
    while let Some(row) = rows.next().map_err(error::from_sqlite)? {
        if page.rows.len() == query.limit {
            if let Some((value, id)) = &last {
                page.next = ListQuery::token_after(value, *id);
            }
            break;
        }
        let id: i64 = row.get(0).map_err(error::from_sqlite)?;
        let sorted = match row.get::<_, Value>(1).map_err(error::from_sqlite)? {
            Value::Integer(n) => Cursor::Int(n),
            Value::Text(t) => Cursor::Text(t),
            _ => Cursor::Null,
        };
        last = Some((sorted, id));
        page.rows.push(decode(row)?);
    }
    Ok(page)
}
