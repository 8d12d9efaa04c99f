//! The process executor: an attempt is a process of this machine, kept by a small shim that outlives Aloft.
//!
//! ```text
//! worker ── launch.json, task.json ──▶ shim ── fork request ──▶ zygote ──▶ task     (warm: milliseconds)
//!    ▲                                  │ └────── exec ─────────────────▶ task     (cold: the fallback)
//!    └──────── exit.json ◀──────────────┘ ◀── stdout and stderr ──┘
//! ```
//!
//! **Invariant:** for every attempt that may have been started there is a `launch.json`, and whether its shim lives is
//! told by a lock that passes from the worker to the shim without a gap. So after a crash at any moment, what to do with an
//! attempt is a function of its files ([`recover`]).

mod dir;
mod environ;
mod judge;
mod shim;
mod system;
mod template;
mod zygote;

#[cfg(test)]
mod tests;

use std::{fs, io, path::PathBuf, process::Stdio, time::Duration};

use aloft_core::{AttemptOutcome, ErrorKind, OutputRefs, Phase, TaskError};
use aloft_flyteidl2::flyteidl2::core::{Container, TaskTemplate};
use aloft_plane::{AttemptId, LeasedAttempt};
use nix::sys::signal::Signal;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::oneshot,
    time::{Instant, timeout_at},
};

use self::{dir::TaskRecord, zygote::Zygotes};
pub use self::{
    dir::{AttemptDir, AttemptDirs, DirState, Exit, ExitRecord, LaunchRecord, ProcessId, ShimRecord},
    environ::{Credentials, Endpoints, HostEnv},
    judge::{Results, judge, task_error},
    shim::shim_main,
    template::{Vars, substitute},
};
use crate::{seam::PyEnv, target::Target};

/// How much longer than the task's grace a shim gets before it is killed itself.
const SHIM_GRACE: Duration = Duration::from_secs(3);

/// How processes are started.
#[derive(Clone, Debug)]
pub struct ProcessConfig {
    /// Where attempts have their directories.
    pub dirs: AttemptDirs,
    /// The command that runs [`shim_main`] with the arguments added to it, such as `["/usr/bin/aloft", "shim"]`.
    pub shim: Vec<String>,
    /// How tasks reach Aloft.
    pub endpoints: Endpoints,
    /// What tasks see of the machine's environment.
    pub host: HostEnv,
    /// How long a task has after SIGTERM before it is killed, if its pod does not say.
    pub grace: Duration,
    /// Whether tasks are forked from zygotes.
    pub warm: bool,
}

/// Starts attempts as processes, and finds again those that an Aloft before this one started.
pub struct ProcessExecutor {
    config: ProcessConfig,
    zygotes: Option<Zygotes>,
}

impl ProcessExecutor {
    /// An executor. Prepares the directories.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn new(config: ProcessConfig) -> io::Result<Self> {
        config.dirs.prepare()?;
        let zygotes = match config.warm && cfg!(target_os = "linux") {
            true => Some(Zygotes::new(config.dirs.sockets(), config.host.clone())?),
            false => None,
        };
        Ok(Self { config, zygotes })
    }

    /// The directories of attempts.
    pub fn dirs(&self) -> &AttemptDirs {
        &self.config.dirs
    }

    /// Whether tasks are forked from zygotes where that can be.
    pub fn is_warm(&self) -> bool {
        self.zygotes.is_some()
    }

    /// Starts the zygote of `env`, so that its first task finds it ready. Returns at once.
    pub fn prewarm(&self, env: &PyEnv) {
        if let Some(zygotes) = &self.zygotes {
            zygotes.prewarm(env);
        }
    }

    /// Prepares the start of `attempt`; `notes` go into its log first. May be given up at any time.
    ///
    /// # Errors
    /// How the attempt ended, if it is not one that runs as a process here.
    pub async fn prepare(
        &self,
        attempt: &LeasedAttempt,
        template: &TaskTemplate,
        target: &Target<'_>,
        env: &PyEnv,
        notes: Vec<String>,
    ) -> Result<Prepared, AttemptOutcome> {
        let dir = self.config.dirs.dir(&attempt.lease.id);
        let mut task = self.plan(attempt, template, &target.container, env, &dir, notes)?;
        let mut launch = LaunchRecord::new(&attempt.lease.id, attempt.lease.token);
        if let Some(grace) = target.grace {
            task.grace_ms = millis(grace);
            launch.grace_ms = Some(task.grace_ms);
        }
        if let Some(zygotes) = &self.zygotes
            && zygote::cold_reason(&task.program, &task.env).is_none()
        {
            task.zygote = zygotes.socket(env).await;
        }
        Ok(Prepared { dir, launch, task, files: env.files.clone() })
    }

    /// Starts an attempt and returns when its process runs. Must not be given up halfway.
    ///
    /// # Errors
    /// How the attempt ended, if it cannot be started.
    pub async fn launch(&self, prepared: Prepared) -> Result<Running, AttemptOutcome> {
        self.start(prepared).await.map_err(|e| {
            let message =
                format!("Its process cannot be started: {e}. Is the disk full, or the limit of processes reached?");
            AttemptOutcome::Lost(TaskError::new("LaunchFailed", message, ErrorKind::System, true))
        })
    }

    /// What is started for `attempt`.
    fn plan(
        &self,
        attempt: &LeasedAttempt,
        template: &TaskTemplate,
        container: &Container,
        env: &PyEnv,
        dir: &AttemptDir,
        notes: Vec<String>,
    ) -> Result<TaskRecord, AttemptOutcome> {
        let vars = Vars(attempt);
        let mut words = container.command.iter().chain(&container.args).map(|word| substitute(word, &vars));
        let program = words.next().filter(|p| !p.is_empty()).ok_or_else(|| {
            unsupported(format!("Task {} declares no command, so there is nothing to run.", template.id.name))
        })?;
        let program = find_program(&program, env).ok_or_else(|| {
            unsupported(format!(
                "Task {} ({}) runs {program:?}, which is not in its Python environment {}. A task of arbitrary images \
                 and commands needs a cluster; as a process of this machine only Python tasks run.",
                template.id.name,
                template.r#type,
                env.bin_dir.display()
            ))
        })?;
        let scratch = dir.scratch().display().to_string();
        let Self { config: ProcessConfig { shim, endpoints, host, grace, .. }, .. } = self;
        Ok(TaskRecord {
            program,
            args: words.collect(),
            env: environ::environment(host, env, endpoints, attempt, template, &container.env, &scratch),
            shim: shim.clone(),
            zygote: None,
            grace_ms: millis(*grace),
            notes,
        })
    }

    async fn start(&self, Prepared { dir, launch, task, files: overlay }: Prepared) -> io::Result<Running> {
        let (id, asked, grace) = (launch.id(), task.zygote.clone(), Duration::from_millis(task.grace_ms));
        let files = dir.clone();
        let (lock, errors) = blocking(move || {
            let lock = files.begin(&launch)?;
            if let Some(overlay) = overlay {
                crate::env::lay_out(&overlay, &files.work())?;
            }
            files.write_task(&task)?;
            Ok((lock, fs::File::create(files.path().join("shim.err"))?))
        })
        .await?;
        let [program, args @ ..] = self.config.shim.as_slice() else {
            return Err(io::Error::other("the command of the shim is empty"));
        };
        #[cfg(feature = "failpoints")]
        fail::fail_point!("worker-before-start", |_| std::process::abort());
        let mut child = Command::new(program)
            .args(args)
            .arg(dir.path())
            .stdin(lock)
            .stdout(Stdio::piped())
            .stderr(errors)
            // Until the shim leads a session of its own.
            .process_group(0)
            .spawn()?;
        #[cfg(feature = "failpoints")]
        fail::fail_point!("worker-after-start", |_| std::process::abort());
        let shim = ProcessId::of(child.id().unwrap_or_default().cast_signed());
        let mut said = String::new();
        if let Some(out) = child.stdout.take() {
            // Ends without a word when the shim could not start the task; its exit record says why.
            BufReader::new(out).read_line(&mut said).await.ok();
        }
        if let Some(why) = said.trim().strip_prefix("started cold: ") {
            tracing::debug!(attempt = %id, "started cold: {why}");
            if let (shim::NO_ANSWER, Some(zygotes), Some(socket)) = (why, &self.zygotes, &asked) {
                zygotes.distrust(socket);
            }
        }
        Ok(Running { dir, shim: Some(shim), keeper: Keeper::Child(child), grace })
    }

    /// Takes over an attempt whose shim lives.
    pub fn adopt(&self, id: &AttemptId) -> Running {
        let dir = self.config.dirs.dir(id);
        let shim = dir.read_shim().ok().flatten().map(|record| record.shim);
        let own = dir.read_launch().ok().flatten().and_then(|launch| launch.grace_ms);
        let grace = own.map_or(self.config.grace, Duration::from_millis);
        Running { dir, shim, keeper: Keeper::Adopted(None), grace }
    }
}

/// How the attempt in `dir`, whose shim is gone, ended: what the shim said, or what there is to say if it was killed.
/// Nothing of the attempt lives when this returns.
///
/// # Errors
/// If its files cannot be read or written.
pub fn exit_record(dir: &AttemptDir) -> io::Result<ExitRecord> {
    let state = dir.state()?;
    if let Some(exit) = state.exit {
        return Ok(exit);
    }
    if let (true, Some(task)) = (state.same_boot, state.shim.and_then(|s| s.task)) {
        system::kill_leftovers(task);
    }
    let errors = dir.shim_errors();
    tracing::warn!(dir = %dir.path().display(), "the shim of this attempt did not say how it ended {errors}");
    let exit = ExitRecord::now(Exit::Unknown);
    if dir.path().exists() {
        // For those who follow the log.
        dir.write_exit(&exit)?;
    }
    Ok(exit)
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

fn unsupported(message: String) -> AttemptOutcome {
    AttemptOutcome::Failed(TaskError::new("UnsupportedTask", message, ErrorKind::User, false), OutputRefs::default())
}

/// The file that `program` names: in the environment's own scripts, or a path.
fn find_program(program: &str, env: &PyEnv) -> Option<PathBuf> {
    let path = match program.contains('/') {
        true => PathBuf::from(program),
        false => env.bin_dir.join(program),
    };
    (path.is_absolute() && path.is_file()).then_some(path)
}

/// An attempt that is ready to be started. Holds credentials, so it has no `Debug`.
pub struct Prepared {
    dir: AttemptDir,
    launch: LaunchRecord,
    task: TaskRecord,
    /// What the image copied in.
    files: Option<PathBuf>,
}

/// Runs `work`, which waits for the disk, where waiting is no harm.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// An attempt whose shim was started.
pub struct Running {
    dir: AttemptDir,
    /// The shim; `None` if it was adopted before it had written who it is.
    shim: Option<ProcessId>,
    keeper: Keeper,
    grace: Duration,
}

enum Keeper {
    /// The shim is our child.
    Child(Child),
    /// The shim was another Aloft's. Hears when it lets go of its lock, once somebody waits for that.
    Adopted(Option<oneshot::Receiver<()>>),
}

impl Running {
    /// The attempt's directory.
    pub fn dir(&self) -> &AttemptDir {
        &self.dir
    }

    /// Waits until the attempt has ended and nothing of it lives. May be dropped and called again.
    pub async fn ended(&mut self) -> ExitRecord {
        match &mut self.keeper {
            Keeper::Child(child) => {
                child.wait().await.ok();
            }
            Keeper::Adopted(released) => {
                let receive = released.get_or_insert_with(|| watch_lock(&self.dir));
                receive.await.ok();
            }
        }
        let dir = self.dir.clone();
        blocking(move || exit_record(&dir)).await.unwrap_or_else(|e| {
            tracing::warn!(dir = %self.dir.path().display(), "how this attempt ended cannot be read: {e}");
            ExitRecord::now(Exit::Unknown)
        })
    }

    /// Stops the attempt: gracefully, then firmly. Returns when nothing of it lives.
    pub async fn stop(&mut self) -> ExitRecord {
        /// How often a shim that has just been started is looked for.
        const LOOK: Duration = Duration::from_millis(50);
        let deadline = Instant::now() + self.grace + SHIM_GRACE;
        let mut asked = false;
        while Instant::now() < deadline {
            if self.shim.is_none() {
                self.shim = self.dir.read_shim().ok().flatten().map(|record| record.shim);
            }
            if let (Some(shim), false) = (self.shim, asked) {
                shim.signal(Signal::SIGTERM);
                asked = true;
            }
            let patience = if asked { deadline } else { Instant::now() + LOOK };
            if let Ok(exit) = timeout_at(patience, self.ended()).await {
                return exit;
            }
        }
        // The shim itself hangs.
        if let Some(shim) = self.shim {
            shim.signal(Signal::SIGKILL);
        }
        self.ended().await
    }
}

/// Tells when no shim holds `dir` any more. A thread waits for the lock, so nothing has to be asked again and again;
/// attempts are adopted only at a start, so there are never many.
fn watch_lock(dir: &AttemptDir) -> oneshot::Receiver<()> {
    let (send, receive) = oneshot::channel();
    let lock = dir.lock_file();
    let wait = move || {
        if let Ok(lock) = lock {
            lock.lock().ok();
        }
        send.send(()).ok();
    };
    // If there can be no thread, the receiver hears at once that there is no sender, and the files decide.
    std::thread::Builder::new().name("adopted".to_owned()).stack_size(128 * 1024).spawn(wait).ok();
    receive
}

/// What to do with an attempt that the control plane says this worker holds, after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Its shim lives: take it over.
    Adopt,
    /// It ended, or may have: look at what it left, with this worker's own lease.
    Judge,
    /// It was never started: start it.
    Launch,
    /// What runs was started under another lease: stop it, and say that the attempt is lost.
    Stop,
}

/// Decides it from its files and the phase it had reached by the control plane's record.
pub fn recover(state: &DirState, phase: Phase, token: aloft_core::LeaseToken) -> Recovery {
    match &state.launch {
        Some(launch) if launch.token != token => Recovery::Stop,
        _ if state.exit.is_some() => Recovery::Judge,
        Some(_) if state.held => Recovery::Adopt,
        // The shim says who it is before it lets the task run. If it has not, nothing ran: unless the machine went down,
        // which may have eaten what it said.
        Some(_) if state.shim.is_none() && state.same_boot && phase != Phase::Running => Recovery::Launch,
        Some(_) => Recovery::Judge,
        // Running is reported after the launch was recorded durably, so the directory was removed by somebody.
        None if phase == Phase::Running => Recovery::Judge,
        None => Recovery::Launch,
    }
}
