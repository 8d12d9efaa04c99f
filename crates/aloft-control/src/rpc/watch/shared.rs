//! What the watchers of one run read together: its newest events, and actions as they were last read. A change of a run that
//! a hundred people look at is read once.
//!
//! Nothing is shared that could be older than what a watcher has shown: reads of one run come one after the other, and an
//! action as it was last read takes the place of what was read before. Who watches alone shares nothing and keeps nothing.

use std::{
    collections::{HashMap, VecDeque},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, OnceLock, Weak},
};

use aloft_core::{ActionName, ActionState, RunKey};
use aloft_flyteidl2::flyteidl2::workflow::Action;
use aloft_store::{Filter, Logged, RunRecord};
use buffa::Message as _;
use parking_lot::Mutex;

use super::BATCH;
use crate::{
    Control,
    rpc::{
        convert,
        error::{Answer, wire},
    },
};

/// Events of a run that are kept: some seconds of a busy one, 2 MB.
const MAX_EVENTS: usize = 2048;

/// Actions of a run that are kept: some 8 MB.
const MAX_SHOWN: usize = 2048;

/// Beyond so many runs those that nobody watches any more are forgotten.
const SWEEP_ABOVE: usize = 1024;

/// The runs that are watched.
#[derive(Default)]
pub(crate) struct Watchings(Mutex<HashMap<RunKey, Weak<Shared>>>);

/// Actions as they were last read, by the list of filters that they were read with and their name.
type ByName = HashMap<(u64, Arc<str>), Arc<Shown>>;

/// What the watchers of one run share.
pub(super) struct Shared {
    run: RunKey,
    /// Held while reading.
    reading: tokio::sync::Mutex<()>,
    /// The newest events that were read, without a gap.
    events: Mutex<VecDeque<Arc<Logged>>>,
    shown: Mutex<ByName>,
}

/// An action as it was read.
pub(in crate::rpc) struct Shown {
    /// It.
    pub(in crate::rpc) state: ActionState,
    /// Whether it meets the filters.
    pub(in crate::rpc) meets: bool,
    /// The number of an event of the run up to which it includes everything.
    upto: u64,
    wire: OnceLock<(Action, u64)>,
}

impl Shown {
    /// As it is sent, and a digest of that.
    pub(super) fn wire(&self, record: &RunRecord) -> &(Action, u64) {
        self.wire.get_or_init(|| {
            let action = convert::action(record, &self.state);
            let mut digest = DefaultHasher::new();
            (action.encode_to_vec(), self.meets).hash(&mut digest);
            (action, digest.finish())
        })
    }
}

/// An action to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::rpc) struct Look {
    /// Which.
    pub(in crate::rpc) name: Arc<str>,
    /// The number of the event that must be included; `None` if only what is read now will do.
    pub(in crate::rpc) since: Option<u64>,
}

/// What tells one list of filters from another.
pub(super) fn fingerprint(filters: &[Filter]) -> u64 {
    if filters.is_empty() {
        return 0;
    }
    let mut digest = DefaultHasher::new();
    format!("{filters:?}").hash(&mut digest);
    digest.finish()
}

impl Control {
    /// What the watchers of `run` share.
    pub(super) fn watching(&self, run: &RunKey) -> Arc<Shared> {
        let mut runs = self.watchings().0.lock();
        if let Some(found) = runs.get(run).and_then(Weak::upgrade) {
            return found;
        }
        if runs.len() > SWEEP_ABOVE {
            runs.retain(|_, shared| shared.strong_count() > 0);
        }
        let shared = Arc::new(Shared {
            run: run.clone(),
            reading: tokio::sync::Mutex::default(),
            events: Mutex::default(),
            shown: Mutex::default(),
        });
        runs.insert(run.clone(), Arc::downgrade(&shared));
        shared
    }
}

impl Shared {
    /// Events after number `seq` that were read before; `None` if it must be read on.
    fn known_after(&self, seq: u64) -> Option<Vec<Arc<Logged>>> {
        let events = self.events.lock();
        let (first, last) = (events.front()?.seq, events.back()?.seq);
        if last <= seq || first > seq + 1 {
            return None;
        }
        let skip = usize::try_from(seq + 1 - first).unwrap_or(usize::MAX);
        Some(events.iter().skip(skip).take(BATCH).cloned().collect())
    }

    /// Up to [`BATCH`] events after number `seq`.
    pub(super) async fn events_after(self: &Arc<Self>, control: &Control, seq: u64) -> Answer<Vec<Arc<Logged>>> {
        if let Some(known) = self.known_after(seq) {
            return Ok(known);
        }
        let _reading = self.reading.lock().await;
        if let Some(known) = self.known_after(seq) {
            return Ok(known);
        }
        let found = control.store().events_after(&self.run, seq, BATCH).await.map_err(wire)?;
        let found: Vec<_> = found.into_iter().map(Arc::new).collect();
        if Arc::strong_count(self) > 1
            && let Some(first) = found.first()
        {
            let mut events = self.events.lock();
            // Who is far behind reads for itself: what is kept is the newest.
            match events.back().map(|last| last.seq) {
                Some(last) if first.seq > last + 1 => {
                    events.clear();
                    events.extend(found.iter().cloned());
                }
                Some(last) => events.extend(found.iter().filter(|e| e.seq > last).cloned()),
                None => events.extend(found.iter().cloned()),
            }
            let surplus = events.len().saturating_sub(MAX_EVENTS);
            events.drain(..surplus);
        }
        Ok(found)
    }

    fn known(&self, key: u64, look: &Look) -> Option<Arc<Shown>> {
        let found = self.shown.lock().get(&(key, look.name.clone())).cloned()?;
        (found.upto >= look.since?).then_some(found)
    }

    /// Actions as they must be shown, for a watcher that has read the log to `upto`, in the order asked for. Names that do
    /// not exist are left out.
    pub(super) async fn look(
        self: &Arc<Self>,
        control: &Control,
        filters: &[Filter],
        looks: &[Look],
        upto: u64,
    ) -> Answer<Vec<Arc<Shown>>> {
        let key = fingerprint(filters);
        let mut found: Vec<Option<Arc<Shown>>> = looks.iter().map(|look| self.known(key, look)).collect();
        if found.iter().any(Option::is_none) {
            let _reading = self.reading.lock().await;
            let mut places: HashMap<Arc<str>, usize> = HashMap::new();
            for (i, look) in looks.iter().enumerate().filter(|(i, _)| found[*i].is_none()).collect::<Vec<_>>() {
                match self.known(key, look) {
                    Some(known) => found[i] = Some(known),
                    None => drop(places.insert(look.name.clone(), i)),
                }
            }
            let names: Vec<_> = places.keys().filter_map(|name| ActionName::new(name).ok()).collect();
            let read = match names.is_empty() {
                true => Vec::new(),
                false => control.store().matched(&self.run, &names, filters, upto).await.map_err(wire)?,
            };
            let keeps = Arc::strong_count(self) > 1;
            let mut shown = self.shown.lock();
            if shown.len() + read.len() > MAX_SHOWN {
                shown.clear();
            }
            for (state, meets) in read {
                let Some((name, place)) = places.get_key_value(state.name.as_str()) else { continue };
                let (name, place) = (Arc::clone(name), *place);
                let mut now = Shown { state, meets, upto, wire: OnceLock::new() };
                if keeps && shown.len() < MAX_SHOWN {
                    // What is read later includes all that was read before.
                    let before = shown.get(&(key, name.clone())).map_or(0, |before| before.upto);
                    now.upto = now.upto.max(before);
                    let now = Arc::new(now);
                    shown.insert((key, name), Arc::clone(&now));
                    found[place] = Some(now);
                } else {
                    found[place] = Some(Arc::new(now));
                }
            }
        }
        Ok(found.into_iter().flatten().collect())
    }
}
