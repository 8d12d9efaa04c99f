//! What one port serves: the RPCs, the object store, the page of a run, health.

use std::sync::Arc;

use aloft_control::{Control, Limits};
use aloft_objects::{Objects, s3};
use axum::{
    Json, Router,
    extract::Request,
    http::{HeaderValue, StatusCode, header},
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
    Ok(Router::new().fallback_service(aloft_control::service(router, Limits::default())))
}

/// Answers what is no RPC with a 404 that says so, and keeps browsers of other sites from using an open loopback port.
async fn guard(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    if let Some(refusal) = foreign_origin(&request) {
        return refusal;
    }
    let is_rpc_shaped = path.matches('/').count() == 2 && path[1..].contains('.');
    let content_type = request.headers().get(header::CONTENT_TYPE).cloned();
    let known = is_rpc_shaped
        || path == "/"
        || ["/healthz", "/readyz", "/v2", "/assets/", "/aloft-data"].iter().any(|p| path.starts_with(p));
    if !known {
        let body = serde_error("not_found", &format!("there is nothing at {}", shorten(&path)));
        let mut response = (StatusCode::NOT_FOUND, Json(body)).into_response();
        if content_type.is_some_and(|t| t.as_bytes().starts_with(b"application/grpc")) {
            let headers = response.headers_mut();
            *response.status_mut() = StatusCode::OK;
            let headers_mut = {
                let _ = headers;
                response.headers_mut()
            };
            headers_mut.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers_mut.insert("grpc-status", HeaderValue::from_static("12"));
            headers_mut.insert("grpc-message", HeaderValue::from_static("there is no such method"));
        }
        return response;
    }
    next.run(request).await
}

fn serde_error(code: &str, message: &str) -> std::collections::BTreeMap<&'static str, String> {
    [("code", code.to_owned()), ("message", message.to_owned())].into()
}

fn shorten(path: &str) -> String {
    path.chars().take(200).collect()
}

/// A web page of another site that asks this server: refused, because there is no sign-in that would protect it.
fn foreign_origin(request: &Request) -> Option<Response> {
    let origin = request.headers().get(header::ORIGIN)?.to_str().ok()?;
    let host = origin.split_once("://").map_or(origin, |(_, rest)| rest);
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    if matches!(host, "localhost" | "127.0.0.1" | "[::1]") {
        return None;
    }
    let body = serde_error("permission_denied", "this server answers only pages of its own origin");
    Some((StatusCode::FORBIDDEN, Json(body)).into_response())
}

/// The page that shows runs. It reads its address itself.
async fn page() -> Response {
    Html(include_str!("../../../console/index.html")).into_response()
}

async fn asset(axum::extract::Path(name): axum::extract::Path<String>) -> Response {
    let (kind, body) = match name.as_str() {
        "app.js" => ("text/javascript; charset=utf-8", include_str!("../../../console/app.js")),
        "style.css" => ("text/css; charset=utf-8", include_str!("../../../console/style.css")),
        _ => return (StatusCode::NOT_FOUND, "there is no such asset\n").into_response(),
    };
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-cache")], body).into_response()
}
