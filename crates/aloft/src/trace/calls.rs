//! RPCs as spans, and what is said of those that fail through our own fault.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use connectrpc::{
    ConnectError, ErrorCode, Payload, Protocol, RequestContext,
    interceptor::{
        Interceptor, Next, NextStream, PayloadStream, StreamRequest, StreamResponse, UnaryRequest, UnaryResponse,
    },
};
use futures::Stream;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::{Instrument as _, Span, field::Empty};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use super::TARGET;
use crate::request::RequestId;

/// Gives each RPC a span, in the trace of whoever sent it; and makes sure that whoever is told of a failure of ours is told the
/// identity under which the log speaks of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Telling;

/// An RPC under way.
#[derive(Clone)]
struct Call {
    /// For traces.
    span: Span,
    /// For the log: that of the request.
    request: Span,
    id: Option<RequestId>,
    path: String,
}

/// The name of the protocol, as the standard's conventions have it.
fn system(context: &RequestContext) -> &'static str {
    match context.protocol() {
        Some(Protocol::Grpc | Protocol::GrpcWeb) => "grpc",
        _ => "connect_rpc",
    }
}

impl Call {
    fn begin(context: &RequestContext) -> Self {
        let path = context.path().unwrap_or_default().trim_start_matches('/').to_owned();
        let id = context.extensions().get::<RequestId>().cloned();
        let (service, method) = path.split_once('/').unwrap_or((&path, ""));
        let span = tracing::info_span!(
            target: TARGET,
            parent: None,
            "rpc",
            otel.name = path,
            otel.kind = "server",
            rpc.system = system(context),
            rpc.service = service,
            rpc.method = method,
            request_id = id.as_ref().map_or("", |id| id.0.as_ref()),
            rpc.code = Empty,
            otel.status_code = Empty,
        );
        if !span.is_disabled() {
            let sent = TraceContextPropagator::new().extract(&HeaderExtractor(context.headers()));
            // Without one, or with one that is none, a trace begins here.
            let _ = span.set_parent(sent);
        }
        Self { span, request: Span::current(), id, path }
    }

    fn went_well(&self) {
        self.span.record("rpc.code", "ok");
    }

    /// Notes how it ended, and adds the identity to what the client is told of a failure of ours.
    fn failed(&self, error: &mut ConnectError) {
        self.span.record("rpc.code", error.code.as_str());
        let ours = matches!(error.code, ErrorCode::Internal | ErrorCode::Unknown | ErrorCode::DataLoss);
        if ours || error.code == ErrorCode::Unavailable {
            self.span.record("otel.status_code", "ERROR");
        }
        let message = error.message.clone().unwrap_or_default();
        self.request.in_scope(|| {
            if ours {
                tracing::warn!(rpc = self.path, code = error.code.as_str(), error = message, "an RPC failed");
            } else {
                tracing::debug!(rpc = self.path, code = error.code.as_str(), error = message, "an RPC was refused");
            }
        });
        if let Some(id) = self.id.as_ref().filter(|_| ours) {
            error.message = Some(format!("{message} (request {})", id.0));
        }
    }
}

#[connectrpc::async_trait]
impl Interceptor for Telling {
    async fn intercept_unary(&self, request: UnaryRequest, next: Next<'_>) -> Result<UnaryResponse, ConnectError> {
        let call = Call::begin(&request.ctx);
        let answer = next.run(request).instrument(call.span.clone()).await;
        answer.inspect(|_| call.went_well()).map_err(|mut error| {
            call.failed(&mut error);
            error
        })
    }

    async fn intercept_streaming(
        &self,
        request: StreamRequest,
        inbound: PayloadStream,
        next: NextStream<'_>,
    ) -> Result<StreamResponse, ConnectError> {
        let call = Call::begin(&request.ctx);
        match next.run(request, inbound).instrument(call.span.clone()).await {
            Ok(mut answer) => {
                answer.body = Box::pin(ToldStream { inner: answer.body, call });
                Ok(answer)
            }
            Err(mut error) => {
                call.failed(&mut error);
                Err(error)
            }
        }
    }
}

/// A stream that is polled in the spans of its request: what is logged on its account carries the identity to its end.
struct ToldStream {
    inner: PayloadStream,
    call: Call,
}

impl Stream for ToldStream {
    type Item = Result<Payload, ConnectError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Self { inner, call } = &mut *self;
        let (request, span) = (call.request.clone(), call.span.clone());
        let _in_request = request.enter();
        let _in_span = span.enter();
        let mut item = inner.as_mut().poll_next(cx);
        match &mut item {
            Poll::Ready(Some(Err(error))) => call.failed(error),
            Poll::Ready(None) => call.went_well(),
            Poll::Ready(Some(Ok(_))) | Poll::Pending => {}
        }
        item
    }
}
