//! `aloft server`: the control plane, for as many people as reach it.

use std::{net::IpAddr, path::PathBuf};

use clap::Args as ClapArgs;

use crate::{
    config::{self, Layer, Role, Sources, flag},
    dev::{domain_name, path_text},
    exit::Exit,
    node,
    telemetry::{LogFormat, say},
};

/// Options of `aloft server`. Each sets a key of the configuration, over files and environment variables.
#[derive(ClapArgs)]
pub(crate) struct Args {
    /// The database: sqlite:///path/to/file [default: a file in the data directory; env: ALOFT_DATABASE_URL].
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,

    /// Where everything is kept that has no other place [default: ~/.local/share/aloft/server; env: ALOFT_DATA_DIR].
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// An address to listen on; repeat it for more [default: 127.0.0.1 and ::1; env: ALOFT_LISTEN_ADDRESSES].
    #[arg(long = "address", value_name = "IP")]
    addresses: Vec<IpAddr>,

    /// The port that serves everything [default: 8080; env: ALOFT_LISTEN_PORT].
    #[arg(long)]
    port: Option<u16>,

    /// The port of health and metrics [default: 10254; env: ALOFT_DEBUG_PORT].
    #[arg(long, value_name = "PORT")]
    debug_port: Option<u16>,

    /// The URL that people and the SDK reach this server at [default: http://localhost and the port].
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,

    /// A domain that every project of a new database has; repeat it for more [default: development, staging, production].
    #[arg(long = "domain", value_name = "NAME", value_parser = domain_name)]
    domains: Vec<String>,

    /// The Python interpreter that tasks run with. By default the first on PATH that has `flyte`, else one that `uv` makes.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,

    /// Run no tasks here: operators do. The same as --set worker.enabled=false.
    #[arg(long)]
    no_worker: bool,

    /// A file with the token that operators prove themselves by. Without one, none are taken [env:
    /// ALOFT_WORKER_TOKEN_PATH].
    #[arg(long, value_name = "PATH")]
    worker_token_path: Option<PathBuf>,

    /// How log lines look [default: json].
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,

    /// The longest wait for requests under way after SIGTERM, as 30s [default: 30s; env: ALOFT_DRAIN_TIMEOUT].
    #[arg(long, value_name = "TIME")]
    drain_timeout: Option<String>,

    /// Listen on addresses that other machines reach although nobody has to sign in: whoever reaches them can run code
    /// here.
    #[arg(long)]
    insecure_no_auth: bool,

    #[command(flatten)]
    sources: Sources,
}

impl Args {
    fn layers(&self) -> Vec<Layer> {
        let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
        let addresses = self.addresses.iter().map(ToString::to_string).collect();
        [
            flag("--database-url", "database.url", self.database_url.clone()),
            flag("--data-dir", "dataDir", path_text(self.data_dir.as_ref())),
            flag("--address", "listen.addresses", some(addresses)),
            flag("--port", "listen.port", self.port),
            flag("--debug-port", "debug.port", self.debug_port),
            flag("--public-url", "listen.publicUrl", self.public_url.clone()),
            flag("--domain", "domains", some(self.domains.clone())),
            flag("--python", "executor.python", path_text(self.python.as_ref())),
            flag("--no-worker", "worker.enabled", self.no_worker.then_some(false)),
            flag("--worker-token-path", "worker.tokenPath", path_text(self.worker_token_path.as_ref())),
            flag("--log-format", "logger.format", self.log_format.map(LogFormat::name)),
            flag("--drain-timeout", "drain.timeout", self.drain_timeout.clone()),
            flag("--insecure-no-auth", "auth.insecureNoAuth", self.insecure_no_auth.then_some(true)),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn run(args: &Args) -> Result<(), Exit> {
    let loaded = config::load_and_log(Role::Server, &args.sources, args.layers())?;
    if loaded.config.auth.insecure_no_auth {
        tracing::warn!("auth.insecureNoAuth: nobody has to sign in, so whoever reaches this server can run code here");
    }
    node::run(Role::Server, &loaded, |serving| {
        let addresses: Vec<_> = loaded.config.listen.addresses.iter().map(ToString::to_string).collect();
        let port = serving.local_url.rsplit(':').next().unwrap_or_default();
        let debug = serving.debug_url.map_or_else(String::new, |url| format!(", health and metrics at {url}"));
        say(&format!(
            "Aloft {} serves {} on {} port {port}{debug}",
            env!("CARGO_PKG_VERSION"),
            serving.public_url,
            addresses.join(" and ")
        ));
        Ok(())
    })
}
