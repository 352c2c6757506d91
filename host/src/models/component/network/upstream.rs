//! What a component may reach, and the secret that goes along.

use std::borrow::Cow;

use http::header::{self, HeaderName, HeaderValue};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

/// Bytes of the shortest secret that is looked for in what comes back. What is shorter is a
/// placeholder, such as `none` or `ollama` for a server without keys, and in many an answer.
const SHORTEST_SECRET: usize = 12;

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
    pub(in super::super) fn redact<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.telling_secret() {
            Some(secret) => text.replace(secret, "[secret]").into(),
            None => text.into(),
        }
    }

    /// Bytes of the secret that [`Self::redact`] looks for.
    pub(in super::super) fn secret_length(&self) -> usize {
        self.telling_secret().map_or(0, str::len)
    }

    /// The secret, as it could come back in an answer.
    pub(super) fn secret_bytes(&self) -> Option<&[u8]> {
        self.telling_secret().map(str::as_bytes)
    }

    fn telling_secret(&self) -> Option<&str> {
        let secret = self.secret.as_ref()?.expose_secret();
        (secret.len() >= SHORTEST_SECRET).then_some(secret)
    }

    /// The value of the secret's header.
    pub(super) fn secret_value(&self) -> Result<Option<HeaderValue>, header::InvalidHeaderValue> {
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
    pub(super) fn grants(&self, url: &Url) -> bool {
        let mut granted = std::iter::once(&self.url).chain(&self.grants);
        granted.any(|granted| is_same_origin(granted, url))
            && url.username().is_empty()
            && url.password().is_none()
    }
}

/// Whether both have the same scheme, host and port.
pub(super) fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host() == other.host()
        && one.port_or_known_default() == other.port_or_known_default()
}
