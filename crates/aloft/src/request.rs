//! The identity of a request: what ties together the lines that are logged on its account, here and at whoever sent it.

use std::{sync::Arc, time::Instant};

use axum::{
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode},
    middleware::Next,
    response::Response,
};
use tracing::Instrument as _;

/// The header that carries it, in requests and in answers.
const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// Longest identity that is taken from a client.
const LONGEST: usize = 128;

/// The identity of the request under way, among its extensions.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

/// Gives each request an identity, its own if it has a decent one, in a span around all that is logged, and in the answer.
pub(crate) async fn identify(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(HEADER).filter(|v| is_decent(v.as_bytes())).cloned();
    let id = id.or_else(|| HeaderValue::from_str(&format!("{:016x}", rand::random::<u64>())).ok());
    let shown = id.as_ref().and_then(|i| i.to_str().ok()).unwrap_or_default();
    let span = tracing::info_span!("request", request_id = shown);
    request.extensions_mut().insert(RequestId(shown.into()));
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let began = Instant::now();
    async {
        let mut answer = next.run(request).await;
        let (status, ms) = (answer.status(), began.elapsed().as_millis());
        // What is not built yet, or not ready, says so itself and is nobody's fault.
        let expected = matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::SERVICE_UNAVAILABLE);
        if status.is_server_error() && !expected {
            tracing::warn!(%method, path, status = status.as_u16(), ms, "a request failed");
        } else {
            tracing::debug!(%method, path, status = status.as_u16(), ms, "answered");
        }
        if let Some(id) = id {
            answer.headers_mut().insert(HEADER, id);
        }
        answer
    }
    .instrument(span)
    .await
}

/// Whether an identity can stand in a log line and in a header.
fn is_decent(id: &[u8]) -> bool {
    let fine = |b: &u8| b.is_ascii_alphanumeric() || b"-_.:/+=@".contains(b);
    (1..=LONGEST).contains(&id.len()) && id.iter().all(fine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_identities_are_taken() {
        for id in ["a", "0af7651916cd43dd8448eb211c80319c", "req-1.2:3/4+5=6@7"] {
            assert!(is_decent(id.as_bytes()), "{id}");
        }
        for id in ["", "a b", "a\nb", "\u{e9}", "\"", &"x".repeat(129)] {
            assert!(!is_decent(id.as_bytes()), "{id}");
        }
    }
}
