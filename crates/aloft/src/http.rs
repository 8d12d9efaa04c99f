//! What one port serves: the RPCs, the object store, the page of a run, health.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use aloft_control::{Control, Limits};
use aloft_objects::{Objects, s3};
use axum::{
    Json, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, Uri, Version, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use buffa::Message as _;
use buffa_descriptor::{DescriptorPool, generated::descriptor::FileDescriptorSet};
use connectrpc::{ConnectError, ErrorCode};
use connectrpc_health::StaticChecker;
use connectrpc_reflection::Reflector;
use tower::ServiceExt as _;

use crate::{
    metrics::Metrics,
    ready::{self, Readiness},
    request,
    trace::Telling,
};

/// What the port serves besides the control plane itself.
pub(crate) struct Served {
    /// The object store.
    pub(crate) objects: Objects,
    /// What `/readyz` answers by.
    pub(crate) readiness: Readiness,
    /// What counts the RPCs, if anything shows it.
    pub(crate) metrics: Option<Arc<Metrics>>,
    /// The names that requests may come by.
    pub(crate) names: Names,
}

/// Everything on the port.
pub(crate) fn app(control: &Control, served: Served) -> Result<Router, String> {
    let Served { objects, readiness, metrics, names } = served;
    let ready = move || readiness.clone().answer();
    let mut app = Router::new()
        .route("/healthz", get(ready::healthy))
        .route("/readyz", get(ready))
        .route("/", get(|| async { Redirect::temporary("/v2") }))
        .route("/v2", get(page))
        .route("/v2/", get(page))
        .route("/v2/{*path}", get(page))
        .route("/assets/{name}", get(asset));
    app = app.merge(aloft_control::callbacks(control));
    let store = s3::endpoint(objects.clone());
    for path in s3::routes(objects.bucket()) {
        app = app.route_service(&path, store.clone());
    }
    let app = app
        .method_not_allowed_fallback(only_get)
        .fallback_service(rpc(control, metrics.as_ref())?)
        .layer(middleware::from_fn_with_state(store, signed_goes_to_store))
        .layer(middleware::from_fn_with_state(Arc::new(names), guard))
        .layer(middleware::from_fn(request::identify));
    Ok(app)
}

// === RPCs ===

/// The RPCs, with gRPC health and reflection.
fn rpc(control: &Control, metrics: Option<&Arc<Metrics>>) -> Result<Router, String> {
    let unreadable = |e: &dyn std::fmt::Display| format!("the descriptor set cannot be read: {e}");
    let mut pool = DescriptorPool::decode(aloft_flyteidl2::FILE_DESCRIPTOR_SET).map_err(|e| unreadable(&e))?;
    let ours = FileDescriptorSet::decode_from_slice(aloft_proto::FILE_DESCRIPTOR_SET).map_err(|e| unreadable(&e))?;
    pool.add_file_descriptor_set(ours).map_err(|e| unreadable(&e))?;
    let pool = Arc::new(pool);
    let reflector = Reflector::from_descriptor_pool(Arc::clone(&pool)).map_err(|e| unreadable(&e))?;
    let services = reflector.service_names();
    let router = connectrpc_reflection::install(aloft_control::router(control), reflector);
    let (router, _checker): (_, Arc<StaticChecker>) = connectrpc_health::install_static(router, services);
    let rpcs = Arc::new(Rpcs::new(&router, &pool));
    let measuring = metrics.map(|m| m.of_rpcs(rpcs.served.iter().map(String::as_str)));
    let mut service = aloft_control::service(router, Limits::default()).with_interceptor(Telling);
    if let Some(measuring) = measuring {
        service = service.with_interceptor(measuring);
    }
    Ok(Router::new().fallback_service(service).layer(middleware::from_fn_with_state(rpcs, explain)))
}

/// Which RPCs there are, as `service/method`.
struct Rpcs {
    served: HashSet<String>,
    /// Those of the contract that are not served.
    planned: HashSet<String>,
}

impl Rpcs {
    fn new(router: &connectrpc::Router, pool: &DescriptorPool) -> Self {
        let served: HashSet<String> = router.methods().map(str::to_owned).collect();
        let all = pool.services().iter();
        let all = all.flat_map(|s| s.methods().iter().map(move |m| format!("{}/{}", s.full_name(), m.name())));
        let planned = all.filter(|name| !served.contains(name)).collect();
        Self { served, planned }
    }
}

/// Says why there is no answer where `connectrpc` is silent or terse: what is neither a route nor shaped like an RPC, RPCs
/// that are not served, wrong methods and wrong content types.
async fn explain(State(rpcs): State<Arc<Rpcs>>, request: Request, next: Next) -> Response {
    let path = shown(request.uri());
    let name = request.uri().path().strip_prefix("/").unwrap_or_default().to_owned();
    if !is_rpc_name(&name) {
        return refusal(
            ConnectError::new(ErrorCode::NotFound, format!("there is nothing at {path}")),
            &HeaderMap::new(),
        );
    }
    if let Some(error) = too_large(request.headers()) {
        return refusal(error, request.headers());
    }
    if !rpcs.served.contains(&name) {
        let headers = request.headers().clone();
        // `connectrpc` reads the body to its bound: a client that is still sending when it is refused may never see why.
        next.run(request).await;
        let (message, status) = match rpcs.planned.contains(&name) {
            true => (format!("{name} is not built yet in Aloft"), StatusCode::NOT_IMPLEMENTED),
            false => (format!("there is no RPC {}", path.strip_prefix('/').unwrap_or_default()), StatusCode::NOT_FOUND),
        };
        return refusal(ConnectError::new(ErrorCode::Unimplemented, message).with_http_status(status), &headers);
    }
    let answer = next.run(request).await;
    let message = match answer.status() {
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            "the content type is not one of an RPC: use application/json, \
            application/proto, application/connect+proto, application/grpc or application/grpc-web"
        }
        StatusCode::METHOD_NOT_ALLOWED => "an RPC is a POST, or a GET if it changes nothing",
        _ => return answer,
    };
    let (mut parts, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, 64 << 10).await.unwrap_or_default();
    if !body.is_empty() {
        return Response::from_parts(parts, body.into());
    }
    // The headers stay: they say what would be right.
    parts.headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    parts.headers.remove(header::CONTENT_LENGTH);
    let body = Json(error_body("unknown", message)).into_response().into_body();
    Response::from_parts(parts, body)
}

/// Whether a path looks like `package.Service/Method`.
fn is_rpc_name(path: &str) -> bool {
    let word = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    path.split_once('/')
        .is_some_and(|(service, method)| service.contains('.') && service.split('.').all(word) && word(method))
}

/// The refusal of a body that its own head says is too large, without waiting for what may never come.
fn too_large(headers: &HeaderMap) -> Option<ConnectError> {
    let max = Limits::default().body as u64;
    let length: u64 = headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    let message = format!("the request has {length} bytes, more than the limit of {max}; pass large values as files");
    (length > max).then(|| ConnectError::new(ErrorCode::ResourceExhausted, message))
}

/// A path to repeat to the client: not longer than helps.
fn shown(uri: &Uri) -> String {
    uri.path().chars().take(200).collect()
}

/// An error in the protocol that the request's headers speak.
fn refusal(error: ConnectError, headers: &HeaderMap) -> Response {
    error.into_http_response(headers).map(Body::new)
}

fn error_body(code: &str, message: &str) -> std::collections::BTreeMap<&'static str, String> {
    [("code", code.to_owned()), ("message", message.to_owned())].into()
}

// === Who may ask ===

/// The names that requests may come by, besides those of this machine.
#[derive(Debug, Default)]
pub(crate) struct Names {
    /// Host names, in lower case.
    pub(crate) hosts: Vec<String>,
    /// Whether the addresses of machines are names as well. No page of others is at such a name, unless the address is
    /// theirs.
    pub(crate) addresses: bool,
    /// Whether every name is one.
    pub(crate) any: bool,
}

impl Names {
    /// Whether `authority`, a host with or without a port, can mean this server.
    fn are(&self, authority: &str) -> bool {
        if is_this_machine(authority) {
            return true;
        }
        let Some(host) = host_of(authority) else { return false };
        let address = || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        self.any || self.hosts.contains(&host) || (self.addresses && address())
    }
}

/// Keeps browsers that show pages of other sites from using a port that asks for no sign-in.
///
/// A page elsewhere sends its `Origin` with whatever could change something. A name of theirs that resolves to this
/// machine makes their page one of *our* origin, but such a request carries their name as its host.
async fn guard(State(names): State<Arc<Names>>, request: Request, next: Next) -> Response {
    let denied = |message: String| refusal(ConnectError::new(ErrorCode::PermissionDenied, message), request.headers());
    let named = request.headers().get(header::HOST).map(|v| v.to_str().unwrap_or("?"));
    let authority = request.uri().authority().map(|a| a.as_str());
    if named.is_none() && authority.is_none() && request.version() >= Version::HTTP_11 {
        let error = ConnectError::new(ErrorCode::InvalidArgument, "the request has no Host header");
        return refusal(error, request.headers());
    }
    for host in [named, authority].into_iter().flatten() {
        if !names.are(host) {
            let host: String = host.chars().take(100).collect();
            let more = match names.addresses {
                true => ", by its address and by the names in listen.names and listen.publicUrl",
                false => "",
            };
            return denied(format!("this server is not {host}; it answers only as localhost{more}"));
        }
    }
    if let Some(origin) = request.headers().get(header::ORIGIN) {
        let host = origin.to_str().ok().and_then(|o| o.split_once("://")).map_or("?", |(_, host)| host);
        if !names.are(host) {
            return denied("this server does not answer pages of other sites".to_owned());
        }
    }
    next.run(request).await
}

/// Whether `authority`, a host with or without a port, can only mean this machine.
fn is_this_machine(authority: &str) -> bool {
    // RFC 6761: names below `localhost` never leave the machine.
    host_of(authority)
        .is_some_and(|h| matches!(h.as_str(), "localhost" | "127.0.0.1" | "[::1]") || h.ends_with(".localhost"))
}

/// The host of an authority, in lower case.
fn host_of(authority: &str) -> Option<String> {
    let authority = authority.parse::<axum::http::uri::Authority>().ok()?;
    (!authority.as_str().contains('@')).then(|| authority.host().to_ascii_lowercase())
}

// === Objects and pages ===

/// A request with an S3 signature is the object store's, whatever bucket it names: it answers in S3's own words.
async fn signed_goes_to_store(State(store): State<s3::Endpoint>, request: Request, next: Next) -> Response {
    let signed = request.headers().get(header::AUTHORIZATION).is_some_and(|v| v.as_bytes().starts_with(b"AWS4-HMAC"))
        || request.uri().query().is_some_and(|q| q.contains("X-Amz-Signature="));
    if !signed {
        return next.run(request).await;
    }
    match store.oneshot(request).await {
        Ok(answer) => answer.map(Body::new),
        Err(never) => match never {},
    }
}

async fn only_get(uri: Uri) -> Response {
    let message = format!("{} is for reading: use GET", shown(&uri));
    (StatusCode::METHOD_NOT_ALLOWED, Json(error_body("unknown", &message))).into_response()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_own() {
        for own in ["localhost", "LOCALHOST:80", "127.0.0.1:30080", "[::1]", "[::1]:30080", "aloft.localhost:1"] {
            assert!(is_this_machine(own), "{own}");
        }
        for other in [
            "",
            "?",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "me@localhost",
            "[::2]",
            "0.0.0.0",
            "xlocalhost",
            "localhost:1:2",
            "local host",
        ] {
            assert!(!is_this_machine(other), "{other}");
            assert!(!Names::default().are(other), "{other}");
        }
    }

    #[test]
    fn a_server_has_the_names_that_it_is_given() {
        let names = Names { hosts: vec!["aloft.example".to_owned()], addresses: true, any: false };
        for own in ["localhost", "aloft.example", "ALOFT.example:443", "192.0.2.1:8080", "[2001:db8::1]:8080"] {
            assert!(names.are(own), "{own}");
        }
        for other in ["", "?", "example", "x.aloft.example", "me@aloft.example", "192.0.2.1.evil.example"] {
            assert!(!names.are(other), "{other}");
        }
        assert!(Names { any: true, ..Names::default() }.are("evil.example"));
        assert!(!Names { any: true, ..Names::default() }.are("me@evil.example"));
    }
}
