//! HTTP for backends that call an API.
//!
//! - [`Post`]: a request; its answer whole ([`Post::send`]) or piece by piece
//!   ([`Post::open`])
//! - [`sse`]: an answer of Server-Sent Events, record by record
//! - [`Retry`]: when to try again
//! - [`upstream`]: what an error of a model's API means to the caller
//! - [`Api`]: all of these as an adapter needs them, from the operator's settings
//!
//! The host decides what may be reached: the scheme, host and port that the
//! operator configured for this model, and nothing else. It also adds the
//! operator's secret; a request that sets its header, or `authorization`, fails.
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

mod api;
mod failure;
#[cfg(all(target_family = "wasm", feature = "upstream"))]
mod host;
#[cfg(all(not(target_family = "wasm"), feature = "native-http"))]
mod native;
#[cfg(all(not(target_family = "wasm"), not(feature = "native-http")))]
mod none;
mod retry;
pub mod sse;
pub mod upstream;
mod url;
#[cfg(all(target_family = "wasm", not(feature = "upstream")))]
mod wasi;

use std::fmt;
use std::time::Duration;

use serde_json::value::RawValue;

pub use self::api::{Answer, Api, Decode};
pub use self::failure::{Failure, unusable};
pub use self::retry::Retry;

#[cfg(all(target_family = "wasm", feature = "upstream"))]
use self::host as network;
#[cfg(all(not(target_family = "wasm"), feature = "native-http"))]
use self::native as network;
#[cfg(all(not(target_family = "wasm"), not(feature = "native-http")))]
use self::none as network;
use self::url::Url;
#[cfg(all(target_family = "wasm", not(feature = "upstream")))]
use self::wasi as network;
use crate::{Error, ErrorKind};

/// How long the end of a body may take after the end of the answer in it: many
/// servers send the two apart, one right after the other.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(20);

/// A POST with a JSON body.
#[derive(Clone, Copy, Debug)]
pub struct Post<'a> {
    /// `https://host/path?query`; the host may grant `http://` as well.
    pub url: &'a str,
    /// Headers. `content-type` is set; so is `accept`, to JSON, unless it is here.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body, JSON text.
    pub json: &'a [u8],
    /// How long the exchange may take in all, to the last byte of the answer.
    pub timeout: Duration,
    /// The longest body to accept, in bytes.
    pub response_limit: usize,
}

impl Post<'_> {
    /// Sends the request and waits for the whole answer, whatever its status.
    ///
    /// # Errors
    /// See [`Failure`]. Outside a component there is no network, so it is
    /// always [`Failure::Denied`].
    pub fn send(&self) -> Result<Response, Failure> {
        self.open()?.whole()
    }

    /// Sends the request and waits for the answer's status and headers only.
    ///
    /// # Errors
    /// As [`Post::send`].
    pub fn open(&self) -> Result<Incoming, Failure> {
        network::open(self, &Url::parse(self.url)?)
    }

    /// All headers that are sent, of names and values.
    #[cfg(target_family = "wasm")]
    fn sent_headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let accepts = self.headers.iter().any(|(name, _)| *name == "accept");
        [("content-type", "application/json")]
            .into_iter()
            .chain((!accepts).then_some(("accept", "application/json")))
            .chain(self.headers.iter().copied())
    }
}

/// Names in lower case, in the order they came.
type Headers = Vec<(String, Vec<u8>)>;

/// An answer whose body is still coming in. Dropping it ends the exchange.
pub struct Incoming {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Headers,
    body: network::Body,
}

impl Incoming {
    /// The first value of a header that is text; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// Waits for the next piece of the body, as it came from the network; `None`
    /// at its end.
    ///
    /// # Errors
    /// [`Failure::Timeout`] at the request's `timeout`, [`Failure::TooLarge`] past
    /// its `response_limit`, [`Failure::Broken`] when the connection ends before
    /// the body. After an error there is nothing more.
    pub fn piece(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        self.body.piece()
    }

    /// Waits a moment for the end of a body of which nothing more is wanted, so
    /// that the host can use the connection again. Without its end it is closed.
    pub fn drain(&mut self) {
        self.body.drain(DRAIN_TIMEOUT);
    }

    /// Waits for the rest of the body.
    ///
    /// # Errors
    /// As [`Incoming::piece`].
    pub fn whole(mut self) -> Result<Response, Failure> {
        let mut body = Vec::new();
        while let Some(piece) = self.piece()? {
            body.extend(piece);
        }
        Ok(Response {
            status: self.status,
            headers: self.headers,
            body,
        })
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("status", &self.status)
            .field("headers", &self.headers)
            .finish_non_exhaustive()
    }
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP status.
    pub status: u16,
    /// Names in lower case, in the order they came.
    pub headers: Headers,
    /// The body.
    pub body: Vec<u8>,
}

impl Response {
    /// The first value of a header that is text; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers
        .iter()
        .filter(|(have, _)| have == name)
        .find_map(|(_, value)| std::str::from_utf8(value).ok())
}

/// JSON text of the caller's that goes on as it is, such as an extension's value or
/// a tool's parameters.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] naming `param` when it is no JSON.
pub fn raw_json<'a>(json: &'a str, param: &str) -> Result<&'a RawValue, Error> {
    serde_json::from_str(json).map_err(|error| {
        let message = format!("{param} is not valid JSON: {error}");
        Error::new(ErrorKind::InvalidRequest, message).param(param)
    })
}
