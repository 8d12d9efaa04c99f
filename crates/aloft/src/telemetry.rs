//! What Aloft says while it runs: to a person as text, to a collector as JSON.

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// How log lines look.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Starts logging to standard error. `ALOFT_LOG` sets the level, as `RUST_LOG` would (`info`, `aloft_control=debug`).
pub(crate) fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_env("ALOFT_LOG").unwrap_or_else(|_| EnvFilter::new("info,s3s=warn"));
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).init(),
        LogFormat::Text => registry.with(layer.with_target(false).compact()).init(),
    }
}

/// Writes a line to standard error, for the person at the terminal. A closed terminal is no reason to fail.
pub(crate) fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
