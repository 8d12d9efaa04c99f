//! The door that clients come through: Connect requests to the real router, in process or over a port.

use std::{convert::Infallible, time::Duration};

use buffa::Message;
use bytes::{Buf as _, Bytes, BytesMut};
use connectrpc::ConnectRpcService;
use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::Deserialize;
use tower::ServiceExt as _;

/// Longest wait for the answer to one request. Far beyond what a loaded machine needs: reaching it means a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer that is an error of the contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The Connect code, such as `not_found`.
    pub code: String,
    /// The words for the person.
    pub message: String,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The server refused.
    Refused(Refused),
    /// The connection broke, so the request may have been carried out or not.
    Lost(String),
    /// The answer is not one of the protocol.
    Garbled(String),
}

impl From<Refused> for CallError {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// A way to the server.
#[derive(Clone)]
pub enum Door {
    /// Straight into the router.
    Inside(ConnectRpcService),
    /// Over TCP, to a URL without a slash at the end.
    Port(Client<HttpConnector, Full<Bytes>>, String),
}

#[derive(Deserialize)]
struct WireError {
    code: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct EndOfStream {
    error: Option<WireError>,
}

impl From<WireError> for Refused {
    fn from(error: WireError) -> Self {
        Self { code: error.code, message: error.message }
    }
}

impl Door {
    /// The door of a server that listens at `url`.
    pub fn port(url: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).build(HttpConnector::new());
        Self::Port(client, url.trim_end_matches('/').to_owned())
    }

    async fn send(
        &self,
        method: &str,
        kind: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Response<ResponseBody>, CallError> {
        let base = match self {
            Self::Inside(_) => "http://localhost",
            Self::Port(_, url) => url,
        };
        // Our own services have another package than the contract's.
        let package = if method.starts_with("aloft.") { "" } else { "flyteidl2." };
        let mut request = Request::post(format!("{base}/{package}{method}")).header("content-type", kind);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(body)).map_err(|e| CallError::Garbled(e.to_string()))?;
        match self {
            Self::Inside(service) => {
                let answer: Result<_, Infallible> = service.clone().oneshot(request).await;
                let Ok(response) = answer;
                Ok(response.map(|b| b.map_err(|e: Infallible| match e {}).boxed_unsync()))
            }
            Self::Port(client, _) => {
                let response = client.request(request).await.map_err(|e| CallError::Lost(e.to_string()))?;
                Ok(response.map(|b| b.map_err(|e| -> BoxError { e.into() }).boxed_unsync()))
            }
        }
    }

    /// A call with one answer. `method` is `package.Service/Method` without a leading `flyteidl2.`.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn unary<T: Message>(
        &self,
        method: &str,
        request: &impl Message,
        headers: &[(&str, &str)],
    ) -> Result<T, CallError> {
        let call = async {
            let response = self.send(method, "application/proto", headers, request.encode_to_bytes()).await?;
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.map_err(|e| CallError::Lost(e.to_string()))?.to_bytes();
            Ok((parts, bytes))
        };
        let (parts, bytes) = tokio::time::timeout(PATIENCE, call)
            .await
            .unwrap_or_else(|_| Err(CallError::Garbled(format!("{method} did not answer within {PATIENCE:?}"))))?;
        if parts.status.is_success() {
            return T::decode_from_slice(&bytes).map_err(|e| CallError::Garbled(format!("{method}: {e}")));
        }
        let error: WireError = serde_json::from_slice(&bytes)
            .map_err(|e| CallError::Garbled(format!("{method}: {} without an error's body: {e}", parts.status)))?;
        Err(CallError::Refused(error.into()))
    }

    /// A call whose answer is a stream.
    ///
    /// # Errors
    /// [`CallError`] if it could not be opened.
    pub async fn stream(&self, method: &str, request: &impl Message) -> Result<Stream, CallError> {
        let message = request.encode_to_bytes();
        let mut body = BytesMut::with_capacity(message.len() + 5);
        body.extend_from_slice(&[0]);
        body.extend_from_slice(&u32::try_from(message.len()).unwrap_or(u32::MAX).to_be_bytes());
        body.extend_from_slice(&message);
        let response = self.send(method, "application/connect+proto", &[], body.freeze()).await?;
        if !response.status().is_success() {
            return Err(CallError::Garbled(format!("{method}: a stream answered {}", response.status())));
        }
        Ok(Stream { method: method.to_owned(), body: response.into_body(), read: BytesMut::new() })
    }
}

/// How a stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// By itself: what it watches is over.
    Clean,
    /// With an error.
    Failed(CallError),
}

/// The messages of one call.
pub struct Stream {
    method: String,
    body: ResponseBody,
    read: BytesMut,
}

impl Stream {
    /// The next message.
    ///
    /// # Errors
    /// [`StreamEnd`] when there are no more.
    pub async fn next<T: Message>(&mut self) -> Result<T, StreamEnd> {
        let (flags, bytes) = self.envelope().await.map_err(StreamEnd::Failed)?;
        if flags & 0x02 == 0 {
            let garbled = |e| StreamEnd::Failed(CallError::Garbled(format!("{}: {e}", self.method)));
            return T::decode_from_slice(&bytes).map_err(garbled);
        }
        let garbled = |e| StreamEnd::Failed(CallError::Garbled(format!("{}: the end of the stream: {e}", self.method)));
        let end: EndOfStream = serde_json::from_slice(&bytes).map_err(garbled)?;
        Err(end.error.map_or(StreamEnd::Clean, |e| StreamEnd::Failed(CallError::Refused(e.into()))))
    }

    async fn envelope(&mut self) -> Result<(u8, Bytes), CallError> {
        loop {
            if let Some(head) = self.read.first_chunk::<5>() {
                let (flags, length) = (head[0], u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize);
                if self.read.len() >= 5 + length {
                    self.read.advance(5);
                    return Ok((flags, self.read.split_to(length).freeze()));
                }
            }
            match self.body.frame().await {
                None if self.body.is_end_stream() && self.read.is_empty() => {
                    return Err(CallError::Lost(format!("{}: the stream broke off", self.method)));
                }
                None => return Err(CallError::Lost(format!("{}: the stream broke off in a message", self.method))),
                Some(Err(e)) => return Err(CallError::Lost(e.to_string())),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
            }
        }
    }
}
