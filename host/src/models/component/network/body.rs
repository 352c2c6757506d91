//! An upstream's answer on its way to a component.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use wasmtime_wasi_http::{Error, WasiBody};

struct Reading<W> {
    response: reqwest::Response,
    left: usize,
    limit: usize,
    secret: Option<SecretString>,
    /// The end of what was read, as the secret may be cut in two.
    tail: Vec<u8>,
    patience: W,
}

/// The body of `response`: at most `limit` bytes, each piece within `patience`,
/// and an error instead of the piece in which the secret comes back.
pub(super) fn limited(
    response: reqwest::Response,
    limit: usize,
    secret: Option<SecretString>,
    patience: impl Fn() -> Duration + Send + 'static,
) -> WasiBody {
    let reading = Reading {
        response,
        left: limit,
        limit,
        secret,
        tail: Vec::new(),
        patience,
    };
    StreamBody::new(stream::try_unfold(reading, async |mut reading| {
        let piece = reading.piece().await?;
        Ok(piece.map(|piece| (Frame::data(piece), reading)))
    }))
    .boxed_unsync()
}

impl<W: Fn() -> Duration> Reading<W> {
    async fn piece(&mut self) -> Result<Option<Bytes>, Error> {
        let piece = timeout((self.patience)(), self.response.chunk())
            .await
            .map_err(|_| Error::ConnectionReadTimeout)?
            .map_err(|error| {
                if error.is_timeout() {
                    Error::ConnectionReadTimeout
                } else {
                    Error::HttpResponseIncomplete
                }
            })?;
        let Some(piece) = piece else {
            return Ok(None);
        };
        self.left = self
            .left
            .checked_sub(piece.len())
            .ok_or(Error::HttpResponseBodySize(u64::try_from(self.limit).ok()))?;
        self.check(&piece)?;
        Ok(Some(piece))
    }

    fn check(&mut self, piece: &[u8]) -> Result<(), Error> {
        let Some(secret) = &self.secret else {
            return Ok(());
        };
        let secret = secret.expose_secret().as_bytes();
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

/// Whether `needle`, if it is anything, is in `text`.
pub(super) fn contains(text: &[u8], needle: &[u8]) -> bool {
    !needle.is_empty() && text.windows(needle.len()).any(|window| window == needle)
}
