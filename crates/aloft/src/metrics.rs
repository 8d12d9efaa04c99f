//! What the process counts and measures: the one place where metrics are declared, and the text that `/metrics` answers.
//!
//! To add one: a field in [`Metrics`], registered in [`Metrics::new`], and whoever measures is given the [`Metrics`]. What is
//! only looked at when it is asked for (a gauge of something that is kept anyway) goes into [`Process`] or a collector like
//! it. Labels must have few values: never a run's name.
//!
//! `prometheus-client`, the Prometheus project's own crate: typed labels, a registry that is passed as a value.

use std::{
    collections::HashMap,
    fmt, fs,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use connectrpc::{
    ConnectError, Payload,
    interceptor::{
        Interceptor, Next, NextStream, PayloadStream, StreamRequest, StreamResponse, UnaryRequest, UnaryResponse,
    },
};
use futures::Stream;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text::encode},
    metrics::{
        family::{Family, MetricConstructor},
        gauge::{ConstGauge, Gauge},
        histogram::Histogram,
    },
    registry::{Registry, Unit},
};

use crate::config::Role;

/// From half a millisecond, less than a commit takes, to half a minute, when clients give up.
const CALL_SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// From a second to a day: a watch lasts as long as somebody looks.
const STREAM_SECONDS: [f64; 8] = [1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21_600.0, 86_400.0];

/// The code of what ended well, as gRPC names it.
const OK: &str = "ok";

/// The code of what the client gave up.
const GIVEN_UP: &str = "canceled";

/// Everything that is counted.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    calls: Family<Rpc, Histogram, Buckets>,
    streams: Family<Rpc, Histogram, Buckets>,
    open: Family<Method, Gauge>,
}

/// An RPC and how it ended.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Rpc {
    service: String,
    method: String,
    code: &'static str,
}

/// An RPC.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Method {
    service: String,
    method: String,
}

/// Makes histograms of these bounds.
#[derive(Clone, Debug)]
struct Buckets(&'static [f64]);

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(self.0.iter().copied())
    }
}

impl Metrics {
    /// The metrics of a process that begins now.
    pub(crate) fn new(role: Role) -> Self {
        let calls = Family::new_with_constructor(Buckets(&CALL_SECONDS));
        let streams = Family::new_with_constructor(Buckets(&STREAM_SECONDS));
        let open = Family::<Method, Gauge>::default();
        let build = Family::<Vec<(&str, &str)>, Gauge>::default();
        build.get_or_create(&vec![("version", env!("CARGO_PKG_VERSION")), ("role", role.name())]).set(1);
        let mut registry = Registry::default();
        registry.register("aloft_build_info", "The version that runs; always 1", build);
        registry.register_with_unit(
            "aloft_rpc_duration",
            "Calls answered, and how long they took",
            Unit::Seconds,
            calls.clone(),
        );
        registry.register_with_unit(
            "aloft_rpc_stream_duration",
            "Streams that have ended, and how long they lasted",
            Unit::Seconds,
            streams.clone(),
        );
        registry.register("aloft_rpc_streams_open", "Streams that are open now", open.clone());
        registry.register_collector(Box::new(Process { began: Instant::now() }));
        Self { registry, calls, streams, open }
    }

    /// Everything, in the text format of Prometheus.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    /// What measures the RPCs `served`, named as `service/method`.
    pub(crate) fn of_rpcs<'a>(self: &Arc<Self>, served: impl Iterator<Item = &'a str>) -> Measuring {
        let method = |name: &str| {
            let (service, method) = name.split_once('/')?;
            Some((format!("/{name}"), Method { service: service.to_owned(), method: method.to_owned() }))
        };
        Measuring { metrics: Arc::clone(self), served: served.filter_map(method).collect() }
    }
}

/// What is read off the process when it is asked for.
#[derive(Debug)]
struct Process {
    began: Instant,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut gauge = |name, help, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, prometheus_client::metrics::MetricType::Gauge)?)
        };
        gauge("aloft_uptime", "How long the process runs", Some(&Unit::Seconds), self.began.elapsed().as_secs_f64())?;
        if let Some(bytes) = resident() {
            gauge("process_resident_memory", "Memory that the process holds", Some(&Unit::Bytes), bytes)?;
        }
        if let Ok(files) = fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "Files and connections that the process holds open", None, files.count() as f64)?;
        }
        Ok(())
    }
}

fn resident() -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kilobytes: f64 =
        status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024.0)
}

/// Measures each RPC that is served.
pub(crate) struct Measuring {
    metrics: Arc<Metrics>,
    /// By path. Whatever else is asked for is not counted, so that clients cannot invent labels.
    served: HashMap<String, Method>,
}

impl Measuring {
    fn begin(&self, path: Option<&str>, streams: bool) -> Option<Measured> {
        let method = self.served.get(path?)?.clone();
        if streams {
            self.metrics.open.get_or_create(&method).inc();
        }
        Some(Measured { metrics: Arc::clone(&self.metrics), method, streams, began: Instant::now(), code: GIVEN_UP })
    }
}

/// An RPC under way. However it ends, also by nobody waiting any more, it is counted.
struct Measured {
    metrics: Arc<Metrics>,
    method: Method,
    streams: bool,
    began: Instant,
    code: &'static str,
}

impl Drop for Measured {
    fn drop(&mut self) {
        if self.streams {
            self.metrics.open.get_or_create(&self.method).dec();
        }
        let Method { service, method } = self.method.clone();
        let family = if self.streams { &self.metrics.streams } else { &self.metrics.calls };
        let rpc = Rpc { service, method, code: self.code };
        family.get_or_create(&rpc).observe(self.began.elapsed().as_secs_f64());
    }
}

#[connectrpc::async_trait]
impl Interceptor for Measuring {
    async fn intercept_unary(&self, request: UnaryRequest, next: Next<'_>) -> Result<UnaryResponse, ConnectError> {
        let measured = self.begin(request.ctx.path(), false);
        let answer = next.run(request).await;
        if let Some(mut measured) = measured {
            measured.code = answer.as_ref().map_or_else(|e| e.code.as_str(), |_| OK);
        }
        answer
    }

    async fn intercept_streaming(
        &self,
        request: StreamRequest,
        inbound: PayloadStream,
        next: NextStream<'_>,
    ) -> Result<StreamResponse, ConnectError> {
        let mut measured = self.begin(request.ctx.path(), true);
        match next.run(request, inbound).await {
            Ok(mut answer) => {
                answer.body = Box::pin(MeasuredStream { inner: answer.body, measured });
                Ok(answer)
            }
            Err(error) => {
                if let Some(measured) = &mut measured {
                    measured.code = error.code.as_str();
                }
                Err(error)
            }
        }
    }
}

/// A stream that is counted when it ends.
struct MeasuredStream {
    inner: PayloadStream,
    measured: Option<Measured>,
}

impl Stream for MeasuredStream {
    type Item = Result<Payload, ConnectError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let item = ready!(self.inner.as_mut().poll_next(cx));
        let code = match &item {
            Some(Ok(_)) => None,
            Some(Err(error)) => Some(error.code.as_str()),
            None => Some(OK),
        };
        if let Some(code) = code
            && let Some(mut measured) = self.measured.take()
        {
            measured.code = code;
        }
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_holds_what_was_measured() {
        let metrics = Arc::new(Metrics::new(Role::Server));
        let method = Method { service: "a.B".to_owned(), method: "C".to_owned() };
        let measured = |streams, code| Measured {
            metrics: Arc::clone(&metrics),
            method: method.clone(),
            streams,
            began: Instant::now(),
            code,
        };
        drop(measured(false, OK));
        drop(measured(false, "not_found"));
        metrics.open.get_or_create(&method).inc_by(2);
        drop(measured(true, OK));
        let text = metrics.text().unwrap();
        for line in [
            "aloft_rpc_duration_seconds_count{service=\"a.B\",method=\"C\",code=\"ok\"} 1",
            "aloft_rpc_duration_seconds_count{service=\"a.B\",method=\"C\",code=\"not_found\"} 1",
            "aloft_rpc_duration_seconds_bucket{le=\"+Inf\",service=\"a.B\",method=\"C\",code=\"ok\"} 1",
            "aloft_rpc_stream_duration_seconds_count{service=\"a.B\",method=\"C\",code=\"ok\"} 1",
            "aloft_rpc_streams_open{service=\"a.B\",method=\"C\"} 1",
            concat!("aloft_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\",role=\"server\"} 1"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
        for name in ["aloft_uptime_seconds ", "process_resident_memory_bytes ", "process_open_fds "] {
            assert!(text.lines().any(|l| l.starts_with(name)), "{name}\n{text}");
        }
    }
}
