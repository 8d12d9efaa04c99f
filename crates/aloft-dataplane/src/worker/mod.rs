//! The worker: leases attempts, admits, starts, watches and reports them, and finds them again after a restart.
//!
//! One loop owns what is here and decides ([`crate::admission`]); each attempt has a task of its own that carries the
//! decision out ([`run`]) and one that reports, so that no attempt waits for another.

mod inline;
mod journal;
mod report;
mod run;
mod shared;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use aloft_core::{AttemptOutcome, OutputRefs, Phase, Progress, TaskError};
use aloft_flyteidl2::flyteidl2::task::TaskSpec;
use aloft_plane::{AttemptId, ControlPlane, LeaseRef, LeasedAttempt, ReportError};
use buffa::Message;
use bytes::Bytes;
use futures::TryStreamExt as _;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    report::Reporter,
    run::{Attempt, Begin},
};
use crate::{
    admission::{self, Item, State},
    inline::Inline,
    needs::{Machine, Needs, UNSATISFIABLE, needs},
    process::{ProcessExecutor, Recovery, recover},
    seam::{Environments, NativeTask, ResultStore},
    target::target,
};

/// How long one call waits for work. Long, since it costs nothing; finite, so that a dead connection is noticed.
const LEASE_WAIT: Duration = Duration::from_secs(20);

/// Most attempts that one call leases, to bound the size of its answer: a task specification is some 10 KiB.
const LEASE_BATCH: usize = 128;

/// First and longest pause after the control plane could not be reached.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// An attempt that waits longer than this is reported as waiting. Most wait much shorter, and every report is a commit.
const SAY_WAITING: Duration = Duration::from_millis(250);

/// How often waiting attempts are looked at for that.
const TICK: Duration = Duration::from_millis(100);

/// Without a start or an end for this long, the worker does not rely on what it has ([`admission::lease_room`]).
const STALLED: Duration = Duration::from_secs(1);

/// What a worker is made of.
pub struct Parts {
    /// Its line to who has the work.
    pub control: Arc<dyn ControlPlane>,
    /// Starts processes.
    pub executor: Arc<ProcessExecutor>,
    /// Finds Python environments.
    pub environments: Arc<dyn Environments>,
    /// Reads what attempts left.
    pub results: Arc<dyn ResultStore>,
    /// Tasks that are not processes, by their type.
    pub native: HashMap<String, Arc<dyn NativeTask>>,
    /// What attempts may use together.
    pub machine: Machine,
    /// How many attempts may wait here. 512 keeps the machine busy for a while without the control plane.
    pub max_waiting: usize,
    /// How long a process may go on after it has written how it ended.
    pub linger: Duration,
}

/// What a worker does at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether it has found again what it ran before, and takes new work.
    pub ready: bool,
    /// Attempts that run.
    pub running: usize,
    /// Attempts that wait for room.
    pub waiting: usize,
    /// Attempts that are done inline, such as those that sleep.
    pub inline: usize,
}

/// A worker at work.
pub struct Worker {
    stop: CancellationToken,
    tasks: TaskTracker,
    status: watch::Receiver<Status>,
}

impl Worker {
    /// Starts a worker. It first finds again what it ran before.
    pub fn start(parts: Parts) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (status_send, status) = watch::channel(Status::default());
        let (room_send, room) = watch::channel(0);
        // Bounded by what sends into it: two loops that wait for each other's answer, and two events per attempt.
        let (events_send, events) = mpsc::unbounded_channel();
        let parts = Arc::new(parts);
        let state = Loop {
            parts: parts.clone(),
            here: HashMap::new(),
            inline: inline::Host::new(parts.clone(), events_send.clone(), stop.clone(), tasks.clone()),
            next_seq: 0,
            asking: None,
            moved: Instant::now(),
            events: events_send.clone(),
            room: room_send,
            status: status_send,
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        tasks.spawn(lease_loop(parts.clone(), events_send.clone(), room, stop.clone()));
        tasks.spawn(revoked_loop(parts, events_send, stop.clone()));
        tasks.spawn(state.run(events));
        tasks.close();
        Self { stop, tasks, status }
    }

    /// What it does, now and whenever that changes.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Stops taking work and reporting. What runs is left running under its shims, to be found again by the next worker
    /// of this name.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

enum Event {
    /// It is about to ask what it holds.
    Reclaiming,
    /// A part of what this worker holds by the control plane's record, after a start or a reconnect. Dropping the sender says
    /// that it is counted.
    Held(Vec<LeasedAttempt>, oneshot::Sender<()>),
    /// That was all.
    Reclaimed,
    /// New work. Dropping the sender says that it is counted.
    Leased(Vec<LeasedAttempt>, oneshot::Sender<()>),
    /// Attempts that ended by another hand.
    Revoked(Vec<LeaseRef>),
    /// None of the attempt's processes lives any more.
    Dead(AttemptId),
    /// Its end is reported, or nobody wants to know.
    Gone(AttemptId),
    /// Something about an attempt that is done inline.
    Inline(inline::Event),
}

/// An attempt that is here.
struct Entry {
    item: Item,
    /// Lets it start; `None` once it may.
    go: Option<oneshot::Sender<()>>,
    over: CancellationToken,
    reporter: Reporter,
    since: Instant,
    said_waiting: bool,
    dead: bool,
}

/// What is heard while it is asked what this worker holds.
#[derive(Default)]
struct Asking {
    /// The attempts whose end was reported meanwhile: the answer may still name them.
    ended: HashSet<AttemptId>,
    /// How many it has named.
    named: usize,
    /// Those of them that have a process. They begin when all are known.
    others: Vec<LeasedAttempt>,
}

/// The state of the worker.
struct Loop {
    parts: Arc<Parts>,
    /// The attempts that have a process, or will.
    here: HashMap<AttemptId, Entry>,
    /// Those that need none.
    inline: inline::Host,
    next_seq: u64,
    /// What was heard since it was asked what this worker holds, until that is answered.
    asking: Option<Asking>,
    /// When something last started or ended.
    moved: Instant,
    events: mpsc::UnboundedSender<Event>,
    room: watch::Sender<usize>,
    status: watch::Sender<Status>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Loop {
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready = false;
        let mut batch = Vec::new();
        loop {
            tokio::select! {
                n = events.recv_many(&mut batch, 256) => if n == 0 { return },
                _ = tick.tick() => self.say_who_waits(),
                () = reached(self.inline.next_wake()) => self.inline.wake(),
                () = self.stop.cancelled() => return,
            }
            let (mut counted, mut inline) = (Vec::new(), Vec::new());
            for event in batch.drain(..) {
                match event {
                    Event::Leased(attempts, done) => {
                        let (inline, others) = self.without_process(attempts);
                        self.inline.arrive(inline);
                        others.into_iter().for_each(|attempt| self.arrive(attempt));
                        counted.push(done);
                    }
                    Event::Reclaiming => {
                        self.asking = Some(Asking::default());
                        self.inline.ask();
                    }
                    Event::Held(attempts, done) => {
                        self.hold(attempts);
                        counted.push(done);
                    }
                    Event::Reclaimed => {
                        self.reclaim();
                        ready = true;
                    }
                    Event::Revoked(leases) => leases.iter().for_each(|lease| self.revoke(&lease.id)),
                    Event::Dead(id) => self.died(&id),
                    Event::Gone(id) => {
                        self.here.remove(&id);
                        self.note_end(id);
                    }
                    Event::Inline(event) => {
                        if let inline::Event::Gone(id) = &event {
                            self.note_end(id.clone());
                        }
                        inline.push(event);
                    }
                }
            }
            self.inline.happened(inline);
            self.admit();
            self.publish(ready);
            drop(counted);
        }
    }

    /// Tells those of `attempts` that are done inline from those that need a process.
    fn without_process(&self, attempts: Vec<LeasedAttempt>) -> (Vec<(Inline, LeasedAttempt)>, Vec<LeasedAttempt>) {
        let (mut inline, mut others) = (Vec::new(), Vec::new());
        // Those that come together are mostly of one task.
        let mut known: Option<(Bytes, Option<Inline>)> = None;
        for attempt in attempts {
            let kind = match &known {
                Some((spec, kind)) if *spec == attempt.task_spec => *kind,
                _ => {
                    // A specification that cannot be read is refused when it is started.
                    let spec = TaskSpec::decode_from_slice(&attempt.task_spec).unwrap_or_default();
                    let kind = Inline::of(&spec.task_template.r#type);
                    known = Some((attempt.task_spec.clone(), kind));
                    kind
                }
            };
            match kind {
                Some(kind) => inline.push((kind, attempt)),
                None => others.push(attempt),
            }
        }
        (inline, others)
    }

    fn note_end(&mut self, id: AttemptId) {
        if let Some(asking) = &mut self.asking {
            asking.ended.insert(id);
        }
    }

    fn died(&mut self, id: &AttemptId) {
        self.moved = Instant::now();
        if let Some(entry) = self.here.get_mut(id) {
            entry.dead = true;
        }
        self.release(id);
    }

    /// New work, to be started when there is room.
    fn arrive(&mut self, attempt: LeasedAttempt) {
        if self.here.contains_key(&attempt.lease.id) {
            return;
        }
        // Whatever attempt of this action is here is over, even if we have not been told yet.
        let earlier: Vec<AttemptId> = self.attempts_of(&attempt.lease.id).map(|(id, _)| id.clone()).collect();
        for id in earlier {
            self.revoke(&id);
        }
        match self.needs(&attempt) {
            Ok(needs) => {
                let (go, admitted) = oneshot::channel();
                self.insert(attempt, needs, State::Waiting, Begin::Admitted(admitted), Some(go));
            }
            // Whoever says how long to wait wants to hear that it was in vain, and may have something else to try then.
            Err(error) if error.code == UNSATISFIABLE && waits_for_needs(&attempt) => {
                self.insert(attempt, nothing(), State::Running, Begin::Waits(error.message), None);
            }
            Err(error) => {
                let outcome = AttemptOutcome::Failed(error, OutputRefs::default());
                self.insert(attempt, nothing(), State::Running, Begin::Refused(outcome), None);
            }
        }
    }

    fn needs(&self, attempt: &LeasedAttempt) -> Result<Needs, TaskError> {
        // A specification that cannot be read is refused when it is started.
        let spec = TaskSpec::decode_from_slice(&attempt.task_spec).unwrap_or_default();
        match target(&spec.task_template) {
            Ok(target) => {
                let extended = &spec.task_template.extended_resources;
                needs(&target.container, extended, &attempt.resource_defaults, &self.parts.machine)
            }
            Err(_) => Ok(nothing()),
        }
    }

    fn insert(
        &mut self,
        attempt: LeasedAttempt,
        needs: Needs,
        state: State,
        begin: Begin,
        go: Option<oneshot::Sender<()>>,
    ) {
        let id = attempt.lease.id.clone();
        let run = Arc::new(id.run.clone());
        let of = |action| (Arc::clone(&run), action);
        let held = state == State::Waiting && self.attempts_of(&id).any(|(_, entry)| !entry.dead);
        let item = Item {
            action: of(id.action.clone()),
            parent: attempt.parent.clone().map(of),
            depth: attempt.depth,
            seq: self.next_seq,
            memory: needs.memory,
            cpu: needs.cpu,
            state: if held { State::Held } else { state },
            passed: 0,
        };
        self.next_seq += 1;
        let over = CancellationToken::new();
        let reporter =
            Reporter::start(self.parts.control.clone(), attempt.lease.clone(), over.clone(), self.stop.clone());
        let attempt = Attempt {
            parts: self.parts.clone(),
            leased: Arc::new(attempt),
            notes: needs.notes,
            reporter: reporter.clone(),
            over: over.clone(),
            stop: self.stop.clone(),
        };
        let entry = Entry { item, go, over, reporter, since: Instant::now(), said_waiting: false, dead: false };
        let (events, key) = (self.events.clone(), id.clone());
        self.tasks.spawn(async move {
            let end = attempt.run(begin).await;
            // Room is given back at once; the end may take a while to report.
            events.send(Event::Dead(key.clone())).ok();
            attempt.conclude(end).await;
            events.send(Event::Gone(key)).ok();
        });
        self.here.insert(id, entry);
    }

    /// The attempts of the action of `id` that are here, except itself.
    fn attempts_of(&self, id: &AttemptId) -> impl Iterator<Item = (&AttemptId, &Entry)> {
        self.here.iter().filter(move |(other, _)| other.action == id.action && other.run == id.run && *other != id)
    }

    fn revoke(&mut self, id: &AttemptId) {
        self.inline.revoke(id);
        if let Some(entry) = self.here.get(id) {
            entry.over.cancel();
        }
    }

    /// Lets the attempts that waited for the death of `id` start.
    fn release(&mut self, id: &AttemptId) {
        let free: Vec<AttemptId> = self
            .attempts_of(id)
            .filter(|(_, entry)| entry.item.state == State::Held)
            .filter(|(other, _)| {
                self.attempts_of(other).all(|(_, before)| before.dead || before.item.state == State::Held)
            })
            .map(|(other, _)| other.clone())
            .collect();
        for id in free {
            if let Some(entry) = self.here.get_mut(&id) {
                entry.item.state = State::Waiting;
            }
        }
    }

    /// A part of what this worker holds by the control plane's record.
    fn hold(&mut self, mut held: Vec<LeasedAttempt>) {
        let Some(asking) = &mut self.asking else { return };
        held.retain(|attempt| !asking.ended.contains(&attempt.lease.id));
        asking.named += held.len();
        let (inline, others) = self.without_process(held);
        if let Some(asking) = &mut self.asking {
            asking.others.extend(others);
        }
        self.inline.resume(inline);
    }

    /// Compares what this worker has with all that it holds by the control plane's record.
    fn reclaim(&mut self) {
        let Asking { ended, named, mut others } = self.asking.take().unwrap_or_default();
        others.retain(|attempt| !ended.contains(&attempt.lease.id));
        let listed: HashSet<AttemptId> = others.iter().map(|attempt| attempt.lease.id.clone()).collect();
        for (id, entry) in &self.here {
            if !listed.contains(id) {
                entry.over.cancel();
            }
        }
        self.inline.resumed();
        self.stop_unlisted(&listed);
        for attempt in others {
            if !self.here.contains_key(&attempt.lease.id) {
                self.recover(attempt);
            }
        }
        if named > 0 {
            tracing::info!("what this worker held is found again: {named} attempts");
        }
    }

    /// Stops what an Aloft before this one started and the control plane does not count as ours any more.
    fn stop_unlisted(&mut self, listed: &HashSet<AttemptId>) {
        let live = self.parts.executor.dirs().live().unwrap_or_else(|e| {
            tracing::error!("the attempts of an earlier start cannot be listed, some may still run: {e}");
            Vec::new()
        });
        for launch in live {
            let id = launch.id();
            if listed.contains(&id) || self.here.contains_key(&id) {
                continue;
            }
            tracing::info!(attempt = %id, "stopping an attempt that ended while Aloft was down");
            let attempt = orphan(LeaseRef { id: id.clone(), token: launch.token });
            self.insert(attempt, nothing(), State::Running, Begin::Recovered(Recovery::Adopt), None);
            self.revoke(&id);
        }
    }

    fn recover(&mut self, attempt: LeasedAttempt) {
        let needs = match self.needs(&attempt) {
            Ok(needs) => needs,
            Err(_) => return self.arrive(attempt),
        };
        let spec = TaskSpec::decode_from_slice(&attempt.task_spec).unwrap_or_default();
        let is_native = self.parts.native.contains_key(&spec.task_template.r#type);
        let state = self.parts.executor.dirs().dir(&attempt.lease.id).state().unwrap_or_default();
        let recovery = match recover(&state, attempt.phase, attempt.lease.token) {
            _ if is_native => Recovery::Launch,
            recovery => recovery,
        };
        tracing::info!(attempt = %attempt.lease.id, phase = ?attempt.phase, "found again: {recovery:?}");
        match recovery {
            Recovery::Launch => self.arrive(attempt),
            Recovery::Adopt | Recovery::Stop => {
                self.insert(attempt, needs, State::Running, Begin::Recovered(recovery), None);
            }
            Recovery::Judge => self.insert(attempt, nothing(), State::Running, Begin::Recovered(recovery), None),
        }
    }

    fn admit(&mut self) {
        let (ids, items): (Vec<AttemptId>, Vec<&Item>) =
            self.here.iter().filter(|(_, e)| !e.dead).map(|(id, e)| (id.clone(), &e.item)).unzip();
        if !items.iter().any(|item| item.state == State::Waiting) {
            return;
        }
        let decision = admission::admit(&self.parts.machine, &items, self.inline.below());
        for i in decision.passed {
            if let Some(entry) = self.here.get_mut(&ids[i]) {
                entry.item.passed += 1;
            }
        }
        for i in decision.start {
            if let Some(entry) = self.here.get_mut(&ids[i]) {
                entry.item.state = State::Running;
                entry.go.take().map(|go| go.send(()));
                self.moved = Instant::now();
            }
        }
    }

    fn say_who_waits(&mut self) {
        let items: Vec<&Item> = self.here.values().filter(|e| !e.dead).map(|e| &e.item).collect();
        let mut said = Vec::new();
        for (id, entry) in &self.here {
            if entry.go.is_some() && !entry.said_waiting && !entry.dead && entry.since.elapsed() >= SAY_WAITING {
                let reason = admission::reason(&self.parts.machine, &items, self.inline.below(), &entry.item);
                entry.reporter.progress(Progress::Waiting { reason });
                said.push(id.clone());
            }
        }
        for id in said {
            if let Some(entry) = self.here.get_mut(&id) {
                entry.said_waiting = true;
            }
        }
    }

    fn publish(&self, ready: bool) {
        let waiting = self.here.values().filter(|e| !e.dead && e.go.is_some()).count();
        let running = self.here.values().filter(|e| !e.dead && e.go.is_none()).count();
        let status = Status { ready, running, waiting, inline: self.inline.len() };
        self.status.send_if_modified(|old| std::mem::replace(old, status) != status);
        let room = admission::lease_room(waiting, self.parts.max_waiting, self.moved.elapsed() >= STALLED);
        self.room.send_if_modified(|old| std::mem::replace(old, room) != room);
    }
}

/// Waits until `at`; for ever if there is no such time.
async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Whether the task of `attempt` says how long it may wait for what it needs.
fn waits_for_needs(attempt: &LeasedAttempt) -> bool {
    let spec = TaskSpec::decode_from_slice(&attempt.task_spec).unwrap_or_default();
    spec.task_template.metadata.timeouts.queued_timeout.is_set()
}

/// What counts nothing: it has no process, or is about to have none.
fn nothing() -> Needs {
    Needs { memory: 0, cpu: 0, notes: Vec::new() }
}

/// An attempt of which only its directory is known. It is only ever stopped.
fn orphan(lease: LeaseRef) -> LeasedAttempt {
    LeasedAttempt {
        lease,
        phase: Phase::Running,
        parent: None,
        depth: 0,
        task_spec: Bytes::new(),
        input_uri: String::new(),
        output_prefix: String::new(),
        run_base: String::new(),
        raw_data_prefix: String::new(),
        previous_prefix: String::new(),
        default_envs: Vec::new(),
        envs: Vec::new(),
        resource_defaults: Default::default(),
        run_start_time: aloft_core::Time::default(),
    }
}

/// Leases work while there is room. After a start and after every failure it first asks what this worker holds, since an
/// answer that did not arrive may have leased something. What was leased is counted before more is asked for.
async fn lease_loop(
    parts: Arc<Parts>,
    events: mpsc::UnboundedSender<Event>,
    mut room: watch::Receiver<usize>,
    stop: CancellationToken,
) {
    let mut pause = PAUSE.0;
    let mut in_touch = false;
    loop {
        let call = async {
            if !in_touch {
                events.send(Event::Reclaiming).ok();
                let mut held = parts.control.reclaim_in_parts();
                while let Some(part) = held.try_next().await? {
                    let (done, counted) = oneshot::channel();
                    events.send(Event::Held(part, done)).ok();
                    counted.await.ok();
                }
                events.send(Event::Reclaimed).ok();
                return Ok(());
            }
            // The sender lives as long as the loop, which is stopped together with this one.
            let max = room.wait_for(|room| *room > 0).await.map_or(0, |room| *room);
            let leased = parts.control.lease(max.min(LEASE_BATCH), LEASE_WAIT).await?;
            let (done, counted) = oneshot::channel();
            events.send(Event::Leased(leased, done)).ok();
            counted.await.ok();
            Ok(())
        };
        let answer = tokio::select! {
            answer = call => answer,
            () = stop.cancelled() => return,
        };
        match answer {
            Ok(()) => {
                in_touch = true;
                pause = PAUSE.0;
            }
            Err(e) => {
                in_touch = false;
                if matches!(e, ReportError::Displaced(_)) {
                    // Whatever it had begun to name.
                    events.send(Event::Reclaiming).ok();
                    events.send(Event::Reclaimed).ok();
                }
                wait_out(&e, &mut pause, &stop).await;
            }
        }
    }
}

/// Hears which attempts ended by another hand.
async fn revoked_loop(parts: Arc<Parts>, events: mpsc::UnboundedSender<Event>, stop: CancellationToken) {
    let mut pause = PAUSE.0;
    loop {
        let answer = tokio::select! {
            answer = parts.control.revoked() => answer,
            () = stop.cancelled() => return,
        };
        match answer {
            Ok(leases) => {
                pause = PAUSE.0;
                events.send(Event::Revoked(leases)).ok();
            }
            Err(e) => wait_out(&e, &mut pause, &stop).await,
        }
    }
}

async fn wait_out(error: &ReportError, pause: &mut Duration, stop: &CancellationToken) {
    tracing::warn!("asking the control plane for work failed, trying again: {error}");
    // Workers that lost the same server do not come back at the same moment.
    let length = pause.mul_f64(rand::random_range(0.5..1.0));
    tokio::select! {
        () = tokio::time::sleep(length) => {}
        () = stop.cancelled() => {}
    }
    *pause = (*pause * 2).min(PAUSE.1);
}
