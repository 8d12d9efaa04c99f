//! Wake-up hints for engines: one watch channel per run that somebody watches, and one for the feed.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use aloft_core::RunKey;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::Observer;

/// What an engine wakes its watchers with. Clones share the channels.
#[derive(Clone)]
pub struct Hub {
    runs: Arc<Mutex<HashMap<RunKey, watch::Sender<u64>>>>,
    feed: Arc<watch::Sender<u64>>,
    observer: Arc<OnceLock<Arc<dyn Observer>>>,
}

/// Beyond this many channels, those that nobody watches any more are dropped.
const SWEEP_ABOVE: usize = 1024;

impl Hub {
    /// No watchers yet; the feed is at `pos`.
    pub fn new(pos: u64) -> Self {
        Self { runs: Arc::default(), feed: Arc::new(watch::Sender::new(pos)), observer: Arc::default() }
    }

    /// For [`crate::Store::observe`].
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    /// Who is told of commits, if anybody.
    pub fn observer(&self) -> Option<&dyn Observer> {
        self.observer.get().map(AsRef::as_ref)
    }

    /// For [`crate::Store::changes`].
    pub fn run(&self, run: &RunKey) -> watch::Receiver<u64> {
        let mut runs = self.runs.lock();
        if runs.len() > SWEEP_ABOVE {
            runs.retain(|_, sender| sender.receiver_count() > 0);
        }
        runs.entry(run.clone()).or_insert_with(|| watch::Sender::new(0)).subscribe()
    }

    /// Whether somebody watches a run here.
    pub fn is_watched(&self, run: &RunKey) -> bool {
        self.runs.lock().get(run).is_some_and(|sender| sender.receiver_count() > 0)
    }

    /// For [`crate::Store::feed`].
    pub fn feed(&self) -> watch::Receiver<u64> {
        self.feed.subscribe()
    }

    /// Wakes those who watch the feed, though no log has grown.
    pub fn wake(&self) {
        self.feed.send_modify(|_| {});
    }

    /// Wakes those who watch these runs, now at these numbers, and the feed if it has grown to `pos`.
    pub fn publish(&self, runs: HashMap<RunKey, u64>, pos: Option<u64>) {
        {
            let mut watched = self.runs.lock();
            for (run, seq) in runs {
                if let Some(sender) = watched.get(&run) {
                    if sender.receiver_count() == 0 {
                        watched.remove(&run);
                    } else {
                        grow(sender, seq);
                    }
                }
            }
        }
        if let Some(pos) = pos {
            grow(&self.feed, pos);
        }
    }
}

/// Two commits may be told in the other order, and one twice: only what is new wakes.
fn grow(channel: &watch::Sender<u64>, to: u64) {
    channel.send_if_modified(|known| {
        let grown = to > *known;
        *known = to.max(*known);
        grown
    });
}
