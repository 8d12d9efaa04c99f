//! What a task asks of the machine.

use aloft_core::{ErrorKind, TaskError};
use aloft_flyteidl2::flyteidl2::core::{
    Container, ExtendedResources, Resources,
    resources::{ResourceEntry, ResourceName},
};

/// What a task counts that declares no memory. A Python process with the SDK imported holds about 100 MiB.
const DEFAULT_MEMORY: u64 = 128 * MIB;
/// What a task counts that declares no CPU, in thousandths of a core.
const DEFAULT_CPU: u64 = 500;
/// How many tasks share a core: Python tasks mostly wait for storage and for each other.
const CPU_OVERCOMMIT: u64 = 4;
const MIB: u64 = 1024 * 1024;

/// What attempts of this machine may use together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Bytes of memory.
    pub memory: u64,
    /// Thousandths of cores, overcommitted.
    pub cpu: u64,
    /// Thousandths of cores that there really are: the most one task can have.
    pub cores: u64,
}

impl Machine {
    /// What this machine has, less what Aloft and the system keep for themselves.
    pub fn detect() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let total = [memory_total(), cgroup_limit()].into_iter().flatten().min().unwrap_or(4096 * MIB);
        Self::with(cores, total)
    }

    /// A machine of `cores` cores and `memory` bytes.
    pub fn with(cores: u64, memory: u64) -> Self {
        // A tenth, at least 512 MiB, but never more than half: a small machine must still run something.
        let reserve = (memory / 10).max(512 * MIB).min(memory / 2);
        Self { memory: memory - reserve, cpu: cores * 1000 * CPU_OVERCOMMIT, cores: cores * 1000 }
    }
}

fn memory_total() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 =
        text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The limit of the container or service that Aloft runs in.
fn cgroup_limit() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|l| l.strip_prefix("0::"))?.trim_start_matches('/');
    let base = std::path::Path::new("/sys/fs/cgroup");
    base.join(path)
        .ancestors()
        .take_while(|dir| dir.starts_with(base))
        .filter_map(|dir| std::fs::read_to_string(dir.join("memory.max")).ok()?.trim().parse().ok())
        .min()
}

/// What one attempt counts while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Bytes of memory.
    pub memory: u64,
    /// Thousandths of a core.
    pub cpu: u64,
    /// What the person who reads the log should know about this.
    pub notes: Vec<String>,
}

/// What the task in `container` needs of `machine`. More than there is, is clamped and said in the notes.
///
/// # Errors
/// What no process on this machine can be given (a GPU), and amounts that are no amounts.
pub fn needs(container: &Container, extended: &ExtendedResources, machine: &Machine) -> Result<Needs, TaskError> {
    let resources: &Resources = &container.resources;
    let gpu = amount(resources, ResourceName::GPU)?.is_some_and(|milli| milli > 0);
    if gpu || extended.gpu_accelerator.is_set() {
        return Err(refused(
            "UnsatisfiableResources",
            "The task asks for a GPU, and tasks that run as processes of this machine cannot be given one. Remove gpu \
             from the task's resources, or run it on a cluster that has GPUs.",
        ));
    }
    let mut notes = Vec::new();
    let mut memory = amount(resources, ResourceName::MEMORY)?
        .map_or(DEFAULT_MEMORY, |milli| u64::try_from(milli / 1000).unwrap_or(u64::MAX));
    if memory > machine.memory {
        notes.push(format!(
            "The task asks for {} MiB of memory and this machine can give {} MiB: it runs with what there is.",
            memory / MIB,
            machine.memory / MIB
        ));
        memory = machine.memory;
    }
    let mut cpu =
        amount(resources, ResourceName::CPU)?.map_or(DEFAULT_CPU, |milli| u64::try_from(milli).unwrap_or(u64::MAX));
    if cpu > machine.cores {
        notes.push(format!(
            "The task asks for {} CPU cores and this machine has {}: it runs with what there is.",
            cpu as f64 / 1000.0,
            machine.cores as f64 / 1000.0
        ));
        cpu = machine.cores;
    }
    Ok(Needs { memory, cpu, notes })
}

/// The request for `name`, or else its limit, in thousandths.
fn amount(resources: &Resources, name: ResourceName) -> Result<Option<u128>, TaskError> {
    let entry = |entries: &[ResourceEntry]| entries.iter().find(|e| e.name == name).map(|e| e.value.clone());
    let Some(text) = entry(&resources.requests).or_else(|| entry(&resources.limits)) else { return Ok(None) };
    match parse_quantity(&text) {
        Some(milli) => Ok(Some(milli)),
        None => Err(refused(
            "InvalidResources",
            &format!(
                "The task's resources ask for {name:?} {text:?}, which is no amount. Write it as 2, 500m, 1.5 or 512Mi."
            ),
        )),
    }
}

fn refused(code: &str, message: &str) -> TaskError {
    TaskError::new(code, message, ErrorKind::User, false)
}

/// A Kubernetes quantity (`2`, `500m`, `1.5Gi`, `1e3`) in thousandths.
fn parse_quantity(text: &str) -> Option<u128> {
    let text = text.trim();
    let digits_end = text
        .char_indices()
        .find(|(at, c)| {
            let exponent = matches!(c, 'e' | 'E')
                && text[at + 1..].starts_with(|c: char| c.is_ascii_digit() || c == '+' || c == '-');
            let sign = matches!(c, '+' | '-') && (*at == 0 || text[..*at].ends_with(['e', 'E']));
            !(c.is_ascii_digit() || *c == '.' || exponent || sign)
        })
        .map_or(text.len(), |(at, _)| at);
    let (number, suffix) = text.split_at(digits_end);
    let scale: f64 = match suffix {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024f64.powi(2),
        "Gi" => 1024f64.powi(3),
        "Ti" => 1024f64.powi(4),
        "Pi" => 1024f64.powi(5),
        "Ei" => 1024f64.powi(6),
        _ => return None,
    };
    let value: f64 = number.parse().ok()?;
    (value.is_finite() && value >= 0.0).then(|| (value * scale * 1000.0).ceil() as u128)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(requests: &[(ResourceName, &str)], limits: &[(ResourceName, &str)]) -> Container {
        let entries = |list: &[(ResourceName, &str)]| {
            list.iter()
                .map(|(name, value)| ResourceEntry {
                    name: (*name).into(),
                    value: (*value).to_owned(),
                    ..ResourceEntry::default()
                })
                .collect()
        };
        Container {
            resources: Resources { requests: entries(requests), limits: entries(limits), ..Resources::default() }
                .into(),
            ..Container::default()
        }
    }

    fn of(requests: &[(ResourceName, &str)], limits: &[(ResourceName, &str)]) -> Result<Needs, TaskError> {
        needs(&container(requests, limits), &ExtendedResources::default(), &Machine::with(2, 16 * 1024 * MIB))
    }

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        let table = [
            ("2", Some(2000)),
            ("500m", Some(500)),
            ("1.5", Some(1500)),
            ("1Ki", Some(1_024_000)),
            ("1k", Some(1_000_000)),
            ("1e3", Some(1_000_000)),
            ("1E3", Some(1_000_000)),
            ("2E", Some(2_000_000_000_000_000_000_000)),
            (" 1Gi ", Some(1_073_741_824_000)),
            ("0", Some(0)),
            ("", None),
            ("-1", None),
            ("much", None),
            ("1 Gi", None),
            ("1Gib", None),
        ];
        for (text, want) in table {
            assert_eq!(parse_quantity(text), want, "{text:?}");
        }
    }

    #[test]
    fn requests_count_before_limits_and_defaults_last() {
        use ResourceName::{CPU, MEMORY};
        let n = of(&[], &[]).unwrap();
        assert_eq!((n.memory, n.cpu), (DEFAULT_MEMORY, DEFAULT_CPU));
        let n = of(&[(CPU, "1")], &[(CPU, "2"), (MEMORY, "1Gi")]).unwrap();
        assert_eq!((n.memory, n.cpu, n.notes.len()), (1024 * MIB, 1000, 0));
    }

    #[test]
    fn too_much_is_clamped_and_said() {
        let n = of(&[(ResourceName::CPU, "64"), (ResourceName::MEMORY, "1Ti")], &[]).unwrap();
        assert_eq!((n.cpu, n.memory, n.notes.len()), (2000, Machine::with(2, 16 * 1024 * MIB).memory, 2));
        assert!(n.notes[1].contains("64 CPU"), "{:?}", n.notes);
    }

    #[test]
    fn a_gpu_and_nonsense_are_refused() {
        let e = of(&[(ResourceName::GPU, "1")], &[]).unwrap_err();
        assert_eq!((e.code.as_str(), e.recoverable), ("UnsatisfiableResources", false));
        assert!(of(&[(ResourceName::GPU, "0")], &[]).is_ok());
        assert_eq!(of(&[], &[(ResourceName::MEMORY, "lots")]).unwrap_err().code, "InvalidResources");
    }

    #[test]
    fn a_small_machine_still_has_room() {
        assert_eq!(Machine::with(1, 256 * MIB).memory, 128 * MIB);
    }
}
