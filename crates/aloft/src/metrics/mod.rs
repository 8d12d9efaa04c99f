//! What the process counts and measures: the one place where metrics are declared, and the text that `/metrics` answers.
//!
//! To add one: where it is measured ([`rpc`], [`stages`]), a field that is registered by its `new`, and whoever measures is given the
//! [`Metrics`]; or, if it is kept anyway and only looked at when it is asked for, a line in a collector ([`process`],
//! [`control`], [`live`]). Labels must have few values: never a run's name. Then the line that the test of `docs/observability.md` asks
//! for.
//!
//! `prometheus-client`, the Prometheus project's own crate: typed labels, a registry that is passed as a value.

mod control;
mod live;
mod names;
mod process;
mod rpc;
mod stages;

use std::{fmt, time::Instant};

use aloft_control::Control;
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        family::{Family, MetricConstructor},
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::Registry,
};

pub(crate) use self::stages::{Counting, Listener, Told, WAITING};
use crate::config::Role;

/// Everything that is counted.
pub(crate) struct Metrics {
    registry: Registry,
    rpcs: rpc::Rpcs,
    stages: stages::Stages,
    live: live::Live,
    control: control::Late,
}

/// Makes histograms of these bounds.
#[derive(Clone, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

impl Metrics {
    /// The metrics of a process that begins now.
    pub(crate) fn new(role: Role) -> Self {
        let mut registry = Registry::default();
        let build = Family::<Vec<(&str, &str)>, Gauge>::default();
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION")), ("role", role.name())]).set(1);
        registry.register("aloft_build_info", "The version that runs; always 1", build);
        let rpcs = rpc::Rpcs::new(&mut registry);
        let stages = stages::Stages::new(&mut registry);
        let live = live::Live::default();
        registry.register_collector(Box::new(live.clone()));
        let control = control::Late::default();
        registry.register_collector(Box::new(control::Kept(control.clone())));
        registry.register_collector(Box::new(process::Process { began: Instant::now() }));
        Self { registry, rpcs, stages, live, control }
    }

    /// From here on there is a control plane to read.
    pub(crate) fn started(&self, control: &Control) {
        let _ = self.control.set(control.clone());
    }

    /// Reads what is only read when somebody asks.
    pub(crate) async fn refresh(&self) {
        if let Some(control) = self.control.get() {
            self.live.refresh(control).await;
        }
    }

    /// Everything, in the text format of Prometheus.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_says_what_runs() {
        let text = Metrics::new(Role::Server).text().unwrap();
        let build = concat!("aloft_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\",role=\"server\"} 1");
        assert!(text.lines().any(|l| l == build), "{text}");
        for name in ["aloft_uptime_seconds ", "process_resident_memory_bytes ", "process_open_fds "] {
            assert!(text.lines().any(|l| l.starts_with(name)), "{name}\n{text}");
        }
    }
}
