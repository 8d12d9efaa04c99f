//! Reads what is left of a refused request, so that its sender sees the refusal.
//!
//! A client that is still sending when the connection is closed gets a reset instead of the answer. So what it still sends
//! is read and thrown away, up to a bound, before the answer goes out.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;

/// Most bytes thrown away. A client that sends more is cut off: it would cost more than its answer is worth.
const MOST: usize = 64 << 20;

/// Longest time spent on it.
const LONGEST: Duration = Duration::from_secs(10);

/// A request body of which the rest can be read by somebody else.
pub(super) struct Drained<B> {
    body: Arc<Mutex<Pin<Box<B>>>>,
}

impl<B> Clone for Drained<B> {
    fn clone(&self) -> Self {
        Self { body: Arc::clone(&self.body) }
    }
}

impl<B> Drained<B>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    pub(super) fn new(body: B) -> Self {
        Self { body: Arc::new(Mutex::new(Box::pin(body))) }
    }

    /// Reads the rest, within bounds.
    pub(super) async fn drain(mut self) {
        let rest = async {
            let mut read = 0;
            while let Some(Ok(frame)) = self.frame().await {
                read += frame.data_ref().map_or(0, Bytes::len);
                if read > MOST {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(LONGEST, rest).await;
    }
}

impl<B> Body for Drained<B>
where
    B: Body<Data = Bytes> + Send + 'static,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let mut body = self.body.lock();
        // Polled again after its end, a body may do anything.
        if body.is_end_stream() {
            return Poll::Ready(None);
        }
        body.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.lock().size_hint()
    }
}
