//! What is read off the process when it is asked for.

use std::{fmt, fs, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// What is read off the process when it is asked for.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) began: Instant,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gauge = |encoder: &mut DescriptorEncoder<'_>, name, help, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?)
        };
        gauge(
            &mut encoder,
            "aloft_uptime",
            "How long the process runs",
            Some(&Unit::Seconds),
            self.began.elapsed().as_secs_f64(),
        )?;
        if let Some(bytes) = resident() {
            gauge(&mut encoder, "process_resident_memory", "Memory that the process holds", Some(&Unit::Bytes), bytes)?;
        }
        if let Some(Stat { seconds, threads }) = stat() {
            let cpu = ConstCounter::new(seconds);
            let help = "Time of processors that the process has used";
            cpu.encode(encoder.encode_descriptor("process_cpu", help, Some(&Unit::Seconds), MetricType::Counter)?)?;
            gauge(&mut encoder, "process_threads", "Threads of the process", None, threads)?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            gauge(
                &mut encoder,
                "process_open_fds",
                "Files and connections that the process holds open",
                None,
                files.count() as f64,
            )?;
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

/// What Linux says of the process.
#[derive(Debug, PartialEq)]
struct Stat {
    seconds: f64,
    threads: f64,
}

fn stat() -> Option<Stat> {
    parse(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// Ticks of a second, as Linux counts them for programs on every machine.
const TICKS: f64 = 100.0;

/// Reads the line of `proc(5)`. The name in parentheses may hold anything, parentheses too.
fn parse(line: &str) -> Option<Stat> {
    let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
    // Field 3, the state, is the first here.
    let number = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
    Some(Stat { seconds: (number(14)? + number(15)?) / TICKS, threads: number(20)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_process_is_read_behind_its_name() {
        let line = "7 (a b) c) S 1 7 7 0 -1 4194560 3 0 0 0 250 50 0 0 20 0 9 0 100 1 2";
        assert_eq!(parse(line), Some(Stat { seconds: 3.0, threads: 9.0 }));
        assert_eq!(parse(""), None);
        assert!(stat().is_some_and(|s| s.threads >= 1.0));
    }
}
