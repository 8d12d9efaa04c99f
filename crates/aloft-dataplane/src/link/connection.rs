//! One connection of a worker to a control plane: what comes in is sorted, and the worker is said to live.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use aloft_plane::{
    LeaseRef, LeasedAttempt, ReportError,
    wire::{self, PROTOCOL},
};
use aloft_proto::v1::{self, work_request::Kind as Ask, work_response::Kind as Said};
use connectrpc::{
    ConnectError, Spec, StreamType,
    client::{
        BidiRecvHalf, BidiSendHalf, CallOptions, ClientConfig, Http2Connection, SharedHttp2Connection, call_bidi_stream,
    },
};
use http::{HeaderValue, Uri, header};
use tokio::{
    sync::{Mutex, mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{LinkConfig, Refused, refusal};

const WORK: &str = "/aloft.v1.WorkerService/Work";

/// Longest wait for a connection, and for each message before the worker works. The control plane may have to requeue what
/// the worker held before it welcomes it.
const OPENING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// Longest wait for a server to hear that this worker takes no more work.
const DRAINED: Duration = Duration::from_secs(2);

/// Largest message that is taken: a task specification of the largest request a server takes, and what lies around it.
const MAX_MESSAGE: usize = 64 << 20;

/// Requests that may wait on one connection; reports and the stream share it.
const BOUND: usize = 64;

/// Messages of the server that wait for the worker. Hand-outs are within its room.
const UNREAD: usize = 1024;

type Sends = BidiSendHalf<v1::WorkRequest>;
type Hears = BidiRecvHalf<hyper::body::Incoming, v1::WorkResponseView<'static>>;

/// A connection. It is closed when this is dropped.
pub(super) struct Connection {
    server: Uri,
    transport: SharedHttp2Connection,
    config: ClientConfig,
    asks: mpsc::Sender<Ask>,
    handed: Mutex<mpsc::Receiver<Vec<LeasedAttempt>>>,
    revoked: Mutex<mpsc::Receiver<Vec<LeaseRef>>>,
    /// Attempts that the worker has taken, and how many it has said it would take.
    taken: AtomicU64,
    upto: AtomicU64,
    draining: AtomicBool,
    /// How many signs of life the server has answered.
    answered: watch::Receiver<u64>,
    /// Why the connection is over, once it is.
    over: Over,
    _closes: DropGuard,
}

/// Says once that a connection is over, and why.
#[derive(Clone, Default)]
struct Over {
    token: CancellationToken,
    why: std::sync::Arc<std::sync::OnceLock<String>>,
}

impl Over {
    fn say(&self, why: impl Into<String>) {
        let _ = self.why.set(why.into());
        self.token.cancel();
    }

    fn error(&self) -> ReportError {
        let why = self.why.get().cloned().unwrap_or_else(|| "the connection was closed".to_owned());
        ReportError::Unavailable(why)
    }
}

impl Connection {
    /// Connects to the server at `url` and says hello; with what the worker holds.
    pub(super) async fn open(
        link: &LinkConfig,
        url: &Uri,
        (process, known, draining): (u64, bool, bool),
    ) -> Result<(Self, Vec<LeasedAttempt>), Refused> {
        let token = (link.token)().map_err(Refused::Away)?;
        let mut shown = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|_| Refused::Never("the token of this worker has characters that no header holds".to_owned()))?;
        shown.set_sensitive(true);
        let config = ClientConfig::new(url.clone())
            .with_default_header(header::AUTHORIZATION, shown)
            .with_default_max_message_size(MAX_MESSAGE);
        let connecting = Http2Connection::builder().adaptive_window(true).connect_plaintext(url.clone());
        let transport = match timeout(OPENING.0, connecting).await {
            Ok(connected) => connected.map_err(|e| refusal(url, &e))?.shared(BOUND),
            Err(_) => return Err(slow(url, OPENING.0)),
        };
        let spec = Spec::client(WORK, StreamType::BidiStream);
        let stream = call_bidi_stream::<_, v1::WorkRequest, v1::WorkResponseView<'static>>(
            &transport,
            &config,
            spec,
            CallOptions::default(),
        );
        let (mut sends, mut hears) = stream.await.map_err(|e| refusal(url, &e))?.into_split();
        let hello = Ask::Hello(Box::new(v1::Hello {
            protocol_min: *PROTOCOL.start(),
            protocol_max: *PROTOCOL.end(),
            worker: link.worker.clone(),
            process,
            known,
            version: link.version.clone(),
            host: link.host.clone(),
            attempts: link.attempts.clone(),
            draining,
            ..Default::default()
        }));
        // If this does not get through, what is heard says why.
        let _ = sends.send(request(hello)).await;
        let (lease, held) = welcomed(url, &mut hears).await?;

        let (asks, asked) = mpsc::channel(16);
        let ((hand, handed), (revoke, revoked)) = (mpsc::channel(UNREAD), mpsc::channel(UNREAD));
        let (over, closes) = (Over::default(), CancellationToken::new());
        let (answers, answered) = watch::channel(0);
        tokio::spawn(send(sends, asked, lease, over.clone(), closes.clone()));
        tokio::spawn(hear(hears, Sorted { hand, revoke, answers }, lease, over.clone(), closes.clone()));
        let connection = Self {
            server: url.clone(),
            transport,
            config,
            asks,
            handed: Mutex::new(handed),
            revoked: Mutex::new(revoked),
            taken: AtomicU64::new(0),
            upto: AtomicU64::new(0),
            draining: AtomicBool::new(draining),
            answered,
            over,
            _closes: closes.drop_guard(),
        };
        Ok((connection, held))
    }

    pub(super) fn server(&self) -> &Uri {
        &self.server
    }

    /// How to call the server beside the stream.
    pub(super) fn caller(&self) -> (&SharedHttp2Connection, &ClientConfig) {
        (&self.transport, &self.config)
    }

    /// Whether it works.
    pub(super) fn lives(&self) -> Result<(), ReportError> {
        if self.over.token.is_cancelled() { Err(self.over.error()) } else { Ok(()) }
    }

    /// Says that the worker takes no more work, and waits a moment for the server to have heard it.
    pub(super) async fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        let mut answered = self.answered.clone();
        answered.mark_unchanged();
        self.ask(Ask::Drain(Box::default())).await;
        tokio::select! {
            _ = timeout(DRAINED, answered.changed()) => {}
            () = self.over.token.cancelled() => {}
        }
    }

    async fn ask(&self, kind: Ask) {
        tokio::select! {
            // Gone if the connection is over.
            _ = self.asks.send(kind) => {}
            () = self.over.token.cancelled() => {}
        }
    }

    /// The next attempts handed out, with room for `max`. May be given up: what comes later is told by the next call.
    pub(super) async fn handed(&self, max: usize) -> Result<Vec<LeasedAttempt>, ReportError> {
        let mut handed = self.handed.lock().await;
        let upto = self.taken.load(Ordering::SeqCst).saturating_add(max as u64);
        if self.upto.fetch_max(upto, Ordering::SeqCst) < upto && !self.draining.load(Ordering::SeqCst) {
            self.ask(Ask::Room(Box::new(v1::Room { upto, ..Default::default() }))).await;
        }
        let mut attempts = tokio::select! {
            biased;
            attempts = handed.recv() => attempts.ok_or_else(|| self.over.error())?,
            () = self.over.token.cancelled() => return Err(self.over.error()),
        };
        while let Ok(more) = handed.try_recv() {
            attempts.extend(more);
        }
        self.taken.fetch_add(attempts.len() as u64, Ordering::SeqCst);
        Ok(attempts)
    }

    /// The next attempts that ended by another hand; `None` if the connection is over.
    pub(super) async fn revoked(&self) -> Option<Vec<LeaseRef>> {
        self.revoked.lock().await.recv().await
    }
}

fn request(kind: Ask) -> v1::WorkRequest {
    v1::WorkRequest { kind: Some(kind), ..Default::default() }
}

fn slow(url: &Uri, after: Duration) -> Refused {
    Refused::Away(format!("the control plane at {url} has not answered within {after:?}"))
}

/// The time of a lease, and all that the worker holds.
async fn welcomed(url: &Uri, hears: &mut Hears) -> Result<(Duration, Vec<LeasedAttempt>), Refused> {
    let (mut lease, mut held) = (None, Vec::new());
    loop {
        let message = match timeout(OPENING.1, hears.message()).await {
            Ok(message) => message.map_err(|e| refusal(url, &e))?,
            Err(_) => return Err(slow(url, OPENING.1)),
        };
        let closed = || Refused::Away(format!("the control plane at {url} closed the connection"));
        let message: v1::WorkResponse = message.ok_or_else(closed)?.to_owned_message();
        let odd =
            |why: &str| Refused::Away(format!("the control plane at {url} said what cannot be understood: {why}"));
        match (message.kind, lease) {
            (Some(Said::Welcome(welcome)), None) => lease = Some(Duration::from_millis(welcome.lease_ms.max(1))),
            (Some(Said::Held(some)), Some(_)) => held.extend(wire::handed_from_wire(*some).map_err(|e| odd(&e))?),
            (Some(Said::HeldEnd(_)), Some(lease)) => return Ok((lease, held)),
            _ => return Err(odd("a message out of turn")),
        }
    }
}

/// Sends what is asked, and that the worker lives.
async fn send(
    mut sends: Sends,
    mut asked: mpsc::Receiver<Ask>,
    lease: Duration,
    over: Over,
    closes: CancellationToken,
) {
    let interval = lease / 3;
    let mut next = Instant::now() + interval;
    loop {
        let ask = tokio::select! {
            asked = asked.recv() => asked,
            () = sleep_until(next) => {
                next = Instant::now() + interval;
                Some(Ask::Beat(Box::default()))
            }
            () = over.token.cancelled() => None,
            () = closes.cancelled() => None,
        };
        let Some(ask) = ask else { return };
        tokio::select! {
            sent = sends.send(request(ask)) => if sent.is_err() {
                // Why is heard by the other half.
                return;
            },
            () = over.token.cancelled() => return,
            () = closes.cancelled() => return,
        }
    }
}

/// Where what is heard goes.
struct Sorted {
    hand: mpsc::Sender<Vec<LeasedAttempt>>,
    revoke: mpsc::Sender<Vec<LeaseRef>>,
    answers: watch::Sender<u64>,
}

async fn hear(mut hears: Hears, sorted: Sorted, lease: Duration, over: Over, closes: CancellationToken) {
    loop {
        let heard = tokio::select! {
            heard = hears.message() => heard,
            // Two signs of life were not answered: whatever is between here and there is broken.
            () = tokio::time::sleep(lease) => {
                return over.say(format!("the control plane was not heard of for {lease:?}"));
            }
            () = closes.cancelled() => return,
        };
        match sort(heard, &sorted).await {
            Ok(()) => {}
            Err(why) => return over.say(why),
        }
    }
}

async fn sort(
    heard: Result<Option<connectrpc::StreamMessage<v1::WorkResponse>>, ConnectError>,
    sorted: &Sorted,
) -> Result<(), String> {
    let message = match heard {
        Ok(Some(message)) => message.to_owned_message(),
        Ok(None) => return Err("the control plane closed the connection".to_owned()),
        Err(error) => return Err(super::deepest(&error)),
    };
    let gone = || "the worker has closed the connection".to_owned();
    match message.kind {
        Some(Said::Handed(attempts)) => {
            let attempts = wire::handed_from_wire(*attempts)?;
            sorted.hand.send(attempts).await.map_err(|_| gone())
        }
        Some(Said::Revoked(revoked)) => {
            let leases: Result<Vec<_>, _> = revoked.leases.iter().map(|l| wire::lease_from_wire(Some(l))).collect();
            sorted.revoke.send(leases?).await.map_err(|_| gone())
        }
        Some(Said::Alive(_)) => {
            sorted.answers.send_modify(|count| *count += 1);
            Ok(())
        }
        // What a later version says besides is not needed.
        _ => Ok(()),
    }
}
