//! What giving up history costs those who write at the same time, and what it gives back: `retention URL [ROUNDS] [RUNS]` with
//! a `postgres://` address or a path of SQLite.
//!
//! In each round runs of four actions live as fast as they can, and one client more starts a run every few milliseconds, whose
//! wait is measured. In every second round, what ended before the round before it is given up at the same time.

#![expect(clippy::print_stdout, reason = "a measurement is printed")]

mod work;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use aloft_core::{
    ActionName, AttemptOutcome, Command, DEFAULT_QUEUE, Lease, LeaseToken, OutputRefs, Progress, RunInfo, RunKey, Time,
    WorkerId,
};
use aloft_store::{Blob, Pruned, Queue, Retention, Store, Submission};
use aloft_store_postgres::{Options, PostgresStore};
use aloft_store_sqlite::SqliteStore;

use self::work::{run, seed};

fn now() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Time::from_micros(since.as_micros() as i64)
}

fn create(name: String) -> Submission {
    let own = Blob { digest: format!("{name:0>64}"), bytes: vec![7u8; 400].into(), own: true };
    let info = RunInfo { spec_digest: own.digest.clone(), ..RunInfo::default() };
    Submission {
        run: run(name),
        command: Command::create_run(seed(), info),
        blobs: vec![own],
        site_revision: None,
        turn: None,
    }
}

async fn lives(store: &Arc<dyn Store>, run: &RunKey, action: ActionName) {
    let submit = |command| store.submit(Submission::new(run.clone(), command));
    let lease = Lease { worker: WorkerId("worker".into()), token: LeaseToken(7) };
    submit(Command::Lease { action: action.clone(), lease }).await.unwrap();
    let report = |progress| Command::Report { action: action.clone(), attempt: 1, token: LeaseToken(7), progress };
    submit(report(Progress::Running)).await.unwrap();
    let outputs =
        OutputRefs { output_uri: "s3://aloft/local/flytesnacks/development/r0/a0/1".into(), report_uri: String::new() };
    submit(report(Progress::Ended(AttemptOutcome::Succeeded(outputs)))).await.unwrap();
}

async fn whole(store: &Arc<dyn Store>, name: String) {
    let key = run(name.clone());
    store.submit(create(name)).await.unwrap();
    for child in ["x1", "x2", "x3"] {
        let child = ActionName::new(child).unwrap();
        store
            .submit(Submission::new(key.clone(), Command::enqueue(child.clone(), ActionName::root(), "", seed())))
            .await
            .unwrap();
        lives(store, &key, child).await;
    }
    lives(store, &key, ActionName::root()).await;
}

/// How large the database is, in bytes: all of it, and what is in use.
async fn size(url: &str) -> String {
    if !url.starts_with("postgres") {
        let bytes = std::fs::metadata(url).map_or(0, |m| m.len());
        return format!("{:.1} MB", bytes as f64 / 1e6);
    }
    let (client, connection) = tokio_postgres::connect(url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let sql = "SELECT relname::text, pg_total_relation_size(oid) FROM pg_class
               WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace ORDER BY 2 DESC";
    let rows = client.query(sql, &[]).await.unwrap();
    let all: i64 = rows.iter().map(|r| r.get::<_, i64>(1)).sum();
    let most: Vec<_> = rows
        .iter()
        .take(5)
        .map(|r| format!("{} {:.1}", r.get::<_, String>(0), r.get::<_, i64>(1) as f64 / 1e6))
        .collect();
    format!("{:.1} MB ({})", all as f64 / 1e6, most.join(", "))
}

fn shown(mut took: Vec<Duration>) -> String {
    took.sort();
    let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    format!("{} creations: p50 {:.1} p99 {:.1} max {:.1} ms", took.len(), at(0.5), at(0.99), at(1.0))
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1);
    let url = args.next().expect("URL");
    let rounds: usize = args.next().map_or(6, |n| n.parse().unwrap());
    let runs: usize = args.next().map_or(2000, |n| n.parse().unwrap());
    let at_once: usize = args.next().map_or(64, |n| n.parse().unwrap());
    let step: usize = args.next().map_or(200, |n| n.parse().unwrap());
    let store: Arc<dyn Store> = if url.starts_with("postgres") {
        Arc::new(PostgresStore::open(&url, &Options::default(), Arc::new(now)).await.unwrap())
    } else {
        Arc::new(SqliteStore::open(std::path::Path::new(&url), Arc::new(now)).unwrap())
    };
    let limits = aloft_core::QueueLimits { depth: Some(u32::MAX), ..Default::default() };
    let queue = Queue {
        org: "local".into(),
        name: DEFAULT_QUEUE.into(),
        spec: aloft_core::QueueSpec { limits, ..Default::default() },
        state: aloft_core::QueueState::Active,
        generation: 1,
        created_at: now(),
        created_by: Default::default(),
        updated_at: now(),
        deleted_at: None,
    };
    store.create_queue(queue).await.unwrap();
    let mut began = vec![now()];
    for round in 0..rounds {
        let gives_up = round % 2 == 1;
        began.push(now());
        let before = began[round];
        let over = Arc::new(AtomicBool::new(false));
        let pruning = {
            let (store, over) = (Arc::clone(&store), Arc::clone(&over));
            tokio::spawn(async move {
                let mut sum = Pruned::default();
                let (mut slowest, mut busy) = (Duration::ZERO, Duration::ZERO);
                while gives_up && !over.load(Ordering::Relaxed) {
                    let at = now();
                    let retention = Retention { runs: Some(at.since(before)), ..Retention::default() };
                    let begun = Instant::now();
                    let done = store.prune(&retention, at, step).await.unwrap();
                    let took = begun.elapsed();
                    slowest = slowest.max(took);
                    busy += took;
                    sum.add(done);
                    tokio::time::sleep(if done.more { took } else { Duration::from_millis(100) }).await;
                }
                (sum, slowest, busy)
            })
        };
        let probe = {
            let (store, over) = (Arc::clone(&store), Arc::clone(&over));
            tokio::spawn(async move {
                let mut took = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let name = format!("probe{round}-{}", took.len());
                    store.submit(create(name.clone())).await.unwrap();
                    took.push(begun.elapsed());
                    lives(&store, &run(name), ActionName::root()).await;
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                took
            })
        };
        let next = Arc::new(AtomicUsize::new(0));
        let begun = Instant::now();
        let clients: Vec<_> = (0..at_once)
            .map(|_| {
                let (store, next) = (Arc::clone(&store), Arc::clone(&next));
                tokio::spawn(async move {
                    loop {
                        let i = next.fetch_add(1, Ordering::Relaxed);
                        if i >= runs {
                            return;
                        }
                        whole(&store, format!("r{round}-{i}")).await;
                    }
                })
            })
            .collect();
        for client in clients {
            client.await.unwrap();
        }
        let rate = runs as f64 * 4.0 / begun.elapsed().as_secs_f64();
        over.store(true, Ordering::Relaxed);
        let took = probe.await.unwrap();
        let (pruned, slowest, busy) = pruning.await.unwrap();
        println!("round {round}: {rate:.0} actions/s; {}; {}", shown(took), size(&url).await);
        if gives_up {
            let rows = (pruned.actions + pruned.events) as f64 / busy.as_secs_f64();
            println!("    gave up {pruned:?}; slowest step {slowest:?}; {rows:.0} rows per second of work");
        }
    }
    let (begun, mut sum, mut steps) = (Instant::now(), Pruned::default(), Vec::new());
    loop {
        let retention = Retention { runs: Some(Duration::ZERO), ..Retention::default() };
        let step_begun = Instant::now();
        let done = store.prune(&retention, now(), step).await.unwrap();
        steps.push(step_begun.elapsed());
        sum.add(done);
        if !done.more {
            break;
        }
    }
    let rows = (sum.actions + sum.events) as f64 / begun.elapsed().as_secs_f64();
    steps.sort();
    let (p50, p99) = (steps[steps.len() / 2], steps[steps.len() * 99 / 100]);
    println!(
        "alone: {sum:?} in {:?}, {rows:.0} rows/s; step p50 {p50:?} p99 {p99:?}; {}",
        begun.elapsed(),
        size(&url).await
    );
}
