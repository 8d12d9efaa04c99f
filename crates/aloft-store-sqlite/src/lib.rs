//! The store on SQLite, for `aloft dev` and a single small node.
//!
//! One file in write-ahead mode with `synchronous = FULL`, so that a commit survives a power cut. One writer thread
//! ([`writer`]) with group commit; readers on connections of their own, which never wait for it.
//!
//! `rusqlite` and not `sqlx`: the writer wants many statements of one transaction without a thread hop for each, and the
//! crate is a fifth of the size.

mod cache;
mod children;
mod error;
mod hot;
mod lanes;
mod list;
mod listed;
mod order;
mod places;
mod prune;
mod queues;
mod read;
mod save;
mod schema;
mod stored;
mod workers;
mod writer;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use aloft_core::{ActionName, ActionState, CacheEntry, CachePlan, Reply, Reservation, RunKey, Scope, Time, WorkerId};
use aloft_store::{
    AboutWorker, Blob, Census, ChildGroups, ChildQuery, ChildWindow, DeployedTask, Domain, DomainUse, FeedItem, Filter,
    Hub, InTurn, ListQuery, ListScope, Logged, Observer, OfferPlace, Offered, Outline, Page, Position, Project,
    ProjectLimits, Pruned, Queue, QueueLoad, Retention, RunChanges, RunRecord, RunRow, RunTotals, SettingsKey,
    SettingsVersion, Sift, Sifted, Site, Snapshot, Store, StoreError, Submission, SubmitError, TaskId, TaskList, Turn,
    Walk, Which, WorkerRecord, sql::Next,
};
use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, config::DbConfig, functions::FunctionFlags};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use self::{
    hot::Hot,
    writer::{Job, RecordJob},
};

/// Where the time of events comes from.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// Most jobs that wait for the writer. Beyond it, submitters wait: the writer drains this in a few batches.
const QUEUE: usize = 8192;

/// Readers at a time. Two cores; more would only wait for each other.
const READERS: usize = 4;

/// Prepared statements that a connection keeps. More than there are of them without filters, which are put together.
const STATEMENTS: usize = 128;

/// The store on one SQLite file.
#[derive(Clone)]
pub struct SqliteStore {
    engine: Engine,
    hub: Hub,
    clock: Clock,
    /// Where the look for blobs that nothing uses goes on.
    walk: Arc<Mutex<Walk<prune::Day>>>,
}

/// Who does the work.
#[derive(Clone)]
enum Engine {
    /// The writer's thread, and threads that read.
    Threads { jobs: mpsc::Sender<Job>, readers: Arc<Readers> },
    /// Whoever asks, on one connection.
    Caller(Arc<Mutex<(Connection, Hot)>>),
}

struct Readers {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
    permits: Semaphore,
}

/// The version of the schema of the database at `path`, and the newest that this program knows. Only reads.
///
/// # Errors
/// [`StoreError::Corrupt`], [`StoreError::Newer`] or [`StoreError::Unavailable`].
pub fn inspect(path: &Path) -> Result<(i64, i64), StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    schema::versions(&Connection::open_with_flags(path, flags).map_err(error::from_sqlite)?)
}

impl SqliteStore {
    /// Opens the database at `path`, creating or migrating it, and starts its writer. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::Newer`], [`StoreError::Full`] or [`StoreError::Unavailable`]; the file is
    /// left as it was.
    pub fn open(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        Self::open_limited(path, clock, 0)
    }

    /// As [`SqliteStore::open`], with the file limited to `max_pages` pages; 0 for no limit. A full disk that a test can
    /// make.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_limited(path: &Path, clock: Clock, max_pages: i64) -> Result<Self, StoreError> {
        let db = open_writer(path)?;
        if max_pages > 0 {
            // The pragma answers with the limit in force, so it is a query.
            db.query_row(&format!("PRAGMA max_page_count = {max_pages}"), [], |_| Ok(()))
                .map_err(error::from_sqlite)?;
        }
        let hub = Hub::new(read::last_pos(&db)?);
        let (jobs, receiver) = mpsc::channel(QUEUE);
        let (for_writer, writers_clock) = (hub.clone(), Arc::clone(&clock));
        std::thread::Builder::new()
            .name("sqlite-writer".to_owned())
            .spawn(move || writer::run(db, receiver, for_writer, writers_clock))
            .map_err(|e| StoreError::Unavailable(format!("cannot start the writer thread: {e}")))?;
        let readers = Readers { path: path.to_owned(), idle: Mutex::default(), permits: Semaphore::new(READERS) };
        Ok(Self { engine: Engine::Threads { jobs, readers: Arc::new(readers) }, hub, clock, walk: Arc::default() })
    }

    /// As [`SqliteStore::open`], without threads: whatever is asked is done by who asks before anything else happens, one
    /// commit for each change. For simulations, in which nothing may depend on when a thread runs.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn open_in_caller(path: &Path, clock: Clock) -> Result<Self, StoreError> {
        let db = open_writer(path)?;
        functions(&db).map_err(error::from_sqlite)?;
        let hub = Hub::new(read::last_pos(&db)?);
        let engine = Engine::Caller(Arc::new(Mutex::new((db, Hot::default()))));
        Ok(Self { engine, hub, clock, walk: Arc::default() })
    }

    /// Waits until everything submitted so far is committed.
    pub async fn flush(&self) {
        let _ = self.record(Box::new(|_, _| Ok(true))).await;
    }

    async fn read<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Connection) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let readers = match &self.engine {
            Engine::Threads { readers, .. } => Arc::clone(readers),
            Engine::Caller(db) => return f(&db.lock().0),
        };
        let closed = |_| StoreError::Unavailable("the store is closing".to_owned());
        let permits = Arc::clone(&readers);
        let _permit = permits.permits.acquire().await.map_err(closed)?;
        let work = move || {
            let idle = readers.idle.lock().pop();
            let mut db = match idle {
                Some(db) => db,
                None => open_reader(&readers.path)?,
            };
            // One read transaction, so that a snapshot and its number belong together.
            let result = db.transaction().map_err(error::from_sqlite).and_then(|tx| f(&tx));
            readers.idle.lock().push(db);
            result
        };
        tokio::task::spawn_blocking(work)
            .await
            .unwrap_or_else(|e| Err(StoreError::Unavailable(format!("a read did not finish: {e}"))))
    }

    /// The token of the page that `next` begins; keeps the order first if that is how it goes on.
    async fn token(&self, next: Next) -> Result<String, StoreError> {
        let (list, position) = match next {
            Next::End => return Ok(String::new()),
            Next::At { list, position } => (list, position),
            Next::Keep { list, order, at } => {
                let number = Arc::new(AtomicI64::new(0));
                let kept = Arc::clone(&number);
                self.record(Box::new(move |tx, now| {
                    kept.store(order::keep(tx, list, &order, now)?, Ordering::Release);
                    Ok(true)
                }))
                .await?;
                (list, Position::Kept { order: number.load(Ordering::Acquire), at })
            }
        };
        Ok(ListQuery::token(list, position))
    }

    async fn record(&self, write: RecordJob) -> Result<bool, StoreError> {
        let (done, answer) = oneshot::channel();
        self.send(Job::Record { write, done }, answer).await.map_err(|e| match e {
            SubmitError::Store(e) => e,
            SubmitError::Refused(r) => StoreError::Unavailable(r.to_string()),
        })
    }

    /// As [`SqliteStore::record`], for what decides about work that waits.
    async fn record_and_wake(&self, write: RecordJob) -> Result<bool, StoreError> {
        let changed = self.record(write).await?;
        if changed {
            self.hub.wake();
        }
        Ok(changed)
    }

    async fn send<T>(&self, job: Job, answer: oneshot::Receiver<Result<T, SubmitError>>) -> Result<T, SubmitError> {
        self.hand(job).await?;
        answer.await.unwrap_or_else(|_| Err(closing()))
    }

    /// Hands a job to whoever writes. Jobs are done in the order in which they are handed over.
    async fn hand(&self, job: Job) -> Result<(), SubmitError> {
        match &self.engine {
            Engine::Threads { jobs, .. } => jobs.send(job).await.map_err(|_| closing()),
            Engine::Caller(db) => {
                let (db, hot) = &mut *db.lock();
                writer::commit_batch(db, hot, std::iter::once(job), &self.hub, (self.clock)());
                Ok(())
            }
        }
    }
}

fn closing() -> SubmitError {
    SubmitError::Store(StoreError::Unavailable("the store is closing".to_owned()))
}

/// The connection that writes, to a database of today's schema.
fn open_writer(path: &Path) -> Result<Connection, StoreError> {
    let mut db = Connection::open(path).map_err(error::from_sqlite)?;
    schema::check(&db)?;
    tune(&db)?;
    schema::migrate(&mut db)?;
    Ok(db)
}

fn tune(db: &Connection) -> Result<(), StoreError> {
    let set = |name: &str, value: &str| db.pragma_update(None, name, value).map_err(error::from_sqlite);
    set("auto_vacuum", "INCREMENTAL")?; // counts only for a file that is new, and first
    set("journal_mode", "WAL")?;
    set("synchronous", "FULL")?;
    set("busy_timeout", "5000")?;
    set("foreign_keys", "OFF")?; // the writer is the only one that inserts, in order
    set("cache_size", "-8192")?; // 8 MB
    set("temp_store", "MEMORY")?; // what a trigger's statement may have to undo is a few pages
    keep_statements(db)
}

/// Keeps prepared statements, and the plans they were prepared with: SQLite would otherwise plan each anew whenever another
/// value is bound to it, which costs more than to carry it out.
fn keep_statements(db: &Connection) -> Result<(), StoreError> {
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map_err(error::from_sqlite)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(())
}

fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags).map_err(error::from_sqlite)?;
    db.pragma_update(None, "busy_timeout", "5000").map_err(error::from_sqlite)?;
    db.pragma_update(None, "cache_size", "-2048").map_err(error::from_sqlite)?;
    keep_statements(&db)?;
    functions(&db).map_err(error::from_sqlite)?;
    Ok(db)
}

/// What filters need beyond SQLite's own functions.
fn functions(db: &Connection) -> Result<(), rusqlite::Error> {
    let pure = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    // `lower` of SQLite knows ASCII only.
    db.create_scalar_function("folded", 1, pure, |context| {
        Ok(context.get::<Option<String>>(0)?.map(|text| text.to_lowercase()))
    })?;
    db.create_scalar_function("ends_with", 2, pure, |context| {
        let (text, end) = (context.get::<Option<String>>(0)?, context.get::<Option<String>>(1)?);
        Ok(text.zip(end).map(|(text, end)| text.ends_with(&end)))
    })
}

#[async_trait]
impl Store for SqliteStore {
    async fn submit(&self, submission: Submission) -> Result<Reply, SubmitError> {
        let (done, answer) = oneshot::channel();
        self.send(Job::Submit { submission: Box::new(submission), done }, answer).await
    }

    async fn submit_in_order(&self, submissions: Vec<Submission>) -> Vec<Result<Reply, SubmitError>> {
        let mut answers = Vec::with_capacity(submissions.len());
        for submission in submissions {
            let (done, answer) = oneshot::channel();
            let handed = self.hand(Job::Submit { submission: Box::new(submission), done }).await;
            answers.push(handed.ok().map(|()| answer));
        }
        let mut results = Vec::with_capacity(answers.len());
        for answer in answers {
            let result = match answer {
                Some(answer) => answer.await.ok(),
                None => None,
            };
            results.push(result.unwrap_or_else(|| Err(closing())));
        }
        results
    }

    async fn blob(&self, digest: &str) -> Result<Option<Bytes>, StoreError> {
        let digest = digest.to_owned();
        self.read(move |db| read::blob(db, &digest)).await
    }

    async fn run(&self, run: &RunKey) -> Result<Option<RunRecord>, StoreError> {
        let run = run.clone();
        self.read(move |db| read::run(db, &run)).await
    }

    async fn snapshot(&self, run: &RunKey, which: Which) -> Result<Option<Snapshot>, StoreError> {
        let run = run.clone();
        self.read(move |db| read::snapshot(db, &run, &which)).await
    }

    async fn events_after(&self, run: &RunKey, seq: u64, limit: usize) -> Result<Vec<Logged>, StoreError> {
        let run = run.clone();
        self.read(move |db| read::events_after(db, &run, seq, limit)).await
    }

    async fn feed_after(&self, pos: u64, limit: usize) -> Result<Vec<FeedItem>, StoreError> {
        self.read(move |db| read::feed_after(db, pos, limit)).await
    }

    async fn sift_feed(&self, pos: u64, limit: usize, of: Sift) -> Result<Sifted, StoreError> {
        self.read(move |db| read::sift_feed(db, pos, limit, of)).await
    }

    fn changes(&self, run: &RunKey) -> watch::Receiver<u64> {
        self.hub.run(run)
    }

    fn feed(&self) -> watch::Receiver<u64> {
        self.hub.feed()
    }

    async fn list_runs(&self, scope: &ListScope, query: &ListQuery) -> Result<Page<RunRow>, StoreError> {
        let (scope, query, now) = (scope.clone(), query.clone(), (self.clock)());
        let (rows, next) = self.read(move |db| listed::list_runs(db, &scope, &query, now)).await?;
        Ok(Page { rows, next: self.token(next).await? })
    }

    async fn list_actions(&self, run: &RunKey, query: &ListQuery) -> Result<Page<ActionState>, StoreError> {
        let (run, query, now) = (run.clone(), query.clone(), (self.clock)());
        let (rows, next) = self.read(move |db| listed::list_actions(db, &run, &query, now)).await?;
        Ok(Page { rows, next: self.token(next).await? })
    }

    async fn last_run_change(&self) -> Result<u64, StoreError> {
        self.read(listed::last_change).await
    }

    async fn runs_changed(
        &self,
        scope: &ListScope,
        filters: &[Filter],
        after: u64,
        limit: usize,
    ) -> Result<RunChanges, StoreError> {
        let (scope, filters) = (scope.clone(), filters.to_vec());
        self.read(move |db| listed::runs_changed(db, &scope, &filters, after, limit)).await
    }

    async fn run_totals(&self, scope: &ListScope, filters: &[Filter]) -> Result<RunTotals, StoreError> {
        let (scope, filters) = (scope.clone(), filters.to_vec());
        self.read(move |db| listed::run_totals(db, &scope, &filters)).await
    }

    async fn outline(&self, run: &RunKey) -> Result<Option<Outline>, StoreError> {
        let run = run.clone();
        self.read(move |db| listed::outline(db, &run)).await
    }

    async fn child_groups(
        &self,
        run: &RunKey,
        parent: &ActionName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<ChildGroups>, StoreError> {
        let (run, parent, after) = (run.clone(), parent.clone(), after.map(str::to_owned));
        self.read(move |db| children::groups(db, &run, &parent, after.as_deref(), limit)).await
    }

    async fn child_window(&self, run: &RunKey, query: &ChildQuery) -> Result<Option<ChildWindow>, StoreError> {
        let (run, query) = (run.clone(), query.clone());
        self.read(move |db| children::window(db, &run, &query)).await
    }

    async fn matched(
        &self,
        run: &RunKey,
        names: &[ActionName],
        filters: &[Filter],
        _upto: u64,
    ) -> Result<Vec<(ActionState, bool)>, StoreError> {
        let (run, names, filters) = (run.clone(), names.to_vec(), filters.to_vec());
        self.read(move |db| listed::matched(db, &run, &names, &filters)).await
    }

    async fn offer(&self, now: Time, after: &OfferPlace, groups: usize, each: usize) -> Result<Offered, StoreError> {
        let after = after.clone();
        self.read(move |db| lanes::offer(db, now, &after, groups, each)).await
    }

    async fn lookups(&self, now: Time, limit: usize) -> Result<(Vec<(RunKey, ActionState)>, Option<Time>), StoreError> {
        self.read(move |db| read::lookups(db, now, limit)).await
    }

    async fn calls_due(&self, limit: usize) -> Result<Vec<(RunKey, ActionState)>, StoreError> {
        self.read(move |db| read::calls_due(db, limit)).await
    }

    async fn cached(&self, scope: &Scope, plan: &CachePlan) -> Result<Vec<CacheEntry>, StoreError> {
        let (scope, plan) = (scope.clone(), plan.clone());
        self.read(move |db| cache::entries(db, &scope, &plan)).await
    }

    async fn put_cached(
        &self,
        scope: &Scope,
        key: &str,
        entry: CacheEntry,
        overwrite: bool,
    ) -> Result<bool, StoreError> {
        let (scope, key) = (scope.clone(), key.to_owned());
        self.record(Box::new(move |tx, now| cache::put(tx, &scope, &key, &entry, overwrite, now))).await
    }

    async fn drop_cached(&self, scope: &Scope, key: &str, output_uri: &str) -> Result<bool, StoreError> {
        let (scope, key, uri) = (scope.clone(), key.to_owned(), output_uri.to_owned());
        self.record(Box::new(move |tx, _| cache::forget(tx, &scope, &key, &uri))).await
    }

    async fn reserve(
        &self,
        scope: &Scope,
        key: &str,
        wanted: Reservation,
        now: Time,
    ) -> Result<Reservation, StoreError> {
        let place = cache::Place { scope: scope.clone(), domain: scope.domain.clone(), key: key.to_owned() };
        let (place, for_read) = (place.clone(), place);
        let owner = wanted.owner.clone();
        let taken = self.record(Box::new(move |tx, _| cache::reserve(tx, &place, &wanted, now))).await?;
        let holder = self.read(move |db| cache::holder(db, &for_read)).await?;
        match holder {
            Some(holder) => Ok(holder),
            // Given back between the two: as good as not held, but by whom cannot be said.
            None if taken => Ok(Reservation { owner, expires_at: Some(now) }),
            None => Err(StoreError::Unavailable("the reservation has just changed hands; ask again".to_owned())),
        }
    }

    async fn release(&self, scope: &Scope, key: &str, owner: &str) -> Result<bool, StoreError> {
        let place = cache::Place { scope: scope.clone(), domain: scope.domain.clone(), key: key.to_owned() };
        let owner = owner.to_owned();
        self.record(Box::new(move |tx, now| cache::release(tx, &place, &owner, now))).await
    }

    async fn due(&self, now: Time, limit: usize) -> Result<(Vec<(RunKey, ActionName)>, Option<Time>), StoreError> {
        self.read(move |db| read::due(db, now, limit)).await
    }

    async fn held_by(&self, worker: &WorkerId) -> Result<Vec<(RunKey, ActionState)>, StoreError> {
        let worker = worker.clone();
        self.read(move |db| read::held_by(db, &worker)).await
    }

    async fn held_part(
        &self,
        worker: &WorkerId,
        after: Option<i64>,
        limit: usize,
    ) -> Result<(Vec<(RunKey, ActionState)>, Option<i64>), StoreError> {
        let worker = worker.clone();
        self.read(move |db| read::held_part(db, &worker, after, limit)).await
    }

    async fn held_count(&self, worker: &WorkerId) -> Result<u64, StoreError> {
        let worker = worker.clone();
        self.read(move |db| workers::held_count(db, &worker)).await
    }

    async fn holders(&self) -> Result<Vec<WorkerId>, StoreError> {
        self.read(workers::holders).await
    }

    async fn worker(&self, id: &WorkerId) -> Result<Option<WorkerRecord>, StoreError> {
        let id = id.clone();
        self.read(move |db| workers::one(db, &id)).await
    }

    async fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError> {
        self.read(workers::all).await
    }

    async fn put_worker(&self, record: WorkerRecord, beat: u64) -> Result<bool, StoreError> {
        self.record(Box::new(move |tx, _| workers::put(tx, &record, beat))).await
    }

    async fn beat_worker(&self, id: &WorkerId, session: u64, about: AboutWorker) -> Result<bool, StoreError> {
        let id = id.clone();
        self.record(Box::new(move |tx, _| workers::beat(tx, &id, session, &about))).await
    }

    async fn drop_worker(&self, id: &WorkerId, beat: u64) -> Result<bool, StoreError> {
        let id = id.clone();
        self.record(Box::new(move |tx, _| workers::forget(tx, &id, beat))).await
    }

    async fn unsettled(&self, limit: usize) -> Result<Vec<(RunKey, ActionName)>, StoreError> {
        self.read(move |db| read::unsettled(db, limit)).await
    }

    async fn put_task(&self, task: DeployedTask, blob: Blob) -> Result<bool, StoreError> {
        self.record(Box::new(move |tx, _| {
            let new = read::insert_task(tx, &task)?;
            if new {
                tx.prepare_cached("INSERT OR IGNORE INTO blobs (digest, bytes) VALUES (?1, ?2)")?
                    .execute(rusqlite::params![blob.digest, blob.bytes.as_ref()])?;
            }
            Ok(new)
        }))
        .await
    }

    async fn task(&self, id: &TaskId) -> Result<Option<DeployedTask>, StoreError> {
        let id = id.clone();
        self.read(move |db| read::task(db, &id)).await
    }

    async fn list_tasks(&self, scope: &ListScope, latest: bool, query: &ListQuery) -> Result<TaskList, StoreError> {
        let (scope, query, now) = (scope.clone(), query.clone(), (self.clock)());
        let found = self.read(move |db| listed::list_tasks(db, &scope, latest, &query, now)).await?;
        let page = Page { rows: found.rows, next: self.token(found.next).await? };
        Ok(TaskList { page, total: found.total, filtered: found.filtered })
    }

    async fn create_project(&self, project: Project) -> Result<bool, StoreError> {
        self.record(Box::new(move |tx, _| {
            let body = to_json(&project)?;
            let sql = "INSERT OR IGNORE INTO projects (org, id, body) VALUES (?1, ?2, ?3)";
            Ok(tx.execute(sql, rusqlite::params![project.org, project.id, body])? > 0)
        }))
        .await
    }

    async fn update_project(&self, project: Project) -> Result<bool, StoreError> {
        self.record(Box::new(move |tx, _| {
            let body = to_json(&project)?;
            let sql = "UPDATE projects SET body = ?3 WHERE org = ?1 AND id = ?2";
            Ok(tx.execute(sql, rusqlite::params![project.org, project.id, body])? > 0)
        }))
        .await
    }

    async fn project(&self, org: &str, id: &str) -> Result<Option<Project>, StoreError> {
        let (org, id) = (org.to_owned(), id.to_owned());
        self.read(move |db| read::project(db, &org, &id)).await
    }

    async fn projects(&self, org: &str) -> Result<Vec<Project>, StoreError> {
        let org = org.to_owned();
        self.read(move |db| read::projects(db, &org)).await
    }

    async fn seed_domains(&self, org: &str, domains: Vec<Domain>) -> Result<bool, StoreError> {
        let org = org.to_owned();
        self.record(Box::new(move |tx, _| places::seed_domains(tx, &org, &domains))).await
    }

    async fn create_domain(&self, domain: Domain) -> Result<bool, StoreError> {
        self.record(Box::new(move |tx, _| places::insert_domain(tx, &domain))).await
    }

    async fn rename_domain(&self, org: &str, id: &str, name: &str) -> Result<bool, StoreError> {
        let (org, id, name) = (org.to_owned(), id.to_owned(), name.to_owned());
        self.record(Box::new(move |tx, _| places::rename_domain(tx, &org, &id, &name))).await
    }

    async fn delete_domain(&self, org: &str, id: &str) -> Result<bool, StoreError> {
        let (org, id) = (org.to_owned(), id.to_owned());
        self.record(Box::new(move |tx, _| places::delete_domain(tx, &org, &id))).await
    }

    async fn domain(&self, org: &str, id: &str) -> Result<Option<Domain>, StoreError> {
        let (org, id) = (org.to_owned(), id.to_owned());
        self.read(move |db| places::domain(db, &org, &id)).await
    }

    async fn domains(&self, org: &str) -> Result<Vec<Domain>, StoreError> {
        let org = org.to_owned();
        self.read(move |db| places::domains(db, &org)).await
    }

    async fn domain_use(&self, org: &str, id: &str) -> Result<DomainUse, StoreError> {
        let (org, id) = (org.to_owned(), id.to_owned());
        self.read(move |db| places::domain_use(db, &org, &id)).await
    }

    async fn put_settings(&self, version: SettingsVersion) -> Result<bool, StoreError> {
        self.record(Box::new(move |tx, _| places::put_settings(tx, &version))).await
    }

    async fn site(&self, scope: &Scope) -> Result<Site, StoreError> {
        let scope = scope.clone();
        self.read(move |db| places::site(db, &scope)).await
    }

    async fn settings_at(&self, key: &SettingsKey) -> Result<Vec<SettingsVersion>, StoreError> {
        let key = key.clone();
        self.read(move |db| places::settings_at(db, &key)).await
    }

    async fn settings_history(
        &self,
        key: &SettingsKey,
        after: u64,
        limit: usize,
    ) -> Result<Vec<SettingsVersion>, StoreError> {
        let key = key.clone();
        self.read(move |db| places::settings_history(db, &key, after, limit)).await
    }

    async fn create_queue(&self, queue: Queue) -> Result<bool, StoreError> {
        self.record_and_wake(Box::new(move |tx, _| queues::create(tx, &queue))).await
    }

    async fn replace_queue(&self, queue: Queue, generation: u64) -> Result<bool, StoreError> {
        self.record_and_wake(Box::new(move |tx, _| queues::replace(tx, &queue, generation))).await
    }

    async fn queue(&self, org: &str, name: &str) -> Result<Option<Queue>, StoreError> {
        let (org, name) = (org.to_owned(), name.to_owned());
        self.read(move |db| queues::one(db, &org, &name)).await
    }

    async fn queues(&self, org: &str) -> Result<Vec<Queue>, StoreError> {
        let org = org.to_owned();
        self.read(move |db| queues::all(db, &org)).await
    }

    async fn queue_load(&self, org: &str, name: &str) -> Result<QueueLoad, StoreError> {
        let (org, name) = (org.to_owned(), name.to_owned());
        let found = self.read(move |db| queues::loads(db, &org, Some(&name))).await?;
        Ok(found.into_values().next().unwrap_or_default())
    }

    async fn queue_loads(&self, org: &str) -> Result<BTreeMap<String, QueueLoad>, StoreError> {
        let org = org.to_owned();
        self.read(move |db| queues::loads(db, &org, None)).await
    }

    async fn replace_project_limits(&self, limits: ProjectLimits, generation: u64) -> Result<bool, StoreError> {
        self.record_and_wake(Box::new(move |tx, _| queues::replace_limits(tx, &limits, generation))).await
    }

    async fn project_limits(&self, org: &str) -> Result<Vec<ProjectLimits>, StoreError> {
        let org = org.to_owned();
        self.read(move |db| queues::limits(db, &org)).await
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.hub.observe(observer);
    }

    async fn census(&self) -> Result<Census, StoreError> {
        self.read(queues::census).await
    }

    async fn prune(&self, retention: &Retention, now: Time, most: usize) -> Result<Pruned, StoreError> {
        let (retention, walk) = (retention.clone(), Arc::clone(&self.walk));
        let next = self.read(move |db| prune::next(db, &retention, now, most, &walk)).await?;
        let Some(step) = next else { return Ok(Pruned::default()) };
        let pruned = Arc::new(Mutex::new(Pruned::default()));
        let done = Arc::clone(&pruned);
        self.record(Box::new(move |tx, _| {
            *done.lock() = prune::carry_out(tx, &step, most)?;
            Ok(true)
        }))
        .await?;
        let pruned = *pruned.lock();
        Ok(pruned)
    }

    async fn take_turn(&self) -> Result<Turn, StoreError> {
        Ok(Turn::of_one())
    }

    async fn offer_in_turn(
        &self,
        to: &WorkerId,
        now: Time,
        after: &OfferPlace,
        groups: usize,
        each: usize,
    ) -> Result<InTurn, StoreError> {
        let turn = self.take_turn().await?;
        let (offered, worker) = (self.offer(now, after, groups, each).await?, self.worker(to).await?);
        Ok(InTurn { turn, offered, worker })
    }

    async fn lead(&self) -> Result<Turn, StoreError> {
        Ok(Turn::of_one())
    }
}

fn to_json(project: &Project) -> Result<Vec<u8>, rusqlite::Error> {
    serde_json::to_vec(project).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}
