//! Bodies that nobody reads: of requests that are refused by their head, or in the midst of the body.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header;
use futures_util::FutureExt;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::Request;
use hyper::body::Incoming;

/// Whether a connection of HTTP/1 has the rest of such a body before it.
#[derive(Clone, Debug)]
pub struct Unwanted {
    is_left: Arc<AtomicBool>,
    time: Duration,
}

impl Unwanted {
    /// Nothing yet; the rest of a body may take this time.
    pub fn new(time: Duration) -> Self {
        Self {
            is_left: Arc::default(),
            time,
        }
    }

    /// Whether there is a rest, which nothing can come after.
    pub fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Relaxed)
    }

    /// How long it may take.
    pub fn time(&self) -> Duration {
        self.time
    }
}

/// The body of a request on HTTP/1, which tells at its end whether something of it is left.
#[derive(Debug)]
pub struct Sent {
    body: Incoming,
    has_ended: bool,
    /// The client sends it once it is asked to.
    waits: bool,
    unwanted: Unwanted,
}

impl Sent {
    /// That of this request.
    pub fn of(request: Request<Incoming>, unwanted: &Unwanted) -> Request<Self> {
        let waits = request.headers().contains_key(header::EXPECT);
        request.map(|body| Self {
            body,
            has_ended: false,
            waits,
            unwanted: unwanted.clone(),
        })
    }
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.has_ended = frame.is_none();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        // a short one has come with its head, and the connection can go on
        while !self.waits
            && let Some(Some(Ok(_))) = self.frame().now_or_never()
        {}
        let is_left = !http_body::Body::is_end_stream(self);
        self.unwanted.is_left.store(is_left, Ordering::Relaxed);
    }
}
