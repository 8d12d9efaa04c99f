//! The data directory: what is in it, and that one process at a time uses it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::fcntl::{Flock, FlockArg};

use crate::{
    config::{Config, Role},
    exit::{Exit, Kind},
};

/// An environment variable that is text.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Where `aloft dev` keeps everything when nobody says where.
pub(crate) fn default_data_dir() -> Result<PathBuf, Exit> {
    Config::of(Role::Dev).data_path(Role::Dev, variable).map_err(|e| Exit::new(Kind::DataDir, e))
}

/// A data directory that this process has to itself.
pub(crate) struct DataDir {
    path: PathBuf,
    /// Held until the process ends; the kernel lets go of it whatever the end is.
    _lock: Flock<File>,
}

impl DataDir {
    /// Creates and locks the directory.
    ///
    /// # Errors
    /// What ends the process, with the exit code of its own.
    pub(crate) fn open(path: &Path) -> Result<Self, Exit> {
        let trouble = |e: io::Error| on_disk(&format!("cannot use the data directory {}", path.display()), &e);
        fs::create_dir_all(path).map_err(trouble)?;
        // Secrets and users' data: for this user only.
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(trouble)?;
        let path = path.canonicalize().map_err(trouble)?;
        let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(path.join("lock"));
        let lock = lock(file.map_err(trouble)?).map_err(|pid| {
            Exit::new(
                Kind::Locked,
                format!(
                    "the data directory {} is used by another aloft (process {}); stop that one, or choose another \
                     directory with --data-dir",
                    path.display(),
                    if pid.is_empty() { "unknown" } else { &pid }
                ),
            )
        })?;
        lock.set_len(0).map_err(trouble)?;
        (&*lock).write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(trouble)?;
        Ok(Self { path, _lock: lock })
    }

    /// The path of something in the directory.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The path itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The port chosen before, when it was left to Aloft. Running tasks know it, so it must stay.
    pub(crate) fn remembered_port(&self) -> Option<u16> {
        fs::read_to_string(self.join("port")).ok()?.trim().parse().ok()
    }

    /// Remembers the port chosen.
    pub(crate) fn remember_port(&self, port: u16) -> Result<(), Exit> {
        self.write("port", format!("{port}\n").as_bytes(), 0o600)
    }

    /// The secret that credentials are derived from; made once. It is in the data directory unless `elsewhere` says where,
    /// for servers that share it.
    pub(crate) fn master_secret(&self, elsewhere: Option<&Path>) -> Result<[u8; 32], Exit> {
        let path = elsewhere.map_or_else(|| self.join("master.key"), Path::to_owned);
        let read = || match fs::read(&path) {
            Ok(bytes) => bytes.try_into().map(Some).map_err(|_| {
                Exit::new(Kind::DataDir, format!("{} is not 32 bytes long; restore it from a backup", path.display()))
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(on_disk(&format!("cannot read {}", path.display()), &e)),
        };
        if let Some(secret) = read()? {
            return Ok(secret);
        }
        let made: [u8; 32] = rand::random();
        put(&path, &made, 0o600, Put::Once).map_err(|e| on_disk(&format!("cannot write {}", path.display()), &e))?;
        // Of several that begin at once, one made it.
        read()?.ok_or_else(|| Exit::new(Kind::DataDir, format!("{} was removed as it was made", path.display())))
    }

    /// The name that the worker of this directory takes leases by. A directory goes on under the one it began with; those
    /// of the time before names were chosen all began with `dev`.
    pub(crate) fn worker_name(&self) -> Result<String, Exit> {
        let path = self.join("worker");
        match fs::read_to_string(&path) {
            Ok(name) => return Ok(name.trim().to_owned()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(on_disk(&format!("cannot read {}", path.display()), &e)),
        }
        let name =
            if self.join("attempts").exists() { "dev".to_owned() } else { format!("w-{:016x}", rand::random::<u64>()) };
        self.write("worker", format!("{name}\n").as_bytes(), 0o600)?;
        Ok(name)
    }

    /// Replaces a small file, all or nothing.
    pub(crate) fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), Exit> {
        let path = self.join(name);
        put(&path, content, mode, Put::Always).map_err(|e| on_disk(&format!("cannot write {}", path.display()), &e))
    }

    /// Removes a small file, if it is there.
    pub(crate) fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.join(name));
    }
}

/// Whether a file that is there is replaced or stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    Always,
    Once,
}

/// Puts a small file in its place, all or nothing.
fn put(path: &Path, content: &[u8], mode: u32, how: Put) -> io::Result<()> {
    let next = path.with_added_extension(format!("{}.next", std::process::id()));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&next)?;
    file.write_all(content)?;
    file.sync_all()?;
    match how {
        Put::Always => fs::rename(&next, path)?,
        Put::Once => {
            let linked = fs::hard_link(&next, path);
            fs::remove_file(&next)?;
            linked.or_else(|e| if e.kind() == io::ErrorKind::AlreadyExists { Ok(()) } else { Err(e) })?;
        }
    }
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// What to tell about a failed operation on a file of the data directory.
pub(crate) fn on_disk(what: &str, error: &io::Error) -> Exit {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Exit::new(
            Kind::DiskFull,
            format!("{what}: the disk is full; free some space, or choose another disk with --data-dir"),
        ),
        io::ErrorKind::PermissionDenied => Exit::new(
            Kind::DataDir,
            format!("{what}: permission denied; choose a directory of your own with --data-dir"),
        ),
        _ => Exit::new(Kind::DataDir, format!("{what}: {error}; choose another directory with --data-dir")),
    }
}

/// How long what is left of a process that was killed may hold its lock: a child that it was just starting.
const LEFT_OVER: Duration = Duration::from_secs(5);

/// Locks a file, or says which process holds it.
fn lock(mut file: File) -> Result<Flock<File>, String> {
    let begun = Instant::now();
    loop {
        file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((file, _)) => file,
        };
        let mut pid = String::new();
        let _ = file.rewind().and_then(|()| file.read_to_string(&mut pid));
        let pid = pid.trim().to_owned();
        let lives = pid.is_empty() || Path::new("/proc").join(&pid).exists();
        if lives || begun.elapsed() > LEFT_OVER {
            return Err(pid);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_and_names_are_made_once() {
        let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
        let [one, other] = dirs.each_ref().map(|dir| DataDir::open(dir.path()).expect("it is free"));
        let secret = |dir: &DataDir, path| dir.master_secret(path).expect("a secret");
        assert_eq!(secret(&one, None), secret(&one, None));
        assert_ne!(secret(&one, None), secret(&other, None));
        let shared = one.join("shared.key");
        assert_eq!(secret(&one, Some(&shared)), secret(&other, Some(&shared)));
        let name = |dir: &DataDir| dir.worker_name().expect("a name");
        assert_eq!(name(&one), name(&one));
        assert_ne!(name(&one), name(&other));
        let old = tempfile::tempdir().expect("a directory");
        fs::create_dir(old.path().join("attempts")).expect("a directory");
        assert_eq!(name(&DataDir::open(old.path()).expect("it is free")), "dev");
    }

    #[test]
    fn a_lock_of_a_process_that_is_gone_is_waited_for_and_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let first = DataDir::open(dir.path()).expect("the first one");
        let begun = Instant::now();
        assert_eq!(DataDir::open(dir.path()).err().map(|e| e.code()), Some(10));
        assert!(begun.elapsed() < LEFT_OVER, "its process lives: nobody waits");
        fs::write(dir.path().join("lock"), "999999999").expect("the number of a process that is gone");
        std::thread::scope(|scope| {
            scope.spawn(move || {
                std::thread::sleep(Duration::from_millis(100));
                drop(first);
            });
            assert!(DataDir::open(dir.path()).is_ok(), "what was left of it ends");
        });
    }
}
