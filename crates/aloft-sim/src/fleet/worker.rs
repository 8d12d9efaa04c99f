//! Workers of a fake fleet: they keep the protocol of [`ControlPlane`] to the letter, over a network that loses answers, on
//! machines whose processes end at any moment and whose tasks sometimes outlive them.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use aloft_control::{Guest, Seat};
use aloft_core::{AttemptOutcome, ErrorKind, Progress, TaskError, WorkerId};
use aloft_plane::{ControlPlane as _, LeaseRef, LeasedAttempt, ReportError, WORKER_LOST};
use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{Fleet, LEASE, Replica, task};

/// How many attempts a worker runs at a time.
const ROOM: usize = 4;

/// How long one call for work waits.
const WAIT: Duration = Duration::from_secs(5);

/// A machine: what runs on it, whatever becomes of the worker's process.
#[derive(Default)]
struct Machine {
    /// By attempt: tokens are random, and nothing here may be.
    running: BTreeMap<String, Running>,
}

struct Running {
    lease: LeaseRef,
    task: JoinHandle<()>,
    /// How it ended, until that was taken.
    ended: Option<AttemptOutcome>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A worker with its machine.
pub(super) struct Worker {
    fleet: Arc<Fleet>,
    name: String,
    machine: Arc<Mutex<Machine>>,
    ends: mpsc::UnboundedSender<String>,
    ended: mpsc::UnboundedReceiver<String>,
}

/// Why a session is over.
#[derive(Debug)]
enum Over {
    /// Something broke; what runs goes on, and the worker connects again.
    Broken,
    /// Nobody was reached for the time of a lease: what runs belongs to others, and is stopped.
    Silent,
}

/// What a session hears.
enum Heard {
    Leased(Vec<LeasedAttempt>),
    Revoked(Vec<LeaseRef>),
    Over(Over),
    Reported(LeaseRef, Result<(), ReportError>, bool),
}

impl Worker {
    /// A worker that has done nothing yet.
    pub(super) fn new(fleet: Arc<Fleet>, number: u64) -> Self {
        let (ends, ended) = mpsc::unbounded_channel();
        Self { fleet, name: format!("w{number}"), machine: Arc::default(), ends, ended }
    }

    /// Works until `stop`. Its process ends whenever the weather says so, and is started again.
    pub(super) async fn work(mut self, stop: CancellationToken) {
        let mut process = 0;
        loop {
            process += 1;
            let fleet = Arc::clone(&self.fleet);
            let crash = fleet.crash_of_worker();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = crash => {}
                () = self.process(process) => {}
            }
            fleet.weather.reach("worker killed");
            let survive = fleet.weather.once_in(2);
            fleet.weather.note(|| {
                format!("{} is killed, {}", self.name, if survive { "not its tasks" } else { "with its tasks" })
            });
            if !survive {
                self.machine.lock().running.clear();
            }
            let pause = fleet.weather.up_to(if fleet.weather.once_in(3) { 40_000 } else { 3000 });
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn process(&mut self, process: u64) {
        let mut known = false;
        let mut heard = Instant::now();
        loop {
            let Some(replica) = self.fleet.any_replica() else {
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            };
            let guest = Guest {
                id: WorkerId(self.name.clone()),
                process,
                known,
                version: String::new(),
                host: self.name.clone(),
                attempts: String::new(),
                draining: false,
            };
            let seat = Arc::new(replica.control.seat(guest));
            let over = self.session(&replica, &seat, &mut known, &mut heard).await;
            if matches!(over, Over::Silent) {
                self.fleet.weather.reach("worker silent");
                self.fleet.weather.note(|| format!("{} was not heard, and stops what it runs", self.name));
                self.machine.lock().running.clear();
                heard = Instant::now();
            }
            let pause = self.fleet.weather.up_to(1000);
            tokio::time::sleep(pause).await;
        }
    }

    async fn session(
        &mut self,
        replica: &Arc<Replica>,
        seat: &Arc<Seat>,
        known: &mut bool,
        heard: &mut Instant,
    ) -> Over {
        let line = Line { fleet: Arc::clone(&self.fleet), replica: Arc::clone(replica), name: self.name.clone() };
        let asked = Instant::now();
        let held = match line.call(seat.reclaim()).await {
            Ok(held) => held,
            Err(_) if heard.elapsed() > LEASE => return Over::Silent,
            Err(_) => return Over::Broken,
        };
        *known = true;
        *heard = asked;
        let mut sessions = JoinSet::new();
        let (say, mut hears) = mpsc::unbounded_channel();
        let mut reports: Vec<(LeaseRef, AttemptOutcome)> = Vec::new();
        {
            let mut machine = self.machine.lock();
            machine.running.retain(|_, running| held.iter().any(|a| a.lease == running.lease));
            for attempt in &held {
                if !machine.running.contains_key(&attempt.lease.id.to_string()) {
                    let words = "its process is gone";
                    let error = TaskError::new(WORKER_LOST, words, ErrorKind::System, true);
                    reports.push((attempt.lease.clone(), AttemptOutcome::Lost(error)));
                }
            }
            reports.extend(machine.running.values().filter_map(|r| Some((r.lease.clone(), r.ended.clone()?))));
        }
        for (lease, outcome) in reports.drain(..) {
            report(&mut sessions, &line, seat, &say, lease, outcome);
        }
        keep_in_touch(&mut sessions, &line, seat, &say, *heard);
        watch_revocations(&mut sessions, &line, seat, &say);
        let mut asking = false;
        loop {
            // Parents only wait for what they started, and must leave it room.
            let taken = self.machine.lock().running.values().filter(|r| !r.lease.id.action.is_root()).count();
            let room = ROOM.saturating_sub(taken);
            if !asking && room > 0 {
                asking = true;
                let (line, seat, say) = (line.clone(), Arc::clone(seat), say.clone());
                sessions.spawn(async move {
                    let said = match line.call(seat.lease(room, WAIT)).await {
                        Ok(attempts) => Heard::Leased(attempts),
                        Err(_) => Heard::Over(Over::Broken),
                    };
                    let _ = say.send(said);
                });
            }
            let next = tokio::select! {
                biased;
                next = hears.recv() => next,
                Some(attempt) = self.ended.recv() => {
                    let ended = self.machine.lock().running.get(&attempt).and_then(|r| Some((r.lease.clone(), r.ended.clone()?)));
                    if let Some((lease, outcome)) = ended {
                        report(&mut sessions, &line, seat, &say, lease, outcome);
                    }
                    continue;
                }
            };
            match next {
                Some(Heard::Leased(attempts)) => {
                    asking = false;
                    for attempt in attempts {
                        self.start(attempt, &mut sessions, &line, seat, &say);
                    }
                }
                Some(Heard::Revoked(leases)) => {
                    let mut machine = self.machine.lock();
                    leases.iter().for_each(|lease| drop(machine.running.remove(&lease.id.to_string())));
                }
                Some(Heard::Reported(lease, taken, last)) => {
                    if taken.is_err() || last {
                        self.machine.lock().running.remove(&lease.id.to_string());
                    }
                }
                Some(Heard::Over(over)) => return over,
                None => return Over::Broken,
            }
        }
    }

    fn start(
        &self,
        attempt: LeasedAttempt,
        sessions: &mut JoinSet<()>,
        line: &Line,
        seat: &Arc<Seat>,
        say: &mpsc::UnboundedSender<Heard>,
    ) {
        let (lease, fleet) = (attempt.lease.clone(), Arc::clone(&self.fleet));
        let (machine, ends, key) = (Arc::clone(&self.machine), self.ends.clone(), lease.id.to_string());
        let name = key.clone();
        fleet.began(&self.name, &lease);
        let task = tokio::spawn(async move {
            let outcome = task::carry_out(&fleet, &attempt).await;
            fleet.finished(&attempt.lease, &outcome);
            if let Some(running) = machine.lock().running.get_mut(&name) {
                running.ended = Some(outcome);
            }
            let _ = ends.send(name);
        });
        self.machine.lock().running.insert(key, Running { lease: lease.clone(), task, ended: None });
        let (line, seat, say) = (line.clone(), Arc::clone(seat), say.clone());
        sessions.spawn(async move {
            let taken = line.reported(&seat, &lease, Progress::Running).await;
            let _ = say.send(Heard::Reported(lease, taken, false));
        });
    }
}

/// Reports an end until it is taken or refused.
fn report(
    sessions: &mut JoinSet<()>,
    line: &Line,
    seat: &Arc<Seat>,
    say: &mpsc::UnboundedSender<Heard>,
    lease: LeaseRef,
    outcome: AttemptOutcome,
) {
    let (line, seat, say) = (line.clone(), Arc::clone(seat), say.clone());
    sessions.spawn(async move {
        let taken = line.reported(&seat, &lease, Progress::Ended(outcome.clone())).await;
        if taken.is_ok() {
            line.fleet.acknowledged(&lease, &outcome);
        }
        let _ = say.send(Heard::Reported(lease, taken, true));
    });
}

/// Says that the worker lives, and finds out when nobody hears it.
fn keep_in_touch(
    sessions: &mut JoinSet<()>,
    line: &Line,
    seat: &Arc<Seat>,
    say: &mpsc::UnboundedSender<Heard>,
    mut heard: Instant,
) {
    let (line, seat, say) = (line.clone(), Arc::clone(seat), say.clone());
    sessions.spawn(async move {
        let over = loop {
            tokio::time::sleep(LEASE / 3).await;
            let said = Instant::now();
            let lives = Arc::clone(&seat);
            let beat =
                line.send(async move { lives.beat().await.map_err(|e| ReportError::Unavailable(e.to_string())) });
            match tokio::time::timeout(LEASE / 3, beat).await {
                Ok(Ok(true)) => heard = said,
                Ok(Ok(false)) => break Over::Broken,
                _ if heard.elapsed() > LEASE => break Over::Silent,
                _ => {}
            }
        };
        let _ = say.send(Heard::Over(over));
    });
}

fn watch_revocations(sessions: &mut JoinSet<()>, line: &Line, seat: &Arc<Seat>, say: &mpsc::UnboundedSender<Heard>) {
    let (line, seat, say) = (line.clone(), Arc::clone(seat), say.clone());
    sessions.spawn(async move {
        loop {
            match line.call(seat.revoked()).await {
                Ok(leases) => drop(say.send(Heard::Revoked(leases))),
                Err(_) => {
                    let _ = say.send(Heard::Over(Over::Broken));
                    return;
                }
            }
        }
    });
}

/// The line of a worker to a control plane.
#[derive(Clone)]
struct Line {
    fleet: Arc<Fleet>,
    replica: Arc<Replica>,
    name: String,
}

fn unreached() -> ReportError {
    ReportError::Unavailable("nobody answers".to_owned())
}

impl Line {
    /// A message there, or its answer back.
    async fn hop(&self) -> Result<(), ReportError> {
        self.fleet.weather.detail(|| format!("{}: a message", self.name));
        let pause = self.fleet.weather.network();
        tokio::time::sleep(pause).await;
        if self.fleet.is_cut(&self.name) {
            let pause = self.fleet.weather.up_to(2000);
            tokio::time::sleep(pause).await;
            return Err(unreached());
        }
        Ok(())
    }

    /// A call, whose answer may be lost.
    async fn call<T>(&self, what: impl Future<Output = Result<T, ReportError>>) -> Result<T, ReportError> {
        self.hop().await?;
        let answer = tokio::select! {
            biased;
            () = self.replica.life.cancelled() => return Err(unreached()),
            answer = what => answer?,
        };
        self.hop().await?;
        if self.fleet.weather.wrong_once_in(self.fleet.weather.climate.line) {
            self.fleet.weather.reach("answer to a worker lost");
            return Err(unreached());
        }
        Ok(answer)
    }

    /// As [`Self::call`], for a message that goes its way whatever becomes of who sent it.
    async fn send<T: Send + 'static>(
        &self,
        what: impl Future<Output = Result<T, ReportError>> + Send + 'static,
    ) -> Result<T, ReportError> {
        let line = self.clone();
        let sent = tokio::spawn(async move { line.call(what).await });
        sent.await.unwrap_or_else(|_| Err(unreached()))
    }

    /// Reports until that is taken or refused. Now and then a copy of it comes later.
    async fn reported(&self, seat: &Arc<Seat>, lease: &LeaseRef, progress: Progress) -> Result<(), ReportError> {
        let message = || {
            let (seat, lease, progress) = (Arc::clone(seat), lease.clone(), progress.clone());
            async move { seat.report(&lease, progress).await }
        };
        loop {
            if self.fleet.weather.wrong_once_in(10) {
                self.fleet.weather.reach("message came twice");
                let (line, copy) = (self.clone(), message());
                let pause = self.fleet.weather.up_to(30_000);
                tokio::spawn(async move {
                    tokio::time::sleep(pause).await;
                    line.call(copy).await
                });
            }
            match self.send(message()).await {
                Err(ReportError::Unavailable(_)) => {
                    let pause = self.fleet.weather.up_to(500);
                    tokio::time::sleep(pause).await;
                }
                answer => return answer,
            }
        }
    }
}
