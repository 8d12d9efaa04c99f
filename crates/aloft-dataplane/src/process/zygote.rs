//! The zygotes of this machine: one small process per Python environment that has the SDK imported and forks tasks.
//!
//! What a zygote does, and how it is spoken to, stands in `zygote.py`. Here is which of them live. A zygote is never
//! needed: whatever goes wrong with it, tasks are started cold.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::watch,
    time::{Instant, timeout},
};

use super::environ::HostEnv;
use crate::seam::PyEnv;

/// The program, as it is handed to the interpreter.
const PROGRAM: &str = include_str!("zygote.py");

/// How many environments are kept warm. Each costs about 70 MiB; the one that was not used for longest makes room.
const MAX_ZYGOTES: usize = 4;

/// How long a task waits for a zygote that is starting. Importing the SDK takes about as long as starting cold would, on a
/// busy machine too; only a zygote that hangs takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// After a zygote that could not start, how long its environment is served cold before another is tried.
const REST: Duration = Duration::from_secs(60);

/// The zygotes of this machine. Dropping it lets them end, each with its last task.
pub(super) struct Zygotes {
    sockets: PathBuf,
    host: HostEnv,
    living: Mutex<HashMap<String, Zygote>>,
}

struct Zygote {
    state: watch::Receiver<State>,
    /// It takes tasks as long as this is open. `None` if it could not be started.
    _control: Option<ChildStdin>,
    used: Instant,
}

#[derive(Clone, Debug)]
enum State {
    Starting,
    /// It takes tasks.
    Ready(Ready),
    /// It has ended.
    Ended,
    /// It could not start.
    Failed(Instant),
}

#[derive(Clone, Debug)]
struct Ready {
    /// Where to ask it.
    socket: PathBuf,
    /// The directory of the environment's packages, and when something was last installed there. A zygote has what was
    /// there at its start.
    packages: PathBuf,
    installed: Option<SystemTime>,
}

impl Ready {
    fn new(socket: PathBuf, packages: &str) -> Self {
        let packages = PathBuf::from(packages.trim());
        Self { socket, installed: modified(&packages), packages }
    }

    fn is_stale(&self) -> bool {
        modified(&self.packages) != self.installed
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

impl Zygotes {
    /// Zygotes with sockets below `sockets`, which is ours alone.
    pub(super) fn new(sockets: PathBuf, host: HostEnv) -> io::Result<Self> {
        // Those of an Aloft that was here before take no new tasks; nobody will ask at their sockets again.
        for entry in fs::read_dir(&sockets)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "sock" || e == "log") {
                fs::remove_file(path).ok();
            }
        }
        fs::write(sockets.join("zygote.py"), PROGRAM)?;
        Ok(Self { sockets, host, living: Mutex::default() })
    }

    /// Starts the zygote of `env` if there is none.
    pub(super) fn prewarm(&self, env: &PyEnv) {
        self.of(env);
    }

    fn of(&self, env: &PyEnv) -> watch::Receiver<State> {
        let mut living = self.living.lock();
        let now = Instant::now();
        if let Some(zygote) = living.get_mut(&env.id) {
            zygote.used = now;
            let state = zygote.state.borrow().clone();
            match state {
                State::Starting => return zygote.state.clone(),
                State::Ready(ready) if !ready.is_stale() => return zygote.state.clone(),
                State::Failed(at) if now.duration_since(at) < REST => return zygote.state.clone(),
                State::Ready(_) | State::Failed(_) | State::Ended => {}
            }
        }
        living.remove(&env.id);
        if living.len() >= MAX_ZYGOTES
            && let Some(oldest) = living.iter().min_by_key(|(_, z)| z.used).map(|(id, _)| id.clone())
        {
            living.remove(&oldest);
        }
        let zygote = self.start(env, now);
        let state = zygote.state.clone();
        living.insert(env.id.clone(), zygote);
        state
    }

    /// Gives up the zygote at `socket`, which did not answer. The next task of its environment gets another.
    pub(super) fn distrust(&self, socket: &Path) {
        self.living
            .lock()
            .retain(|_, zygote| !matches!(&*zygote.state.borrow(), State::Ready(r) if r.socket == socket));
    }

    /// Where to ask for a process in `env`; `None` if it has to be started cold.
    pub(super) async fn socket(&self, env: &PyEnv) -> Option<PathBuf> {
        let mut state = self.of(env);
        let settled = timeout(PATIENCE, state.wait_for(|s| !matches!(s, State::Starting))).await.ok()?.ok()?;
        match &*settled {
            State::Ready(ready) => Some(ready.socket.clone()),
            _ => None,
        }
    }

    fn start(&self, env: &PyEnv, now: Instant) -> Zygote {
        let (send, state) = watch::channel(State::Starting);
        match self.spawn(env) {
            Ok((mut child, socket)) => {
                let control = child.stdin.take();
                let name = env.id.clone();
                tokio::spawn(async move { attend(child, socket, name, send).await });
                Zygote { state, _control: control, used: now }
            }
            Err(e) => {
                tracing::warn!(env = env.id, "tasks of this environment start cold: its zygote cannot be started: {e}");
                send.send_replace(State::Failed(now));
                Zygote { state, _control: None, used: now }
            }
        }
    }

    fn spawn(&self, env: &PyEnv) -> io::Result<(Child, PathBuf)> {
        let name: u64 = rand::random();
        let socket = self.sockets.join(format!("{name:016x}.sock"));
        let log = fs::File::create(socket.with_extension("log"))?;
        let child = Command::new(&env.python)
            .arg(self.sockets.join("zygote.py"))
            .arg(&socket)
            .arg(env.bin_dir.join("a0"))
            .env_clear()
            .envs(self.host.for_python(env))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // A Ctrl-C meant for Aloft must not reach tasks.
            .process_group(0)
            .spawn()?;
        Ok((child, socket))
    }
}

/// Waits until the zygote is ready, and then until it ends.
async fn attend(mut child: Child, socket: PathBuf, name: String, state: watch::Sender<State>) {
    let mut said = String::new();
    if let Some(out) = child.stdout.take() {
        BufReader::new(out).read_line(&mut said).await.ok();
    }
    let Some(packages) = said.strip_prefix("ready ") else {
        let why =
            if said.trim().is_empty() { last_line(&socket.with_extension("log")) } else { said.trim().to_owned() };
        tracing::warn!(env = name, "tasks of this environment start cold: its zygote did not start: {why}");
        child.start_kill().ok();
        child.wait().await.ok();
        state.send_replace(State::Failed(Instant::now()));
        return;
    };
    tracing::debug!(env = name, pid = child.id(), "zygote ready");
    state.send_replace(State::Ready(Ready::new(socket, packages)));
    let status = child.wait().await;
    tracing::debug!(env = name, "zygote ended: {status:?}");
    state.send_replace(State::Ended);
}

fn last_line(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    text.lines().next_back().unwrap_or("it said nothing").to_owned()
}

/// Why a task with this command and environment must have an interpreter of its own, as far as that can be told without
/// asking the zygote.
pub(super) fn cold_reason(program: &Path, env: &[(String, String)]) -> Option<&'static str> {
    if !cfg!(target_os = "linux") {
        return Some("forking a process that has libraries of the system loaded is not safe here");
    }
    if program.file_name().is_none_or(|name| name != "a0") {
        return Some("its command is not a0");
    }
    let is_set = |wanted: &str| env.iter().any(|(name, value)| name == wanted && !value.is_empty());
    if is_set("_F_EXEC_WRAPPER") {
        return Some("it replaces its own process by a wrapper");
    }
    if is_set("_F_E_VS") || is_set("_F_E_SSH") {
        return Some("it is debugged");
    }
    if is_set("_F_USE_RUST_CONTROLLER") {
        return Some("its controller is a native library with threads of its own");
    }
    if env.iter().any(|(name, _)| name.starts_with("LD_") || name.starts_with("DYLD_")) {
        return Some("it changes how libraries are loaded");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn odd_tasks_start_cold() {
        let cases = [
            ("/e/bin/a0", "A", "b", false),
            ("/e/bin/a0", "_F_E_VS", "", false),
            ("/e/bin/clustered", "A", "b", true),
            ("/e/bin/a0", "_F_EXEC_WRAPPER", "nsys", true),
            ("/e/bin/a0", "_F_E_VS", "1", true),
            ("/e/bin/a0", "_F_E_SSH", "true", true),
            ("/e/bin/a0", "LD_PRELOAD", "/x.so", true),
            ("/e/bin/a0", "_F_USE_RUST_CONTROLLER", "1", true),
        ];
        for (program, name, value, cold) in cases {
            let env = [(name.to_owned(), value.to_owned())];
            assert_eq!(cold_reason(Path::new(program), &env).is_some(), cold, "{program} {name}={value}");
        }
    }
}
