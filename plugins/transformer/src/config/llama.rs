//! `config.json` of Llama and the families that came of it.

use std::num::NonZeroUsize;

use serde::Deserialize;

use super::rotary::{Parameters, Rotary};
use super::{Activation, Biases, Config, Layer, Names, Norm, OneOrMore, refuse};
use crate::checkpoint::Refusal;
use crate::kernels::Dtype;

/// As transformers names them.
const NAMES: Names = Names {
    prefix: "model.",
    tokens: "embed_tokens",
    positions: "",
    norm: "norm",
    head: "lm_head",
    layer: "layers.",
    attention_norm: "input_layernorm",
    qkv: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    query_norm: "self_attn.q_norm",
    key_norm: "self_attn.k_norm",
    attention_out: "self_attn.o_proj",
    attention_post: "",
    inner_norm: "post_attention_layernorm",
    inner: &["mlp.gate_proj", "mlp.up_proj"],
    inner_out: "mlp.down_proj",
    inner_post: "",
    is_input_major: false,
};

/// Gemma names the norms after what they stand before or after.
const GEMMA: Names = Names {
    attention_post: "post_attention_layernorm",
    inner_norm: "pre_feedforward_layernorm",
    inner_post: "post_feedforward_layernorm",
    ..NAMES
};

/// As llama.cpp names them, whatever the family.
const GGUF: Names = Names {
    prefix: "",
    tokens: "token_embd",
    positions: "",
    norm: "output_norm",
    head: "output",
    layer: "blk.",
    attention_norm: "attn_norm",
    qkv: &["attn_q", "attn_k", "attn_v"],
    query_norm: "attn_q_norm",
    key_norm: "attn_k_norm",
    attention_out: "attn_output",
    attention_post: "",
    inner_norm: "ffn_norm",
    inner: &["ffn_gate", "ffn_up"],
    inner_out: "ffn_down",
    inner_post: "",
    is_input_major: false,
};
/// Of Gemma's, too.
const GGUF_GEMMA: Names = Names {
    attention_post: "post_attention_norm",
    inner_post: "post_ffw_norm",
    ..GGUF
};
/// The architectures that such files are read of.
const IN_GGUF: [(&str, Family); 4] = [
    ("llama", Family::Llama),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma3", Family::Gemma3),
];

/// By `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Gemma3,
}

const FAMILIES: [(&str, Family); 5] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("qwen3", Family::Qwen3),
    ("gemma3_text", Family::Gemma3),
];

impl Family {
    pub(super) fn named(name: &str) -> Option<Self> {
        let found = FAMILIES.iter().find(|(known, _)| *known == name);
        found.map(|(_, family)| *family)
    }

    /// All names, for people.
    pub(super) fn names() -> String {
        FAMILIES.map(|(name, _)| format!("{name:?}")).join(", ")
    }

    fn title(self) -> &'static str {
        match self {
            Self::Llama => "Llama",
            Self::Mistral => "Mistral",
            Self::Qwen2 => "Qwen2",
            Self::Qwen3 => "Qwen3",
            Self::Gemma3 => "Gemma 3",
        }
    }
}

/// What the file says, as transformers' configurations write it; what it leaves
/// out has their defaults.
#[derive(Debug, Deserialize)]
pub(super) struct File {
    vocab_size: NonZeroUsize,
    max_position_embeddings: NonZeroUsize,
    hidden_size: NonZeroUsize,
    intermediate_size: NonZeroUsize,
    num_hidden_layers: NonZeroUsize,
    num_attention_heads: NonZeroUsize,
    num_key_value_heads: Option<NonZeroUsize>,
    head_dim: Option<NonZeroUsize>,
    #[serde(default = "default_epsilon")]
    rms_norm_eps: f64,
    #[serde(alias = "hidden_activation")]
    hidden_act: Option<Activation>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    tie_word_embeddings: Option<bool>,
    rope_theta: Option<f64>,
    rope_scaling: Option<Parameters>,
    rope_parameters: Option<RopeParameters>,
    /// Of Gemma's layers with a window.
    rope_local_base_freq: Option<f64>,
    sliding_window: Option<NonZeroUsize>,
    #[serde(default)]
    use_sliding_window: bool,
    max_window_layers: Option<usize>,
    layer_types: Option<Vec<LayerType>>,
    sliding_window_pattern: Option<NonZeroUsize>,
    query_pre_attn_scalar: Option<f64>,
    attn_logit_softcapping: Option<f64>,
    final_logit_softcapping: Option<f64>,
    #[serde(default)]
    use_bidirectional_attention: bool,
    eos_token_id: Option<OneOrMore>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum LayerType {
    #[serde(rename = "full_attention")]
    Full,
    #[serde(rename = "sliding_attention")]
    Sliding,
}

/// As transformers 5 writes it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum RopeParameters {
    Each {
        full_attention: Parameters,
        sliding_attention: Parameters,
    },
    All(Parameters),
}

/// What the metadata of a GGUF say, in the words of a `config.json`.
pub(super) fn of_gguf(
    name: &str,
    family: &str,
    json: serde_json::Value,
) -> Result<Config, Refusal> {
    let known = IN_GGUF.iter().find(|(known, _)| *known == family);
    let Some((_, known)) = known else {
        return Err(Refusal::file(
            name,
            format!(
                "general.architecture is {family:?}, and only gpt2, {} are supported in a GGUF",
                IN_GGUF.map(|(name, _)| name).join(", ")
            ),
        ));
    };
    let file: File = serde_json::from_value(json).map_err(|error| Refusal::file(name, error))?;
    let config = file.config(*known)?;
    Ok(Config {
        names: match known {
            Family::Gemma3 => &GGUF_GEMMA,
            _ => &GGUF,
        },
        // what Gemma adds to the weights of its norms is in them already
        norm: Norm::RootMeanSquare { offset: 0.0 },
        ..config
    })
}

fn default_epsilon() -> f64 {
    1e-6
}

impl File {
    pub(super) fn config(self, family: Family) -> Result<Config, Refusal> {
        let (width, heads) = (self.hidden_size.get(), self.num_attention_heads.get());
        let is_gemma = family == Family::Gemma3;
        let head_width = match self.head_dim {
            Some(head_width) => head_width.get(),
            None if width.is_multiple_of(heads) => width / heads,
            None => {
                return Err(refuse(format!(
                    "hidden_size {width} cannot be divided among {heads} heads"
                )));
            }
        };
        if self.attn_logit_softcapping.is_some() || self.final_logit_softcapping.is_some() {
            return Err(refuse("logit softcapping is not supported".to_owned()));
        }
        if self.use_bidirectional_attention {
            return Err(refuse(
                "it is no decoder: attention is bidirectional".to_owned(),
            ));
        }
        let activation = match (self.hidden_act, is_gemma) {
            (Some(Activation::GeluTanh), _) | (None, true) => Activation::GeluTanh,
            (Some(Activation::Silu), _) | (None, false) => Activation::Silu,
            (Some(_), _) => return Err(refuse("hidden_act is not supported".to_owned())),
        };
        let scale = self.query_pre_attn_scalar.unwrap_or(head_width as f64);
        let kinds = self.layer_types(family)?;
        let layers = kinds.iter().map(|kind| Layer {
            scale: (1.0 / scale.sqrt()) as f32,
            rotary: Some(usize::from(is_gemma && *kind == LayerType::Sliding)),
            window: (*kind == LayerType::Sliding)
                .then_some(self.sliding_window)
                .flatten()
                .map(NonZeroUsize::get),
        });
        Ok(Config {
            family: family.title(),
            dtype: Dtype::F16,
            names: if is_gemma { &GEMMA } else { &NAMES },
            vocab: self.vocab_size.get(),
            positions: self.max_position_embeddings.get(),
            context: self.max_position_embeddings.get(),
            width,
            inner: self.intermediate_size.get(),
            heads,
            kv_heads: self.num_key_value_heads.map_or(heads, NonZeroUsize::get),
            head_width,
            norm: Norm::RootMeanSquare {
                offset: if is_gemma { 1.0 } else { 0.0 },
            },
            epsilon: self.rms_norm_eps as f32,
            has_positions: false,
            rotaries: self.rotaries(family, head_width)?,
            layers: layers.collect(),
            activation,
            is_gated: true,
            biases: Biases {
                qkv: self.attention_bias || family == Family::Qwen2,
                attention_out: self.attention_bias && family != Family::Qwen2,
                inner: self.mlp_bias,
            },
            has_head_norms: matches!(family, Family::Qwen3 | Family::Gemma3),
            has_post_norms: is_gemma,
            embedding_scale: if is_gemma { (width as f32).sqrt() } else { 1.0 },
            is_tied: self.tie_word_embeddings.unwrap_or(is_gemma),
            end_tokens: self.eos_token_id.map_or_else(Vec::new, Vec::from),
        })
    }

    /// Which layers see but a window.
    fn layer_types(&self, family: Family) -> Result<Vec<LayerType>, Refusal> {
        let layers = self.num_hidden_layers.get();
        if let Some(types) = &self.layer_types {
            if types.len() != layers {
                return Err(refuse(format!(
                    "layer_types has {} entries for {layers} layers",
                    types.len()
                )));
            }
            return Ok(types.clone());
        }
        let pattern = self.sliding_window_pattern.map_or(6, NonZeroUsize::get);
        let is_sliding = |layer: usize| match family {
            Family::Llama => false,
            Family::Mistral => true,
            Family::Qwen2 | Family::Qwen3 => {
                self.use_sliding_window && layer >= self.max_window_layers.unwrap_or(layers)
            }
            Family::Gemma3 => !(layer + 1).is_multiple_of(pattern),
        };
        let of = |layer| {
            if is_sliding(layer) {
                LayerType::Sliding
            } else {
                LayerType::Full
            }
        };
        Ok((0..layers).map(of).collect())
    }

    /// That of full attention, and for Gemma that of windows.
    fn rotaries(&self, family: Family, head_width: usize) -> Result<Vec<Rotary>, Refusal> {
        let is_gemma = family == Family::Gemma3;
        let theta = self.rope_theta.unwrap_or(if is_gemma { 1e6 } else { 1e4 });
        let plain = Parameters::default();
        let (full, local) = match &self.rope_parameters {
            Some(RopeParameters::Each {
                full_attention,
                sliding_attention,
            }) => (full_attention, sliding_attention),
            Some(RopeParameters::All(all)) => (all, &plain),
            None => (self.rope_scaling.as_ref().unwrap_or(&plain), &plain),
        };
        let full = Rotary::new(head_width, full.rope_theta.unwrap_or(theta), full)?;
        if !is_gemma {
            return Ok(vec![full]);
        }
        let theta = self.rope_local_base_freq.unwrap_or(1e4);
        let local = Rotary::new(head_width, local.rope_theta.unwrap_or(theta), local)?;
        Ok(vec![full, local])
    }
}
