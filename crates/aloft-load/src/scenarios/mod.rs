//! What is measured: one file for each group of scenarios.

mod database;
mod flow;
mod held;
mod list;
mod requests;
mod single;
mod sustained;
mod watch;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::report::Report;

/// The scenarios, in the order in which they run.
pub(crate) const NAMES: [&str; 9] =
    ["create", "submit", "handed", "noop", "single", "watch-runs", "watch-one", "list", "held"];

/// Where and how much is measured.
pub(crate) struct Setting {
    /// `sqlite`, or the address of a Postgres database.
    pub(crate) store: String,
    /// All in two minutes.
    pub(crate) short: bool,
    /// How long the sustained scenarios last.
    pub(crate) seconds: Option<u64>,
    /// How many actions the large run has.
    pub(crate) actions: Option<usize>,
    /// The real server.
    pub(crate) aloft: Option<PathBuf>,
    /// The Python it names to tasks.
    pub(crate) python: Option<PathBuf>,
    /// The process of Postgres.
    pub(crate) postgres: Option<i32>,
    /// Where databases and data directories are made.
    pub(crate) home: PathBuf,
}

impl Setting {
    /// `long`, or `short` when all is to be short.
    fn pick<T>(&self, short: T, long: T) -> T {
        if self.short { short } else { long }
    }

    /// Whether the store is a Postgres.
    fn is_postgres(&self) -> bool {
        self.store.starts_with("postgres")
    }

    /// Seconds of CPU that Postgres has used; 0 if there is none.
    fn database_cpu(&self) -> f64 {
        self.postgres.map_or(0.0, crate::machine::cpu_with_children)
    }
}

/// Runs one scenario.
pub(crate) async fn run(name: &str, setting: &Setting, report: &mut Report) -> Result<()> {
    match name {
        "create" => requests::create(setting, report).await,
        "submit" => requests::submit(setting, report).await,
        "handed" => requests::handed(setting, report).await,
        "noop" => sustained::noop(setting, report).await,
        "single" => single::single(setting, report).await,
        "watch-runs" => watch::many_runs(setting, report).await,
        "watch-one" => watch::one_run(setting, report).await,
        "list" => list::list(setting, report).await,
        "held" => held::held(setting, report).await,
        other => bail!("there is no scenario {other}: choose from {}", NAMES.join(", ")),
    }
}
