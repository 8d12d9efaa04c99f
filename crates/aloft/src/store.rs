//! Opening the store that the configuration names.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    pin::Pin,
    sync::Arc,
};

use aloft_store::{Store, StoreError};
use aloft_store_sqlite::SqliteStore;
use nix::fcntl::{Flock, FlockArg};

use crate::{
    clock::clock,
    config::Place,
    datadir::{DataDir, on_disk},
    exit::{Exit, Kind},
};

/// A store that is open.
pub(crate) struct Opened {
    /// The store.
    pub(crate) store: Arc<dyn Store>,
    flush: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Held while the store is open: one process writes a SQLite file.
    _lock: Option<Flock<File>>,
}

impl Opened {
    /// Waits until everything is committed that was submitted, also by those who no longer wait for it.
    pub(crate) async fn close(self) {
        self.flush.await;
    }
}

/// Opens the store at `place`. A file in `dir` is locked with it.
///
/// # Errors
/// What ends the process, with the exit code of its own.
pub(crate) async fn open_store(place: &Place, dir: &DataDir) -> Result<Opened, Exit> {
    match place {
        Place::Sqlite(path) => {
            let lock = if path.starts_with(dir.path()) { None } else { Some(lock(path)?) };
            let sqlite = SqliteStore::open(path, Arc::new(clock)).map_err(|error| {
                let mut exit = store_exit(&error);
                if matches!(error, StoreError::Corrupt(_)) {
                    exit = Exit::new(Kind::Corrupt, format!("{error} (the file is {})", path.display()));
                }
                exit
            })?;
            let store = Arc::new(sqlite.clone());
            Ok(Opened { store, flush: Box::pin(async move { sqlite.flush().await }), _lock: lock })
        }
        Place::Postgres(postgres) => Err(Exit::new(
            Kind::Config,
            format!("{}: this Aloft has SQLite only; name a file with --database-url sqlite:///path", postgres.shown()),
        )),
    }
}

/// Makes the directory of a database beside the data directory, and keeps other processes off.
fn lock(path: &Path) -> Result<Flock<File>, Exit> {
    let beside = path.with_added_extension("lock");
    let trouble = |e: std::io::Error| on_disk(&format!("cannot use the database {}", path.display()), &e);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(trouble)?;
    }
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(beside).map_err(trouble)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        let path = path.display();
        Exit::new(
            Kind::Locked,
            format!("the database {path} is used by another aloft; stop that one, or name another file"),
        )
    })
}

/// What ends the process when the store fails at the start.
pub(crate) fn store_exit(error: &StoreError) -> Exit {
    let kind = match error {
        StoreError::Full(_) => Kind::DiskFull,
        StoreError::Corrupt(_) => Kind::Corrupt,
        StoreError::Newer { .. } => Kind::Newer,
        StoreError::Unavailable(_) | StoreError::BadToken | StoreError::Expired | StoreError::TooManyRows => {
            Kind::DataDir
        }
    };
    Exit::new(kind, error.to_string())
}
