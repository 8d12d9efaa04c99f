//! Traces for OpenTelemetry, sent by OTLP over HTTP. Off unless a key or one of the standard variables says where to.
//!
//! The standard's own crates make and batch the spans; they send from a thread of their own, so that neither commits nor
//! requests wait for a collector. Sent with `ureq`, which is here anyway and brings TLS: none of the clients that come with the
//! exporter has to be built, and of gRPC only the messages.

mod calls;
mod runs;
mod sampling;

use std::{
    env, io,
    sync::OnceLock,
    time::{Duration, Instant},
};

use opentelemetry::{KeyValue, trace::TracerProvider as _};
use opentelemetry_http::{Bytes, HttpClient, HttpError};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use parking_lot::Mutex;
use ureq::http;

pub(crate) use self::{calls::Telling, runs::Runs, sampling::Sampling};
use crate::config::{Role, Tracing};

/// Marks the spans that are exported. Whoever reads the log sees none of them.
pub(crate) const TARGET: &str = "exported";

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is said that a collector does not take traces.
const SAY: Duration = Duration::from_secs(60);

/// Largest answer of a collector that is read.
const LARGEST: u64 = 64 << 10;

static PROVIDER: OnceLock<SdkTracerProvider> = OnceLock::new();

/// What the environment says, by the names of the standard; an empty variable is none.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Where traces go: the URL to send them to, `None` if the exporter reads it from the environment itself.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Off,
    At(String),
    Environment,
}

fn place(config: &Tracing, variable: impl Fn(&str) -> Option<String>) -> Place {
    let is = |name: &str, value: &str| variable(name).is_some_and(|v| v.eq_ignore_ascii_case(value));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Place::Off;
    }
    if let Some(endpoint) = &config.endpoint {
        return Place::At(format!("{}/v1/traces", endpoint.trim_end_matches('/')));
    }
    let said = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
    if said.into_iter().any(|name| variable(name).is_some()) { Place::Environment } else { Place::Off }
}

/// Starts tracing, if it is on.
///
/// # Errors
/// A sentence that says what is wrong with where traces go.
pub(crate) fn start(config: &Tracing, role: Role) -> Result<Option<SdkTracer>, String> {
    let builder =
        SpanExporter::builder().with_http().with_http_client(Client::new()).with_protocol(Protocol::HttpBinary);
    let builder = match place(config, variable) {
        Place::Off => return Ok(None),
        Place::At(url) => builder.with_endpoint(url),
        Place::Environment => builder,
    };
    let exporter = builder.build().map_err(|e| format!("traces cannot be sent: {e}"))?;
    let mut resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", format!("{:016x}", rand::random::<u64>())),
    ]);
    let named = variable("OTEL_RESOURCE_ATTRIBUTES").is_some_and(|a| a.contains("service.name="));
    if variable("OTEL_SERVICE_NAME").is_none() && !named {
        resource = resource.with_service_name(format!("aloft-{}", role.name()));
    }
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampling::of(config, variable).sampler())
        .with_resource(resource.build())
        .build();
    let tracer = provider.tracer("aloft");
    let _ = PROVIDER.set(provider);
    Ok(Some(tracer))
}

/// Sends what has not been sent yet.
pub(crate) fn finish() {
    if let Some(provider) = PROVIDER.get() {
        let _ = provider.shutdown();
    }
}

/// What runs of tasks are traced with, if tracing is on.
pub(crate) fn runs(config: &Tracing) -> Option<Runs> {
    let provider = PROVIDER.get().filter(|_| config.runs)?;
    Some(Runs::new(provider.tracer("aloft"), Sampling::of(config, variable)))
}

/// Sends to a collector. Called by the thread of the exporter, which may wait.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
    /// When it was last said that this did not work, and how many times that was since.
    failed: Mutex<(Option<Instant>, u64)>,
}

impl Client {
    fn new() -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .user_agent(concat!("aloft/", env!("CARGO_PKG_VERSION")))
            .build()
            .into();
        Self { agent, failed: Mutex::default() }
    }

    fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        let (head, body) = request.into_parts();
        let request = http::Request::from_parts(head, &body[..]);
        let mut answer = self.agent.run(request)?;
        let body = answer.body_mut().with_config().limit(LARGEST).read_to_vec()?;
        let status = answer.status();
        if !status.is_success() {
            return Err(Box::new(io::Error::other(format!("the collector answered {status}"))));
        }
        Ok(http::Response::builder().status(status).body(Bytes::from(body))?)
    }

    /// Says now and then that traces are lost: the exporter itself is silent.
    fn tell(&self, authority: &str, error: &HttpError) {
        let mut failed = self.failed.lock();
        failed.1 += 1;
        if failed.0.is_none_or(|at| at.elapsed() >= SAY) {
            let batches = failed.1;
            tracing::warn!(%error, batches, "traces for {authority} are lost: the collector does not take them");
            *failed = (Some(Instant::now()), 0);
        }
    }
}

#[aloft_plane::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: http::Request<Bytes>) -> Result<http::Response<Bytes>, HttpError> {
        // Not the whole address: it may hold a password.
        let authority = request.uri().authority().map(|a| {
            let port = a.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
            format!("{}{port}", a.host())
        });
        let answer = self.send(request);
        if let Err(error) = &answer {
            self.tell(&authority.unwrap_or_default(), error);
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_go_where_a_key_or_the_standard_says() {
        let config =
            |endpoint: Option<&str>| Tracing { endpoint: endpoint.map(str::to_owned), runs: true, sampled: 100 };
        let environment = |pairs: &'static [(&'static str, &'static str)]| {
            move |name: &str| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        };
        let at = |url: &str| Place::At(url.to_owned());
        assert_eq!(place(&config(None), environment(&[])), Place::Off);
        assert_eq!(place(&config(Some("http://c:4318")), environment(&[])), at("http://c:4318/v1/traces"));
        assert_eq!(place(&config(Some("http://c/x/")), environment(&[])), at("http://c/x/v1/traces"));
        let said = environment(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://e:4318")]);
        assert_eq!(place(&config(None), said), Place::Environment);
        assert_eq!(place(&config(Some("http://c")), said), at("http://c/v1/traces"));
        let disabled = environment(&[("OTEL_SDK_DISABLED", "TRUE")]);
        assert_eq!(place(&config(Some("http://c")), disabled), Place::Off);
        let none = environment(&[("OTEL_TRACES_EXPORTER", "none"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://e")]);
        assert_eq!(place(&config(None), none), Place::Off);
    }
}
