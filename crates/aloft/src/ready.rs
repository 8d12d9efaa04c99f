//! Whether this process should be sent requests: not while it starts or ends, nor while its store does not answer.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use aloft_dataplane::link::Link;
use aloft_store::Store;
use axum::{
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::sync::Mutex;

/// Longest wait for the store. Kubernetes asks with a limit of one second unless told otherwise.
const PATIENCE: Duration = Duration::from_millis(900);

/// How long the store's answer counts, so that whoever asks often costs it nothing.
const COUNTS_FOR: Duration = Duration::from_millis(500);

/// The state of one process. Cheap to clone; every clone is the same one.
#[derive(Clone, Default)]
pub(crate) struct Readiness(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Set once everything is wired.
    stands_on: OnceLock<StandsOn>,
    draining: AtomicBool,
    last: Mutex<Option<(Instant, Result<(), String>)>>,
}

/// What a process needs to do its work.
enum StandsOn {
    Store(Arc<dyn Store>),
    Link(Arc<Link>),
}

impl Readiness {
    /// Everything is wired, over `store`.
    pub(crate) fn started(&self, store: Arc<dyn Store>) {
        let _ = self.0.stands_on.set(StandsOn::Store(store));
    }

    /// Everything is wired, over a line to a control plane.
    pub(crate) fn connected(&self, link: Arc<Link>) {
        let _ = self.0.stands_on.set(StandsOn::Link(link));
    }

    /// The process ends.
    pub(crate) fn draining(&self) {
        self.0.draining.store(true, Ordering::Release);
    }

    /// Why not to send requests here.
    pub(crate) async fn ask(&self) -> Result<(), String> {
        if self.0.draining.load(Ordering::Acquire) {
            return Err("draining".to_owned());
        }
        let store = match self.0.stands_on.get() {
            None => return Err("starting".to_owned()),
            Some(StandsOn::Link(link)) => {
                return link.connected().map(drop).ok_or_else(|| "not connected to a control plane".to_owned());
            }
            Some(StandsOn::Store(store)) => store,
        };
        // Those who ask at the same time share one look.
        let mut last = self.0.last.lock().await;
        if let Some((at, answer)) = &*last
            && at.elapsed() < COUNTS_FOR
        {
            return answer.clone();
        }
        let answer = match tokio::time::timeout(PATIENCE, store.last_run_change()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(format!("the store does not answer: {error}")),
            Err(_) => Err(format!("the store has not answered within {} ms", PATIENCE.as_millis())),
        };
        *last = Some((Instant::now(), answer.clone()));
        answer
    }

    /// The answer of `/readyz`.
    pub(crate) async fn answer(self) -> Response {
        match self.ask().await {
            Ok(()) => healthy().await,
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, named(), format!("not ready: {why}\n")).into_response(),
        }
    }
}

/// The answer of `/healthz`: the process runs.
pub(crate) async fn healthy() -> Response {
    (named(), "ok\n").into_response()
}

/// Tells who looks at a port that it is ours.
fn named() -> [(header::HeaderName, &'static str); 1] {
    [(header::SERVER, concat!("aloft/", env!("CARGO_PKG_VERSION")))]
}

#[cfg(test)]
mod tests {
    use aloft_core::Time;
    use aloft_store_sqlite::SqliteStore;

    use super::*;

    #[tokio::test]
    async fn ready_is_between_starting_and_draining() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("a.db"), Arc::new(|| Time::from_micros(0))).unwrap();
        let readiness = Readiness::default();
        assert_eq!(readiness.ask().await, Err("starting".to_owned()));
        readiness.started(Arc::new(store));
        assert_eq!(readiness.ask().await, Ok(()));
        readiness.draining();
        assert_eq!(readiness.ask().await, Err("draining".to_owned()));
    }

    #[tokio::test]
    async fn not_ready_while_the_store_does_not_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let store = SqliteStore::open(&path, Arc::new(|| Time::from_micros(0))).unwrap();
        // Its readers open the file when they are needed, and then it is another.
        for name in ["a.db", "a.db-wal", "a.db-shm"] {
            std::fs::remove_file(dir.path().join(name)).unwrap();
        }
        std::fs::write(&path, "this is no database, whatever its name says").unwrap();
        let readiness = Readiness::default();
        readiness.started(Arc::new(store));
        let why = readiness.ask().await.unwrap_err();
        assert!(why.starts_with("the store does not answer: "), "{why}");
        let answer = readiness.answer().await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
