//! GPT-2's `config.json`.

use std::num::NonZeroUsize;

use serde::Deserialize;

use super::{Activation, Biases, Config, Layer, Names, Norm, OneOrMore, refuse};
use crate::checkpoint::Refusal;
use crate::kernels::Dtype;

/// As OpenAI named them. What is empty there is none of.
const NAMES: Names = Names {
    // when a whole `GPT2LMHeadModel` was saved; the original checkpoints were
    // saved from the part inside
    prefix: "transformer.",
    tokens: "wte",
    positions: "wpe",
    norm: "ln_f",
    head: "lm_head",
    layer: "h.",
    attention_norm: "ln_1",
    qkv: &["attn.c_attn"],
    query_norm: "",
    key_norm: "",
    attention_out: "attn.c_proj",
    attention_post: "",
    inner_norm: "ln_2",
    inner: &["mlp.c_fc"],
    inner_out: "mlp.c_proj",
    inner_post: "",
    // transformers calls it a `Conv1D`
    is_input_major: true,
};

/// As llama.cpp names them.
const GGUF: Names = Names {
    prefix: "",
    tokens: "token_embd",
    positions: "position_embd",
    norm: "output_norm",
    head: "output",
    layer: "blk.",
    attention_norm: "attn_norm",
    qkv: &["attn_qkv"],
    attention_out: "attn_output",
    inner_norm: "ffn_norm",
    inner: &["ffn_up"],
    inner_out: "ffn_down",
    is_input_major: false,
    ..NAMES
};

/// What the file says, as transformers' `GPT2Config` writes it; what it leaves
/// out has that class's defaults. Keys that do not change a prediction, such as
/// the dropouts, are not read.
#[derive(Debug, Deserialize)]
pub(super) struct File {
    vocab_size: NonZeroUsize,
    n_positions: NonZeroUsize,
    n_embd: NonZeroUsize,
    n_layer: NonZeroUsize,
    n_head: NonZeroUsize,
    n_inner: Option<NonZeroUsize>,
    #[serde(default = "default_epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default)]
    activation_function: Activation,
    /// Whether attention scores are divided by the root of the head's width.
    #[serde(default = "default_true")]
    scale_attn_weights: bool,
    /// Whether they are divided by the layer's number, from 1, as well.
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default = "default_true")]
    tie_word_embeddings: bool,
    #[serde(default)]
    add_cross_attention: bool,
    eos_token_id: Option<OneOrMore>,
}

/// What the metadata of a GGUF say, in the words of a `config.json`.
pub(super) fn of_gguf(name: &str, json: serde_json::Value) -> Result<Config, Refusal> {
    let file: File = serde_json::from_value(json).map_err(|error| Refusal::file(name, error))?;
    Ok(Config {
        names: &GGUF,
        ..file.config()?
    })
}

fn default_epsilon() -> f64 {
    1e-5
}

fn default_true() -> bool {
    true
}

impl File {
    pub(super) fn config(self) -> Result<Config, Refusal> {
        let (width, heads) = (self.n_embd.get(), self.n_head.get());
        if !width.is_multiple_of(heads) {
            return Err(refuse(format!(
                "n_embd {width} cannot be divided among n_head {heads}"
            )));
        }
        if self.add_cross_attention {
            return Err(refuse("add_cross_attention is not supported".to_owned()));
        }
        if self.activation_function == Activation::Silu {
            return Err(refuse("activation_function is not supported".to_owned()));
        }
        let layers = (0..self.n_layer.get()).map(|layer| {
            let mut scale = 1.0;
            if self.scale_attn_weights {
                scale /= ((width / heads) as f64).sqrt();
            }
            if self.scale_attn_by_inverse_layer_idx {
                scale /= (layer + 1) as f64;
            }
            Layer {
                scale: scale as f32,
                rotary: None,
                window: None,
            }
        });
        Ok(Config {
            family: "GPT-2",
            dtype: Dtype::W8A16,
            names: &NAMES,
            vocab: self.vocab_size.get(),
            positions: self.n_positions.get(),
            context: self.n_positions.get(),
            width,
            inner: self.n_inner.map_or(4 * width, NonZeroUsize::get),
            heads,
            kv_heads: heads,
            head_width: width / heads,
            norm: Norm::Layer,
            epsilon: self.layer_norm_epsilon as f32,
            has_positions: true,
            rotaries: Vec::new(),
            layers: layers.collect(),
            activation: self.activation_function,
            is_gated: false,
            biases: Biases {
                qkv: true,
                attention_out: true,
                inner: true,
            },
            has_head_norms: false,
            has_post_norms: false,
            embedding_scale: 1.0,
            is_tied: self.tie_word_embeddings,
            end_tokens: self.eos_token_id.map_or_else(Vec::new, Vec::from),
        })
    }
}
