//! How long the usual lists take: `lists [RUNS]` fills a store with as many runs (100,000) and times pages of 100 rows.
//!
//! The runs go through the same commands as real ones, so their rows have real sizes; no server and no tasks are involved.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use aloft_core::{
    Asks, AttemptOutcome, Command, DEFAULT_QUEUE, ErrorKind, Lease, LeaseToken, OutputRefs, Progress, RunInfo, RunKey,
    Scope, Seed, Subject, TaskError, TaskPolicy, TaskRef, TaskSeed, Time, WorkerId,
};
use aloft_store::{Cursor, Direction, Field, Filter, ListQuery, ListScope, Op, SortBy, Store, StoreError, Submission};
use aloft_store_sqlite::SqliteStore;
use futures::future::join_all;

/// Pages timed of each list.
const TIMED: usize = 40;

fn scope() -> Scope {
    Scope { org: "local".into(), project: "flytesnacks".into(), domain: "development".into() }
}

fn run(i: usize) -> RunKey {
    RunKey { scope: scope(), name: format!("r{i:06x}{:010x}", i.wrapping_mul(0x9e37_79b9)) }
}

/// What run `i` goes through. One in 20 fails, one in 500 is still running, one in 500 waits.
fn story(i: usize) -> Vec<Command> {
    let task = TaskRef {
        digest: "5a".repeat(32),
        project: "flytesnacks".into(),
        domain: "development".into(),
        name: format!("env{}.task", i % 20),
        version: format!("{:032x}", i % 5),
        task_type: "python".into(),
        short_name: "task".into(),
        environment: format!("env{}", i % 20),
    };
    let base = format!("s3://aloft-local/local/flytesnacks/development/runs/{i:06x}");
    let seed = Seed::Task(TaskSeed {
        task,
        policy: TaskPolicy::default(),
        input_uri: format!("{base}/inputs.pb"),
        run_output_base: base,
        cache: None,
        queue: DEFAULT_QUEUE.into(),
        asks: Asks::default(),
    });
    let info = RunInfo {
        spec_digest: "6b".repeat(32),
        source: 2,
        created_by: Subject { id: format!("user{}", i % 7), ..Subject::default() },
        labels: [("team".to_owned(), format!("t{}", i % 10)), ("ticket".to_owned(), format!("{}", i % 5000))].into(),
        ..RunInfo::default()
    };
    let root = aloft_core::ActionName::root;
    let token = LeaseToken(1);
    let report = |progress| Command::Report { action: root(), attempt: 1, token, progress };
    let mut steps = vec![Command::create_run(seed, info)];
    if i % 500 == 1 {
        return steps;
    }
    steps.push(Command::Lease { action: root(), lease: Lease { worker: WorkerId("w".into()), token } });
    steps.push(report(Progress::Running));
    if i % 500 == 2 {
        return steps;
    }
    steps.push(report(Progress::Ended(if i % 20 == 3 {
        let error = TaskError::new("ValueError", "it does not add up", ErrorKind::User, false);
        AttemptOutcome::Failed(error, OutputRefs::default())
    } else {
        AttemptOutcome::Succeeded(OutputRefs { output_uri: "s3://aloft-local/out".into(), report_uri: String::new() })
    })));
    steps
}

fn p50(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1000.0;
    format!("p50 {:7.2} ms   p95 {:7.2} ms", at(0.5), at(0.95))
}

fn phase(op: Op, phases: &[i64]) -> Filter {
    Filter { field: Field::Phase, op, values: phases.iter().map(|p| Cursor::Int(*p)).collect() }
}

fn sort(field: Field) -> Vec<SortBy> {
    vec![SortBy { field, direction: Direction::Descending }]
}

fn usual() -> Vec<(&'static str, ListQuery)> {
    let newest = |filters| ListQuery::newest(filters, 100);
    let label = |key: &str, value: &str| Filter::equal(Field::Label(key.to_owned()), value);
    let none = Filter { field: Field::Name, op: Op::Contains, values: vec![Cursor::Text("no such name".to_owned())] };
    vec![
        ("newest", newest(vec![])),
        (
            "oldest",
            ListQuery {
                sort: vec![SortBy { field: Field::CreatedAt, direction: Direction::Ascending }],
                ..newest(vec![])
            },
        ),
        ("phase = succeeded (95 %)", newest(vec![phase(Op::Equal, &[5])])),
        ("phase = failed (5 %)", newest(vec![phase(Op::Equal, &[6])])),
        ("phase = running (0.2 %)", newest(vec![phase(Op::Equal, &[4])])),
        ("phase in live ones", newest(vec![phase(Op::In, &[1, 2, 3, 4, 9])])),
        ("phase in succeeded, failed", newest(vec![phase(Op::In, &[5, 6])])),
        ("one task (5 %)", newest(vec![Filter::equal(Field::TaskName, "env3.task")])),
        ("one user (14 %)", newest(vec![Filter::equal(Field::CreatedBy, "user3")])),
        ("label of 10 %", newest(vec![label("team", "t3")])),
        ("label of 20 runs", newest(vec![label("ticket", "33")])),
        (
            "label key exists",
            newest(vec![Filter { field: Field::Label("team".into()), op: Op::Exists, values: vec![] }]),
        ),
        ("name contains what none has", newest(vec![none])),
        ("paused", newest(vec![Filter { field: Field::PausedActions, op: Op::Exists, values: vec![] }])),
        ("sorted by updated_at, first page", ListQuery { sort: sort(Field::UpdatedAt), ..newest(vec![]) }),
        ("sorted by duration, first page", ListQuery { sort: sort(Field::Duration), ..newest(vec![]) }),
    ]
}

#[tokio::main]
async fn main() -> Result<(), StoreError> {
    let runs = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let dir = std::env::args().nth(2).map_or_else(|| std::env::temp_dir().join("aloft-lists"), Into::into);
    std::fs::create_dir_all(&dir).map_err(|e| StoreError::Unavailable(e.to_string()))?;
    let now = AtomicI64::new(1_700_000_000_000_000);
    let clock = Arc::new(move || Time::from_micros(now.fetch_add(1000, Ordering::Relaxed)));
    let store = SqliteStore::open(&dir.join("aloft.db"), clock)?;
    let begun = Instant::now();
    for first in (0..runs).step_by(2000) {
        let some = (first..runs.min(first + 2000)).map(|i| {
            let store = store.clone();
            async move {
                for command in story(i) {
                    store.submit(Submission::new(run(i), command)).await.map_err(|e| e.to_string())?;
                }
                Ok::<_, String>(())
            }
        });
        for done in join_all(some).await {
            done.map_err(StoreError::Corrupt)?;
        }
    }
    println!("{runs} runs filled in {:.1} s", begun.elapsed().as_secs_f64());
    let place = ListScope { org: "local".into(), project: "flytesnacks".into(), domain: "development".into() };
    let org = ListScope { org: "local".into(), ..ListScope::default() };
    for (name, scope) in [("project", place.clone()), ("organisation", org)] {
        for (what, query) in usual() {
            let mut times = Vec::new();
            let mut rows = 0;
            for _ in 0..TIMED {
                let begun = Instant::now();
                rows = store.list_runs(&scope, &query).await?.rows.len();
                times.push(begun.elapsed());
            }
            println!("{name:12} {what:34} {rows:4} rows   {}", p50(times));
        }
    }
    for (what, sort) in [("newest", vec![]), ("updated_at", sort(Field::UpdatedAt))] {
        let mut query = ListQuery { sort, ..ListQuery::newest(vec![], 100) };
        let mut times = Vec::new();
        loop {
            let begun = Instant::now();
            let page = store.list_runs(&place, &query).await?;
            times.push(begun.elapsed());
            if page.next.is_empty() {
                break;
            }
            query.token = page.next;
        }
        println!("all {} pages of {what:20} {}", times.len(), p50(times));
    }
    let begun = Instant::now();
    let totals = store.run_totals(&place, &[]).await?;
    println!("totals of {} tasks: {:.1} ms", totals.tasks.len(), begun.elapsed().as_secs_f64() * 1000.0);
    Ok(())
}
