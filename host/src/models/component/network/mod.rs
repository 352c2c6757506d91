//! The one way out: requests of a component to its model's upstream, which the
//! host sends for it. The component names what it wants; where it goes, with which
//! secret, how long and how much is decided here.

mod addresses;
mod body;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::error::Error as _;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Limited};
use reqwest::Url;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::redirect::Policy;
use secrecy::{ExposeSecret, SecretString};
use tokio::time::timeout;
use wasmtime_wasi_http::{
    DEFAULT_FORBIDDEN_HEADERS, Error, ForbiddenHeaderFilter, RequestOptions, WasiBody,
    WasiHttpHooks,
};

pub use self::body::Arriving;

use self::addresses::{Prohibited, PublicAddresses};
use super::Limits;

/// How long a connection may take to be made, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unused connection is kept; many servers close theirs after 60 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);
/// Unused connections kept for a component.
const IDLE_CONNECTIONS: usize = 32;

/// Headers that a component may neither set nor read, besides the secret's own and
/// those of the connection itself.
const SECRET_HEADERS: [HeaderName; 3] = [header::AUTHORIZATION, header::COOKIE, header::SET_COOKIE];

/// The API behind a model, and what else the component may reach.
#[derive(Debug)]
pub struct Upstream {
    /// The component may reach its scheme, host and port.
    pub url: Url,
    /// Sent to `url`'s scheme, host and port alone. The component never sees it.
    pub secret: Option<SecretString>,
    /// The header that the secret is sent in: `authorization` gets `Bearer `
    /// before it, any other the secret as it is.
    pub secret_header: HeaderName,
    /// More whose scheme, host and port the component may reach.
    pub grants: Vec<Url>,
    /// Whether names may lead to private addresses; `localhost` always may.
    pub allow_private_addresses: bool,
}

impl Upstream {
    /// The API at `url`, without a secret and with nothing else to reach.
    pub fn new(url: Url) -> Self {
        Self {
            url,
            secret: None,
            secret_header: header::AUTHORIZATION,
            grants: Vec::new(),
            allow_private_addresses: false,
        }
    }

    /// `text` without the secret.
    pub(super) fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match &self.secret {
            Some(secret) if !secret.expose_secret().is_empty() => {
                text.replace(secret.expose_secret(), "[secret]").into()
            }
            _ => text.into(),
        }
    }

    /// The value of the secret's header.
    fn secret_value(&self) -> Result<Option<HeaderValue>, header::InvalidHeaderValue> {
        let Some(secret) = &self.secret else {
            return Ok(None);
        };
        let secret = secret.expose_secret();
        let mut value = if self.secret_header == header::AUTHORIZATION {
            HeaderValue::try_from(format!("Bearer {secret}"))?
        } else {
            HeaderValue::try_from(secret)?
        };
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Whether the component may reach `url`.
    fn grants(&self, url: &Url) -> bool {
        let mut granted = std::iter::once(&self.url).chain(&self.grants);
        granted.any(|granted| is_same_origin(granted, url))
            && url.username().is_empty()
            && url.password().is_none()
    }
}

fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host() == other.host()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// The way to one upstream, with its connections. Each component has its own, so
/// that no connection is shared between models.
pub(super) struct Gate {
    model: Arc<str>,
    upstream: Arc<Upstream>,
    secret_value: Option<HeaderValue>,
    forbidden: ForbiddenHeaderFilter,
    client: reqwest::Client,
    limits: Arc<Limits>,
}

impl Gate {
    /// # Errors
    /// With what to tell the operator.
    pub(super) fn new(
        model: Arc<str>,
        upstream: Arc<Upstream>,
        limits: Arc<Limits>,
    ) -> Result<Self, String> {
        let secret_value = upstream
            .secret_value()
            .map_err(|_| "api_key cannot be sent as a header".to_owned())?;
        let resolver = PublicAddresses {
            allow_private: upstream.allow_private_addresses,
        };
        let client = reqwest::Client::builder()
            .dns_resolver(Arc::new(resolver))
            // the environment's proxy, or an upstream's redirect, would lead past the grant
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .user_agent(concat!("model-host/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| format!("no HTTP client: {error}"))?;
        let secret_header = upstream.secret_header.clone();
        Ok(Self {
            model,
            upstream,
            secret_value,
            forbidden: Arc::new(move |name| is_forbidden(name) || *name == secret_header),
            client,
            limits,
        })
    }

    /// The one way out. What is asked is as it is granted, whoever asks and by which
    /// interface; the exchange is over at `deadline`.
    async fn send(
        &self,
        exchange: Exchange,
        first_byte: Option<Duration>,
        deadline: Instant,
    ) -> Result<(http::Response<()>, reqwest::Response), Error> {
        let Exchange {
            method,
            url,
            mut headers,
            body,
        } = exchange;
        self.check(&url)?;
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
            && is_same_origin(&self.upstream.url, &url)
        {
            headers.insert(self.upstream.secret_header.clone(), secret.clone());
        }
        let sending = self
            .client
            .request(method, url)
            .headers(headers)
            .body(body)
            .send();
        let response = timeout(shorter(first_byte, deadline), sending)
            .await
            .map_err(|_| Error::HttpResponseTimeout)?
            .map_err(|error| self.failure(error))?;

        if size(response.headers()) > self.limits.header_bytes {
            let limit = u32::try_from(self.limits.header_bytes).ok();
            return Err(Error::HttpResponseHeaderSectionSize(limit));
        }
        let mut answer = http::Response::new(());
        *answer.status_mut() = response.status();
        *answer.headers_mut() = self.readable(response.headers());
        Ok((answer, response))
    }

    /// The same for `wasi:http`.
    async fn send_wasi(
        &self,
        request: http::Request<WasiBody>,
        options: RequestOptions,
        deadline: Instant,
    ) -> Result<http::Response<WasiBody>, Error> {
        let (parts, body) = request.into_parts();
        let url = Url::parse(&parts.uri.to_string()).map_err(|_| Error::HttpRequestUriInvalid)?;
        // before its body is taken
        self.check(&url)?;
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
        let (answer, response) = self.send(exchange, first_byte, deadline).await?;
        let body = self.arriving(response, deadline, options.between_bytes_timeout);
        Ok(answer.map(|()| body.boxed()))
    }

    fn arriving(
        &self,
        response: reqwest::Response,
        deadline: Instant,
        between_bytes: Option<Duration>,
    ) -> Arriving {
        let secret = self.upstream.secret.clone();
        let limit = self.limits.response_bytes;
        Arriving::new(response, limit, secret, between_bytes, deadline)
    }

    fn too_long(&self) -> Error {
        Error::HttpRequestBodySize(u64::try_from(self.limits.request_bytes).ok())
    }

    fn check(&self, url: &Url) -> Result<(), Error> {
        if self.upstream.grants(url) {
            return Ok(());
        }
        let host = url.host_str();
        tracing::warn!(
            model = &*self.model,
            host,
            "plugin asked for a host it is not granted"
        );
        Err(Error::HttpRequestDenied)
    }

    /// An upstream that repeats the secret does not tell it to the component.
    fn readable(&self, headers: &HeaderMap) -> HeaderMap {
        let secret = self
            .upstream
            .secret
            .as_ref()
            .map(ExposeSecret::expose_secret);
        let is_telling = |value: &HeaderValue| {
            secret.is_some_and(|secret| body::contains(value.as_bytes(), secret.as_bytes()))
        };
        headers
            .iter()
            .filter(|(_, value)| !is_telling(value))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect()
    }

    fn failure(&self, error: reqwest::Error) -> Error {
        // the URL may hold what the caller wrote
        let error = error.without_url();
        let mut reason = error.to_string();
        let mut is_prohibited = false;
        let mut cause = error.source();
        while let Some(error) = cause {
            reason += &format!(": {error}");
            is_prohibited |= error.is::<Prohibited>();
            cause = error.source();
        }
        tracing::warn!(model = &*self.model, reason, "upstream request failed");
        if is_prohibited {
            Error::DestinationIpProhibited
        } else if error.is_timeout() {
            Error::ConnectionTimeout
        } else if error.is_connect() {
            Error::ConnectionRefused
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
    pub(super) url: Url,
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
type Sending =
    Box<dyn Future<Output = Result<(http::Response<WasiBody>, Connection), Error>> + Send>;

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
    ) -> Result<(http::Response<()>, Arriving), Error> {
        let gate = self.pass()?;
        let deadline = self.deadline.min(Instant::now() + allowed);
        let (answer, response) = gate.send(exchange, None, deadline).await?;
        Ok((answer, gate.arriving(response, deadline, None)))
    }
}

impl WasiHttpHooks for Network {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
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
}
