//! The exchange itself, by the host's own interface for it.

use std::time::Duration;

use super::{Failure, Incoming, Post, Url};
use crate::component::wit::model::plugin::upstream;

pub(super) fn open(post: &Post<'_>, _: &Url<'_>) -> Result<Incoming, Failure> {
    let headers = post.sent_headers();
    let request = upstream::Request {
        method: "POST".to_owned(),
        url: post.url.to_owned(),
        headers: headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        timeout_ms: u32::try_from(post.timeout.as_millis()).unwrap_or(u32::MAX),
    };
    let response = upstream::send(&request, post.json)?;
    Ok(Incoming {
        status: response.status,
        headers: response.headers,
        body: Body {
            begun: response.body,
            rest: response.rest,
            left: post.response_limit,
        },
    })
}

/// A body on its way.
pub(super) struct Body {
    /// What came with the headers, until it is taken.
    begun: Vec<u8>,
    rest: Option<upstream::Body>,
    left: usize,
}

impl Body {
    pub(super) fn piece(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let mut piece = std::mem::take(&mut self.begun);
        if let Some(rest) = &self.rest
            && piece.is_empty()
        {
            piece = rest.read()?;
        }
        if piece.is_empty() {
            return Ok(None);
        }
        let left = self.left.checked_sub(piece.len());
        self.left = left.ok_or(Failure::TooLarge)?;
        Ok(Some(piece))
    }

    /// How long is the host's to say.
    pub(super) fn drain(&mut self, _: Duration) {
        if let Some(rest) = self.rest.take() {
            upstream::Body::end(rest);
        }
    }
}

impl From<upstream::Failure> for Failure {
    fn from(failure: upstream::Failure) -> Self {
        match failure {
            upstream::Failure::Invalid(why) => Self::Invalid(why),
            upstream::Failure::Denied => Self::Denied,
            upstream::Failure::Unreachable(why) => Self::Unreachable(why),
            upstream::Failure::Timeout => Self::Timeout,
            upstream::Failure::TooLarge => Self::TooLarge,
            upstream::Failure::Broken(why) => Self::Broken(why),
        }
    }
}
