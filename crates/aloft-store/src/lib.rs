//! The store seam. One ordered log per run (design rule 1); actions, lists and watches are projections of it that the
//! same transaction keeps. What is not run state (projects, deployed tasks) has its own single record.
//!
//! A watch is built from [`Store::snapshot`] at number n, then [`Store::events_after`] n; [`Store::changes`] only says when
//! looking again is worth it.

mod children;
pub mod conformance;
mod hub;
mod list;
mod observe;
mod packed;
mod page;
mod records;
mod retention;
mod runs;
mod share;
mod sift;
pub mod sql;
mod turn;
mod workers;

use std::{collections::BTreeMap, sync::Arc};

use aloft_core::{
    ActionName, ActionState, CacheEntry, CachePlan, Command, Event, Offer, Refusal, Reply, Reservation, RunKey, Scope,
    Time, WorkerId,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

pub use children::{ChildGroup, ChildGroups, ChildPlace, ChildQuery, ChildRow, ChildWindow, PhaseCounts};
pub use hub::Hub;
pub use list::{Cursor, Direction, Field, FieldType, Filter, Listed, Op, SortBy};
pub use observe::{Committed, Observer, Seen};
pub use packed::{pack, unpack};
pub use page::{KEPT_FOR, ListQuery, MAX_KEPT, MAX_KEPT_TOGETHER, Page, Position};
pub use records::{
    Census, DeployedTask, Domain, DomainUse, LatestRun, MAX_DELETED_QUEUES, Project, ProjectLimits, Queue, QueueLoad,
    SettingsKey, SettingsVersion, TaskId, TaskList, TaskRow,
};
pub use retention::{DAY, OPEN_DAYS, Pruned, Retention, Walk, day, shared_blob};
pub use runs::{Outline, OutlineItem, RunChanges, RunRecord, RunRow, RunSummary, RunTotals, TaskTotals, error_index};
pub use share::Share;
pub use sift::{Sift, Sifted};
pub use turn::Turn;
pub use workers::{AboutWorker, MAX_WORKERS, WorkerRecord};

/// Why the store could not do something. Nothing was written unless the sentence says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// It is busy, closing or cannot be reached; trying again may help.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// No room left.
    #[error("the disk that holds the database is full: free some space and try again ({0})")]
    Full(String),
    /// What it holds contradicts itself.
    #[error("the database is damaged: {0}; restore it from a backup, or move it away to start anew")]
    Corrupt(String),
    /// It was written by a newer Aloft.
    #[error("the database has schema {found}, this Aloft knows {known}: use the newer Aloft that wrote it")]
    Newer {
        /// The schema version found.
        found: i64,
        /// The newest this program knows.
        known: i64,
    },
    /// Another control plane has had the turn in which this was to be done.
    #[error("another control plane hands out work by now")]
    TurnOver,
    /// A page token that this list did not give out.
    #[error("the page token is not one that this list gave out: start again without a token")]
    BadToken,
    /// A page token whose kept order is gone.
    #[error("the page token has expired: the order of this list is kept for an hour; start again without a token")]
    Expired,
    /// A list whose order cannot be kept.
    #[error(
        "more than {MAX_KEPT} rows are in an order that can change; add filters, or sort by created_at, whose order needs \
         not be kept"
    )]
    TooManyRows,
}

/// Why a command was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The core refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Bytes stored once, by their digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// Hex SHA-256 of what identifies them.
    pub digest: String,
    /// The bytes.
    pub bytes: Bytes,
    /// Whether it is of the run alone that brings it, and goes with it: no other blob has its digest then.
    pub own: bool,
}

/// A command to a run, with the blobs its events refer to. Committed together.
#[derive(Clone, Debug, PartialEq)]
pub struct Submission {
    /// The run.
    pub run: RunKey,
    /// What to do.
    pub command: Command,
    /// Blobs to store if they are not there.
    pub blobs: Vec<Blob>,
    /// The [`Site::revision`] by which it was made, if it was made by one that may be another by now. Of commands that create
    /// a run only.
    pub site_revision: Option<u64>,
    /// The [number](Turn::number) of the turn in which it was made, if it must not be done once another has had one since.
    pub turn: Option<u64>,
}

impl Submission {
    /// A command that brings no blobs.
    pub fn new(run: RunKey, command: Command) -> Self {
        Self { run, command, blobs: Vec::new(), site_revision: None, turn: None }
    }
}

/// Where runs are created: what is recorded of a project and a domain, and the settings that concern them.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// Grows with every change to projects, domains and settings, of whatever place. Nothing here is older than it.
    pub revision: u64,
    /// The project, if it exists.
    pub project: Option<Project>,
    /// Every domain of the organisation, the oldest first. Empty if none was recorded yet.
    pub domains: Vec<Domain>,
    /// As [`Store::settings_at`].
    pub settings: Vec<SettingsVersion>,
}

/// An event with its number in its run's log.
#[derive(Clone, Debug, PartialEq)]
pub struct Logged {
    /// Number from 1, without gaps.
    pub seq: u64,
    /// When it was committed.
    pub at: Time,
    /// What happened.
    pub event: Event,
}

/// An event with its place in the feed over all runs.
#[derive(Clone, Debug, PartialEq)]
pub struct FeedItem {
    /// Place in commit order. Grows, may skip.
    pub pos: u64,
    /// The run.
    pub run: RunKey,
    /// The event.
    pub logged: Logged,
}

/// Which actions of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// This one.
    One(ActionName),
    /// Those that this one started.
    ChildrenOf(ActionName),
}

/// Actions at a point of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The number of the last event it includes.
    pub seq: u64,
    /// The actions, in the order of their creation, as they must be shown.
    pub actions: Vec<ActionState>,
}

/// A place in the order in which waiting groups are offered. The default is the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OfferPlace {
    /// An engine's own number of the run.
    pub run: i64,
    /// The queue.
    pub queue: String,
}

/// A part of what waits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offered {
    /// What waits.
    pub offer: Offer,
    /// Where to go on; `None` if this was the last part.
    pub next: Option<OfferPlace>,
    /// When the next action becomes ready after the time asked about.
    pub next_ready: Option<Time>,
}

/// What whoever has the turn to hand out work looks at.
#[derive(Debug)]
pub struct InTurn {
    /// The turn.
    pub turn: Turn,
    /// What waits.
    pub offered: Offered,
    /// The record of the worker it is for, if it has one.
    pub worker: Option<WorkerRecord>,
}

/// The store of record. Every method that changes something answers after commit (design rule 3).
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Decides the command on the run's current state and appends the events it yields. One that was
    /// made by a [site](Submission::site_revision) that has changed is refused as [`Refusal::Outdated`], one that was made in a
    /// [turn](Submission::turn) after which another had one as [`StoreError::TurnOver`]. Neither does anything, ever.
    async fn submit(&self, submission: Submission) -> Result<Reply, SubmitError>;

    /// Decides commands one after the other, each on the state that those before it left, and commits many at a time. One
    /// answer for each; what becomes of one does not keep those after it from being carried out.
    async fn submit_in_order(&self, submissions: Vec<Submission>) -> Vec<Result<Reply, SubmitError>>;

    /// A stored blob.
    async fn blob(&self, digest: &str) -> Result<Option<Bytes>, StoreError>;

    /// A run, if it exists.
    async fn run(&self, run: &RunKey) -> Result<Option<RunRecord>, StoreError>;

    /// Actions of a run as of one moment; `None` if the run does not exist.
    async fn snapshot(&self, run: &RunKey, which: Which) -> Result<Option<Snapshot>, StoreError>;

    /// Up to `limit` events of a run after number `seq`.
    async fn events_after(&self, run: &RunKey, seq: u64, limit: usize) -> Result<Vec<Logged>, StoreError>;

    /// Up to `limit` events of all runs after place `pos`, in commit order.
    async fn feed_after(&self, pos: u64, limit: usize) -> Result<Vec<FeedItem>, StoreError>;

    /// Looks through up to `limit` events of all runs after place `pos` for those that `of` names.
    async fn sift_feed(&self, pos: u64, limit: usize, of: Sift) -> Result<Sifted, StoreError>;

    /// Wakes when a run's log has grown. The value is a hint, the log is the truth.
    fn changes(&self, run: &RunKey) -> watch::Receiver<u64>;

    /// Wakes when any log has grown, with the place of its newest event; and when a queue or a limit was changed, because
    /// what waits may go on then.
    fn feed(&self) -> watch::Receiver<u64>;

    /// Runs of a project and domain, or of the whole organisation when those are empty.
    async fn list_runs(&self, scope: &ListScope, query: &ListQuery) -> Result<Page<RunRow>, StoreError>;

    /// Actions of a run.
    async fn list_actions(&self, run: &RunKey, query: &ListQuery) -> Result<Page<ActionState>, StoreError>;

    /// The place of the newest change of a run, for [`Store::runs_changed`].
    async fn last_run_change(&self) -> Result<u64, StoreError>;

    /// Up to `limit` runs of `scope` whose root has changed after place `after`.
    async fn runs_changed(
        &self,
        scope: &ListScope,
        filters: &[Filter],
        after: u64,
        limit: usize,
    ) -> Result<RunChanges, StoreError>;

    /// The runs of `scope` that meet `filters`, counted by task.
    async fn run_totals(&self, scope: &ListScope, filters: &[Filter]) -> Result<RunTotals, StoreError>;

    /// The tree of a run's actions; `None` if the run does not exist.
    async fn outline(&self, run: &RunKey) -> Result<Option<Outline>, StoreError>;

    /// Up to `limit` groups of the children of `parent` after the one called `after`, by name; `None` if the run or the
    /// action does not exist. Costs what the groups cost, however many children they have.
    async fn child_groups(
        &self,
        run: &RunKey,
        parent: &ActionName,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Option<ChildGroups>, StoreError>;

    /// Some children of an action; `None` if the run or the action does not exist. Costs what is answered.
    async fn child_window(&self, run: &RunKey, query: &ChildQuery) -> Result<Option<ChildWindow>, StoreError>;

    /// Some actions of a run as they must be shown, in any order, and whether each meets `filters`: with all that the events up
    /// to number `upto` did to them, and maybe later ones. Names that do not exist are left out.
    async fn matched(
        &self,
        run: &RunKey,
        names: &[ActionName],
        filters: &[Filter],
        upto: u64,
    ) -> Result<Vec<(ActionState, bool)>, StoreError>;

    /// What waits for a worker and may start by `now`, with all that limits it: up to `groups` groups of one run and queue
    /// after the place `after`, up to `each` candidates of each.
    async fn offer(&self, now: Time, after: &OfferPlace, groups: usize, each: usize) -> Result<Offered, StoreError>;

    /// Up to `limit` actions whose cache lookup is due by `now`, and when the next after `now` is.
    async fn lookups(&self, now: Time, limit: usize) -> Result<(Vec<(RunKey, ActionState)>, Option<Time>), StoreError>;

    /// Up to `limit` conditions that ask for a call which nobody has made, oldest first.
    async fn calls_due(&self, limit: usize) -> Result<Vec<(RunKey, ActionState)>, StoreError>;

    /// The entries that work of `scope` with this plan may use, fresh or not: its own domain's first, then the newest.
    async fn cached(&self, scope: &Scope, plan: &CachePlan) -> Result<Vec<CacheEntry>, StoreError>;

    /// Caches a result under `key` in `scope`; `false` if there is one already and `overwrite` does not hold.
    async fn put_cached(
        &self,
        scope: &Scope,
        key: &str,
        entry: CacheEntry,
        overwrite: bool,
    ) -> Result<bool, StoreError>;

    /// Forgets the result under `key` in `scope`, or only if it lies at `output_uri` where that is not empty; `false` if
    /// there was none.
    async fn drop_cached(&self, scope: &Scope, key: &str, output_uri: &str) -> Result<bool, StoreError>;

    /// Takes or extends the reservation of `key` in `scope` for a client that calls itself `wanted.owner`, unless another
    /// holds it at `now`. Answers who holds it then.
    async fn reserve(
        &self,
        scope: &Scope,
        key: &str,
        wanted: Reservation,
        now: Time,
    ) -> Result<Reservation, StoreError>;

    /// Gives the reservation of `key` in `scope` back; `false` if `owner` did not hold it.
    async fn release(&self, scope: &Scope, key: &str, owner: &str) -> Result<bool, StoreError>;

    /// Up to `limit` actions of which a time limit has passed by `now`, and when the next limit after `now` passes.
    async fn due(&self, now: Time, limit: usize) -> Result<(Vec<(RunKey, ActionName)>, Option<Time>), StoreError>;

    /// Every action with a live lease of `worker`.
    async fn held_by(&self, worker: &WorkerId) -> Result<Vec<(RunKey, ActionState)>, StoreError>;

    /// Up to `limit` of the actions with a live lease of `worker`, in the order of their creation after the place `after`, an
    /// engine's own number; and where to go on, `None` if these were the last.
    async fn held_part(
        &self,
        worker: &WorkerId,
        after: Option<i64>,
        limit: usize,
    ) -> Result<(Vec<(RunKey, ActionState)>, Option<i64>), StoreError>;

    /// How many live leases a worker has.
    async fn held_count(&self, worker: &WorkerId) -> Result<u64, StoreError>;

    /// Every worker that has a live lease, known or not.
    async fn holders(&self) -> Result<Vec<WorkerId>, StoreError>;

    /// A worker, if it is known.
    async fn worker(&self, id: &WorkerId) -> Result<Option<WorkerRecord>, StoreError>;

    /// Every known worker, by name. At most [`MAX_WORKERS`].
    async fn workers(&self) -> Result<Vec<WorkerRecord>, StoreError>;

    /// Stores a worker in place of its record with the number `beat`, 0 if there is none; `false` if that is not so, or if
    /// there are [`MAX_WORKERS`] already. The record's own number is not looked at: it becomes the next one.
    async fn put_worker(&self, record: WorkerRecord, beat: u64) -> Result<bool, StoreError>;

    /// A sign of life: stores what the worker says of itself; `false` if its session is another by now or has expired.
    async fn beat_worker(&self, id: &WorkerId, session: u64, about: AboutWorker) -> Result<bool, StoreError>;

    /// Forgets a worker whose record has the number `beat`; `false` if it has another.
    async fn drop_worker(&self, id: &WorkerId, beat: u64) -> Result<bool, StoreError>;

    /// Up to `limit` live actions whose parent has ended.
    async fn unsettled(&self, limit: usize) -> Result<Vec<(RunKey, ActionName)>, StoreError>;

    /// Stores a deployed task; `false` if this version exists already.
    async fn put_task(&self, task: DeployedTask, blob: Blob) -> Result<bool, StoreError>;

    /// A deployed task.
    async fn task(&self, id: &TaskId) -> Result<Option<DeployedTask>, StoreError>;

    /// Deployed tasks with their latest runs. `latest` keeps only the newest version of each name.
    async fn list_tasks(&self, scope: &ListScope, latest: bool, query: &ListQuery) -> Result<TaskList, StoreError>;

    /// Creates a project; `false` if it exists already.
    async fn create_project(&self, project: Project) -> Result<bool, StoreError>;

    /// Replaces a project; `false` if there is none.
    async fn update_project(&self, project: Project) -> Result<bool, StoreError>;

    /// A project.
    async fn project(&self, org: &str, id: &str) -> Result<Option<Project>, StoreError>;

    /// Every project of an organisation, by identifier.
    async fn projects(&self, org: &str) -> Result<Vec<Project>, StoreError>;

    /// Creates the first domains of an organisation; `false` if it has any.
    async fn seed_domains(&self, org: &str, domains: Vec<Domain>) -> Result<bool, StoreError>;

    /// Creates a domain; `false` if it exists already.
    async fn create_domain(&self, domain: Domain) -> Result<bool, StoreError>;

    /// Changes a domain's name; `false` if there is no such domain.
    async fn rename_domain(&self, org: &str, id: &str, name: &str) -> Result<bool, StoreError>;

    /// Deletes a domain; `false` if there is none, if it is in use, or if it is the last of its organisation.
    async fn delete_domain(&self, org: &str, id: &str) -> Result<bool, StoreError>;

    /// A domain.
    async fn domain(&self, org: &str, id: &str) -> Result<Option<Domain>, StoreError>;

    /// Every domain of an organisation, in the order of their creation.
    async fn domains(&self, org: &str) -> Result<Vec<Domain>, StoreError>;

    /// What there is in a domain.
    async fn domain_use(&self, org: &str, id: &str) -> Result<DomainUse, StoreError>;

    /// Adds a version of the settings of a level; `false` if its number does not follow the newest.
    async fn put_settings(&self, version: SettingsVersion) -> Result<bool, StoreError>;

    /// What is recorded of the place of runs.
    async fn site(&self, scope: &Scope) -> Result<Site, StoreError>;

    /// The newest settings of each level that counts at `key`, widest first. Levels that nobody has edited are left out.
    async fn settings_at(&self, key: &SettingsKey) -> Result<Vec<SettingsVersion>, StoreError>;

    /// Up to `limit` versions of one level after number `after`, oldest first.
    async fn settings_history(
        &self,
        key: &SettingsKey,
        after: u64,
        limit: usize,
    ) -> Result<Vec<SettingsVersion>, StoreError>;
    /// Creates a queue; `false` if one of its name exists, deleted or not. Of those that are deleted, only the last
    /// [`MAX_DELETED_QUEUES`] are kept.
    async fn create_queue(&self, queue: Queue) -> Result<bool, StoreError>;

    /// Replaces a queue whose generation is `generation`; `false` if it has another or does not exist.
    async fn replace_queue(&self, queue: Queue, generation: u64) -> Result<bool, StoreError>;

    /// A queue, deleted or not.
    async fn queue(&self, org: &str, name: &str) -> Result<Option<Queue>, StoreError>;

    /// Every queue of an organisation by name, deleted or not. Cheap: the dispatcher asks on each of its rounds.
    async fn queues(&self, org: &str) -> Result<Vec<Queue>, StoreError>;

    /// What a queue holds.
    async fn queue_load(&self, org: &str, name: &str) -> Result<QueueLoad, StoreError>;

    /// What each queue of an organisation holds, by name; without those that hold nothing.
    async fn queue_loads(&self, org: &str) -> Result<BTreeMap<String, QueueLoad>, StoreError>;

    /// Stores the limits of a project or a domain of it, in place of those whose generation is `generation`, 0 if there
    /// are none; `false` if that is not so.
    async fn replace_project_limits(&self, limits: ProjectLimits, generation: u64) -> Result<bool, StoreError>;

    /// Every record of limits of an organisation, by project and domain. Cheap: the dispatcher asks on each of its rounds.
    async fn project_limits(&self, org: &str) -> Result<Vec<ProjectLimits>, StoreError>;

    /// Tells `observer` of every commit of this process from now on. Only the first one is told.
    fn observe(&self, observer: Arc<dyn Observer>);

    /// What lives now, in all organisations.
    async fn census(&self) -> Result<Census, StoreError>;

    /// Does a part of giving up the runs that `retention` no longer keeps at `now`: takes some out of sight, or removes up
    /// to about `most` rows of those that are. Those who commit at the same time wait for no more than that. When two do
    /// this at once, one of them may do nothing.
    ///
    /// A run is given up only if it has ended, all its actions have by their own record, and no live run was made from it.
    /// From that commit on it does not exist, and its name is free. Cache entries that it computed stay.
    async fn prune(&self, retention: &Retention, now: Time, most: usize) -> Result<Pruned, StoreError>;

    /// Waits for the turn to hand out work. What is in flight is counted before and taken after, so of all control planes of
    /// this store one does that at a time. It is meant for moments: whoever has it for more than some seconds loses it, and
    /// what was submitted in it is done before the next one is taken, or never.
    async fn take_turn(&self) -> Result<Turn, StoreError>;

    /// As [`Self::take_turn`], with what there is to hand out, as [`Store::offer`] says, and the record of worker `to`, both
    /// read in that turn.
    async fn offer_in_turn(
        &self,
        to: &WorkerId,
        now: Time,
        after: &OfferPlace,
        groups: usize,
        each: usize,
    ) -> Result<InTurn, StoreError>;

    /// Waits for the turn to reconcile, which one control plane of this store has at a time, until it passes it on or loses
    /// it. What reconcilers do is decided again by the core, so that a moment with two of them does no harm.
    async fn lead(&self) -> Result<Turn, StoreError>;
}

/// What a list covers. Empty project and domain mean all of the organisation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListScope {
    /// Organisation.
    pub org: String,
    /// Project; empty for all.
    pub project: String,
    /// Domain; empty for all.
    pub domain: String,
}
