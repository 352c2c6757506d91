//! A checkpoint: the three files of a model, wherever they come from.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZeroUsize;
use std::path::Path;

use crate::config::Config;
use crate::kernels::{Dtype, Team};
use crate::model::{Model, Predict, Run, Weights, Workspace};
use crate::tokenizer::Tokenizer;

/// The model's shape.
pub(crate) const CONFIG: &str = "config.json";
/// The weights.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// The tokenizer.
pub(crate) const TOKENIZER: &str = "tokenizer.json";
/// What a checkpoint consists of, the file that is quick to check first.
pub(crate) const FILES: [&str; 3] = [CONFIG, TOKENIZER, WEIGHTS];

/// Why a checkpoint cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// One of its files is at fault.
    #[error("{file}: {reason}")]
    File {
        /// Its name.
        file: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// It could not be had.
    #[error("{0}")]
    Source(String),
}

impl Refusal {
    /// A file is at fault.
    pub(crate) fn file(file: &'static str, reason: impl ToString) -> Self {
        Self::File {
            file,
            reason: reason.to_string(),
        }
    }
}

/// The three files.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub(crate) config: Cow<'static, [u8]>,
    pub(crate) weights: Bytes,
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
            Self::File(file) => {
                let mut file = file;
                file.seek(SeekFrom::Start(from))?;
                file.read_exact(to)
            }
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
}

impl Checkpoint {
    /// Opens the three files; `path` says where each of them is.
    pub(crate) fn read(path: impl Fn(&str) -> Box<Path>) -> Result<Self, Refusal> {
        let read = |file: &'static str| {
            std::fs::read(path(file))
                .map(Cow::Owned)
                .map_err(|error| Refusal::file(file, error))
        };
        let open = |file: &'static str| {
            File::open(path(file))
                .map(Bytes::File)
                .map_err(|error| Refusal::file(file, error))
        };
        Ok(Self {
            config: read(CONFIG)?,
            tokenizer: read(TOKENIZER)?,
            weights: open(WEIGHTS)?,
        })
    }

    /// Checks the files against each other, makes the model of them and takes
    /// one step with it.
    pub(crate) fn load(&self, dtype: Dtype) -> Result<Loaded, Refusal> {
        let config = Config::from_json(&self.config)?;
        let tokenizer = Tokenizer::from_json(&self.tokenizer, config.vocab())?;
        let weights = Weights::open(&self.weights)?;
        let model = Model::load(&config, &weights, dtype)?;

        let mut end_tokens = config.end_tokens().to_vec();
        end_tokens.extend(tokenizer.end_of_text());
        end_tokens.dedup();

        prove(&model)?;
        Ok(Loaded {
            model,
            tokenizer,
            end_tokens,
        })
    }
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
    workspace.for_predictions(
        &mut is_finite,
        model.config().vocab(),
        |is_finite, logits| {
            *is_finite = logits.iter().all(|logit| logit.is_finite());
        },
    );
    if is_finite == [true] {
        Ok(())
    } else {
        Err(Refusal::file(WEIGHTS, "the predictions are not finite"))
    }
}
