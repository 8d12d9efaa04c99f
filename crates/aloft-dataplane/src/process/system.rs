//! What the system says about processes, and how they are stopped.

use std::{
    fs, io,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use super::dir::ProcessId;

/// When process `pid` was started, in clock ticks since the machine's start; `None` if there is no such process, or it
/// has ended and only waits to be collected.
pub(super) fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold anything; the fields begin after the last one.
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(18)?.parse().ok()).flatten()
}

impl ProcessId {
    /// The process that has number `pid` now.
    pub(super) fn of(pid: i32) -> Self {
        Self { pid, started: start_time(pid).unwrap_or(0) }
    }

    /// Whether it still runs.
    pub fn is_alive(self) -> bool {
        match start_time(self.pid) {
            Some(started) => started == self.started,
            // Systems without /proc do not tell processes apart by their start.
            None => self.started == 0 && kill(Pid::from_raw(self.pid), None) != Err(Errno::ESRCH),
        }
    }

    /// Signals the process, if it is still the one.
    pub(super) fn signal(self, signal: Signal) {
        if self.is_alive() {
            kill(Pid::from_raw(self.pid), signal).ok();
        }
    }
}

/// Signals the process group of `leader` and the leader itself, which may not lead it yet.
///
/// The caller knows that the number still is the leader's: it holds the process uncollected, or has just asked.
pub(super) fn signal_group(leader: i32, signal: Signal) {
    killpg(Pid::from_raw(leader), signal).ok();
    kill(Pid::from_raw(leader), signal).ok();
}

/// How long killed processes are waited for. Only one that hangs in the kernel takes so long.
const DEATH: Duration = Duration::from_secs(5);

/// Kills what is left of a task whose shim is gone (its leader, its process group and every process of its session), and
/// waits until it is dead.
///
/// A session's number is not given to a new process while the session has members, so members found under it are the
/// task's own, provided the machine has not been restarted and the leader's number was not used again.
pub(super) fn kill_leftovers(task: ProcessId) {
    assert!(task.pid > 1, "would signal more than one task");
    let deadline = Instant::now() + DEATH;
    loop {
        if start_time(task.pid).is_some_and(|started| started != task.started) {
            return;
        }
        if task.is_alive() {
            signal_group(task.pid, Signal::SIGKILL);
        }
        let group_is_gone = killpg(Pid::from_raw(task.pid), Signal::SIGKILL).is_err();
        if (kill_session(task.pid) == 0 && group_is_gone) || Instant::now() > deadline {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Kills every process of the session that `leader` made, and says how many there were. Finds none on systems without
/// /proc.
pub(super) fn kill_session(leader: i32) -> usize {
    let Ok(entries) = fs::read_dir("/proc") else { return 0 };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| session(*pid) == Some(leader))
        .filter(|pid| kill(Pid::from_raw(*pid), Signal::SIGKILL).is_ok())
        .count()
}

fn session(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    (!matches!(state, "Z" | "X")).then(|| fields.nth(2)?.parse().ok()).flatten()
}

/// How many processes the kernel has killed for want of memory since the machine's start; 0 where it does not say.
pub(super) fn oom_kills() -> u64 {
    let count = |text: io::Result<String>| {
        text.ok()?.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok())
    };
    count(fs::read_to_string("/proc/vmstat")).unwrap_or(0)
}

/// Makes this process a likelier victim than Aloft and its shims when memory runs out. Raising it needs no privilege.
pub(super) fn volunteer_for_oom() {
    fs::write("/proc/self/oom_score_adj", "500").ok();
}

/// How much others go before tasks, as `nice` counts: a task has a tenth of the weight of a process that it has to share a
/// core with, and all of a core that nobody else wants.
const NICE: i32 = 10;

/// Lets Aloft itself and its shims go before this process when both want the machine: tasks that wait for answers of a
/// server which gets no time to give them are slower than tasks that give way.
pub(super) fn give_way() {
    rustix::process::nice(NICE).ok();
    // Where the kernel shares the machine between sessions, that alone counts within one only.
    fs::write("/proc/self/autogroup", NICE.to_string()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_with_its_number() {
        let me = ProcessId::of(std::process::id() as i32);
        assert!(me.is_alive());
        assert!(!ProcessId { started: me.started + 1, ..me }.is_alive());
        assert!(!ProcessId { pid: i32::MAX, started: 1 }.is_alive());
    }
}
