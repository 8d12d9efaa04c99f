//! How fast an engine is, without a server: `rates URL [ACTIONS] [RUNS]` with a `postgres://` address or a path of SQLite.
//!
//! One client after the other creates runs; then many at once carry actions through their lives: enqueued, leased, running,
//! succeeded, each step durable before the next.

#![expect(clippy::print_stdout, reason = "a measurement is printed")]

mod work;

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use aloft_core::{
    ActionName, AttemptOutcome, Command, DEFAULT_QUEUE, Lease, LeaseToken, OutputRefs, Progress, RunInfo, RunKey, Time,
    WorkerId,
};
use aloft_store::{Queue, Store, Submission};
use aloft_store_postgres::{Options, PostgresStore};
use aloft_store_sqlite::SqliteStore;

use self::work::{run, seed};

fn now() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Time::from_micros(since.as_micros() as i64)
}

async fn open(url: &str) -> Arc<dyn Store> {
    let clock = Arc::new(now);
    if url.starts_with("postgres") {
        return Arc::new(PostgresStore::open(url, &Options::default(), clock).await.unwrap());
    }
    Arc::new(SqliteStore::open(std::path::Path::new(url), clock).unwrap())
}

async fn live(store: &Arc<dyn Store>, run: &RunKey, action: ActionName, token: u64) {
    let submit = |command| store.submit(Submission::new(run.clone(), command));
    submit(Command::enqueue(action.clone(), ActionName::root(), "", seed())).await.unwrap();
    let lease = Lease { worker: WorkerId("worker".into()), token: LeaseToken(token) };
    submit(Command::Lease { action: action.clone(), lease }).await.unwrap();
    let report = |progress| Command::Report { action: action.clone(), attempt: 1, token: LeaseToken(token), progress };
    submit(report(Progress::Running)).await.unwrap();
    let outputs =
        OutputRefs { output_uri: "s3://aloft/local/flytesnacks/development/r0/a0/1".into(), report_uri: String::new() };
    submit(report(Progress::Ended(AttemptOutcome::Succeeded(outputs)))).await.unwrap();
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let mut args = std::env::args().skip(1);
    let url = args.next().expect("URL");
    let actions: usize = args.next().map_or(20_000, |n| n.parse().unwrap());
    let runs: usize = args.next().map_or(10, |n| n.parse().unwrap());
    let at_once: usize = args.next().map_or(512, |n| n.parse().unwrap());
    let store = open(&url).await;
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
    let mark = now().as_micros();
    let mut took = Vec::new();
    for i in 0..200 {
        let begun = Instant::now();
        let create = Command::create_run(seed(), RunInfo::default());
        store.submit(Submission::new(run(format!("c{mark}-{i}")), create)).await.unwrap();
        took.push(begun.elapsed());
    }
    took.sort();
    println!("create, one client: p50 {:?} p99 {:?}", took[100], took[198]);
    for r in 0..runs {
        store
            .submit(Submission::new(run(format!("r{mark}-{r}")), Command::create_run(seed(), RunInfo::default())))
            .await
            .unwrap();
    }
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let begun = Instant::now();
    let clients: Vec<_> = (0..at_once)
        .map(|_| {
            let (store, next) = (Arc::clone(&store), Arc::clone(&next));
            tokio::spawn(async move {
                loop {
                    let i = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if i >= actions {
                        return;
                    }
                    let name = ActionName::new(&format!("a{i:07}")).unwrap();
                    live(&store, &run(format!("r{mark}-{}", i % runs)), name, i as u64 + 1).await;
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    let took = begun.elapsed().as_secs_f64();
    println!(
        "{actions} actions in {runs} runs, {at_once} at once: {took:.1} s, {:.0} actions/s",
        actions as f64 / took
    );
}
