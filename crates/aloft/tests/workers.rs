//! Workers and control planes over a real port and a real store: sessions, room, what is lost on the way, and giving up.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use aloft_control::{Control, Guest, Limits, Seat, Settings, WorkerToken};
use aloft_core::{
    ActionName, Asks, AttemptOutcome, Command, DEFAULT_QUEUE, LeaseToken, OutputRefs, Progress, RunInfo, RunKey, Scope,
    Seed, TaskPolicy, TaskRef, TaskSeed, Time, WorkerId,
};
use aloft_dataplane::link::{Link, LinkConfig, Refused};
use aloft_plane::{ControlPlane, LeaseRef, LeasedAttempt, ReportError};
use aloft_sim::plane::MemoryPlane;
use aloft_store::{Store, Submission, Which, WorkerRecord};
use aloft_store_sqlite::SqliteStore;
use axum::Router;
use tokio_util::sync::CancellationToken;

/// As short as one can be.
const LEASE: Duration = Duration::from_secs(1);

/// Longest wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);

struct Clock(AtomicI64);

impl Clock {
    /// Moves the clock by some seconds, in either direction.
    fn step(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }
}

/// A control plane on a port of its own.
struct Served {
    control: Control,
    url: String,
    stopping: CancellationToken,
}

struct World {
    store: Arc<SqliteStore>,
    clock: Arc<Clock>,
    run: RunKey,
    _dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(Clock(AtomicI64::new(1_700_000_000_000_000)));
        let store = Self::open(dir.path(), &clock);
        let run = RunKey::new(Scope::new("local", "p", "development").unwrap(), "r1").unwrap();
        Self { store, clock, run, _dir: dir }
    }

    fn open(dir: &Path, clock: &Arc<Clock>) -> Arc<SqliteStore> {
        Arc::new(SqliteStore::open(&dir.join("a.db"), now(clock)).unwrap())
    }

    /// A control plane that asks workers for the token `open`.
    async fn serve(&self) -> Served {
        self.serve_with(Some("open")).await
    }

    async fn serve_with(&self, token: Option<&'static str>) -> Served {
        let stopping = CancellationToken::new();
        let worker_token = WorkerToken::new(move || token.map(str::to_owned));
        let settings = Settings { lease: LEASE, worker_token, ..Settings::local("http://localhost".to_owned()) };
        let plane = Arc::new(MemoryPlane::default());
        let control = Control::new(self.store.clone(), plane, now(&self.clock), settings, stopping.clone(), [0; 32]);
        let service = aloft_control::service(aloft_control::router(&control), Limits::default());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (app, ends) = (Router::new().fallback_service(service), stopping.clone());
        tokio::spawn(async move {
            let ended = async move { ends.cancelled().await };
            axum::serve(listener, app).with_graceful_shutdown(ended).await.unwrap();
        });
        let reconciling = control.clone();
        tokio::spawn(async move { reconciling.run().await });
        Served { control, url, stopping }
    }

    /// A run with `count` actions below its root; the root is out of the way.
    async fn work(&self, count: usize) {
        self.submit(Command::create_run(seed(), RunInfo::default())).await;
        for n in 0..count {
            self.submit(Command::enqueue(name(n), ActionName::root(), "", seed())).await;
        }
        let lease = aloft_core::Lease { worker: WorkerId("root".to_owned()), token: LeaseToken(1) };
        self.submit(Command::Lease { action: ActionName::root(), lease }).await;
        // Heard of by nobody else, so that it is not in the way of what is counted.
        let about = aloft_store::AboutWorker::default();
        let record = WorkerRecord { id: WorkerId("root".into()), session: 1, beat: 0, expired: false, about };
        self.store.put_worker(record, 0).await.unwrap();
    }

    async fn submit(&self, command: Command) {
        self.store.submit(Submission::new(self.run.clone(), command)).await.unwrap();
    }

    async fn holds(&self, worker: &str) -> usize {
        self.store.held_by(&WorkerId(worker.to_owned())).await.unwrap().len()
    }

    /// The number of the current attempt of an action.
    async fn attempt(&self, n: usize) -> u32 {
        let snapshot = self.store.snapshot(&self.run, Which::One(name(n))).await.unwrap().unwrap();
        snapshot.actions[0].current().unwrap().number
    }

    async fn record(&self, worker: &str) -> WorkerRecord {
        self.store.worker(&WorkerId(worker.to_owned())).await.unwrap().unwrap()
    }
}

fn now(clock: &Arc<Clock>) -> aloft_control::Clock {
    let clock = Arc::clone(clock);
    let began = tokio::time::Instant::now();
    Arc::new(move || Time::from_micros(clock.0.load(Ordering::SeqCst)).plus(began.elapsed()))
}

fn name(n: usize) -> ActionName {
    ActionName::new(&format!("x{n}")).unwrap()
}

fn seed() -> Seed {
    let task = TaskRef {
        digest: "d".into(),
        project: "p".into(),
        domain: "development".into(),
        name: "env.f".into(),
        version: "1".into(),
        task_type: "python".into(),
        short_name: "f".into(),
        environment: "env".into(),
    };
    Seed::Task(TaskSeed {
        task,
        policy: TaskPolicy::default(),
        input_uri: "s3://b/in.pb".into(),
        run_output_base: "s3://b/r".into(),
        cache: None,
        queue: DEFAULT_QUEUE.into(),
        asks: Asks::default(),
    })
}

fn link(served: &[&Served], worker: &str, token: &'static str) -> Link {
    Link::new(LinkConfig {
        urls: served.iter().map(|s| s.url.parse().unwrap()).collect(),
        token: Arc::new(move || Ok(token.to_owned())),
        worker: worker.to_owned(),
        version: "1".to_owned(),
        host: "h".to_owned(),
        attempts: String::new(),
    })
}

fn seat(served: &Served, worker: &str, process: u64) -> Seat {
    served.control.seat(Guest {
        id: WorkerId(worker.to_owned()),
        process,
        known: false,
        version: String::new(),
        host: String::new(),
        attempts: String::new(),
        draining: false,
    })
}

async fn until<F: Future<Output = bool>>(what: &str, ask: impl Fn() -> F) {
    let wait = async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "timed out waiting until {what}");
}

fn refs(attempts: &[LeasedAttempt]) -> Vec<LeaseRef> {
    let mut refs: Vec<_> = attempts.iter().map(|a| a.lease.clone()).collect();
    refs.sort_by_key(|l| l.id.action.to_string());
    refs
}

fn done() -> Progress {
    Progress::Ended(AttemptOutcome::Succeeded(OutputRefs::default()))
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_handed_out_beyond_the_room() {
    let world = World::new();
    let served = world.serve().await;
    world.work(10).await;
    let link = link(&[&served], "w", "open");
    assert!(link.reclaim().await.unwrap().is_empty());
    let first = link.lease(3, PATIENCE).await.unwrap();
    assert!((1..=3).contains(&first.len()));
    let mut got = first.len();
    while got < 3 {
        got += link.lease(3 - got, PATIENCE).await.unwrap().len();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(world.holds("w").await, 3, "seven wait, and there is no room");
    let more = link.lease(1, PATIENCE).await.unwrap();
    assert_eq!((more.len(), world.holds("w").await), (1, 4));
    // A report that is taken is durable, and again is no harm; one of a lease that nobody has is refused.
    let lease = &more[0].lease;
    link.report(lease, Progress::Running).await.unwrap();
    link.report(lease, done()).await.unwrap();
    link.report(lease, done()).await.unwrap();
    assert_eq!(link.report(lease, Progress::Running).await, Err(ReportError::Over));
    let forged = LeaseRef { token: LeaseToken(lease.token.0 ^ 1), ..first[0].lease.clone() };
    assert_eq!(link.report(&forged, done()).await, Err(ReportError::Over));
    assert_eq!(world.holds("w").await, 3);
    // One that drains is shown so, and is handed nothing whatever its room.
    link.drain().await;
    assert!(world.record("w").await.about.draining);
    assert!(link.lease(5, Duration::from_millis(200)).await.unwrap().is_empty());
    assert_eq!(world.holds("w").await, 3);
    served.stopping.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_lost_on_the_way_is_told_by_the_next_reclaim() {
    let world = World::new();
    let served = world.serve().await;
    world.work(4).await;
    let first = Arc::new(link(&[&served], "w", "open"));
    first.reclaim().await.unwrap();
    // It says that it has room, and is gone before anything arrives.
    let asking = tokio::spawn({
        let first = Arc::clone(&first);
        async move { first.lease(4, PATIENCE).await }
    });
    until("the server hands something out", || async { world.holds("w").await > 0 }).await;
    asking.abort();
    drop(first);
    let again = link(&[&served], "w", "open");
    let held = again.reclaim().await.unwrap();
    assert_eq!(held.len(), world.holds("w").await);
    let mut known = refs(&held);
    while known.len() < 4 {
        known.extend(refs(&again.lease(4 - known.len(), PATIENCE).await.unwrap()));
    }
    // All four are its own, whichever connection they came by, and none was handed out twice.
    for lease in &known {
        assert_eq!((lease.id.attempt, again.report(lease, done()).await), (1, Ok(())));
    }
    served.stopping.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_to_another_server_and_keeps_what_it_holds() {
    let world = World::new();
    let (one, two) = (world.serve().await, world.serve().await);
    world.work(3).await;
    let link = link(&[&one, &two], "w", "open");
    link.reclaim().await.unwrap();
    let mut held = Vec::new();
    while held.len() < 3 {
        held.extend(link.lease(3 - held.len(), PATIENCE).await.unwrap());
    }
    let gone = if link.connected().unwrap().trim_end_matches('/') == one.url { &one } else { &two };
    gone.stopping.cancel();
    assert!(matches!(link.lease(1, PATIENCE).await, Err(ReportError::Unavailable(_))));
    let again = loop {
        match link.reclaim().await {
            Ok(again) => break again,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    assert_eq!(refs(&again), refs(&held));
    assert_eq!(link.report(&held[0].lease, done()).await, Ok(()));
    // What ends by another hand is told by the server that it is connected to now.
    let abort = Command::Abort {
        action: held[1].lease.id.action.clone(),
        by: aloft_core::EndedBy { subject: String::new(), reason: String::new(), above: None },
    };
    world.submit(abort).await;
    let revoked = tokio::time::timeout(PATIENCE, link.revoked()).await.unwrap().unwrap();
    assert_eq!(revoked, [held[1].lease.clone()]);
    one.stopping.cancel();
    two.stopping.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_worker_is_given_up_once_whoever_looks() {
    let world = World::new();
    // Two control planes of one store look at the same time.
    let (one, two) = (world.serve().await, world.serve().await);
    world.work(2).await;
    let silent = link(&[&one], "silent", "open");
    silent.reclaim().await.unwrap();
    let mut held = Vec::new();
    while held.len() < 2 {
        held.extend(silent.lease(2 - held.len(), PATIENCE).await.unwrap());
    }
    let (lease, record) = (held[0].lease.clone(), world.record("silent").await);
    // Cut off without a word: nothing beats any more.
    drop(silent);
    until("it is given up", || async { world.record("silent").await.expired }).await;
    until("what it held goes to others", || async { world.holds("silent").await == 0 }).await;
    tokio::time::sleep(LEASE).await;
    assert_eq!((world.attempt(0).await, world.attempt(1).await), (2, 2), "one retry each");
    // What it says now is refused, and when it comes back it is told that it holds nothing.
    assert_eq!(seat(&two, "x", 1).report(&lease, Progress::Running).await, Err(ReportError::Over));
    let back = link(&[&two], "silent", "open");
    assert!(back.reclaim().await.unwrap().is_empty());
    let after = world.record("silent").await;
    assert!(!after.expired && after.session != record.session);
    // It is a worker like any other: what it held is handed to it as new.
    let new = back.lease(1, PATIENCE).await.unwrap();
    assert_eq!(new[0].lease.id.attempt, 2);
    assert_ne!(new[0].lease.token, lease.token);
    one.stopping.cancel();
    two.stopping.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_of_the_clock_gives_up_nobody() {
    let world = World::new();
    let served = world.serve().await;
    world.work(1).await;
    let alive = link(&[&served], "alive", "open");
    alive.reclaim().await.unwrap();
    let held = alive.lease(1, PATIENCE).await.unwrap();
    for seconds in [86_400, -2 * 86_400, 86_400] {
        world.clock.step(seconds);
        tokio::time::sleep(LEASE * 2).await;
        assert!(!world.record("alive").await.expired, "after a step of {seconds} s");
    }
    assert_eq!(alive.report(&held[0].lease, done()).await, Ok(()));
    served.stopping.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_of_a_name_that_never_said_hello_lapse_and_can_be_reclaimed() {
    let world = World::new();
    world.work(2).await;
    for (n, token) in [(0, 5), (1, 6)] {
        let lease = aloft_core::Lease { worker: WorkerId("dev".into()), token: LeaseToken(token) };
        world.submit(Command::Lease { action: name(n), lease }).await;
    }
    // As after an upgrade: the worker of the directory asks first.
    let served = world.serve().await;
    let own = seat(&served, "dev", 1);
    assert_eq!(own.reclaim().await.unwrap().len(), 2);
    let keeps = async { own.keep_alive().await };
    tokio::select! {
        () = keeps => {}
        () = tokio::time::sleep(LEASE * 3) => {}
    }
    assert_eq!(world.holds("dev").await, 2, "it lives");
    until("nobody says that it lives", || async { world.holds("dev").await == 0 }).await;
    served.stopping.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_of_one_name_the_newer_has_it() {
    let world = World::new();
    let served = world.serve().await;
    world.work(1).await;
    let (older, newer) = (link(&[&served], "w", "open"), link(&[&served], "w", "open"));
    older.reclaim().await.unwrap();
    let held = older.lease(1, PATIENCE).await.unwrap();
    assert_eq!(refs(&newer.reclaim().await.unwrap()), refs(&held));
    let told = loop {
        match older.lease(1, PATIENCE).await {
            Ok(leased) => assert!(leased.is_empty()),
            Err(_) => break older.reclaim().await,
        }
    };
    let Err(ReportError::Displaced(why)) = told else { panic!("{told:?}") };
    assert!(why.contains("data directory of its own"), "{why}");
    assert_eq!(newer.report(&held[0].lease, done()).await, Ok(()));
    served.stopping.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_cannot_prove_itself_is_refused_for_good() {
    let world = World::new();
    let (closed, open) = (world.serve_with(None).await, world.serve().await);
    for (served, token, says) in
        [(&closed, "open", "takes no workers"), (&open, "shut", "is not the one"), (&open, "ope", "is not the one")]
    {
        let refused = link(&[served], "w", token).connect().await;
        let Err(Refused::Never(why)) = refused else { panic!("{refused:?}") };
        assert!(why.contains(says) && why.contains("worker.token"), "{why}");
        assert!(!why.contains("shut"), "{why}");
    }
    let refused = link(&[&open], "no/name", "open").connect().await;
    assert!(matches!(&refused, Err(Refused::Never(why)) if why.contains("hello.worker")), "{refused:?}");
    assert!(world.store.workers().await.unwrap().is_empty());
    closed.stopping.cancel();
    open.stopping.cancel();
}
