//! The tokenizer of a GGUF, in the words of a `tokenizer.json`. (candle-core has
//! one that takes every splitting of texts that it doesn't know for GPT-2's.)

use std::collections::HashMap;

use candle_core::quantized::gguf_file::Value as Metadata;
use serde_json::{Map, Value, json};

use super::Gguf;
use crate::checkpoint::Refusal;

/// How texts are split before tokens are looked for, after `tokenizer.json` of
/// meta-llama/Llama-3.2-1B and of Qwen/Qwen2.5-0.5B.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Stands for a space in SentencePiece's vocabularies.
const SPACE: &str = "\u{2581}";
/// Kinds of tokens, by `tokenizer.ggml.token_type`.
const CONTROL: u64 = 3;
const USER_DEFINED: u64 = 4;

impl Gguf {
    /// What its `tokenizer.json` would say.
    pub(super) fn tokenizer(&self) -> Result<Value, Refusal> {
        match self.text("tokenizer.ggml.model")? {
            Some("gpt2") => self.byte_level(),
            Some("llama") => self.sentence_piece(),
            other => Err(self.refuse(format!(
                "its tokenizer is {other:?}, and only byte-level BPE (\"gpt2\") and SentencePiece's BPE \
                 (\"llama\") are supported in a GGUF; safetensors with a tokenizer.json have every kind"
            ))),
        }
    }

    /// SentencePiece's BPE, which joins the neighbours that are the likeliest piece,
    /// after `SpmConverter` of transformers: one that joins them in a fixed order.
    fn sentence_piece(&self) -> Result<Value, Refusal> {
        let tokens = self.texts("tokenizer.ggml.tokens")?;
        let scores = self.value("tokenizer.ggml.scores", |value| {
            let scores = value.to_vec()?.iter().map(Metadata::to_f32);
            scores.collect::<candle_core::Result<Vec<_>>>()
        })?;
        let scores = scores.filter(|scores| scores.len() == tokens.len());
        let scores =
            scores.ok_or_else(|| self.refuse("there is no score for each of its tokens"))?;
        let is_set = |key: &str| {
            let is_set = self.value(&format!("tokenizer.ggml.{key}"), Metadata::to_bool)?;
            Ok::<_, Refusal>(is_set.unwrap_or(true))
        };
        let mut normalizers =
            vec![json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE })];
        if is_set("add_space_prefix")? {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": SPACE }));
        }
        let first = if is_set("add_bos_token")? {
            self.token("bos_token_id")?
        } else {
            None
        };
        let unknown = self.token("unknown_token_id")?;
        let unknown = unknown.and_then(|id| tokens.get(id as usize));
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added(&tokens)?,
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null,
            "post_processor": begin_with(first, &tokens),
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": SPACE }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" },
            ] },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                "vocab": vocab(&tokens), "merges": merges(&tokens, &scores),
            },
        }))
    }

    /// Byte-level BPE.
    fn byte_level(&self) -> Result<Value, Refusal> {
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
        let first = if begins.unwrap_or(is_llama3) {
            self.token("bos_token_id")?
        } else {
            None
        };
        Ok(json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added(&tokens)?,
            "normalizer": normalizer,
            "pre_tokenizer": splitting,
            "post_processor": begin_with(first, &tokens),
            "decoder": byte_level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": is_llama3, "vocab": vocab(&tokens), "merges": merges,
            },
        }))
    }

    /// Tokens that texts have as they are, whatever stands around them.
    fn added(&self, tokens: &[&str]) -> Result<Vec<Value>, Refusal> {
        let kinds = self.value("tokenizer.ggml.token_type", |value| {
            let kinds = value.to_vec()?.iter();
            kinds
                .map(|kind| match kind {
                    Metadata::I32(kind) => u64::try_from(*kind).map_err(candle_core::Error::wrap),
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

/// A number for each token.
fn vocab(tokens: &[&str]) -> Map<String, Value> {
    let ids = tokens.iter().enumerate();
    ids.map(|(id, token)| ((*token).to_owned(), json!(id)))
        .collect()
}

/// What begins every text with this token, if there is one.
fn begin_with(first: Option<u32>, tokens: &[&str]) -> Option<Value> {
    let id = first?;
    let token = tokens.get(id as usize)?;
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let special = json!({ "SpecialToken": { "id": token, "type_id": 0 } });
    let tokens = json!({ "id": token, "ids": [id], "tokens": [token] });
    Some(json!({
        "type": "TemplateProcessing", "single": [special, text], "pair": [],
        "special_tokens": { *token: tokens },
    }))
}

/// Each pair of tokens that is a token, the one with the highest score first.
fn merges<'t>(tokens: &[&'t str], scores: &[f32]) -> Vec<[&'t str; 2]> {
    let ids: HashMap<_, _> = tokens.iter().zip(0..).collect();
    let mut merges = Vec::new();
    for (token, score) in tokens.iter().zip(scores) {
        let places = token.char_indices().skip(1);
        let pairs = places.map(|(place, _)| token.split_at(place));
        let pairs = pairs.filter_map(|(one, two)| {
            let order: (usize, usize) = (*ids.get(&one)?, *ids.get(&two)?);
            Some((order, [one, two]))
        });
        let mut pairs: Vec<_> = pairs.collect();
        pairs.sort_unstable_by_key(|(order, _)| *order);
        merges.extend(pairs.into_iter().map(|(_, pair)| (*score, pair)));
    }
    merges.sort_by(|(one, _), (other, _)| other.total_cmp(one));
    merges.into_iter().map(|(_, pair)| pair).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file::Content;

    use super::*;
    use crate::tests::fixture;
    use crate::tokenizer::Tokenizer;

    #[test]
    fn texts_are_split_as_by_sentence_piece() {
        let mut file = std::fs::File::open(fixture("sentencepiece.gguf")).unwrap();
        let gguf = Gguf {
            name: "sentencepiece.gguf".to_owned(),
            content: Content::read(&mut file).unwrap(),
        };
        let size = gguf.texts("tokenizer.ggml.tokens").unwrap().len();
        let json = gguf.tokenizer().unwrap().to_string();
        let tokenizer = Tokenizer::from_json(json.as_bytes(), size).unwrap();
        let expected = std::fs::read(fixture("sentencepiece.json")).unwrap();
        let expected: Vec<(String, Vec<u32>)> = serde_json::from_slice(&expected).unwrap();
        assert!(expected.len() > 5);
        for (text, tokens) in expected {
            assert_eq!(tokenizer.encode_whole(&text).unwrap(), tokens, "{text:?}");
            // after the token for the beginning
            assert_eq!(
                tokenizer.encode(&text).unwrap(),
                [&[1], &tokens[..]].concat()
            );
            // what stands for a space is one, and a special token has a text of its own after it
            if !text.is_empty() && !text.contains(['<', '\u{2581}']) {
                let bytes = tokens.iter().map(|&token| tokenizer.bytes(token));
                let bytes = bytes.collect::<Vec<_>>().concat();
                assert_eq!(String::from_utf8(bytes).unwrap(), format!(" {text}"));
            }
        }
    }
}
