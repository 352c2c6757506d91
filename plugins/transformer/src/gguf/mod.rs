//! Checkpoints in one file, as llama.cpp keeps them: weights, shape, tokenizer
//! and chat template. candle-core reads the format and the blocks of numbers.
//!
//! - `shape`: its metadata become what a `config.json` says
//! - `tokenizer`: and what a `tokenizer.json` says

mod shape;
mod tokenizer;

use std::fs::File;
use std::path::Path;

use candle_core::quantized::gguf_file::{Content, Value};

use crate::chat::{Special, Template};
use crate::checkpoint::{Bytes, Loaded, Parts, Refusal};
use crate::kernels::Dtype;
use crate::model::Weights;
use crate::tokenizer::Tokenizer;

/// What ends a turn or a text, by name: published files may name but the end of a
/// text, such as Gemma 3's. After llama.cpp, which knows them so too; `<|endoftext|>`
/// is one in every kind of checkpoint.
const ENDS: [&str; 10] = [
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<end_of_utterance>",
];

/// How these files' names end.
pub(crate) const EXTENSION: &str = "gguf";

/// A file whose metadata were read.
struct Gguf {
    /// Its name, for refusals.
    name: String,
    content: Content,
}

/// Reads a file, checks its parts against each other and makes the model.
pub(crate) fn load(path: &Path, dtype: Option<Dtype>) -> Result<Loaded, Refusal> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let refuse = |reason: &dyn std::fmt::Display| Refusal::file(&name, reason.to_string());
    let mut file = File::open(path).map_err(|error| refuse(&error))?;
    let content = Content::read(&mut file).map_err(|error| refuse(&error))?;
    let gguf = Gguf {
        name: name.into_owned(),
        content,
    };
    let config = gguf.config(&file)?;
    let json = gguf.tokenizer()?.to_string();
    let tokenizer = Tokenizer::from_json(json.as_bytes(), config.vocab)?;
    let mut end_tokens: Vec<_> = ENDS.iter().filter_map(|end| tokenizer.id(end)).collect();
    for key in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        end_tokens.extend(gguf.token(key)?);
    }
    let bytes = Bytes::File(file);
    // llama.cpp turns neighbours where transformers turns halves, and lays the rows out for it
    let interleaved = (gguf.architecture()? == "llama").then_some(config.head_width);
    let weights = Weights::of_gguf(&gguf.name, &gguf.content, &bytes, interleaved)?;
    Parts {
        chat: gguf.chat()?,
        config,
        tokenizer,
        weights,
        end_tokens,
    }
    .load(dtype)
}

impl Gguf {
    fn refuse(&self, reason: impl ToString) -> Refusal {
        Refusal::file(&self.name, reason)
    }

    /// `general.architecture`.
    fn architecture(&self) -> Result<&str, Refusal> {
        self.text("general.architecture")?
            .ok_or_else(|| self.refuse("there is no general.architecture"))
    }

    /// The value of a key, if it is there and `read` finds it of the right type.
    fn value<T>(
        &self,
        key: &str,
        read: impl Fn(&Value) -> candle_core::Result<T>,
    ) -> Result<Option<T>, Refusal> {
        let value = self.content.metadata.get(key).map(read);
        value
            .transpose()
            .map_err(|_| self.refuse(format!("{key} is of another type")))
    }

    fn text(&self, key: &str) -> Result<Option<&str>, Refusal> {
        match self.content.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.refuse(format!("{key} is no text"))),
        }
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Refusal> {
        // converters differ in how wide they write them, and whether signed
        self.value(key, |value| match value {
            Value::I32(number) => Ok(u64::try_from(*number).map_err(candle_core::Error::wrap)?),
            Value::I64(number) => Ok(u64::try_from(*number).map_err(candle_core::Error::wrap)?),
            value => value.to_u64(),
        })
    }

    fn float(&self, key: &str) -> Result<Option<f64>, Refusal> {
        // the shortest number that is this f32: 1e-5 and not 9.99999974e-6
        self.value(key, |value| {
            value
                .to_f32()?
                .to_string()
                .parse()
                .map_err(candle_core::Error::wrap)
        })
    }

    /// A token by its role.
    fn token(&self, role: &str) -> Result<Option<u32>, Refusal> {
        let id = self.number(&format!("tokenizer.ggml.{role}"))?;
        id.map(|id| u32::try_from(id).map_err(|_| self.refuse(format!("{role} is too big"))))
            .transpose()
    }

    fn chat(&self) -> Result<Option<Template>, Refusal> {
        let Some(source) = self.text("tokenizer.chat_template")? else {
            return Ok(None);
        };
        let tokens = self.texts("tokenizer.ggml.tokens")?;
        let named = |role: &str| -> Result<Option<String>, Refusal> {
            let id = self.token(role)?;
            Ok(id.and_then(|id| tokens.get(id as usize).map(|text| (*text).to_owned())))
        };
        let special = Special {
            bos_token: named("bos_token_id")?,
            eos_token: named("eos_token_id")?,
        };
        Template::new(source.to_owned(), special, &self.name).map(Some)
    }

    fn texts(&self, key: &str) -> Result<Vec<&str>, Refusal> {
        let missing = || self.refuse(format!("{key} is no list of texts"));
        let Some(Value::Array(values)) = self.content.metadata.get(key) else {
            return Err(missing());
        };
        let texts = values.iter().map(|value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect::<Option<_>>().ok_or_else(missing)
    }
}
