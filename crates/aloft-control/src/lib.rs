//! The control plane: the contract's services over the store, the dispatcher that hands work to data planes, and the
//! reconcilers that finish what a commit has begun.
//!
//! Wire types stop in [`rpc`]; the rest speaks `aloft-core`. Nothing here reads users' bytes: what touches them goes
//! through [`aloft_plane::DataPlane`] (design rule 7).

mod call;
mod dispatch;
mod hold;
mod lookup;
mod names;
mod reconcile;
mod recover;
mod rpc;

use std::{sync::Arc, time::Duration};

use aloft_core::{RunKey, Subject, Time};
use aloft_plane::DataPlane;
use aloft_store::{OfferPlace, Project, Store, StoreError};
use tokio_util::sync::CancellationToken;

pub use call::callbacks;
pub use rpc::{Limits, router, service};

/// Where the time of decisions comes from.
pub type Clock = Arc<dyn Fn() -> Time + Send + Sync>;

/// What an administrator decides about a control plane.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The organisation that an empty `org` stands for. Tasks need one that is not empty.
    pub default_org: String,
    /// The domains of every project, as (identifier, name).
    pub domains: Vec<(String, String)>,
    /// The URL people and the SDK reach this server at, without a slash at the end.
    pub public_url: String,
    /// The name of the cluster shown on attempts.
    pub cluster: String,
}

impl Settings {
    /// The settings of a single-user server at `public_url`.
    pub fn local(public_url: String) -> Self {
        let domains = ["development", "staging", "production"];
        Self {
            default_org: "local".to_owned(),
            domains: domains.iter().map(|d| ((*d).to_owned(), (*d).to_owned())).collect(),
            public_url,
            cluster: "local".to_owned(),
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
        Self(Arc::new(Inner { store, data, clock, settings, stopping, dispatch, callback_key }))
    }

    /// Creates the project `id` unless it exists.
    ///
    /// # Errors
    /// [`StoreError`] if the store could not be written.
    pub async fn ensure_project(&self, id: &str) -> Result<(), StoreError> {
        if self.store().project(&self.settings().default_org, id).await?.is_some() {
            return Ok(());
        }
        let org = self.settings().default_org.clone();
        let project = Project { org, id: id.to_owned(), name: id.to_owned(), ..Project::default() };
        self.store().create_project(project).await.map(drop)
    }

    /// Runs the reconcilers until the control plane stops.
    pub async fn run(&self) {
        tokio::join!(
            self.settle_loop(),
            self.limits_loop(),
            self.lookup_loop(),
            self.hold_loop(),
            self.call_loop(),
            self.narrate_loop(),
        );
    }

    fn store(&self) -> &dyn Store {
        self.0.store.as_ref()
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

    /// Sleeps, or returns early when the control plane stops.
    async fn pause(&self, length: Duration) {
        tokio::select! {
            () = self.stopping().cancelled() => {}
            () = tokio::time::sleep(length) => {}
        }
    }
}
