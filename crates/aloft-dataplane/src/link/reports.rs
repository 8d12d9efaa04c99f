//! Reports in batches: those that wait while others are under way go together.

use std::{sync::Arc, time::Duration};

use aloft_core::Progress;
use aloft_plane::{LeaseRef, ReportError, wire};
use aloft_proto::v1;
use connectrpc::{
    Spec, StreamType,
    client::{CallOptions, call_unary},
};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::connection::Connection;

const REPORT: &str = "/aloft.v1.WorkerService/Report";

/// Most reports of one request: enough to share commits, few enough to be answered soon.
const BATCH: usize = 256;

/// Most requests under way at a time.
const AT_ONCE: usize = 4;

/// Longest wait for an answer. Whoever reports tries again.
const PATIENCE: Duration = Duration::from_secs(30);

/// A report and who waits for what becomes of it.
struct Waiting {
    report: v1::AttemptReport,
    done: oneshot::Sender<Result<(), ReportError>>,
}

/// Sends reports.
pub(super) struct Reports(mpsc::Sender<Waiting>);

impl Reports {
    /// Sends them over whichever connection there is.
    pub(super) fn start(connection: watch::Receiver<Option<Arc<Connection>>>) -> Self {
        // Whoever reports waits for the answer, so what waits here is bounded by attempts; beyond this they wait to enter.
        let (send, receive) = mpsc::channel(4 * BATCH);
        tokio::spawn(deliver(connection, receive));
        Self(send)
    }

    pub(super) async fn send(&self, lease: &LeaseRef, progress: &Progress) -> Result<(), ReportError> {
        let closed = || ReportError::Unavailable("the line is closed".to_owned());
        let (done, answer) = oneshot::channel();
        let report = wire::report_to_wire(lease, progress);
        self.0.send(Waiting { report, done }).await.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }
}

async fn deliver(connection: watch::Receiver<Option<Arc<Connection>>>, mut waiting: mpsc::Receiver<Waiting>) {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let mut batch = Vec::new();
        if waiting.recv_many(&mut batch, BATCH).await == 0 {
            return;
        }
        let connection = connection.borrow().clone();
        tokio::spawn(async move {
            let (reports, done): (Vec<_>, Vec<_>) = batch.into_iter().map(|w| (w.report, w.done)).unzip();
            match ask(connection, reports).await {
                Ok(answers) if answers.len() == done.len() => {
                    for (done, answer) in done.into_iter().zip(answers) {
                        let _ = done.send(understood(answer));
                    }
                }
                Ok(_) => tell_all(done, "the control plane did not answer every report"),
                Err(why) => tell_all(done, &why),
            }
            drop(permit);
        });
    }
}

fn tell_all(all: Vec<oneshot::Sender<Result<(), ReportError>>>, why: &str) {
    for done in all {
        // Whoever does not wait any more has stopped.
        let _ = done.send(Err(ReportError::Unavailable(why.to_owned())));
    }
}

async fn ask(
    connection: Option<Arc<Connection>>,
    reports: Vec<v1::AttemptReport>,
) -> Result<Vec<v1::ReportAnswer>, String> {
    let connection = connection.ok_or("there is no connection to a control plane")?;
    connection.lives().map_err(|e| e.to_string())?;
    let (transport, config) = connection.caller();
    let spec = Spec::client(REPORT, StreamType::Unary);
    let request = v1::ReportRequest { reports, ..Default::default() };
    let options = CallOptions::default().with_timeout(PATIENCE);
    let answer = call_unary::<_, _, v1::ReportResponseView<'static>>(transport, config, spec, request, options);
    match answer.await {
        Ok(answer) => Ok(answer.into_owned().answers),
        Err(error) => Err(super::deepest(&error)),
    }
}

fn understood(answer: v1::ReportAnswer) -> Result<(), ReportError> {
    match answer.result.as_known() {
        Some(v1::ReportResult::Taken) => Ok(()),
        Some(v1::ReportResult::Over) => Err(ReportError::Over),
        _ => Err(ReportError::Unavailable(answer.reason)),
    }
}
