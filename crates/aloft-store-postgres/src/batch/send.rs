//! Statements of one batch, sent one behind the other, and the commit behind them, without waiting for an answer in between:
//! the whole of it costs one round trip.

use futures::future::join_all;
use tokio_postgres::{Row, types::ToSql};

use super::{Open, Trouble};

/// A value of a statement.
pub(super) type Param<'s> = Box<dyn ToSql + Sync + Send + 's>;

/// Values of a statement, each boxed.
macro_rules! params {
    ($($value:expr),* $(,)?) => { vec![$(Box::new($value) as $crate::batch::send::Param<'_>),*] };
}
pub(super) use params;

/// What a batch writes, in order.
#[derive(Default)]
pub(super) struct Statements<'s>(Vec<(&'static str, Vec<Param<'s>>)>);

impl<'s> Statements<'s> {
    /// Adds one behind the others.
    pub(super) fn add(&mut self, sql: &'static str, params: Vec<Param<'s>>) {
        self.0.push((sql, params));
    }

    /// Carries all of them out and commits; returns the row of the last.
    pub(super) async fn commit(self, tx: Open) -> Result<Row, Trouble> {
        let mut ready = Vec::with_capacity(self.0.len());
        for (sql, params) in &self.0 {
            // All before the first is sent: preparing waits for an answer, and what comes behind would overtake.
            let params: Vec<&(dyn ToSql + Sync)> = params.iter().map(|p| &**p as &(dyn ToSql + Sync)).collect();
            ready.push((tx.prepare_cached(sql).await?, params));
        }
        let sent = join_all(ready.iter().map(|(statement, params)| tx.query(statement, params)));
        // The first look at each of these sends it, in this order.
        let (answers, committed) = tokio::join!(biased; sent, tx.batch_execute("COMMIT"));
        // If one of them failed, those behind it were not carried out, and the commit has rolled back.
        let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        committed?;
        tx.ended();
        let last = answers.into_iter().next_back().and_then(|rows| rows.into_iter().next());
        last.ok_or_else(|| crate::error::corrupt("the end of a batch", "no row").into())
    }
}
