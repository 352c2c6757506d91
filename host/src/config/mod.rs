//! The configuration: plain data, read by [`load()`] and judged in `check`.

mod check;
mod load;

use std::net::SocketAddr;
use std::path::PathBuf;

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::money::Price;

pub use load::{Environment, Error, load};

/// Everything the configuration file says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The server itself; changes need a restart.
    pub server: Server,
    /// What every request must keep to.
    pub requests: Requests,
    /// Payments.
    pub stripe: Stripe,
    /// The models on offer.
    pub models: Vec<Model>,
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
}

impl Default for Server {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8000)),
            data_dir: PathBuf::from("data"),
            drain_seconds: 30,
        }
    }
}

/// What every request must keep to.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct Requests {
    /// Requests a minute for each key and model, where the key has no rate of its own.
    pub per_minute: u32,
    /// Largest body, in bytes.
    pub max_body_bytes: usize,
    /// Milliseconds in which the whole body must have come.
    pub body_timeout_ms: u64,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            per_minute: 60,
            max_body_bytes: 1 << 20,
            body_timeout_ms: 10_000,
        }
    }
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
        let key = |stripe: &Self| {
            let key = stripe.secret_key.as_ref();
            key.map(|key| key.expose_secret().to_owned())
        };
        self.api_base == other.api_base
            && self.report_seconds == other.report_seconds
            && key(self) == key(other)
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

/// One model on offer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Number by which `/generate` and keys refer to it.
    pub id: i64,
    /// Name by which OpenAI's endpoints refer to it.
    pub name: String,
    /// A native plugin's name, or the path of a component.
    pub plugin: String,
    /// Where a local model comes from: sources tried in order.
    pub model_path: Option<Sources>,
    /// Load at start; otherwise at the first request.
    #[serde(default = "yes")]
    pub preload: bool,
    /// How a local model's weights are held.
    pub dtype: Option<String>,
    /// Endpoint of an external model.
    pub api_url: Option<String>,
    /// Key of the external API. Stays in the host.
    pub api_key: Option<SecretString>,
    /// The model's name at the external API.
    pub model_name: Option<String>,
    /// US dollars per million tokens.
    #[serde(default)]
    pub price_per_million: Price,
    /// What one request may take.
    #[serde(default)]
    pub limits: ModelLimits,
    /// More settings for the plugin.
    #[serde(default)]
    pub settings: toml::Table,
    /// Why the model cannot run as it is configured.
    #[serde(skip)]
    pub unavailable: Option<String>,
}

/// One source or several.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(untagged, expecting = "a source or a list of sources")]
pub enum Sources {
    /// One.
    One(String),
    /// Several, tried in order.
    Several(Vec<String>),
}

/// What one request to a model may take.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct ModelLimits {
    /// Requests a minute of any one key, however high its own rate.
    pub requests_per_minute: Option<u32>,
    /// Longest prompt, in bytes of UTF-8.
    pub max_prompt_bytes: usize,
    /// Most tokens of one answer.
    pub max_new_tokens: u32,
    /// Milliseconds that an answer may take, waiting in the queue included.
    pub timeout_ms: u32,
    /// Answers a native model works on at once, each a sequence of its batch.
    pub parallel: usize,
    /// Requests that wait for a native model before it refuses more.
    pub queue: usize,
    /// Memory of a component's instance, in MiB.
    pub memory_mib: usize,
    /// CPU time of a component for one request, in milliseconds.
    pub cpu_ms: u32,
}

impl Default for ModelLimits {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            max_prompt_bytes: 256 * 1024,
            max_new_tokens: 4096,
            timeout_ms: 120_000,
            parallel: 16,
            queue: 1024,
            memory_mib: 64,
            cpu_ms: 10_000,
        }
    }
}

fn yes() -> bool {
    true
}
