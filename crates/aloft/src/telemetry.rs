//! What Aloft says while it runs: to a person as text, to a collector as JSON.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
};

use clap::ValueEnum;
use opentelemetry_sdk::trace::SdkTracer;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{
    EnvFilter, Layer as _,
    filter::{FilterExt as _, filter_fn},
    fmt,
    prelude::*,
};

use crate::{
    config::{Logger, Role, Tracing},
    exit::Exit,
    trace,
};

/// Whether every line must be a JSON object.
static JSON: AtomicBool = AtomicBool::new(false);

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

impl LogFormat {
    /// Its name in a configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Text => "text",
        }
    }
}

/// Starts logging to standard error, and tracing if that is on. The level has been checked.
///
/// # Errors
/// A sentence that says what is wrong with where traces go.
pub(crate) fn init(logger: &Logger, tracing: &Tracing, role: Role) -> Result<(), String> {
    let tracer = trace::start(tracing, role)?;
    start(logger.format, EnvFilter::new(&logger.level), logger.show_source, tracer);
    Ok(())
}

/// Starts logging as JSON, only to say why there is nothing else to log.
pub(crate) fn json_only() {
    start(LogFormat::Json, EnvFilter::new("info"), false, None);
}

fn start(format: LogFormat, filter: EnvFilter, source: bool, tracer: Option<SdkTracer>) {
    // Colours only for eyes.
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_file(source).with_line_number(source);
    JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    // What is exported is made apart from what is logged, and neither shows in the other.
    let filter = filter.and(filter_fn(|metadata| metadata.target() != trace::TARGET));
    let exported = tracer.map(|tracer| {
        let layer = tracing_opentelemetry::layer().with_tracer(tracer).with_threads(false).with_location(false);
        layer.with_tracked_inactivity(false).with_filter(filter_fn(|metadata| metadata.target() == trace::TARGET))
    });
    let registry = tracing_subscriber::registry().with(exported);
    match format {
        LogFormat::Json => {
            registry.with(layer.json().flatten_event(true).with_span_list(false).with_filter(filter)).init();
        }
        LogFormat::Text => registry.with(layer.with_target(false).compact().with_filter(filter)).init(),
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
