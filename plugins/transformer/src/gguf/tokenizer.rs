//! The tokenizer of a GGUF, in the words of a `tokenizer.json`. (candle-core has
//! one that takes every splitting of texts that it doesn't know for GPT-2's.)

use serde_json::{Map, Value, json};

use super::Gguf;
use crate::checkpoint::Refusal;

/// How texts are split before tokens are looked for, after `tokenizer.json` of
/// meta-llama/Llama-3.2-1B and of Qwen/Qwen2.5-0.5B.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Kinds of tokens, by `tokenizer.ggml.token_type`.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

impl Gguf {
    /// What its `tokenizer.json` would say.
    pub(super) fn tokenizer(&self) -> Result<Value, Refusal> {
        let model = self.text("tokenizer.ggml.model")?;
        if model != Some("gpt2") {
            return Err(self.refuse(format!(
                "its tokenizer is {model:?}, and only byte-level BPE (\"gpt2\") is supported in a GGUF; \
                 safetensors with a tokenizer.json have every kind"
            )));
        }
        let tokens = self.texts("tokenizer.ggml.tokens")?;
        let merges = self.texts("tokenizer.ggml.merges")?;
        let merges: Option<Vec<_>> = merges
            .iter()
            .map(|merge| merge.split_once(' ').map(|(one, two)| [one, two]))
            .collect();
        let merges =
            merges.ok_or_else(|| self.refuse("tokenizer.ggml.merges has one without a space"))?;
        let split = |regex: &str| {
            json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": regex }, "behavior": "Isolated", "invert": false },
                byte_level(false),
            ] })
        };
        let (splitting, normalizer, is_llama3) = match self.text("tokenizer.ggml.pre")? {
            None | Some("gpt-2") => (byte_level(true), Value::Null, false),
            Some("smollm") => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                let both =
                    json!({ "type": "Sequence", "pretokenizers": [digits, byte_level(true)] });
                (both, Value::Null, false)
            }
            Some("llama-bpe") => (split(LLAMA3), Value::Null, true),
            Some("qwen2") => (split(QWEN2), json!({ "type": "NFC" }), false),
            Some(other) => {
                return Err(self.refuse(format!(
                    "tokenizer.ggml.pre is {other:?}, and only \"gpt-2\", \"smollm\", \"llama-bpe\" and \
                     \"qwen2\" are supported"
                )));
            }
        };
        let begins = self.value("tokenizer.ggml.add_bos_token", |value| value.to_bool())?;
        let first = match self.token("bos_token_id")? {
            Some(id) if begins.unwrap_or(is_llama3) => tokens.get(id as usize).zip(Some(id)),
            _ => None,
        };
        let post = first.map(|(token, id)| {
            let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
            let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
            let tokens = json!({ "id": token, "ids": [id], "tokens": [token] });
            json!({
                "type": "TemplateProcessing", "single": [special, text], "pair": [],
                "special_tokens": { *token: tokens },
            })
        });
        let vocab: Map<_, _> = tokens
            .iter()
            .enumerate()
            .map(|(id, token)| ((*token).to_owned(), json!(id)))
            .collect();
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added(&tokens)?,
            "normalizer": normalizer,
            "pre_tokenizer": splitting,
            "post_processor": post,
            "decoder": byte_level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": is_llama3, "vocab": vocab, "merges": merges,
            },
        }))
    }

    /// Tokens that texts have as they are, whatever stands around them.
    fn added(&self, tokens: &[&str]) -> Result<Vec<Value>, Refusal> {
        let kinds = self.value("tokenizer.ggml.token_type", |value| {
            let kinds = value.to_vec()?.iter();
            kinds
                .map(|kind| match kind {
                    candle_core::quantized::gguf_file::Value::I32(kind) => {
                        u64::try_from(*kind).map_err(candle_core::Error::wrap)
                    }
                    kind => kind.to_u64(),
                })
                .collect::<candle_core::Result<Vec<_>>>()
        })?;
        let added = tokens.iter().zip(kinds.unwrap_or_default()).enumerate();
        let added = added.filter(|(_, (_, kind))| [CONTROL, USER_DEFINED].contains(kind));
        Ok(added
            .map(|(id, (token, kind))| {
                json!({
                    "id": id, "content": token, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": kind == CONTROL,
                })
            })
            .collect())
    }
}

fn byte_level(splits: bool) -> Value {
    json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits })
}
