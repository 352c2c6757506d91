//! The shape of a model, whatever family it is of: `config.json`.
//!
//! - `gpt2`, `llama`: what each family's file says, made into one [`Config`]
//! - `rotary`: how positions turn queries and keys

mod gpt2;
mod llama;
mod rotary;

use serde::Deserialize;

use crate::checkpoint::{CONFIG, Refusal};
use crate::kernels::Dtype;

pub(crate) use rotary::Rotary;

/// The longest context that there is room made for: longer ones would keep much
/// memory for keys and values aside.
const LONGEST_CONTEXT: usize = 8192;

/// What a block is made of, by data: the forward pass asks no family's name.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// As people call it.
    pub(crate) family: &'static str,
    /// What its weights are held in where no setting says: the fastest that chose
    /// f32's token on 99 % of positions or more, of GPT-2 and of SmolLM2, as which the
    /// rest are taken; see the README.
    pub(crate) dtype: Dtype,
    /// What the tensors are called.
    pub(crate) names: &'static Names,
    /// Rows of the embedding; ids of tokens are below it.
    pub(crate) vocab: usize,
    /// Positions that the model was made for.
    pub(crate) positions: usize,
    /// The most of them that a sequence may have, prompt and answer together.
    pub(crate) context: usize,
    /// Width of the residual stream.
    pub(crate) width: usize,
    /// Width of the feed-forward part's inner layer.
    pub(crate) inner: usize,
    /// Heads of each block's queries, a multiple of `kv_heads`.
    pub(crate) heads: usize,
    /// Heads of its keys and values: each serves as many heads of queries.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_width: usize,
    /// How rows are normalized.
    pub(crate) norm: Norm,
    /// Added to the variance there.
    pub(crate) epsilon: f32,
    /// Whether each position has an embedding of its own.
    pub(crate) has_positions: bool,
    /// The ways in which blocks turn queries and keys.
    pub(crate) rotaries: Vec<Rotary>,
    /// What differs between blocks.
    pub(crate) layers: Vec<Layer>,
    /// Between the two layers of each block's feed-forward part.
    pub(crate) activation: Activation,
    /// Whether the activated layer gates another one beside it.
    pub(crate) is_gated: bool,
    /// Which products add a bias.
    pub(crate) biases: Biases,
    /// Whether each head's queries and keys are normalized.
    pub(crate) has_head_norms: bool,
    /// Whether what a block's halves find is normalized before it is added.
    pub(crate) has_post_norms: bool,
    /// What the tokens' embeddings are multiplied with.
    pub(crate) embedding_scale: f32,
    /// Whether the output layer is the token embedding.
    pub(crate) is_tied: bool,
    /// Tokens that end a text, where the configuration names any.
    pub(crate) end_tokens: Vec<u32>,
}

/// What is a block's own.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// What its queries are multiplied with.
    pub(crate) scale: f32,
    /// Which of the rotaries, if any.
    pub(crate) rotary: Option<usize>,
    /// How many positions back it sees, its own included.
    pub(crate) window: Option<usize>,
}

/// How rows are normalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Norm {
    /// Layer norm: mean 0, variance 1, then a gain and a bias.
    Layer,
    /// A mean of squares of 1, then the gain held in the file and this.
    RootMeanSquare { offset: f32 },
}

/// Which products add a bias.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Biases {
    pub(crate) qkv: bool,
    pub(crate) attention_out: bool,
    pub(crate) inner: bool,
}

/// What the parts of a model are called in its file. Those of a block follow
/// `layer` and its number.
#[derive(Debug)]
pub(crate) struct Names {
    /// Stands before all names, or before none.
    pub(crate) prefix: &'static str,
    pub(crate) tokens: &'static str,
    pub(crate) positions: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) head: &'static str,
    pub(crate) layer: &'static str,
    pub(crate) attention_norm: &'static str,
    /// Queries, keys and values: one tensor, or three.
    pub(crate) qkv: &'static [&'static str],
    pub(crate) query_norm: &'static str,
    pub(crate) key_norm: &'static str,
    pub(crate) attention_out: &'static str,
    pub(crate) attention_post: &'static str,
    pub(crate) inner_norm: &'static str,
    /// The inner layer, or its gate and what it gates.
    pub(crate) inner: &'static [&'static str],
    pub(crate) inner_out: &'static str,
    pub(crate) inner_post: &'static str,
    /// Whether a block's matrices are `[inputs, outputs]`, and not the other way.
    pub(crate) is_input_major: bool,
}

/// A nonlinearity, by the names transformers gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum Activation {
    /// GELU approximated with tanh. The names differ in how they round, if at all.
    #[default]
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    /// GELU by the error function.
    #[serde(rename = "gelu")]
    Gelu,
    /// ReLU.
    #[serde(rename = "relu")]
    Relu,
    /// `x · sigmoid(x)`.
    #[serde(rename = "silu", alias = "swish")]
    Silu,
}

/// A token or a list of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

impl From<OneOrMore> for Vec<u32> {
    fn from(tokens: OneOrMore) -> Self {
        match tokens {
            OneOrMore::One(token) => vec![token],
            OneOrMore::More(tokens) => tokens,
        }
    }
}

impl Config {
    /// Reads `config.json` and checks that this crate can run such a model.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, Refusal> {
        // first the type alone: other models' configurations lack the rest
        #[derive(Deserialize)]
        struct Typed {
            model_type: Option<String>,
        }
        let unreadable = |error: serde_json::Error| refuse(error.to_string());
        let typed: Typed = serde_json::from_slice(json).map_err(unreadable)?;
        let config = match typed.model_type.as_deref() {
            Some("gpt2") => serde_json::from_slice::<gpt2::File>(json)
                .map_err(unreadable)?
                .config()?,
            Some(family) => {
                let Some(family) = llama::Family::named(family) else {
                    return Err(refuse(format!(
                        "model_type is {family:?}, and only \"gpt2\", {} are supported",
                        llama::Family::names()
                    )));
                };
                serde_json::from_slice::<llama::File>(json)
                    .map_err(unreadable)?
                    .config(family)?
            }
            None => return Err(refuse("there is no model_type".to_owned())),
        };
        config.checked()
    }

    /// The same of a GGUF called `name`, whose metadata are in a `config.json`'s
    /// words already.
    pub(crate) fn of_gguf(
        name: &str,
        family: &str,
        json: serde_json::Value,
    ) -> Result<Self, Refusal> {
        let config = match family {
            "gpt2" => gpt2::of_gguf(name, json)?,
            _ => llama::of_gguf(name, family, json)?,
        };
        config.checked()
    }

    fn checked(mut self) -> Result<Self, Refusal> {
        self.context = self.positions.min(LONGEST_CONTEXT);
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(refuse(format!(
                "{} heads cannot be divided among {} of keys and values",
                self.heads, self.kv_heads
            )));
        }
        if !self.rotaries.is_empty() && !self.head_width.is_multiple_of(2) {
            return Err(refuse(format!("a head is {} wide", self.head_width)));
        }
        if !(self.epsilon.is_finite() && self.epsilon > 0.0) {
            return Err(refuse("the norms' epsilon must be above 0".to_owned()));
        }
        let sizes = [
            self.vocab,
            self.positions,
            self.width,
            self.inner,
            self.heads.saturating_mul(self.head_width),
        ];
        if sizes.iter().any(|&size| u32::try_from(size).is_err()) {
            return Err(refuse("a size is too big".to_owned()));
        }
        Ok(self)
    }

    /// Width of all heads' queries together.
    pub(crate) fn queries(&self) -> usize {
        self.heads * self.head_width
    }

    /// Width of all heads' keys together, and of the values.
    pub(crate) fn keys(&self) -> usize {
        self.kv_heads * self.head_width
    }
}

fn refuse(reason: String) -> Refusal {
    Refusal::file(CONFIG, reason)
}
