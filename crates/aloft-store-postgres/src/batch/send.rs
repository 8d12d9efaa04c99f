//! What one batch writes, sent with the commit behind it without waiting for an answer in between: the whole of it costs one
//! round trip.
//!
//! All of it is put together into one statement, for each of a dozen costs about as much as what it does: its own plan to look
//! up, snapshot and locks, and an answer that wakes who waits for it. Where nothing has to be locked before it, it is a
//! transaction of its own.

use std::fmt::Write as _;

use tokio_postgres::{Row, types::ToSql};

use super::{
    Open, Trouble,
    guard::{self, Guard},
};

/// What a statement is given: a column of the rows that it writes, or a value.
pub(super) trait Param: Send + Sync {
    /// How many rows it is for.
    fn rows(&self) -> usize;

    /// As it is written in the statement: a column is an array.
    fn all(&self) -> &(dyn ToSql + Sync);

    /// The value of the only row.
    fn only(&self) -> &(dyn ToSql + Sync);
}

impl<T: ToSql + Send + Sync> Param for Vec<T> {
    fn rows(&self) -> usize {
        self.len()
    }

    fn all(&self) -> &(dyn ToSql + Sync) {
        self
    }

    fn only(&self) -> &(dyn ToSql + Sync) {
        self.first().map_or(self, |value| value as &(dyn ToSql + Sync))
    }
}

/// A value that is no column.
pub(super) struct Plain<T>(pub(super) T);

impl<T: ToSql + Send + Sync> Param for Plain<T> {
    fn rows(&self) -> usize {
        1
    }

    fn all(&self) -> &(dyn ToSql + Sync) {
        &self.0
    }

    fn only(&self) -> &(dyn ToSql + Sync) {
        &self.0
    }
}

/// The parameters of a statement.
pub(super) type Params<'s> = Vec<Box<dyn Param + 's>>;

/// Parameters of a statement, each boxed.
macro_rules! params {
    ($($value:expr),* $(,)?) => { vec![$(Box::new($value) as Box<dyn $crate::batch::send::Param + '_>),*] };
}
pub(super) use params;

/// A statement of a batch. `unnest($1::text[], ...) k` gives its rows.
struct Part<'s> {
    sql: &'static str,
    params: Params<'s>,
    /// Whether there is a row for each thing that the batch changes, so that there is one where it changes one.
    each: bool,
}

/// What a batch writes: statements of which none sees what the others do.
#[derive(Default)]
pub(super) struct Statements<'s>(Vec<Part<'s>>);

/// How the rows of a statement are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As arrays, however many there are.
    Many,
    /// The only one as it is: it costs Postgres a third of what `unnest` does.
    One,
}

impl Form {
    fn of(params: &[Box<dyn Param + '_>]) -> Self {
        if params.iter().all(|p| p.rows() == 1) { Self::One } else { Self::Many }
    }

    /// The values of `params`.
    fn values<'p>(self, params: &'p [Box<dyn Param + '_>]) -> impl Iterator<Item = &'p (dyn ToSql + Sync)> {
        params.iter().map(move |p| if self == Self::One { p.only() } else { p.all() })
    }

    /// Appends a statement in this form, whose parameters come behind `taken` others.
    fn write(self, sql: &str, taken: usize, to: &mut String) {
        let mut rest = sql;
        while let Some((before, from)) = rest.split_once("unnest(") {
            let (columns, after) = from.split_once(')').unwrap_or((from, ""));
            numbered(before, taken, to);
            match self {
                Self::Many => {
                    to.push_str("unnest(");
                    numbered(columns, taken, to);
                    to.push(')');
                }
                Self::One => {
                    to.push_str("(VALUES (");
                    numbered(&columns.replace("[]", ""), taken, to);
                    to.push_str("))");
                }
            }
            rest = after;
        }
        numbered(rest, taken, to);
    }
}

/// Appends a piece of a statement whose parameters come behind `taken` others.
fn numbered(sql: &str, taken: usize, to: &mut String) {
    let mut pieces = sql.split('$');
    to.push_str(pieces.next().unwrap_or_default());
    for piece in pieces {
        let digits = piece.len() - piece.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (parameter, rest) = piece.split_at(digits);
        let _ = write!(to, "${}{rest}", taken + parameter.parse::<usize>().unwrap_or(0));
    }
}

/// The last part of a batch, which is done when all others are: further `WITH` queries and what they are for.
pub(super) struct End<'s> {
    /// Up to the condition under which it is done, without one.
    pub(super) before: String,
    /// What follows that.
    pub(super) after: String,
    pub(super) params: Params<'s>,
}

/// One statement that carries out all of `parts`, in the same order whichever there are, and then `end`.
fn together(parts: &[(&str, usize, Form)], end: &End<'_>) -> String {
    let (mut sql, mut taken) = (String::with_capacity(6144), 0);
    sql.push_str("WITH ");
    for (number, (part, params, form)) in parts.iter().enumerate() {
        let _ = write!(sql, "w{number} AS (");
        form.write(part, taken, &mut sql);
        sql.push_str(" RETURNING 1), ");
        taken += params;
    }
    // Postgres orders what a statement writes only by what needs the rows of what.
    let each = (0..parts.len()).rev().map(|number| format!("(SELECT count(*) FROM w{number}) >= 0"));
    let each: Vec<String> = each.collect();
    let written = if each.is_empty() { "true".to_owned() } else { each.join(" AND ") };
    let form = Form::of(&end.params);
    form.write(&end.before, taken, &mut sql);
    sql.push_str(&written);
    form.write(&end.after, taken, &mut sql);
    sql
}

impl<'s> Statements<'s> {
    /// Adds one with a row for each thing that the batch changes.
    pub(super) fn add(&mut self, sql: &'static str, params: Params<'s>) {
        self.0.push(Part { sql, params, each: true });
    }

    /// Adds one with any number of rows, whatever the batch changes.
    pub(super) fn add_any(&mut self, sql: &'static str, params: Params<'s>) {
        self.0.push(Part { sql, params, each: false });
    }

    /// Carries all of them out, then `end`, and commits; returns the row of the end. What is guarded has not begun yet.
    pub(super) async fn commit(self, tx: Open, guarded: Option<Guard>, end: End<'s>) -> Result<Row, Trouble> {
        // All in one form, as far as the batch decides: otherwise there would be as many statements to plan as ways to mix them.
        let one = self.0.iter().filter(|part| part.each).all(|part| Form::of(&part.params) == Form::One);
        let form = |part: &Part<'_>| if one && part.each { Form::One } else { Form::Many };
        let parts: Vec<_> = self.0.iter().map(|part| (part.sql, part.params.len(), form(part))).collect();
        let last = Form::of(&end.params).values(&end.params);
        let values = self.0.iter().flat_map(|part| form(part).values(&part.params)).chain(last);
        let values: Vec<&(dyn ToSql + Sync)> = values.collect();
        // All before the first is sent: preparing waits for an answer, and what comes behind would overtake.
        let all = tx.prepare_cached(&together(&parts, &end)).await?;
        match guarded {
            Some(guard) if guard.locks() => {
                let check = guard.prepare(&tx).await?;
                // The first look at each of these sends it, in this order.
                let (begun, checked, written, committed) = tokio::join!(
                    biased;
                    tx.batch_execute("BEGIN"),
                    guard.check(&tx, &check),
                    tx.query_one(&all, &values),
                    tx.batch_execute("COMMIT")
                );
                // If one of them failed, those behind it were not carried out, and the commit has rolled back.
                if committed.is_ok() {
                    tx.ended();
                }
                begun?;
                checked.map_err(guard::trouble)?;
                let written = written.map_err(guard::trouble)?;
                committed?;
                Ok(written)
            }
            Some(_) => {
                let written = tx.query_one(&all, &values).await.map_err(guard::trouble)?;
                tx.ended();
                Ok(written)
            }
            None => {
                let (written, committed) =
                    tokio::join!(biased; tx.query_one(&all, &values), tx.batch_execute("COMMIT"));
                if committed.is_ok() {
                    tx.ended();
                }
                let written = written?;
                committed?;
                Ok(written)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_own_parameters() {
        let update = "UPDATE a SET x = k.x FROM unnest($1::bigint[], $2::text[]) k (id, x) WHERE a.id = k.id";
        let delete = "DELETE FROM b USING unnest($1::bigint[]) k (id) WHERE b.id = k.id";
        let end = |ids: &[&'static str]| End {
            before: "p AS (UPDATE feed SET pos = $1 WHERE ".to_owned(),
            after: " RETURNING pos) SELECT $2, k.id FROM unnest($3::text[]) k".to_owned(),
            params: params![Plain(1_i64), Plain(2_i64), ids.to_vec()],
        };
        assert_eq!(
            together(&[(update, 2, Form::Many), (delete, 1, Form::Many)], &end(&["a", "b"])),
            "WITH w0 AS (UPDATE a SET x = k.x FROM unnest($1::bigint[], $2::text[]) k (id, x) WHERE a.id = k.id RETURNING 1), \
             w1 AS (DELETE FROM b USING unnest($3::bigint[]) k (id) WHERE b.id = k.id RETURNING 1), \
             p AS (UPDATE feed SET pos = $4 WHERE (SELECT count(*) FROM w1) >= 0 AND (SELECT count(*) FROM w0) >= 0 \
             RETURNING pos) SELECT $5, k.id FROM unnest($6::text[]) k"
        );
        assert_eq!(
            together(&[(delete, 1, Form::Many), (update, 2, Form::One)], &end(&["a"])),
            "WITH w0 AS (DELETE FROM b USING unnest($1::bigint[]) k (id) WHERE b.id = k.id RETURNING 1), \
             w1 AS (UPDATE a SET x = k.x FROM (VALUES ($2::bigint, $3::text)) k (id, x) WHERE a.id = k.id RETURNING 1), \
             p AS (UPDATE feed SET pos = $4 WHERE (SELECT count(*) FROM w1) >= 0 AND (SELECT count(*) FROM w0) >= 0 \
             RETURNING pos) SELECT $5, k.id FROM (VALUES ($6::text)) k"
        );
        assert!(together(&[], &end(&["a"])).contains("WHERE true RETURNING"));
    }
}
