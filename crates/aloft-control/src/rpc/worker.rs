//! `aloft.v1.WorkerService`: workers of other processes, each on a stream of its own with a [`Seat`].

use std::{sync::Arc, time::Duration};

use aloft_core::{Scope, WorkerId};
use aloft_plane::{
    ControlPlane as _, LeasedAttempt, ReportError,
    wire::{self, MAX_HANDED, MAX_REPORTS},
};
use aloft_proto::v1::{self, work_request::Kind as Asked, work_response::Kind as Said};
use connectrpc::{ConnectError, ErrorCode, RequestContext, ServiceStream};
use futures::{
    FutureExt as _, StreamExt as _, TryStreamExt as _,
    future::{BoxFuture, join_all},
    stream::unfold,
};
use http::header;
use subtle::ConstantTimeEq as _;
use tokio::{sync::mpsc, time::Instant};

use super::{
    convert,
    error::{Answer, bounded, invalid, stopping, wire as on_wire},
};
use crate::{Control, Guest, Seat};

/// Longest wait for the first message of a stream.
const FIRST: Duration = Duration::from_secs(10);

/// How long one call of the dispatcher waits. Long, since it costs nothing; finite, so that no call is for ever.
const LEASE_WAIT: Duration = Duration::from_secs(20);

/// Messages that wait for a worker that is slow to read. Each holds up to [`MAX_HANDED`] attempts, within its room.
const UNREAD: usize = 4;

/// Longest text that a worker says of itself, in bytes.
const MAX_TEXT: usize = 4096;

type Message = Result<v1::WorkResponse, ConnectError>;

/// Refuses who does not have the token.
fn check_token(control: &Control, ctx: &RequestContext) -> Answer<()> {
    let Some(token) = control.settings().worker_token.read() else {
        let message = "this server takes no workers of other processes: set worker.token or worker.tokenPath in its \
                       configuration, and the same in theirs";
        return Err(ConnectError::new(ErrorCode::FailedPrecondition, message));
    };
    let shown = ctx.header(header::AUTHORIZATION).map(http::HeaderValue::as_bytes).unwrap_or_default();
    let shown = shown.strip_prefix(b"Bearer ").unwrap_or_default();
    if shown.ct_eq(token.as_bytes()).into() {
        return Ok(());
    }
    let message = if shown.is_empty() {
        "a worker shows a token, and this one shows none: set worker.token or worker.tokenPath in its configuration"
    } else {
        "the token of this worker is not the one of this server: give both the same worker.token or worker.tokenPath"
    };
    Err(ConnectError::new(ErrorCode::Unauthenticated, message))
}

/// Who says hello, and in which version of the protocol.
fn guest(hello: v1::Hello) -> Answer<(Guest, u32)> {
    let Some(protocol) = wire::agree(&wire::PROTOCOL, hello.protocol_min, hello.protocol_max) else {
        let message = format!(
            "this server ({}) speaks versions {} to {} of the protocol of workers, this worker ({}) {} to {}: \
             upgrade the older of them",
            env!("CARGO_PKG_VERSION"),
            wire::PROTOCOL.start(),
            wire::PROTOCOL.end(),
            super::error::shortened(&hello.version),
            hello.protocol_min,
            hello.protocol_max
        );
        return Err(ConnectError::new(ErrorCode::FailedPrecondition, message));
    };
    // A name of a worker follows the rules of names of projects.
    Scope::new("org", &hello.worker, "domain")
        .map_err(|e| invalid(format!("hello.worker: {:?} {}", e.value, e.reason)))?;
    for (field, text) in
        [("hello.version", &hello.version), ("hello.host", &hello.host), ("hello.attempts", &hello.attempts)]
    {
        bounded(field, text, MAX_TEXT)?;
    }
    let guest = Guest {
        id: WorkerId(hello.worker),
        process: hello.process,
        known: hello.known,
        version: hello.version,
        host: hello.host,
        attempts: hello.attempts,
        draining: hello.draining,
    };
    Ok((guest, protocol))
}

/// One session of one worker.
pub(super) async fn work(
    control: Control,
    ctx: RequestContext,
    mut requests: ServiceStream<v1::WorkRequest>,
) -> Answer<ServiceStream<v1::WorkResponse>> {
    check_token(&control, &ctx)?;
    let first = tokio::time::timeout(FIRST, requests.next()).await.ok().flatten().transpose()?;
    let Some(Asked::Hello(hello)) = first.and_then(|r| r.kind) else {
        return Err(invalid("kind: the first message of a worker is hello"));
    };
    let (guest, protocol) = guest(*hello)?;
    let (say, said) = mpsc::channel(UNREAD);
    let seat = Arc::new(control.seat(guest));
    let session = Session { control, seat, say, handed: 0, upto: 0 };
    tokio::spawn(session.run(requests, protocol));
    Ok(unfold(said, |mut said| async move { said.recv().await.map(|message: Message| (message, said)) }).boxed())
}

struct Session {
    control: Control,
    seat: Arc<Seat>,
    say: mpsc::Sender<Message>,
    /// Attempts that were handed out on this stream, and how many may be.
    handed: u64,
    upto: u64,
}

/// Why a session ends.
enum Over {
    /// There is nobody to tell.
    Gone,
    /// The worker is told.
    Told(ConnectError),
}

impl Session {
    async fn run(mut self, requests: ServiceStream<v1::WorkRequest>, protocol: u32) {
        let Over::Told(error) = self.serve(requests, protocol).await else { return };
        // The worker may be gone as well; it finds out for itself.
        let _ = tokio::time::timeout(FIRST, self.say.send(Err(error))).await;
    }

    async fn serve(&mut self, mut requests: ServiceStream<v1::WorkRequest>, protocol: u32) -> Over {
        let lease = self.control.settings().lease;
        if let Err(over) = self.welcome(protocol).await {
            return over;
        }
        let mut heard = Instant::now();
        // Kept from turn to turn: what is leased is handed out, whatever else happens meanwhile.
        let mut leasing: Option<BoxFuture<'static, Leased>> = None;
        loop {
            if leasing.is_none()
                && let max @ 1.. = self.room().min(MAX_HANDED)
            {
                let seat = Arc::clone(&self.seat);
                leasing = Some(async move { seat.lease(max, LEASE_WAIT).await }.boxed());
            }
            let step = tokio::select! {
                biased;
                () = self.control.stopping().cancelled() => return Over::Told(stopping()),
                () = self.say.closed() => return Over::Gone,
                request = requests.next() => Step::Heard(request),
                () = tokio::time::sleep_until(heard + lease) => return Over::Told(silent(lease)),
                () = self.seat.over() => return Over::Told(given_up()),
                revoked = self.seat.revoked() => Step::Revoked(revoked),
                leased = under_way(&mut leasing) => Step::Leased(leased),
            };
            let goes_on = match step {
                Step::Heard(Some(Ok(request))) => {
                    heard = Instant::now();
                    match self.answer(request).await {
                        Ok(goes_on) => goes_on,
                        Err(error) => return Over::Told(error),
                    }
                }
                Step::Heard(None | Some(Err(_))) => return Over::Gone,
                Step::Revoked(Ok(leases)) if leases.is_empty() => true,
                Step::Revoked(Ok(leases)) => {
                    let leases = leases.iter().map(wire::lease_to_wire).collect();
                    self.say(Said::Revoked(Box::new(v1::Revoked { leases, ..Default::default() }))).await
                }
                Step::Leased(Ok(attempts)) => {
                    self.handed += attempts.len() as u64;
                    self.hand(&attempts, |m| Said::Handed(Box::new(m))).await
                }
                Step::Revoked(Err(error)) | Step::Leased(Err(error)) => return Over::Told(refused(error)),
            };
            if !goes_on {
                return Over::Gone;
            }
        }
    }

    /// Begins the worker's session, and says what it holds.
    async fn welcome(&self, protocol: u32) -> Result<(), Over> {
        let said = |goes_on| if goes_on { Ok(()) } else { Err(Over::Gone) };
        let lease_ms = u64::try_from(self.control.settings().lease.as_millis()).unwrap_or(u64::MAX);
        let welcome = v1::Welcome { protocol, lease_ms, ..Default::default() };
        let mut welcome = Some(Said::Welcome(Box::new(welcome)));
        let mut parts = self.seat.reclaim_in_parts();
        while let Some(held) = parts.try_next().await.map_err(|error| Over::Told(refused(error)))? {
            if let Some(welcome) = welcome.take() {
                said(self.say(welcome).await)?;
            }
            said(self.hand(&held, |m| Said::Held(Box::new(m))).await)?;
        }
        said(self.say(Said::HeldEnd(Box::default())).await)
    }

    /// How many more attempts may be handed out.
    fn room(&self) -> usize {
        usize::try_from(self.upto.saturating_sub(self.handed)).unwrap_or(usize::MAX)
    }

    /// Does what the worker asks; `false` if it is gone.
    async fn answer(&mut self, request: v1::WorkRequest) -> Answer<bool> {
        match request.kind {
            Some(Asked::Room(room)) => {
                self.upto = self.upto.max(room.upto);
                self.seat.has_room(self.room() as u64);
                Ok(true)
            }
            Some(Asked::Beat(_)) => {
                self.beat().await?;
                Ok(self.say(Said::Alive(Box::default())).await)
            }
            Some(Asked::Drain(_)) => {
                self.seat.drain();
                self.beat().await?;
                Ok(self.say(Said::Alive(Box::default())).await)
            }
            Some(Asked::Hello(_)) => Err(invalid("kind: hello is the first message only")),
            // Of a later version; what it means is not needed.
            None => Ok(true),
        }
    }

    async fn beat(&self) -> Answer<()> {
        match self.seat.beat().await {
            Ok(true) => Ok(()),
            Ok(false) => Err(given_up()),
            // It was heard, though not by the others; the next one may be written.
            Err(error) => {
                tracing::warn!(%error, "cannot note that a worker lives");
                Ok(())
            }
        }
    }

    async fn hand(&self, attempts: &[LeasedAttempt], kind: impl Fn(v1::HandOut) -> Said) -> bool {
        for message in wire::handed_to_wire(attempts) {
            if !self.say(kind(message)).await {
                return false;
            }
        }
        true
    }

    /// Says something; `false` if nobody reads it for as long as a lease.
    async fn say(&self, kind: Said) -> bool {
        let message = v1::WorkResponse { kind: Some(kind), ..Default::default() };
        let sent = tokio::time::timeout(self.control.settings().lease, self.say.send(Ok(message))).await;
        matches!(sent, Ok(Ok(())))
    }
}

/// Waits for what is under way; for ever if nothing is.
async fn under_way<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(running) => {
            let done = running.await;
            *future = None;
            done
        }
        None => std::future::pending().await,
    }
}

type Leased = Result<Vec<LeasedAttempt>, ReportError>;

enum Step {
    Heard(Option<Result<v1::WorkRequest, ConnectError>>),
    Revoked(Result<Vec<aloft_plane::LeaseRef>, ReportError>),
    Leased(Leased),
}

fn silent(lease: Duration) -> ConnectError {
    ConnectError::new(ErrorCode::Aborted, format!("this worker was not heard of for {lease:?}; connect again"))
}

fn given_up() -> ConnectError {
    let message = "this worker's session is over, and what it held has gone to others: stop it, and connect again";
    ConnectError::new(ErrorCode::Unavailable, message)
}

fn refused(error: ReportError) -> ConnectError {
    match error {
        ReportError::Displaced(why) => ConnectError::new(ErrorCode::Aborted, why),
        ReportError::Unavailable(why) => ConnectError::new(ErrorCode::Unavailable, why),
        ReportError::Over => ConnectError::new(ErrorCode::Unavailable, "connect again"),
    }
}

/// Takes reports, each for itself.
pub(super) async fn report(
    control: &Control,
    ctx: &RequestContext,
    request: v1::ReportRequest,
) -> Answer<v1::ReportResponse> {
    check_token(control, ctx)?;
    if request.reports.len() > MAX_REPORTS {
        let count = request.reports.len();
        return Err(invalid(format!("reports: are {count}, more than the {MAX_REPORTS} of one request")));
    }
    let mut reports = Vec::with_capacity(request.reports.len());
    for (place, report) in request.reports.into_iter().enumerate() {
        reports.push(wire::report_from_wire(report).map_err(|e| invalid(format!("reports[{place}]: {e}")))?);
    }
    // All at once, so that they share commits.
    let each = reports.into_iter().map(|(lease, progress)| async move {
        let (result, reason) = match control.take_report(&lease, progress).await {
            Ok(()) => (v1::ReportResult::Taken, String::new()),
            Err(e @ (ReportError::Over | ReportError::Displaced(_))) => (v1::ReportResult::Over, e.to_string()),
            Err(ReportError::Unavailable(why)) => (v1::ReportResult::TryAgain, why),
        };
        v1::ReportAnswer { result: result.into(), reason, ..Default::default() }
    });
    Ok(v1::ReportResponse { answers: join_all(each).await, ..Default::default() })
}

/// The workers that are known.
pub(super) async fn list(control: &Control, _: v1::ListWorkersRequest) -> Answer<v1::ListWorkersResponse> {
    let store = control.store();
    let mut workers = Vec::new();
    for record in store.workers().await.map_err(on_wire)? {
        let held = store.held_count(&record.id).await.map_err(on_wire)?;
        let state = match (record.expired, record.about.draining) {
            (true, _) => v1::WorkerState::Lost,
            (false, true) => v1::WorkerState::Draining,
            (false, false) => v1::WorkerState::Active,
        };
        let known = record.session != 0;
        workers.push(v1::Worker {
            held,
            name: record.id.0,
            state: state.into(),
            version: record.about.version,
            host: record.about.host,
            since: known.then(|| convert::timestamp(record.about.since)).into(),
            heard_at: known.then(|| convert::timestamp(record.about.heard_at)).into(),
            ..Default::default()
        });
    }
    Ok(v1::ListWorkersResponse { workers, ..Default::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> v1::Hello {
        v1::Hello { protocol_min: 1, protocol_max: 1, worker: "w-1".into(), ..Default::default() }
    }

    #[test]
    fn who_says_hello_is_checked() {
        assert_eq!(guest(hello()).unwrap().1, 1);
        let newer = v1::Hello { protocol_min: 2, protocol_max: 3, version: "9".into(), ..hello() };
        let error = guest(newer).unwrap_err();
        assert_eq!(error.code, ErrorCode::FailedPrecondition);
        let message = error.message.unwrap_or_default();
        assert!(
            message.contains("1 to 1") && message.contains("(9) 2 to 3") && message.contains("upgrade"),
            "{message}"
        );
        for bad in ["", ".x", "a/b", "a\nb", &"x".repeat(64)] {
            let error = guest(v1::Hello { worker: bad.to_owned(), ..hello() }).unwrap_err();
            assert!(error.message.unwrap_or_default().starts_with("hello.worker: "), "{bad:?}");
        }
        assert!(guest(v1::Hello { host: "x".repeat(MAX_TEXT + 1), ..hello() }).is_err());
    }
}
