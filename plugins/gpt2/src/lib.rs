//! GPT-2 as a native model plugin.
//!
//! - `source`: where a checkpoint comes from: this binary, a folder, the hub
//! - `checkpoint`, `config`, `tokenizer`: its three files
//! - `model`: the forward pass
//! - `generation`: one answer; `sampling`, `detokenize` and `stop` are its parts

mod checkpoint;
mod config;
mod detokenize;
mod generation;
mod model;
mod sampling;
mod source;
mod stop;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::sync::Arc;

use candle_core::DType;
use plugin_sdk::{
    Backend, CountSource, Error, ErrorKind, Extension, ModelInfo, PluginInfo, Prompt, Request,
    Settings, TokenEstimate,
};

use checkpoint::Loaded;
use source::Source;

pub use generation::Generation;

/// A loaded GPT-2.
#[derive(Debug)]
pub struct Gpt2 {
    loaded: Arc<Loaded>,
    /// Where it was loaded from, by the name shown to people.
    source: String,
    dtype: DType,
}

impl Backend for Gpt2 {
    type Completion = Generation;

    /// Loads the first source that can be loaded.
    ///
    /// Settings: `model_path`, one source or a JSON list of them (`embedded`, a
    /// folder, or a hub id with an optional `@revision`; the default is
    /// `embedded`); `dtype`, what weights and activations are held in (`f32`,
    /// `f16` or `bf16`); `cache_dir`, the hub's cache where it is not the usual.
    fn open(settings: &Settings) -> Result<Self, Error> {
        let dtype = dtype(settings.get("dtype").unwrap_or("f32"))?;
        let sources = Source::list(settings.get("model_path").unwrap_or("embedded"))?;
        let cache_dir = settings.get("cache_dir");
        let mut refusals = Vec::new();
        for source in sources {
            match source.load(cache_dir, dtype) {
                Ok((loaded, source)) => {
                    return Ok(Self {
                        loaded: Arc::new(loaded),
                        source,
                        dtype,
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
        let millions = model.parameters() as f64 / 1e6;
        Ok(PluginInfo {
            name: "gpt2".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![ModelInfo {
                id: "gpt2".to_owned(),
                description: format!(
                    "GPT-2 of {millions:.1} million parameters, in {}",
                    self.dtype.as_str()
                ),
                context_window: Some(self.context_window()),
                max_output_tokens: None,
                features: vec!["completion".to_owned(), "seed".to_owned()],
                ext: vec![Extension {
                    name: "source".to_owned(),
                    value: serde_json::Value::from(self.source.as_str()).to_string(),
                }],
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
        Generation::new(Arc::clone(&self.loaded), prompt, request.params)
    }
}

impl Gpt2 {
    fn context_window(&self) -> u32 {
        u32::try_from(self.loaded.model.config().positions()).unwrap_or(u32::MAX)
    }

    fn encode(&self, request: &Request) -> Result<Vec<u32>, Error> {
        let Prompt::Text(text) = &request.prompt else {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "this model continues text; it cannot chat",
            )
            .param("messages"));
        };
        self.loaded.tokenizer.encode(text).map_err(|error| {
            Error::new(ErrorKind::Internal, "the prompt cannot be tokenized").detail(error)
        })
    }
}

fn dtype(name: &str) -> Result<DType, Error> {
    match name {
        "f32" => Ok(DType::F32),
        "f16" => Ok(DType::F16),
        "bf16" => Ok(DType::BF16),
        other => Err(Error::new(
            ErrorKind::InvalidRequest,
            format!("dtype {other:?} is unknown: expected f32, f16 or bf16"),
        )),
    }
}
