//! What Aloft says while it runs: to a person as text, to a collector as JSON.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
};

use clap::ValueEnum;
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::exit::Exit;

/// Whether every line must be a JSON object.
static JSON: AtomicBool = AtomicBool::new(false);

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
    // Colours only for eyes.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(colours);
    JSON.store(matches!(format, LogFormat::Json), Ordering::Relaxed);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).init(),
        LogFormat::Text => registry.with(layer.with_target(false).compact()).init(),
    }
}

/// Tells the person at the terminal; a collector gets the line as a record. A closed terminal is no reason to fail.
pub(crate) fn say(line: &str) {
    if JSON.load(Ordering::Relaxed) {
        tracing::info!("{line}");
    } else {
        let _ = writeln!(std::io::stderr().lock(), "{line}");
    }
}

/// Tells why the program ends.
pub(crate) fn say_end(exit: &Exit) {
    if JSON.load(Ordering::Relaxed) {
        tracing::error!(code = exit.code(), "{exit}");
    } else {
        let _ = writeln!(std::io::stderr().lock(), "aloft: {exit}");
    }
}
