//! `aloft dev`: a control plane and a data plane in one process, wired by function calls.

use std::{
    collections::HashMap,
    fs,
    io::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aloft_control::{Control, Settings};
use aloft_core::{Time, WorkerId};
use aloft_dataplane::{
    data::{self, AttemptLogs, Data},
    env,
    logs::Logs,
    needs::Machine,
    process::{AttemptDirs, Endpoints, HostEnv, ProcessConfig, ProcessExecutor},
    worker::{Parts, Worker},
};
use aloft_objects::{Keys, Objects};
use aloft_plane::{AttemptId, LeasedAttempt, LogStream, PlaneError};
use aloft_store::StoreError;
use aloft_store_sqlite::SqliteStore;
use clap::Args as ClapArgs;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    datadir::DataDir,
    exit::{Exit, Kind},
    http, serve,
    telemetry::{self, LogFormat, say},
};

/// The port that `flyte create config --devbox` points at.
pub(crate) const DEFAULT_PORT: u16 = 30080;

/// Where the `flyte` CLI looks for its configuration.
const USUAL_CONFIG: &str = ".flyte/config.yaml";

/// The bucket of the local object store; its first path segment on the port.
const BUCKET: &str = "aloft-data";

/// The project that the SDK's own configuration names.
const FIRST_PROJECT: &str = "flytesnacks";

/// The domain that the SDK's own configuration names.
const USUAL_DOMAIN: &str = "development";

/// Where the tasks of the platform itself are deployed (contract, 8.2).
const SYSTEM_PROJECT: &str = "system";

/// Attempts that wait in this process; the rest wait in the database.
const MAX_WAITING: usize = 512;

/// How old an unfinished upload is when it is swept, and how often that is looked at.
const UPLOAD_AGE: Duration = Duration::from_secs(24 * 3600);

/// Options of `aloft dev`.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// Where everything is kept [default: ~/.local/share/aloft/dev].
    #[arg(long, value_name = "DIR", env = "ALOFT_DATA_DIR")]
    data_dir: Option<PathBuf>,

    /// The port to listen on, on loopback only. 0 chooses one and keeps it with the data directory, so that running tasks
    /// find Aloft again.
    #[arg(long, default_value_t = DEFAULT_PORT, env = "ALOFT_PORT")]
    port: u16,

    /// A domain that every project has; repeat it for more. Only for a new data directory: later, domains are created and
    /// deleted while Aloft runs [default: development, staging, production].
    #[arg(long = "domain", value_name = "NAME", value_parser = domain_name)]
    domains: Vec<String>,

    /// The Python interpreter that tasks run with. It must have `flyte` installed. By default the first on PATH that has,
    /// else one that `uv` makes.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,

    /// Write a configuration of the `flyte` CLI for this server.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = USUAL_CONFIG)]
    write_config: Option<PathBuf>,

    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,

    /// How many seconds a task has after SIGTERM, when it is aborted or a time limit passes, before it is killed. A pod
    /// template can say otherwise (termination_grace_period_seconds). A task that does not handle SIGTERM ends at once.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(0..=86_400), env = "ALOFT_GRACE")]
    grace: u64,

    /// Start every task with an interpreter of its own, to compare with the warm start.
    #[arg(long, hide = true)]
    cold: bool,
}

fn domain_name(text: &str) -> Result<String, String> {
    aloft_control::check_label("the name", text).map(|()| text.to_owned())
}

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn run(args: Args) -> Result<(), Exit> {
    telemetry::init(args.log_format);
    raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Exit::other(format!("cannot start: {e}")))?;
    let ended = runtime.block_on(dev(args));
    // What is left are blocking reads; nothing waits for them.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

fn clock() -> Time {
    #[expect(clippy::disallowed_methods, reason = "this is the clock that everything else is given")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

async fn dev(args: Args) -> Result<(), Exit> {
    let dir = DataDir::open(&args.data_dir.clone().map_or_else(default_data_dir, Ok)?)?;
    check_tools()?;
    check_python(args.python.as_deref())?;
    let listeners = bind(&dir, args.port).await?;
    let port = listeners[0].local_addr().map_err(|e| Exit::other(e.to_string()))?.port();
    let url = format!("http://localhost:{port}");

    let store = open_store(&dir)?;
    let secret = dir.master_secret()?;
    let objects = Objects::local(&dir.join("objects"), BUCKET, &url, Keys::new(secret))
        .map_err(|e| Exit::new(Kind::DataDir, e.to_string()))?;
    let stopping = CancellationToken::new();
    let environments = Arc::new(env::Envs::new(&dir.join("envs"), args.python.clone(), objects.clone()));
    let dirs = AttemptDirs::new(dir.path());
    let logs = Arc::new(DevLogs(Logs::new(dirs.clone())));
    let plane = Arc::new(Data::new(objects.clone(), environments.clone(), logs, Arc::new(clock)));
    let mut settings = Settings::local(url.clone());
    if !args.domains.is_empty() {
        settings.domains.clone_from(&args.domains);
    }
    let signed_with = callback_key(&secret);
    let control =
        Control::new(Arc::new(store.clone()), plane, Arc::new(clock), settings, stopping.clone(), signed_with);
    let domain = first_records(&control, &args.domains).await?;

    // From here on there is something to end well.
    let signalled = signals();
    let worker = start_worker(&control, &objects, dirs, environments, port, &args)?;
    let app = http::app(&control, &objects).map_err(Exit::other)?;
    let places = serve::places();
    let servers: Vec<_> = listeners
        .into_iter()
        .map(|listener| tokio::spawn(serve::serve(listener, app.clone(), places.clone(), stopping.clone())))
        .collect();
    let reconcilers = tokio::spawn({
        let control = control.clone();
        async move { control.run().await }
    });
    let sweeper = tokio::spawn(sweep(objects, stopping.clone()));

    let ended = match &args.write_config {
        Some(path) => write_config(path, port, &domain),
        None => Ok(()),
    };
    if ended.is_ok() {
        dir.write("endpoint", url.as_bytes(), 0o600)?;
        banner(&url, &dir, &args, &domain);
        signalled.await;
        say("Stopping. Tasks that run keep running, and are found again at the next start.");
    }
    worker.stop().await;
    stopping.cancel();
    for server in servers {
        let _ = server.await;
    }
    let _ = tokio::join!(reconcilers, sweeper);
    store.flush().await;
    dir.remove("endpoint");
    ended
}

/// The logs of attempts of this machine.
struct DevLogs(Logs);

#[aloft_plane::async_trait]
impl AttemptLogs for DevLogs {
    async fn tail(&self, attempt: &AttemptId) -> Result<LogStream, PlaneError> {
        self.0.tail(attempt).await
    }
}

fn start_worker(
    control: &Control,
    objects: &Objects,
    dirs: AttemptDirs,
    environments: Arc<env::Envs>,
    port: u16,
    args: &Args,
) -> Result<Worker, Exit> {
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
    let config = ProcessConfig {
        dirs,
        shim: vec![program.to_string_lossy().into_owned(), "shim".to_owned()],
        endpoints: Endpoints {
            api: format!("localhost:{port}"),
            s3: format!("http://localhost:{port}"),
            credentials: Arc::new(credentials),
            export_aws: true,
        },
        host: HostEnv::capture(),
        grace: Duration::from_secs(args.grace),
        warm: !args.cold,
    };
    let executor = ProcessExecutor::new(config)
        .map_err(|e| crate::datadir::on_disk("cannot prepare the directories of attempts", &e))?;
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
        id: WorkerId("dev".to_owned()),
        control: Arc::new(control.clone()),
        executor,
        environments,
        results: Arc::new(objects.clone()),
        native,
        machine: Machine::detect(),
        max_waiting: MAX_WAITING,
    }))
}

/// What every server has: domains, the first project, and the platform's own tasks. Returns the domain to begin with.
async fn first_records(control: &Control, wanted: &[String]) -> Result<String, Exit> {
    let domains = control.ensure_domains().await.map_err(|e| store_exit(&e))?;
    if let Some(missing) = wanted.iter().find(|d| !domains.contains(d)) {
        say(&format!(
            "--domain {missing} is not made: the data directory has domains already ({}). Create it with DomainService.",
            domains.join(", ")
        ));
    }
    control.ensure_project(FIRST_PROJECT).await.map_err(|e| store_exit(&e))?;
    control.ensure_system_project(SYSTEM_PROJECT).await.map_err(|e| store_exit(&e))?;
    let (id, spec) = env::build_task(SYSTEM_PROJECT, "production");
    control.deploy_system_task(id, spec).await.map_err(Exit::other)?;
    let usual = domains.iter().find(|d| *d == USUAL_DOMAIN).or_else(|| domains.first());
    Ok(usual.map_or_else(|| USUAL_DOMAIN.to_owned(), String::clone))
}

/// Where everything is kept when nobody says where.
pub(crate) fn default_data_dir() -> Result<PathBuf, Exit> {
    let base = match std::env::var_os("XDG_DATA_HOME").filter(|v| !v.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => {
            let home = std::env::var_os("HOME").filter(|v| !v.is_empty());
            let home =
                home.ok_or_else(|| Exit::new(Kind::DataDir, "HOME is not set; name a directory with --data-dir"))?;
            Path::new(&home).join(".local/share")
        }
    };
    Ok(base.join("aloft/dev"))
}

/// What callbacks are signed with. Not the master secret itself, which other credentials are derived from.
fn callback_key(secret: &[u8; 32]) -> [u8; 32] {
    Sha256::new().chain_update(b"aloft callbacks").chain_update(secret).finalize().into()
}

fn open_store(dir: &DataDir) -> Result<SqliteStore, Exit> {
    SqliteStore::open(&dir.join("aloft.db"), Arc::new(clock)).map_err(|error| {
        let mut exit = store_exit(&error);
        if matches!(error, StoreError::Corrupt(_)) {
            exit = Exit::new(Kind::Corrupt, format!("{error} (the file is {})", dir.join("aloft.db").display()));
        }
        exit
    })
}

fn store_exit(error: &StoreError) -> Exit {
    let kind = match error {
        StoreError::Full(_) => Kind::DiskFull,
        StoreError::Corrupt(_) => Kind::Corrupt,
        StoreError::Newer { .. } => Kind::Newer,
        StoreError::Unavailable(_) | StoreError::BadToken | StoreError::Expired | StoreError::TooManyRows => {
            Kind::DataDir
        }
    };
    Exit::new(kind, error.to_string())
}

/// Loopback only: there is no sign-in. Both families, because `localhost` may mean either.
async fn bind(dir: &DataDir, port: u16) -> Result<Vec<TcpListener>, Exit> {
    let wanted = if port == 0 { dir.remembered_port().unwrap_or(0) } else { port };
    let first = TcpListener::bind((Ipv4Addr::LOCALHOST, wanted)).await.map_err(|e| bind_exit(wanted, port == 0, &e))?;
    let chosen = first.local_addr().map_err(|e| Exit::other(e.to_string()))?.port();
    if port == 0 {
        dir.remember_port(chosen)?;
    }
    let mut listeners = vec![first];
    match TcpListener::bind((Ipv6Addr::LOCALHOST, chosen)).await {
        Ok(second) => listeners.push(second),
        // A machine without IPv6: clients fall back to the other family.
        Err(error) => tracing::debug!(%error, "not listening on [::1]"),
    }
    Ok(listeners)
}

fn bind_exit(port: u16, remembered: bool, error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::AddrInUse if remembered => Exit::new(
            Kind::PortInUse,
            format!(
                "port {port}, which this data directory remembers, is in use by another program; stop that one, or choose \
                 a port with --port (tasks that still run only find Aloft on the old one)"
            ),
        ),
        io::ErrorKind::AddrInUse => Exit::new(
            Kind::PortInUse,
            format!("port {port} is in use by another program; stop that one, or choose a port with --port"),
        ),
        io::ErrorKind::PermissionDenied => {
            Exit::new(Kind::PortInUse, format!("port {port} may not be used without privileges; choose one above 1023"))
        }
        _ => Exit::other(format!("cannot listen on port {port}: {error}")),
    }
}

/// Tasks unpack their code with the system's `tar`.
fn check_tools() -> Result<(), Exit> {
    match on_path("tar") {
        Some(_) => Ok(()),
        None => Err(Exit::new(
            Kind::MissingTool,
            "`tar` is not on PATH, and tasks unpack their code with it; install it (Debian: apt-get install tar)",
        )),
    }
}

/// Only that there is something to start with: whether it has `flyte` is found out in the background.
fn check_python(named: Option<&Path>) -> Result<(), Exit> {
    if let Some(path) = named {
        return if is_program(path) || on_path(&path.to_string_lossy()).is_some() {
            Ok(())
        } else {
            Err(Exit::new(
                Kind::MissingPython,
                format!(
                    "--python {} is not a program; name a Python interpreter that has `flyte` installed",
                    path.display()
                ),
            ))
        };
    }
    if ["python3", "python", "uv"].iter().any(|name| on_path(name).is_some()) {
        return Ok(());
    }
    Err(Exit::new(
        Kind::MissingPython,
        "there is neither Python nor uv on PATH to run tasks with; install uv (pip install uv), or name an interpreter with \
         --python",
    ))
}

fn on_path(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return None;
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| is_program(path))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
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

fn config_yaml(port: u16, domain: &str) -> String {
    format!(
        "# Points the flyte CLI and SDK at `aloft dev`.\n\
         admin:\n  endpoint: dns:///localhost:{port}\n  insecure: true\n\
         task:\n  project: {FIRST_PROJECT}\n  domain: {domain}\n\
         image:\n  builder: remote\n"
    )
}

fn cannot(verb: &str, path: &Path, error: &io::Error) -> Exit {
    Exit::other(format!("cannot {verb} {}: {error}; name another file with --write-config PATH", path.display()))
}

/// Writes the configuration, unless a different one is there.
fn write_config(path: &Path, port: u16, domain: &str) -> Result<(), Exit> {
    let text = config_yaml(port, domain);
    match fs::read_to_string(path) {
        Ok(there) if there == text => return Ok(()),
        Ok(_) => {
            return Err(Exit::other(format!(
                "{} exists and is another configuration; remove it, or name another file with --write-config PATH",
                path.display()
            )));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(cannot("read", path, &e)),
    }
    let write = || {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fs::create_dir_all(parent)?;
        }
        // New, so that nothing is overwritten that was not there a moment ago.
        fs::File::create_new(path)?.write_all(text.as_bytes())
    };
    write().map_err(|e| cannot("write", path, &e))?;
    say(&format!("Wrote {}.", path.display()));
    Ok(())
}

fn banner(url: &str, dir: &DataDir, args: &Args, domain: &str) {
    let port = url.rsplit(':').next().unwrap_or_default();
    say(&format!("Aloft {} listens on {url} (this machine only, no sign-in)", env!("CARGO_PKG_VERSION")));
    say(&format!("  pages     {url}/v2"));
    say(&format!("  data      {}", dir.path().display()));
    let mut flyte = "flyte".to_owned();
    if let Some(path) = &args.write_config {
        // The CLI finds the usual file by itself.
        if path != Path::new(USUAL_CONFIG) {
            flyte = format!("flyte -c {}", path.display());
        }
    } else {
        say(&format!(
            "  flyte     flyte create config --endpoint localhost:{port} --insecure --project {FIRST_PROJECT} \
             --domain {domain} --builder remote"
        ));
        say("            (or start with --write-config)");
    }
    say(&format!("  try       {flyte} run --follow examples/hello.py main"));
    say("Stop with Ctrl-C.");
}

/// Ends with the first Ctrl-C or SIGTERM after this call.
fn signals() -> impl Future<Output = ()> {
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
    fn a_configuration_is_written_once_and_never_over_another() {
        let dir = std::env::temp_dir().join(format!("aloft-config-{}", std::process::id()));
        let path = dir.join("a/config.yaml");
        write_config(&path, 1, USUAL_DOMAIN).unwrap();
        write_config(&path, 1, USUAL_DOMAIN).unwrap();
        let before = fs::read_to_string(&path).unwrap();
        assert!(write_config(&path, 2, USUAL_DOMAIN).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        fs::remove_dir_all(dir).unwrap();
    }
}
