//! A whole fleet in one process, by one seed: control planes that share a database, workers with machines, and people, while
//! processes are killed, lines are cut, disks are slow, clocks step, and answers are lost or come twice.
//!
//! The control planes are the real ones, with their dispatcher, reconcilers and seats of workers; the database is the real
//! SQLite engine behind a way that fails ([`store`]). Time is tokio's, and passes only when nobody has anything to do. So a
//! play depends on its seed alone, and the same seed plays the same again.

mod check;
mod store;
mod task;
mod weather;
mod worker;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use aloft_control::{Control, Settings};
use aloft_core::{
    ActionName, AttemptOutcome, Command, EndedBy, LeaseToken, QueueLimits, QueueSpec, QueueState, RunInfo, RunKey,
    Scope, Subject, Time,
};
use aloft_plane::LeaseRef;
use aloft_store::{Queue, Store as _, Submission, Which};
use aloft_store_sqlite::SqliteStore;
use clap::ValueEnum as _;
use parking_lot::Mutex;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

pub use self::weather::{Defect, Detail, Reached};
use self::{
    store::{Database, Reach, at_once},
    task::NARROW,
    weather::Weather,
    worker::Worker,
};
use crate::plane::MemoryPlane;

/// How long a worker may not be heard of.
const LEASE: Duration = Duration::from_secs(10);

/// Most lines of what happened that a failure shows, unless everything was asked for.
const SHOWN: usize = 120;

/// How long after everything is well again every run must have ended.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A control plane that runs.
struct Replica {
    number: usize,
    control: Control,
    reach: Arc<Reach>,
    /// Ends with its process.
    life: CancellationToken,
    stopping: CancellationToken,
    /// By how much its clock is wrong, in microseconds.
    skew: Arc<AtomicI64>,
}

/// Something that was acknowledged.
#[derive(Clone, Debug, PartialEq)]
enum Acknowledged {
    Created(RunKey),
    Enqueued(RunKey, ActionName),
    Aborted(RunKey),
    Ended(LeaseRef, AttemptOutcome),
}

/// The fleet.
struct Fleet {
    seed: u64,
    weather: Arc<Weather>,
    database: Arc<Database>,
    plane: Arc<MemoryPlane>,
    replicas: Mutex<BTreeMap<usize, Arc<Replica>>>,
    /// Until when the line of each worker is cut.
    cut: Mutex<BTreeMap<String, Instant>>,
    acknowledged: Mutex<Vec<Acknowledged>>,
    /// How what was carried out ended, by lease.
    finished: Mutex<Vec<(LeaseToken, AttemptOutcome)>>,
}

impl Fleet {
    fn any_replica(&self) -> Option<Arc<Replica>> {
        let replicas = self.replicas.lock();
        let at = self.weather.below(replicas.len() as u64) as usize;
        replicas.values().nth(at).cloned()
    }

    fn is_cut(&self, worker: &str) -> bool {
        self.cut.lock().get(worker).is_some_and(|until| Instant::now() < *until)
    }

    fn began(&self, worker: &str, lease: &LeaseRef) {
        self.weather.note(|| format!("{worker} begins {}", lease.id));
        if lease.id.attempt > 1 {
            self.weather.reach("another attempt");
        }
    }

    fn finished(&self, lease: &LeaseRef, outcome: &AttemptOutcome) {
        self.weather.note(|| format!("{} is over: {}", lease.id, words(outcome)));
        self.finished.lock().push((lease.token, outcome.clone()));
    }

    fn acknowledged(&self, lease: &LeaseRef, outcome: &AttemptOutcome) {
        self.acknowledged.lock().push(Acknowledged::Ended(lease.clone(), outcome.clone()));
    }

    fn enqueued(&self, run: &RunKey, action: &ActionName) {
        self.acknowledged.lock().push(Acknowledged::Enqueued(run.clone(), action.clone()));
    }

    /// Waits until a worker's process is killed: some while, or for ever once it is calm.
    async fn crash_of_worker(&self) {
        loop {
            let pause = Duration::from_secs(5) + self.weather.up_to(60_000);
            tokio::time::sleep(pause).await;
            if self.weather.wrong_once_in(2) {
                return;
            }
        }
    }

    fn start(self: &Arc<Self>, number: usize) {
        let (life, stopping) = (CancellationToken::new(), CancellationToken::new());
        let reach = Reach::new(Arc::clone(&self.database), number, life.clone());
        let skew = Arc::new(AtomicI64::new(0));
        let clock = {
            let (weather, skew) = (Arc::clone(&self.weather), Arc::clone(&skew));
            Arc::new(move || Time::from_micros(weather.now().as_micros() + skew.load(Ordering::SeqCst)))
        };
        let settings = Settings { lease: LEASE, ..Settings::local("http://localhost:0".to_owned()) };
        let control = Control::new(reach.clone(), self.plane.clone(), clock, settings, stopping.clone(), [7; 32]);
        let (runs, until) = (control.clone(), life.clone());
        tokio::spawn(async move { until.run_until_cancelled(runs.run()).await });
        let replica = Replica { number, control, reach, life, stopping, skew };
        self.replicas.lock().insert(number, Arc::new(replica));
    }

    /// Kills a control plane without a word.
    fn kill(&self, replica: &Replica) {
        self.replicas.lock().remove(&replica.number);
        replica.life.cancel();
        replica.stopping.cancel();
    }
}

fn words(outcome: &AttemptOutcome) -> &'static str {
    match outcome {
        AttemptOutcome::Succeeded(_) => "succeeded",
        AttemptOutcome::Failed(..) => "failed",
        AttemptOutcome::Lost(_) => "lost",
    }
}

/// What a play came to.
pub struct Played {
    /// What was reached.
    pub reached: Reached,
    /// What happened, moment by moment.
    pub trace: Vec<String>,
}

/// Plays `seed`, with a defect if one is planted.
///
/// # Errors
/// What did not hold, and what happened before.
pub fn play(seed: u64, defect: Option<Defect>, detail: Detail) -> Result<Played, String> {
    // A database in memory that connections of this process share by its name.
    static PLAYS: AtomicU64 = AtomicU64::new(0);
    let path = PathBuf::from(format!("file:/fleet-{}?vfs=memdb", PLAYS.fetch_add(1, Ordering::Relaxed)));
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    runtime.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let runtime = runtime.build().map_err(|e| e.to_string())?;
    let played = runtime.block_on(world(seed, defect, detail, &path));
    // What is left of processes that were killed goes with it.
    drop(runtime);
    played
}

async fn world(seed: u64, defect: Option<Defect>, detail: Detail, path: &Path) -> Result<Played, String> {
    let weather = Arc::new(Weather::new(seed, defect, detail));
    let sqlite = SqliteStore::open_in_caller(path, weather.store_clock()).map_err(|e| e.to_string())?;
    let queue = Queue {
        org: "local".to_owned(),
        name: NARROW.to_owned(),
        spec: QueueSpec {
            limits: QueueLimits { action_concurrency: Some(weather.climate.limit), ..QueueLimits::default() },
            ..QueueSpec::default()
        },
        state: QueueState::Active,
        generation: 1,
        created_at: weather.now(),
        created_by: Subject::default(),
        updated_at: weather.now(),
        deleted_at: None,
    };
    at_once(sqlite.create_queue(queue)).map_err(|e| e.to_string())?;
    let fleet = Arc::new(Fleet {
        seed,
        database: Arc::new(Database::new(sqlite, Arc::clone(&weather))),
        weather,
        plane: Arc::default(),
        replicas: Mutex::default(),
        cut: Mutex::default(),
        acknowledged: Mutex::default(),
        finished: Mutex::default(),
    });
    let stop = CancellationToken::new();
    let mut others = JoinSet::new();
    let climate = fleet.weather.climate;
    fleet.weather.note(|| format!("{climate:?}"));
    let size = climate.control_planes as usize;
    (0..size).for_each(|n| fleet.start(n));
    for n in 0..climate.workers {
        others.spawn(Worker::new(Arc::clone(&fleet), n).work(stop.clone()));
    }
    let follower = tokio::spawn(check::follow(Arc::clone(&fleet), stop.clone()));
    let mut people = JoinSet::new();
    for n in 0..climate.runs {
        people.spawn(person(Arc::clone(&fleet), n));
    }
    trouble(&fleet).await;
    fleet.weather.calm();
    fleet.weather.note(|| "all is well from here on".to_owned());
    fleet.cut.lock().clear();
    for n in 0..size {
        let found = fleet.replicas.lock().get(&n).cloned();
        match found {
            Some(replica) => replica.reach.mend(),
            None => fleet.start(n),
        }
    }
    people.join_all().await;
    let outcome = match settled(&fleet).await {
        Ok(()) => {
            // Whoever follows the feed hears of the last of it.
            tokio::time::sleep(Duration::from_secs(10)).await;
            stop.cancel();
            let heard = follower.await.map_err(|e| e.to_string())?;
            check::all(&fleet, path, &heard)
        }
        Err(what) => Err(what),
    };
    let trace = fleet.weather.trace();
    let played = Played { reached: fleet.weather.reached(), trace };
    let everyone: Vec<_> = fleet.replicas.lock().values().cloned().collect();
    everyone.iter().for_each(|replica| fleet.kill(replica));
    outcome.map(|()| played).map_err(|what| failure(seed, defect, &what, &fleet.weather))
}

/// Says what did not hold, what happened before, and how to see it again.
fn failure(seed: u64, defect: Option<Defect>, what: &str, weather: &Weather) -> String {
    let (trace, detailed) = (weather.trace(), weather.is_detailed());
    let shown = if detailed { 0 } else { trace.len().saturating_sub(SHOWN) };
    let planted = defect.and_then(|d| Some(format!(" DEFECT={}", d.to_possible_value()?.get_name())));
    let planted = planted.unwrap_or_default();
    format!(
        "what happened{}:\n{}\nseed {seed}: {what}\nagain, with everything that happens: make simulate FLEET=1 FROM={seed} \
         TRACE=1{planted}",
        if shown == 0 { "" } else { ", the last of it" },
        trace[shown..].join("\n")
    )
}

/// Waits until every run has ended, and nothing lives below what has.
async fn settled(fleet: &Arc<Fleet>) -> Result<(), String> {
    let begun = Instant::now();
    let store = fleet.database.store();
    let acknowledged = fleet.acknowledged.lock().clone();
    let mut runs: Vec<_> = acknowledged
        .into_iter()
        .filter_map(|a| if let Acknowledged::Created(run) = a { Some(run) } else { None })
        .collect();
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut open = Vec::new();
        for run in std::mem::take(&mut runs) {
            // One that is not there is found missing later.
            let read = at_once(store.snapshot(&run, Which::All));
            let Some(snapshot) = read.map_err(|e| e.to_string())? else { continue };
            let before = open.len();
            let live = snapshot.actions.iter().filter(|s| !s.phase.is_terminal());
            open.extend(live.map(|s| format!("{run}/{} is {}", s.name, s.phase.words())));
            // What has ended is not looked at again here.
            runs.extend((open.len() > before).then_some(run));
        }
        let unsettled = at_once(store.unsettled(10)).map_err(|e| e.to_string())?;
        open.extend(unsettled.iter().map(|(run, action)| format!("{run}/{action} lives below what has ended")));
        if open.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("all was well for {PATIENCE:?}, and still {}", open.join(", ")));
        }
    }
}

/// Somebody who starts a run, and sometimes thinks better of it.
async fn person(fleet: Arc<Fleet>, number: u64) {
    let pause = fleet.weather.up_to(20_000);
    tokio::time::sleep(pause).await;
    let Ok(run) = Scope::new("local", "p", "development").and_then(|s| RunKey::new(s, &format!("r{number}"))) else {
        return;
    };
    let create = Command::create_run(task::seed("", 1), RunInfo::default());
    if !task::submitted(&fleet, Submission::new(run.clone(), create)).await {
        return;
    }
    fleet.weather.note(|| format!("{run} is created"));
    fleet.acknowledged.lock().push(Acknowledged::Created(run.clone()));
    if fleet.weather.once_in(4) {
        let pause = fleet.weather.up_to(15_000);
        tokio::time::sleep(pause).await;
        let abort = Command::Abort { action: ActionName::root(), by: EndedBy::asked("a person", "enough") };
        if task::submitted(&fleet, Submission::new(run.clone(), abort)).await {
            fleet.weather.note(|| format!("{run} is aborted"));
            fleet.weather.reach("aborted");
            fleet.acknowledged.lock().push(Acknowledged::Aborted(run));
        }
    }
}

/// Things go wrong for a while.
async fn trouble(fleet: &Arc<Fleet>) {
    let climate = fleet.weather.climate;
    let until = Instant::now() + Duration::from_secs(20) + fleet.weather.up_to(60_000);
    while Instant::now() < until {
        let pause = fleet.weather.up_to(climate.pause);
        tokio::time::sleep(pause).await;
        let length = fleet.weather.up_to(if fleet.weather.once_in(3) { 40_000 } else { 4000 });
        match fleet.weather.below(8) {
            0 => {
                fleet.weather.note(|| format!("the disk is slow for {length:?}"));
                fleet.weather.slow_disk(length);
            }
            1 => {
                fleet.weather.reach("database away");
                fleet.weather.note(|| format!("the database is away for {length:?}"));
                fleet.weather.take_database_away(length);
            }
            2 | 3 => {
                let Some(replica) = fleet.any_replica() else { continue };
                if fleet.weather.once_in(2) {
                    // What it leaves on its way is what matters most.
                    let _ = tokio::time::timeout(Duration::from_secs(5), replica.reach.leases()).await;
                }
                fleet.weather.reach("control plane killed");
                fleet.weather.note(|| format!("control plane {} is killed for {length:?}", replica.number));
                fleet.kill(&replica);
                let (fleet, number) = (Arc::clone(fleet), replica.number);
                tokio::spawn(async move {
                    tokio::time::sleep(length).await;
                    let gone = !fleet.replicas.lock().contains_key(&number);
                    if gone {
                        fleet.start(number);
                    }
                });
            }
            4 => {
                let Some(replica) = fleet.any_replica() else { continue };
                fleet
                    .weather
                    .note(|| format!("control plane {} does not reach the database for {length:?}", replica.number));
                replica.reach.cut(length);
            }
            5 => {
                let Some(replica) = fleet.any_replica() else { continue };
                fleet
                    .weather
                    .note(|| format!("control plane {} is far from the database for {length:?}", replica.number));
                replica.reach.slow(length);
            }
            6 => {
                let worker = format!("w{}", fleet.weather.below(climate.workers));
                fleet.weather.note(|| format!("the line of {worker} is cut for {length:?}"));
                fleet.cut.lock().insert(worker, Instant::now() + length);
            }
            _ => {
                let Some(replica) = fleet.any_replica() else { continue };
                let step = fleet.weather.below(120_000_000) as i64 - 60_000_000;
                fleet.weather.note(|| format!("the clock of control plane {} steps by {step} us", replica.number));
                replica.skew.store(step, Ordering::SeqCst);
            }
        }
    }
}

/// Plays `count` seeds from `first` on `jobs` threads, and says after each how many are done. Returns what they have reached.
///
/// # Errors
/// What the first that fails says.
pub fn many(
    first: u64,
    count: u64,
    jobs: usize,
    defect: Option<Defect>,
    done: impl Fn(u64) + Sync,
) -> Result<Reached, String> {
    let (next, played) = (AtomicU64::new(0), AtomicU64::new(0));
    let (reached, failed) = (Mutex::new(Reached::default()), Mutex::new(None));
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count || failed.lock().is_some() {
                return;
            }
            match play(first.wrapping_add(number), defect, Detail::Events) {
                Ok(played) => reached.lock().add(&played.reached),
                Err(what) => drop(failed.lock().get_or_insert(what)),
            }
            done(played.fetch_add(1, Ordering::Relaxed) + 1);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| crate::search::with_room(work));
        }
    });
    failed.into_inner().map_or_else(|| Ok(reached.into_inner()), Err)
}
