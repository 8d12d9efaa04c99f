//! Reporting on one attempt: in order, and until it is taken.

use std::{sync::Arc, time::Duration};

use aloft_core::{AttemptOutcome, Progress};
use aloft_plane::{ControlPlane, LeaseRef, ReportError};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// First and longest pause before a report is sent again. A control plane that restarts is back within a second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long the news that an attempt is being started is held back. A warm task runs within it, which makes that news
/// superfluous, and every report is a commit.
const HOLD: Duration = Duration::from_millis(50);

/// Sends what is reported on one attempt. Cheap to clone; sending never waits.
#[derive(Clone)]
pub(super) struct Reporter(mpsc::UnboundedSender<Message>);

enum Message {
    Progress(Progress),
    End(Box<AttemptOutcome>, oneshot::Sender<()>),
}

impl Reporter {
    /// A reporter for `lease`. `over` is cancelled when the control plane says that the attempt is over; `stop` makes it
    /// give up.
    pub(super) fn start(
        control: Arc<dyn ControlPlane>,
        lease: LeaseRef,
        over: CancellationToken,
        stop: CancellationToken,
    ) -> Self {
        // At most three kinds of progress and an end are ever sent, so the queue is bounded by its use.
        let (send, receive) = mpsc::unbounded_channel();
        tokio::spawn(deliver(control, lease, over, stop, receive));
        Self(send)
    }

    /// Reports progress; what is overtaken by later progress may be left out.
    pub(super) fn progress(&self, progress: Progress) {
        self.0.send(Message::Progress(progress)).ok();
    }

    /// Reports the end. Returns true when it is taken or does not matter any more, false when the worker stops first.
    pub(super) async fn end(&self, outcome: AttemptOutcome) -> bool {
        let (done, taken) = oneshot::channel();
        self.0.send(Message::End(Box::new(outcome), done)).ok();
        taken.await.is_ok()
    }
}

async fn deliver(
    control: Arc<dyn ControlPlane>,
    lease: LeaseRef,
    over: CancellationToken,
    stop: CancellationToken,
    mut messages: mpsc::UnboundedReceiver<Message>,
) {
    let mut next = None;
    loop {
        let message = match next.take() {
            Some(message) => message,
            None => match messages.recv().await {
                Some(message) => message,
                None => return,
            },
        };
        match message {
            Message::Progress(progress) => {
                // Where it is now makes where it was before superfluous, except that it ran.
                if progress == Progress::Initializing {
                    next = tokio::time::timeout(HOLD, messages.recv()).await.ok().flatten();
                }
                if let Some(Message::Progress(_)) = next {
                    continue;
                }
                if send(&*control, &lease, progress, Some(&over), &stop).await == Sent::Stopped {
                    return;
                }
            }
            Message::End(outcome, done) => {
                let sent = send(&*control, &lease, Progress::Ended(*outcome), Some(&over), &stop).await;
                if sent != Sent::Stopped {
                    done.send(()).ok();
                }
                return;
            }
        }
    }
}

/// What became of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is durable.
    Taken,
    /// The attempt is over by another hand.
    Refused,
    /// The worker stopped before.
    Stopped,
}

/// Sends one report until it is taken or refused. `over` is cancelled when it is refused, and makes it superfluous.
pub(super) async fn send(
    control: &dyn ControlPlane,
    lease: &LeaseRef,
    progress: Progress,
    over: Option<&CancellationToken>,
    stop: &CancellationToken,
) -> Sent {
    let is_over = || over.is_some_and(CancellationToken::is_cancelled);
    let mut pause = PAUSE.0;
    loop {
        if is_over() {
            return Sent::Refused;
        }
        #[cfg(feature = "failpoints")]
        fail::fail_point!("worker-before-report", |_| std::process::abort());
        match control.report(lease, progress.clone()).await {
            Ok(()) => {
                #[cfg(feature = "failpoints")]
                fail::fail_point!("worker-after-report", |_| std::process::abort());
                return Sent::Taken;
            }
            Err(ReportError::Over | ReportError::Displaced(_)) => {
                if let Some(over) = over {
                    over.cancel();
                }
                return Sent::Refused;
            }
            Err(ReportError::Unavailable(why)) => {
                tracing::warn!(attempt = %lease.id, "a report was not taken, it is sent again: {why}");
            }
        }
        let cancelled = async {
            match over {
                Some(over) => over.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = cancelled => {}
            () = stop.cancelled() => return Sent::Stopped,
        }
        pause = (pause * 2).min(PAUSE.1);
    }
}
