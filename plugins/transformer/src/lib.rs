//! GPT-2, Llama and their kind as a native model plugin.
//!
//! - `source`: where a checkpoint comes from: this binary, a folder, the hub
//! - `checkpoint`, `config`, `tokenizer`, `chat`: its files; `gguf`: all in one
//! - `engine`: all answers in the making, a token a step; `sampling` chooses it
//! - `model`: the forward pass; `kernels`: the arithmetic
//! - `generation`: one answer; `detokenize` and `stop` are its parts
//! - `score`: how well a given text is predicted

mod chat;
mod checkpoint;
mod config;
mod detokenize;
mod engine;
mod generation;
mod gguf;
mod kernels;
mod model;
mod sampling;
mod score;
mod source;
mod stop;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::thread;

use plugin_sdk::{
    Backend, CountSource, Error, ErrorKind, Extension, ModelInfo, PluginInfo, Prompt, Request,
    Settings, TokenEstimate,
};
use serde_json::Value;

use checkpoint::Loaded;
use engine::{Engine, Options};
use kernels::{Dtype, PAGE};
use model::Model;
use source::Source;

pub use generation::Generation;
pub use score::Score;

/// Memory for keys and values, unless two contexts are more.
const KV_CACHE_MIB: usize = 96;
/// More threads than any machine has use for.
const MOST_THREADS: usize = 256;
/// What can be set; see [`Transformer::open`].
const SETTINGS: [&str; 8] = [
    "cache_dir",
    "dtype",
    "kv_cache_mib",
    "model_name",
    "model_path",
    "prefix_cache",
    "prompt_lookup",
    "threads",
];

/// A loaded model and the engine that runs it.
#[derive(Debug)]
pub struct Transformer {
    loaded: Arc<Loaded>,
    engine: Engine,
    /// Where it was loaded from, by the name shown to people.
    source: String,
}

impl Backend for Transformer {
    type Completion = Generation;

    /// Loads the first source that can be loaded.
    ///
    /// Settings: `model_path`, one source or a JSON list of them (`embedded`, a
    /// folder, or a hub id with an optional `@revision`; the default is
    /// `embedded`); `dtype`, what weights are held in (`f32`, `f16`, `bf16`,
    /// `w8a16`, `q8` or `q4`; the default is `w8a16` for GPT-2 and `f16` for others);
    /// `threads`, how many work on a step (the default is the processors this process
    /// may use); `kv_cache_mib`,
    /// the memory for keys and values, at least one context (the default is 96, or
    /// two contexts where that is more); `prefix_cache`, whether prompts that begin alike share them (`true`
    /// or `false`, the default is `true`); `prompt_lookup`, whether tokens are
    /// guessed where an answer repeats (the default is `true`); `cache_dir`, the hub's cache where it
    /// is not the usual; `name`, the model's in metrics.
    fn open(settings: &Settings) -> Result<Self, Error> {
        settings.only(SETTINGS)?;
        let dtype = settings.get("dtype").map(dtype).transpose()?;
        let threads = threads(settings.get("threads"))?;
        let sources = Source::list(settings.get("model_path").unwrap_or("embedded"))?;
        let cache_dir = settings.get("cache_dir");
        let kv_cache_mib = settings.parsed("kv_cache_mib")?;
        let is_sharing = settings.parsed("prefix_cache")?.unwrap_or(true);
        let is_guessing = settings.parsed("prompt_lookup")?.unwrap_or(true);
        let mut refusals = Vec::new();
        for source in sources {
            match source.load(cache_dir, dtype) {
                Ok((loaded, source)) => {
                    let loaded = Arc::new(loaded);
                    let options = Options {
                        name: settings.get("name").unwrap_or("transformer").to_owned(),
                        threads,
                        pages: pages(&loaded.model, kv_cache_mib)?,
                        is_sharing,
                        is_guessing,
                    };
                    let engine = Engine::start(Arc::clone(&loaded), &options).map_err(|error| {
                        Error::new(ErrorKind::Internal, "threads cannot be started").detail(error)
                    })?;
                    return Ok(Self {
                        loaded,
                        engine,
                        source,
                    });
                }
                Err(refusal) => {
                    tracing::warn!(%source, %refusal, "source cannot be loaded");
                    refusals.push(format!("{source}: {refusal}"));
                }
            }
        }
        Err(Error::new(ErrorKind::Internal, refusals.join("; ")))
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        let Loaded { model, .. } = &*self.loaded;
        let chat = self.loaded.chat.as_ref().map(|_| "chat");
        let features = ["completion", "seed"].into_iter().chain(chat);
        let millions = model.parameters() as f64 / 1e6;
        Ok(PluginInfo {
            name: "transformer".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![ModelInfo {
                id: model.config().family.to_owned(),
                description: format!(
                    "{} of {millions:.1} million parameters, in {}",
                    model.config().family,
                    model.dtype().name()
                ),
                context_window: Some(self.context_window()),
                max_output_tokens: None,
                features: features.map(str::to_owned).collect(),
                ext: vec![Extension::new(
                    "source",
                    Value::from(self.source.as_str()).to_string(),
                )],
            }],
            ext: Vec::new(),
        })
    }

    fn estimate(&self, request: &Request) -> Result<TokenEstimate, Error> {
        let prompt_tokens = u32::try_from(self.encode(request)?.len()).unwrap_or(u32::MAX);
        Ok(TokenEstimate {
            prompt_tokens,
            source: CountSource::Exact,
        })
    }

    fn generate(&self, request: Request) -> Result<Generation, Error> {
        let prompt = self.encode(&request)?;
        let window = self.context_window() as usize;
        if prompt.is_empty() {
            return Err(
                Error::new(ErrorKind::InvalidRequest, "the prompt is empty").param("prompt")
            );
        }
        if prompt.len() >= window {
            let message = format!(
                "the prompt has {} tokens and the context window {window}",
                prompt.len()
            );
            return Err(Error::new(ErrorKind::ContextLength, message).param("prompt"));
        }
        Generation::new(
            Arc::clone(&self.loaded),
            &self.engine,
            prompt,
            request.params,
        )
    }
}

impl Transformer {
    fn context_window(&self) -> u32 {
        u32::try_from(self.loaded.model.config().context).unwrap_or(u32::MAX)
    }

    fn encode(&self, request: &Request) -> Result<Vec<u32>, Error> {
        request.refuse_all_but(&["stop", "temperature", "top_p", "top_k", "seed"])?;
        let tokenizer = &self.loaded.tokenizer;
        let tokens = match (&request.prompt, &self.loaded.chat) {
            (Prompt::Text(text), _) => tokenizer.encode(text),
            (Prompt::Chat(messages), Some(template)) => {
                tokenizer.encode_whole(&template.render(messages)?)
            }
            (Prompt::Chat(_), None) => {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    "this model continues text; it cannot chat",
                )
                .param("messages"));
            }
        };
        tokens.map_err(|error| {
            Error::new(ErrorKind::Internal, "the prompt cannot be tokenized").detail(error)
        })
    }
}

/// The dtype of this name.
fn dtype(name: &str) -> Result<Dtype, Error> {
    let found = Dtype::ALL.into_iter().find(|dtype| dtype.name() == name);
    found.ok_or_else(|| {
        Error::new(
            ErrorKind::InvalidRequest,
            format!("dtype {name:?} is unknown: expected f32, f16, bf16, w8a16, q8 or q4"),
        )
    })
}

/// How many pages the cache of keys and values may have, of so many MiB if set.
fn pages(model: &Model, mib: Option<usize>) -> Result<usize, Error> {
    let in_context = model.config().context.div_ceil(PAGE);
    let in_mib = |mib: usize| mib.saturating_mul(1 << 20) / model.page_bytes();
    match mib.map(in_mib) {
        None => Ok(in_mib(KV_CACHE_MIB).max(2 * in_context)),
        Some(pages) if pages >= in_context => Ok(pages),
        Some(pages) => Err(Error::new(
            ErrorKind::InvalidRequest,
            format!(
                "kv_cache_mib holds {} tokens, less than the context window of {}",
                pages * PAGE,
                model.config().context
            ),
        )),
    }
}

fn threads(setting: Option<&str>) -> Result<NonZeroUsize, Error> {
    match setting {
        None => Ok(thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)),
        Some(text) => text
            .parse()
            .ok()
            .filter(|threads: &NonZeroUsize| threads.get() <= MOST_THREADS)
            .ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidRequest,
                    format!("threads is {text:?}: expected a number from 1 to {MOST_THREADS}"),
                )
            }),
    }
}
