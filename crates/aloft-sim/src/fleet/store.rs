//! The database as one control plane reaches it: one store on one file for all of them, behind a network and a disk that
//! have their days.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use aloft_core::{
    ActionName, ActionState, AttemptOutcome, CacheEntry, CachePlan, Command, Progress, Reply, Reservation, RunKey,
    Scope, Time, WorkerId,
};
use aloft_store::{
    AboutWorker, Blob, Census, ChildGroups, ChildQuery, ChildWindow, DeployedTask, Domain, DomainUse, FeedItem, Filter,
    InTurn, ListQuery, ListScope, Logged, Observer, OfferPlace, Offered, Outline, Page, Project, ProjectLimits, Pruned,
    Queue, QueueLoad, Retention, RunChanges, RunRecord, RunRow, RunTotals, SettingsKey, SettingsVersion, Sift, Sifted,
    Site, Snapshot, Store, StoreError, Submission, SubmitError, TaskId, TaskList, Turn, Which, WorkerRecord,
};
use aloft_store_sqlite::SqliteStore;
use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, OwnedMutexGuard, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::weather::{Defect, Weather};

/// How long a turn to hand out work lasts at most, as in Postgres.
const TURN: Duration = Duration::from_secs(10);

/// The database: what all control planes share.
pub(super) struct Database {
    store: SqliteStore,
    weather: Arc<Weather>,
    dispatch: Arc<tokio::sync::Mutex<()>>,
    lead: Arc<tokio::sync::Mutex<()>>,
    /// Whose turn it is to hand out work.
    turn_of: Arc<Mutex<Option<usize>>>,
    /// The number of the last turn to hand out work.
    last_turn: Mutex<u64>,
    /// What a control plane did that it must not do.
    broken: Mutex<Vec<String>>,
    /// What is made after the next commit, if that is what is wrong.
    late: Mutex<Vec<Submission>>,
}

impl Database {
    /// A database on `store`.
    pub(super) fn new(store: SqliteStore, weather: Arc<Weather>) -> Self {
        let (dispatch, lead, turn_of) = (Arc::default(), Arc::default(), Arc::default());
        let (last_turn, broken, late) = Default::default();
        Self { store, weather, dispatch, lead, turn_of, last_turn, broken, late }
    }

    /// What a control plane did that it must not do.
    pub(super) fn broken(&self) -> Vec<String> {
        self.broken.lock().clone()
    }

    /// The store itself, which never fails.
    pub(super) fn store(&self) -> &SqliteStore {
        &self.store
    }
}

/// A control plane's way to the database.
pub(super) struct Reach {
    database: Arc<Database>,
    /// Whose it is.
    number: usize,
    feed: watch::Sender<u64>,
    /// Ends with the process that has it.
    life: CancellationToken,
    cut_until: Mutex<Option<Instant>>,
    slow_until: Mutex<Option<Instant>>,
    /// Told of every lease that is sent.
    leases: Notify,
}

fn away() -> StoreError {
    StoreError::Unavailable("the database cannot be reached".to_owned())
}

impl Reach {
    /// The way of control plane `number`, open until `life` ends.
    pub(super) fn new(database: Arc<Database>, number: usize, life: CancellationToken) -> Arc<Self> {
        let mut inner = database.store.feed();
        let (feed, _) = watch::channel(*inner.borrow_and_update());
        let (cut_until, slow_until, leases) = Default::default();
        let reach = Arc::new(Self { database, number, feed, life, cut_until, slow_until, leases });
        let hears = Arc::downgrade(&reach);
        tokio::spawn(async move {
            while inner.changed().await.is_ok() {
                let Some(reach) = hears.upgrade() else { return };
                if reach.life.is_cancelled() {
                    return;
                }
                // A hint may be late, never lost for good.
                let late = if reach.weather().wrong_once_in(20) { 2000 } else { 5 };
                let pause = reach.weather().up_to(late);
                tokio::time::sleep(pause).await;
                reach.feed.send_replace(*inner.borrow_and_update());
            }
        });
        reach
    }

    /// Cuts it off for a while.
    pub(super) fn cut(&self, length: Duration) {
        *self.cut_until.lock() = Some(Instant::now() + length);
    }

    /// Makes it slow for a while.
    pub(super) fn slow(&self, length: Duration) {
        *self.slow_until.lock() = Some(Instant::now() + length);
    }

    /// Waits until a lease is on its way.
    pub(super) async fn leases(&self) {
        self.leases.notified().await;
    }

    /// Mends it.
    pub(super) fn mend(&self) {
        *self.cut_until.lock() = None;
        *self.slow_until.lock() = None;
    }

    fn weather(&self) -> &Weather {
        &self.database.weather
    }

    fn inner(&self) -> &SqliteStore {
        &self.database.store
    }

    /// The way of a statement there, or of its answer back. A process that has ended hears nothing any more.
    async fn hop(&self) -> Result<(), StoreError> {
        self.travel().await;
        if self.life.is_cancelled() {
            std::future::pending::<()>().await;
        }
        self.get_through().await
    }

    /// The way of a commit there. Half of those are done whose process has ended since.
    async fn arrive(&self) -> Result<(), StoreError> {
        self.travel().await;
        if self.life.is_cancelled() {
            if self.weather().once_in(2) {
                std::future::pending::<()>().await;
            }
            self.weather().reach("commit of a killed control plane");
        }
        self.get_through().await
    }

    async fn travel(&self) {
        let slow = self.slow_until.lock().is_some_and(|until| Instant::now() < until);
        let pause = self.weather().disk(slow);
        tokio::time::sleep(pause).await;
    }

    async fn get_through(&self) -> Result<(), StoreError> {
        let cut = self.cut_until.lock().is_some_and(|until| Instant::now() < until);
        if cut || self.weather().database_is_away() {
            let pause = self.weather().up_to(300);
            tokio::time::sleep(pause).await;
            return Err(away());
        }
        Ok(())
    }

    async fn read<T>(
        &self,
        name: &'static str,
        what: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.hop().await?;
        let done = at_once(what);
        self.detail(|| format!("{name}: {}", if done.is_ok() { "read" } else { "refused" }));
        done
    }

    /// As [`Self::read`]; its answer may be lost, though it is done.
    async fn change<T>(
        &self,
        name: &'static str,
        what: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.hop().await?;
        let done = at_once(what);
        self.detail(|| format!("{name}: {}", if done.is_ok() { "done" } else { "refused" }));
        self.back().await?;
        done
    }

    async fn back(&self) -> Result<(), StoreError> {
        self.hop().await?;
        if self.weather().wrong_once_in(150) {
            self.weather().reach("answer of the database lost");
            self.detail(|| "an answer is lost".to_owned());
            return Err(away());
        }
        Ok(())
    }

    fn detail(&self, what: impl FnOnce() -> String) {
        self.weather().detail(|| format!("control plane {}: {}", self.number, what()));
    }

    /// What is submitted, with what is wrong on purpose.
    fn tampered(&self, mut submission: Submission) -> Option<Submission> {
        if let Command::Report { action, attempt, token, progress } = &mut submission.command {
            let lost = matches!(progress, Progress::Ended(AttemptOutcome::Lost(_)));
            if self.weather().is(Defect::NobodyRequeues) && lost {
                return None;
            }
            if self.weather().is(Defect::NoFencing) && !lost {
                let which = Which::One(action.clone());
                let snapshot = at_once(self.inner().snapshot(&submission.run, which)).ok().flatten();
                let current = snapshot.and_then(|s| s.actions.into_iter().next());
                if let Some((now, lease)) = current.as_ref().and_then(|s| Some((s.current()?, s.live_lease()?))) {
                    (*attempt, *token) = (now.number, lease.token);
                }
            }
        }
        if self.weather().is(Defect::AcknowledgedTooSoon) && self.weather().once_in(60) {
            return None;
        }
        if self.weather().is(Defect::CommitsSwapped) && self.weather().once_in(20) {
            self.database.late.lock().push(submission);
            return None;
        }
        Some(submission)
    }

    /// Work is handed out by whose turn it was last: what is in flight is counted before, and nobody else may add to it.
    fn look_at(&self, submission: &Submission) -> Result<(), StoreError> {
        let Command::Lease { action, .. } = &submission.command else { return Ok(()) };
        if submission.turn.is_some_and(|turn| turn != *self.database.last_turn.lock()) {
            self.weather().reach("lease after the turn");
            return if self.weather().is(Defect::LeasesTooLate) { Ok(()) } else { Err(StoreError::TurnOver) };
        }
        if submission.turn.is_none() || self.database.turn_of.lock().is_some_and(|of| of != self.number) {
            let what = format!("control plane {} hands out {}/{action} out of its turn", self.number, submission.run);
            self.weather().note(|| what.clone());
            self.database.broken.lock().push(what);
        }
        Ok(())
    }

    async fn dispatch_turn(&self) -> Result<Turn, StoreError> {
        self.hop().await?;
        if self.weather().is(Defect::NoTurns) {
            *self.database.turn_of.lock() = Some(self.number);
            return Ok(Turn::numbered(*self.database.last_turn.lock()).0);
        }
        let turn_of = Arc::clone(&self.database.turn_of);
        let passed = move || *turn_of.lock() = None;
        let guard = Arc::clone(&self.database.dispatch).lock_owned().await;
        let number = {
            let mut last = self.database.last_turn.lock();
            *last += 1;
            *last
        };
        *self.database.turn_of.lock() = Some(self.number);
        let (turn, ours) = Turn::numbered(number);
        pass_on(guard, ours, TURN, self.life.clone(), passed);
        Ok(turn)
    }

    /// Makes what was put off.
    fn catch_up(&self) {
        for submission in std::mem::take(&mut *self.database.late.lock()) {
            let _ = at_once(self.inner().submit(submission));
        }
    }
}

/// A submission in a few words, without the token of a lease, which is random.
fn words(submission: &Submission) -> String {
    let Submission { run, command, .. } = submission;
    let debug = format!("{command:?}");
    let name = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let of: Vec<_> = command.touches().iter().map(ToString::to_string).collect();
    let progress = match command {
        Command::Report { attempt, progress, .. } => match progress {
            Progress::Ended(AttemptOutcome::Succeeded(_)) => format!(" of attempt {attempt}: succeeded"),
            Progress::Ended(AttemptOutcome::Failed(..)) => format!(" of attempt {attempt}: failed"),
            Progress::Ended(AttemptOutcome::Lost(_)) => format!(" of attempt {attempt}: lost"),
            _ => format!(" of attempt {attempt}"),
        },
        _ => String::new(),
    };
    format!("{name} {run}/{}{progress}", of.join(","))
}

/// Does something of the store in one moment of simulated time.
pub(super) fn at_once<T>(what: impl Future<Output = T>) -> T {
    // It is done when it is first asked; only tokio's budget of a task could put it off, for ever.
    block_on(tokio::task::unconstrained(what))
}

/// Passes on a turn after `length` at most; it is lost with the life of who has it. `passed` is called at its end.
fn pass_on(
    guard: OwnedMutexGuard<()>,
    ours: watch::Sender<()>,
    length: Duration,
    life: CancellationToken,
    passed: impl FnOnce() + Send + 'static,
) {
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = ours.closed() => {}
            () = life.cancelled() => {}
            () = tokio::time::sleep(length) => {}
        }
        passed();
        drop(ours);
        drop(guard);
    });
}

#[async_trait]
impl Store for Reach {
    async fn submit(&self, submission: Submission) -> Result<Reply, SubmitError> {
        if matches!(submission.command, Command::Lease { .. }) {
            self.leases.notify_waiters();
        }
        self.arrive().await?;
        let Some(submission) = self.tampered(submission) else { return Ok(Reply::Done) };
        self.look_at(&submission)?;
        let asked = self.weather().is_detailed().then(|| words(&submission));
        let done = at_once(self.inner().submit(submission));
        self.catch_up();
        self.detail(|| match &done {
            // Not the states that they hold: tokens are others in each play.
            Ok(Reply::Created(_)) => format!("{}: Created", asked.unwrap_or_default()),
            Ok(Reply::Leased(_)) => format!("{}: Leased", asked.unwrap_or_default()),
            Ok(reply) => format!("{}: {reply:?}", asked.unwrap_or_default()),
            Err(error) => format!("{}: {error}", asked.unwrap_or_default()),
        });
        self.back().await?;
        done
    }

    async fn submit_in_order(&self, submissions: Vec<Submission>) -> Vec<Result<Reply, SubmitError>> {
        let mut answers = Vec::with_capacity(submissions.len());
        for submission in submissions {
            answers.push(self.submit(submission).await);
        }
        answers
    }

    async fn feed_after(&self, pos: u64, limit: usize) -> Result<Vec<FeedItem>, StoreError> {
        let mut items = self.read("feed_after", self.inner().feed_after(pos, limit)).await?;
        if self.weather().is(Defect::CommitsOutOfOrder) && items.len() > 1 && self.weather().once_in(3) {
            let last = items.len() - 1;
            items.remove(last - 1);
        }
        Ok(items)
    }

    async fn sift_feed(&self, pos: u64, limit: usize, of: Sift) -> Result<Sifted, StoreError> {
        let mut found = self.read("sift_feed", self.inner().sift_feed(pos, limit, of)).await?;
        if self.weather().is(Defect::CommitsOutOfOrder) && !found.items.is_empty() && self.weather().once_in(3) {
            found.items.remove(0);
        }
        Ok(found)
    }

    fn changes(&self, run: &RunKey) -> watch::Receiver<u64> {
        self.inner().changes(run)
    }

    fn feed(&self) -> watch::Receiver<u64> {
        self.feed.subscribe()
    }

    fn observe(&self, observer: Arc<dyn Observer>) {
        self.inner().observe(observer);
    }

    async fn census(&self) -> Result<Census, StoreError> {
        self.read("census", self.inner().census()).await
    }

    async fn prune(&self, retention: &Retention, now: Time, most: usize) -> Result<Pruned, StoreError> {
        self.change("prune", self.inner().prune(retention, now, most)).await
    }

    async fn take_turn(&self) -> Result<Turn, StoreError> {
        if self.weather().is(Defect::ReclaimsTooSoon) {
            return Ok(Turn::of_one());
        }
        self.dispatch_turn().await
    }

    async fn offer_in_turn(
        &self,
        to: &WorkerId,
        now: Time,
        after: &OfferPlace,
        groups: usize,
        each: usize,
    ) -> Result<InTurn, StoreError> {
        let turn = self.dispatch_turn().await?;
        let offered = self.offer(now, after, groups, each).await?;
        let worker = at_once(self.inner().worker(to))?;
        Ok(InTurn { turn, offered, worker })
    }

    async fn lead(&self) -> Result<Turn, StoreError> {
        self.hop().await?;
        // The connection that has it breaks now and then.
        let length = Duration::from_secs(5) + self.weather().up_to(120_000);
        let guard = Arc::clone(&self.database.lead).lock_owned().await;
        let (turn, ours) = Turn::taken();
        pass_on(guard, ours, length, self.life.clone(), || ());
        Ok(turn)
    }

    async fn blob(&self, digest: &str) -> Result<Option<Bytes>, StoreError> {
        self.read("blob", self.inner().blob(digest)).await
    }

    async fn run(&self, run: &RunKey) -> Result<Option<RunRecord>, StoreError> {
        self.read("run", self.inner().run(run)).await
    }

    async fn snapshot(&self, run: &RunKey, which: Which) -> Result<Option<Snapshot>, StoreError> {
        self.read("snapshot", self.inner().snapshot(run, which)).await
    }

    async fn events_after(&self, run: &RunKey, seq: u64, limit: usize) -> Result<Vec<Logged>, StoreError> {
        self.read("events_after", self.inner().events_after(run, seq, limit)).await
    }

    async fn list_runs(&self, scope: &ListScope, query: &ListQuery) -> Result<Page<RunRow>, StoreError> {
        self.read("list_runs", self.inner().list_runs(scope, query)).await
    }

    async fn list_actions(&self, run: &RunKey, query: &ListQuery) -> Result<Page<ActionState>, StoreError> {
        self.read("list_actions", self.inner().list_actions(run, query)).await
    }

    async fn last_run_change(&self) -> Result<u64, StoreError> {
        self.read("last_run_change", self.inner().last_run_change()).await
    }

    async fn runs_changed(
        &self,
        scope: &ListScope,
        filters: &[Filter],
        after: u64,
        limit: usize,
    ) -> Result<RunChanges, StoreError> {
        self.read("runs_changed", self.inner().runs_changed(scope, filters, after, limit)).await
    }

    async fn run_totals(&self, scope: &ListScope, filters: &[Filter]) -> Result<RunTotals, StoreError> {
        self.read("run_totals", self.inner().run_totals(scope, filters)).await
    }

    async fn outline(&self, run: &RunKey) -> Result<Option<Outline>, StoreError> {
        self.read("outline", self.inner().outline(run)).await
    }

    async fn child_groups(
        &self,
        run: &RunKey,
        parent: &ActionName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<ChildGroups>, StoreError> {
        self.read("child_groups", self.inner().child_groups(run, parent, after, limit)).await
    }

    async fn child_window(&self, run: &RunKey, query: &ChildQuery) -> Result<Option<ChildWindow>, StoreError> {
        self.read("child_window", self.inner().child_window(run, query)).await
    }

    async fn matched(
        &self,
        run: &RunKey,
        names: &[ActionName],
        filters: &[Filter],
        upto: u64,
    ) -> Result<Vec<(ActionState, bool)>, StoreError> {
        self.read("matched", self.inner().matched(run, names, filters, upto)).await
    }

    async fn offer(&self, now: Time, after: &OfferPlace, groups: usize, each: usize) -> Result<Offered, StoreError> {
        self.read("offer", self.inner().offer(now, after, groups, each)).await
    }

    async fn lookups(&self, now: Time, limit: usize) -> Result<(Vec<(RunKey, ActionState)>, Option<Time>), StoreError> {
        self.read("lookups", self.inner().lookups(now, limit)).await
    }

    async fn calls_due(&self, limit: usize) -> Result<Vec<(RunKey, ActionState)>, StoreError> {
        self.read("calls_due", self.inner().calls_due(limit)).await
    }

    async fn cached(&self, scope: &Scope, plan: &CachePlan) -> Result<Vec<CacheEntry>, StoreError> {
        self.read("cached", self.inner().cached(scope, plan)).await
    }

    async fn put_cached(
        &self,
        scope: &Scope,
        key: &str,
        entry: CacheEntry,
        overwrite: bool,
    ) -> Result<bool, StoreError> {
        self.change("put_cached", self.inner().put_cached(scope, key, entry, overwrite)).await
    }

    async fn drop_cached(&self, scope: &Scope, key: &str, output_uri: &str) -> Result<bool, StoreError> {
        self.change("drop_cached", self.inner().drop_cached(scope, key, output_uri)).await
    }

    async fn reserve(
        &self,
        scope: &Scope,
        key: &str,
        wanted: Reservation,
        now: Time,
    ) -> Result<Reservation, StoreError> {
        self.change("reserve", self.inner().reserve(scope, key, wanted, now)).await
    }

    async fn release(&self, scope: &Scope, key: &str, owner: &str) -> Result<bool, StoreError> {
        self.change("release", self.inner().release(scope, key, owner)).await
    }

    async fn due(&self, now: Time, limit: usize) -> Result<(Vec<(RunKey, ActionName)>, Option<Time>), StoreError> {
        self.read("due", self.inner().due(now, limit)).await
    }

    async fn held_by(&self, worker: &WorkerId) -> Result<Vec<(RunKey, ActionState)>, StoreError> {
        self.read("held_by", self.inner().held_by(worker)).await
    }

    async fn held_part(
        &self,
        worker: &WorkerId,
        after: Option<i64>,
        limit: usize,
    ) -> Result<(Vec<(RunKey, ActionState)>, Option<i64>), StoreError> {
        self.read("held_part", self.inner().held_part(worker, after, limit)).await
    }

    async fn held_count(&self, worker: &WorkerId) -> Result<u64, StoreError> {
        self.read("held_count", self.inner().held_count(worker)).await
    }

    async fn holders(&self) -> Result<Vec<WorkerId>, StoreError> {
        self.read("holders", self.inner().holders()).await
    }

    async fn worker(&self, id: &WorkerId) -> Result<Option<WorkerRecord>, StoreError> {
        self.read("worker", self.inner().worker(id)).await
    }

    async fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError> {
        self.read("workers", self.inner().workers()).await
    }

    async fn put_worker(&self, record: WorkerRecord, beat: u64) -> Result<bool, StoreError> {
        self.change("put_worker", self.inner().put_worker(record, beat)).await
    }

    async fn beat_worker(&self, id: &WorkerId, session: u64, about: AboutWorker) -> Result<bool, StoreError> {
        self.change("beat_worker", self.inner().beat_worker(id, session, about)).await
    }

    async fn drop_worker(&self, id: &WorkerId, beat: u64) -> Result<bool, StoreError> {
        self.change("drop_worker", self.inner().drop_worker(id, beat)).await
    }

    async fn unsettled(&self, limit: usize) -> Result<Vec<(RunKey, ActionName)>, StoreError> {
        self.read("unsettled", self.inner().unsettled(limit)).await
    }

    async fn put_task(&self, task: DeployedTask, blob: Blob) -> Result<bool, StoreError> {
        self.change("put_task", self.inner().put_task(task, blob)).await
    }

    async fn task(&self, id: &TaskId) -> Result<Option<DeployedTask>, StoreError> {
        self.read("task", self.inner().task(id)).await
    }

    async fn list_tasks(&self, scope: &ListScope, latest: bool, query: &ListQuery) -> Result<TaskList, StoreError> {
        self.read("list_tasks", self.inner().list_tasks(scope, latest, query)).await
    }

    async fn create_project(&self, project: Project) -> Result<bool, StoreError> {
        self.change("create_project", self.inner().create_project(project)).await
    }

    async fn update_project(&self, project: Project) -> Result<bool, StoreError> {
        self.change("update_project", self.inner().update_project(project)).await
    }

    async fn project(&self, org: &str, id: &str) -> Result<Option<Project>, StoreError> {
        self.read("project", self.inner().project(org, id)).await
    }

    async fn projects(&self, org: &str) -> Result<Vec<Project>, StoreError> {
        self.read("projects", self.inner().projects(org)).await
    }

    async fn seed_domains(&self, org: &str, domains: Vec<Domain>) -> Result<bool, StoreError> {
        self.change("seed_domains", self.inner().seed_domains(org, domains)).await
    }

    async fn create_domain(&self, domain: Domain) -> Result<bool, StoreError> {
        self.change("create_domain", self.inner().create_domain(domain)).await
    }

    async fn rename_domain(&self, org: &str, id: &str, name: &str) -> Result<bool, StoreError> {
        self.change("rename_domain", self.inner().rename_domain(org, id, name)).await
    }

    async fn delete_domain(&self, org: &str, id: &str) -> Result<bool, StoreError> {
        self.change("delete_domain", self.inner().delete_domain(org, id)).await
    }

    async fn domain(&self, org: &str, id: &str) -> Result<Option<Domain>, StoreError> {
        self.read("domain", self.inner().domain(org, id)).await
    }

    async fn domains(&self, org: &str) -> Result<Vec<Domain>, StoreError> {
        self.read("domains", self.inner().domains(org)).await
    }

    async fn domain_use(&self, org: &str, id: &str) -> Result<DomainUse, StoreError> {
        self.read("domain_use", self.inner().domain_use(org, id)).await
    }

    async fn put_settings(&self, version: SettingsVersion) -> Result<bool, StoreError> {
        self.change("put_settings", self.inner().put_settings(version)).await
    }

    async fn site(&self, scope: &Scope) -> Result<Site, StoreError> {
        self.read("site", self.inner().site(scope)).await
    }

    async fn settings_at(&self, key: &SettingsKey) -> Result<Vec<SettingsVersion>, StoreError> {
        self.read("settings_at", self.inner().settings_at(key)).await
    }

    async fn settings_history(
        &self,
        key: &SettingsKey,
        after: u64,
        limit: usize,
    ) -> Result<Vec<SettingsVersion>, StoreError> {
        self.read("settings_history", self.inner().settings_history(key, after, limit)).await
    }

    async fn create_queue(&self, queue: Queue) -> Result<bool, StoreError> {
        self.change("create_queue", self.inner().create_queue(queue)).await
    }

    async fn replace_queue(&self, queue: Queue, generation: u64) -> Result<bool, StoreError> {
        self.change("replace_queue", self.inner().replace_queue(queue, generation)).await
    }

    async fn queue(&self, org: &str, name: &str) -> Result<Option<Queue>, StoreError> {
        self.read("queue", self.inner().queue(org, name)).await
    }

    async fn queues(&self, org: &str) -> Result<Vec<Queue>, StoreError> {
        self.read("queues", self.inner().queues(org)).await
    }

    async fn queue_load(&self, org: &str, name: &str) -> Result<QueueLoad, StoreError> {
        self.read("queue_load", self.inner().queue_load(org, name)).await
    }

    async fn queue_loads(&self, org: &str) -> Result<BTreeMap<String, QueueLoad>, StoreError> {
        self.read("queue_loads", self.inner().queue_loads(org)).await
    }

    async fn replace_project_limits(&self, limits: ProjectLimits, generation: u64) -> Result<bool, StoreError> {
        self.change("replace_project_limits", self.inner().replace_project_limits(limits, generation)).await
    }

    async fn project_limits(&self, org: &str) -> Result<Vec<ProjectLimits>, StoreError> {
        self.read("project_limits", self.inner().project_limits(org)).await
    }
}
