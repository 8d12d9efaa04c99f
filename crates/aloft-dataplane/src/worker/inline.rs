//! The inline tasks that are here ([`crate::inline`]): thousands at a time, since one that sleeps is an entry in a map.
//!
//! No thread, no process, no file and no place in [`crate::admission`] is held for one. Its work is read and reported a
//! batch at a time, so that what begins or ends together shares the control plane's commits. When it wakes is written into
//! a [`Journal`], from which a worker after this one goes on sleeping.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use aloft_core::{ActionName, AttemptOutcome, ErrorKind, OutputRefs, Progress, TaskError};
use aloft_flyteidl2::flyteidl2::task::{Inputs, TaskSpec};
use aloft_plane::{AttemptId, LeaseRef, LeasedAttempt, PlaneError};
use buffa::Message;
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::{
    sync::{Semaphore, mpsc},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Parts,
    journal::{Entry, Journal},
    report,
};
use crate::{
    admission::ActionKey,
    clock,
    inline::{self, Inline, Work},
};

/// How many attempts of a batch are reported at once: enough to share commits.
const AT_ONCE: usize = 256;

/// How many have their inputs in memory at once. The largest in all of them hold some 300 MiB.
const READ_AT_ONCE: usize = 32;

/// Largest inputs that are read, in bytes: what the SDK passes inline by default.
const MAX_INPUTS: usize = 10 << 20;

/// First and longest pause before the object store is asked again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// What happened to an inline attempt.
pub(super) enum Event {
    /// It sleeps.
    Asleep(Asleep),
    /// Its end is reported, or nobody wants to know.
    Gone(AttemptId),
}

/// An attempt that has begun to sleep.
pub(super) struct Asleep {
    lease: LeaseRef,
    until: Instant,
}

/// The inline attempts that are here.
pub(super) struct Host {
    hands: Hands,
    tasks: TaskTracker,
    /// One per action: an attempt takes the place of the one before.
    here: HashMap<ActionKey, Held>,
    /// Those that sleep, by when they wake; the number tells apart what wakes at the same time.
    wakes: BTreeMap<(Instant, u64), ActionKey>,
    next: u64,
    /// How many attempts are here below each action.
    below: HashMap<ActionKey, usize>,
    journal: Journal,
}

/// What carries work out beside the worker's loop. Cheap to clone.
#[derive(Clone)]
struct Hands {
    parts: Arc<Parts>,
    events: mpsc::UnboundedSender<super::Event>,
    stop: CancellationToken,
    room: Arc<Semaphore>,
}

struct Held {
    lease: LeaseRef,
    parent: Option<ActionKey>,
    output_prefix: String,
    state: State,
}

enum State {
    /// Its work is being read.
    Beginning,
    /// It wakes then.
    Asleep((Instant, u64)),
    /// Its end is being reported.
    Ending,
}

/// An attempt that is over, and what is to be done about it.
struct Ending {
    lease: LeaseRef,
    output_prefix: String,
    outputs: Bytes,
}

impl Host {
    /// A host that has nothing. What happens to its attempts comes as `events`, for [`Host::happened`].
    pub(super) fn new(
        parts: Arc<Parts>,
        events: mpsc::UnboundedSender<super::Event>,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Self {
        let journal = Journal::open(parts.executor.dirs().inline_journal());
        Self {
            hands: Hands { parts, events, stop, room: Arc::new(Semaphore::new(READ_AT_ONCE)) },
            tasks,
            here: HashMap::new(),
            wakes: BTreeMap::new(),
            next: 0,
            below: HashMap::new(),
            journal,
        }
    }

    /// How many attempts are here.
    pub(super) fn len(&self) -> usize {
        self.here.len()
    }

    /// How many attempts are here below each action.
    pub(super) fn below(&self) -> &HashMap<ActionKey, usize> {
        &self.below
    }

    /// Whether `id` is here.
    pub(super) fn holds(&self, id: &AttemptId) -> bool {
        self.here.get(&key(id)).is_some_and(|held| held.lease.id.attempt == id.attempt)
    }

    /// The attempts that are here.
    pub(super) fn ids(&self) -> impl Iterator<Item = &AttemptId> {
        self.here.values().map(|held| &held.lease.id)
    }

    /// Begins new work.
    pub(super) fn arrive(&mut self, attempts: Vec<(Inline, LeasedAttempt)>) {
        let mut batch = Vec::with_capacity(attempts.len());
        for (kind, attempt) in attempts {
            if self.insert(&attempt) {
                batch.push((kind, attempt));
            }
        }
        if !batch.is_empty() {
            let hands = self.hands.clone();
            self.tasks.spawn(async move {
                let each = futures::stream::iter(batch).map(|(kind, attempt)| hands.begin(kind, attempt));
                each.buffer_unordered(AT_ONCE).for_each(|event| hands.tell(event)).await;
            });
        }
    }

    /// Goes on with what a worker before this one had begun, by its own record; begins what is not in it.
    pub(super) fn resume(&mut self, attempts: Vec<(Inline, LeasedAttempt)>) {
        let mut fresh = Vec::new();
        let (now, wall) = (Instant::now(), clock::now().as_microsecond());
        for (kind, attempt) in attempts {
            match self.journal.recall(&attempt.lease) {
                Some(entry) => {
                    if self.insert(&attempt) {
                        self.keep(Asleep { lease: attempt.lease, until: now + entry.remaining(wall) });
                    }
                }
                None => fresh.push((kind, attempt)),
            }
        }
        self.journal.forget();
        self.write_journal();
        self.arrive(fresh);
    }

    /// Whether `attempt` is new here. It takes the place of another attempt of its action, which is over.
    fn insert(&mut self, attempt: &LeasedAttempt) -> bool {
        let id = &attempt.lease.id;
        if self.holds(id) {
            return false;
        }
        let action = key(id);
        self.remove(&action);
        let parent = attempt.parent.clone().map(|name: ActionName| (id.run.clone(), name));
        if let Some(parent) = &parent {
            *self.below.entry(parent.clone()).or_default() += 1;
        }
        let held = Held {
            lease: attempt.lease.clone(),
            parent,
            output_prefix: attempt.output_prefix.clone(),
            state: State::Beginning,
        };
        self.here.insert(action, held);
        true
    }

    /// Stops an attempt: nothing of it is left when this returns.
    pub(super) fn revoke(&mut self, id: &AttemptId) {
        if self.holds(id) {
            self.remove(&key(id));
        }
    }

    fn remove(&mut self, action: &ActionKey) {
        let Some(held) = self.here.remove(action) else { return };
        if let State::Asleep(wake) = held.state {
            self.wakes.remove(&wake);
        }
        if let Some(parent) = held.parent
            && let Some(count) = self.below.get_mut(&parent)
        {
            *count -= 1;
            if *count == 0 {
                self.below.remove(&parent);
            }
        }
    }

    /// Takes note of what happened.
    pub(super) fn happened(&mut self, events: Vec<Event>) {
        let (now, wall) = (Instant::now(), clock::now().as_microsecond());
        let mut entries = Vec::new();
        for event in events {
            match event {
                Event::Asleep(asleep) => {
                    let left = asleep.until.saturating_duration_since(now);
                    let entry = Entry::new(&asleep.lease, wall, left);
                    if self.keep(asleep) {
                        entries.push(entry);
                    }
                }
                Event::Gone(id) => self.revoke(&id),
            }
        }
        self.journal.append(&entries);
        if self.journal.is_long(self.wakes.len()) {
            self.write_journal();
        }
    }

    /// Lets an attempt sleep; false if it was stopped while it began.
    fn keep(&mut self, Asleep { lease, until }: Asleep) -> bool {
        let action = key(&lease.id);
        let Some(held) = self.here.get_mut(&action).filter(|held| held.lease == lease) else { return false };
        let wake = (until, self.next);
        self.next += 1;
        held.state = State::Asleep(wake);
        self.wakes.insert(wake, action);
        true
    }

    /// Leaves in the journal only those that sleep.
    fn write_journal(&mut self) {
        let (now, wall) = (Instant::now(), clock::now().as_microsecond());
        let entries: Vec<_> = self
            .wakes
            .iter()
            .filter_map(|((at, _), action)| {
                let held = self.here.get(action)?;
                Some(Entry::new(&held.lease, wall, at.saturating_duration_since(now)))
            })
            .collect();
        self.journal.rewrite(&entries);
    }

    /// When the next one wakes.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.wakes.first_key_value().map(|((at, _), _)| *at)
    }

    /// Ends those that have slept as long as they should.
    pub(super) fn wake(&mut self) {
        let now = Instant::now();
        let mut batch = Vec::new();
        while let Some(first) = self.wakes.first_entry().filter(|first| first.key().0 <= now) {
            let action = first.remove();
            let Some(held) = self.here.get_mut(&action) else { continue };
            held.state = State::Ending;
            // Who sleeps gives nothing back, which is an empty message.
            let output_prefix = held.output_prefix.clone();
            batch.push(Ending { lease: held.lease.clone(), output_prefix, outputs: Bytes::new() });
        }
        if !batch.is_empty() {
            let hands = self.hands.clone();
            self.tasks.spawn(async move {
                let each = futures::stream::iter(batch).map(|ending| hands.end(ending));
                each.buffer_unordered(AT_ONCE).for_each(|event| hands.tell(event)).await;
            });
        }
    }
}

fn key(id: &AttemptId) -> ActionKey {
    (id.run.clone(), id.action.clone())
}

impl Hands {
    async fn tell(&self, event: Option<Event>) {
        if let Some(event) = event {
            self.events.send(super::Event::Inline(event)).ok();
        }
    }

    /// Begins an attempt, and ends it if it has nothing to wait for. `None` if the worker stops first.
    async fn begin(&self, kind: Inline, attempt: LeasedAttempt) -> Option<Event> {
        // The semaphore is never closed.
        let room = self.room.acquire().await.ok()?;
        let work = self.until_answered(|| read_work(&self.parts, kind, &attempt)).await?;
        let LeasedAttempt { lease, output_prefix, .. } = attempt;
        let Work { sleep, outputs } = match work {
            Ok(work) => work,
            Err(error) => {
                return self.report_end(lease, AttemptOutcome::Failed(error, OutputRefs::default())).await;
            }
        };
        if sleep.is_zero() {
            return self.end(Ending { lease, output_prefix, outputs: outputs.encode_to_vec().into() }).await;
        }
        drop(room);
        let until = Instant::now() + sleep;
        match report::send(&*self.parts.control, &lease, Progress::Running, None, &self.stop).await {
            report::Sent::Taken => Some(Event::Asleep(Asleep { lease, until })),
            report::Sent::Refused => Some(Event::Gone(lease.id)),
            report::Sent::Stopped => None,
        }
    }

    /// Writes what an attempt gives back and reports its end. `None` if the worker stops first.
    async fn end(&self, Ending { lease, output_prefix, outputs }: Ending) -> Option<Event> {
        let uri = format!("{}/outputs.pb", output_prefix.trim_end_matches('/'));
        let put = || async { answered(self.parts.results.put(&uri, outputs.clone()).await) };
        let written = self.until_answered(put).await?;
        let outcome = match written {
            Ok(()) => AttemptOutcome::Succeeded(OutputRefs { output_uri: output_prefix, report_uri: String::new() }),
            Err(e) => {
                let message = format!("Its outputs cannot be written to {uri}: {e}.");
                let error = TaskError::new("OutputsNotWritten", message, ErrorKind::System, true);
                AttemptOutcome::Failed(error, OutputRefs::default())
            }
        };
        self.report_end(lease, outcome).await
    }

    async fn report_end(&self, lease: LeaseRef, outcome: AttemptOutcome) -> Option<Event> {
        match report::send(&*self.parts.control, &lease, Progress::Ended(outcome), None, &self.stop).await {
            report::Sent::Taken | report::Sent::Refused => Some(Event::Gone(lease.id)),
            report::Sent::Stopped => None,
        }
    }

    /// Asks the object store until it answers: without it nothing can be said. `None` if the worker stops first.
    async fn until_answered<T, F>(&self, ask: impl Fn() -> F) -> Option<T>
    where
        F: Future<Output = Result<T, Silence>>,
    {
        let mut pause = PAUSE.0;
        loop {
            let answer = tokio::select! {
                answer = ask() => answer,
                () = self.stop.cancelled() => return None,
            };
            match answer {
                Err(Silence(why)) => tracing::warn!("the object store does not answer, asking again: {why}"),
                Ok(answer) => return Some(answer),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.stop.cancelled() => return None,
            }
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

/// The object store did not answer, and why.
struct Silence(String);

fn answered<T>(result: Result<T, PlaneError>) -> Result<Result<T, PlaneError>, Silence> {
    match result {
        Err(PlaneError::Unavailable(why)) => Err(Silence(why)),
        answer => Ok(answer),
    }
}

/// What the attempt has to do, or why it cannot.
async fn read_work(parts: &Parts, kind: Inline, attempt: &LeasedAttempt) -> Result<Result<Work, TaskError>, Silence> {
    let unreadable = |what: &str, why: String| {
        let message = format!("{what} of this action cannot be read: {why}.");
        TaskError::new("InputsUnreadable", message, ErrorKind::System, true)
    };
    let spec = match TaskSpec::decode_from_slice(&attempt.task_spec) {
        Ok(spec) => spec,
        Err(e) => return Ok(Err(unreadable("The specification", e.to_string()))),
    };
    let uri = &attempt.input_uri;
    let inputs = match answered(parts.results.get(uri, MAX_INPUTS + 1).await)? {
        Ok(Some(bytes)) if bytes.len() > MAX_INPUTS => {
            let why = format!("{uri} is larger than the {} MiB allowed; pass large values as files", MAX_INPUTS >> 20);
            return Ok(Err(TaskError::new("InputsTooLarge", why, ErrorKind::User, false)));
        }
        Ok(Some(bytes)) => Inputs::decode_from_slice(&bytes).map_err(|e| format!("{uri} is damaged: {e}")),
        // A task without inputs may have none written.
        Ok(None) => Ok(Inputs::default()),
        Err(e) => Err(e.to_string()),
    };
    Ok(match inputs {
        Ok(inputs) => inline::work(kind, &spec.task_template, &inputs),
        Err(why) => Err(unreadable("The inputs", why)),
    })
}
