//! Answers that their clients do not read. hyper waits for a client without an end, and all that
//! it is to write stays in memory; on HTTP/2 each stream has a window of its own, so that what
//! others take of the connection tells nothing of one of them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use bytes::Buf;
use futures_util::task::AtomicWaker;
use http_body::Frame;
use hyper::rt::Executor;

/// What a client has to take at least in the time that it has; as long as a frame of HTTP/2.
const PIECE: usize = 16 << 10;

tokio::task_local! {
    /// Who reads what this task writes.
    static READER: Arc<Reader>;
}

/// How many pieces of bodies hyper was given, and how many of them are written or dropped.
#[derive(Debug, Default)]
struct Reader {
    given: AtomicUsize,
    gone: AtomicUsize,
    woken: AtomicWaker,
}

impl Reader {
    fn is_behind(&self) -> bool {
        self.gone.load(Ordering::Acquire) != self.given.load(Ordering::Acquire)
    }

    /// Waits until all pieces are gone.
    fn poll_gone(&self, context: &Context<'_>) -> Poll<()> {
        self.woken.register(context.waker());
        if self.is_behind() {
            Poll::Pending
        } else {
            Poll::Ready(())
        }
    }

    /// Waits until no piece goes for so long, or up to twice that, while there are some.
    async fn stalls(&self, patience: Duration) {
        loop {
            let (was_behind, gone) = (self.is_behind(), self.gone.load(Ordering::Acquire));
            tokio::time::sleep(patience).await;
            if was_behind && gone == self.gone.load(Ordering::Acquire) {
                return;
            }
        }
    }
}

/// Runs what writes answers to one reader, a connection or a stream of HTTP/2; cut off
/// when nothing is read of what there is for longer than `patience`.
pub async fn while_read<T>(writing: impl Future<Output = T>, patience: Duration) -> Option<T> {
    let reader = Arc::<Reader>::default();
    tokio::select! {
        biased;
        written = READER.scope(Arc::clone(&reader), writing) => Some(written),
        () = reader.stalls(patience) => {
            tracing::debug!("an answer that is not read is cut off");
            None
        }
    }
}

/// Runs the streams of HTTP/2, each while it is read.
#[derive(Clone, Debug)]
pub struct Streams {
    /// How long one may read nothing.
    pub patience: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        tokio::spawn(while_read(stream, self.patience));
    }
}

/// A body that is at its end once it is read: until then its stream can be cut off.
#[derive(Debug)]
pub struct Answer {
    /// Nothing after its end.
    body: Option<Body>,
    rest: Bytes,
    reader: Arc<Reader>,
}

impl Answer {
    /// The body of an answer that this task writes: one within [`while_read`].
    pub fn new(body: Body) -> Self {
        Self {
            body: Some(body),
            rest: Bytes::new(),
            reader: READER.get(),
        }
    }
}

impl http_body::Body for Answer {
    type Data = Piece;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, axum::Error>>> {
        while self.rest.is_empty() {
            let Some(body) = &mut self.body else {
                return self.reader.poll_gone(context).map(|()| None);
            };
            match ready!(Pin::new(body).poll_frame(context)) {
                // no answer has trailers
                Some(frame) => self.rest = frame?.into_data().unwrap_or_default(),
                None => self.body = None,
            }
        }
        let length = self.rest.len().min(PIECE);
        let bytes = self.rest.split_to(length);
        let piece = Piece::new(bytes, Arc::clone(&self.reader));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
            && self.body.as_ref().is_none_or(Body::is_end_stream)
            && !self.reader.is_behind()
    }
}

/// A piece of a body that is to be written.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    reader: Arc<Reader>,
}

impl Piece {
    fn new(bytes: Bytes, reader: Arc<Reader>) -> Self {
        reader.given.fetch_add(1, Ordering::AcqRel);
        Self { bytes, reader }
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.reader.gone.fetch_add(1, Ordering::AcqRel);
        self.reader.woken.wake();
    }
}
