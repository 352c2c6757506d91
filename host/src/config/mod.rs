//! The configuration: plain data, read by [`load()`] and judged in `check`.

mod check;
mod env_file;
mod load;
mod model;
pub mod network;
mod reference;
mod webhook;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

pub use load::{Environment, Error, load};
pub use model::{Model, ModelLimits, Sources};
pub use reference::Reference;
pub use webhook::Webhook;

/// The most that a limit of requests or tokens may be: up to here the arithmetic
/// of `limits` is exact in Redis, whose numbers have 53 bits.
pub const HIGHEST_LIMIT: u32 = 100_000_000;
/// The most requests a minute that a key may have.
pub const HIGHEST_RATE: u32 = 1_000_000;

/// Everything the configuration file says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The server itself; changes need a restart.
    pub server: Server,
    /// What every request must keep to.
    pub requests: Requests,
    /// What all components share.
    pub components: Components,
    /// Where everything is kept.
    pub database: Database,
    /// Payments.
    pub stripe: Stripe,
    /// Where the operator is told of what happens.
    pub webhook: Webhook,
    /// The models on offer.
    pub models: Vec<Model>,
    /// Where replicas share their limits; from the environment only, since it may
    /// hold a password.
    #[serde(skip)]
    pub redis_url: Option<SecretString>,
    /// A hash of the file and of the variables that it was read from.
    #[serde(skip)]
    pub source: [u8; 32],
    /// Hashes of the variables that others read at the start; changes need a restart.
    #[serde(skip)]
    pub read_at_start: BTreeMap<String, [u8; 32]>,
}

/// The server itself.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Address to listen on.
    pub listen: SocketAddr,
    /// Folder of the database, the secret that keys are hashed with and caches.
    pub data_dir: PathBuf,
    /// Seconds that requests in flight get after the first signal to stop.
    pub drain_seconds: u64,
    /// Networks of the proxies that are believed when they say, by
    /// `X-Forwarded-For`, where a request comes from.
    #[serde(deserialize_with = "networks")]
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            data_dir: PathBuf::from("data"),
            drain_seconds: 30,
            trusted_proxies: Vec::new(),
        }
    }
}

/// What every request must keep to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Requests {
    /// Requests a minute for each key and model, of keys that are made from now on and
    /// given no rate of their own.
    pub per_minute: u32,
    /// Tokens of prompts and answers a minute for each key and model, where the
    /// key has no limit of its own.
    pub tokens_per_minute: Option<u32>,
    /// Requests at work at once for each key and model, where the key has no limit
    /// of its own.
    pub concurrent: Option<u32>,
    /// Limits of all keys of a customer together.
    pub customer: CustomerLimits,
    /// What becomes of shared limits while Redis is away.
    pub without_redis: WithoutRedis,
    /// Largest body, in bytes.
    pub max_body_bytes: usize,
    /// Milliseconds in which the head of a request must have come.
    pub header_timeout_ms: u64,
    /// Milliseconds in which the whole body must have come.
    pub body_timeout_ms: u64,
    /// Fields that clients of OpenAI's endpoints send and that are ignored, instead of refused,
    /// though nothing here reads them.
    pub ignored_fields: Vec<String>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            per_minute: 60,
            tokens_per_minute: None,
            concurrent: None,
            customer: CustomerLimits::default(),
            without_redis: WithoutRedis::default(),
            max_body_bytes: 1 << 20,
            header_timeout_ms: 30_000,
            body_timeout_ms: 10_000,
            ignored_fields: Vec::new(),
        }
    }
}

/// Limits of all keys of a customer together, at all models.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct CustomerLimits {
    /// Requests a minute.
    pub per_minute: Option<u32>,
    /// Tokens of prompts and answers a minute.
    pub tokens_per_minute: Option<u32>,
    /// Requests at work at once.
    pub concurrent: Option<u32>,
}

/// What becomes of limits that replicas share while their Redis is away.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum WithoutRedis {
    /// Each replica holds them by itself.
    #[default]
    Local,
    /// Nothing is admitted.
    Refuse,
}

/// What all components share; changes need a restart.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Components {
    /// Instances alive at once, one a request. Each takes 8 GiB of address space
    /// from the start, and of memory only what its plugin uses.
    pub instances: u32,
    /// Stack of an instance, in KiB: how deep a plugin's calls may go.
    pub stack_kib: usize,
}

impl Default for Components {
    fn default() -> Self {
        Self {
            instances: 1000,
            stack_kib: 512,
        }
    }
}

/// What a URL of a database begins with that is a file of SQLite's.
pub const SQLITE: &str = "sqlite:";
/// What one begins with that is on a PostgreSQL server.
const POSTGRES: [&str; 2] = ["postgres://", "postgresql://"];

/// Where everything is kept; changes need a restart.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Database {
    /// From the environment only, since it may hold a password. Without one it is
    /// a file in the server's folder.
    #[serde(skip)]
    pub url: Option<SecretString>,
    /// Days for which the usage row of a request is kept; none: for ever. Sums and
    /// money stay.
    pub keep_usage_days: Option<u32>,
}

/// Payments; nothing of it runs without `STRIPE_SECRET_KEY`, and changes need
/// a restart.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Stripe {
    /// Base URL of Stripe's API, where it is not the usual one.
    pub api_base: Option<String>,
    /// Seconds between two reports of a customer's usage.
    pub report_seconds: u32,
    /// From the environment only.
    #[serde(skip)]
    pub secret_key: Option<SecretString>,
}

impl PartialEq for Stripe {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            api_base,
            report_seconds,
            secret_key,
        } = self;
        *api_base == other.api_base
            && *report_seconds == other.report_seconds
            && same_secret(secret_key, &other.secret_key)
    }
}

impl Default for Stripe {
    fn default() -> Self {
        Self {
            api_base: None,
            // a day: an invoice takes 250 items, and most are monthly
            report_seconds: 24 * 60 * 60,
            secret_key: None,
        }
    }
}

/// Networks, read as those of keys are.
fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    let network = |text: &String| {
        let message = "must be networks, such as \"10.0.0.0/8\" or \"2001:db8::/32\"";
        network::parse(text).ok_or_else(|| D::Error::custom(message))
    };
    texts.iter().map(network).collect()
}

/// Whether two settings of a secret are the same: secrets cannot be compared by themselves.
pub fn same_secret(one: &Option<SecretString>, other: &Option<SecretString>) -> bool {
    let [one, other] = [one, other].map(|secret| secret.as_ref().map(ExposeSecret::expose_secret));
    one == other
}

/// A secret, which the error does not quote where it is written without quotes.
fn secret<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SecretString>, D::Error> {
    match toml::Value::deserialize(from)? {
        toml::Value::String(text) => Ok(Some(text.into())),
        _ => Err(D::Error::custom("must be a text, in quotes")),
    }
}
