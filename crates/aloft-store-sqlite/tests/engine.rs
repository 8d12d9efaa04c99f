//! The SQLite engine: the common suite, and what is its own.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use aloft_core::{Command, RunInfo, RunKey, Scope, Seed, TaskPolicy, TaskRef, TaskSeed, Time};
use aloft_store::{Direction, Field, ListQuery, ListScope, SortBy, Store, StoreError, Submission, Which};
use aloft_store_sqlite::{Clock, SqliteStore};

fn clock() -> Clock {
    let now = AtomicI64::new(1_700_000_000_000_000);
    Arc::new(move || Time::from_micros(now.fetch_add(1000, Ordering::Relaxed)))
}

fn open(path: &Path) -> Result<SqliteStore, StoreError> {
    SqliteStore::open(path, clock())
}

fn create(name: &str) -> Submission {
    let run = RunKey::new(Scope::new("local", "p", "d").unwrap(), name).unwrap();
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
    let seed = Seed::Task(TaskSeed {
        task,
        policy: TaskPolicy::default(),
        input_uri: "s3://b/in.pb".into(),
        run_output_base: "s3://b/r".into(),
        cache: None,
        queue: aloft_core::DEFAULT_QUEUE.into(),
        asks: aloft_core::Asks::default(),
    });
    Submission::new(run, Command::create_run(seed, RunInfo::default()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let dirs = parking_lot::Mutex::new(Vec::new());
    aloft_store::conformance::run_all(|| async {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir.path().join("aloft.db")).unwrap();
        dirs.lock().push(dir);
        Arc::new(store) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms_without_threads_of_its_own() {
    let count = std::sync::atomic::AtomicU64::new(0);
    aloft_store::conformance::run_all(|| async {
        let name = format!("file:/conforms-{}?vfs=memdb", count.fetch_add(1, Ordering::Relaxed));
        Arc::new(SqliteStore::open_in_caller(Path::new(&name), clock()).unwrap()) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aloft.db");
    let run = create("r1").run;
    {
        let store = open(&path).unwrap();
        store.submit(create("r1")).await.unwrap();
        // Copied as a crash would leave it: log not folded in, nothing closed.
        for file in ["aloft.db", "aloft.db-wal"] {
            std::fs::copy(dir.path().join(file), dir.path().join(format!("crash-{file}"))).unwrap();
        }
    }
    for file in [path.clone(), dir.path().join("crash-aloft.db")] {
        let store = open(&file).unwrap();
        let snapshot = store.snapshot(&run, Which::All).await.unwrap().unwrap();
        assert_eq!((snapshot.seq, snapshot.actions.len()), (1, 1), "{file:?}");
    }
}

#[tokio::test]
async fn damaged_foreign_and_newer_files_are_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, prepare: &dyn Fn(&Path)| {
        let path = dir.path().join(name);
        prepare(&path);
        let before = std::fs::read(&path).unwrap();
        let Err(error) = open(&path) else { panic!("{name} must be refused") };
        assert_eq!(std::fs::read(&path).unwrap(), before, "{name} is left alone");
        error
    };
    let error = check("text.db", &|path| std::fs::write(path, "not a database, surely not".repeat(100)).unwrap());
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
    let error = check("foreign.db", &|path| {
        let db = rusqlite::Connection::open(path).unwrap();
        db.execute_batch("CREATE TABLE theirs (x); INSERT INTO theirs VALUES (1); PRAGMA journal_mode = WAL;").unwrap();
    });
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
    let error = check("newer.db", &|path| {
        drop(open(path).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(100));
        let db = rusqlite::Connection::open(path).unwrap();
        db.pragma_update(None, "user_version", 99).unwrap();
    });
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
}

#[tokio::test]
async fn a_full_disk_is_said_and_nothing_is_half_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aloft.db");
    let store = open(&path).unwrap();
    store.submit(create("r1")).await.unwrap();
    drop(store);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let db = rusqlite::Connection::open(&path).unwrap();
    let pages: i64 = db.pragma_query_value(None, "page_count", |r| r.get(0)).unwrap();
    drop(db);
    let store = SqliteStore::open_limited(&path, clock(), pages + 2).unwrap();
    let mut failure = None;
    for i in 0..2000 {
        if let Err(error) = store.submit(create(&format!("x{i}"))).await {
            failure = Some((i, error));
            break;
        }
    }
    let (i, error) = failure.expect("the limit is reached");
    assert!(error.to_string().contains("full"), "{error}");
    let lost = create(&format!("x{i}")).run;
    assert_eq!(store.snapshot(&lost, Which::All).await.unwrap(), None, "what was refused is not there");
    let kept = create("r1").run;
    assert!(store.snapshot(&kept, Which::All).await.unwrap().is_some(), "reads go on");
}

#[tokio::test]
async fn a_run_that_cannot_be_read_does_not_stop_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aloft.db");
    let store = open(&path).unwrap();
    store.submit(create("bad")).await.unwrap();
    // What the writer has under its hands it does not read again.
    drop(store);
    let db = rusqlite::Connection::open(&path).unwrap();
    // Damage does not come through SQL, so no trigger sees it.
    db.execute_batch("DROP TRIGGER run_index_changed; UPDATE actions SET state = x'7b';").unwrap();
    drop(db);
    let store = open(&path).unwrap();
    // Together, so that they share a batch.
    let (damaged, fine) = tokio::join!(store.submit(create("bad")), store.submit(create("good")));
    assert!(damaged.unwrap_err().to_string().contains("damaged"));
    fine.unwrap();
    assert!(store.snapshot(&create("good").run, Which::All).await.unwrap().is_some());
}

fn by_phase(limit: usize) -> ListQuery {
    let sort = vec![SortBy { field: Field::Phase, direction: Direction::Ascending }];
    ListQuery { sort, ..ListQuery::newest(Vec::new(), limit) }
}

#[tokio::test]
async fn kept_orders_expire_and_outlive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aloft.db");
    let now = Arc::new(AtomicI64::new(1_700_000_000_000_000));
    let reopen = || {
        let now = Arc::clone(&now);
        SqliteStore::open(&path, Arc::new(move || Time::from_micros(now.load(Ordering::Relaxed)))).unwrap()
    };
    let scope = ListScope { org: "local".into(), ..ListScope::default() };
    let store = reopen();
    for i in 0..10 {
        store.submit(create(&format!("r{i}"))).await.unwrap();
    }
    let first = store.list_runs(&scope, &by_phase(3)).await.unwrap();
    store.flush().await;
    drop(store);
    let store = reopen();
    let next = ListQuery { token: first.next, ..by_phase(3) };
    assert_eq!(store.list_runs(&scope, &next).await.unwrap().rows.len(), 3, "after a restart");
    now.fetch_add(3_601_000_000, Ordering::Relaxed);
    assert_eq!(store.list_runs(&scope, &next).await.unwrap_err(), StoreError::Expired);
    // The next one to be kept clears it away.
    let other = store.list_runs(&scope, &by_phase(3)).await.unwrap();
    store.flush().await;
    let db = rusqlite::Connection::open(&path).unwrap();
    let count = |sql: &str| db.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!((count("SELECT count(*) FROM list_orders"), count("SELECT count(*) FROM list_order_rows")), (1, 1));
    assert_ne!(other.next, next.token);
    now.fetch_sub(3_601_000_000, Ordering::Relaxed);
    assert_eq!(store.list_runs(&scope, &next).await.unwrap_err(), StoreError::Expired, "it is gone for good");
}

#[tokio::test]
async fn a_long_order_is_read_across_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aloft.db");
    let store = open(&path).unwrap();
    let all = futures::future::join_all((0..9000).map(|i| store.submit(create(&format!("r{i:04}"))))).await;
    assert!(all.into_iter().all(|r| r.is_ok()));
    let scope = ListScope { org: "local".into(), ..ListScope::default() };
    let mut query = by_phase(1000);
    let mut names = Vec::new();
    loop {
        let page = store.list_runs(&scope, &query).await.unwrap();
        names.extend(page.rows.into_iter().map(|r| r.run.key.name));
        if page.next.is_empty() {
            break;
        }
        query.token = page.next;
    }
    assert_eq!(names.len(), 9000);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 9000, "each once");
}

#[tokio::test]
async fn an_older_database_has_the_domains_that_were_fixed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aloft.db");
    let old = rusqlite::Connection::open(&path).unwrap();
    old.execute_batch(include_str!("../migrations/0001_runs.sql")).unwrap();
    old.execute_batch("PRAGMA application_id = 0x414c4654; PRAGMA user_version = 1").unwrap();
    old.execute("INSERT INTO projects (org, id, body) VALUES ('local', 'p', x'7b7d')", []).unwrap();
    drop(old);
    let store = open(&path).unwrap();
    let ids: Vec<_> = store.domains("local").await.unwrap().into_iter().map(|d| d.id).collect();
    assert_eq!(ids, ["development", "staging", "production"]);
    assert!(store.domains("other").await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_given_up_leaves_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("aloft.db");
    let store = open(&path).unwrap();
    let large = vec![7u8; 100_000];
    for n in 0..60 {
        let name = format!("r{n}");
        let own = aloft_store::Blob { digest: name.clone(), bytes: large.clone().into(), own: true };
        let create = Submission { blobs: vec![own], ..create(&name) };
        let end = Command::Abort { action: aloft_core::ActionName::root(), by: aloft_core::EndedBy::asked("me", "") };
        let run = create.run.clone();
        store.submit(create).await.unwrap();
        store.submit(Submission::new(run, end)).await.unwrap();
    }
    let pages = || {
        let db = rusqlite::Connection::open(&path).unwrap();
        let rows: i64 = db
            .query_row("SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM actions)", [], |r| r.get(0))
            .unwrap();
        (db.pragma_query_value(None, "page_count", |r| r.get::<_, i64>(0)).unwrap(), rows)
    };
    let (full, rows) = pages();
    assert_eq!(rows, 180);
    let retention = aloft_store::Retention { runs: Some(std::time::Duration::from_secs(1)), ..Default::default() };
    let late = Time::from_micros(1_800_000_000_000_000);
    while store.prune(&retention, late, 100).await.unwrap().more {}
    let (left, rows) = pages();
    assert_eq!(rows, 0);
    assert!(left < full / 2 && full > 1000, "{full} pages became {left}");
}
