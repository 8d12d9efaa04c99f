//! What one batch writes, sent with the commit behind it without waiting for an answer in between: the whole of it costs one
//! round trip.
//!
//! All of it but the end is put together into one statement, for each of a dozen costs about as much as what it does: its own
//! plan to look up, snapshot and locks, and an answer that wakes who waits for it.

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

/// One statement that carries out all of `parts`, in the same order whichever there are.
fn together(parts: &[(&str, usize, Form)]) -> String {
    let (mut sql, mut taken) = (String::with_capacity(4096), 0);
    for (number, (part, params, form)) in parts.iter().enumerate() {
        let begins = if number == 0 { "WITH" } else { "," };
        let _ = write!(sql, "{begins} w{number} AS (");
        form.write(part, taken, &mut sql);
        sql.push(')');
        taken += params;
    }
    sql.push_str(" SELECT 1");
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
    pub(super) async fn commit(
        self,
        tx: Open,
        guarded: Option<Guard>,
        end: (String, Params<'s>),
    ) -> Result<Row, Trouble> {
        // All in one form, as far as the batch decides: otherwise there would be as many statements to plan as ways to mix them.
        let one = self.0.iter().filter(|part| part.each).all(|part| Form::of(&part.params) == Form::One);
        let form = |part: &Part<'_>| if one && part.each { Form::One } else { Form::Many };
        let parts: Vec<_> = self.0.iter().map(|part| (part.sql, part.params.len(), form(part))).collect();
        let values: Vec<&(dyn ToSql + Sync)> = self.0.iter().flat_map(|part| form(part).values(&part.params)).collect();
        // All before the first is sent: preparing waits for an answer, and what comes behind would overtake.
        let all = tx.prepare_cached(&together(&parts)).await?;
        let (sql, params) = &end;
        let form = Form::of(params);
        let ends: Vec<&(dyn ToSql + Sync)> = form.values(params).collect();
        let mut last = String::with_capacity(2048);
        form.write(sql, 0, &mut last);
        let end = tx.prepare_cached(&last).await?;
        let check = match guarded.as_ref().filter(|guard| guard.has_conditions()) {
            Some(guard) => Some((guard, guard.prepare(&tx).await?)),
            None => None,
        };
        let begin = async {
            match &guarded {
                Some(_) => tx.batch_execute("BEGIN").await,
                None => Ok(()),
            }
        };
        let check = async {
            match &check {
                Some((guard, prepared)) => guard.check(&tx, prepared).await,
                None => Ok(()),
            }
        };
        // The first look at each of these sends it, in this order.
        let (begun, checked, written, ended, committed) = tokio::join!(
            biased;
            begin,
            check,
            tx.query(&all, &values),
            tx.query_one(&end, &ends),
            tx.batch_execute("COMMIT")
        );
        // If one of them failed, those behind it were not carried out, and the commit has rolled back.
        if committed.is_ok() {
            tx.ended();
        }
        begun?;
        let failed = if guarded.is_some() { guard::trouble } else { Trouble::from };
        checked.map_err(failed)?;
        written.map_err(failed)?;
        let ended = ended.map_err(failed)?;
        committed?;
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_own_parameters() {
        let update = "UPDATE a SET x = k.x FROM unnest($1::bigint[], $2::text[]) k (id, x) WHERE a.id = k.id";
        let delete = "DELETE FROM b USING unnest($1::bigint[]) k (id) WHERE b.id = k.id";
        assert_eq!(
            together(&[(update, 2, Form::Many), (delete, 1, Form::Many)]),
            "WITH w0 AS (UPDATE a SET x = k.x FROM unnest($1::bigint[], $2::text[]) k (id, x) WHERE a.id = k.id), \
             w1 AS (DELETE FROM b USING unnest($3::bigint[]) k (id) WHERE b.id = k.id) SELECT 1"
        );
        assert_eq!(
            together(&[(delete, 1, Form::Many), (update, 2, Form::One)]),
            "WITH w0 AS (DELETE FROM b USING unnest($1::bigint[]) k (id) WHERE b.id = k.id), \
             w1 AS (UPDATE a SET x = k.x FROM (VALUES ($2::bigint, $3::text)) k (id, x) WHERE a.id = k.id) SELECT 1"
        );
    }
}
