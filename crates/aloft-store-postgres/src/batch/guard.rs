//! Batches that are decided on what their writer has kept, without reading it again: one round trip instead of two.
//!
//! The transaction begins by locking the runs, as every batch does, and by looking whether their logs and what limits them are
//! still what was decided on. If not, it ends there, and the batch is decided again on what is read behind the locks.

use tokio_postgres::{Statement, error::SqlState, types::ToSql};

use super::Trouble;
use crate::Tx;

/// What has to hold for a batch that was decided on what is kept.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Numbers of runs, in order.
    pub(super) runs: Vec<i64>,
    /// The number of the last event of each.
    pub(super) seqs: Vec<i64>,
    /// The revision of what limits new work, where some was decided on.
    pub(super) revision: Option<i64>,
}

/// What [`Guard::check`] fails with.
const OUTDATED: &str = "ALF01";

impl Guard {
    /// Whether there are runs to lock before anything is written.
    pub(super) fn locks(&self) -> bool {
        !self.runs.is_empty()
    }

    /// The revision that what is written has to look at itself, for nothing else is to be done before it.
    pub(super) fn revision_alone(&self) -> Option<i64> {
        self.revision.filter(|_| !self.locks())
    }

    /// Prepares [`Guard::check`], for this may wait for an answer.
    pub(super) async fn prepare(&self, tx: &Tx) -> Result<Statement, tokio_postgres::Error> {
        tx.prepare_cached(
            "SELECT CASE WHEN (SELECT count(*) FROM (
                                   SELECT 1 FROM runs r JOIN unnest($1::bigint[], $2::bigint[]) k (id, seq)
                                     ON r.id = k.id AND r.seq = k.seq
                                   ORDER BY r.id FOR UPDATE OF r) locked) = cardinality($1)
                          AND ($3::bigint IS NULL OR $3 = (SELECT revision FROM site_revision))
                    THEN 0 ELSE refuse_outdated() END",
        )
        .await
    }

    /// Locks the runs, and fails unless all is as it was.
    pub(super) async fn check(&self, tx: &Tx, prepared: &Statement) -> Result<(), tokio_postgres::Error> {
        let params: [&(dyn ToSql + Sync); 3] = [&self.runs, &self.seqs, &self.revision];
        tx.query_one(prepared, &params).await.map(drop)
    }

    /// Begins a transaction with it, where more is to be read before the end.
    pub(super) async fn begin(&self, tx: &Tx) -> Result<(), Trouble> {
        let prepared = self.prepare(tx).await?;
        let (begun, checked) = tokio::join!(biased; tx.batch_execute("BEGIN"), self.check(tx, &prepared));
        begun?;
        checked.map_err(trouble)
    }
}

/// What is wrong with a guarded batch. What it makes may be there: what is kept does not tell of all that is.
pub(super) fn trouble(error: tokio_postgres::Error) -> Trouble {
    match error.code() {
        Some(code) if code.code() == OUTDATED || *code == SqlState::UNIQUE_VIOLATION => Trouble::Outdated,
        _ => error.into(),
    }
}
