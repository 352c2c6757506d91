//! The shape of a GPT-2 model: `config.json`.

use std::num::NonZeroUsize;

use serde::Deserialize;

use crate::checkpoint::{CONFIG, Refusal};

/// What `config.json` says, as transformers' `GPT2Config` writes it; what it
/// leaves out has that class's defaults. Keys that do not change a prediction,
/// such as the dropouts, are not read.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    /// Rows of the embedding; ids of tokens are below it.
    pub vocab_size: NonZeroUsize,
    /// The most positions of a sequence: prompt and answer together.
    pub n_positions: NonZeroUsize,
    /// Width of the residual stream.
    pub n_embd: NonZeroUsize,
    /// Blocks.
    pub n_layer: NonZeroUsize,
    /// Heads of each block's attention; divides `n_embd`.
    pub n_head: NonZeroUsize,
    n_inner: Option<NonZeroUsize>,
    /// Added to the variance in layer norms.
    #[serde(default = "default_epsilon")]
    pub layer_norm_epsilon: f64,
    /// Between the two layers of each block's feed-forward part.
    #[serde(default, rename = "activation_function")]
    pub activation: Activation,
    /// Whether attention scores are divided by the root of the head's width.
    #[serde(default = "default_true")]
    pub scale_attn_weights: bool,
    /// Whether they are divided by the layer's number, from 1, as well.
    #[serde(default)]
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Whether the output layer is the token embedding.
    #[serde(default = "default_true")]
    pub tie_word_embeddings: bool,
    #[serde(default)]
    add_cross_attention: bool,
    #[serde(default)]
    eos_token_id: Option<OneOrMore>,
}

/// A nonlinearity, by the names transformers gives it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub enum Activation {
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
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(u32),
    More(Vec<u32>),
}

fn default_epsilon() -> f64 {
    1e-5
}

fn default_true() -> bool {
    true
}

impl Config {
    /// Reads `config.json` and checks that this crate can run such a model.
    pub(crate) fn from_json(json: &[u8]) -> Result<Self, Refusal> {
        // first the type alone: other models' configurations lack the rest
        #[derive(Deserialize)]
        struct Typed {
            model_type: Option<String>,
        }
        let refuse = |reason: String| Refusal::file(CONFIG, reason);
        let unreadable = |error: serde_json::Error| refuse(error.to_string());

        let typed: Typed = serde_json::from_slice(json).map_err(unreadable)?;
        match typed.model_type.as_deref() {
            Some("gpt2") => {}
            Some(other) => {
                return Err(refuse(format!(
                    "model_type is {other:?}, and only \"gpt2\" is supported"
                )));
            }
            None => return Err(refuse("there is no model_type".to_owned())),
        }
        let config: Self = serde_json::from_slice(json).map_err(unreadable)?;
        let (width, heads) = (config.width(), config.heads());
        if !width.is_multiple_of(heads) {
            return Err(refuse(format!(
                "n_embd {width} cannot be divided among n_head {heads}"
            )));
        }
        if config.add_cross_attention {
            return Err(refuse("add_cross_attention is not supported".to_owned()));
        }
        if !(config.layer_norm_epsilon.is_finite() && config.layer_norm_epsilon > 0.0) {
            return Err(refuse("layer_norm_epsilon must be above 0".to_owned()));
        }
        if u32::try_from(config.positions()).is_err() || u32::try_from(config.vocab()).is_err() {
            return Err(refuse("n_positions or vocab_size is too big".to_owned()));
        }
        Ok(config)
    }

    /// `vocab_size` as a plain number.
    pub fn vocab(&self) -> usize {
        self.vocab_size.get()
    }

    /// `n_positions` as a plain number.
    pub fn positions(&self) -> usize {
        self.n_positions.get()
    }

    /// `n_embd` as a plain number.
    pub fn width(&self) -> usize {
        self.n_embd.get()
    }

    /// `n_layer` as a plain number.
    pub fn layers(&self) -> usize {
        self.n_layer.get()
    }

    /// `n_head` as a plain number.
    pub fn heads(&self) -> usize {
        self.n_head.get()
    }

    /// Width of the feed-forward part's inner layer: four times `n_embd` unless
    /// `n_inner` says otherwise.
    pub fn inner(&self) -> usize {
        self.n_inner.map_or(4 * self.width(), NonZeroUsize::get)
    }

    /// What the attention scores of block `layer`, from 0, are multiplied with.
    pub fn attention_scale(&self, layer: usize) -> f64 {
        let mut scale = 1.0;
        if self.scale_attn_weights {
            scale /= ((self.width() / self.heads()) as f64).sqrt();
        }
        if self.scale_attn_by_inverse_layer_idx {
            scale /= (layer + 1) as f64;
        }
        scale
    }

    /// Tokens that end a text, where the configuration names any.
    pub fn end_tokens(&self) -> &[u32] {
        match &self.eos_token_id {
            None => &[],
            Some(OneOrMore::One(token)) => std::slice::from_ref(token),
            Some(OneOrMore::More(tokens)) => tokens,
        }
    }
}
