//! Opening the store that the configuration names.

use std::{
    fs::{File, OpenOptions},
    path::Path,
    pin::Pin,
    sync::Arc,
};

use aloft_store::{Store, StoreError};
use aloft_store_postgres::{Options, PostgresStore};
use aloft_store_sqlite::SqliteStore;
use nix::fcntl::{Flock, FlockArg};

use crate::{
    clock::clock,
    config::{Place, Postgres},
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
        Place::Postgres(place) => {
            let postgres = PostgresStore::open(place.url.expose(), &postgres_options(place), Arc::new(clock))
                .await
                .map_err(|error| {
                    let exit = store_exit(&error);
                    Exit::new(exit.kind(), format!("{error} (the database is {})", place.shown()))
                })?;
            let store = Arc::new(postgres.clone());
            Ok(Opened { store, flush: Box::pin(async move { postgres.flush().await }), _lock: None })
        }
    }
}

/// What the configuration says about a Postgres.
pub(crate) fn postgres_options(place: &Postgres) -> Options {
    let password = place.password.clone().map(|password| {
        let read = move || password.read().map(|secret| secret.expose().to_owned());
        Arc::new(read) as aloft_store_postgres::Password
    });
    Options {
        password,
        connections: place.pool.max_open_connections as usize,
        idle: place.pool.max_idle_connections as usize,
        lifetime: place.pool.max_connection_lifetime.0,
        ..Options::default()
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
        StoreError::Unavailable(_)
        | StoreError::TurnOver
        | StoreError::BadToken
        | StoreError::Expired
        | StoreError::TooManyRows => Kind::DataDir,
    };
    Exit::new(kind, error.to_string())
}
