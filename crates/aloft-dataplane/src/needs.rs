//! What a task asks of the machine.

use aloft_core::{ErrorKind, TaskError};
use aloft_flyteidl2::flyteidl2::{
    core::{
        Container, ExtendedResources,
        resources::{ResourceEntry, ResourceName},
    },
    task::TaskResourceDefaults,
};
use aloft_plane::quantity;

/// The code of an error about something that no process of this machine can be given, ever.
pub const UNSATISFIABLE: &str = "UnsatisfiableResources";

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

/// What the task in `container` needs of `machine`. What it does not declare comes from `defaults`, the settings of its
/// project. More than those or the machine allow is clamped and said in the notes.
///
/// # Errors
/// What no process on this machine can be given (a GPU), and amounts that are no amounts.
pub fn needs(
    container: &Container,
    extended: &ExtendedResources,
    defaults: &TaskResourceDefaults,
    machine: &Machine,
) -> Result<Needs, TaskError> {
    refuse_gpu(container, extended, defaults)?;
    let mut notes = Vec::new();

    let bytes = |milli: u128| u64::try_from(milli / 1000).unwrap_or(u64::MAX);
    let mib = |bytes: u64| format!("{} MiB of memory", bytes / MIB);
    let most = entry(&defaults.max, ResourceName::MEMORY).and_then(quantity::parse).map_or(u64::MAX, bytes);
    let memory = match amount(container, defaults, ResourceName::MEMORY)? {
        Some(milli) => clamp(bytes(milli), most, machine.memory, mib, &mut notes),
        None => DEFAULT_MEMORY.min(most).min(machine.memory),
    };

    let thousandths = |milli: u128| u64::try_from(milli).unwrap_or(u64::MAX);
    let cores = |milli: u64| format!("{} CPU cores", milli as f64 / 1000.0);
    let most = entry(&defaults.max, ResourceName::CPU).and_then(quantity::parse).map_or(u64::MAX, thousandths);
    let cpu = match amount(container, defaults, ResourceName::CPU)? {
        Some(milli) => clamp(thousandths(milli), most, machine.cores, cores, &mut notes),
        None => DEFAULT_CPU.min(most).min(machine.cores),
    };
    Ok(Needs { memory, cpu, notes })
}

/// The least of what is asked for, what the settings allow and what there is, with a note for each that cut it.
fn clamp(asked: u64, allowed: u64, there_is: u64, said: impl Fn(u64) -> String, notes: &mut Vec<String>) -> u64 {
    if asked > allowed {
        notes.push(format!(
            "The task asks for {} and the settings of its project allow {}: it runs with what they allow.",
            said(asked),
            said(allowed)
        ));
    }
    let asked = asked.min(allowed);
    if asked > there_is {
        notes.push(format!(
            "The task asks for {} and this machine can give {}: it runs with what there is.",
            said(asked),
            said(there_is)
        ));
    }
    asked.min(there_is)
}

fn refuse_gpu(
    container: &Container,
    extended: &ExtendedResources,
    defaults: &TaskResourceDefaults,
) -> Result<(), TaskError> {
    let wanted = amount(container, defaults, ResourceName::GPU)?.is_some_and(|milli| milli > 0);
    let named = extended.gpu_accelerator.is_set();
    if !wanted && !named {
        return Ok(());
    }
    let (who, remedy) = if named || declared(container, ResourceName::GPU).is_some() {
        ("The task asks for", "Remove gpu from the task's resources")
    } else {
        ("By the settings of its project, the task gets", "Remove task_resource.min.gpu from those settings")
    };
    Err(refused(
        UNSATISFIABLE,
        &format!(
            "{who} a GPU, and tasks that run as processes of this machine cannot be given one. {remedy}, or run it on a \
             cluster that has GPUs."
        ),
    ))
}

fn entry(entries: &[ResourceEntry], name: ResourceName) -> Option<&str> {
    entries.iter().find(|e| e.name == name).map(|e| e.value.as_str())
}

/// What the task itself says of `name`: its request, or else its limit.
fn declared(container: &Container, name: ResourceName) -> Option<&str> {
    let resources = &container.resources;
    entry(&resources.requests, name).or_else(|| entry(&resources.limits, name))
}

/// What the task asks for of `name`, or else its default, in thousandths.
fn amount(
    container: &Container,
    defaults: &TaskResourceDefaults,
    name: ResourceName,
) -> Result<Option<u128>, TaskError> {
    let Some(text) = declared(container, name).or_else(|| entry(&defaults.requests, name)) else { return Ok(None) };
    match quantity::parse(text) {
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

#[cfg(test)]
mod tests {
    use aloft_flyteidl2::flyteidl2::core::Resources;

    use super::*;

    fn entries(list: &[(ResourceName, &str)]) -> Vec<ResourceEntry> {
        let entry = |(name, value): &(ResourceName, &str)| ResourceEntry {
            name: (*name).into(),
            value: (*value).to_owned(),
            ..ResourceEntry::default()
        };
        list.iter().map(entry).collect()
    }

    fn container(requests: &[(ResourceName, &str)], limits: &[(ResourceName, &str)]) -> Container {
        Container {
            resources: Resources { requests: entries(requests), limits: entries(limits), ..Resources::default() }
                .into(),
            ..Container::default()
        }
    }

    fn of(requests: &[(ResourceName, &str)], limits: &[(ResourceName, &str)]) -> Result<Needs, TaskError> {
        with(&container(requests, limits), &[], &[])
    }

    fn with(
        container: &Container,
        min: &[(ResourceName, &str)],
        max: &[(ResourceName, &str)],
    ) -> Result<Needs, TaskError> {
        let defaults =
            TaskResourceDefaults { requests: entries(min), max: entries(max), ..TaskResourceDefaults::default() };
        needs(container, &ExtendedResources::default(), &defaults, &Machine::with(2, 16 * 1024 * MIB))
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
    fn settings_give_what_a_task_does_not_declare() {
        use ResourceName::{CPU, MEMORY};
        let min = [(CPU, "250m"), (MEMORY, "64Mi")];
        let n = with(&container(&[], &[]), &min, &[]).unwrap();
        assert_eq!((n.cpu, n.memory), (250, 64 * MIB));
        let n = with(&container(&[(CPU, "100m")], &[(MEMORY, "32Mi")]), &min, &[]).unwrap();
        assert_eq!((n.cpu, n.memory), (100, 32 * MIB), "what the task says wins");
    }

    #[test]
    fn settings_bound_what_a_task_may_have() {
        use ResourceName::{CPU, MEMORY};
        let max = [(CPU, "1500m"), (MEMORY, "1Gi")];
        let n = with(&container(&[(CPU, "2"), (MEMORY, "2Gi")], &[]), &[], &max).unwrap();
        assert_eq!((n.cpu, n.memory, n.notes.len()), (1500, 1024 * MIB, 2));
        assert!(n.notes[1].contains("settings of its project allow 1.5 CPU"), "{:?}", n.notes);
        let n = with(&container(&[], &[]), &[(MEMORY, "4Gi")], &max).unwrap();
        assert_eq!((n.memory, n.notes.len()), (1024 * MIB, 1));
        let n = with(&container(&[], &[]), &[], &max).unwrap();
        assert_eq!((n.cpu, n.memory, n.notes.len()), (DEFAULT_CPU, DEFAULT_MEMORY, 0));
    }

    #[test]
    fn a_gpu_of_the_settings_is_refused_as_theirs() {
        let gpu = [(ResourceName::GPU, "1")];
        let e = with(&container(&[], &[]), &gpu, &[]).unwrap_err();
        assert!(e.message.contains("task_resource.min.gpu"), "{}", e.message);
        assert!(with(&container(&[(ResourceName::GPU, "0")], &[]), &gpu, &[]).is_ok());
    }

    #[test]
    fn a_small_machine_still_has_room() {
        assert_eq!(Machine::with(1, 256 * MIB).memory, 128 * MIB);
    }
}
