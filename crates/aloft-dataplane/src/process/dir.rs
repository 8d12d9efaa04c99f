//! The directory of one attempt, and the small files in it that outlive every process of Aloft.
//!
//! | file | written by | holds |
//! |---|---|---|
//! | `launch.json` | the worker, before anything is started | whose attempt it is; its presence means "may have been started" |
//! | `task.json` | the worker | the command and its environment, credentials included: mode 0600, gone once the task runs |
//! | `lock` | held by the shim as long as it lives | nothing; the lock passes from the worker to the shim without a gap |
//! | `shim.json` | the shim, before the task may run | the process ids, and since when they are theirs |
//! | `log` | the shim | what the task printed ([`crate::logs`]) |
//! | `exit.json` | the shim, as its last act | how the task ended |
//! | `work/` | the task | its working directory; gone after the end |
//!
//! Formats are read by later versions of Aloft (a restart may be an upgrade): fields are added, never changed.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use aloft_core::{ActionName, LeaseToken, RunKey, Scope};
use aloft_plane::AttemptId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::clock;

/// Where the attempts of one data plane have their directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptDirs {
    root: PathBuf,
    scratch: PathBuf,
}

impl AttemptDirs {
    /// Attempts below `<data_dir>/attempts`.
    ///
    /// Their `TMPDIR` lies elsewhere, below the machine's own temporary directory, because programs put Unix sockets there
    /// and the path of a socket must not be longer than 107 bytes.
    pub fn new(data_dir: &Path) -> Self {
        let id = hex(&Sha256::digest(data_dir.as_os_str().as_encoded_bytes())[..4]);
        Self {
            root: data_dir.join("attempts"),
            scratch: std::env::temp_dir().join(format!("aloft-{}-{id}", nix::unistd::getuid())),
        }
    }

    /// Makes the directories that all attempts share.
    ///
    /// # Errors
    /// If they cannot be made, or somebody else could put files into the temporary one.
    pub fn prepare(&self) -> io::Result<()> {
        for dir in [&self.root, &self.root.join(".live"), &self.scratch, &self.sockets()] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        }
        // The temporary directory is everybody's, and the name of ours can be guessed.
        let owned = fs::symlink_metadata(&self.scratch)?;
        if !owned.is_dir() || owned.uid() != nix::unistd::getuid().as_raw() || owned.mode() & 0o022 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!(
                    "{} belongs to somebody else or can be written by others; remove it, or set TMPDIR to a directory \
                     of your own",
                    self.scratch.display()
                ),
            ));
        }
        Ok(())
    }

    /// Where sockets lie. Short, because the path of a socket must be.
    pub(super) fn sockets(&self) -> PathBuf {
        self.scratch.join("run")
    }

    /// The file that tells which inline attempts sleep. No organisation's name begins with a dot.
    pub(crate) fn inline_journal(&self) -> PathBuf {
        self.root.join(".inline")
    }

    /// The directory of one attempt.
    pub fn dir(&self, id: &AttemptId) -> AttemptDir {
        // Names of these types cannot hold a slash and cannot begin with a dot, so this path stays below `root` and
        // cannot meet `.live`.
        let scope = &id.run.scope;
        let path = [&scope.org, &scope.project, &scope.domain, &id.run.name]
            .into_iter()
            .fold(self.root.clone(), |path, segment| path.join(segment))
            .join(id.action.as_str())
            .join(id.attempt.to_string());
        let short = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..8]);
        AttemptDir {
            live: self.root.join(".live").join(&short),
            scratch: self.scratch.join(short),
            root: self.root.clone(),
            path,
        }
    }

    /// The attempts that were launched and not settled.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn live(&self) -> io::Result<Vec<LaunchRecord>> {
        let entries = match fs::read_dir(self.root.join(".live")) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut found = Vec::new();
        for entry in entries {
            // A mark that a crash tore is of an attempt that was not launched: the launch comes after it.
            if let Some(record) = read_json(&entry?.path())? {
                found.push(record);
            }
        }
        Ok(found)
    }
}

/// The directory of one attempt. See the [module](self) for what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptDir {
    path: PathBuf,
    root: PathBuf,
    live: PathBuf,
    scratch: PathBuf,
}

impl AttemptDir {
    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The task's working directory.
    pub fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// The task's `TMPDIR`.
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The log.
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The file that exists once the attempt has ended.
    pub fn exit(&self) -> PathBuf {
        self.path.join("exit.json")
    }

    /// Makes the directories and says, durably, that the attempt may have been started from now on. Returns the lock that
    /// its shim will hold.
    ///
    /// # Errors
    /// If the disk is full, the directory cannot be written, or a shim holds it.
    pub fn begin(&self, launch: &LaunchRecord) -> io::Result<File> {
        // Its own directory, those that are made for it, and the one that these are made in.
        let missing = self.path.ancestors().take_while(|dir| !dir.exists()).count();
        let changed = self.path.ancestors().take(missing + 1);
        let make = |dir: &Path| fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        make(&self.path)?;
        make(&self.root.join(".live"))?;
        // Before anything is touched that a living task might use.
        let lock = self.try_lock()?.ok_or_else(|| io::Error::other("a process of this attempt still runs"))?;
        for fresh in [self.work(), self.scratch.clone()] {
            remove_dir(&fresh)?;
            make(&fresh)?;
        }
        // Left by a run of the same attempt that is repeated.
        for file in ["shim.json", "exec-error", "exit.json"] {
            remove_file(&self.path.join(file))?;
        }
        // A run that was given up leaves its name to another, whose log must not begin with its own.
        if self.read_launch()?.is_none_or(|before| before.token != launch.token) {
            remove_file(&self.log())?;
        }
        write_json(&self.live, launch)?;
        // The only record that must outlive the machine's power: after a new boot its presence alone decides.
        write_json_durably(&self.path.join("launch.json"), launch)?;
        for dir in changed {
            File::open(dir)?.sync_all()?;
        }
        Ok(lock)
    }

    /// Writes what the shim has to start.
    ///
    /// # Errors
    /// If the disk is full or the directory cannot be written.
    pub(super) fn write_task(&self, task: &TaskRecord) -> io::Result<()> {
        write_json(&self.path.join("task.json"), task)
    }

    /// Takes the lock, to hand to the shim. `None` if a shim holds it.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(super) fn try_lock(&self) -> io::Result<Option<File>> {
        let lock = self.lock_file()?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// The file that the shim holds locked as long as it lives.
    pub(super) fn lock_file(&self) -> io::Result<File> {
        OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(self.path.join("lock"))
    }

    /// What the files say.
    ///
    /// # Errors
    /// If they cannot be read; what is absent or torn is `None`.
    pub fn state(&self) -> io::Result<DirState> {
        let launch: Option<LaunchRecord> = read_json(&self.path.join("launch.json"))?;
        // The lock before the records: a shim that ends in between leaves its exit record for us to see.
        let held = launch.is_some() && self.try_lock()?.is_none();
        Ok(DirState {
            same_boot: launch.as_ref().is_some_and(|l| l.boot_id == boot_id()),
            launch,
            held,
            shim: read_json(&self.path.join("shim.json"))?,
            exit: read_json(&self.exit())?,
        })
    }

    /// How the attempt ended, if the shim lived to say it.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read_exit(&self) -> io::Result<Option<ExitRecord>> {
        read_json(&self.exit())
    }

    pub(super) fn read_launch(&self) -> io::Result<Option<LaunchRecord>> {
        read_json(&self.path.join("launch.json"))
    }

    pub(super) fn read_shim(&self) -> io::Result<Option<ShimRecord>> {
        read_json(&self.path.join("shim.json"))
    }

    /// What the shim said when it failed; empty if it did not.
    pub(super) fn shim_errors(&self) -> String {
        fs::read_to_string(self.path.join("shim.err")).unwrap_or_default()
    }

    /// Says how the attempt ended, in place of a shim that did not.
    ///
    /// # Errors
    /// If the disk is full or the directory cannot be written.
    pub fn write_exit(&self, exit: &ExitRecord) -> io::Result<()> {
        write_json(&self.exit(), exit)
    }

    /// Removes all but the log and the exit record. The last step of an attempt's life; done twice it does no harm.
    ///
    /// # Errors
    /// If something cannot be removed.
    pub fn settle(&self) -> io::Result<()> {
        for file in ["task.json", "shim.json", "exec-error", "shim.err"] {
            remove_file(&self.path.join(file))?;
        }
        remove_dir(&self.work())?;
        remove_dir(&self.scratch)?;
        // The lock file goes before the marks that make anybody look at it.
        remove_file(&self.path.join("lock"))?;
        remove_file(&self.path.join("launch.json"))?;
        remove_file(&self.live)
    }
}

/// What the files of an attempt say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirState {
    /// It may have been started.
    pub launch: Option<LaunchRecord>,
    /// The machine has not been restarted since.
    pub same_boot: bool,
    /// A shim lives, or is about to.
    pub held: bool,
    /// The task may have run: the shim wrote this before it let it.
    pub shim: Option<ShimRecord>,
    /// It ended, and this is how.
    pub exit: Option<ExitRecord>,
}

/// Whose attempt it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaunchRecord {
    /// The scope of its run.
    pub scope: Scope,
    /// The name of its run.
    pub run: String,
    /// The action.
    pub action: ActionName,
    /// The attempt's number.
    pub attempt: u32,
    /// The lease that it was started under.
    pub token: LeaseToken,
    /// Which start of the machine this was.
    pub boot_id: String,
    /// How long it has after SIGTERM, in milliseconds, if that is not what the executor gives all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

impl LaunchRecord {
    /// A record of an attempt that is launched now.
    pub fn new(id: &AttemptId, token: LeaseToken) -> Self {
        Self {
            scope: id.run.scope.clone(),
            run: id.run.name.clone(),
            action: id.action.clone(),
            attempt: id.attempt,
            token,
            boot_id: boot_id(),
            grace_ms: None,
        }
    }

    /// The attempt.
    pub fn id(&self) -> AttemptId {
        let run = RunKey { scope: self.scope.clone(), name: self.run.clone() };
        AttemptId { run, action: self.action.clone(), attempt: self.attempt }
    }
}

/// What the shim has to start. Holds credentials, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct TaskRecord {
    /// The program, an absolute path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// All of its environment.
    pub env: Vec<(String, String)>,
    /// The command that ran the shim, to which its own arguments are added.
    pub shim: Vec<String>,
    /// The socket of a zygote to ask for a process; `None` starts one cold.
    pub zygote: Option<PathBuf>,
    /// How long the task has after SIGTERM before it is killed.
    pub grace_ms: u64,
    /// Lines for the log before the task's own.
    pub notes: Vec<String>,
}

/// The processes of a running attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShimRecord {
    /// The shim.
    pub shim: ProcessId,
    /// The task's first process, which leads its session and process group. `None` while it is being started cold.
    pub task: Option<ProcessId>,
    /// Whether a zygote made it.
    pub warm: bool,
}

/// A process, told from others that have had or will have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it was started, in clock ticks since the machine's start; 0 if the system does not say.
    pub started: u64,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitRecord {
    /// How.
    pub how: Exit,
    /// When the task was started, in microseconds since the epoch; 0 if it was not.
    #[serde(default)]
    pub started_us: i64,
    /// When it ended.
    #[serde(default)]
    pub ended_us: i64,
    /// Whether the system killed some process for want of memory meanwhile.
    #[serde(default)]
    pub oom: bool,
}

impl ExitRecord {
    /// A record of an end that is seen now.
    pub fn now(how: Exit) -> Self {
        Self { how, started_us: 0, ended_us: clock::now().as_microsecond(), oom: false }
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// It could not be started, and why.
    NotStarted(String),
    /// Nobody was left to see it.
    Unknown,
}

/// Reads a record; `None` if it is absent or was torn by a crash.
fn read_json<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes a record whole or not at all. Only its owner can read it.
pub(super) fn write_json<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    replace(path, record, |_| Ok(()))
}

/// Writes a record whole or not at all, so that it outlives the machine's power.
pub(super) fn write_json_durably<T: Serialize>(path: &Path, record: &T) -> io::Result<()> {
    replace(path, record, File::sync_all)
}

fn replace<T: Serialize>(path: &Path, record: &T, finish: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    finish(&file)?;
    fs::rename(&fresh, path)
}

pub(super) fn read_task(dir: &Path) -> io::Result<TaskRecord> {
    Ok(serde_json::from_slice(&fs::read(dir.join("task.json"))?)?)
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn remove_dir(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Which start of the machine this is; empty where the system does not say.
pub(super) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|s| s.trim().to_owned()).unwrap_or_default()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
