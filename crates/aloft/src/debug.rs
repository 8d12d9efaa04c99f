//! The port of health and metrics: apart from the one that serves everything, so that it answers before that one listens
//! and after it has stopped, and so that it need not be reachable by users.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use crate::{
    metrics::Metrics,
    ready::{self, Readiness},
};

/// Everything on the port.
pub(crate) fn app(readiness: Readiness, metrics: Arc<Metrics>) -> Router {
    let ready = move || readiness.clone().answer();
    Router::new()
        .route("/healthz", get(ready::healthy))
        // As the specification's services call it (platform-features, 2.1).
        .route("/healthcheck", get(ready::healthy))
        .route("/readyz", get(ready))
        .route("/metrics", get(text).with_state(metrics))
        .fallback(|| async { (StatusCode::NOT_FOUND, "here are /healthz, /readyz and /metrics\n") })
}

/// The text is valid in both formats; collectors that know the newer one ask for it.
async fn text(State(metrics): State<Arc<Metrics>>, headers: HeaderMap) -> Response {
    metrics.refresh().await;
    let newer =
        headers.get(header::ACCEPT).and_then(|a| a.to_str().ok()).is_some_and(|a| a.contains("openmetrics-text"));
    let kind = match newer {
        true => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        false => "text/plain; version=0.0.4; charset=utf-8",
    };
    match metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n").into_response(),
    }
}
