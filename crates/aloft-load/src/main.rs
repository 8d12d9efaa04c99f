//! Load on a real control plane, and the figures of it: `aloft-load STORE [--only SCENARIO,...] [--short]`.
//!
//! The server is another process (`serve`, or the real `aloft` for what concerns its start and its memory), so that its memory and CPU
//! time are its own; what is sent goes over its port, as the SDK sends it. `bench/README.md` says what each figure includes.

mod client;
mod machine;
mod report;
mod scenarios;
mod serve;
mod server;
mod worker;

use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Parser, Subcommand};

use crate::{report::Report, scenarios::Setting};

/// That of the real server (`crates/aloft/src/memory.rs`), which `serve` stands for.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Parser)]
#[command(about = "Load on a real control plane, and the figures of it")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures.
    Measure(Measure),
    /// Serves a control plane with a worker that does nothing; started by `measure`.
    Serve(serve::Options),
}

/// What is measured, and how much of it.
#[derive(Args)]
struct Measure {
    /// `sqlite`, or the address of a Postgres database whose tables may be removed.
    store: String,
    /// Which scenarios, separated by commas.
    #[arg(long, value_delimiter = ',', default_values_t = scenarios::NAMES.map(str::to_owned))]
    only: Vec<String>,
    /// All in two minutes: fewer actions, fewer seconds. The figures say less then.
    #[arg(long)]
    short: bool,
    /// How long the sustained scenarios last.
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
    /// How many actions the large run has.
    #[arg(long)]
    actions: Option<usize>,
    /// The real server, for its start, its memory and its end.
    #[arg(long, value_name = "PATH")]
    aloft: Option<PathBuf>,
    /// The Python that the real server names to tasks; none is started.
    #[arg(long, value_name = "PATH")]
    python: Option<PathBuf>,
    /// The process of Postgres, to count its CPU time.
    #[arg(long, value_name = "PID")]
    postgres_pid: Option<i32>,
    /// Where databases and data directories are made.
    #[arg(long, default_value = "/var/tmp")]
    dir: PathBuf,
    /// Where the raw results go.
    #[arg(long)]
    output: Option<PathBuf>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    tikv_jemalloc_ctl::background_thread::write(true).map_err(|e| anyhow!("cannot set up the allocator: {e}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        match cli.command {
            Command::Serve(options) => serve::serve(options).await,
            Command::Measure(measure) => self::measure(measure).await,
        }
    })
}

async fn measure(measure: Measure) -> Result<()> {
    let output = measure.output.clone();
    let home = tempfile::Builder::new().prefix("aloft-load-").tempdir_in(&measure.dir)?;
    let mut report = Report::new(&measure.store);
    let setting = Setting {
        store: measure.store,
        short: measure.short,
        seconds: measure.seconds,
        actions: measure.actions,
        aloft: measure.aloft,
        python: measure.python,
        postgres: measure.postgres_pid,
        home: home.path().to_owned(),
    };
    for name in &measure.only {
        scenarios::run(name, &setting, &mut report).await.with_context(|| format!("scenario {name}"))?;
        // Kept after each, so that a scenario that fails does not cost those before it.
        if let Some(output) = &output {
            report.save(output)?;
        }
    }
    Ok(())
}
