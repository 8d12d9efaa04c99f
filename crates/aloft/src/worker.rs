//! The worker of a node, wherever its control plane is: how it is put together, and where its attempts' logs are found.

use std::{collections::HashMap, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use aloft_dataplane::{
    data::{self, AttemptLogs},
    env,
    logs::Logs,
    needs::Machine,
    process::{AttemptDirs, Endpoints, HostEnv, ProcessConfig, ProcessExecutor},
    worker::{Parts, Worker},
};
use aloft_objects::Objects;
use aloft_plane::{AttemptId, ControlPlane, LeasedAttempt, LogStream, PlaneError};
use aloft_store::Store;

use crate::{config::Config, datadir::on_disk, exit::Exit};

/// What a node's worker works with.
pub(crate) struct Workplace<'a> {
    pub(crate) config: &'a Config,
    /// Its line to its control plane.
    pub(crate) control: Arc<dyn ControlPlane>,
    /// Host and port at which its tasks reach the API and the object store.
    pub(crate) authority: &'a str,
    pub(crate) objects: &'a Objects,
    pub(crate) dirs: AttemptDirs,
    pub(crate) environments: Arc<env::Envs>,
}

/// Starts the worker of a node.
pub(crate) fn start(place: Workplace<'_>) -> Result<Worker, Exit> {
    let Workplace { config, control, authority, objects, dirs, environments } = place;
    let program = std::env::current_exe().map_err(|e| Exit::other(format!("cannot find my own program: {e}")))?;
    let store = objects.clone();
    let credentials = move |attempt: &LeasedAttempt| match data::attempt_credentials(&store, attempt) {
        Ok(pair) => (pair.access_key_id, pair.secret_access_key),
        Err(error) => {
            // The task fails on its first access, with the object store's own words.
            tracing::error!(%error, attempt = %attempt.lease.id, "no credentials for an attempt");
            (String::new(), String::new())
        }
    };
    let process = ProcessConfig {
        dirs,
        shim: vec![program.to_string_lossy().into_owned(), "shim".to_owned()],
        endpoints: Endpoints {
            api: authority.to_owned(),
            s3: format!("http://{authority}"),
            credentials: Arc::new(credentials),
            export_aws: true,
        },
        host: HostEnv::capture(),
        grace: config.executor.grace.0,
        warm: config.executor.warm_start,
    };
    let executor =
        ProcessExecutor::new(process).map_err(|e| on_disk("cannot prepare the directories of attempts", &e))?;
    let executor = Arc::new(executor);
    let prewarmed = (Arc::clone(&executor), Arc::clone(&environments));
    tokio::spawn(async move {
        let (executor, environments) = prewarmed;
        if let Some(found) = environments.default_if_present().await {
            executor.prewarm(&found);
        }
    });
    let native: HashMap<String, Arc<dyn aloft_dataplane::seam::NativeTask>> =
        [(env::BUILD_TASK_TYPE.to_owned(), environments.clone() as Arc<_>)].into();
    Ok(Worker::start(Parts {
        control,
        executor,
        environments,
        results: Arc::new(objects.clone()),
        native,
        machine: Machine::detect(),
        max_waiting: config.worker.max_waiting as usize,
        linger: config.executor.linger.0,
    }))
}

/// The name of this machine, for people.
pub(crate) fn host() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The logs of attempts that were run on this machine: by this node, or by a worker of its database that belongs to the same
/// user.
pub(crate) struct LocalLogs {
    own: Logs,
    store: Arc<dyn Store>,
}

impl LocalLogs {
    /// The logs of the attempts in `dirs`, and of those of the workers that `store` knows.
    pub(crate) fn new(dirs: AttemptDirs, store: Arc<dyn Store>) -> Self {
        Self { own: Logs::new(dirs), store }
    }
}

#[aloft_plane::async_trait]
impl AttemptLogs for LocalLogs {
    async fn tail(&self, attempt: &AttemptId) -> Result<LogStream, PlaneError> {
        let missing = match self.own.tail(attempt).await {
            Err(missing @ PlaneError::NotFound(_)) => missing,
            other => return other,
        };
        let workers = self.store.workers().await.map_err(|e| PlaneError::Unavailable(e.to_string()))?;
        let here = host();
        for about in workers.into_iter().map(|w| w.about).filter(|a| a.host == here && !a.attempts.is_empty()) {
            let dir = Path::new(&about.attempts);
            // A worker says where it keeps them; only what belongs to this user is looked at.
            let owned = dir.metadata().is_ok_and(|m| m.is_dir() && m.uid() == nix::unistd::getuid().as_raw());
            if !owned {
                continue;
            }
            match Logs::new(AttemptDirs::new(dir)).tail(attempt).await {
                Err(PlaneError::NotFound(_)) => {}
                other => return other,
            }
        }
        Err(missing)
    }
}
