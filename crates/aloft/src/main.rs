//! The `aloft` command.

mod admin;
mod clock;
mod config;
mod datadir;
mod debug;
mod dev;
mod doctor;
mod exit;
mod gather;
mod http;
mod listen;
mod memory;
mod metrics;
mod node;
mod operator;
mod ready;
mod request;
mod serve;
mod server;
mod store;
mod telemetry;
mod tools;
mod trace;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs Python workflows, ML pipelines and agents written against the Flyte 2 SDK.
#[derive(Parser)]
#[command(name = "aloft", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything in one process, for one person: no Docker, no Kubernetes, no database server.
    Dev(dev::Args),
    /// Run the control plane.
    Server(server::Args),
    /// Run a data plane of its own: take work from servers, and run it on this machine.
    Operator(operator::Args),
    /// Check or show a configuration.
    #[command(subcommand)]
    Config(config::Command),
    /// Look at a deployment or a data directory, and say what is wrong and how to mend it.
    Doctor(doctor::Args),
    /// Create something.
    #[command(subcommand)]
    Create(admin::Create),
    /// Show something.
    #[command(subcommand)]
    Get(admin::Get),
    /// Change something.
    #[command(subcommand)]
    Update(admin::Update),
    /// Delete something.
    #[command(subcommand)]
    Delete(admin::Delete),
    /// Bring something back that was deleted.
    #[command(subcommand)]
    Undelete(admin::Undelete),
    /// Hold one attempt of a task: Aloft starts this itself.
    #[command(hide = true)]
    Shim {
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    let _failpoints = fail::FailScenario::setup();
    let ended = match Cli::parse().command {
        Command::Dev(args) => dev::run(&args),
        Command::Server(args) => server::run(&args),
        Command::Operator(args) => operator::run(&args),
        Command::Config(command) => command.run(),
        Command::Doctor(args) => doctor::run(&args),
        Command::Create(what) => what.run(),
        Command::Get(what) => what.run(),
        Command::Update(what) => what.run(),
        Command::Delete(what) => what.run(),
        Command::Undelete(what) => what.run(),
        // Before any thread is started: the shim forks.
        Command::Shim { arguments } => return shim(arguments),
    };
    trace::finish();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            telemetry::say_end(&exit);
            ExitCode::from(exit.code())
        }
    }
}

fn shim(arguments: Vec<std::ffi::OsString>) -> ExitCode {
    let code = aloft_dataplane::process::shim_main(arguments);
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
