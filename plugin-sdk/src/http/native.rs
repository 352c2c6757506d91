//! The exchange outside a component, over plain HTTP: what is left of a component's
//! without its sandbox, to measure what that costs. There is no TLS, and nobody adds a
//! secret.

use std::io::Read;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use ureq::Agent;

use super::{Failure, Incoming, Post, Url};

/// Bytes to ask for at once when reading an answer.
const CHUNK: usize = 64 * 1024;
/// Unused connections kept: as many as a busy model has requests.
const IDLE_CONNECTIONS: usize = 64;

/// All models' connections.
static AGENT: LazyLock<Agent> = LazyLock::new(|| {
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .max_idle_connections(IDLE_CONNECTIONS)
        .max_idle_connections_per_host(IDLE_CONNECTIONS);
    config.build().into()
});

/// A body on its way.
pub(super) struct Body {
    reader: ureq::BodyReader<'static>,
    left: usize,
}

impl Body {
    pub(super) fn piece(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut piece = vec![0; CHUNK];
        let length = self.reader.read(&mut piece);
        piece.truncate(length.map_err(|error| Failure::Broken(error.to_string()))?);
        let left = self.left.checked_sub(piece.len());
        self.left = left.ok_or(Failure::TooLarge)?;
        Ok((!piece.is_empty()).then_some(piece))
    }

    pub(super) fn drain(&mut self, timeout: Duration) {
        let end = Instant::now() + timeout;
        while Instant::now() < end && matches!(self.piece(), Ok(Some(_))) {}
    }
}

pub(super) fn open(post: &Post<'_>, url: &Url<'_>) -> Result<Incoming, Failure> {
    if url.secure {
        return Err(Failure::Denied);
    }
    let request = AGENT.post(post.url).content_type("application/json");
    let request = post.headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    let request = request.config().timeout_global(Some(post.timeout)).build();
    let response = request.send(post.json).map_err(|error| match error {
        ureq::Error::Timeout(_) => Failure::Timeout,
        error => Failure::Unreachable(error.to_string()),
    })?;
    let (parts, body) = response.into_parts();
    let headers = parts.headers.iter();
    Ok(Incoming {
        status: parts.status.as_u16(),
        headers: headers
            .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
            .collect(),
        body: Body {
            reader: body.into_reader(),
            left: post.response_limit,
        },
    })
}
