//! A worker's line to a control plane elsewhere: [`ControlPlane`] over `aloft.v1.WorkerService`.
//!
//! ```text
//! reclaim ──▶ connect to one of the servers, hello ──▶ welcome, held …, held_end
//! lease   ──▶ room ──────────────────────────────────▶ handed
//! revoked ◀─────────────────────────────────────────── revoked
//! report  ──▶ batches, each an RPC of its own ───────▶ taken, over or try again, one by one
//!             beat, three to a lease ────────────────▶ alive
//! ```
//!
//! There is one connection at a time. When it breaks, [`Link::lease`] says so, and the worker reclaims, which makes the
//! next one. What was handed out and did not arrive is named then; what was reported and not acknowledged is reported again.

mod connection;
mod reports;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aloft_core::Progress;
use aloft_plane::{ControlPlane, HeldParts, LeaseRef, LeasedAttempt, ReportError};
use async_trait::async_trait;
use connectrpc::ErrorCode;
use futures::{StreamExt as _, stream};
use http::Uri;
use tokio::{sync::watch, time::timeout};

use self::{connection::Connection, reports::Reports};

/// The shared token of workers, read for each connection.
pub type Token = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

/// What a line is made of.
#[derive(Clone)]
pub struct LinkConfig {
    /// Where control planes of one database answer: `http` URLs. Each is as good as the other.
    pub urls: Vec<Uri>,
    /// What the worker proves itself by.
    pub token: Token,
    /// The worker's name; the same after a restart.
    pub worker: String,
    /// Version of this program, for people.
    pub version: String,
    /// Name of this machine, for people.
    pub host: String,
    /// The data directory, in which the worker's attempts are.
    pub attempts: String,
}

impl fmt::Debug for LinkConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinkConfig").field("urls", &self.urls).field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// Why a server does not take this worker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is not reached, or not now: trying again may help.
    #[error("{0}")]
    Away(String),
    /// It says no, and will until somebody changes a configuration or upgrades a program.
    #[error("{0}")]
    Never(String),
    /// Another process has this worker's name.
    #[error("{0}")]
    Displaced(String),
}

impl From<Refused> for ReportError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Away(why) | Refused::Never(why) => Self::Unavailable(why),
            Refused::Displaced(why) => Self::Displaced(why),
        }
    }
}

/// A line to a control plane elsewhere.
pub struct Link {
    config: LinkConfig,
    /// Number of this process.
    process: u64,
    known: AtomicBool,
    draining: AtomicBool,
    /// Which server is asked next.
    next: AtomicUsize,
    connection: watch::Sender<Option<Arc<Connection>>>,
    reports: Reports,
}

impl Link {
    /// A line that is not connected yet.
    pub fn new(config: LinkConfig) -> Self {
        let connection = watch::Sender::new(None);
        Self {
            process: rand::random(),
            known: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            // Workers that are started together do not all ask the same server.
            next: AtomicUsize::new(rand::random_range(0..config.urls.len().max(1))),
            reports: Reports::start(connection.subscribe()),
            connection,
            config,
        }
    }

    /// Takes no more work. What there is goes on.
    pub async fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        let connection = self.connection.borrow().clone();
        if let Some(connection) = connection {
            connection.drain().await;
        }
    }

    /// The server that it is connected to, now and whenever that changes.
    pub fn connected(&self) -> Option<String> {
        self.connection.borrow().as_ref().filter(|c| c.lives().is_ok()).map(|c| c.server().to_string())
    }

    /// Connects, and answers what this worker holds.
    ///
    /// # Errors
    /// [`Refused`] if the server that was asked does not take it. The next call asks the next server.
    pub async fn connect(&self) -> Result<Vec<LeasedAttempt>, Refused> {
        let old = self.connection.send_replace(None);
        drop(old);
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let url = match self.config.urls.len() {
            0 => return Err(Refused::Never("no control plane is named".to_owned())),
            many => &self.config.urls[turn % many],
        };
        let says = (self.process, self.known.load(Ordering::SeqCst), self.draining.load(Ordering::SeqCst));
        let (connection, held) = Connection::open(&self.config, url, says).await?;
        self.known.store(true, Ordering::SeqCst);
        // A server that works is asked again.
        self.next.store(turn, Ordering::Relaxed);
        tracing::info!(server = %url, held = held.len(), "connected to the control plane as worker {}", self.config.worker);
        self.connection.send_replace(Some(Arc::new(connection)));
        if self.draining.load(Ordering::SeqCst) {
            self.drain().await;
        }
        Ok(held)
    }

    fn current(&self) -> Result<Arc<Connection>, ReportError> {
        let none = || ReportError::Unavailable("there is no connection to a control plane".to_owned());
        self.connection.borrow().clone().ok_or_else(none)
    }
}

#[async_trait]
impl ControlPlane for Link {
    async fn lease(&self, max: usize, wait: Duration) -> Result<Vec<LeasedAttempt>, ReportError> {
        let connection = self.current()?;
        match timeout(wait, connection.handed(max)).await {
            Ok(handed) => handed.inspect_err(|_| {
                // The server may be the one that is gone.
                self.next.fetch_add(1, Ordering::Relaxed);
            }),
            Err(_) => Ok(Vec::new()),
        }
    }

    fn reclaim_in_parts(&self) -> HeldParts<'_> {
        stream::once(async { self.connect().await.map_err(ReportError::from) }).boxed()
    }

    async fn report(&self, lease: &LeaseRef, progress: Progress) -> Result<(), ReportError> {
        self.reports.send(lease, &progress).await
    }

    async fn revoked(&self) -> Result<Vec<LeaseRef>, ReportError> {
        let mut connections = self.connection.subscribe();
        loop {
            let connection = connections.borrow_and_update().clone();
            let told = async {
                match &connection {
                    Some(connection) => connection.revoked().await,
                    None => None,
                }
            };
            if let Some(leases) = told.await {
                return Ok(leases);
            }
            // Nobody tells any more: what is missed is told by the next reclaim.
            if connections.changed().await.is_err() {
                return Err(ReportError::Unavailable("the line is closed".to_owned()));
            }
        }
    }
}

/// A refusal in words for who set up the worker.
fn refusal(url: &Uri, error: &connectrpc::ConnectError) -> Refused {
    let said = error.message.as_deref().filter(|m| !m.is_empty()).unwrap_or(error.code.as_str());
    match error.code {
        ErrorCode::Unauthenticated | ErrorCode::FailedPrecondition | ErrorCode::InvalidArgument => {
            Refused::Never(format!("the control plane at {url} refuses this worker: {said}"))
        }
        ErrorCode::Unimplemented | ErrorCode::NotFound => Refused::Never(format!(
            "{url} takes no workers ({said}): is it an Aloft server of this version? Name another with --control-plane-url"
        )),
        ErrorCode::Aborted => Refused::Displaced(said.to_owned()),
        _ => Refused::Away(format!("the control plane at {url} cannot be reached: {}", deepest(error))),
    }
}

/// What is at the bottom of an error: the layers above only say which of them passed it on.
fn deepest(error: &connectrpc::ConnectError) -> String {
    let mut bottom: &dyn std::error::Error = error;
    while let Some(below) = bottom.source() {
        bottom = below;
    }
    bottom.to_string()
}

#[cfg(test)]
mod tests {
    use connectrpc::ConnectError;

    use super::*;

    #[test]
    fn refusals_that_last_are_told_from_those_that_pass() {
        let url: Uri = "http://localhost:8080".parse().unwrap();
        let refused = |code| refusal(&url, &ConnectError::new(code, "because"));
        for code in [ErrorCode::Unauthenticated, ErrorCode::FailedPrecondition, ErrorCode::Unimplemented] {
            let Refused::Never(why) = refused(code) else { panic!("{code:?} lasts") };
            assert!(why.contains("localhost:8080") && why.contains("because"), "{why}");
        }
        assert!(matches!(refused(ErrorCode::Unavailable), Refused::Away(why) if why.ends_with("because")));
        assert_eq!(refused(ErrorCode::Aborted), Refused::Displaced("because".to_owned()));
    }

    #[test]
    fn the_token_does_not_print() {
        let config = LinkConfig {
            urls: Vec::new(),
            token: Arc::new(|| Ok("hunter2".to_owned())),
            worker: "w".into(),
            version: String::new(),
            host: String::new(),
            attempts: String::new(),
        };
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
