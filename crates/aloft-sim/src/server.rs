//! A real control plane in this process: the router, the store on a file, and time that only the simulation moves.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use aloft_control::{Control, Guest, Limits, Seat, Settings};
use aloft_core::{Time, WorkerId};
use aloft_plane::ControlPlane as _;
use aloft_store::StoreError;
use aloft_store_sqlite::SqliteStore;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{door::Door, plane::MemoryPlane};

/// Virtual time. Cheap to clone; every clone is the same one.
#[derive(Clone)]
pub struct VirtualClock(Arc<AtomicI64>);

impl VirtualClock {
    /// A clock that stands at `at`.
    pub fn new(at: Time) -> Self {
        Self(Arc::new(AtomicI64::new(at.as_micros())))
    }

    /// What it shows.
    pub fn now(&self) -> Time {
        Time::from_micros(self.0.load(Ordering::SeqCst))
    }

    /// Moves it forward.
    pub fn advance(&self, millis: u64) {
        let micros = i64::try_from(millis).unwrap_or(0).saturating_mul(1000);
        self.0.fetch_add(micros, Ordering::SeqCst);
    }

    fn reader(&self) -> Arc<dyn Fn() -> Time + Send + Sync> {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

/// What callbacks are signed with; the same in every life of a server.
const CALLBACK_KEY: [u8; 32] = [7; 32];

/// A control plane that can be stopped and started again on the same file.
pub struct Server {
    path: PathBuf,
    clock: VirtualClock,
    plane: Arc<MemoryPlane>,
    live: Live,
}

struct Live {
    store: Arc<SqliteStore>,
    control: Control,
    stopping: CancellationToken,
    door: Door,
    /// The workers' lines to this life of the server.
    seats: Mutex<HashMap<String, Arc<Seat>>>,
}

impl Server {
    /// Starts on the database at `path`, which is created if it is not there.
    ///
    /// # Errors
    /// [`StoreError`] if it cannot be opened.
    pub async fn start(path: &Path, clock: VirtualClock) -> Result<Self, StoreError> {
        let plane = Arc::new(MemoryPlane::default());
        let live = Self::live(path, &clock, &plane)?;
        live.control.ensure_domains().await?;
        Ok(Self { path: path.to_owned(), clock, plane, live })
    }

    fn live(path: &Path, clock: &VirtualClock, plane: &Arc<MemoryPlane>) -> Result<Live, StoreError> {
        let store = Arc::new(SqliteStore::open(path, clock.reader())?);
        let stopping = CancellationToken::new();
        let settings = Settings::local("http://localhost:0".to_owned());
        let control =
            Control::new(store.clone(), plane.clone(), clock.reader(), settings, stopping.clone(), CALLBACK_KEY);
        let door = Door::Inside(aloft_control::service(aloft_control::router(&control), Limits::default()));
        Ok(Live { store, control, stopping, door, seats: Mutex::default() })
    }

    /// Stops and starts again. What was under way in the store is finished first, as it is when a process ends in order;
    /// the clients' requests and streams are cut off.
    ///
    /// # Errors
    /// [`StoreError`] if the database cannot be opened again.
    pub async fn restart(&mut self, between: impl FnOnce(&Path)) -> Result<(), StoreError> {
        self.live.stopping.cancel();
        self.live.store.flush().await;
        between(&self.path);
        // The old store goes when the last of its streams has heard that the server stops.
        self.live = Self::live(&self.path, &self.clock, &self.plane)?;
        Ok(())
    }

    /// The way in for clients.
    pub fn door(&self) -> &Door {
        &self.live.door
    }

    /// What data planes talk to, and the steps of the reconcilers.
    pub fn control(&self) -> &Control {
        &self.live.control
    }

    /// A worker's line. It takes its seat when it first uses it, and whenever it reclaims.
    pub async fn seat(&self, worker: &str) -> Arc<Seat> {
        let seated = self.live.seats.lock().get(worker).cloned();
        if let Some(seat) = seated {
            return seat;
        }
        let guest = Guest {
            id: WorkerId(worker.to_owned()),
            process: 1,
            known: false,
            version: String::new(),
            host: String::new(),
            attempts: String::new(),
            draining: false,
        };
        let seat = Arc::new(self.live.control.seat(guest));
        // Whoever needs the answer asks again.
        let _ = seat.reclaim().await;
        self.live.seats.lock().insert(worker.to_owned(), seat.clone());
        seat
    }

    /// Where the users' data lies.
    pub fn plane(&self) -> &MemoryPlane {
        &self.plane
    }

    /// The store, to compare what it holds with what is served.
    pub fn store(&self) -> &Arc<SqliteStore> {
        &self.live.store
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The server's clock.
    pub fn clock(&self) -> &VirtualClock {
        &self.clock
    }
}
