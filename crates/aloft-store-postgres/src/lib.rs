//! The store on Postgres, for any number of control planes beside each other.
//!
//! Commits are shared by the requests that wait for them ([`batch`]). Their order over all runs is that of one row, whose lock
//! each holds while it commits, so that a cursor over commits never misses one. Readers take connections of a pool and one
//! snapshot each.
//!
//! `tokio-postgres` and not `sqlx`: it sends statements without waiting for the answers of those before, which the end of a
//! commit needs, and checks nothing against a database when it is compiled. `deadpool-postgres` is the pool made for it.

mod batch;
mod cache;
mod children;
mod connect;
mod error;
mod follow;
mod lanes;
mod list;
mod listed;
mod order;
mod prune;
mod read;
mod recent;
mod records;
mod rows;
mod schema;
mod tls;
mod turn;
mod workers;

pub use self::{connect::check_address, tls::split_address};

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher as _, DefaultHasher, Hash, Hasher},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use aloft_core::{ActionName, ActionState, CacheEntry, CachePlan, Reply, Reservation, RunKey, Scope, Time, WorkerId};
use aloft_store::{
    AboutWorker, Blob, Census, ChildGroups, ChildQuery, ChildWindow, DeployedTask, Domain, DomainUse, FeedItem, Filter,
    Hub, InTurn, ListQuery, ListScope, Logged, Observer, OfferPlace, Offered, Outline, Page, Position, Project,
    ProjectLimits, Pruned, Queue, QueueLoad, Retention, RunChanges, RunRecord, RunRow, RunTotals, SettingsKey,
    SettingsVersion, Sift, Sifted, Site, Snapshot, Store, StoreError, Submission, SubmitError, TaskId, TaskList, Turn,
    Which, WorkerRecord, sql::Next,
};
use async_trait::async_trait;
use bytes::Bytes;
use deadpool_postgres::{Hook, HookError, Manager, ManagerConfig, Pool, QueueMode, RecyclingMethod, Runtime};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_postgres::Config;

use self::{
    batch::Job,
    cache::Place,
    connect::Connector,
    error::{from_pool, from_postgres},
    read::Reader,
};

/// Where the time of events comes from.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// A connection of the pool, in a transaction or not.
type Tx = deadpool_postgres::Client;

/// Most commands that wait for one writer. Beyond it, submitters wait.
const QUEUE: usize = 8192;

/// Gives the password as it is now, or says in a sentence why it cannot.
pub type Password = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// How a store uses its database.
#[derive(Clone)]
pub struct Options {
    /// The password of each new connection, in place of the address's.
    pub password: Option<Password>,
    /// Most connections, of which each writer takes one while it commits. One more listens.
    pub connections: usize,
    /// Writers: how many commits this process prepares at a time.
    pub writers: usize,
    /// Most connections that are kept while nothing uses them.
    pub idle: usize,
    /// How long a connection is used before another takes its place.
    pub lifetime: Duration,
    /// How long a request waits for a connection.
    pub wait: Duration,
    /// How long the server may take over one statement before it gives it up.
    pub statement_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            password: None,
            connections: 20,
            writers: 2,
            idle: 20,
            lifetime: Duration::from_secs(3600),
            wait: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
        }
    }
}

/// The store on one Postgres database.
#[derive(Clone)]
pub struct PostgresStore {
    shared: Arc<Shared>,
    writers: Arc<Vec<mpsc::Sender<Job>>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.pool.close();
    }
}

/// What everything of one store shares.
struct Shared {
    pool: Pool,
    connect: Connector,
    hub: Hub,
    clock: Clock,
    /// The channel of notifications.
    channel: String,
    /// What notifications of this process say.
    own: String,
    /// From when on records are packed.
    packs_from: Time,
    /// Commits of this process whose watchers have been told, until the follower has come past them.
    told: Mutex<BTreeSet<u64>>,
    recent: recent::Recent,
    walks: prune::Walks,
    guarded: batch::Guarded,
    turn: turn::Ours,
}

/// A word that no other process has.
fn own_name() -> String {
    format!("{:016x}", std::hash::RandomState::new().build_hasher().finish())
}

/// How often idle connections are looked at.
const SPARE: Duration = Duration::from_secs(60);

/// Closes connections that nothing uses, but for so many.
async fn spare(pool: Pool, idle: usize) {
    while !pool.is_closed() {
        tokio::time::sleep(SPARE).await;
        let mut kept = 0;
        pool.retain(|_, _| {
            kept += 1;
            kept <= idle
        });
    }
}

/// What there is at the database at `url`: the version of its server, and of the schema found and known. Changes nothing.
///
/// # Errors
/// [`StoreError::Unavailable`].
pub async fn inspect(url: &str, options: &Options) -> Result<Found, StoreError> {
    let connect = Connector::to(url, options)?;
    let (client, connection) = connect.open().await.map_err(from_postgres)?;
    let driven = tokio::spawn(connection);
    let row = client.query_one("SHOW server_version", &[]).await.map_err(from_postgres)?;
    let found = schema::version(&client).await?;
    driven.abort();
    Ok(Found { server: row.get(0), schema: found, known: schema::known() })
}

/// What [`inspect`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The version of the server.
    pub server: String,
    /// The version of the schema; `None` if there is none yet.
    pub schema: Option<i64>,
    /// The version that this program has.
    pub known: i64,
}

impl PostgresStore {
    /// Connects to the database at `url` (`postgres://user:password@host:5432/name`), creating or migrating its tables, and
    /// starts the writers.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] or [`StoreError::Newer`]; nothing is changed then.
    pub async fn open(url: &str, options: &Options, clock: Clock) -> Result<Self, StoreError> {
        let connect = Connector::to(url, options)?;
        let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        // The connector knows where to; the manager only carries a configuration to it.
        let manager = Manager::from_connect(Config::new(), connect.clone(), recycling);
        let lifetime = options.lifetime;
        let pool = Pool::builder(manager)
            .pre_recycle(Hook::sync_fn(move |_, metrics| {
                if metrics.age() > lifetime { Err(HookError::message("old enough")) } else { Ok(()) }
            }))
            .max_size(options.connections.max(options.writers + 2))
            // The one that was used last still has in its server's caches what the next statement needs.
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .timeouts(deadpool_postgres::Timeouts {
                wait: Some(options.wait),
                create: Some(options.wait),
                recycle: Some(options.wait),
            })
            .build()
            .map_err(|e| StoreError::Unavailable(e.to_string()))?;
        let mut client = pool.get().await.map_err(from_pool)?;
        schema::migrate(&mut client).await?;
        let sql = "SELECT pos, current_schema(), packs_from FROM feed, schema_version";
        let row = client.query_one(sql, &[]).await.map_err(from_postgres)?;
        let (pos, schema) = (row.get::<_, i64>(0).unsigned_abs(), row.get::<_, String>(1));
        let packs_from = Time::from_micros(row.get(2));
        drop(client);
        let places = batch::PLACES;
        let shared = Arc::new(Shared {
            pool,
            connect: connect.clone(),
            hub: Hub::new(pos * places + (places - 1)),
            clock,
            channel: format!("aloft.{schema}"),
            own: own_name(),
            packs_from,
            told: Mutex::default(),
            recent: recent::Recent::default(),
            walks: prune::Walks::default(),
            guarded: batch::Guarded::default(),
            turn: turn::Ours::default(),
        });
        let mut writers = Vec::new();
        for _ in 0..options.writers.max(1) {
            let (jobs, receiver) = mpsc::channel(QUEUE);
            tokio::spawn(batch::run(Arc::clone(&shared), receiver));
            writers.push(jobs);
        }
        let (heard, hears) = mpsc::channel(1);
        tokio::spawn(follow::listen(connect, shared.channel.clone(), shared.own.clone(), heard));
        tokio::spawn(follow::follow(Arc::downgrade(&shared), hears, pos));
        tokio::spawn(spare(shared.pool.clone(), options.idle));
        Ok(Self { shared, writers: Arc::new(writers) })
    }

    /// Waits until everything submitted so far is committed.
    pub async fn flush(&self) {
        for writer in self.writers.iter() {
            let (done, reached) = oneshot::channel();
            if writer.send(Job::Flush(done)).await.is_ok() {
                let _ = reached.await;
            }
        }
    }

    /// How many batches were decided on what their writer had kept, and how many of them had to be decided again.
    pub fn guarded(&self) -> (u64, u64) {
        let batch::Guarded { all, outdated } = &self.shared.guarded;
        (all.load(Ordering::Relaxed), outdated.load(Ordering::Relaxed))
    }

    async fn connection(&self) -> Result<Tx, StoreError> {
        self.shared.pool.get().await.map_err(from_pool)
    }

    /// The writer of a run: always the same one, so that commands to a run stay in order.
    fn writer(&self, run: &RunKey) -> &mpsc::Sender<Job> {
        let mut hasher = DefaultHasher::new();
        run.hash(&mut hasher);
        let number = hasher.finish() % self.writers.len() as u64;
        &self.writers[number as usize]
    }

    /// The token of the page that `next` begins; keeps the order first if that is how it goes on.
    async fn token(&self, next: Next) -> Result<String, StoreError> {
        let (list, position) = match next {
            Next::End => return Ok(String::new()),
            Next::At { list, position } => (list, position),
            Next::Keep { list, order, at } => {
                let now = (self.shared.clock)();
                let tx = batch::Open::begin(&self.shared.pool).await?;
                let number = order::keep(&tx, list, &order, now).await?;
                tx.end("COMMIT").await.map_err(from_postgres)?;
                (list, Position::Kept { order: number, at })
            }
        };
        Ok(ListQuery::token(list, position))
    }
}

/// Reads in one snapshot: the connection goes back when the answer is there.
macro_rules! read {
    ($store:expr, |$db:ident| $read:expr) => {
        read!($store, new, |$db| $read)
    };
    ($store:expr, $how:ident, |$db:ident| $read:expr) => {{
        let $db = Reader::$how($store.connection().await?);
        let found = $read.await?;
        $db.end();
        Ok(found)
    }};
}

/// Reads a list in one snapshot.
macro_rules! read_list {
    ($store:expr, |$db:ident| $read:expr) => {
        read!($store, listing, |$db| $read)
    };
}

/// Reads what is one statement.
macro_rules! read_once {
    ($store:expr, |$db:ident| $read:expr) => {
        read!($store, single, |$db| $read)
    };
}

/// Writes one record in one transaction.
macro_rules! write {
    ($store:expr, |$tx:ident| $write:expr) => {{
        let $tx = batch::Open::begin(&$store.shared.pool).await?;
        let changed = $write.await?;
        $tx.end("COMMIT").await.map_err(from_postgres)?;
        Ok(changed)
    }};
}

/// As `write`, for what decides about work that waits.
macro_rules! write_and_wake {
    ($store:expr, |$tx:ident| $write:expr) => {{
        let $tx = batch::Open::begin(&$store.shared.pool).await?;
        let changed = $write.await?;
        let told = $tx.execute("SELECT pg_notify($1, $2)", &[&$store.shared.channel, &follow::CHANGED]).await;
        told.map_err(from_postgres)?;
        $tx.end("COMMIT").await.map_err(from_postgres)?;
        if changed {
            $store.shared.hub.wake();
        }
        Ok(changed)
    }};
}

fn closing() -> SubmitError {
    SubmitError::Store(StoreError::Unavailable("the store is closing".to_owned()))
}

#[async_trait]
impl Store for PostgresStore {
    async fn submit(&self, submission: Submission) -> Result<Reply, SubmitError> {
        let (done, answer) = oneshot::channel();
        let writer = self.writer(&submission.run);
        writer.send(Job::Submit { submission: Box::new(submission), done }).await.map_err(|_| closing())?;
        answer.await.unwrap_or_else(|_| Err(closing()))
    }

    async fn submit_in_order(&self, submissions: Vec<Submission>) -> Vec<Result<Reply, SubmitError>> {
        // A writer does jobs in the order in which they are handed to it, and commands to one run go to one writer.
        let mut answers = Vec::with_capacity(submissions.len());
        for submission in submissions {
            let (done, answer) = oneshot::channel();
            let writer = self.writer(&submission.run);
            let handed = writer.send(Job::Submit { submission: Box::new(submission), done }).await;
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
        read_once!(self, |db| read::blob(&db, digest))
    }

    async fn run(&self, run: &RunKey) -> Result<Option<RunRecord>, StoreError> {
        let found: Result<_, StoreError> = read_once!(self, |db| read::find_run(&db, run));
        Ok(found?.map(|(_, _, record)| record))
    }

    async fn snapshot(&self, run: &RunKey, which: Which) -> Result<Option<Snapshot>, StoreError> {
        read!(self, |db| read::snapshot(&db, run, &which))
    }

    async fn events_after(&self, run: &RunKey, seq: u64, limit: usize) -> Result<Vec<Logged>, StoreError> {
        if let Some(events) = self.shared.recent.events_after(run, seq, limit) {
            return Ok(events);
        }
        read_once!(self, |db| read::events_after(&db, run, seq, limit))
    }

    async fn feed_after(&self, pos: u64, limit: usize) -> Result<Vec<FeedItem>, StoreError> {
        read_once!(self, |db| read::feed_after(&db, pos, limit))
    }

    async fn sift_feed(&self, pos: u64, limit: usize, of: Sift) -> Result<Sifted, StoreError> {
        read!(self, |db| read::sift_feed(&db, pos, limit, of))
    }

    fn changes(&self, run: &RunKey) -> watch::Receiver<u64> {
        self.shared.hub.run(run)
    }

    fn feed(&self) -> watch::Receiver<u64> {
        self.shared.hub.feed()
    }

    async fn list_runs(&self, scope: &ListScope, query: &ListQuery) -> Result<Page<RunRow>, StoreError> {
        let now = (self.shared.clock)();
        let found: Result<_, StoreError> = read_list!(self, |db| listed::list_runs(&db, scope, query, now));
        let (rows, next) = found?;
        Ok(Page { rows, next: self.token(next).await? })
    }

    async fn list_actions(&self, run: &RunKey, query: &ListQuery) -> Result<Page<ActionState>, StoreError> {
        let now = (self.shared.clock)();
        let found: Result<_, StoreError> = read_list!(self, |db| listed::list_actions(&db, run, query, now));
        let (rows, next) = found?;
        Ok(Page { rows, next: self.token(next).await? })
    }

    async fn last_run_change(&self) -> Result<u64, StoreError> {
        read_once!(self, |db| listed::last_change(&db))
    }

    async fn runs_changed(
        &self,
        scope: &ListScope,
        filters: &[Filter],
        after: u64,
        limit: usize,
    ) -> Result<RunChanges, StoreError> {
        read_list!(self, |db| listed::runs_changed(&db, scope, filters, after, limit))
    }

    async fn run_totals(&self, scope: &ListScope, filters: &[Filter]) -> Result<RunTotals, StoreError> {
        read_list!(self, |db| listed::run_totals(&db, scope, filters))
    }

    async fn outline(&self, run: &RunKey) -> Result<Option<Outline>, StoreError> {
        read!(self, |db| listed::outline(&db, run))
    }

    async fn child_groups(
        &self,
        run: &RunKey,
        parent: &ActionName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<ChildGroups>, StoreError> {
        read!(self, |db| children::groups(&db, run, parent, after, limit))
    }

    async fn child_window(&self, run: &RunKey, query: &ChildQuery) -> Result<Option<ChildWindow>, StoreError> {
        read!(self, |db| children::window(&db, run, query))
    }

    async fn matched(
        &self,
        run: &RunKey,
        names: &[ActionName],
        filters: &[Filter],
        upto: u64,
    ) -> Result<Vec<(ActionState, bool)>, StoreError> {
        if !filters.is_empty() {
            return read_list!(self, |db| listed::matched(&db, run, names, filters));
        }
        if let Some(states) = self.shared.recent.states(run, names, upto) {
            return Ok(states.into_iter().map(|state| (state, true)).collect());
        }
        read!(self, |db| listed::matched(&db, run, names, filters))
    }

    async fn offer(&self, now: Time, after: &OfferPlace, groups: usize, each: usize) -> Result<Offered, StoreError> {
        read!(self, |db| lanes::offer(&db, now, after, groups, each))
    }

    async fn lookups(&self, now: Time, limit: usize) -> Result<(Vec<(RunKey, ActionState)>, Option<Time>), StoreError> {
        read!(self, |db| read::lookups(&db, now, limit))
    }

    async fn calls_due(&self, limit: usize) -> Result<Vec<(RunKey, ActionState)>, StoreError> {
        read_once!(self, |db| read::calls_due(&db, limit))
    }

    async fn cached(&self, scope: &Scope, plan: &CachePlan) -> Result<Vec<CacheEntry>, StoreError> {
        let client = self.shared.pool.get().await.map_err(from_pool)?;
        let entries = cache::entries(&client, &Place::of(scope, plan)).await?;
        Ok(cache::usable(&entries, &scope.domain, plan.scope))
    }

    async fn put_cached(
        &self,
        scope: &Scope,
        key: &str,
        entry: CacheEntry,
        overwrite: bool,
    ) -> Result<bool, StoreError> {
        let (place, now) = (Place::in_domain(scope, key), (self.shared.clock)());
        write_and_wake!(self, |tx| async {
            cache::lock(&tx, [&place]).await.map_err(from_postgres)?;
            let written = cache::put(&tx, &place, &scope.domain, &entry, overwrite).await?;
            if written {
                cache::wake(&tx, &[], std::slice::from_ref(&place.key), now).await?;
            }
            Ok::<_, StoreError>(written)
        })
    }

    async fn drop_cached(&self, scope: &Scope, key: &str, output_uri: &str) -> Result<bool, StoreError> {
        let place = Place::in_domain(scope, key);
        write!(self, |tx| async {
            cache::lock(&tx, [&place]).await.map_err(from_postgres)?;
            cache::forget(&tx, &place, output_uri).await.map_err(from_postgres)
        })
    }

    async fn reserve(
        &self,
        scope: &Scope,
        key: &str,
        wanted: Reservation,
        now: Time,
    ) -> Result<Reservation, StoreError> {
        let place = Place::in_domain(scope, key);
        write!(self, |tx| async {
            cache::lock(&tx, [&place]).await.map_err(from_postgres)?;
            match cache::holder(&tx, &place).await? {
                Some(holder) if holder.owner != wanted.owner && holder.holds(now) => Ok::<_, StoreError>(holder),
                _ => {
                    cache::hold(&tx, &place, &wanted).await?;
                    Ok(wanted)
                }
            }
        })
    }

    async fn release(&self, scope: &Scope, key: &str, owner: &str) -> Result<bool, StoreError> {
        let (place, now) = (Place::in_domain(scope, key), (self.shared.clock)());
        write_and_wake!(self, |tx| async {
            cache::lock(&tx, [&place]).await.map_err(from_postgres)?;
            let released = cache::give_back(&tx, &place, owner).await.map_err(from_postgres)?;
            if released {
                cache::wake(&tx, &[], std::slice::from_ref(&place.key), now).await?;
            }
            Ok::<_, StoreError>(released)
        })
    }

    async fn due(&self, now: Time, limit: usize) -> Result<(Vec<(RunKey, ActionName)>, Option<Time>), StoreError> {
        read!(self, |db| read::due(&db, now, limit))
    }

    async fn held_by(&self, worker: &WorkerId) -> Result<Vec<(RunKey, ActionState)>, StoreError> {
        read_once!(self, |db| read::held_by(&db, worker))
    }

    async fn held_part(
        &self,
        worker: &WorkerId,
        after: Option<i64>,
        limit: usize,
    ) -> Result<(Vec<(RunKey, ActionState)>, Option<i64>), StoreError> {
        read_once!(self, |db| read::held_part(&db, worker, after, limit))
    }

    async fn held_count(&self, worker: &WorkerId) -> Result<u64, StoreError> {
        read_once!(self, |db| workers::held_count(&db, worker))
    }

    async fn holders(&self) -> Result<Vec<WorkerId>, StoreError> {
        read_once!(self, |db| workers::holders(&db))
    }

    async fn worker(&self, id: &WorkerId) -> Result<Option<WorkerRecord>, StoreError> {
        read_once!(self, |db| workers::one(&db, id))
    }

    async fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError> {
        read_once!(self, |db| workers::all(&db))
    }

    async fn put_worker(&self, record: WorkerRecord, beat: u64) -> Result<bool, StoreError> {
        write!(self, |tx| workers::put(&tx, &record, beat))
    }

    async fn beat_worker(&self, id: &WorkerId, session: u64, about: AboutWorker) -> Result<bool, StoreError> {
        write!(self, |tx| workers::beat(&tx, id, session, &about))
    }

    async fn drop_worker(&self, id: &WorkerId, beat: u64) -> Result<bool, StoreError> {
        write!(self, |tx| workers::forget(&tx, id, beat))
    }

    async fn unsettled(&self, limit: usize) -> Result<Vec<(RunKey, ActionName)>, StoreError> {
        read_once!(self, |db| read::unsettled(&db, limit))
    }

    async fn put_task(&self, task: DeployedTask, blob: Blob) -> Result<bool, StoreError> {
        write!(self, |tx| records::put_task(&tx, &task, &blob))
    }

    async fn task(&self, id: &TaskId) -> Result<Option<DeployedTask>, StoreError> {
        read_once!(self, |db| read::task(&db, id))
    }

    async fn list_tasks(&self, scope: &ListScope, latest: bool, query: &ListQuery) -> Result<TaskList, StoreError> {
        let now = (self.shared.clock)();
        let found: Result<_, StoreError> = read_list!(self, |db| listed::list_tasks(&db, scope, latest, query, now));
        let found = found?;
        let page = Page { rows: found.rows, next: self.token(found.next).await? };
        Ok(TaskList { page, total: found.total, filtered: found.filtered })
    }

    async fn create_project(&self, project: Project) -> Result<bool, StoreError> {
        write!(self, |tx| records::create_project(&tx, &project))
    }

    async fn update_project(&self, project: Project) -> Result<bool, StoreError> {
        write!(self, |tx| records::update_project(&tx, &project))
    }

    async fn project(&self, org: &str, id: &str) -> Result<Option<Project>, StoreError> {
        read_once!(self, |db| read::project(&db, org, id))
    }

    async fn projects(&self, org: &str) -> Result<Vec<Project>, StoreError> {
        read_once!(self, |db| read::projects(&db, org))
    }

    async fn seed_domains(&self, org: &str, domains: Vec<Domain>) -> Result<bool, StoreError> {
        write!(self, |tx| records::seed_domains(&tx, org, &domains))
    }

    async fn create_domain(&self, domain: Domain) -> Result<bool, StoreError> {
        write!(self, |tx| records::create_domain(&tx, &domain))
    }

    async fn rename_domain(&self, org: &str, id: &str, name: &str) -> Result<bool, StoreError> {
        write!(self, |tx| records::rename_domain(&tx, org, id, name))
    }

    async fn delete_domain(&self, org: &str, id: &str) -> Result<bool, StoreError> {
        write!(self, |tx| records::delete_domain(&tx, org, id))
    }

    async fn domain(&self, org: &str, id: &str) -> Result<Option<Domain>, StoreError> {
        read_once!(self, |db| records::domain(&db, org, id))
    }

    async fn domains(&self, org: &str) -> Result<Vec<Domain>, StoreError> {
        read_once!(self, |db| records::domains(&db, org))
    }

    async fn domain_use(&self, org: &str, id: &str) -> Result<DomainUse, StoreError> {
        read_list!(self, |db| records::domain_use(&db, org, id))
    }

    async fn put_settings(&self, version: SettingsVersion) -> Result<bool, StoreError> {
        write!(self, |tx| records::put_settings(&tx, &version))
    }

    async fn site(&self, scope: &Scope) -> Result<Site, StoreError> {
        read!(self, |db| records::site(&db, scope))
    }

    async fn settings_at(&self, key: &SettingsKey) -> Result<Vec<SettingsVersion>, StoreError> {
        read!(self, |db| records::settings_at(&db, key))
    }

    async fn settings_history(
        &self,
        key: &SettingsKey,
        after: u64,
        limit: usize,
    ) -> Result<Vec<SettingsVersion>, StoreError> {
        read_once!(self, |db| records::settings_history(&db, key, after, limit))
    }

    async fn create_queue(&self, queue: Queue) -> Result<bool, StoreError> {
        write_and_wake!(self, |tx| records::create_queue(&tx, &queue))
    }

    async fn replace_queue(&self, queue: Queue, generation: u64) -> Result<bool, StoreError> {
        write_and_wake!(self, |tx| records::replace_queue(&tx, &queue, generation))
    }

    async fn queue(&self, org: &str, name: &str) -> Result<Option<Queue>, StoreError> {
        read_once!(self, |db| records::queue(&db, org, name))
    }

    async fn queues(&self, org: &str) -> Result<Vec<Queue>, StoreError> {
        read_once!(self, |db| records::queues(&db, org))
    }

    async fn queue_load(&self, org: &str, name: &str) -> Result<QueueLoad, StoreError> {
        let found: Result<_, StoreError> = read_once!(self, |db| lanes::loads(&db, org, Some(name)));
        Ok(found?.pop().map(|(_, load)| load).unwrap_or_default())
    }

    async fn queue_loads(&self, org: &str) -> Result<BTreeMap<String, QueueLoad>, StoreError> {
        let found: Result<_, StoreError> = read_once!(self, |db| lanes::loads(&db, org, None));
        Ok(found?.into_iter().collect())
    }

    async fn replace_project_limits(&self, limits: ProjectLimits, generation: u64) -> Result<bool, StoreError> {
        write_and_wake!(self, |tx| records::replace_limits(&tx, &limits, generation))
    }

    async fn project_limits(&self, org: &str) -> Result<Vec<ProjectLimits>, StoreError> {
        read_once!(self, |db| records::limits(&db, org))
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.shared.hub.observe(observer);
    }

    async fn census(&self) -> Result<Census, StoreError> {
        read!(self, |db| lanes::census(&db))
    }

    async fn prune(&self, retention: &Retention, now: Time, most: usize) -> Result<Pruned, StoreError> {
        prune::step(&self.shared, retention, now, most).await
    }

    async fn take_turn(&self) -> Result<Turn, StoreError> {
        turn::dispatch(Arc::clone(&self.shared), None).await.map(|found| found.turn)
    }

    async fn offer_in_turn(
        &self,
        to: &WorkerId,
        now: Time,
        after: &OfferPlace,
        groups: usize,
        each: usize,
    ) -> Result<InTurn, StoreError> {
        let part = turn::Part { to: to.clone(), now, after: after.clone(), groups, each };
        turn::dispatch(Arc::clone(&self.shared), Some(part)).await
    }

    async fn lead(&self) -> Result<Turn, StoreError> {
        turn::lead(self.shared.connect.clone(), self.shared.channel.clone()).await
    }
}
