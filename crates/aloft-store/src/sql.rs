//! Lists as SQL, for engines that speak it: filters, orders, pages. Where engines differ, a [`Dialect`] has the words.
//!
//! A list is read in two steps: which rows, from narrow tables and indexes, then those rows. So an order that no index has
//! sorts numbers and not texts.

use crate::{Cursor, Direction, Field, FieldType, Filter, ListQuery, Listed, Op, Position, SortBy, StoreError};

/// SQL text with its parameters where they stand.
#[derive(Clone, Debug, Default)]
pub struct Sql {
    parts: Vec<Part>,
}

#[derive(Clone, Debug)]
enum Part {
    Text(String),
    Param(Cursor),
}

impl Sql {
    /// Text without parameters.
    pub fn new(text: impl Into<String>) -> Self {
        Self { parts: vec![Part::Text(text.into())] }
    }

    /// Appends text.
    pub fn push(&mut self, text: &str) {
        match self.parts.last_mut() {
            Some(Part::Text(last)) => last.push_str(text),
            _ => self.parts.push(Part::Text(text.to_owned())),
        }
    }

    /// Appends a parameter.
    pub fn bind(&mut self, value: Cursor) {
        self.parts.push(Part::Param(value));
    }

    /// Appends a text as a parameter.
    pub fn text(&mut self, value: &str) {
        self.bind(Cursor::Text(value.to_owned()));
    }

    /// Appends other SQL with its parameters.
    pub fn append(&mut self, other: &Self) {
        self.parts.extend(other.parts.iter().cloned());
    }

    /// The statement and its parameters, numbered from 1 as `placeholder` writes them.
    pub fn render(&self, placeholder: fn(usize, &Cursor) -> String) -> (String, Vec<&Cursor>) {
        let (mut text, mut params) = (String::new(), Vec::new());
        for part in &self.parts {
            match part {
                Part::Text(t) => text.push_str(t),
                Part::Param(value) => {
                    params.push(value);
                    text.push_str(&placeholder(params.len(), value));
                }
            }
        }
        (text, params)
    }
}

/// What engines write differently.
#[derive(Debug)]
pub struct Dialect {
    /// The expression of a field of a list other than a label; `NULL` if the list does not have it.
    pub column: fn(&Source, &Field) -> &'static str,
    /// A comparison that holds for `NULL` and something.
    pub differs: &'static str,
    /// Makes `NULL` the smallest value in an ascending order, and in a descending one. No index is asked for such an order.
    pub nulls: (&'static str, &'static str),
    /// A table of row numbers `value` in the order of `key`, around a parameter that is a list in JSON.
    pub ids: (&'static str, &'static str),
    /// A table of texts `value`, likewise.
    pub texts: (&'static str, &'static str),
}

/// A list before its filters: what it is of, where its rows are, and which of them it covers.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its engine's words.
    pub dialect: &'static Dialect,
    /// What it is of.
    pub of: Listed,
    /// A `WITH` clause, or nothing.
    pub with: Sql,
    /// The tables.
    pub from: &'static str,
    /// The row number.
    pub id: &'static str,
    /// The scope: conditions joined by `AND`, the first with one in front.
    pub within: Sql,
    /// Whether some actions are shown as aborted that are not recorded so (`with` then has them as `lost`).
    pub lost: bool,
    /// What tells this scope from others, for tokens.
    pub scope: String,
}

impl Source {
    /// `SELECT {columns} FROM ... WHERE ...` with the scope.
    pub fn select(&self, columns: &str) -> Sql {
        let mut sql = self.with.clone();
        sql.push(&format!("SELECT {columns} FROM {} WHERE true", self.from));
        sql.append(&self.within);
        sql
    }

    /// As [`Source::select`], with whether the row meets `filters` as a further column.
    pub fn select_with(&self, filters: &[Filter], columns: &str) -> Sql {
        let mut sql = self.with.clone();
        sql.push(&format!("SELECT {columns}, coalesce((true"));
        push_filters(&mut sql, self, filters);
        sql.push(&format!("), false) FROM {} WHERE true", self.from));
        sql.append(&self.within);
        sql
    }

    /// What tells this list from others.
    pub fn fingerprint(&self, query: &ListQuery) -> u64 {
        query.fingerprint(self.of, &self.scope)
    }

    /// The row numbers of a page with the keys they are sorted by, one row more than the page has: the last ones make the
    /// token.
    pub fn keys(&self, query: &ListQuery, after: Option<(&[Cursor], i64)>) -> Sql {
        let mut sql = self.with.clone();
        sql.push(&format!("SELECT {}", self.id));
        for sort in query.order() {
            sql.push(", ");
            push_key(&mut sql, self, &sort);
        }
        sql.push(&format!(" FROM {} WHERE true", self.from));
        sql.append(&self.within);
        push_filters(&mut sql, self, &query.filters);
        if let Some((values, row)) = after {
            push_after(&mut sql, self, query, values, row);
        }
        push_order(&mut sql, self, query);
        sql.push(&format!(" LIMIT {}", query.limit + 1));
        sql
    }

    /// The row numbers of the whole list, one more than can be kept.
    pub fn whole(&self, query: &ListQuery) -> Sql {
        let mut sql = self.select(self.id);
        push_filters(&mut sql, self, &query.filters);
        push_order(&mut sql, self, query);
        sql.push(&format!(" LIMIT {}", crate::MAX_KEPT + 1));
        sql
    }

    /// Those of the rows `ids` that meet the filters now.
    pub fn meeting(&self, filters: &[Filter], ids: &[i64]) -> Sql {
        // From the rows to the scope: the other way round would look at every row of the scope.
        let mut sql = self.with.clone();
        sql.push(&format!("SELECT {} FROM ", self.id));
        self.push_ids(&mut sql, ids);
        sql.push(&format!(" kept CROSS JOIN {} WHERE {} = kept.value", self.from, self.id));
        sql.append(&self.within);
        push_filters(&mut sql, self, filters);
        sql
    }

    /// How many rows meet the filters.
    pub fn count(&self, filters: &[Filter]) -> Sql {
        let mut sql = self.select("count(*)");
        push_filters(&mut sql, self, filters);
        sql
    }

    /// Appends a table of row numbers: `value` in the order of `key`. One parameter, whatever their number.
    pub fn push_ids(&self, sql: &mut Sql, ids: &[i64]) {
        self.dialect.push_ids(sql, ids);
    }
}

impl Dialect {
    /// Appends a table of row numbers: `value` in the order of `key`.
    pub fn push_ids(&self, sql: &mut Sql, ids: &[i64]) {
        sql.push(self.ids.0);
        sql.text(&serde_json::to_string(ids).unwrap_or_default());
        sql.push(self.ids.1);
    }

    /// Appends a table of texts: `value`.
    pub fn push_texts(&self, sql: &mut Sql, texts: &[&str]) {
        sql.push(self.texts.0);
        sql.text(&serde_json::to_string(texts).unwrap_or_default());
        sql.push(self.texts.1);
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
        field => sql.push((source.dialect.column)(source, field)),
    }
}

/// Appends ` AND (condition)` for each filter.
pub fn push_filters(sql: &mut Sql, source: &Source, filters: &[Filter]) {
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
    let first = || values.first().cloned().unwrap_or(Cursor::Null);
    let mut compare = |op: &str| {
        push_field(sql, source, field);
        sql.push(op);
        sql.bind(first());
    };
    match op {
        Op::Equal => compare(" = "),
        Op::NotEqual => compare(source.dialect.differs),
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
                sql.push("NOT coalesce(");
            }
            sql.push("ends_with(");
            push_field(sql, source, field);
            sql.push(", ");
            sql.bind(first());
            sql.push(if *op == Op::NotEndsWith { "), false)" } else { ")" });
        }
        Op::In => {
            push_field(sql, source, field);
            sql.push(" IN ");
            push_list(sql, values);
        }
        Op::NotIn => {
            sql.push("coalesce(");
            push_field(sql, source, field);
            sql.push(" NOT IN ");
            push_list(sql, values);
            sql.push(", true)");
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
    // Nothing is equal to `NULL`; not every engine takes a list of nothing.
    sql.push(if values.is_empty() { "(NULL" } else { "(" });
    for (i, value) in values.iter().enumerate() {
        if i > 0 {
            sql.push(", ");
        }
        sql.bind(value.clone());
    }
    sql.push(")");
}

/// A sort key as an expression. One that a list goes on from is never `NULL`, which has no place in a comparison.
fn push_key(sql: &mut Sql, source: &Source, sort: &SortBy) {
    let field = &sort.field;
    let may_be_null = matches!(field, Field::Label(_) | Field::Parent | Field::TaskProject | Field::TaskDomain);
    if field.is_fixed(source.of) && (may_be_null || (source.dialect.column)(source, field) == "NULL") {
        sql.push("coalesce(");
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
    let fixed = query.is_fixed(source.of);
    sql.push(" ORDER BY ");
    for sort in query.order() {
        push_key(sql, source, &sort);
        sql.push(direction(sort.direction));
        if !fixed {
            let (ascending, descending) = source.dialect.nulls;
            sql.push(if sort.direction == Direction::Ascending { ascending } else { descending });
        }
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
        sql.bind(values.first().cloned().unwrap_or(Cursor::Null));
        sql.push(", ");
        sql.bind(Cursor::Int(row));
        return sql.push(")");
    }
    // Equal in the first n keys and beyond in the next, for every n.
    sql.push(" AND (");
    for n in 0..=order.len() {
        sql.push(if n == 0 { "(" } else { " OR (" });
        for (sort, value) in order.iter().zip(values).take(n) {
            push_key(sql, source, sort);
            sql.push(" = ");
            sql.bind(value.clone());
            sql.push(" AND ");
        }
        match order.get(n) {
            Some(sort) => {
                push_key(sql, source, sort);
                sql.push(beyond(sort.direction));
                sql.bind(values.get(n).cloned().unwrap_or(Cursor::Null));
            }
            None => {
                sql.push(source.id);
                sql.push(beyond(query.tie()));
                sql.bind(Cursor::Int(row));
            }
        }
        sql.push(")");
    }
    sql.push(")");
}

/// The rows of a page, and how to go on.
#[derive(Debug, PartialEq)]
pub struct Selected {
    /// Row numbers, in order.
    pub ids: Vec<i64>,
    /// What comes after them.
    pub next: Next,
}

/// How a list goes on after a page.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Not at all.
    End,
    /// From here.
    At {
        /// The list's fingerprint.
        list: u64,
        /// Where.
        position: Position,
    },
    /// From `at` on, once this order is kept.
    Keep {
        /// The list's fingerprint.
        list: u64,
        /// Row numbers of the whole list.
        order: Vec<i64>,
        /// Place of the next row.
        at: usize,
    },
}

impl Selected {
    /// The page that [`Source::keys`] found, of a list with this fingerprint.
    pub fn from_keys(mut found: Vec<(i64, Vec<Cursor>)>, limit: usize, list: u64) -> Self {
        let more = found.len() > limit;
        found.truncate(limit);
        let next = match found.last() {
            Some((id, values)) if more => Next::At { list, position: Position::After(values.clone(), *id) },
            _ => Next::End,
        };
        Self { ids: found.into_iter().map(|(id, _)| id).collect(), next }
    }

    /// The first page of what [`Source::whole`] found.
    ///
    /// # Errors
    /// [`StoreError::TooManyRows`].
    pub fn from_whole(order: Vec<i64>, limit: usize, list: u64) -> Result<Self, StoreError> {
        if order.len() > crate::MAX_KEPT {
            return Err(StoreError::TooManyRows);
        }
        let ids: Vec<_> = order.iter().copied().take(limit).collect();
        let at = ids.len();
        let next = if at < order.len() { Next::Keep { list, order, at } } else { Next::End };
        Ok(Self { ids, next })
    }
}

/// How a page is to be selected.
#[derive(Debug, PartialEq)]
pub enum Way {
    /// By [`Source::keys`], after these.
    Keys(Option<(Vec<Cursor>, i64)>),
    /// By [`Source::whole`], whose order is kept.
    Whole,
    /// On from a place of a kept order.
    Kept {
        /// Which.
        order: i64,
        /// The place.
        at: usize,
    },
}

impl Way {
    /// The way of the page that `query` asks `source` for.
    ///
    /// # Errors
    /// [`StoreError::BadToken`].
    pub fn of(source: &Source, query: &ListQuery) -> Result<Self, StoreError> {
        let fixed = query.is_fixed(source.of);
        match query.position(source.fingerprint(query))? {
            Position::Kept { order, at } => Ok(Self::Kept { order, at }),
            Position::Start if !fixed => Ok(Self::Whole),
            Position::Start => Ok(Self::Keys(None)),
            Position::After(values, row) if fixed => Ok(Self::Keys(Some((values, row)))),
            Position::After(..) => Err(StoreError::BadToken),
        }
    }
}
