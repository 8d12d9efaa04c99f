//! The reconciler of workers: gives up those that are not heard of, and lets others do what they held (design rule 6).
//!
//! Any number of control planes may run it at once. A worker is given up in place of the record that was looked at, and each
//! of its attempts by the token of its lease, so whatever was decided on what is no longer so changes nothing.

use std::time::Duration;

use aloft_core::{ActionState, AttemptOutcome, Command, ErrorKind, Progress, RunKey, TaskError, WorkerId};
use aloft_plane::WORKER_LOST;
use aloft_store::{AboutWorker, StoreError, Submission, SubmitError, WorkerRecord};
use futures::future::join_all;
use tokio::time::Instant;

use crate::{
    Control,
    reconcile::{BATCH, TROUBLE},
    session::Vigil,
    work::Reconciler,
};

/// How long a worker that was given up and holds nothing is remembered, for people who ask where it is.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);

impl Control {
    pub(crate) async fn sweep_loop(&self) {
        let mut vigil = Vigil::default();
        while !self.stopping().is_cancelled() {
            let pause = match self.counted(Reconciler::Workers, self.sweep_once(&mut vigil, Instant::now())).await {
                Ok(_) => Vigil::interval(self.settings().lease),
                Err(error) => {
                    tracing::warn!(%error, "cannot look after workers");
                    TROUBLE.min(self.settings().lease)
                }
            };
            self.pause(pause).await;
        }
    }

    /// One look of the reconciler of workers: how many it gave up. `vigil` is what it saw before. Public as
    /// [`Self::settle_once`] is.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read or written. Then nobody is judged by what was seen before.
    pub async fn sweep_once(&self, vigil: &mut Vigil, now: Instant) -> Result<usize, StoreError> {
        let swept = self.sweep(vigil, now).await;
        if swept.is_err() {
            vigil.reset();
        }
        swept
    }

    async fn sweep(&self, vigil: &mut Vigil, now: Instant) -> Result<usize, StoreError> {
        let (store, lease) = (self.store(), self.settings().lease);
        // Holders first: one that is among them and not among the records has no record.
        let holders = store.holders().await?;
        let records = store.workers().await?;
        for id in holders.iter().filter(|id| !records.iter().any(|r| r.id == **id)) {
            let about = AboutWorker { heard_at: self.now(), ..AboutWorker::default() };
            let record = WorkerRecord { id: id.clone(), session: 0, beat: 0, expired: false, about };
            // From now on it has to be heard of.
            store.put_worker(record, 0).await?;
        }
        let mut lost: Vec<WorkerRecord> = Vec::new();
        for record in vigil.look(now, &records, lease) {
            if self.heard_lately(record, now) {
                continue;
            }
            let expired = WorkerRecord { expired: true, ..record.clone() };
            if store.put_worker(expired.clone(), record.beat).await? {
                lost.push(WorkerRecord { beat: record.beat + 1, ..expired });
            }
        }
        let given_up = lost.len();
        lost.extend(records.iter().filter(|r| r.expired).cloned());
        for record in &lost {
            if holders.contains(&record.id) {
                let count = self.release(record).await?;
                let name = &record.id.0;
                tracing::warn!(worker = %name, "worker {name} was not heard of for {lease:?}: {count} attempts go to others");
            } else if self.now().since(record.about.heard_at) > REMEMBERED {
                store.drop_worker(&record.id, record.beat).await?;
            }
        }
        Ok(given_up)
    }

    /// Requeues everything that a worker held whose session is over by `record`; how many attempts that were. Stops if the
    /// worker has begun anew: what it holds since then is its own.
    pub(crate) async fn release(&self, record: &WorkerRecord) -> Result<usize, StoreError> {
        let lease = self.settings().lease;
        let why = format!("Worker {}, which ran this attempt, was not heard of for {lease:?}.", record.id.0);
        let (mut count, mut changed, mut after) = (0, 0, None);
        loop {
            let (held, next) = self.store().held_part(&record.id, after, BATCH).await?;
            // Read after what is held: while the record says so, nothing of it is of a later session.
            let now = self.store().worker(&record.id).await?;
            let still = now.is_some_and(|r| r.expired && r.session == record.session);
            if !still {
                return Ok(count);
            }
            for batch in held.chunks(BATCH) {
                changed += self.requeue(batch, &why).await?;
            }
            after = next;
            if after.is_none() {
                count += changed;
                // What is left lies below what has ended, and is ended by the settling of that.
                if changed == 0 {
                    return Ok(count);
                }
                changed = 0;
            }
        }
    }

    /// Lets others do attempts that a worker was handed, and says why; how many that changed.
    pub(crate) async fn requeue(&self, held: &[(RunKey, ActionState)], why: &str) -> Result<usize, StoreError> {
        let error = TaskError::new(WORKER_LOST, why, ErrorKind::System, true);
        let report = |(run, state): &(RunKey, ActionState)| {
            let (attempt, lease) = (state.current()?, state.live_lease()?);
            let command = Command::Report {
                action: state.name.clone(),
                attempt: attempt.number,
                token: lease.token,
                progress: Progress::Ended(AttemptOutcome::Lost(error.clone())),
            };
            Some(self.store().submit(Submission::new(run.clone(), command)))
        };
        let mut count = 0;
        for answer in join_all(held.iter().filter_map(report)).await {
            match answer {
                Ok(_) => count += 1,
                // It has ended by another hand, or lies below something that has: then settling ends it.
                Err(SubmitError::Refused(_)) => {}
                Err(SubmitError::Store(error)) => return Err(error),
            }
        }
        Ok(count)
    }

    /// Notes that a session served here was heard of. It is not given up by this control plane for a lease, even if the
    /// store could not be told.
    pub(crate) fn heard(&self, worker: &WorkerId, session: u64) {
        self.0.heard.lock().insert(worker.clone(), (session, Instant::now()));
    }

    fn heard_lately(&self, record: &WorkerRecord, now: Instant) -> bool {
        let heard = self.0.heard.lock().get(&record.id).copied();
        let lease = self.settings().lease;
        heard.is_some_and(|(session, at)| session == record.session && now.saturating_duration_since(at) < lease)
    }

    /// A seat for a worker. Its session begins with its first `reclaim`.
    pub fn seat(&self, guest: crate::Guest) -> crate::Seat {
        crate::Seat::new(self.clone(), guest)
    }
}
