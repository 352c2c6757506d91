//! The one way out: requests of a component to its model's upstream, which the
//! host sends for it. The component names what it wants; where it goes, with which
//! secret, how long and how much is decided here.

mod addresses;
mod body;
mod client;
#[cfg(test)]
mod tests;
mod upstream;

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use parking_lot::Mutex;
use reqwest::Url;
use tokio::time::timeout;
use tower::timeout::error::Elapsed;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, RequestOptions, WasiBody,
    WasiHttpHooks,
};

pub use self::body::Arriving;
pub use self::upstream::Upstream;

use self::addresses::{Prohibited, PublicAddresses};
use self::client::{CONNECT_TIMEOUT, Client, client};
use self::upstream::is_same_origin;
use super::guest_log::one_line;
use crate::cohort::behind_others;
use crate::config::ModelLimits;

const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("model-host/", env!("CARGO_PKG_VERSION")));
const ANYTHING: HeaderValue = HeaderValue::from_static("*/*");

/// Bytes of a request's body that wait here at most twice, until the host reads them.
const CHUNK: usize = 16 << 10;

/// Most characters of a host's name, as of any in DNS.
const LONGEST_NAME: usize = 253;

/// Headers that a component may neither set nor read, besides the secret's own and
/// those of the connection itself.
const SECRET_HEADERS: [HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, header::SET_COOKIE];

/// The way to one upstream, with its connections. Each component has its own, so
/// that no connection is shared between models.
pub(super) struct Gate {
    model: Arc<str>,
    upstream: Arc<Upstream>,
    secret_value: Option<HeaderValue>,
    forbidden: ForbiddenHeaderFilter,
    client: Client,
    limits: Arc<ModelLimits>,
    /// Where a component's request went last, which is where nearly all go, by the URL
    /// as it was given.
    last: Mutex<Option<(String, Destination)>>,
}

/// Where a request goes, which is granted.
#[derive(Clone)]
struct Destination {
    uri: Uri,
    /// Whether the secret goes along.
    is_api: bool,
}

impl Gate {
    /// # Errors
    /// With what to tell the operator.
    pub(super) fn new(
        model: Arc<str>,
        upstream: Arc<Upstream>,
        limits: Arc<ModelLimits>,
    ) -> Result<Self, String> {
        let secret_value = upstream
            .secret_value()
            .map_err(|_| "api_key cannot be sent as a header".to_owned())?;
        let resolver = PublicAddresses {
            allow_private: upstream.allow_private_addresses,
        };
        let client = client(resolver, CONNECT_TIMEOUT)
            .map_err(|error| format!("no HTTP client: {error}"))?;
        let secret_header = upstream.secret_header.clone();
        Ok(Self {
            model,
            upstream,
            secret_value,
            forbidden: Arc::new(move |name| is_forbidden(name) || *name == secret_header),
            client,
            limits,
            last: Mutex::default(),
        })
    }

    /// The one way out. What is asked is as it is granted, whoever asks and by which
    /// interface; the exchange is over at `deadline`.
    async fn send(
        &self,
        exchange: Exchange,
        first_byte: Option<Duration>,
        deadline: Instant,
    ) -> Result<(Response<()>, Incoming), Error> {
        let Exchange {
            method,
            url,
            mut headers,
            body,
        } = exchange;
        let Destination { uri, is_api } = self.destination(&url)?;
        let forbidden: Vec<HeaderName> = headers
            .keys()
            .filter(|name| (self.forbidden)(name))
            .cloned()
            .collect();
        for name in forbidden {
            headers.remove(name);
        }
        if size(&headers) > self.limits.header_bytes {
            let limit = u32::try_from(self.limits.header_bytes).ok();
            return Err(Error::HttpRequestHeaderSectionSize(limit));
        }
        if body.len() > self.limits.request_bytes {
            return Err(self.too_long());
        }
        if let Some(secret) = &self.secret_value
            && is_api
        {
            headers.insert(self.upstream.secret_header.clone(), secret.clone());
        }
        headers.entry(header::USER_AGENT).or_insert(USER_AGENT);
        headers.entry(header::ACCEPT).or_insert(ANYTHING);
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        // after others that are about to be here: one after the other, they find an upstream
        // awake that each by itself would have to wake
        behind_others().await;
        let response = timeout(shorter(first_byte, deadline), self.client.request(request))
            .await
            .map_err(|_| Error::HttpResponseTimeout)?
            .map_err(|error| self.failure(&error))?;

        if size(response.headers()) > self.limits.header_bytes {
            let limit = u32::try_from(self.limits.header_bytes).ok();
            return Err(Error::HttpResponseHeaderSectionSize(limit));
        }
        let (parts, body) = response.into_parts();
        let mut answer = Response::new(());
        *answer.status_mut() = parts.status;
        *answer.headers_mut() = self.readable(parts.headers);
        Ok((answer, body))
    }

    /// The same for `wasi:http`.
    async fn send_wasi(
        &self,
        request: Request<WasiBody>,
        options: RequestOptions,
        deadline: Instant,
    ) -> Result<Response<WasiBody>, Error> {
        let (parts, body) = request.into_parts();
        let url = parts.uri.to_string();
        // before its body is taken
        self.destination(&url)?;
        let body = Limited::new(body, self.limits.request_bytes)
            .collect()
            .await;
        let exchange = Exchange {
            method: parts.method,
            url,
            headers: parts.headers,
            body: body.map_err(|_| self.too_long())?.to_bytes(),
        };
        let first_byte = options.first_byte_timeout;
        let (answer, body) = self.send(exchange, first_byte, deadline).await?;
        let body = self.arriving(body, deadline, options.between_bytes_timeout);
        Ok(answer.map(|()| body.boxed()))
    }

    fn arriving(
        &self,
        body: Incoming,
        deadline: Instant,
        between_bytes: Option<Duration>,
    ) -> Arriving {
        let (upstream, limit) = (Arc::clone(&self.upstream), self.limits.response_bytes);
        Arriving::new(body, limit, upstream, between_bytes, deadline)
    }

    fn too_long(&self) -> Error {
        Error::HttpRequestBodySize(u64::try_from(self.limits.request_bytes).ok())
    }

    /// Where a URL leads, if that is granted.
    fn destination(&self, url: &str) -> Result<Destination, Error> {
        let last = || self.last.lock();
        if let Some((given, destination)) = &*last()
            && given == url
        {
            return Ok(destination.clone());
        }
        let parsed = Url::parse(url).map_err(|_| Error::HttpRequestUriInvalid)?;
        if !self.upstream.grants(&parsed) {
            let host = parsed.host_str().unwrap_or_default();
            let host = one_line(Some(&self.upstream), host, LONGEST_NAME);
            tracing::warn!(
                model = &*self.model,
                host,
                "plugin asked for a host it is not granted"
            );
            return Err(Error::HttpRequestDenied);
        }
        let destination = Destination {
            // as it was compared, not as it was given
            uri: Uri::try_from(parsed.as_str()).map_err(|_| Error::HttpRequestUriInvalid)?,
            is_api: is_same_origin(&self.upstream.url, &parsed),
        };
        *last() = Some((url.to_owned(), destination.clone()));
        Ok(destination)
    }

    /// What a component may read, by whichever interface. An upstream that repeats the
    /// secret does not tell it to the component.
    fn readable(&self, headers: HeaderMap) -> HeaderMap {
        let secret = self.upstream.secret_bytes();
        let is_hidden = |(name, value): &(&HeaderName, &HeaderValue)| {
            (self.forbidden)(name)
                || secret.is_some_and(|secret| body::contains(value.as_bytes(), secret))
        };
        if !headers.iter().any(|header| is_hidden(&header)) {
            return headers;
        }
        headers
            .iter()
            .filter(|header| !is_hidden(header))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn failure(&self, error: &legacy::Error) -> Error {
        let mut reason = error.to_string();
        let (mut is_prohibited, mut is_timeout) = (false, false);
        let mut cause = error.source();
        while let Some(error) = cause {
            reason += &format!(": {error}");
            is_prohibited |= error.is::<Prohibited>();
            is_timeout |= error.is::<Elapsed>()
                || error
                    .downcast_ref::<io::Error>()
                    .is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
            cause = error.source();
        }
        tracing::warn!(model = &*self.model, reason, "upstream request failed");
        if is_prohibited {
            Error::DestinationIpProhibited
        } else if error.is_connect() {
            // so nothing was sent
            match is_timeout {
                true => Error::ConnectionTimeout,
                false => Error::ConnectionRefused,
            }
        } else if is_timeout {
            Error::ConnectionReadTimeout
        } else {
            Error::HttpProtocolError
        }
    }
}

/// Whether no component sets or reads the header, whatever its upstream.
fn is_forbidden(name: &HeaderName) -> bool {
    DEFAULT_FORBIDDEN_HEADERS.contains(name) || SECRET_HEADERS.contains(name)
}

/// Bytes of all names and values.
fn size(headers: &HeaderMap) -> usize {
    let sizes = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len());
    sizes.sum()
}

/// The shorter of what the component waits and what is left of the request.
fn shorter(wanted: Option<Duration>, deadline: Instant) -> Duration {
    let left = deadline.saturating_duration_since(Instant::now());
    wanted.map_or(left, |wanted| wanted.min(left))
}

/// What a component asks of its upstream.
pub(super) struct Exchange {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// What one request may do through the gate, if its model has one.
pub(super) struct Network {
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) requests_left: u32,
    pub(super) deadline: Instant,
}

/// What follows a response: nothing, the client sees to its connection itself.
type Connection = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sending = Box<dyn Future<Output = Result<(Response<WasiBody>, Connection), Error>> + Send>;

impl Network {
    /// The gate for one more request to the upstream, if there may be one.
    fn pass(&mut self) -> Result<Arc<Gate>, Error> {
        let gate = self.gate.clone().ok_or(Error::HttpRequestDenied)?;
        let left = self.requests_left.checked_sub(1);
        self.requests_left = left.ok_or(Error::ConnectionLimitReached)?;
        Ok(gate)
    }

    /// Sends a request and waits until its answer begins, of which the last byte may
    /// come within `allowed`.
    pub(super) async fn exchange(
        &mut self,
        exchange: Exchange,
        allowed: Duration,
    ) -> Result<(Response<()>, Arriving), Error> {
        let gate = self.pass()?;
        let deadline = self.deadline.min(Instant::now() + allowed);
        let (answer, body) = gate.send(exchange, None, deadline).await?;
        Ok((answer, gate.arriving(body, deadline, None)))
    }
}

impl WasiHttpHooks for Network {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _response_errors: Connection,
    ) -> Sending {
        let gate = match self.pass() {
            Ok(gate) => gate,
            Err(error) => return Box::new(async { Err(error) }),
        };
        let deadline = self.deadline;
        Box::new(async move {
            let options = options.unwrap_or_default();
            let whole = gate.send_wasi(request, options, deadline);
            let response = timeout(shorter(None, deadline), whole)
                .await
                .map_err(|_| Error::HttpResponseTimeout)??;
            Ok((response, Box::new(async { Ok(()) }) as Connection))
        })
    }

    fn forbidden_header_filter(&mut self) -> ForbiddenHeaderFilter {
        match &self.gate {
            Some(gate) => Arc::clone(&gate.forbidden),
            None => Arc::new(is_forbidden),
        }
    }

    fn set_host_header(&mut self) -> bool {
        false
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        CHUNK
    }
}
