//! A checkpoint: the files of a model, wherever they come from.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde::Deserialize;

use crate::chat::{TEMPLATE, TOKENIZER_CONFIG, Template};
use crate::config::{Config, OneOrMore};
use crate::kernels::{Dtype, Team};
use crate::model::{Model, Predict, Run, Weights, Workspace};
use crate::tokenizer::Tokenizer;

/// The model's shape.
pub(crate) const CONFIG: &str = "config.json";
/// The weights.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The tokenizer.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// Where the weights are in several files: which tensor is in which.
pub(crate) const INDEX: &str = "model.safetensors.index.json";
/// What ends a text, if it is there.
pub(crate) const GENERATION: &str = "generation_config.json";

/// Why a checkpoint cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// One of its files is at fault.
    #[error("{file}: {reason}")]
    File {
        /// Its name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// It could not be had.
    #[error("{0}")]
    Source(String),
}

impl Refusal {
    /// A file is at fault.
    pub(crate) fn file(file: &str, reason: impl ToString) -> Self {
        Self::File {
            file: file.to_owned(),
            reason: reason.to_string(),
        }
    }
}

/// The files.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) config: Cow<'static, [u8]>,
    /// One, or what the index names.
    pub(crate) weights: Vec<Bytes>,
    /// [`GENERATION`], where there is one.
    pub(crate) generation: Option<Vec<u8>>,
    /// [`TOKENIZER_CONFIG`] and [`TEMPLATE`], the same.
    pub(crate) tokenizer_config: Option<Vec<u8>>,
    pub(crate) template: Option<Vec<u8>>,
    pub(crate) tokenizer: Cow<'static, [u8]>,
}

/// Bytes that are read in pieces.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// In this binary.
    Here(&'static [u8]),
    /// In a file.
    ///
    /// It is read and not memory-mapped: a mapped file that is changed under the
    /// reader crashes the process, and what was touched counts as its memory.
    File(File),
}

impl Bytes {
    /// How many there are.
    pub(crate) fn len(&self) -> io::Result<u64> {
        match self {
            Self::Here(bytes) => Ok(bytes.len() as u64),
            Self::File(file) => Ok(file.metadata()?.len()),
        }
    }

    /// Fills `to` with the bytes from `from` on.
    ///
    /// # Errors
    /// When there are not so many, or the file cannot be read.
    pub(crate) fn read(&self, from: u64, to: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Here(bytes) => {
                let mut bytes = io::Cursor::new(bytes);
                bytes.set_position(from);
                bytes.read_exact(to)
            }
            Self::File(file) => file.read_exact_at(to, from),
        }
    }
}

/// A checkpoint that was found in order and can generate.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) model: Model,
    pub(crate) tokenizer: Tokenizer,
    /// Tokens that end a text.
    pub(crate) end_tokens: Vec<u32>,
    /// How messages become a prompt, where the checkpoint says.
    pub(crate) chat: Option<Template>,
}

impl Checkpoint {
    /// Opens the files; `path` says where each of them is.
    pub(crate) fn read(path: impl Fn(&str) -> Box<Path>) -> Result<Self, Refusal> {
        let read = |file: &str| {
            std::fs::read(path(file))
                .map(Cow::Owned)
                .map_err(|error| Refusal::file(file, error))
        };
        let open = |file: &str| {
            File::open(path(file))
                .map(Bytes::File)
                .map_err(|error| Refusal::file(file, error))
        };
        let (config, tokenizer) = (read(CONFIG)?, read(TOKENIZER)?);
        let weights = match std::fs::read(path(INDEX)) {
            Err(_) => vec![open(WEIGHTS)?],
            Ok(index) => shards(&index)?
                .iter()
                .map(|name| open(name))
                .collect::<Result<_, _>>()?,
        };
        Ok(Self {
            config,
            tokenizer,
            weights,
            generation: std::fs::read(path(GENERATION)).ok(),
            tokenizer_config: std::fs::read(path(TOKENIZER_CONFIG)).ok(),
            template: std::fs::read(path(TEMPLATE)).ok(),
        })
    }

    /// Checks the files against each other, makes the model of them, by default in
    /// its family's dtype, and takes one step with it.
    pub(crate) fn load(&self, dtype: Option<Dtype>) -> Result<Loaded, Refusal> {
        let config = Config::from_json(&self.config)?;
        let tokenizer = Tokenizer::from_json(&self.tokenizer, config.vocab)?;
        let weights = Weights::open(&self.weights, config.names.prefix)?;
        let end_tokens = match &self.generation {
            Some(generation) => ends(generation)?,
            None => Vec::new(),
        };
        let chat = Template::of_files(self.tokenizer_config.as_deref(), self.template.clone())?;
        Parts {
            config,
            tokenizer,
            weights,
            end_tokens,
            chat,
        }
        .load(dtype)
    }
}

/// What every kind of checkpoint comes down to.
pub(crate) struct Parts<'a> {
    pub(crate) config: Config,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) weights: Weights<'a>,
    /// Tokens that end a text, beside those that the configuration names.
    pub(crate) end_tokens: Vec<u32>,
    pub(crate) chat: Option<Template>,
}

impl Parts<'_> {
    /// Makes the model, by default in its family's dtype, and takes one step with it.
    pub(crate) fn load(mut self, dtype: Option<Dtype>) -> Result<Loaded, Refusal> {
        let dtype = dtype.unwrap_or(self.config.dtype);
        let model = Model::load(&self.config, &self.weights, dtype)?;
        let mut end_tokens = std::mem::take(&mut self.config.end_tokens);
        end_tokens.extend(self.tokenizer.end_of_text());
        end_tokens.extend(self.end_tokens);
        end_tokens.sort_unstable();
        end_tokens.dedup();

        prove(&model)?;
        Ok(Loaded {
            model,
            tokenizer: self.tokenizer,
            end_tokens,
            chat: self.chat,
        })
    }
}

/// The files that an index names.
pub(crate) fn shards(index: &[u8]) -> Result<Vec<String>, Refusal> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index =
        serde_json::from_slice(index).map_err(|error| Refusal::file(INDEX, error))?;
    let mut names: Vec<_> = index.weight_map.into_values().collect();
    names.sort_unstable();
    names.dedup();
    let is_plain = |name: &String| Path::new(name).file_name() == Some(name.as_ref());
    match names.iter().find(|name| !is_plain(name)) {
        None if names.is_empty() => Err(Refusal::file(INDEX, "it names no file")),
        None => Ok(names),
        Some(name) => Err(Refusal::file(INDEX, format!("{name:?} is no file's name"))),
    }
}

/// The tokens that end a text, by `generation_config.json`.
fn ends(generation: &[u8]) -> Result<Vec<u32>, Refusal> {
    #[derive(Deserialize)]
    struct Generation {
        eos_token_id: Option<OneOrMore>,
    }
    let generation: Generation =
        serde_json::from_slice(generation).map_err(|error| Refusal::file(GENERATION, error))?;
    Ok(generation.eos_token_id.map_or_else(Vec::new, Vec::from))
}

/// Takes one step: weights that overflow pass every check of shape and answer
/// nothing.
fn prove(model: &Model) -> Result<(), Refusal> {
    let team = Team::new(NonZeroUsize::MIN).map_err(|error| Refusal::file(WEIGHTS, error))?;
    let mut workspace = Workspace::new(team);
    let mut run = [Run {
        tokens: &[0],
        cache: &mut model.cache(),
        predict: Predict::Last,
    }];
    model.step(&mut workspace, &mut run);
    let mut is_finite = [false];
    workspace.for_predictions(&mut is_finite, model.config().vocab, |is_finite, logits| {
        *is_finite = logits.iter().all(|logit| logit.is_finite());
    });
    if is_finite == [true] {
        Ok(())
    } else {
        Err(Refusal::file(WEIGHTS, "the predictions are not finite"))
    }
}
