//! `aloft operator`: a data plane of its own. It dials out to the control plane, leases work, and runs it as processes of
//! this machine.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aloft_dataplane::{
    env,
    link::{Link, LinkConfig, Refused},
    process::AttemptDirs,
    worker::Worker,
};
use aloft_objects::{Keys, Objects};
use clap::Args as ClapArgs;

use crate::{
    config::{self, Config, Layer, Loaded, Role, Sources, flag},
    datadir::{DataDir, variable},
    dev::path_text,
    exit::{Exit, Kind},
    node::{self, DebugPort, signals},
    ready::Readiness,
    telemetry::{LogFormat, say},
    tools,
    worker::{self, Workplace},
};

/// First and longest pause before the control plane is looked for again at the start.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How often an operator that drains looks whether anything is left.
const LOOK: Duration = Duration::from_millis(200);

/// Options of `aloft operator`. Each sets a key of the configuration, over files and environment variables.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// The URL of the server to work for; repeat it for more of the same database [env: ALOFT_WORKER_CONTROL_PLANE_URLS].
    #[arg(long = "control-plane-url", value_name = "URL")]
    control_plane_urls: Vec<String>,

    /// A file with the token that the server asks workers for: its worker.token [env: ALOFT_WORKER_TOKEN_PATH].
    #[arg(long, value_name = "PATH")]
    token_path: Option<PathBuf>,

    /// Where this operator keeps what it runs [default: ~/.local/share/aloft/operator; env: ALOFT_DATA_DIR].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// The server's directory of users' data, on this machine [env: ALOFT_STORAGE_PATH].
    #[arg(long, value_name = "DIR")]
    storage_path: Option<PathBuf>,

    /// The server's master key, on this machine [env: ALOFT_MASTER_KEY_PATH].
    #[arg(long, value_name = "PATH")]
    master_key_path: Option<PathBuf>,

    /// The port of health and metrics [default: 10254; env: ALOFT_DEBUG_PORT].
    #[arg(long, value_name = "PORT")]
    debug_port: Option<u16>,

    /// The Python interpreter that tasks run with. By default the first on PATH that has `flyte`, else one that `uv` makes.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,

    /// How log lines look [default: json].
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,

    #[command(flatten)]
    sources: Sources,
}

impl Args {
    fn layers(&self) -> Vec<Layer> {
        let urls = (!self.control_plane_urls.is_empty()).then(|| self.control_plane_urls.clone());
        [
            flag("--control-plane-url", "worker.controlPlaneUrls", urls),
            flag("--token-path", "worker.tokenPath", path_text(self.token_path.as_ref())),
            flag("--data-dir", "dataDir", path_text(self.data_dir.as_ref())),
            flag("--storage-path", "storage.path", path_text(self.storage_path.as_ref())),
            flag("--master-key-path", "masterKeyPath", path_text(self.master_key_path.as_ref())),
            flag("--debug-port", "debug.port", self.debug_port),
            flag("--python", "executor.python", path_text(self.python.as_ref())),
            flag("--log-format", "logger.format", self.log_format.map(LogFormat::name)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn run(args: &Args) -> Result<(), Exit> {
    let loaded = config::load_and_log(Role::Operator, &args.sources, args.layers())?;
    node::block_on(operator(&loaded))
}

async fn operator(loaded: &Loaded) -> Result<(), Exit> {
    let config = &loaded.config;
    let in_dir = |e: String| Exit::new(Kind::DataDir, e);
    let dir = DataDir::open(&config.data_path(Role::Operator, variable).map_err(in_dir)?)?;
    tools::check_tools()?;
    let python = config.executor.python.as_ref().map(Path::new);
    tools::check_python(python)?;
    let readiness = Readiness::default();
    let debug = DebugPort::open(Role::Operator, config, &readiness).await?;
    let mut signalled = std::pin::pin!(signals());

    let link = Arc::new(Link::new(line(config, &dir)?));
    tokio::select! {
        connected = first_contact(&link) => connected?,
        () = &mut signalled => return Ok(()),
    }
    let (objects, environments) = storage(config, &dir, python)?;
    let authority = config.worker.servers().ok().and_then(|urls| Some(urls.first()?.authority()?.to_string()));
    let worker = worker::start(Workplace {
        config,
        control: link.clone(),
        authority: &authority.unwrap_or_default(),
        objects: &objects,
        dirs: AttemptDirs::new(dir.path()),
        environments,
    })?;
    readiness.connected(link.clone());
    let health = debug.as_ref().map_or_else(String::new, |d| format!(", health and metrics at {}", d.url));
    say(&format!(
        "Aloft {} works as {} for {}{health}",
        env!("CARGO_PKG_VERSION"),
        dir.worker_name()?,
        config.worker.control_plane_urls.join(" or ")
    ));
    signalled.await;
    readiness.draining();
    drain(&link, worker, config).await;
    if let Some(debug) = debug {
        debug.close().await;
    }
    Ok(())
}

/// The line to the control plane that the configuration names.
fn line(config: &Config, dir: &DataDir) -> Result<LinkConfig, Exit> {
    let wrong =
        |(key, reason, remedy): (&str, String, &str)| Exit::new(Kind::Config, format!("{key}: {reason}; {remedy}"));
    let urls = config.worker.servers().map_err(wrong)?;
    let token = config.worker.token().map_err(wrong)?;
    let read = move || match &token {
        Some(token) => token.read().map(|secret| secret.expose().to_owned()),
        None => Err("worker.token is not set".to_owned()),
    };
    Ok(LinkConfig {
        urls,
        token: Arc::new(read),
        worker: dir.worker_name()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: worker::host(),
        attempts: dir.path().to_string_lossy().into_owned(),
    })
}

/// What is shared with the server on this machine.
fn storage(config: &Config, dir: &DataDir, python: Option<&Path>) -> Result<(Objects, Arc<env::Envs>), Exit> {
    let in_dir = |e: String| Exit::new(Kind::DataDir, e);
    let path = config.storage_path(dir.path(), variable).map_err(in_dir)?;
    let key = config.master_key_path(variable).map_err(in_dir)?.unwrap_or_else(|| dir.join("master.key"));
    for (what, key, found) in [("storage.path", "--storage-path", &path), ("masterKeyPath", "--master-key-path", &key)]
    {
        if !found.exists() {
            let found = found.display();
            let message = format!("{what}: there is no {found}: name the one of the server on this machine with {key}");
            return Err(Exit::new(Kind::Config, message));
        }
    }
    let secret = dir.master_secret(Some(&key))?;
    let url = config.worker.control_plane_urls.first().map(String::as_str).unwrap_or_default();
    let objects = Objects::local(&path, &config.storage.bucket_name, url, Keys::new(secret))
        .map_err(|e| in_dir(e.to_string()))?;
    let environments = Arc::new(env::Envs::new(&dir.join("envs"), python.map(Path::to_owned), objects.clone()));
    Ok((objects, environments))
}

/// Waits for a control plane that takes this worker.
///
/// # Errors
/// If one says that it never will: then somebody has to change something.
async fn first_contact(link: &Link) -> Result<(), Exit> {
    let mut pause = PAUSE.0;
    loop {
        match link.connect().await {
            Ok(_) => return Ok(()),
            Err(Refused::Never(why)) => return Err(Exit::new(Kind::Refused, why)),
            Err(Refused::Away(why) | Refused::Displaced(why)) => tracing::warn!("{why}; trying again"),
        }
        tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

/// Takes no more work, waits as long as the configuration says for what runs, and leaves the rest running.
async fn drain(link: &Link, worker: Worker, config: &Config) {
    link.drain().await;
    let delay = config.drain.delay.0;
    let status = worker.status();
    let left = || {
        let now = *status.borrow();
        now.running + now.waiting + now.inline
    };
    if left() > 0 && !delay.is_zero() {
        say(&format!("Draining: takes no more work, and waits up to {delay:?} for the {} attempts it has.", left()));
        let empty = async {
            while left() > 0 {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = empty => {}
            () = tokio::time::sleep(delay) => {}
            // Whoever has no patience signals again.
            () = signals() => {}
        }
    }
    let left = left();
    worker.stop().await;
    say(&match left {
        0 => "Stopped. Nothing is left running.".to_owned(),
        left => format!(
            "Stopped. {left} attempts keep running, and are found again at the next start. If that is later than the \
             server's worker.lease, others do them again."
        ),
    });
}
