//! The control plane: the contract's services over the store, the dispatcher that hands work to data planes, and the
//! reconcilers that finish what a commit has begun.
//!
//! Wire types stop in [`rpc`]; the rest speaks `aloft-core`. Nothing here reads users' bytes: what touches them goes
//! through [`aloft_plane::DataPlane`] (design rule 7).

mod call;
mod dispatch;
mod hold;
mod lookup;
mod meter;
mod names;
mod queues;
mod reconcile;
mod recover;
mod remember;
mod retention;
mod rpc;
mod seat;
mod session;
mod settings;
mod sweep;
mod work;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use aloft_core::{RunInfo, RunKey, Subject, Time, WorkerId};
use aloft_flyteidl2::flyteidl2::{project::ProjectState, task::RunSpec};
use aloft_plane::DataPlane;
use aloft_store::{Census, OfferPlace, Project, Retention, Store, StoreError};
use buffa::Enumeration as _;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use call::callbacks;
pub use meter::Meter;
pub use names::check_label;
pub use rpc::{Limits, router, service};
pub use seat::{Guest, Seat};
pub use session::Vigil;
pub use work::{Done, Reconciler, Work};

/// Where the time of decisions comes from.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// What an administrator decides about a control plane.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The organisation that an empty `org` stands for. Tasks need one that is not empty.
    pub default_org: String,
    /// The domains that an organisation begins with.
    pub domains: Vec<String>,
    /// The URL people and the SDK reach this server at, without a slash at the end.
    pub public_url: String,
    /// The name of the cluster shown on attempts.
    pub cluster: String,
    /// What becomes of the history.
    pub retention: RetentionSettings,
    /// How long a worker may not be heard of before what it holds goes to others.
    pub lease: Duration,
    /// What workers of other processes prove themselves by.
    pub worker_token: WorkerToken,
}

/// The shared token of workers, read at each use; `None` where no such workers are taken. Does not print.
#[derive(Clone)]
pub struct WorkerToken(Arc<dyn Fn() -> Option<String> + Send + Sync>);

impl WorkerToken {
    /// What `read` answers.
    pub fn new(read: impl Fn() -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }

    fn read(&self) -> Option<String> {
        (self.0)()
    }
}

impl std::fmt::Debug for WorkerToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("WorkerToken")
    }
}

/// What an administrator decides about history.
#[derive(Clone, Debug)]
pub struct RetentionSettings {
    /// What is kept.
    pub kept: Retention,
    /// How often to look for what is not.
    pub every: Duration,
}

impl Default for RetentionSettings {
    /// Everything is kept for ever.
    fn default() -> Self {
        Self { kept: Retention::default(), every: Duration::from_secs(60) }
    }
}

impl Settings {
    /// The settings of a single-user server at `public_url`.
    pub fn local(public_url: String) -> Self {
        Self {
            default_org: "local".to_owned(),
            domains: ["development", "staging", "production"].map(str::to_owned).to_vec(),
            public_url,
            cluster: "local".to_owned(),
            retention: RetentionSettings::default(),
            lease: Duration::from_secs(30),
            worker_token: WorkerToken::new(|| None),
        }
    }
}

/// One control plane. Cheap to clone; every clone is the same one.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    store: Arc<dyn Store>,
    data: Arc<dyn DataPlane>,
    clock: Clock,
    settings: Settings,
    stopping: CancellationToken,
    /// Where the dispatcher goes on, and its turnstile: one grant at a time.
    dispatch: tokio::sync::Mutex<OfferPlace>,
    /// What callbacks are signed with.
    callback_key: [u8; 32],
    remembered: remember::Remembered,
    watchings: rpc::Watchings,
    work: Work,
    meter: OnceLock<Arc<dyn Meter>>,
    /// When each worker was heard of here last, in which session. As many as there are names of workers.
    heard: Mutex<HashMap<WorkerId, (u64, Instant)>>,
    /// Of which waiting actions it was said what holds them back.
    held: Mutex<hold::Said>,
}

impl Control {
    /// A control plane over `store` that reaches users' data through `data`. It works until `stopping`
    /// is cancelled. Callbacks are signed with `callback_key`, which must survive a restart.
    pub fn new(
        store: Arc<dyn Store>,
        data: Arc<dyn DataPlane>,
        clock: Clock,
        settings: Settings,
        stopping: CancellationToken,
        callback_key: [u8; 32],
    ) -> Self {
        let dispatch = tokio::sync::Mutex::default();
        Self(Arc::new(Inner {
            store,
            data,
            clock,
            settings,
            stopping,
            dispatch,
            callback_key,
            remembered: remember::Remembered::default(),
            watchings: rpc::Watchings::default(),
            work: Work::default(),
            meter: OnceLock::new(),
            heard: Mutex::default(),
            held: Mutex::default(),
        }))
    }

    /// Records the domains that the default organisation begins with, and returns those that it has.
    ///
    /// # Errors
    /// [`StoreError`] if the store could not be read or written.
    pub async fn ensure_domains(&self) -> Result<Vec<String>, StoreError> {
        let org = &self.settings().default_org;
        self.ensure_domains_of(org).await?;
        Ok(self.store().domains(org).await?.into_iter().map(|d| d.id).collect())
    }

    /// Creates the project `id` unless it exists.
    ///
    /// # Errors
    /// [`StoreError`] if the store could not be written.
    pub async fn ensure_project(&self, id: &str) -> Result<(), StoreError> {
        self.ensure(id, ProjectState::PROJECT_STATE_ACTIVE).await
    }

    /// Creates the project `id` of the platform itself unless it exists. People's lists of projects leave it out.
    ///
    /// # Errors
    /// [`StoreError`] if the store could not be written.
    pub async fn ensure_system_project(&self, id: &str) -> Result<(), StoreError> {
        self.ensure(id, ProjectState::PROJECT_STATE_SYSTEM_GENERATED).await
    }

    async fn ensure(&self, id: &str, state: ProjectState) -> Result<(), StoreError> {
        let (org, id, state) = (self.settings().default_org.clone(), id.to_owned(), state.to_i32());
        let system = ProjectState::PROJECT_STATE_SYSTEM_GENERATED.to_i32();
        match self.store().project(&org, &id).await? {
            // Older versions made it as one of the people's.
            Some(found) if state == system && found.state != system => {
                self.store().update_project(Project { state, ..found }).await.map(drop)
            }
            Some(_) => Ok(()),
            None => {
                let project =
                    Project { org, name: id.clone(), id, state, created_at: self.now(), ..Project::default() };
                self.store().create_project(project).await.map(drop)
            }
        }
    }

    /// What lives now, in all organisations.
    ///
    /// # Errors
    /// [`StoreError`] if the store could not be read.
    pub async fn census(&self) -> Result<Census, StoreError> {
        self.store().census().await
    }

    /// Runs the reconcilers until the control plane stops, whenever it is this one's turn among those that share the store.
    pub async fn run(&self) {
        while !self.stopping().is_cancelled() {
            let lead = tokio::select! {
                () = self.stopping().cancelled() => return,
                lead = self.store().lead() => lead,
            };
            match lead {
                Ok(mut turn) => {
                    tracing::debug!("this control plane reconciles from here on");
                    tokio::select! {
                        () = self.reconcile() => {}
                        () = turn.lost() => tracing::warn!("another control plane may reconcile from here on"),
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot ask for the turn to reconcile");
                    self.pause(reconcile::TROUBLE).await;
                }
            }
        }
    }

    async fn reconcile(&self) {
        tokio::join!(
            self.settle_loop(),
            self.limits_loop(),
            self.lookup_loop(),
            self.hold_loop(),
            self.call_loop(),
            self.retention_loop(),
            self.sweep_loop(),
            self.narrate_loop(),
        );
    }

    fn store(&self) -> &dyn Store {
        self.0.store.as_ref()
    }

    fn remembered(&self) -> &remember::Remembered {
        &self.0.remembered
    }

    fn watchings(&self) -> &rpc::Watchings {
        &self.0.watchings
    }

    fn data(&self) -> &dyn DataPlane {
        self.0.data.as_ref()
    }

    fn settings(&self) -> &Settings {
        &self.0.settings
    }

    fn stopping(&self) -> &CancellationToken {
        &self.0.stopping
    }

    fn now(&self) -> Time {
        (self.0.clock)()
    }

    /// Who acts, until there is sign-in.
    fn anonymous() -> Subject {
        Subject { id: "anonymous".to_owned(), name: "Anonymous".to_owned(), email: String::new() }
    }

    /// The page that shows a run.
    fn run_url(&self, run: &RunKey) -> String {
        let scope = &run.scope;
        format!("{}/v2/domain/{}/project/{}/runs/{}", self.settings().public_url, scope.domain, scope.project, run.name)
    }

    /// The prefix below which the inputs and outputs of the run's actions lie: its own part of the one that `spec` names.
    fn run_base(&self, run: &RunKey, info: &RunInfo, spec: &RunSpec) -> String {
        let base = match spec.run_base_dir.trim_end_matches('/') {
            "" => self.data().run_base(run),
            base => format!("{base}/{}", run.name),
        };
        if info.apart.is_empty() { base } else { format!("{base}/{}", info.apart) }
    }

    /// For [`RunInfo::apart`] of a new run. A run that is given up leaves its data and its name: the next of that name must not
    /// find that error or overwrite those results, which the cache may still hand out.
    fn apart(&self, run: &RunKey) -> String {
        let kept = self.settings().retention.kept.of(&run.scope.project);
        kept.map_or_else(String::new, |_| names::apart())
    }

    /// Sleeps, or returns early when the control plane stops.
    async fn pause(&self, length: Duration) {
        tokio::select! {
            () = self.stopping().cancelled() => {}
            () = tokio::time::sleep(length) => {}
        }
    }
}
