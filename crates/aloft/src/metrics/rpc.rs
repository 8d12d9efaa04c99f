//! What RPCs take, and how they end.

use std::{
    collections::HashMap,
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
    encoding::EncodeLabelSet,
    metrics::{family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{Buckets, Metrics};

/// From half a millisecond, less than a commit takes, to half a minute, when clients give up.
const CALL_SECONDS: [f64; 15] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// From a second to a day: a watch lasts as long as somebody looks.
const STREAM_SECONDS: [f64; 8] = [1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21_600.0, 86_400.0];

/// The code of what ended well, as gRPC names it.
const OK: &str = "ok";

/// The code of what the client gave up.
const GIVEN_UP: &str = "canceled";

/// What is counted of RPCs.
#[derive(Debug)]
pub(super) struct Rpcs {
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

impl Rpcs {
    /// Declares them.
    pub(super) fn new(registry: &mut Registry) -> Self {
        let calls = Family::new_with_constructor(Buckets(&CALL_SECONDS));
        let streams = Family::new_with_constructor(Buckets(&STREAM_SECONDS));
        let open = Family::<Method, Gauge>::default();
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
        Self { calls, streams, open }
    }
}

impl Metrics {
    /// What measures the RPCs `served`, named as `service/method`.
    pub(crate) fn of_rpcs<'a>(self: &Arc<Self>, served: impl Iterator<Item = &'a str>) -> Measuring {
        let method = |name: &str| {
            let (service, method) = name.split_once('/')?;
            Some((format!("/{name}"), Method { service: service.to_owned(), method: method.to_owned() }))
        };
        Measuring { metrics: Arc::clone(self), served: served.filter_map(method).collect() }
    }
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
            self.metrics.rpcs.open.get_or_create(&method).inc();
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
            self.metrics.rpcs.open.get_or_create(&self.method).dec();
        }
        let Method { service, method } = self.method.clone();
        let family = if self.streams { &self.metrics.rpcs.streams } else { &self.metrics.rpcs.calls };
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
    use crate::config::Role;

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
        metrics.rpcs.open.get_or_create(&method).inc_by(2);
        drop(measured(true, OK));
        let text = metrics.text().unwrap();
        for line in [
            "aloft_rpc_duration_seconds_count{service=\"a.B\",method=\"C\",code=\"ok\"} 1",
            "aloft_rpc_duration_seconds_count{service=\"a.B\",method=\"C\",code=\"not_found\"} 1",
            "aloft_rpc_duration_seconds_bucket{le=\"+Inf\",service=\"a.B\",method=\"C\",code=\"ok\"} 1",
            "aloft_rpc_stream_duration_seconds_count{service=\"a.B\",method=\"C\",code=\"ok\"} 1",
            "aloft_rpc_streams_open{service=\"a.B\",method=\"C\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
