//! What a worker needs, in memory.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use aloft_core::{AttemptOutcome, ErrorKind, Phase, Progress, TaskError};
use aloft_dataplane::seam::{Environments, PyEnv, ResultStore};
use aloft_plane::{AttemptId, ControlPlane, HeldParts, LeaseRef, LeasedAttempt, PlaneError, ReportError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Results in plain files.
pub(crate) struct Files;

#[async_trait]
impl ResultStore for Files {
    async fn get(&self, uri: &str, _max: usize) -> Result<Option<Bytes>, PlaneError> {
        match std::fs::read(uri) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(PlaneError::Unavailable(e.to_string())),
        }
    }

    async fn exists(&self, uri: &str) -> Result<bool, PlaneError> {
        Ok(std::path::Path::new(uri).exists())
    }

    async fn put(&self, uri: &str, content: Bytes) -> Result<(), PlaneError> {
        let path = std::path::Path::new(uri);
        let write = || {
            std::fs::create_dir_all(path.parent().unwrap())?;
            std::fs::write(path, &content)
        };
        write().map_err(|e| PlaneError::Unavailable(e.to_string()))
    }
}

/// A control plane that holds attempts in memory and checks what is reported.
#[derive(Default)]
pub(crate) struct Plane {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    queue: VecDeque<LeasedAttempt>,
    held: HashMap<AttemptId, LeasedAttempt>,
    revoked: Vec<LeaseRef>,
    reports: Vec<(AttemptId, Progress)>,
    down: bool,
    refused: usize,
}

impl Plane {
    /// Adds work.
    pub(crate) fn enqueue(&self, attempt: LeasedAttempt) {
        self.state.lock().queue.push_back(attempt);
        self.changed.notify_waiters();
    }

    /// Ends an attempt by another hand.
    pub(crate) fn revoke(&self, id: &AttemptId) {
        let mut state = self.state.lock();
        state.queue.retain(|attempt| attempt.lease.id != *id);
        if let Some(attempt) = state.held.remove(id) {
            state.revoked.push(attempt.lease);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// Ends an attempt without telling anybody, as while the worker is away.
    pub(crate) fn forget(&self, id: &AttemptId) {
        self.state.lock().held.remove(id);
    }

    /// Whether it answers.
    pub(crate) fn set_down(&self, down: bool) {
        self.state.lock().down = down;
    }

    /// What was refused while it was down.
    pub(crate) fn refused(&self) -> usize {
        self.state.lock().refused
    }

    /// What was reported on `id`.
    pub(crate) fn reports(&self, id: &AttemptId) -> Vec<Progress> {
        self.state.lock().reports.iter().filter(|(other, _)| other == id).map(|(_, p)| p.clone()).collect()
    }

    /// How `id` ended.
    pub(crate) fn outcome(&self, id: &AttemptId) -> Option<AttemptOutcome> {
        self.reports(id).into_iter().find_map(|p| match p {
            Progress::Ended(outcome) => Some(outcome),
            _ => None,
        })
    }

    /// How many attempts are neither waiting nor held.
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.queue.is_empty() && state.held.is_empty()
    }

    fn answer<T>(&self, state: &mut State, value: impl FnOnce(&mut State) -> T) -> Result<T, ReportError> {
        if state.down {
            state.refused += 1;
            return Err(ReportError::Unavailable("down".to_owned()));
        }
        Ok(value(state))
    }
}

#[async_trait]
impl ControlPlane for Plane {
    async fn lease(&self, max: usize, wait: Duration) -> Result<Vec<LeasedAttempt>, ReportError> {
        assert!(max > 0);
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock();
                let taken = self.answer(&mut state, |state| {
                    let n = max.min(state.queue.len());
                    let taken: Vec<_> = state.queue.drain(..n).collect();
                    state.held.extend(taken.iter().map(|a| (a.lease.id.clone(), a.clone())));
                    taken
                })?;
                if !taken.is_empty() {
                    return Ok(taken);
                }
            }
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Ok(Vec::new());
            }
        }
    }

    fn reclaim_in_parts(&self) -> HeldParts<'_> {
        let mut state = self.state.lock();
        let each = |state: &mut State| state.held.values().map(|attempt| Ok(vec![attempt.clone()])).collect();
        let parts: Vec<_> = self.answer(&mut state, each).unwrap_or_else(|error| vec![Err(error)]);
        stream::iter(parts).boxed()
    }

    async fn report(&self, lease: &LeaseRef, progress: Progress) -> Result<(), ReportError> {
        let mut state = self.state.lock();
        self.answer(&mut state, |state| {
            let Some(attempt) = state.held.get_mut(&lease.id) else { return Err(ReportError::Over) };
            assert_eq!(attempt.lease.token, lease.token);
            attempt.phase = match &progress {
                Progress::Waiting { .. } => Phase::WaitingForResources,
                Progress::Initializing => Phase::Initializing,
                Progress::Running => Phase::Running,
                Progress::Ended(_) => Phase::Succeeded,
            };
            if attempt.phase == Phase::Succeeded {
                state.held.remove(&lease.id);
            }
            state.reports.push((lease.id.clone(), progress));
            Ok(())
        })?
    }

    async fn revoked(&self) -> Result<Vec<LeaseRef>, ReportError> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.state.lock();
                let revoked = self.answer(&mut state, |state| std::mem::take(&mut state.revoked))?;
                if !revoked.is_empty() {
                    return Ok(revoked);
                }
            }
            changed.await;
        }
    }
}

/// One environment for every image.
pub(crate) struct Always(pub(crate) PyEnv);

#[async_trait]
impl Environments for Always {
    async fn resolve(&self, image: &str, _: &str) -> Result<PyEnv, TaskError> {
        match image {
            "missing" => Err(TaskError::new("ImageNotFound", "there is no such image", ErrorKind::User, false)),
            _ => Ok(self.0.clone()),
        }
    }
}
