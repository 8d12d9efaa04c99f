//! The one port: accepts connections, speaks HTTP/1.1 and HTTP/2 without TLS on each, and drains them at the end.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::Sleep,
};
use tokio_util::sync::CancellationToken;

/// Longest wait for the head of a request, the idle time before it included. Longer than the SDK keeps idle connections
/// (90 s), so that it is the one to close them.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Bytes that tell which HTTP is spoken: the length of HTTP/2's preface, shorter than any request of HTTP/1.1 we answer.
const GREETING: usize = 24;

/// How often a quiet HTTP/2 client is asked whether it is there, and how long its answer may take.
const PING_EVERY: Duration = Duration::from_secs(60);
const PING_TIMEOUT: Duration = Duration::from_secs(30);

/// Most connections at a time; further ones wait in the kernel's queue. Each idle one costs about 10 KB.
const MAX_CONNECTIONS: u64 = 16_384;

/// Open files that are not for connections.
const RESERVED_FILES: u64 = 2048;

/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Room for connections, shared by all listeners.
pub(crate) type Places = Arc<Semaphore>;

/// As many places as the limit of open files has room for, with some left to the database, the logs and the tasks.
pub(crate) fn places() -> Places {
    let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(MAX_CONNECTIONS, |(soft, _)| soft);
    let room = (files - (files / 4).min(RESERVED_FILES)).clamp(1, MAX_CONNECTIONS);
    Arc::new(Semaphore::new(usize::try_from(room).unwrap_or(1)))
}

/// Serves `app` on `listener` until `stopping`, then waits for what is under way, no longer than `drain`. Watches end at
/// once, by themselves.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    places: Places,
    stopping: CancellationToken,
    drain: Duration,
) {
    let graceful = GracefulShutdown::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let stream = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or a connection that was gone before it was taken: others may do better.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(64 << 10);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(1000)
            .max_header_list_size(64 << 10)
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT);
        let service = TowerToHyperService::new(app.clone());
        let connection =
            builder.serve_connection_with_upgrades(TokioIo::new(Greeted::new(stream)), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(drain, graceful.shutdown()).await.is_err() {
        tracing::debug!("some requests did not end in time");
    }
}

/// A connection that fails unless its first bytes arrive in time: `hyper-util` waits for ever for those it tells HTTP/1.1
/// from HTTP/2 by, and only then starts the time limit of the head.
struct Greeted {
    stream: TcpStream,
    /// What is still awaited, and until when; `None` after the greeting.
    awaited: Option<(usize, Pin<Box<Sleep>>)>,
}

impl Greeted {
    fn new(stream: TcpStream) -> Self {
        Self { stream, awaited: Some((GREETING, Box::pin(tokio::time::sleep(HEAD_TIMEOUT)))) }
    }
}

impl AsyncRead for Greeted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some((left, deadline)) = &mut self.awaited {
            *left = left.saturating_sub(buf.filled().len() - before);
            if *left == 0 {
                self.awaited = None;
            } else if read.is_pending() && deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        read
    }
}

impl AsyncWrite for Greeted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_client_that_never_greets_is_dropped() {
        for sent in [&b""[..], b"POST"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            client.write_all(sent).await.unwrap();
            let mut greeted = Greeted::new(accepted);
            let error = greeted.read_exact(&mut [0; GREETING]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        }
    }
}
