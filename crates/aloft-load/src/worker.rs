//! A worker that does nothing: it leases, and says that what it leased has ended, as fast as it is told.
//!
//! What is to go on for ever says so by its name: the root of a run `p...`, and an action `h...`.

use std::{collections::HashMap, sync::Arc, time::Duration};

use aloft_control::{Control, Guest, Seat};
use aloft_core::{AttemptOutcome, OutputRefs, Progress, WorkerId};
use aloft_plane::{ControlPlane as _, LeasedAttempt};
use futures::future::join_all;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::machine;

/// Attempts leased at a time.
const BATCH: usize = 512;

/// Batches that are reported while the next is leased.
const AHEAD: usize = 4;

/// When an action was handed out and ended, in microseconds since the epoch.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Handed {
    /// Its run and its name.
    pub(crate) action: String,
    /// When the worker had it.
    pub(crate) handed: i64,
    /// When its end was durable; 0 before.
    pub(crate) ended: i64,
}

/// What the worker remembers.
pub(crate) struct Seen {
    record: bool,
    actions: Mutex<HashMap<String, Handed>>,
}

impl Seen {
    /// Remembers nothing unless `record` holds.
    pub(crate) fn new(record: bool) -> Self {
        Self { record, actions: Mutex::default() }
    }

    /// What was remembered since the last call.
    pub(crate) fn take(&self) -> Vec<Handed> {
        std::mem::take(&mut *self.actions.lock()).into_values().collect()
    }

    fn handed(&self, attempts: &[LeasedAttempt]) {
        if !self.record {
            return;
        }
        let now = machine::micros();
        let mut actions = self.actions.lock();
        for attempt in attempts {
            let action = name(attempt);
            actions.insert(action.clone(), Handed { action, handed: now, ended: 0 });
        }
    }

    fn ended(&self, attempt: &LeasedAttempt) {
        if self.record
            && let Some(found) = self.actions.lock().get_mut(&name(attempt))
        {
            found.ended = machine::micros();
        }
    }
}

fn name(attempt: &LeasedAttempt) -> String {
    format!("{}/{}", attempt.lease.id.run.name, attempt.lease.id.action)
}

fn goes_on(attempt: &LeasedAttempt) -> bool {
    let id = &attempt.lease.id;
    (attempt.parent.is_none() && id.run.name.starts_with('p')) || id.action.as_str().starts_with('h')
}

/// Works until the process ends.
pub(crate) async fn work(control: Control, seen: Arc<Seen>, running: bool) {
    let seat = Arc::new(control.seat(Guest {
        id: WorkerId("load".to_owned()),
        process: u64::from(std::process::id()),
        known: false,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: String::new(),
        attempts: String::new(),
        draining: false,
    }));
    let lives = Arc::clone(&seat);
    tokio::spawn(async move { lives.keep_alive().await });
    let ahead = Arc::new(Semaphore::new(AHEAD));
    let mut seated = false;
    loop {
        if !seated && seat.reclaim().await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        seated = true;
        let Ok(place) = Arc::clone(&ahead).acquire_owned().await else { return };
        let Ok(leased) = seat.lease(BATCH, Duration::from_secs(20)).await else {
            seated = false;
            continue;
        };
        seen.handed(&leased);
        let (seat, seen) = (Arc::clone(&seat), Arc::clone(&seen));
        tokio::spawn(async move {
            join_all(leased.into_iter().map(|attempt| carry_out(&seat, &seen, attempt, running))).await;
            drop(place);
        });
    }
}

async fn carry_out(seat: &Seat, seen: &Seen, attempt: LeasedAttempt, running: bool) {
    let stays = goes_on(&attempt);
    if running || stays {
        let _ = seat.report(&attempt.lease, Progress::Running).await;
    }
    if stays {
        return;
    }
    let outputs = OutputRefs { output_uri: attempt.output_prefix.clone(), report_uri: String::new() };
    let _ = seat.report(&attempt.lease, Progress::Ended(AttemptOutcome::Succeeded(outputs))).await;
    seen.ended(&attempt);
}
