//! The writers. Each takes what waits, carries it out in one transaction, and answers after the commit.
//!
//! Requests that arrive while a commit is under way share the next one. A run belongs to one writer of a process, so that
//! runs do not wait for each other but for the writer of both; between processes the lock on the run's row decides. A batch
//! locks in one order (`migrations/0001_engine.sql`), so that two never wait for each other; if Postgres still says so, it is
//! carried out again.

mod columns;
mod decide;
mod kept;
mod live;
mod load;
mod send;
mod tail;
mod write;

pub(crate) use self::{tail::PLACES, write::ACTIONS};

use std::{
    collections::{BTreeSet, HashMap},
    ops::Deref,
    sync::Arc,
    time::{Duration, Instant},
};

use aloft_core::{ActionState, Reply, RunKey};
use aloft_store::{Committed, Logged, StoreError, Submission, SubmitError};
use deadpool_postgres::Pool;
use tokio::sync::{mpsc, oneshot};

use crate::{Shared, Tx, error};

/// Most jobs of one transaction.
const MAX_BATCH: usize = 1024;

/// How often a batch is carried out again after an error that says so, before it is given up.
const TRIES: u32 = 5;

/// What a writer is handed.
pub(crate) enum Job {
    /// A command with who waits for its answer.
    Submit { submission: Box<Submission>, done: oneshot::Sender<Result<Reply, SubmitError>> },
    /// Somebody waits for what was handed over before.
    Flush(oneshot::Sender<()>),
}

/// Runs until every sender is gone.
pub(crate) async fn run(shared: Arc<Shared>, mut jobs: mpsc::Receiver<Job>) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    let mut kept = kept::Kept::default();
    while jobs.recv_many(&mut batch, MAX_BATCH).await > 0 {
        let (mut submissions, mut waiting, mut flushed) = (Vec::new(), Vec::new(), Vec::new());
        for job in batch.drain(..) {
            match job {
                Job::Submit { submission, done } => {
                    submissions.push(*submission);
                    waiting.push(done);
                }
                Job::Flush(done) => flushed.push(done),
            }
        }
        match carry_out(&shared, &mut kept, &submissions).await {
            Ok(answers) => {
                for (done, answer) in waiting.into_iter().zip(answers) {
                    // A receiver that is gone has given up waiting; the write stands either way.
                    drop(done.send(answer));
                }
            }
            Err(error) => {
                tracing::error!(%error, jobs = submissions.len(), "a batch of writes failed and was rolled back");
                for done in waiting {
                    drop(done.send(Err(SubmitError::Store(error.clone()))));
                }
            }
        }
        for done in flushed {
            let _ = done.send(());
        }
    }
}

/// Why an attempt at a batch did not come to an end.
enum Trouble {
    /// It failed.
    Store(StoreError),
    /// It may succeed when done again.
    Again(StoreError),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        let again = error::is_transient(&error);
        let error = error::from_postgres(error);
        if again { Self::Again(error) } else { Self::Store(error) }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

async fn carry_out(
    shared: &Shared,
    kept: &mut kept::Kept,
    submissions: &[Submission],
) -> Result<Vec<Result<Reply, SubmitError>>, StoreError> {
    let mut tries = 0;
    loop {
        tries += 1;
        match once(shared, kept, submissions).await {
            Ok(answers) => return Ok(answers),
            Err(Trouble::Store(error)) => return Err(error),
            Err(Trouble::Again(error)) if tries >= TRIES => return Err(error),
            Err(Trouble::Again(error)) => {
                tracing::debug!(%error, tries, "a batch of writes is carried out again");
                tokio::time::sleep(Duration::from_millis(u64::from(5 * tries))).await;
            }
        }
    }
}

async fn once(
    shared: &Shared,
    kept: &mut kept::Kept,
    submissions: &[Submission],
) -> Result<Vec<Result<Reply, SubmitError>>, Trouble> {
    if submissions.is_empty() {
        return Ok(Vec::new());
    }
    let began = Instant::now();
    let tx = Open::take(&shared.pool).await?;
    let keys: BTreeSet<&RunKey> = submissions.iter().map(|s| &s.run).collect();
    let mut known = load::Known::load(&tx, kept, &keys, submissions).await?;
    let now = (shared.clock)();
    known.packs = now >= shared.packs_from;
    // A decision that asks for what is not loaded is thrown away with all others, and taken again with it.
    let mut decided = loop {
        let decided = decide::all(&known, submissions, shared.hub.observer(), now);
        if decided.missing.is_empty() {
            break decided;
        }
        known.add(&tx, &decided.missing).await?;
    };
    if !decided.changes_anything() {
        tx.end("ROLLBACK").await?;
        let answers = std::mem::take(&mut decided.answers);
        kept.keep(known, decided, &HashMap::new());
        return Ok(answers);
    }
    let rows = write::Rows::of(&known, &decided);
    write::cache_changes(&tx, &rows).await?;
    let mut statements = send::Statements::default();
    rows.write(&mut statements)?;
    tail::place(&mut statements, (&shared.channel, &shared.own), &known, &decided, &rows);
    #[cfg(feature = "failpoints")]
    fail::fail_point!("postgres-before-commit", |_| std::process::abort());
    let pos = tail::place_of(&statements.commit(tx).await?);
    let runs = rows.runs;
    #[cfg(feature = "failpoints")]
    fail::fail_point!("postgres-after-commit", |_| std::process::abort());
    shared.recent.note(&Commit { decided: &decided }, |run| shared.hub.is_watched(run));
    shared.told.lock().insert(pos / PLACES);
    shared.hub.publish(decided.seqs(), Some(pos));
    if let Some(observer) = shared.hub.observer() {
        let (commands, events, took) = (submissions.len(), decided.events.len(), began.elapsed());
        observer.committed(Committed { commands, events, took, seen: std::mem::take(&mut decided.seen) });
    }
    let answers = std::mem::take(&mut decided.answers);
    kept.keep(known, decided, &runs);
    Ok(answers)
}

/// What a batch committed.
pub(crate) struct Commit<'c> {
    decided: &'c decide::Decided,
}

impl Commit<'_> {
    /// Its events, those of a run in the order of its log.
    pub(crate) fn events(&self) -> impl Iterator<Item = (&RunKey, &Arc<Logged>)> {
        self.decided.events.iter().map(|appended| (&appended.run, &appended.logged))
    }

    /// Actions that it changed, each with its run and how many children of it have not ended.
    pub(crate) fn states(&self) -> impl Iterator<Item = (&RunKey, &ActionState, i64)> {
        self.decided.actions.iter().flat_map(|(run, actions)| {
            let changed = actions.values().filter(|c| c.at.is_some());
            changed.map(move |c| (run, &c.state, c.open_children))
        })
    }
}

/// A connection with a transaction under way. If it is dropped before the end, so is the connection, and the server rolls
/// back: nobody else may go on with it.
pub(crate) struct Open(Option<Tx>);

impl Deref for Open {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        self.0.as_ref().expect("taken only by what consumes it")
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // Out of the pool and closed.
        drop(self.0.take().map(deadpool_postgres::Object::take));
    }
}

impl Open {
    /// Takes a connection, to begin on it with the first statement.
    async fn take(pool: &Pool) -> Result<Self, StoreError> {
        Ok(Self(Some(pool.get().await.map_err(error::from_pool)?)))
    }

    /// Takes a connection and begins.
    pub(crate) async fn begin(pool: &Pool) -> Result<Self, StoreError> {
        let open = Self::take(pool).await?;
        open.batch_execute("BEGIN").await.map_err(error::from_postgres)?;
        Ok(open)
    }

    /// The connection, once its transaction has ended.
    fn ended(mut self) {
        drop(self.0.take());
    }

    /// Ends the transaction with this statement.
    pub(crate) async fn end(self, how: &str) -> Result<(), tokio_postgres::Error> {
        self.batch_execute(how).await?;
        self.ended();
        Ok(())
    }
}
