//! What the kernel says: CPU time and memory of processes, the load, how long the disk takes.

use std::{
    fs::{self, File},
    io::{Seek as _, Write as _},
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, Result};

/// Clock ticks of `/proc/PID/stat`: Linux says 100 to every process, whatever it counts itself.
const TICKS: f64 = 100.0;

/// Microseconds since the epoch. The same clock for every process of the machine.
pub(crate) fn micros() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}

/// The fields of `/proc/PID/stat` after the name, of which the first is the state.
fn stat(pid: &str) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = text.rsplit_once(')')?;
    Some(rest.split_whitespace().map(str::to_owned).collect())
}

fn ticks(fields: &[String], which: &[usize]) -> f64 {
    which.iter().filter_map(|i| fields.get(*i)?.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// Seconds of CPU that a process has used, in the kernel and outside.
pub(crate) fn cpu(pid: u32) -> f64 {
    stat(&pid.to_string()).map_or(0.0, |fields| ticks(&fields, &[11, 12]))
}

/// Seconds of CPU of a process and all its children, those that have ended too. Postgres is one process per connection.
pub(crate) fn cpu_with_children(pid: i32) -> f64 {
    let own = stat(&pid.to_string()).map_or(0.0, |fields| ticks(&fields, &[11, 12, 13, 14]));
    let Ok(processes) = fs::read_dir("/proc") else { return own };
    let children = processes.filter_map(|entry| {
        let fields = stat(entry.ok()?.file_name().to_str()?)?;
        (fields.get(1)? == &pid.to_string()).then(|| ticks(&fields, &[11, 12]))
    });
    own + children.sum::<f64>()
}

/// MB of memory that a process has resident: now, and at most.
pub(crate) fn memory(pid: u32) -> (f64, f64) {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find(|l| l.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kb| kb.parse::<f64>().ok()).unwrap_or(0.0) * 1024.0 / 1e6
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// The load average of the last minute.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// How long it takes to make 4 KiB in `dir` durable, `count` times with a pause before each.
pub(crate) fn fdatasync(dir: &Path, count: usize, pause: Duration) -> Result<Vec<Duration>> {
    let path = dir.join("probe");
    let mut file = File::create(&path).with_context(|| path.display().to_string())?;
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        thread::sleep(pause);
        let begun = Instant::now();
        file.rewind()?;
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        took.push(begun.elapsed());
    }
    fs::remove_file(path)?;
    Ok(took)
}
