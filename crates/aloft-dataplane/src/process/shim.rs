//! The shim of one attempt: a small process that starts the task, keeps its output and outlives Aloft.
//!
//! It leads a session of its own, holds the lock of the attempt's directory as its stdin, and says once on its stdout that
//! the task runs; after that nothing ties it to Aloft but files. SIGTERM makes it stop the task: SIGTERM to the task itself,
//! and after a grace SIGKILL to its whole process group. As in a pod only the first process is asked: whoever wants to
//! write a checkpoint then still has the processes that it started.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs,
    io::{self, IoSlice, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use nix::{
    sys::{
        signal::Signal,
        socket::{ControlMessage, MsgFlags, sendmsg},
    },
    unistd::{Pid, dup2_stdout, setsid},
};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe::Receiver},
    signal::unix::{Signal as SignalStream, SignalKind, signal},
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{
    dir::{self, Exit, ExitRecord, ProcessId, ShimRecord, TaskRecord},
    system,
};
use crate::{clock, logs::LogWriter};

/// How long a zygote has to answer before the task is started cold. A fork takes milliseconds, but a machine under heavy
/// load may need seconds for it, and would need more for a cold start.
const ZYGOTE_PATIENCE: Duration = Duration::from_secs(15);

/// Why a task was started cold, if it was for that.
pub(super) const NO_ANSWER: &str = "the zygote did not answer";

/// How long output is still read after the task's process group is dead: what is in the pipe is there at once, and only a
/// process that left the session can keep it open.
const DRAIN: Duration = Duration::from_millis(250);

/// How long a line may stay unfinished before a follower is shown what there is of it. Not extended by more output: a
/// progress bar redraws its line for minutes without ever ending it.
const PARTIAL: Duration = Duration::from_millis(400);

/// How often a task whose zygote has died is looked at: nobody is told of its end.
const LOOK: Duration = Duration::from_millis(100);

/// The first word of the second stage's arguments.
const EXEC: &str = "--exec";

/// Runs the shim with the arguments after the subcommand, and returns its exit code. Must be called before this process
/// opens anything: it closes what it finds open.
///
/// `aloft shim DIR` is the shim of the attempt in DIR. `aloft shim --exec PARENT DIR PROGRAM ARGS...` is its own second
/// stage, which becomes a task that is started cold.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> i32 {
    let mut args = args.into_iter();
    let Some(first) = args.next() else { return 2 };
    if first == EXEC {
        let (Some(parent), Some(dir), Some(program)) = (args.next(), args.next(), args.next()) else { return 2 };
        return become_task(&parent.to_string_lossy(), Path::new(&dir), &program, args);
    }
    let dir = PathBuf::from(first);
    close_inherited();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return give_up(&dir, &format!("the shim cannot start: {e}")),
    };
    match runtime.block_on(Shim::run(&dir)) {
        Ok(()) => 0,
        Err(e) => give_up(&dir, &format!("the shim failed: {e}")),
    }
}

/// The second stage of a cold start. What a process can do to itself before it becomes another program needs no unsafe
/// code; what a parent does to a child after a fork would.
fn become_task(parent: &str, dir: &Path, program: &OsString, args: impl Iterator<Item = OsString>) -> i32 {
    setsid().ok();
    #[cfg(target_os = "linux")]
    {
        // A task must not live on unseen: if the machine kills the shim, the kernel kills the task.
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).ok();
        // It may have died before that was said.
        if nix::unistd::getppid().to_string() != parent {
            return 1;
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = parent;
    system::volunteer_for_oom();
    system::give_way();
    let error: Result<Infallible, io::Error> = Err(Command::new(program).args(args).exec());
    let Err(error) = error;
    let mut why = format!("{} cannot be started: {error}.", program.display());
    if error.kind() == io::ErrorKind::NotFound && Path::new(program).exists() {
        why.push_str(
            " The file is there, so the interpreter that its first line names is not: its Python environment is damaged. \
             Install it again, or name another interpreter with --python.",
        );
    }
    fs::write(dir.join("exec-error"), &why).ok();
    127
}

/// Closes what Aloft was started with and handed down unknowingly: a pipe held open for days would keep whoever reads it
/// waiting, and a task could write into it.
fn close_inherited() {
    let Ok(entries) = fs::read_dir("/dev/fd") else { return };
    let open: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for fd in open.into_iter().filter(|fd| *fd > 2) {
        nix::unistd::close(fd).ok();
    }
}

/// The shim itself failed, for instance because the disk is full: the task does not run, or is about to be killed.
fn give_up(dir: &Path, why: &str) -> i32 {
    dir::write_json_durably(&dir.join("exit.json"), &ExitRecord::now(Exit::NotStarted(why.to_owned()))).ok();
    1
}

/// A task that was started, and how its end is learnt.
enum Task {
    /// It is our child.
    Cold(Child, SignalStream),
    /// It is the zygote's, which keeps its number until both halves of this connection are closed.
    Warm { id: ProcessId, answers: Answers, _open: OwnedWriteHalf },
}

/// What a zygote sends.
type Answers = Lines<BufReader<OwnedReadHalf>>;

struct Shim {
    dir: PathBuf,
    record: TaskRecord,
    log: LogWriter<fs::File>,
    started_us: i64,
    oom_kills: u64,
    /// Why the task was started cold although a zygote was named.
    cold: Option<String>,
}

impl Shim {
    async fn run(dir: &Path) -> io::Result<()> {
        setsid().ok();
        let record = dir::read_task(dir)?;
        let mut log = LogWriter::append(&dir.join("log"))?;
        let now = clock::now();
        for note in &record.notes {
            log.note(note, now);
        }
        let started_us = now.as_microsecond();
        let mut shim =
            Self { dir: dir.to_owned(), record, log, started_us, oom_kills: system::oom_kills(), cold: None };
        // Before anybody can be told to ask us to stop.
        let stop = signal(SignalKind::terminate())?;
        let (output, input) = io::pipe()?;
        let mut task = match shim.start(input.into()).await? {
            Ok(task) => task,
            Err(why) => return shim.end(Exit::NotStarted(why)),
        };
        shim.say_started();
        let output = Receiver::from_owned_fd(output.into())?;
        let how = shim.follow(&mut task, output, stop).await?;
        drop(task);
        shim.end(how)
    }

    /// Starts the task, warm if that can be. The inner error says why it cannot be started at all.
    async fn start(&mut self, input: OwnedFd) -> io::Result<Result<Task, String>> {
        if let Some(socket) = self.record.zygote.clone() {
            match timeout(ZYGOTE_PATIENCE, self.fork(&socket, &input)).await {
                Ok(Ok(task)) => return Ok(Ok(task)),
                // Whatever is odd about the zygote, the task can be started without it: as long as it has not been told
                // to go, no forked process runs anything, and it ends when the connection is closed.
                Ok(Err(why)) => self.cold = Some(why.to_string()),
                Err(_) => self.cold = Some(NO_ANSWER.to_owned()),
            }
        }
        self.write_processes(None, false)?;
        let ended = signal(SignalKind::child())?;
        // What Aloft was told to ignore, as all are that a script starts in the background, a task would ignore as well. What is
        // caught here begins with its default there.
        for kind in [SignalKind::interrupt(), SignalKind::quit(), SignalKind::hangup()] {
            drop(signal(kind)?);
        }
        let [program, own_args @ ..] = self.record.shim.as_slice() else {
            return Err(io::Error::other("the command of the shim is empty"));
        };
        // The running binary, even if the file was replaced meanwhile.
        let own = Path::new("/proc/self/exe");
        let mut command = Command::new(if own.exists() { own } else { Path::new(program) });
        command
            .args(own_args)
            .arg(EXEC)
            .arg(std::process::id().to_string())
            .arg(&self.dir)
            .arg(&self.record.program)
            .args(&self.record.args)
            .env_clear()
            .envs(self.record.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.dir.join("work"))
            .stdin(Stdio::null())
            .stdout(input.try_clone()?)
            .stderr(input);
        let child = match command.spawn() {
            Ok(child) => child,
            Err(e) => return Ok(Err(format!("no process can be started for the task: {e}"))),
        };
        self.write_processes(Some(ProcessId::of(child.id().cast_signed())), false)?;
        Ok(Ok(Task::Cold(child, ended)))
    }

    /// Asks the zygote at `socket` for a process.
    async fn fork(&self, socket: &Path, input: &OwnedFd) -> io::Result<Task> {
        let stream = UnixStream::connect(socket)?;
        let request = serde_json::to_vec(&Request {
            args: &self.record.args,
            env: self.record.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect(),
            cwd: &self.dir.join("work"),
        })?;
        let len = u32::try_from(request.len()).map_err(io::Error::other)?.to_be_bytes();
        let null = fs::File::open("/dev/null")?;
        let fds = [null.as_raw_fd(), input.as_raw_fd(), input.as_raw_fd()];
        let control = [ControlMessage::ScmRights(&fds)];
        sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&len)], &control, MsgFlags::empty(), None)?;
        stream.set_nonblocking(true)?;
        let (read, mut write) = tokio::net::UnixStream::from_std(stream)?.into_split();
        write.write_all(&request).await?;
        let mut answers = BufReader::new(read).lines();
        let id = match Answer::read(&mut answers).await? {
            Answer::Pid(pid) => ProcessId::of(pid),
            Answer::Cold(why) => return Err(io::Error::other(why)),
            Answer::Exit(_) | Answer::Signal(_) => return Err(io::Error::other("the forked process died at once")),
        };
        self.write_processes(Some(id), true)?;
        write.write_all(b"G").await?;
        Ok(Task::Warm { id, answers, _open: write })
    }

    fn write_processes(&self, task: Option<ProcessId>, warm: bool) -> io::Result<()> {
        let shim = ProcessId::of(std::process::id().cast_signed());
        dir::write_json(&self.dir.join("shim.json"), &ShimRecord { shim, task, warm })
    }

    /// Tells the worker that waits for it, if it still lives, and lets go of the pipe to it. The credentials are in the
    /// task's own memory now.
    fn say_started(&self) {
        fs::remove_file(self.dir.join("task.json")).ok();
        let mut out = io::stdout();
        let line = match &self.cold {
            Some(why) => format!("started cold: {}\n", why.replace('\n', " ")),
            None => "started\n".to_owned(),
        };
        out.write_all(line.as_bytes()).and_then(|()| out.flush()).ok();
        if let Ok(null) = fs::OpenOptions::new().write(true).open("/dev/null") {
            dup2_stdout(null).ok();
        }
    }

    /// Copies the output of the task until it ends, and stops it when asked to.
    async fn follow(&mut self, task: &mut Task, mut output: Receiver, mut stop: SignalStream) -> io::Result<Exit> {
        let grace = Duration::from_millis(self.record.grace_ms);
        let mut chunk = vec![0; 64 * 1024];
        let mut open = true;
        let mut kill_at: Option<Instant> = None;
        let mut show_at: Option<Instant> = None;
        let mut stopped = false;
        let how = loop {
            show_at = self.log.has_partial().then(|| show_at.unwrap_or_else(|| Instant::now() + PARTIAL));
            tokio::select! {
                read = output.read(&mut chunk), if open => match read {
                    Ok(n @ 1..) => self.log.push(&chunk[..n], clock::now()),
                    Ok(0) | Err(_) => open = false,
                },
                () = reached(show_at) => {
                    show_at = None;
                    self.log.flush_partial(clock::now());
                }
                _ = stop.recv(), if !stopped => {
                    stopped = true;
                    task.signal(Signal::SIGTERM);
                    kill_at = Some(Instant::now() + grace);
                }
                () = reached(kill_at) => {
                    kill_at = None;
                    task.signal_group(Signal::SIGKILL);
                }
                how = task.ended() => break how,
            }
        };
        // What the task left running in its group ends with it, as it would in a container.
        task.kill_rest(stopped);
        let drain = async {
            while open {
                match output.read(&mut chunk).await {
                    Ok(n @ 1..) => self.log.push(&chunk[..n], clock::now()),
                    Ok(0) | Err(_) => open = false,
                }
            }
        };
        timeout(DRAIN, drain).await.ok();
        Ok(match (how, fs::read_to_string(self.dir.join("exec-error"))) {
            (Exit::Code(127), Ok(why)) => Exit::NotStarted(why),
            (how, _) => how,
        })
    }

    /// Says how the task ended: the last act.
    fn end(self, how: Exit) -> io::Result<()> {
        let now = clock::now();
        self.log.finish(now);
        let oom = matches!(how, Exit::Signal(9) | Exit::Code(137)) && system::oom_kills() > self.oom_kills;
        let record = ExitRecord { how, started_us: self.started_us, ended_us: now.as_microsecond(), oom };
        dir::write_json_durably(&self.dir.join("exit.json"), &record)
    }
}

/// Waits until `at`; for ever if there is no such time.
async fn reached(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Task {
    fn pid(&self) -> i32 {
        match self {
            Self::Cold(child, _) => child.id().cast_signed(),
            Self::Warm { id, .. } => id.pid,
        }
    }

    /// Waits for the end of the task, which stays uncollected. May be dropped and called again.
    async fn ended(&mut self) -> Exit {
        match self {
            Self::Cold(child, ended) => loop {
                if let Some(how) = look_at(child) {
                    return how;
                }
                ended.recv().await;
            },
            Self::Warm { id, answers, .. } => match Answer::read(answers).await {
                Ok(Answer::Exit(code)) => Exit::Code(code),
                Ok(Answer::Signal(signal)) => Exit::Signal(signal),
                // The zygote is dead; its task lives on, and there is nobody left to be told of its end.
                _ => {
                    while id.is_alive() {
                        sleep(LOOK).await;
                    }
                    Exit::Unknown
                }
            },
        }
    }

    /// Signals the task's first process while its number is its own.
    fn signal(&self, signal: Signal) {
        match self {
            Self::Cold(..) => {
                nix::sys::signal::kill(Pid::from_raw(self.pid()), signal).ok();
            }
            Self::Warm { id, .. } => id.signal(signal),
        }
    }

    /// Signals the task's process group while its number is its own.
    fn signal_group(&self, signal: Signal) {
        match self {
            Self::Cold(..) => system::signal_group(self.pid(), signal),
            // Asked first, since the zygote may have died and let the number go.
            Self::Warm { id, .. } if id.is_alive() => system::signal_group(id.pid, signal),
            Self::Warm { .. } => {}
        }
    }

    /// Kills what the ended task left behind: its process group, and if it was told to stop its whole session.
    fn kill_rest(&mut self, session: bool) {
        nix::sys::signal::killpg(Pid::from_raw(self.pid()), Signal::SIGKILL).ok();
        if session {
            system::kill_session(self.pid());
        }
        if let Self::Cold(child, _) = self {
            child.wait().ok();
        }
    }
}

/// How our child ended, if it has. It stays uncollected, so that its number is not given to another process.
#[cfg(target_os = "linux")]
fn look_at(child: &mut Child) -> Option<Exit> {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};

    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(Pid::from_raw(child.id().cast_signed())), flags) {
        Ok(WaitStatus::Exited(_, code)) => Some(Exit::Code(code)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(Exit::Signal(signal as i32)),
        Ok(_) => None,
        Err(_) => Some(Exit::Unknown),
    }
}

/// How our child ended, if it has.
#[cfg(not(target_os = "linux"))]
fn look_at(child: &mut Child) -> Option<Exit> {
    use std::os::unix::process::ExitStatusExt;

    match child.try_wait() {
        Ok(Some(status)) => Some(status.code().map_or(Exit::Signal(status.signal().unwrap_or(0)), Exit::Code)),
        Ok(None) => None,
        Err(_) => Some(Exit::Unknown),
    }
}

/// What a zygote is asked.
#[derive(Serialize)]
struct Request<'a> {
    args: &'a [String],
    env: std::collections::BTreeMap<&'a str, &'a str>,
    cwd: &'a Path,
}

/// What a zygote answers.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Pid(i32),
    Cold(String),
    Exit(i32),
    Signal(i32),
}

impl Answer {
    async fn read(answers: &mut Answers) -> io::Result<Self> {
        let line = answers.next_line().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(serde_json::from_str(&line)?)
    }
}
