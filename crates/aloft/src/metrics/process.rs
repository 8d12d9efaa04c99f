//! What is read off the process when it is asked for.

use std::{fmt, fs, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
    registry::Unit,
};

/// What is read off the process when it is asked for.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) began: Instant,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?)
        };
        gauge("aloft_uptime", "How long the process runs", Some(&Unit::Seconds), self.began.elapsed().as_secs_f64())?;
        if let Some(bytes) = resident() {
            gauge("process_resident_memory", "Memory that the process holds", Some(&Unit::Bytes), bytes)?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "Files and connections that the process holds open", None, files.count() as f64)?;
        }
        Ok(())
    }
}

fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes: f64 =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024.0)
}
