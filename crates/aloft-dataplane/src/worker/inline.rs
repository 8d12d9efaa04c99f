//! The inline tasks that are here ([`crate::inline`]): thousands at a time, since one that sleeps is an entry in a map.
//!
//! No thread, no process, no file and no place in [`crate::admission`] is held for one. Its work is read and reported a
//! batch at a time, so that what begins or ends together shares the control plane's commits. When it wakes is written into
//! a [`Journal`], from which a worker after this one goes on sleeping.
//!
//! A hundred thousand may sleep here for hours, so what is kept of one is a few hundred bytes: what it has in common with
//! others is theirs too ([`Shared`]), and what can be told from the rest is not kept.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use aloft_core::{ActionName, AttemptOutcome, ErrorKind, LeaseToken, OutputRefs, Progress, RunKey, TaskError};
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
    shared::Shared,
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
    /// Those that sleep, by when they wake.
    wakes: BTreeSet<(Instant, ActionKey)>,
    runs: Shared<RunKey>,
    bases: Shared<str>,
    /// Number of the last time that it was asked what is held.
    asked: u32,
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

/// What is kept of an attempt, beside its action.
struct Held {
    attempt: u32,
    token: LeaseToken,
    /// The action that started it.
    parent: Option<ActionName>,
    output: Output,
    state: State,
    /// When it was last named as held.
    named: u32,
}

impl Held {
    fn lease(&self, (run, action): &ActionKey) -> LeaseRef {
        let id = AttemptId { run: RunKey::clone(run), action: action.clone(), attempt: self.attempt };
        LeaseRef { id, token: self.token }
    }

    fn is(&self, lease: &LeaseRef) -> bool {
        self.attempt == lease.id.attempt && self.token == lease.token
    }
}

/// The prefix that an attempt's outputs go below.
#[derive(Clone)]
enum Output {
    /// The usual one: `{base}/{action}/{attempt}`.
    Below(Arc<str>),
    /// Another.
    At(Arc<str>),
}

impl Output {
    fn of(prefix: &str, id: &AttemptId, bases: &mut Shared<str>) -> Self {
        let usual = format!("/{}/{}", id.action, id.attempt);
        match prefix.strip_suffix(&usual) {
            Some(base) => Self::Below(bases.of(base, || Arc::from(base))),
            None => Self::At(Arc::from(prefix)),
        }
    }

    fn prefix(&self, id: &AttemptId) -> String {
        match self {
            Self::Below(base) => format!("{base}/{}/{}", id.action, id.attempt),
            Self::At(prefix) => prefix.as_ref().to_owned(),
        }
    }
}

#[derive(Clone, Copy)]
enum State {
    /// Its work is being read.
    Beginning,
    /// It wakes then.
    Asleep(Instant),
    /// Its end is being reported.
    Ending,
}

/// An attempt that has slept as long as it should.
struct Woken {
    action: ActionKey,
    attempt: u32,
    token: LeaseToken,
    output: Output,
}

/// An attempt that is over, and what is to be done about it.
struct Ending {
    lease: LeaseRef,
    output_prefix: String,
    outputs: Bytes,
}

impl From<Woken> for Ending {
    fn from(Woken { action: (run, action), attempt, token, output }: Woken) -> Self {
        let id = AttemptId { run: RunKey::clone(&run), action, attempt };
        let output_prefix = output.prefix(&id);
        // Who sleeps gives nothing back, which is an empty message.
        Self { lease: LeaseRef { id, token }, output_prefix, outputs: Bytes::new() }
    }
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
            wakes: BTreeSet::new(),
            runs: Shared::new(),
            bases: Shared::new(),
            asked: 0,
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
    pub(super) fn holds(&mut self, id: &AttemptId) -> bool {
        let action = self.key(id);
        self.here.get(&action).is_some_and(|held| held.attempt == id.attempt)
    }

    /// The name of an action here.
    fn key(&mut self, id: &AttemptId) -> ActionKey {
        (self.runs.of(&id.run, || Arc::new(id.run.clone())), id.action.clone())
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

    /// Before it is told what it holds, in parts: nothing is named yet.
    pub(super) fn ask(&mut self) {
        self.asked = self.asked.wrapping_add(1);
    }

    /// A part of what it holds. Goes on with what a worker before this one had begun, by its own record; begins what is not
    /// in it and not here.
    pub(super) fn resume(&mut self, attempts: Vec<(Inline, LeasedAttempt)>) {
        let mut fresh = Vec::new();
        let (now, wall, asked) = (Instant::now(), clock::now().as_microsecond(), self.asked);
        for (kind, attempt) in attempts {
            let id = &attempt.lease.id;
            let action = self.key(id);
            if let Some(held) = self.here.get_mut(&action).filter(|held| held.attempt == id.attempt) {
                held.named = asked;
                continue;
            }
            match self.journal.recall(attempt.lease.token) {
                Some(sleep) => {
                    if self.insert(&attempt) {
                        self.keep(&Asleep { lease: attempt.lease, until: now + sleep.remaining(wall) });
                    }
                }
                None => fresh.push((kind, attempt)),
            }
        }
        self.arrive(fresh);
    }

    /// It was told all that it holds: stops what was not named.
    pub(super) fn resumed(&mut self) {
        let asked = self.asked;
        let over: Vec<ActionKey> =
            self.here.iter().filter(|(_, held)| held.named != asked).map(|(action, _)| action.clone()).collect();
        over.iter().for_each(|action| self.remove(action));
        self.journal.forget();
        self.write_journal();
    }

    /// Whether `attempt` is new here. It takes the place of another attempt of its action, which is over.
    fn insert(&mut self, attempt: &LeasedAttempt) -> bool {
        let LeaseRef { id, token } = &attempt.lease;
        if self.holds(id) {
            return false;
        }
        let action = self.key(id);
        self.remove(&action);
        if let Some(parent) = &attempt.parent {
            *self.below.entry((Arc::clone(&action.0), parent.clone())).or_default() += 1;
        }
        let held = Held {
            attempt: id.attempt,
            token: *token,
            parent: attempt.parent.clone(),
            output: Output::of(&attempt.output_prefix, id, &mut self.bases),
            state: State::Beginning,
            named: self.asked,
        };
        self.here.insert(action, held);
        true
    }

    /// Stops an attempt: nothing of it is left when this returns.
    pub(super) fn revoke(&mut self, id: &AttemptId) {
        if self.holds(id) {
            let action = self.key(id);
            self.remove(&action);
        }
    }

    fn remove(&mut self, action: &ActionKey) {
        let Some(held) = self.here.remove(action) else { return };
        if let State::Asleep(until) = held.state {
            self.wakes.remove(&(until, action.clone()));
        }
        let parent = held.parent.map(|parent| (Arc::clone(&action.0), parent));
        if let Some(parent) = parent
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
                    if self.keep(&asleep) {
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
    fn keep(&mut self, Asleep { lease, until }: &Asleep) -> bool {
        let action = self.key(&lease.id);
        let Some(held) = self.here.get_mut(&action).filter(|held| held.is(lease)) else { return false };
        held.state = State::Asleep(*until);
        self.wakes.insert((*until, action));
        true
    }

    /// Leaves in the journal only those that sleep.
    fn write_journal(&mut self) {
        let (now, wall) = (Instant::now(), clock::now().as_microsecond());
        let entries = self.wakes.iter().filter_map(|(at, action)| {
            let held = self.here.get(action)?;
            Some(Entry::new(&held.lease(action), wall, at.saturating_duration_since(now)))
        });
        self.journal.rewrite(entries);
    }

    /// When the next one wakes.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// Ends those that have slept as long as they should.
    pub(super) fn wake(&mut self) {
        let now = Instant::now();
        let mut batch = Vec::new();
        while self.next_wake().is_some_and(|at| at <= now) {
            let Some((_, action)) = self.wakes.pop_first() else { break };
            let Some(held) = self.here.get_mut(&action) else { continue };
            held.state = State::Ending;
            batch.push(Woken { action, attempt: held.attempt, token: held.token, output: held.output.clone() });
        }
        if !batch.is_empty() {
            let hands = self.hands.clone();
            self.tasks.spawn(async move {
                let each = futures::stream::iter(batch).map(|woken| hands.end(Ending::from(woken)));
                each.buffer_unordered(AT_ONCE).for_each(|event| hands.tell(event)).await;
            });
        }
    }
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

#[cfg(test)]
mod tests {
    use aloft_core::Scope;

    use super::*;

    #[test]
    fn prefixes_are_told_again_and_usual_ones_share_their_base() {
        let run = RunKey::new(Scope::new("o", "p", "d").unwrap(), "r").unwrap();
        let id =
            |action: &str, attempt| AttemptId { run: run.clone(), action: ActionName::new(action).unwrap(), attempt };
        let mut bases = Shared::new();
        let mut base = |prefix: &str, id: &AttemptId| {
            let output = Output::of(prefix, id, &mut bases);
            assert_eq!(output.prefix(id), prefix);
            match output {
                Output::Below(base) => Some(base),
                Output::At(_) => None,
            }
        };
        let (a, b) = (id("a", 1), id("b", 12));
        let shared = base("s3://b/r/a/1", &a).unwrap();
        assert!(Arc::ptr_eq(&shared, &base("s3://b/r/b/12", &b).unwrap()));
        for other in ["s3://b/r/a/1/", "s3://b/r/a/2", "s3://b/r/xa/1", ""] {
            assert!(base(other, &a).is_none(), "{other}");
        }
    }

    #[test]
    fn what_is_kept_of_one_attempt_stays_small() {
        assert!(size_of::<(ActionKey, Held)>() <= 144, "{}", size_of::<(ActionKey, Held)>());
    }
}
