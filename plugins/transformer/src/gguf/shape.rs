//! The metadata of a GGUF, in the words of a `config.json`.

use std::fs::File;

use candle_core::Device;
use serde_json::{Map, Value, json};

use super::Gguf;
use crate::checkpoint::Refusal;
use crate::config::Config;

/// What both kinds of file call differently. `general.architecture` stands
/// before each of these.
const OF_GPT2: [(&str, &str); 5] = [
    ("context_length", "n_positions"),
    ("embedding_length", "n_embd"),
    ("feed_forward_length", "n_inner"),
    ("block_count", "n_layer"),
    ("attention.head_count", "n_head"),
];
const NUMBERS: [(&str, &str); 9] = [
    ("context_length", "max_position_embeddings"),
    ("embedding_length", "hidden_size"),
    ("feed_forward_length", "intermediate_size"),
    ("block_count", "num_hidden_layers"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.key_length", "head_dim"),
    ("attention.sliding_window", "sliding_window"),
    ("attention.sliding_window_pattern", "sliding_window_pattern"),
];
const FLOATS: [(&str, &str); 3] = [
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
    ("rope.freq_base", "rope_theta"),
    ("rope.freq_base_swa", "rope_local_base_freq"),
];
/// Llama 3's scaling: what each angle is divided by.
const FACTORS: &str = "rope_freqs.weight";

impl Gguf {
    /// The model's shape. The factors of its angles are a tensor of `file`.
    pub(super) fn config(&self, file: &File) -> Result<Config, Refusal> {
        let family = self.architecture()?;
        let key = |name: &str| format!("{family}.{name}");
        let has = |name: &str| self.content.tensor_infos.contains_key(name);
        let is_gpt2 = family == "gpt2";
        let (numbers, floats) = if is_gpt2 {
            (
                &OF_GPT2[..],
                &[("attention.layer_norm_epsilon", "layer_norm_epsilon")][..],
            )
        } else {
            (&NUMBERS[..], &FLOATS[..])
        };
        let mut config = Map::new();
        for (name, called) in numbers {
            if let Some(number) = self.number(&key(name))? {
                config.insert((*called).to_owned(), json!(number));
            }
        }
        for (name, called) in floats {
            if let Some(number) = self.float(&key(name))? {
                config.insert((*called).to_owned(), json!(number));
            }
        }
        let vocab = self.texts("tokenizer.ggml.tokens")?.len();
        config.insert("vocab_size".to_owned(), json!(vocab));
        config.insert(
            "tie_word_embeddings".to_owned(),
            json!(!has("output.weight")),
        );
        // what queries are divided by the root of, where it is not a head's width
        let number = |name: &str| config.get(name)?.as_u64();
        let divided = match self.float(&key("attention.scale"))? {
            Some(scale) => Some(1.0 / (scale * scale)),
            // Gemma 3's 27B, which llama.cpp knows by its layers
            None if family == "gemma3" && number("num_hidden_layers") == Some(62) => {
                number("hidden_size")
                    .zip(number("num_attention_heads"))
                    .map(|(width, heads)| width as f64 / heads as f64)
            }
            None => None,
        };
        if let Some(divided) = divided {
            config.insert("query_pre_attn_scalar".to_owned(), json!(divided));
        }
        if !is_gpt2 {
            self.turns(file, family, &mut config)?;
        }
        Config::of_gguf(&self.name, family, Value::Object(config))
    }

    /// How positions turn the heads.
    fn turns(
        &self,
        file: &File,
        family: &str,
        config: &mut Map<String, Value>,
    ) -> Result<(), Refusal> {
        let key = |name: &str| format!("{family}.{name}");
        let has = |name: &str| self.content.tensor_infos.contains_key(name);
        let head_width = self.number(&key("rope.dimension_count"))?;
        let expected = config.get("head_dim").and_then(Value::as_u64).or_else(|| {
            let number = |name: &str| config.get(name)?.as_u64();
            number("hidden_size")?.checked_div(number("num_attention_heads")?)
        });
        if head_width.is_some() && head_width != expected {
            return Err(self.refuse("rotary embeddings of a part of a head are not supported"));
        }
        if family == "llama" && has("blk.0.attn_q.bias") {
            return Err(self.refuse("biases of queries are not supported in a llama"));
        }
        let mut scaling = Map::new();
        if let Some(kind) = self.text(&key("rope.scaling.type"))?
            && kind != "none"
        {
            scaling.insert("rope_type".to_owned(), json!(kind));
            let factor = self.float(&key("rope.scaling.factor"))?;
            scaling.insert("factor".to_owned(), json!(factor));
        }
        if has(FACTORS) {
            let factors = self.factors(file).map_err(|error| self.refuse(error))?;
            scaling.insert("factors".to_owned(), json!(factors));
        }
        config.insert("rope_scaling".to_owned(), Value::Object(scaling));
        Ok(())
    }

    fn factors(&self, mut file: &File) -> candle_core::Result<Vec<f32>> {
        let tensor = self.content.tensor(&mut file, FACTORS, &Device::Cpu)?;
        tensor.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
    }
}
