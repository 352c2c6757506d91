//! HTTP for backends that call an API: a whole request, a whole answer.
//!
//! The host decides what may be reached: the scheme, host and port that the
//! operator configured for this model, and nothing else. It also adds the
//! operator's secret; a request that sets `authorization` itself fails.
//!
//! ```no_run
//! # use std::time::Duration;
//! # fn ask(deadline_ms: u32) -> Result<(), plugin_sdk::Error> {
//! let response = plugin_sdk::http::Post {
//!     url: "https://api.example/v1/completions",
//!     headers: &[("x-request-id", "42")],
//!     json: br#"{"prompt":"hello"}"#,
//!     timeout: Duration::from_millis(deadline_ms.into()),
//!     response_limit: 1 << 20,
//! }
//! .send()?;
//! assert_eq!(response.status, 200);
//! # Ok(())
//! # }
//! ```

#[cfg(target_family = "wasm")]
mod wasi;

use std::time::Duration;

use crate::{Error, ErrorKind};

/// A POST with a JSON body.
#[derive(Clone, Copy, Debug)]
pub struct Post<'a> {
    /// `https://host/path?query`; the host may grant `http://` as well.
    pub url: &'a str,
    /// Headers beside `content-type` and `accept`, which are set.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body, JSON text.
    pub json: &'a [u8],
    /// How long the exchange may take in all, to the last byte of the answer.
    pub timeout: Duration,
    /// The longest body to accept, in bytes.
    pub response_limit: usize,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first value of a header that is text; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .filter(|(have, _)| have == name)
            .find_map(|(_, value)| std::str::from_utf8(value).ok())
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The URL or a header cannot be sent.
    Invalid(String),
    /// The operator has not granted this host to the model.
    Denied,
    /// The upstream could not be reached.
    Unreachable(String),
    /// The answer did not come within the time allowed.
    Timeout,
    /// The answer is longer than allowed.
    TooLarge,
    /// The connection broke, or what came is not HTTP.
    Broken(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let unreachable = "the model's upstream cannot be reached";
        let broken = "the model's upstream sent no usable answer";
        match failure {
            Failure::Invalid(detail) => {
                Error::new(ErrorKind::Internal, "the model is not configured correctly")
                    .code("invalid_upstream_request")
                    .detail(detail)
            }
            Failure::Denied => Error::new(ErrorKind::Upstream, unreachable)
                .code("not_granted")
                .detail("the plugin asked for a host that is not its model's api_url"),
            Failure::Unreachable(detail) => Error::new(ErrorKind::Upstream, unreachable)
                .code("upstream_unreachable")
                .detail(detail),
            Failure::Timeout => Error::new(
                ErrorKind::Timeout,
                "the model's upstream did not answer in time",
            ),
            Failure::TooLarge => Error::new(ErrorKind::Upstream, broken)
                .code("upstream_answer_too_large")
                .detail("the answer is longer than allowed"),
            Failure::Broken(detail) => Error::new(ErrorKind::Upstream, broken)
                .code("upstream_answer_broken")
                .detail(detail),
        }
    }
}

impl Post<'_> {
    /// Sends the request and waits for the whole answer, whatever its status.
    ///
    /// # Errors
    /// See [`Failure`]. Outside a component there is no network, so it is
    /// always [`Failure::Denied`].
    pub fn send(&self) -> Result<Response, Failure> {
        let url = Url::parse(self.url)?;
        #[cfg(target_family = "wasm")]
        return wasi::send(self, &url);
        #[cfg(not(target_family = "wasm"))]
        {
            let _ = url;
            Err(Failure::Denied)
        }
    }
}

/// An absolute URL in the parts that `wasi:http` wants. The host checks them
/// again, strictly; this only takes them apart.
#[derive(Debug, PartialEq, Eq)]
struct Url<'a> {
    secure: bool,
    authority: &'a str,
    path_and_query: &'a str,
}

impl<'a> Url<'a> {
    fn parse(url: &'a str) -> Result<Self, Failure> {
        let invalid = |why| Err(Failure::Invalid(format!("api_url {why}")));
        let (secure, rest) = if let Some(rest) = url.strip_prefix("https://") {
            (true, rest)
        } else if let Some(rest) = url.strip_prefix("http://") {
            (false, rest)
        } else {
            return invalid("starts with neither https:// nor http://");
        };
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path_and_query) = rest.split_at(end);
        if authority.is_empty() {
            return invalid("names no host");
        }
        if authority.contains('@') {
            return invalid("must not hold a name or password");
        }
        Ok(Self {
            secure,
            authority,
            path_and_query: if path_and_query.is_empty() {
                "/"
            } else {
                path_and_query
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Failure, Url};

    #[test]
    fn urls_are_taken_apart() {
        let url = Url::parse("https://api.example:8443/v1/completions?v=1#top").unwrap();
        assert!(url.secure);
        assert_eq!(url.authority, "api.example:8443");
        assert_eq!(url.path_and_query, "/v1/completions?v=1");
        assert_eq!(Url::parse("http://[::1]:80").unwrap().path_and_query, "/");
        for bad in [
            "",
            "api.example/v1",
            "ftp://a/",
            "https://",
            "https:///v1",
            "https://u:p@a/",
        ] {
            assert!(matches!(Url::parse(bad), Err(Failure::Invalid(_))), "{bad}");
        }
    }
}
