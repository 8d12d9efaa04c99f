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

    /// The secret that credentials are derived from; made once.
    pub(crate) fn master_secret(&self) -> Result<[u8; 32], Exit> {
        let path = self.join("master.key");
        match fs::read(&path) {
            Ok(bytes) => bytes.try_into().map_err(|_| {
                Exit::new(Kind::DataDir, format!("{} is not 32 bytes long; restore it from a backup", path.display()))
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let secret: [u8; 32] = rand::random();
                self.write("master.key", &secret, 0o600)?;
                Ok(secret)
            }
            Err(e) => Err(on_disk(&format!("cannot read {}", path.display()), &e)),
        }
    }

    /// Replaces a small file, all or nothing.
    pub(crate) fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), Exit> {
        let (path, next) = (self.join(name), self.join(&format!("{name}.next")));
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(mode).open(&next)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&next, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|e| on_disk(&format!("cannot write {}", path.display()), &e))
    }

    /// Removes a small file, if it is there.
    pub(crate) fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.join(name));
    }
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
