//! One entry of `[[models]]`.

use secrecy::SecretString;
use serde::Deserialize;

use crate::money::Price;

use super::reference;

/// One model on offer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Number by which `/generate` and keys refer to it.
    pub id: i64,
    /// Name by which OpenAI's endpoints refer to it.
    pub name: String,
    /// A native plugin's name, or a component: the path of a `.wasm` file, or a
    /// reference that [`super::Reference`] reads.
    pub plugin: String,
    /// SHA-256 that the component must have, in hex.
    pub sha256: Option<String>,
    /// `user:password` for the registry that the component is in.
    #[serde(default, deserialize_with = "super::secret")]
    pub registry_auth: Option<SecretString>,
    /// Where a local model comes from: sources tried in order.
    pub model_path: Option<Sources>,
    /// Load at start; otherwise at the first request.
    #[serde(default = "yes")]
    pub preload: bool,
    /// How a local model's weights are held.
    pub dtype: Option<String>,
    /// Endpoint of an external model. A component may reach its scheme, host and
    /// port.
    pub api_url: Option<String>,
    /// Key of the external API. Stays in the host, which sends it to `api_url`'s
    /// scheme, host and port alone.
    #[serde(default, deserialize_with = "super::secret")]
    pub api_key: Option<SecretString>,
    /// The header that the key is sent in. `authorization` gets `Bearer ` before
    /// the key, any other the key as it is.
    #[serde(default = "authorization")]
    pub api_key_header: String,
    /// More that a component may reach, each as scheme, host and port. The key is
    /// not sent there.
    #[serde(default)]
    pub grants: Vec<String>,
    /// Whether the names that a component may reach may lead to private addresses.
    /// `localhost`, or an address instead of a name, is meant as it stands.
    #[serde(default)]
    pub allow_private_addresses: bool,
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

impl Model {
    /// Whether the plugin is a component rather than compiled in.
    pub fn is_component(&self) -> bool {
        self.is_file() || self.is_remote()
    }

    /// Whether the plugin is a component in a file.
    pub fn is_file(&self) -> bool {
        !self.is_remote() && self.plugin.ends_with(".wasm")
    }

    /// Whether the plugin is a component in a registry.
    pub fn is_remote(&self) -> bool {
        self.plugin.starts_with(reference::SCHEME)
    }
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
    /// Tokens of prompts and answers a minute of any one key, however high its own
    /// limit.
    pub tokens_per_minute: Option<u32>,
    /// Requests at work at once of any one key, however high its own limit.
    pub concurrent: Option<u32>,
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
    /// Each memory of a component's instance, in MiB. A Rust or JavaScript plugin
    /// is content with the default of 64, a Python plugin wants 256.
    pub memory_mib: usize,
    /// Elements of a component's tables, each a function or other reference.
    pub table_elements: usize,
    /// Milliseconds in which a component itself may compute. Waiting for the
    /// upstream costs nothing of it.
    pub cpu_ms: u32,
    /// Requests of a component to its upstream.
    pub upstream_requests: u32,
    /// Longest body that a component sends to its upstream, in bytes.
    pub request_bytes: usize,
    /// Longest body that a component reads from its upstream, and its longest answer
    /// as a whole, in bytes.
    pub response_bytes: usize,
    /// Most bytes of headers with their names, of a request to the upstream and of
    /// its answer.
    pub header_bytes: usize,
    /// Requests that an instance of a component answers, one after another. By default each
    /// has its own, and none can see what another has left in memory.
    pub requests_per_instance: u32,
    /// Lines of a component to the log, those on standard output and standard error
    /// included.
    pub log_lines: u32,
}

impl ModelLimits {
    /// The most that `memory_mib` may be.
    pub const MEMORY_CEILING_MIB: usize = 1024;
    /// Memories of an instance: JavaScript's engine brings a second one.
    pub const MEMORIES: u32 = 2;
    /// The most that `table_elements` may be.
    pub const TABLE_CEILING: usize = 100_000;
    /// The most that `header_bytes` may be.
    pub const HEADER_CEILING: usize = 1 << 20;
}

impl Default for ModelLimits {
    fn default() -> Self {
        Self {
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrent: None,
            max_prompt_bytes: 256 * 1024,
            max_new_tokens: 4096,
            timeout_ms: 120_000,
            parallel: 16,
            queue: 1024,
            memory_mib: 64,
            table_elements: 20_000,
            cpu_ms: 10_000,
            upstream_requests: 8,
            request_bytes: 16 << 20,
            response_bytes: 16 << 20,
            header_bytes: 64 << 10,
            requests_per_instance: 1,
            log_lines: 100,
        }
    }
}

fn yes() -> bool {
    true
}

fn authorization() -> String {
    "authorization".to_owned()
}
