//! Where the operator is told of what happens.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::same_secret;

/// What a secret begins with, by Standard Webhooks.
const PREFIX: &str = "whsec_";

/// A webhook; changes need a restart.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Webhook {
    /// Where notices are posted.
    pub url: Option<String>,
    /// What they are signed with.
    #[serde(deserialize_with = "super::secret")]
    pub secret: Option<SecretString>,
}

impl Webhook {
    /// The key in a secret: 24 to 64 bytes in Base64, behind `whsec_`.
    pub fn key(secret: &SecretString) -> Option<Vec<u8>> {
        let text = secret.expose_secret().strip_prefix(PREFIX)?;
        let key = STANDARD.decode(text).ok()?;
        (24..=64).contains(&key.len()).then_some(key)
    }
}

impl PartialEq for Webhook {
    fn eq(&self, other: &Self) -> bool {
        let Self { url, secret } = self;
        *url == other.url && same_secret(secret, &other.secret)
    }
}
