//! The Postgres engine on a real Postgres: the common suite, and what is its own.

mod server;
mod tls;

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use aloft_core::{
    ActionName, Asks, AttemptOutcome, Command as Ask, DEFAULT_QUEUE, EndedBy, Lease, LeaseToken, OutputRefs, Progress,
    QueueState, Reply, RunInfo, RunKey, Scope, Seed, TaskPolicy, TaskRef, TaskSeed, Time, WorkerId,
};
use aloft_store::{Queue, Store, StoreError, Submission, SubmitError, Turn, Which};
use aloft_store_postgres::{Clock, Options, PostgresStore};

use self::server::Server;

fn clock() -> Clock {
    let now = AtomicI64::new(1_700_000_000_000_000);
    Arc::new(move || Time::from_micros(now.fetch_add(1000, Ordering::Relaxed)))
}

/// The server that the tests of this program share while any of them runs.
fn shared() -> Arc<Server> {
    static SHARED: parking_lot::Mutex<Weak<Server>> = parking_lot::Mutex::new(Weak::new());
    let mut shared = SHARED.lock();
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Server::start(&[]));
        *shared = Arc::downgrade(&server);
        server
    })
}

/// Few connections, because many stores are open at once.
fn options() -> Options {
    Options { connections: 5, ..Options::default() }
}

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(url, &options(), clock()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let server = shared();
    aloft_store::conformance::run_all(|| async { Arc::new(open(&server.empty().await).await) as Arc<dyn Store> }).await;
}

fn key(name: &str) -> RunKey {
    RunKey::new(Scope::new("local", "p", "d").unwrap(), name).unwrap()
}

fn seed() -> Seed {
    let task = TaskRef {
        digest: "d".into(),
        project: "p".into(),
        domain: "d".into(),
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

fn create(name: &str) -> Submission {
    Submission::new(key(name), Ask::create_run(seed(), RunInfo::default()))
}

fn child(run: &str, name: &str) -> Submission {
    let name = ActionName::new(name).unwrap();
    Submission::new(key(run), Ask::enqueue(name, ActionName::root(), "", seed()))
}

fn lease(run: &str, name: &str, token: u64) -> Submission {
    let lease = Lease { worker: WorkerId("w".into()), token: LeaseToken(token) };
    Submission::new(key(run), Ask::Lease { action: ActionName::new(name).unwrap(), lease })
}

async fn with_queue(store: &PostgresStore) {
    let queue = Queue {
        org: "local".into(),
        name: DEFAULT_QUEUE.into(),
        spec: Default::default(),
        state: aloft_core::QueueState::Active,
        generation: 1,
        created_at: Time::default(),
        created_by: Default::default(),
        updated_at: Time::default(),
        deleted_at: None,
    };
    store.create_queue(queue).await.unwrap();
}

/// Every event of the feed, read in small pieces.
async fn feed(store: &PostgresStore) -> Vec<(RunKey, u64)> {
    let (mut pos, mut all) = (0, Vec::new());
    loop {
        let some = store.feed_after(pos, 7).await.unwrap();
        let Some(last) = some.last() else { return all };
        assert!(some.windows(2).all(|w| w[0].pos < w[1].pos) && some[0].pos > pos, "places grow");
        pos = last.pos;
        all.extend(some.into_iter().map(|item| (item.run, item.logged.seq)));
    }
}

/// Several control planes write into the same runs at once: each log is gapless, and a cursor over all of them that follows
/// while they write sees each event once, in its log's order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_runs() {
    let server = shared();
    let url = server.empty().await;
    let stores = [open(&url).await, open(&url).await, open(&url).await];
    with_queue(&stores[0]).await;
    for run in ["r0", "r1", "r2"] {
        stores[0].submit(create(run)).await.unwrap();
    }
    let follower = tokio::spawn({
        let store = stores[2].clone();
        async move {
            let (mut pos, mut seen, mut quiet) = (0, Vec::new(), 0);
            while quiet < 20 {
                let some = store.feed_after(pos, 50).await.unwrap();
                quiet = if some.is_empty() { quiet + 1 } else { 0 };
                pos = some.last().map_or(pos, |i| i.pos);
                seen.extend(some.into_iter().map(|i| (i.run, i.logged.seq)));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            seen
        }
    });
    let writers = (0..12).map(|w| {
        let store = stores[w % 2].clone();
        tokio::spawn(async move {
            for i in 0..25 {
                let run = format!("r{}", (w + i) % 3);
                let name = format!("c{w}-{i}");
                assert_eq!(store.submit(child(&run, &name)).await, Ok(Reply::Done));
                // The same again through another control plane changes nothing.
                assert_eq!(store.submit(child(&run, &name)).await, Ok(Reply::Unchanged));
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let mut logs = std::collections::BTreeMap::<RunKey, Vec<u64>>::new();
    for (run, seq) in feed(&stores[1]).await {
        logs.entry(run).or_default().push(seq);
    }
    let total: usize = logs.values().map(Vec::len).sum();
    assert_eq!(total, 3 + 12 * 25);
    for (run, seqs) in &logs {
        assert!(seqs.iter().copied().eq(1..=seqs.len() as u64), "{run}: {seqs:?}");
        let snapshot = stores[2].snapshot(run, Which::All).await.unwrap().unwrap();
        assert_eq!((snapshot.seq, snapshot.actions.len()), (seqs.len() as u64, seqs.len()));
    }
    let mut seen = std::collections::BTreeMap::<RunKey, Vec<u64>>::new();
    for (run, seq) in follower.await.unwrap() {
        seen.entry(run).or_default().push(seq);
    }
    assert_eq!(seen, logs, "a cursor that follows misses nothing");
    let load = stores[2].queue_load("local", DEFAULT_QUEUE).await.unwrap();
    assert_eq!(load.waiting, total as u64);
}

/// Of many that take the same action at once through several control planes, one gets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_takes_an_action() {
    let server = shared();
    let url = server.empty().await;
    let stores = [open(&url).await, open(&url).await];
    with_queue(&stores[0]).await;
    let creates = (0..8).map(|i| {
        let store = stores[i % 2].clone();
        async move { store.submit(create("same")).await }
    });
    let made = futures::future::join_all(creates).await;
    assert_eq!(made.iter().filter(|r| matches!(r, Ok(Reply::Created(_)))).count(), 1, "{made:?}");
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    let leases = (1..9).map(|token| {
        let store = stores[token as usize % 2].clone();
        async move { store.submit(lease("same", "a0", token)).await }
    });
    let taken = futures::future::join_all(leases).await;
    assert_eq!(taken.iter().filter(|r| matches!(r, Ok(Reply::Leased(_)))).count(), 1, "{taken:?}");
    let held = stores[0].held_by(&WorkerId("w".into())).await.unwrap();
    assert_eq!(held.len(), 1);
}

/// What one store answers to a step, without times.
fn told(answer: &Result<Reply, SubmitError>) -> String {
    match answer {
        Ok(Reply::Created(_)) => "created".to_owned(),
        Ok(Reply::Leased(state)) => format!("leased {:?}", state.phase),
        other => format!("{other:?}"),
    }
}

/// Batches that are decided on what a writer has kept come to the same as those that look first, whoever else writes in
/// between: each step goes through one of two control planes, which take over from each other after some steps; beside them
/// stands a database whose control planes take turns at every step, and so always look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_decides_as_what_is_read() {
    let server = shared();
    let (url, beside) = (server.empty().await, server.empty().await);
    let stores = [open(&url).await, open(&url).await];
    let lookers = [open(&beside).await, open(&beside).await, open(&beside).await];
    with_queue(&stores[0]).await;
    with_queue(&lookers[0]).await;
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut below = |n: u64| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % n
    };
    let (mut by, mut children) = (0, 0);
    for step in 0..2400_u64 {
        if below(60) == 0 {
            by = 1 - by;
        }
        if below(25) == 0 {
            let state = if below(2) == 0 { QueueState::Draining } else { QueueState::Active };
            for store in [&stores[by], &lookers[0]] {
                let queue = store.queue("local", DEFAULT_QUEUE).await.unwrap().unwrap();
                let generation = queue.generation;
                let changed = Queue { state, generation: generation + 1, ..queue };
                assert!(store.replace_queue(changed, generation).await.unwrap());
            }
        }
        let run = format!("r{}", below(3) + step / 800 * 3);
        let some = format!("c{}", below(children + 1));
        let name = ActionName::new(&some).unwrap();
        let submission = match below(10) {
            0 => create(&run),
            1..=3 => {
                children += 1;
                child(&run, &format!("c{children}"))
            }
            4 => child(&run, &some),
            5..=6 => lease(&run, &some, below(3) + 1),
            7..=8 => {
                let progress = match below(3) {
                    0 => Progress::Running,
                    _ => Progress::Ended(AttemptOutcome::Succeeded(OutputRefs::default())),
                };
                let token = LeaseToken(below(3) + 1);
                Submission::new(key(&run), Ask::Report { action: name, attempt: 1, token, progress })
            }
            _ => Submission::new(key(&run), Ask::Abort { action: name, by: EndedBy::asked("me", "no") }),
        };
        let looked = lookers[step as usize % 3].submit(submission.clone()).await;
        let kept = stores[by].submit(submission.clone()).await;
        assert_eq!(told(&kept), told(&looked), "step {step}: {submission:?}");
    }
    for number in 0..9 {
        let run = key(&format!("r{number}"));
        let [kept, looked] = [&stores[by], &lookers[0]].map(|store| store.snapshot(&run, Which::All));
        let (kept, looked) = (kept.await.unwrap().unwrap(), looked.await.unwrap().unwrap());
        let outline = |s: &aloft_store::Snapshot| -> Vec<_> {
            s.actions.iter().map(|a| (a.name.clone(), a.phase, a.attempts.len())).collect()
        };
        assert_eq!((kept.seq, outline(&kept)), (looked.seq, outline(&looked)), "{run}");
    }
    let (loads, beside) =
        tokio::join!(stores[1 - by].queue_load("local", DEFAULT_QUEUE), lookers[0].queue_load("local", DEFAULT_QUEUE));
    assert_eq!(loads.unwrap(), beside.unwrap());
    let (guarded, outdated) = stores.iter().map(|s| s.guarded()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    let looked: u64 = lookers.iter().map(|s| s.guarded().0).sum();
    assert!(
        guarded > 200 && outdated > 20 && looked * 2 < guarded,
        "{guarded} guarded, {outdated} outdated, {looked} beside"
    );
}

/// What watchers are told from memory has no gap where another control plane has committed, and nothing that is out of date.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_watchers_follows_what_others_commit() {
    let server = shared();
    let url = server.empty().await;
    let stores = [open(&url).await, open(&url).await];
    with_queue(&stores[0]).await;
    stores[0].submit(create("r")).await.unwrap();
    let _watched = [stores[0].changes(&key("r")), stores[1].changes(&key("r"))];
    let mut seq = 1;
    for round in 0..40_u64 {
        let name = format!("x{}", round / 2);
        // Created by one, leased by one: by the same, by the other, by both in turn.
        let (by, submission) = match round % 2 {
            0 => (round / 4 % 2, child("r", &name)),
            _ => (round / 8 % 2, lease("r", &name, round)),
        };
        stores[by as usize].submit(submission).await.unwrap();
        seq += 1;
        for store in &stores {
            let events = store.events_after(&key("r"), seq - 1, 10).await.unwrap();
            assert_eq!(events.iter().map(|e| e.seq).collect::<Vec<_>>(), [seq]);
            let all = store.events_after(&key("r"), 0, 1000).await.unwrap();
            assert_eq!(all.iter().map(|e| e.seq).collect::<Vec<_>>(), (1..=seq).collect::<Vec<_>>());
            let names = [ActionName::new(&name).unwrap()];
            let matched = store.matched(&key("r"), &names, &[], seq).await.unwrap();
            let leased = matched.first().map(|(state, _)| state.live_lease().is_some());
            assert_eq!(leased, Some(round % 2 == 1), "round {round}");
        }
    }
}

/// A watcher at one control plane wakes when another commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_is_heard_everywhere() {
    let server = shared();
    let url = server.empty().await;
    let (here, there) = (open(&url).await, open(&url).await);
    with_queue(&here).await;
    here.submit(create("r")).await.unwrap();
    let (mut run, mut all) = (there.changes(&key("r")), there.feed());
    all.mark_unchanged();
    run.mark_unchanged();
    here.submit(child("r", "x")).await.unwrap();
    let soon = Duration::from_secs(30);
    tokio::time::timeout(soon, run.changed()).await.expect("the run's watcher wakes").unwrap();
    tokio::time::timeout(soon, all.changed()).await.expect("the feed's watcher wakes").unwrap();
    assert_eq!(there.snapshot(&key("r"), Which::All).await.unwrap().unwrap().seq, 2);
}

/// Connections that the server ends, while it restarts or fails over, fail the requests under way and nothing else: what
/// was acknowledged is there, what was not is there as a whole or not at all, and the store goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_connections_lose_nothing() {
    // Of its own: the connections of others are not for it to end.
    let server = Server::start(&[]);
    let url = server.empty().await;
    let store = open(&url).await;
    with_queue(&store).await;
    store.submit(create("r")).await.unwrap();
    let (admin, connection) = tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let writers: Vec<_> = (0..8)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for i in 0..40 {
                    let name = format!("c{w}-{i}");
                    match store.submit(child("r", &name)).await {
                        Ok(_) => acknowledged.push(name),
                        Err(SubmitError::Store(StoreError::Unavailable(_))) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
                acknowledged
            })
        })
        .collect();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                   WHERE application_name = 'aloft' AND query NOT LIKE 'LISTEN%' AND pid <> pg_backend_pid()";
        admin.query_one(sql, &[]).await.unwrap();
    }
    let mut acknowledged = Vec::new();
    for writer in writers {
        acknowledged.extend(writer.await.unwrap());
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while let Err(error) = store.submit(child("r", "last")).await {
        assert!(std::time::Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let snapshot = store.snapshot(&key("r"), Which::All).await.unwrap().unwrap();
    assert_eq!(snapshot.seq, snapshot.actions.len() as u64, "an event for each action");
    let there: std::collections::BTreeSet<_> = snapshot.actions.iter().map(|a| a.name.as_str().to_owned()).collect();
    for name in &acknowledged {
        assert!(there.contains(name), "{name} was acknowledged and is not there");
    }
    let waiting = store.queue_load("local", DEFAULT_QUEUE).await.unwrap().waiting;
    assert_eq!(waiting, snapshot.actions.len() as u64, "the sums are those of what is there");
}

#[tokio::test]
async fn a_schema_that_is_too_new_is_refused() {
    let server = shared();
    let url = server.empty().await;
    drop(open(&url).await);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let known: i64 = client.query_one("SELECT version FROM schema_version", &[]).await.unwrap().get(0);
    // What a newer version leaves that says that it can be shared with this one, as during an upgrade.
    client.execute("UPDATE schema_version SET version = $1", &[&(known + 2)]).await.unwrap();
    drop(open(&url).await);
    client.execute("UPDATE schema_version SET oldest = $1", &[&(known + 1)]).await.unwrap();
    let refused = PostgresStore::open(&url, &options(), clock()).await.err();
    assert_eq!(refused, Some(StoreError::Newer { found: known + 2, known }));
}

#[tokio::test]
async fn an_address_that_leads_nowhere_is_said_without_its_password() {
    for url in ["postgres://aloft:hunter2@127.0.0.1:1/aloft", "postgres://aloft:hunter2@/%zz", "hunter2"] {
        let options = Options { wait: Duration::from_secs(2), ..options() };
        let error = PostgresStore::open(url, &options, clock()).await.err().expect("refused").to_string();
        assert!(error.contains("database") && !error.contains("hunter2"), "{error}");
    }
}

/// How long a turn may take to come to another.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it comes soon")
}

async fn not_yet<T>(what: impl Future<Output = T>) {
    assert!(tokio::time::timeout(Duration::from_millis(1500), what).await.is_err(), "another has the turn");
}

/// The turn to hand out work.
async fn turn_of(store: &PostgresStore) -> Turn {
    store.take_turn().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_hands_out_work_at_a_time() {
    let server = shared();
    let url = server.empty().await;
    let (one, other) = (open(&url).await, open(&url).await);
    let elsewhere = open(&server.empty().await).await;
    let turn = turn_of(&one).await;
    soon(turn_of(&elsewhere)).await;
    // Who asks and goes away is not in the way of others later.
    not_yet(turn_of(&other)).await;
    drop(turn);
    drop(soon(turn_of(&other)).await);
    drop(soon(turn_of(&one)).await);
    // Many at once, each for a moment.
    let (taken, stores) = (Arc::new(AtomicI64::new(0)), [one, other]);
    let turns = (0..40).map(|n| {
        let (store, taken) = (stores[n % 2].clone(), Arc::clone(&taken));
        async move {
            let _turn = turn_of(&store).await;
            assert_eq!(taken.fetch_add(1, Ordering::SeqCst), 0, "two have the turn");
            tokio::time::sleep(Duration::from_millis(2)).await;
            taken.fetch_sub(1, Ordering::SeqCst);
        }
    });
    // More than a store has connections: they wait for one.
    soon(futures::future::join_all(turns)).await;
}

/// As when who has it was killed or stands still: its connection goes, and with it the turn.
async fn lose_turn(url: &str) {
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let holders = "SELECT pg_terminate_backend(l.pid) FROM pg_locks l
                   WHERE l.locktype = 'advisory' AND l.objid = 1 AND l.granted
                     AND l.classid = (hashtext('aloft.' || current_schema())::bigint & 4294967295)::oid";
    assert_eq!(client.query(holders, &[]).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_handed_out_after_another_took_a_turn_is_not() {
    let server = shared();
    let url = server.empty().await;
    let (one, other) = (open(&url).await, open(&url).await);
    with_queue(&one).await;
    for run in ["r0", "r1"] {
        one.submit(create(run)).await.unwrap();
        for name in ["a1", "a2", "a3", "a4"] {
            one.submit(child(run, name)).await.unwrap();
        }
    }
    let taken = |turn: &Turn, run: &str, name: &str| {
        assert!(turn.number().is_some());
        Submission { turn: turn.number(), ..lease(run, name, 7) }
    };
    let over = |answer: Result<Reply, SubmitError>| {
        assert!(matches!(answer, Err(SubmitError::Store(StoreError::TurnOver))), "{answer:?}");
    };
    let lost = soon(turn_of(&one)).await;
    assert!(matches!(one.submit(taken(&lost, "r0", "a1")).await, Ok(Reply::Leased(_))));
    lose_turn(&url).await;
    // Nobody has had a turn since.
    assert!(matches!(one.submit(taken(&lost, "r0", "a2")).await, Ok(Reply::Leased(_))));
    let turn = soon(turn_of(&other)).await;
    assert_ne!(turn.number(), lost.number());
    // What came with it in the same batch is done, whatever the writer had kept.
    let (late, mate) = tokio::join!(one.submit(taken(&lost, "r0", "a3")), one.submit(child("r0", "a5")));
    over(late);
    mate.unwrap();
    over(one.submit(taken(&lost, "r1", "a1")).await);
    for (run, names) in [("r0", vec!["a3", "a4", "a5"]), ("r1", vec!["a1", "a2", "a3", "a4"])] {
        let snapshot = one.snapshot(&key(run), Which::All).await.unwrap().unwrap();
        let waits = snapshot.actions.iter().filter(|a| !a.name.is_root() && a.live_lease().is_none());
        let mut waits: Vec<_> = waits.map(|a| a.name.to_string()).collect();
        waits.sort();
        assert_eq!(waits, names, "of {run}");
    }
    assert!(matches!(other.submit(taken(&turn, "r0", "a3")).await, Ok(Reply::Leased(_))));
    // Whoever had it last keeps its number, and its commits go on as before.
    let number = turn.number();
    drop(turn);
    let again = soon(turn_of(&other)).await;
    assert_eq!(again.number(), number);
    drop(again);
    let mine = soon(turn_of(&one)).await;
    assert!(mine.number() != number && mine.number() != lost.number());
    over(other.submit(Submission { turn: number, ..lease("r1", "a1", 8) }).await);
    assert!(matches!(one.submit(taken(&mine, "r1", "a1")).await, Ok(Reply::Leased(_))));
}

/// A commit that is under way when another takes a turn comes before that turn, or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_turn_begins_behind_what_was_handed_out_before() {
    let server = shared();
    let url = server.empty().await;
    let (one, other) = (open(&url).await, open(&url).await);
    with_queue(&one).await;
    one.submit(create("r0")).await.unwrap();
    let (mut before, mut never) = (0, 0);
    for n in 0..60 {
        let name = format!("a{n}");
        one.submit(child("r0", &name)).await.unwrap();
        let turn = soon(turn_of(&one)).await;
        let late = Submission { turn: turn.number(), ..lease("r0", &name, 7) };
        lose_turn(&url).await;
        let store = one.clone();
        let leasing = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_micros(60 * n)).await;
            store.submit(late).await
        });
        let next = soon(turn_of(&other)).await;
        let seen = other.snapshot(&key("r0"), Which::One(ActionName::new(&name).unwrap())).await.unwrap().unwrap();
        let leased = seen.actions[0].live_lease().is_some();
        drop(next);
        match leasing.await.unwrap() {
            Ok(Reply::Leased(_)) => {
                assert!(leased, "{name} was handed out in a turn after which another had begun");
                before += 1;
            }
            Err(SubmitError::Store(StoreError::TurnOver)) => {
                assert!(!leased);
                never += 1;
            }
            answer => panic!("{answer:?}"),
        }
    }
    assert!(never > 0, "{before} came before, {never} never");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_reconciles_at_a_time() {
    let server = shared();
    let url = server.empty().await;
    let (one, other) = (open(&url).await, open(&url).await);
    let mut turn = soon(one.lead()).await.unwrap();
    not_yet(other.lead()).await;
    not_yet(turn.lost()).await;
    // Its connection is lost, as when it was killed or stands still: another goes on, and it hears of it.
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let leaders = "SELECT pg_terminate_backend(l.pid) FROM pg_locks l
                   WHERE l.locktype = 'advisory' AND l.objid = 2
                     AND l.classid = (hashtext('aloft.' || current_schema())::bigint & 4294967295)::oid";
    assert_eq!(client.query(leaders, &[]).await.unwrap().len(), 1);
    let led = soon(other.lead()).await.unwrap();
    soon(turn.lost()).await;
    drop(led);
    soon(one.lead()).await.unwrap();
}
