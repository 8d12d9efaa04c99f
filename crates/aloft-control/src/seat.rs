//! A worker's seat at this control plane: its line to it, with the session that it has. The worker of the same process has
//! one, and so has every stream of a worker elsewhere.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use aloft_core::{Progress, Time, WorkerId};
use aloft_plane::{ControlPlane, HeldParts, LeaseRef, LeasedAttempt, ReportError};
use aloft_store::{AboutWorker, MAX_WORKERS, StoreError, WorkerRecord};
use async_trait::async_trait;
use futures::{StreamExt as _, stream::try_unfold};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::{
    Control,
    dispatch::{Session, unavailable},
    names,
    session::{Opening, opening},
};

/// Times that a session's beginning is decided anew because the record was changed in between.
const MAX_TRIES: usize = 16;

/// Pause before a sign of life that could not be written is written again.
const AGAIN: Duration = Duration::from_secs(1);

/// Who a worker is.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its name; the same after a restart.
    pub id: WorkerId,
    /// Number of its process, drawn at its start.
    pub process: u64,
    /// Whether this process has had a session before.
    pub known: bool,
    /// Version of its program.
    pub version: String,
    /// Name of its machine.
    pub host: String,
    /// Its data directory on its machine, in which its attempts are; empty if it does not say.
    pub attempts: String,
    /// Whether it takes no work.
    pub draining: bool,
}

/// A worker's seat.
pub struct Seat {
    control: Control,
    guest: Guest,
    known: AtomicBool,
    draining: watch::Sender<bool>,
    room: AtomicU64,
    since: Mutex<Time>,
    /// The session, while there is one.
    session: watch::Sender<Option<u64>>,
    /// Up to which place of the feed the worker has been told what was taken from it; `None` before it was told anything.
    told: tokio::sync::Mutex<Option<u64>>,
    /// When its last sign of life was written.
    written: Mutex<Option<Instant>>,
}

impl Seat {
    pub(crate) fn new(control: Control, guest: Guest) -> Self {
        Self {
            known: AtomicBool::new(guest.known),
            draining: watch::Sender::new(guest.draining),
            room: AtomicU64::new(0),
            since: Mutex::default(),
            session: watch::Sender::new(None),
            told: tokio::sync::Mutex::new(None),
            written: Mutex::default(),
            control,
            guest,
        }
    }

    /// Hands the worker nothing more. What it has stays its own.
    pub fn drain(&self) {
        self.draining.send_replace(true);
        *self.written.lock() = None;
    }

    /// For how many attempts it has room, for people to see.
    pub(crate) fn has_room(&self, room: u64) {
        self.room.store(room, Ordering::Relaxed);
    }

    /// A sign of life. `false` if the session is over: the worker must reclaim. Writes at most a few times in a lease, however
    /// often it is called.
    ///
    /// # Errors
    /// [`StoreError`] if it could not be written: try again soon.
    pub async fn beat(&self) -> Result<bool, StoreError> {
        let Some(session) = self.session() else { return Ok(false) };
        let lease = self.control.settings().lease;
        self.control.heard(&self.guest.id, session.number);
        if self.written.lock().is_some_and(|at| at.elapsed() < lease / 6) {
            return Ok(true);
        }
        let lives = self.control.store().beat_worker(&self.guest.id, session.number, self.about()).await?;
        *self.written.lock() = Some(Instant::now());
        if !lives {
            session.end();
        }
        Ok(lives)
    }

    /// The session, while there is one.
    fn session(&self) -> Option<Session> {
        let number = (*self.session.borrow())?;
        Some(Session { worker: self.guest.id.clone(), number, seat: self.session.clone() })
    }

    /// Says that the worker lives for as long as this is polled. For one whose life is that of this process.
    pub async fn keep_alive(&self) {
        let interval = self.control.settings().lease / 3;
        loop {
            let pause = match self.beat().await {
                Ok(_) => interval,
                Err(error) => {
                    tracing::warn!(%error, worker = %self.guest.id.0, "cannot note that this worker lives");
                    AGAIN.min(interval)
                }
            };
            self.control.pause(pause).await;
            if self.control.stopping().is_cancelled() {
                return;
            }
        }
    }

    /// Waits until the session is over.
    pub(crate) async fn over(&self) {
        let mut session = self.session.subscribe();
        // The sender lives as long as this.
        let _ = session.wait_for(Option::is_none).await;
    }

    fn about(&self) -> AboutWorker {
        AboutWorker {
            process: self.guest.process,
            version: self.guest.version.clone(),
            host: self.guest.host.clone(),
            attempts: self.guest.attempts.clone(),
            draining: *self.draining.borrow(),
            room: self.room.load(Ordering::Relaxed),
            since: *self.since.lock(),
            heard_at: self.control.now(),
        }
    }

    /// Begins a session and answers its number.
    async fn open(&self) -> Result<u64, ReportError> {
        let (store, id) = (self.control.store(), &self.guest.id);
        *self.since.lock() = self.control.now();
        for _ in 0..MAX_TRIES {
            let found = store.worker(id).await.map_err(unavailable)?;
            match opening(found.as_ref(), self.guest.process, self.known.load(Ordering::Relaxed)) {
                Opening::Begin => {}
                Opening::BeginAnew => {
                    if let Some(record) = &found {
                        self.control.release(record).await.map_err(unavailable)?;
                    }
                }
                Opening::Displaced => {
                    return Err(ReportError::Displaced(format!(
                        "another process works under the name {}, since {}: give each a data directory of its own",
                        id.0,
                        found.map(|r| r.about.host).filter(|h| !h.is_empty()).unwrap_or_else(|| "lately".to_owned())
                    )));
                }
            }
            let session = names::session();
            let record = WorkerRecord { id: id.clone(), session, beat: 0, expired: false, about: self.about() };
            if store.put_worker(record, found.as_ref().map_or(0, |r| r.beat)).await.map_err(unavailable)? {
                return Ok(session);
            }
            if found.is_none() && store.workers().await.map_err(unavailable)?.len() >= MAX_WORKERS {
                let reason =
                    format!("there are {MAX_WORKERS} workers already; those not heard of for a day are forgotten");
                return Err(ReportError::Unavailable(reason));
            }
        }
        Err(ReportError::Unavailable(format!("the record of worker {} is being changed by others", id.0)))
    }
}

/// Where a reclaim is.
enum Reclaiming<'s> {
    /// Its session is to be opened.
    Opens,
    /// What is held is being named, so far up to the place `after`.
    Names { session: u64, newest: u64, after: Option<i64>, told: tokio::sync::MutexGuard<'s, Option<u64>> },
    /// All is named.
    Done,
}

impl Seat {
    /// The next part of a reclaim.
    async fn reclaim_on<'s>(
        &'s self,
        step: Reclaiming<'s>,
    ) -> Result<Option<(Vec<LeasedAttempt>, Reclaiming<'s>)>, ReportError> {
        match step {
            Reclaiming::Opens => {
                // Nothing is handed out to the session before, nor is it told anything, once this one begins.
                self.session.send_replace(None);
                let told = self.told.lock().await;
                // Taken before the record is read: what ends from here on is told by `revoked`, what has ended is not listed.
                let newest = *self.control.store().feed().borrow();
                let session = self.open().await?;
                Ok(Some((Vec::new(), Reclaiming::Names { session, newest, after: None, told })))
            }
            Reclaiming::Names { session, newest, after, mut told } => {
                // What is named is read at several moments. Nothing comes to be held in between.
                if after.is_none() {
                    self.control.granted().await.map_err(unavailable)?;
                }
                let (held, next) = self.control.held_part(&self.guest.id, after).await?;
                self.control.heard(&self.guest.id, session);
                if next.is_some() {
                    return Ok(Some((held, Reclaiming::Names { session, newest, after: next, told })));
                }
                *told = Some(newest);
                self.known.store(true, Ordering::Relaxed);
                *self.written.lock() = Some(Instant::now());
                self.session.send_replace(Some(session));
                Ok(Some((held, Reclaiming::Done)))
            }
            Reclaiming::Done => Ok(None),
        }
    }
}

/// What a lease says when there is no session.
fn over() -> ReportError {
    ReportError::Unavailable("the session of this worker is over; it asks anew what it holds".to_owned())
}

#[async_trait]
impl ControlPlane for Seat {
    async fn lease(&self, max: usize, wait: Duration) -> Result<Vec<LeasedAttempt>, ReportError> {
        let Some(session) = self.session() else { return Err(over()) };
        self.has_room(max as u64);
        let mut draining = self.draining.subscribe();
        let handed = async {
            if *draining.borrow() {
                tokio::time::sleep(wait).await;
                return Ok(Vec::new());
            }
            self.control.lease_to(&session, max, wait, &mut draining).await
        };
        tokio::select! {
            handed = handed => handed,
            // A grant that is under way is finished: the next `reclaim` waits for it, and tells of it.
            () = self.over() => Err(over()),
        }
    }

    fn reclaim_in_parts(&self) -> HeldParts<'_> {
        try_unfold(Reclaiming::Opens, |step| self.reclaim_on(step)).boxed()
    }

    async fn report(&self, lease: &LeaseRef, progress: Progress) -> Result<(), ReportError> {
        self.control.take_report(lease, progress).await
    }

    async fn revoked(&self) -> Result<Vec<LeaseRef>, ReportError> {
        let mut feed = self.control.store().feed();
        loop {
            feed.mark_unchanged();
            {
                let mut told = self.told.lock().await;
                // Goes on where the look before this one ended, so that what happens between two calls is told too.
                let pos = told.unwrap_or_else(|| *feed.borrow());
                let (revoked, pos) = self.control.revoked_after(&self.guest.id, pos).await?;
                *told = Some(pos);
                if !revoked.is_empty() {
                    return Ok(revoked);
                }
            }
            tokio::select! {
                () = self.control.stopping().cancelled() => return Ok(Vec::new()),
                changed = feed.changed() => {
                    if changed.is_err() {
                        return Err(ReportError::Unavailable("the store is closing".to_owned()));
                    }
                }
            }
        }
    }
}
