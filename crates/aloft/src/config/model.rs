//! What can be set, with its defaults. The schema, the table in `docs/configuration.md`, the names of environment variables
//! and the check for unknown keys are all made from these types.
//!
//! To add a key: a field here with a doc comment (it is what people read), its default in [`Config::of`], a rule in
//! `check.rs` if its type does not say it all, and the line that the test of `docs/configuration.md` asks for.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::ValueEnum;
use http::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    database::Password,
    keep::{Keep, ProjectKeep},
    values::{Secret, SecretFile, Span},
};
use crate::telemetry::LogFormat;

/// The port that `flyte create config --devbox` points at.
pub(crate) const DEV_PORT: u16 = 30080;

/// The port of the control plane, as in the specification's containers.
const SERVER_PORT: u16 = 8080;

/// The port of health and metrics, as in the specification's containers (platform-features, MON-5).
const DEBUG_PORT: u16 = 10254;

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Role {
    /// Everything in one process, for one person.
    Dev,
    /// The control plane.
    Server,
    /// A data plane of its own.
    Operator,
}

impl Role {
    /// The subcommand that plays it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Server => "server",
            Self::Operator => "operator",
        }
    }
}

/// The configuration of every role of Aloft.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Config {
    /// The organisation that requests without one mean.
    pub(crate) organization: String,
    /// The name of the cluster shown on attempts.
    pub(crate) cluster_name: String,
    /// Where everything is kept that has no other place. A leading `~/` is the home directory.
    pub(crate) data_dir: String,
    /// The file of 32 random bytes that credentials and callbacks are derived from; made if it is not there. By default
    /// `master.key` in the data directory. Servers that share a database share it.
    pub(crate) master_key_path: Option<String>,
    /// The domains that an organisation begins with. Later they are created and deleted while Aloft runs.
    pub(crate) domains: Vec<String>,
    /// The projects that are created unless they exist.
    pub(crate) projects: Vec<String>,
    pub(crate) listen: Listen,
    pub(crate) auth: Auth,
    pub(crate) debug: Debug,
    pub(crate) drain: Drain,
    pub(crate) logger: Logger,
    pub(crate) metrics: Metrics,
    pub(crate) database: Database,
    pub(crate) retention: Retention,
    pub(crate) storage: Storage,
    pub(crate) tracing: Tracing,
    pub(crate) executor: Executor,
    pub(crate) worker: Worker,
}

/// Where the one port is that serves everything.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Listen {
    /// The addresses to listen on. `aloft dev` takes those of loopback only.
    pub(crate) addresses: Vec<IpAddr>,
    /// The port to listen on. 0 chooses one and keeps it with the data directory, so that running tasks find Aloft again.
    pub(crate) port: u16,
    /// The names, beside `localhost`, addresses and the name in `listen.publicUrl`, that requests may reach this server
    /// by. `*` is any name: web pages of others can then send requests through the browsers of people who can reach it.
    pub(crate) names: Vec<String>,
    /// The URL that people and the SDK reach this server at. By default `http://localhost` with the port.
    pub(crate) public_url: Option<String>,
}

/// Who may ask.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Auth {
    /// Whether to listen beyond loopback although nobody has to sign in: whoever reaches the port can run code here.
    pub(crate) insecure_no_auth: bool,
}

/// The port of health and metrics. It serves no data and asks for no sign-in.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Debug {
    /// The addresses of the port of health and metrics.
    pub(crate) addresses: Vec<IpAddr>,
    /// Whether there is a port of health and metrics.
    pub(crate) enabled: bool,
    /// The port of `/healthz`, `/readyz` and `/metrics`; 0 for any that is free.
    pub(crate) port: u16,
}

/// How the server ends after SIGTERM or Ctrl-C. Tasks run on.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Drain {
    /// How long it goes on serving after it has said by `/readyz` that it ends, so that load balancers notice.
    pub(crate) delay: Span,
    /// The longest wait after that for requests under way. Watches end at once, and their clients begin again elsewhere.
    pub(crate) timeout: Span,
}

/// What it says while it runs.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Logger {
    /// What is logged: `off`, `error`, `warn`, `info`, `debug` or `trace`, also by part (`info,aloft_control=debug`).
    pub(crate) level: String,
    /// How log lines look.
    pub(crate) format: LogFormat,
    /// Whether lines name the place in Aloft's source that they come from.
    pub(crate) show_source: bool,
}

/// What metrics tell apart. What comes later than so many others is counted as `other`, until the process ends.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Metrics {
    /// Most pairs of a project and a domain that metrics tell apart.
    #[schemars(range(max = 10_000))]
    pub(crate) places: u32,
    /// Most tasks that metrics tell apart.
    #[schemars(range(max = 10_000))]
    pub(crate) tasks: u32,
}

/// Where the database is. Without any of its keys, a SQLite file in the data directory.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Database {
    /// The database: `sqlite:///path/to/file` or `postgres://user@host:5432/name`. Instead of `database.host` and its like.
    pub(crate) url: Option<Secret>,
    /// The host of Postgres.
    pub(crate) host: Option<String>,
    /// The port of Postgres.
    #[schemars(range(min = 1))]
    pub(crate) port: u16,
    /// The name of the database in Postgres.
    pub(crate) dbname: String,
    /// Who signs in to Postgres.
    pub(crate) username: String,
    /// The password of Postgres. Better in a file: `database.passwordPath`.
    pub(crate) password: Option<Secret>,
    /// A file that holds the password of Postgres. It is read again for every connection, so that it can change.
    pub(crate) password_path: Option<PathBuf>,
    /// More parameters of the connection to Postgres, as in a URL: `sslmode=verify-full&connect_timeout=5`.
    pub(crate) options: String,
    pub(crate) connection_pool: ConnectionPool,
}

/// Connections to Postgres that are kept.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ConnectionPool {
    /// Most connections to Postgres at a time, of this process.
    #[schemars(range(min = 1))]
    pub(crate) max_open_connections: u32,
    /// Most connections to Postgres that are kept while nothing uses them.
    pub(crate) max_idle_connections: u32,
    /// How long a connection to Postgres is used before it is replaced.
    pub(crate) max_connection_lifetime: Span,
}

/// How long the records of runs are kept. What runs have written to the object store is not touched.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Retention {
    /// How long a run is kept after it has ended: at least `10m`.
    pub(crate) runs: Keep,
    /// How long runs of certain projects are kept instead, each written as `PROJECT=30d` or `PROJECT=forever`.
    pub(crate) per_project: Vec<ProjectKeep>,
    /// How often to look for runs that are no longer kept.
    pub(crate) every: Span,
}

/// Where users' data is.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Storage {
    /// What holds users' data.
    pub(crate) provider: Provider,
    /// The name of the bucket: the first part of every `s3://` URI. Data does not move when it changes.
    pub(crate) bucket_name: String,
    /// The directory of the local provider. By default `objects` in the data directory.
    pub(crate) path: Option<String>,
}

/// Kinds of object stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Provider {
    /// A directory, served over S3 by Aloft itself.
    Local,
}

/// Traces for OpenTelemetry. The standard's own variables (`OTEL_...`) say what these keys do not.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Tracing {
    /// Where traces are sent by OTLP over HTTP, without `/v1/traces`: `http://collector:4318`. By default what
    /// `OTEL_EXPORTER_OTLP_ENDPOINT` says; without either nothing is traced.
    pub(crate) endpoint: Option<String>,
    /// Whether every run is a trace too, with its actions and their stages, beside every RPC.
    pub(crate) runs: bool,
    /// How many of a hundred traces that begin here are kept; those of callers are kept as the caller says.
    #[schemars(range(min = 0, max = 100))]
    pub(crate) sampled: u32,
}

/// How tasks run as processes of this machine.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Executor {
    /// The Python interpreter that tasks run with. It must have `flyte` installed. By default the first on PATH that has,
    /// else one that `uv` makes.
    pub(crate) python: Option<String>,
    /// How long a task has after SIGTERM, when it is aborted or a time limit passes, before it is killed. A pod template
    /// can say otherwise.
    pub(crate) grace: Span,
    /// How long the process of a task may go on after it has written its outputs or its error. Then it is stopped, and what it
    /// wrote stands.
    pub(crate) linger: Span,
    /// Whether tasks start by forking a warm interpreter.
    pub(crate) warm_start: bool,
}

impl Retention {
    /// As the store takes it.
    pub(crate) fn kept(&self) -> aloft_store::Retention {
        let projects = self.per_project.iter().map(|p| (p.project.clone(), p.keep.time())).collect();
        aloft_store::Retention { runs: self.runs.time(), projects }
    }
}

/// The work that this process takes, and workers of other processes. See `docs/workers.md`.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Worker {
    /// Whether the server runs tasks itself, as processes of its machine. Without, operators run them.
    pub(crate) enabled: bool,
    /// How long a worker may not be heard of before what it runs is given to others. The server's counts.
    pub(crate) lease: Span,
    /// Most attempts that wait in a worker for room. The rest waits in the database, for whichever worker has room first.
    #[schemars(range(min = 1, max = 20000))]
    pub(crate) max_waiting: u32,
    /// The URLs of the servers that an operator works for. All are of one database, and each is as good as the others.
    pub(crate) control_plane_urls: Vec<String>,
    /// The token that workers of other processes prove themselves by, the same at servers and operators. A server without
    /// one takes no such workers. Better in a file: `worker.tokenPath`.
    pub(crate) token: Option<Secret>,
    /// A file that holds the token of workers. It is read again for every connection, so that it can change.
    pub(crate) token_path: Option<PathBuf>,
}

impl Worker {
    /// The token of workers, if one is set.
    ///
    /// # Errors
    /// Which key is wrong, why, and the remedy.
    pub(crate) fn token(&self) -> Result<Option<Password>, (&'static str, String, &'static str)> {
        match (&self.token, &self.token_path) {
            (Some(_), Some(_)) => {
                Err(("worker.tokenPath", "worker.token says already what it is".to_owned(), "keep one of them"))
            }
            (Some(token), None) => Ok(Some(Password::Plain(token.clone()))),
            (None, Some(path)) => Ok(Some(Password::File(Arc::new(SecretFile::new(path))))),
            (None, None) => Ok(None),
        }
    }

    /// The servers that an operator works for.
    ///
    /// # Errors
    /// As [`Worker::token`].
    pub(crate) fn servers(&self) -> Result<Vec<Uri>, (&'static str, String, &'static str)> {
        const KEY: &str = "worker.controlPlaneUrls";
        const REMEDY: &str = "write it as http://localhost:8080";
        let one = |url: &String| {
            let shown = || url.chars().take(200).collect::<String>();
            if url.starts_with("https://") {
                return Err((KEY, format!("{}: this Aloft speaks plain HTTP only", shown()), REMEDY));
            }
            let parsed: Option<Uri> = url.parse().ok();
            let good = |uri: &Uri| {
                uri.scheme_str() == Some("http")
                    && uri.authority().is_some_and(|a| !a.host().is_empty() && !a.as_str().contains('@'))
                    && uri.path() == "/"
                    && uri.query().is_none()
            };
            parsed.filter(good).ok_or_else(|| (KEY, format!("{:?} is no URL of a server", shown()), REMEDY))
        };
        self.control_plane_urls.iter().map(one).collect()
    }
}

impl Config {
    /// What holds for `role` when nobody says otherwise.
    pub(crate) fn of(role: Role) -> Self {
        let dev = role == Role::Dev;
        Self {
            organization: "local".to_owned(),
            cluster_name: "local".to_owned(),
            data_dir: format!("~/.local/share/aloft/{}", role.name()),
            master_key_path: None,
            domains: ["development", "staging", "production"].map(str::to_owned).to_vec(),
            projects: vec!["flytesnacks".to_owned()],
            listen: Listen {
                addresses: vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
                port: if dev { DEV_PORT } else { SERVER_PORT },
                names: Vec::new(),
                public_url: None,
            },
            auth: Auth { insecure_no_auth: false },
            debug: Debug { addresses: vec![Ipv4Addr::LOCALHOST.into()], enabled: !dev, port: DEBUG_PORT },
            drain: Drain { delay: Span::seconds(0), timeout: Span::seconds(if dev { 5 } else { 30 }) },
            logger: Logger {
                level: "info,s3s=warn".to_owned(),
                format: if dev { LogFormat::Text } else { LogFormat::Json },
                show_source: false,
            },
            metrics: Metrics { places: 50, tasks: 100 },
            database: Database {
                url: None,
                host: None,
                port: 5432,
                dbname: "aloft".to_owned(),
                username: "aloft".to_owned(),
                password: None,
                password_path: None,
                options: String::new(),
                connection_pool: ConnectionPool {
                    max_open_connections: 20,
                    max_idle_connections: 20,
                    max_connection_lifetime: Span::seconds(60),
                },
            },
            retention: Retention { runs: Keep::Forever, per_project: Vec::new(), every: Span::seconds(60) },
            storage: Storage { provider: Provider::Local, bucket_name: "aloft-data".to_owned(), path: None },
            tracing: Tracing { endpoint: None, runs: true, sampled: 100 },
            executor: Executor { python: None, grace: Span::seconds(30), linger: Span::seconds(120), warm_start: true },
            worker: Worker {
                enabled: true,
                lease: Span::seconds(30),
                // An operator shares the work with others: what waits in it cannot be taken by them.
                max_waiting: if role == Role::Operator { 16 } else { 512 },
                control_plane_urls: Vec::new(),
                token: None,
                token_path: None,
            },
        }
    }

    /// The data directory as a path, with the home directory put in. `env` answers environment variables.
    ///
    /// # Errors
    /// A sentence if the home directory is needed and not known.
    pub(crate) fn data_path(&self, role: Role, env: impl Fn(&str) -> Option<String>) -> Result<PathBuf, String> {
        let set = |name: &str| env(name).filter(|v| !v.is_empty());
        // The default follows the convention of desktops; what somebody wrote is taken as it is.
        if self.data_dir == Self::of(role).data_dir
            && let Some(base) = set("XDG_DATA_HOME")
        {
            return Ok(Path::new(&base).join("aloft").join(role.name()));
        }
        expand(&self.data_dir, set)
    }

    /// Where the master key is, if not in the data directory.
    ///
    /// # Errors
    /// As [`Config::data_path`].
    pub(crate) fn master_key_path(&self, env: impl Fn(&str) -> Option<String>) -> Result<Option<PathBuf>, String> {
        let set = |name: &str| env(name).filter(|v| !v.is_empty());
        self.master_key_path.as_ref().map(|path| expand(path, set)).transpose()
    }

    /// The directory of users' data.
    ///
    /// # Errors
    /// As [`Config::data_path`].
    pub(crate) fn storage_path(
        &self,
        data_dir: &Path,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<PathBuf, String> {
        let set = |name: &str| env(name).filter(|v| !v.is_empty());
        self.storage.path.as_ref().map_or_else(|| Ok(data_dir.join("objects")), |path| expand(path, set))
    }
}

fn expand(path: &str, set: impl Fn(&str) -> Option<String>) -> Result<PathBuf, String> {
    match path.strip_prefix("~/") {
        None => Ok(PathBuf::from(path)),
        Some(rest) => match set("HOME") {
            Some(home) => Ok(Path::new(&home).join(rest)),
            None => Err(format!("HOME is not set, so {path} is no directory; name a directory with --data-dir")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_directory_follows_the_home() {
        let home = |name: &str| (name == "HOME").then(|| "/home/me".to_owned());
        let xdg = |name: &str| (name == "XDG_DATA_HOME").then(|| "/data".to_owned());
        let mut config = Config::of(Role::Server);
        assert_eq!(config.data_path(Role::Server, home).unwrap(), Path::new("/home/me/.local/share/aloft/server"));
        assert_eq!(config.data_path(Role::Server, xdg).unwrap(), Path::new("/data/aloft/server"));
        assert!(config.data_path(Role::Server, |_| None).unwrap_err().contains("--data-dir"));
        config.data_dir = "~/mine".to_owned();
        assert_eq!(config.data_path(Role::Server, home).unwrap(), Path::new("/home/me/mine"));
        config.data_dir = "/var/lib/aloft".to_owned();
        assert_eq!(config.data_path(Role::Server, |_| None).unwrap(), Path::new("/var/lib/aloft"));
        assert_eq!(config.storage_path(Path::new("/d"), |_| None).unwrap(), Path::new("/d/objects"));
    }
}
