//! The writers. Each takes what waits, carries it out in one transaction, and answers after the commit.
//!
//! Requests that arrive while a commit is under way share the next one. A run belongs to one writer of a process, so that
//! runs do not wait for each other but for the writer of both; between processes the lock on the run's row decides. A batch
//! locks in one order (`migrations/0001_engine.sql`), so that two never wait for each other; if Postgres still says so, it is
//! carried out again.

mod columns;
mod decide;
mod guard;
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
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use aloft_core::{ActionState, Reply, RunKey};
use aloft_store::{Committed, Logged, StoreError, Submission, SubmitError};
use deadpool_postgres::Pool;
use tokio::sync::{mpsc, oneshot};

use crate::{Shared, Tx, error};

/// Most jobs of one transaction.
const MAX_BATCH: usize = 1024;

/// What the end of a batch fails with that hands out work in a turn which is over: see `migrations/0009_turns.sql`.
const TURN_OVER: &str = "ALF02";

/// How often a batch is carried out again after an error that says so, before it is given up.
const TRIES: u32 = 5;

/// What a writer is handed.
pub(crate) enum Job {
    /// A command with who waits for its answer.
    Submit { submission: Box<Submission>, done: oneshot::Sender<Result<Reply, SubmitError>> },
    /// Somebody waits for what was handed over before.
    Flush(oneshot::Sender<()>),
}

/// Batches that were decided on what their writer had kept, and how many of them in vain.
#[derive(Debug, Default)]
pub(crate) struct Guarded {
    pub(crate) all: AtomicU64,
    pub(crate) outdated: AtomicU64,
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
            Ok((answers, mut learnt)) => {
                learnt.note(&shared);
                for (done, answer) in waiting.into_iter().zip(answers) {
                    // A receiver that is gone has given up waiting; the write stands either way.
                    drop(done.send(answer));
                }
                // Whoever was answered goes on first, before those who are woken by what was committed.
                tokio::task::yield_now().await;
                learnt.tell(&shared);
                kept.keep(learnt);
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

/// The answers of a batch, and what can be kept of it.
type Outcome = (Vec<Result<Reply, SubmitError>>, Learnt);

/// What a writer knows after a batch.
#[derive(Default)]
struct Learnt {
    known: load::Known,
    decided: decide::Decided,
    /// The row numbers of the runs that it changed.
    runs: HashMap<RunKey, i64>,
    /// Numbers for runs that may be made next.
    numbers: Vec<i64>,
    /// What it committed, if anything.
    committed: Option<Done>,
}

/// A commit.
struct Done {
    /// Its place in the feed.
    pos: u64,
    /// How many commands it carried out.
    commands: usize,
    took: Duration,
}

impl Learnt {
    /// Keeps it for those who watch. Before the answers: whoever has one reads what it says.
    fn note(&self, shared: &Shared) {
        if self.committed.is_some() {
            shared.recent.note(&Commit { decided: &self.decided }, |run| shared.hub.is_watched(run));
        }
    }

    /// Tells those who watch what was committed.
    fn tell(&mut self, shared: &Shared) {
        let Some(Done { pos, commands, took }) = self.committed.take() else { return };
        let decided = &mut self.decided;
        shared.hub.publish(decided.seqs(), Some(pos));
        if let Some(observer) = shared.hub.observer() {
            let (events, seen) = (decided.events.len(), std::mem::take(&mut decided.seen));
            observer.committed(Committed { commands, events, took, seen });
        }
    }
}

/// Why an attempt at a batch did not come to an end.
enum Trouble {
    /// It failed.
    Store(StoreError),
    /// It may succeed when done again.
    Again(StoreError),
    /// It was decided on what is no longer so, and has to be decided on what is there.
    Outdated,
    /// It hands out work in this turn, which is over.
    TurnOver,
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        if error.code().is_some_and(|code| code.code() == TURN_OVER) {
            return Self::TurnOver;
        }
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

async fn carry_out(shared: &Shared, kept: &mut kept::Kept, submissions: &[Submission]) -> Result<Outcome, StoreError> {
    let outcome = decide_and_commit(shared, kept, submissions).await;
    if outcome.is_err() && submissions.iter().any(|s| s.turn.is_some()) {
        // It may still be on its way. A turn with another number keeps it from being done from then on.
        shared.turn.end();
    }
    outcome
}

async fn decide_and_commit(
    shared: &Shared,
    kept: &mut kept::Kept,
    submissions: &[Submission],
) -> Result<Outcome, StoreError> {
    let (mut tries, mut looks) = (0, false);
    loop {
        tries += 1;
        match once(shared, kept, submissions, looks).await {
            Ok(outcome) => return Ok(outcome),
            Err(Trouble::Outdated) => {
                shared.guarded.outdated.fetch_add(1, Ordering::Relaxed);
                tracing::debug!("a batch of writes was decided on what others have changed, and is decided again");
                looks = true;
            }
            Err(Trouble::TurnOver) => {
                tracing::debug!("a batch of writes hands out work out of its turn, and is decided again without that");
                shared.turn.end();
                looks = true;
            }
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
    looks: bool,
) -> Result<Outcome, Trouble> {
    if submissions.is_empty() {
        return Ok(Outcome::default());
    }
    let began = Instant::now();
    let tx = Open::take(&shared.pool).await?;
    let all_kept = if looks { None } else { from_kept(&tx, kept, submissions).await? };
    let (mut known, mut guard) = match all_kept {
        Some((known, guard)) => {
            shared.guarded.all.fetch_add(1, Ordering::Relaxed);
            (known, Some(guard))
        }
        None => {
            let keys: BTreeSet<&RunKey> = submissions.iter().map(|s| &s.run).collect();
            (load::Known::load(&tx, kept, &keys, submissions).await?, None)
        }
    };
    let now = (shared.clock)();
    known.packs = now >= shared.packs_from;
    known.turn = shared.turn.number();
    // A decision that asks for what is not loaded is thrown away with all others, and taken again with it.
    let mut decided = loop {
        let decided = decide::all(&known, submissions, shared.hub.observer(), now);
        if decided.missing.is_empty() {
            break decided;
        }
        begin(&tx, &mut guard).await?;
        known.add(&tx, &decided.missing).await?;
    };
    if !decided.changes_anything() {
        begin(&tx, &mut guard).await?;
        tx.end("ROLLBACK").await?;
        let answers = std::mem::take(&mut decided.answers);
        return Ok((answers, Learnt { known, decided, ..Learnt::default() }));
    }
    let rows = write::Rows::of(&known, &decided);
    if rows.change_cache() {
        begin(&tx, &mut guard).await?;
        write::cache_changes(&tx, &rows).await?;
    }
    let mut statements = send::Statements::default();
    rows.write(&mut statements)?;
    let wanted = tail::Wanted {
        ahead: creates(submissions),
        revision: guard.as_ref().and_then(guard::Guard::revision_alone),
        turn: known.turn.filter(|turn| submissions.iter().any(|s| s.turn == Some(*turn))).map(u64::cast_signed),
    };
    let end = tail::place((&shared.channel, &shared.own), &known, &decided, &rows, wanted);
    #[cfg(feature = "failpoints")]
    fail::fail_point!("postgres-before-commit", |_| std::process::abort());
    let (pos, numbers) = tail::taken(&statements.commit(tx, guard, end).await?);
    let runs = rows.runs;
    #[cfg(feature = "failpoints")]
    fail::fail_point!("postgres-after-commit", |_| std::process::abort());
    // Before Postgres does: the follower leaves it to this writer.
    shared.told.lock().insert(pos / PLACES);
    let committed = Some(Done { pos, commands: submissions.len(), took: began.elapsed() });
    let answers = std::mem::take(&mut decided.answers);
    Ok((answers, Learnt { known, decided, runs, numbers, committed }))
}

/// What the commands look at, if all of it is kept.
async fn from_kept(
    tx: &Tx,
    kept: &mut kept::Kept,
    submissions: &[Submission],
) -> Result<Option<(load::Known, guard::Guard)>, Trouble> {
    let Some((mut known, guard)) = kept.all(submissions) else { return Ok(None) };
    let count = creates(submissions);
    if count > 0 {
        // The guard looks at the revision in the end.
        if known.site_revision.is_some()
            && let Some(numbers) = kept.numbers(count)
        {
            known.fresh = numbers;
            return Ok(Some((known, guard)));
        }
        let revision = known.site_revision;
        (known.fresh, known.site_revision) = load::numbers(tx, submissions).await?;
        if revision.is_some() && known.site_revision != revision {
            kept.forget_limits();
            return Ok(None);
        }
    }
    Ok(Some((known, guard)))
}

/// How many runs the commands may make.
fn creates(submissions: &[Submission]) -> usize {
    submissions.iter().filter(|s| s.command.creates()).count()
}

/// Begins a guarded transaction for what is to be done before the end.
async fn begin(tx: &Tx, guard: &mut Option<guard::Guard>) -> Result<(), Trouble> {
    match guard.take() {
        Some(guard) => guard.begin(tx).await,
        None => Ok(()),
    }
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
