//! An upstream's answer on its way to a component.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use memchr::memmem;
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, WasiBody};

use super::{Upstream, shorter};

/// Bytes to hand over at once.
const PIECE: usize = 64 << 10;
/// How long the end of a body may take of which no more is wanted: many servers send
/// it right after the end of the answer in it.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(20);

/// A body: at most so many bytes, each piece in time, and an error instead of the
/// piece in which the secret comes back.
pub struct Arriving {
    body: Incoming,
    left: usize,
    limit: usize,
    upstream: Arc<Upstream>,
    /// The end of what was read, as the secret may be cut in two.
    tail: Vec<u8>,
    between_bytes: Option<Duration>,
    deadline: Instant,
    is_over: bool,
    /// What comes after that which was there already.
    failed: Option<Error>,
}

impl Arriving {
    pub(super) fn new(
        body: Incoming,
        limit: usize,
        upstream: Arc<Upstream>,
        between_bytes: Option<Duration>,
        deadline: Instant,
    ) -> Self {
        Self {
            body,
            left: limit,
            limit,
            upstream,
            tail: Vec::new(),
            between_bytes,
            deadline,
            is_over: false,
            failed: None,
        }
    }

    /// As `wasi:http` wants it.
    pub(super) fn boxed(self) -> WasiBody {
        StreamBody::new(stream::try_unfold(self, async |mut arriving| {
            let piece = arriving.next().await?;
            Ok(piece.map(|piece| (Frame::data(piece), arriving)))
        }))
        .boxed_unsync()
    }

    /// What is there already, which may be nothing.
    pub(in super::super) fn what_is_there(&mut self) -> Result<Vec<u8>, Error> {
        let mut there = Vec::new();
        while there.len() < PIECE
            && !self.is_over
            && let Some(piece) = self.next().now_or_never()
        {
            match piece {
                Ok(piece) => there.extend_from_slice(&piece.unwrap_or_default()),
                Err(error) if there.is_empty() => return Err(error),
                Err(error) => {
                    self.failed = Some(error);
                    break;
                }
            }
        }
        Ok(there)
    }

    /// Whether all of it was read.
    pub(in super::super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Waits for more of it; nothing at its end.
    pub(in super::super) async fn piece(&mut self) -> Result<Vec<u8>, Error> {
        // a frame without data is not the end
        while let Some(piece) = self.next().await? {
            if !piece.is_empty() {
                return Ok(piece.into());
            }
        }
        Ok(Vec::new())
    }

    /// Reads on for a moment, so that the connection can be used again.
    pub(in super::super) async fn drain(mut self) {
        self.deadline = self.deadline.min(Instant::now() + DRAIN_TIMEOUT);
        while !self.is_over && self.next().await.is_ok() {}
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let patience = shorter(self.between_bytes, self.deadline);
        let frame = timeout(patience, self.body.frame())
            .await
            .map_err(|_| Error::ConnectionReadTimeout)?;
        let Some(frame) = frame else {
            self.is_over = true;
            return Ok(None);
        };
        let frame = frame.map_err(|_| Error::HttpResponseIncomplete)?;
        // trailers are nothing of it
        let piece = frame.into_data().unwrap_or_default();
        self.left = self
            .left
            .checked_sub(piece.len())
            .ok_or(Error::HttpResponseBodySize(u64::try_from(self.limit).ok()))?;
        self.check(&piece)?;
        Ok(Some(piece))
    }

    fn check(&mut self, piece: &[u8]) -> Result<(), Error> {
        let Some(secret) = self.upstream.secret_bytes() else {
            return Ok(());
        };
        self.tail.extend_from_slice(piece);
        if contains(&self.tail, secret) {
            return Err(Error::InternalError(Some(
                "the upstream repeats the secret".to_owned(),
            )));
        }
        let keep = secret.len().saturating_sub(1);
        self.tail.drain(..self.tail.len().saturating_sub(keep));
        Ok(())
    }
}

/// Whether `needle` is in `text`.
pub(super) fn contains(text: &[u8], needle: &[u8]) -> bool {
    memmem::find(text, needle).is_some()
}
