//! What one port serves: the RPCs, the object store, the page of a run, health.

use std::sync::Arc;

use aloft_control::{Control, Limits};
use aloft_objects::{Objects, s3};
use axum::{
    Json, Router,
    extract::Request,
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use connectrpc_health::StaticChecker;
use connectrpc_reflection::Reflector;

/// Everything on the port.
pub(crate) fn app(control: &Control, objects: &Objects) -> Result<Router, String> {
    let mut app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(|| async { "ok\n" }))
        .route("/", get(|| async { Redirect::temporary("/v2") }))
        .route("/v2", get(page))
        .route("/v2/", get(page))
        .route("/v2/{*path}", get(page))
        .route("/assets/{name}", get(asset));
    for path in s3::routes(objects.bucket()) {
        app = app.route_service(&path, s3::endpoint(objects.clone()));
    }
    Ok(app.fallback_service(rpc(control)?).layer(middleware::from_fn(guard)))
}

/// The RPCs, with gRPC health and reflection.
fn rpc(control: &Control) -> Result<Router, String> {
    let reflector = Reflector::from_descriptor_set_bytes(aloft_flyteidl2::FILE_DESCRIPTOR_SET)
        .map_err(|e| format!("the descriptor set cannot be read: {e}"))?;
    let services = reflector.service_names();
    let router = connectrpc_reflection::install(aloft_control::router(control), reflector);
    let (router, _checker): (_, Arc<StaticChecker>) = connectrpc_health::install_static(router, services);
    let service = aloft_control::service(router, Limits::default());
    Ok(Router::new().fallback_service(service).layer(middleware::from_fn(rpc_or_nothing)))
}

/// Keeps browsers of other sites from using an open loopback port.
async fn guard(request: Request, next: Next) -> Response {
    match foreign_origin(&request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

/// What is neither a route nor shaped like an RPC: a 404 that says so, well-formed for a Connect client too.
async fn rpc_or_nothing(request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let rpc = path.strip_prefix('/').and_then(|p| p.split_once('/'));
    if rpc.is_some_and(|(service, method)| service.contains('.') && !method.contains('/')) {
        return next.run(request).await;
    }
    let message = format!("there is nothing at {}", path.chars().take(200).collect::<String>());
    (StatusCode::NOT_FOUND, Json(error_body("not_found", &message))).into_response()
}

fn error_body(code: &str, message: &str) -> std::collections::BTreeMap<&'static str, String> {
    [("code", code.to_owned()), ("message", message.to_owned())].into()
}

/// A web page of another site that asks this server: refused, because there is no sign-in that would protect it.
fn foreign_origin(request: &Request) -> Option<Response> {
    let origin = request.headers().get(header::ORIGIN)?.to_str().ok()?;
    let host = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    if matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
        return None;
    }
    let body = error_body("permission_denied", "this server answers only pages of its own origin");
    Some((StatusCode::FORBIDDEN, Json(body)).into_response())
}

/// What the page may load: its own script and style, and reports in a frame. Those come from the object store, whose links
/// name the host `localhost` whatever the page was opened as; it sandboxes them.
const PAGE_POLICY: &str = "default-src 'self'; img-src 'self' data:; frame-src 'self' http://localhost:*; \
                           object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page that shows runs. It reads its address itself.
async fn page() -> Response {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(include_str!("../../../console/index.html"))).into_response()
}

async fn asset(axum::extract::Path(name): axum::extract::Path<String>) -> Response {
    let (kind, body) = match name.as_str() {
        "app.js" => ("text/javascript; charset=utf-8", include_str!("../../../console/app.js")),
        "style.css" => ("text/css; charset=utf-8", include_str!("../../../console/style.css")),
        _ => return (StatusCode::NOT_FOUND, "there is no such asset\n").into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, body).into_response()
}
