//! The one port: accepts connections, speaks HTTP/1.1 and HTTP/2 without TLS on each, and drains them at the end.

use std::{sync::Arc, time::Duration};

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

/// Longest wait for the head of a request, the idle time before it included. Longer than the SDK keeps idle connections
/// (90 s), so that it is the one to close them.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// Most connections at a time; further ones wait in the kernel's queue. Each idle one costs about 10 KB.
const MAX_CONNECTIONS: usize = 16_384;

/// Longest wait for requests under way when the server stops. Watches end at once, by themselves.
const DRAIN: Duration = Duration::from_secs(5);

/// Serves `app` on `listener` until `stopping`, then waits for what is under way.
pub(crate) async fn serve(listener: TcpListener, app: Router, stopping: CancellationToken) {
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
        let stream = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, or a connection that was gone before it was taken: others may do better.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let _ = stream.set_nodelay(true);
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT).max_buf_size(64 << 10);
        builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1000).max_header_list_size(64 << 10);
        let service = TowerToHyperService::new(app.clone());
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
        let connection = graceful.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended badly");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::debug!("some requests did not end in time");
    }
}
