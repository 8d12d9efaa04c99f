//! The one writer: a thread that takes what waits, does it in one transaction, and answers after the commit.
//!
//! Requests that arrive while a commit is under way share the next one, so the cost of an fsync is divided among them
//! without anybody waiting for a timer. A job whose command is refused writes nothing; a job that fails on the database
//! itself takes its whole batch with it, because half a batch must not be acknowledged.

use std::time::Instant;

use aloft_core::{Reply, Time};
use aloft_store::{Committed, Hub, StoreError, Submission, SubmitError};
use rusqlite::{Connection, Transaction};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Clock, error,
    hot::{Hot, Touched},
};

/// Most jobs of one transaction. Two thousand rows keep a batch under ~50 ms here, which bounds the wait of the next one.
const MAX_BATCH: usize = 1024;

type Done<T> = oneshot::Sender<Result<T, SubmitError>>;
/// A write that is not a command to a run.
pub(crate) type RecordJob = Box<dyn FnOnce(&Transaction<'_>, Time) -> Result<bool, rusqlite::Error> + Send>;

pub(crate) enum Job {
    Submit { submission: Box<Submission>, done: Done<Reply> },
    Record { write: RecordJob, done: Done<bool> },
}

enum Answer {
    Submit(Done<Reply>, Result<Reply, SubmitError>),
    Record(Done<bool>, Result<bool, SubmitError>),
}

impl Answer {
    fn send(self, failure: Option<&StoreError>) {
        // A receiver that is gone has given up waiting; the write stands either way.
        match self {
            Self::Submit(done, result) => drop(done.send(overridden(result, failure))),
            Self::Record(done, result) => drop(done.send(overridden(result, failure))),
        }
    }
}

fn overridden<T>(result: Result<T, SubmitError>, failure: Option<&StoreError>) -> Result<T, SubmitError> {
    match failure {
        Some(error) => Err(SubmitError::Store(error.clone())),
        None => result,
    }
}

/// Runs until every sender is gone.
pub(crate) fn run(mut db: Connection, mut jobs: mpsc::Receiver<Job>, hub: Hub, clock: Clock) {
    let mut batch = Vec::with_capacity(MAX_BATCH);
    let mut hot = Hot::default();
    while let Some(first) = jobs.blocking_recv() {
        batch.push(first);
        while batch.len() < MAX_BATCH {
            match jobs.try_recv() {
                Ok(job) => batch.push(job),
                Err(_) => break,
            }
        }
        commit_batch(&mut db, &mut hot, batch.drain(..), &hub, clock());
    }
    if let Err(error) = db.pragma_update(None, "wal_checkpoint", "TRUNCATE") {
        tracing::debug!(%error, "no final checkpoint");
    }
}

/// Does jobs in one transaction, tells its commit and answers them after it, and wakes who watches.
pub(crate) fn commit_batch(db: &mut Connection, hot: &mut Hot, jobs: impl Iterator<Item = Job>, hub: &Hub, now: Time) {
    let mut answers = Vec::new();
    let mut touched = Touched::default();
    let began = Instant::now();
    let failure = match carry_out(db, hot, jobs, hub, &mut answers, &mut touched, now) {
        Ok(()) => {
            hot.committed();
            None
        }
        Err(error) => {
            *hot = Hot::default();
            tracing::error!(%error, jobs = answers.len(), "a batch of writes failed and was rolled back");
            Some(error)
        }
    };
    let took = began.elapsed();
    let commands = answers.len();
    #[cfg(feature = "failpoints")]
    fail::fail_point!("sqlite-after-commit", |_| std::process::abort());
    // Before the answers: whoever has one finds it counted.
    if let (None, Some(observer)) = (&failure, hub.observer()) {
        observer.committed(Committed { commands, took, ..touched.committed });
    }
    for answer in answers {
        answer.send(failure.as_ref());
    }
    #[cfg(feature = "failpoints")]
    fail::fail_point!("sqlite-after-answers", |_| std::process::abort());
    if failure.is_none() {
        hub.publish(touched.runs, touched.pos);
    }
}

fn carry_out(
    db: &mut Connection,
    hot: &mut Hot,
    jobs: impl Iterator<Item = Job>,
    hub: &Hub,
    answers: &mut Vec<Answer>,
    touched: &mut Touched,
    now: Time,
) -> Result<(), StoreError> {
    let mut failure = None;
    // Answers must be kept even when a job fails, so that nobody waits for ever.
    let tx = db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).map_err(error::from_sqlite);
    let tx = match tx {
        Ok(tx) => Some(tx),
        Err(error) => {
            failure = Some(error);
            None
        }
    };
    for job in jobs {
        let usable = tx.as_ref().filter(|_| failure.is_none());
        match job {
            Job::Submit { submission, done } => {
                let result = match usable {
                    Some(tx) => hot.submit(tx, &submission, hub.observer(), touched, now),
                    None => Ok(Reply::Unchanged),
                };
                match &result {
                    // One run that cannot be read must not stop the others; nothing was written for it yet.
                    Err(SubmitError::Store(error @ StoreError::Corrupt(_))) if !touched.half_written => {
                        tracing::error!(%error, run = %submission.run, "a run is damaged");
                    }
                    Err(SubmitError::Store(error)) => failure = Some(error.clone()),
                    Ok(_) | Err(SubmitError::Refused(_)) => {}
                }
                answers.push(Answer::Submit(done, result));
            }
            Job::Record { write, done } => {
                let result = match usable {
                    // It may read or change anything.
                    Some(tx) => hot
                        .finish(tx, now)
                        .and_then(|()| write(tx, now).map_err(error::from_sqlite))
                        .inspect(|_| hot.forget())
                        .map_err(SubmitError::Store),
                    None => Ok(false),
                };
                if let Err(SubmitError::Store(error)) = &result {
                    failure = Some(error.clone());
                }
                answers.push(Answer::Record(done, result));
            }
        }
    }
    match (failure, tx) {
        (Some(error), _) => Err(error),
        (None, Some(tx)) => {
            hot.finish(&tx, now)?;
            #[cfg(feature = "failpoints")]
            fail::fail_point!("sqlite-before-commit", |_| std::process::abort());
            tx.commit().map_err(error::from_sqlite)
        }
        (None, None) => Ok(()),
    }
}
