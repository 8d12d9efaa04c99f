//! What `aloft dev` and `aloft server` have in common: a control plane and a data plane in one process, wired by function
//! calls, from its configuration to its end.

use std::{net::IpAddr, path::Path, sync::Arc, time::Duration};

use aloft_control::{Control, Guest, RetentionSettings, Settings, WorkerToken};
use aloft_core::WorkerId;
use aloft_dataplane::{data::Data, env, process::AttemptDirs};
use aloft_objects::{Keys, Objects};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    clock::clock,
    config::{Config, Loaded, Role, Source, is_loopback},
    datadir::{DataDir, variable},
    debug,
    exit::{Exit, Kind},
    gather,
    http::{self, Names, Served},
    listen, memory,
    metrics::Metrics,
    ready::Readiness,
    serve,
    store::{open_store, store_exit},
    telemetry::say,
    tools,
    worker::{self, LocalLogs, Workplace},
};

/// The domain that the SDK's own configuration names.
const USUAL_DOMAIN: &str = "development";

/// Where the tasks of the platform itself are deployed (contract, 8.2).
const SYSTEM_PROJECT: &str = "system";

/// How old an unfinished upload is when it is swept, and how often that is looked at.
const UPLOAD_AGE: Duration = Duration::from_secs(24 * 3600);

/// How long a thread that reads files or the database waits for more to do. A burst has hundreds of them, each with a stack and
/// memory at hand of its own; to start one takes some ten microseconds.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

/// The wait for those who still ask on the port of health and metrics.
const DEBUG_DRAIN: Duration = Duration::from_secs(1);

/// What a role is told once its node serves.
pub(crate) struct Serving<'a> {
    /// Where it is reached from this machine.
    pub(crate) local_url: &'a str,
    /// Where people reach it.
    pub(crate) public_url: &'a str,
    /// Where health and metrics are, if anywhere.
    pub(crate) debug_url: Option<&'a str>,
    /// The data directory.
    pub(crate) data_dir: &'a Path,
    /// The domain to begin with.
    pub(crate) domain: &'a str,
}

/// Runs a node until Ctrl-C or SIGTERM. `serves` is called once it does.
pub(crate) fn run(
    role: Role,
    loaded: &Loaded,
    serves: impl FnOnce(&Serving<'_>) -> Result<(), Exit>,
) -> Result<(), Exit> {
    block_on(node(role, loaded, serves))
}

/// Runs a role to its end.
pub(crate) fn block_on(role: impl Future<Output = Result<(), Exit>>) -> Result<(), Exit> {
    raise_file_limit();
    memory::give_back();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(KEEP_ALIVE)
        .build()
        .map_err(|e| Exit::other(format!("cannot start: {e}")))?;
    let ended = runtime.block_on(role);
    // What is left are blocking reads; nothing waits for them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn node(role: Role, loaded: &Loaded, serves: impl FnOnce(&Serving<'_>) -> Result<(), Exit>) -> Result<(), Exit> {
    let config = &loaded.config;
    let in_dir = |e: String| Exit::new(Kind::DataDir, e);
    let dir = DataDir::open(&config.data_path(role, variable).map_err(in_dir)?)?;
    let python = config.executor.python.as_ref().map(Path::new);
    if config.worker.enabled {
        tools::check_tools()?;
        tools::check_python(python)?;
    }
    let readiness = Readiness::default();
    // Before anything that may take long: whoever asks is told that this is starting.
    let debug = DebugPort::open(role, config, &readiness).await?;
    let listeners = listen::bind(&dir, &config.listen.addresses, config.listen.port).await?;
    let port = listeners.first().and_then(|l| l.local_addr().ok()).map_or(config.listen.port, |a| a.port());
    let local = local_authority(&config.listen.addresses, port);
    let local_url = format!("http://{local}");
    let public_url = config.listen.public_url.clone().unwrap_or_else(|| format!("http://localhost:{port}"));

    let place = config
        .database
        .place(&dir.join("aloft.db"))
        .map_err(|(key, reason, remedy)| Exit::new(Kind::Config, format!("{key}: {reason}; {remedy}")))?;
    let opened = open_store(&place, &dir).await?;
    let key_path = config.master_key_path(variable).map_err(in_dir)?;
    let secret = dir.master_secret(key_path.as_deref())?;
    let worker_name = dir.worker_name()?;
    let objects_dir = config.storage_path(dir.path(), variable).map_err(in_dir)?;
    let objects = Objects::local(&objects_dir, &config.storage.bucket_name, &public_url, Keys::new(secret))
        .map_err(|e| in_dir(e.to_string()))?;
    let stopping = CancellationToken::new();
    let environments = Arc::new(env::Envs::new(&dir.join("envs"), python.map(Path::to_owned), objects.clone()));
    let dirs = AttemptDirs::new(dir.path());
    let logs = Arc::new(LocalLogs::new(dirs.clone(), Arc::clone(&opened.store)));
    let plane = Arc::new(Data::new(objects.clone(), environments.clone(), logs, Arc::new(clock)));
    let settings = Settings {
        default_org: config.organization.clone(),
        domains: config.domains.clone(),
        public_url: public_url.clone(),
        cluster: config.cluster_name.clone(),
        retention: RetentionSettings { kept: config.retention.kept(), every: config.retention.every.0 },
        lease: config.worker.lease.0,
        worker_token: worker_token(config)?,
    };
    let signed_with = callback_key(&secret);
    let store = Arc::clone(&opened.store);
    let control = Control::new(store, plane, Arc::new(clock), settings, stopping.clone(), signed_with);
    let domain = first_records(&control, loaded).await?;
    if let Some(debug) = &debug {
        debug.metrics.started(&control);
    }
    gather::start(&control, debug.as_ref().map(|d| &d.metrics), config);

    // From here on there is something to end well.
    let signalled = signals();
    let worker = if config.worker.enabled {
        let seat = Arc::new(control.seat(Guest {
            id: WorkerId(worker_name),
            process: rand::random(),
            known: false,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: worker::host(),
            attempts: dir.path().to_string_lossy().into_owned(),
            draining: false,
        }));
        let place =
            Workplace { config, control: seat.clone(), authority: &local, objects: &objects, dirs, environments };
        let worker = worker::start(place)?;
        Some((worker, tokio::spawn(async move { seat.keep_alive().await })))
    } else {
        None
    };
    let served = Served {
        objects: objects.clone(),
        readiness: readiness.clone(),
        metrics: debug.as_ref().map(|d| Arc::clone(&d.metrics)),
        names: names(role, config),
    };
    let app = http::app(&control, served).map_err(Exit::other)?;
    let (places, drain) = (serve::places(), config.drain.timeout.0);
    let servers: Vec<_> = listeners
        .into_iter()
        .map(|l| tokio::spawn(serve::serve(l, app.clone(), places.clone(), stopping.clone(), drain)))
        .collect();
    let reconcilers = tokio::spawn({
        let control = control.clone();
        async move { control.run().await }
    });
    let sweeper = tokio::spawn(sweep(objects, stopping.clone()));

    readiness.started(Arc::clone(&opened.store));
    let debug_url = debug.as_ref().map(|d| d.url.as_str());
    let (data_dir, domain) = (dir.path(), domain.as_str());
    let serving = Serving { local_url: &local_url, public_url: &public_url, debug_url, data_dir, domain };
    let ended = dir.write("endpoint", local_url.as_bytes(), 0o600).and_then(|()| serves(&serving));
    if ended.is_ok() {
        signalled.await;
        say("Stopping. Tasks that run keep running, and are found again at the next start.");
        readiness.draining();
        // Whoever has no patience signals again.
        tokio::select! {
            () = tokio::time::sleep(config.drain.delay.0) => {}
            () = signals() => {}
        }
    }
    let alive = match worker {
        Some((worker, alive)) => {
            worker.stop().await;
            Some(alive)
        }
        None => None,
    };
    stopping.cancel();
    if let Some(alive) = alive {
        let _ = alive.await;
    }
    for server in servers {
        let _ = server.await;
    }
    let _ = tokio::join!(reconcilers, sweeper);
    opened.close().await;
    dir.remove("endpoint");
    if let Some(debug) = debug {
        debug.close().await;
    }
    ended
}

/// The port of health and metrics, serving.
pub(crate) struct DebugPort {
    /// Where it is.
    pub(crate) url: String,
    metrics: Arc<Metrics>,
    stopping: CancellationToken,
    servers: Vec<JoinHandle<()>>,
}

impl DebugPort {
    pub(crate) async fn open(role: Role, config: &Config, readiness: &Readiness) -> Result<Option<Self>, Exit> {
        if !config.debug.enabled {
            return Ok(None);
        }
        let port = config.debug.port;
        let listeners: Vec<TcpListener> = listen::bind_debug(&config.debug.addresses, port).await?;
        let port = listeners.first().and_then(|l| l.local_addr().ok()).map_or(port, |a| a.port());
        let url = format!("http://{}", local_authority(&config.debug.addresses, port));
        let metrics = Arc::new(Metrics::new(role));
        let app = debug::app(readiness.clone(), Arc::clone(&metrics));
        let (stopping, places) = (CancellationToken::new(), serve::places());
        let serve = |l| tokio::spawn(serve::serve(l, app.clone(), places.clone(), stopping.clone(), DEBUG_DRAIN));
        let servers = listeners.into_iter().map(serve).collect();
        Ok(Some(Self { url, metrics, stopping, servers }))
    }

    pub(crate) async fn close(self) {
        self.stopping.cancel();
        for server in self.servers {
            let _ = server.await;
        }
    }
}

/// How this machine reaches what listens on `addresses`: tasks are told, and the administrator's commands.
pub(crate) fn local_authority(addresses: &[IpAddr], port: u16) -> String {
    match addresses.iter().find(|a| is_loopback(a) || a.is_unspecified()).or(addresses.first()) {
        Some(IpAddr::V4(v4)) if !v4.is_unspecified() && !v4.is_loopback() => format!("{v4}:{port}"),
        Some(IpAddr::V6(v6)) if !v6.is_unspecified() && !is_loopback(&IpAddr::V6(*v6)) => format!("[{v6}]:{port}"),
        _ => format!("localhost:{port}"),
    }
}

/// The names that requests may come by.
fn names(role: Role, config: &Config) -> Names {
    let public = config.listen.public_url.as_ref().and_then(|url| url.parse::<::http::Uri>().ok());
    let public = public.and_then(|uri| uri.host().map(str::to_owned));
    let hosts = config.listen.names.iter().cloned().chain(public).map(|h| h.to_ascii_lowercase()).collect();
    Names { hosts, addresses: role == Role::Server, any: config.listen.names.iter().any(|n| n == "*") }
}

/// What workers of other processes prove themselves by.
fn worker_token(config: &Config) -> Result<WorkerToken, Exit> {
    let token = config
        .worker
        .token()
        .map_err(|(key, reason, remedy)| Exit::new(Kind::Config, format!("{key}: {reason}; {remedy}")))?;
    Ok(WorkerToken::new(move || {
        let read = token.as_ref()?.read();
        read.inspect_err(|why| tracing::error!("worker.tokenPath: {why}, so no worker is taken"))
            .ok()
            .map(|s| s.expose().to_owned())
    }))
}

/// What every server has: domains, first projects, and the platform's own tasks. Returns the domain to begin with.
async fn first_records(control: &Control, loaded: &Loaded) -> Result<String, Exit> {
    let domains = control.ensure_domains().await.map_err(|e| store_exit(&e))?;
    let asked = loaded.values.get("domains").map_or(&Source::Default, |(_, source)| source);
    if *asked != Source::Default
        && let Some(missing) = loaded.config.domains.iter().find(|d| !domains.contains(d))
    {
        let by = match asked {
            Source::Flag(name) => name.clone(),
            other => format!("{other}: domains:"),
        };
        say(&format!(
            "{by} {missing} is not made: the database has domains already ({}). Create it with DomainService.",
            domains.join(", ")
        ));
    }
    for project in &loaded.config.projects {
        control.ensure_project(project).await.map_err(|e| store_exit(&e))?;
    }
    control.ensure_system_project(SYSTEM_PROJECT).await.map_err(|e| store_exit(&e))?;
    let (id, spec) = env::build_task(SYSTEM_PROJECT, "production");
    control.deploy_system_task(id, spec).await.map_err(Exit::other)?;
    let usual = domains.iter().find(|d| *d == USUAL_DOMAIN).or_else(|| domains.first());
    Ok(usual.map_or_else(|| USUAL_DOMAIN.to_owned(), String::clone))
}

/// What callbacks are signed with. Not the master secret itself, which other credentials are derived from.
fn callback_key(secret: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(b"aloft callbacks").chain_update(secret).finalize().into()
}

/// Every connection and every task's log is a file descriptor; the soft limit of a shell is often 1024.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(%error, "cannot raise the limit of open files");
    }
}

/// Ends with the first Ctrl-C or SIGTERM after this call.
pub(crate) fn signals() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let streams = signal(SignalKind::interrupt()).and_then(|i| Ok((i, signal(SignalKind::terminate())?)));
    async move {
        match streams {
            Ok((mut interrupt, mut terminate)) => {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
            }
            Err(error) => {
                tracing::warn!(%error, "signals cannot be handled: they end Aloft at once");
                std::future::pending().await
            }
        }
    }
}

/// Removes uploads that were begun and never finished.
async fn sweep(objects: Objects, stopping: CancellationToken) {
    loop {
        let now = clock().as_micros() - i64::try_from(UPLOAD_AGE.as_micros()).unwrap_or(0);
        if let Ok(before) = jiff::Timestamp::from_microsecond(now)
            && let Err(error) = objects.sweep_multipart(before).await
        {
            tracing::warn!(%error, "cannot sweep unfinished uploads");
        }
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(UPLOAD_AGE / 24) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_reaches_what_listens() {
        for (addresses, authority) in [
            (&["127.0.0.1", "::1"][..], "localhost:80"),
            (&["0.0.0.0"], "localhost:80"),
            (&["::"], "localhost:80"),
            (&["192.0.2.1", "127.0.0.1"], "localhost:80"),
            (&["192.0.2.1"], "192.0.2.1:80"),
            (&["2001:db8::1"], "[2001:db8::1]:80"),
        ] {
            let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
            assert_eq!(local_authority(&addresses, 80), authority);
        }
    }
}
