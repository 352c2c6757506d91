//! Text to tokens, and tokens to the bytes they stand for: `tokenizer.json`.

use std::collections::HashMap;

use tokenizers::{AddedVocabulary, DecoderWrapper};

use crate::checkpoint::{Refusal, TOKENIZER};

/// The end of a text, in OpenAI's vocabulary.
const END_OF_TEXT: &str = "<|endoftext|>";
/// A model's vocabulary may be bigger than its tokenizer's by less than this, or
/// than one part in [`PADDED_PART`]: embeddings are often padded to a round size.
const PADDING: usize = 128;
const PADDED_PART: usize = 50;

/// What stands for a space in a vocabulary of whole characters.
const SPACE: char = '\u{2581}';

/// A tokenizer whose tokens stand for bytes: byte-level BPE, as GPT-2's, or one of
/// whole characters with tokens such as `<0x0A>` for the bytes of rare ones, as
/// Llama 2's and Gemma's.
#[derive(Debug)]
pub(crate) struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    /// Bytes of each token, by its id.
    bytes: Vec<Box<[u8]>>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` for a model with a vocabulary of `vocab` tokens.
    pub(crate) fn from_json(json: &[u8], vocab: usize) -> Result<Self, Refusal> {
        let refuse = |reason: String| Refusal::file(TOKENIZER, reason);
        let mut encoder =
            tokenizers::Tokenizer::from_bytes(json).map_err(|error| refuse(error.to_string()))?;
        let falls_back = |step: &DecoderWrapper| matches!(step, DecoderWrapper::ByteFallback(_));
        let is_byte_level = match encoder.get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => true,
            Some(DecoderWrapper::Sequence(steps))
                if steps.get_decoders().iter().any(falls_back) =>
            {
                false
            }
            _ => {
                let reason = "what bytes its tokens stand for is not known";
                return Err(refuse(reason.to_owned()));
            }
        };
        // a file may carry its training's habits; here nothing is cut off or filled up
        encoder
            .with_truncation(None)
            .map_err(|error| refuse(error.to_string()))?
            .with_padding(None);

        let ids = encoder.get_vocab(true);
        let added = encoder.get_added_tokens_decoder();
        // a token that was added beyond the model's vocabulary, as Gemma's for images,
        // is none of the model's
        let is_beyond = |id: u32| added.contains_key(&id) && id as usize >= vocab;
        let own = ids.values().filter(|&&id| !is_beyond(id));
        let size = own.max().map_or(0, |&last| last as usize + 1);
        if size > vocab || size + PADDING.max(vocab / PADDED_PART) <= vocab {
            return Err(refuse(format!(
                "it has {size} tokens, and by config.json the model has {vocab}"
            )));
        }
        if ids.values().any(|&id| is_beyond(id)) {
            // in a text it is text: the others are added anew, in the order of their ids
            let mut kept: Vec<_> = added.iter().filter(|(id, _)| !is_beyond(**id)).collect();
            kept.sort_unstable_by_key(|(id, _)| **id);
            let kept = kept.into_iter().map(|(_, token)| token.clone());
            let mut vocabulary = AddedVocabulary::new();
            vocabulary
                .add_tokens(kept, encoder.get_model(), encoder.get_normalizer())
                .map_err(|error| refuse(error.to_string()))?;
            encoder.with_added_vocabulary(vocabulary);
        }
        let byte_of: HashMap<char, u8> = alphabet().collect();
        let mut bytes = vec![Box::default(); size];
        for (token, id) in ids {
            let Some(bytes) = bytes.get_mut(id as usize) else {
                continue;
            };
            let added = added.get(&id);
            let decoded = if added.is_some_and(|token| is_byte_level || token.special) {
                None
            } else if is_byte_level {
                let decoded = token.chars().map(|char| byte_of.get(&char).copied());
                decoded.collect()
            } else {
                Some(of_characters(&token))
            };
            *bytes = decoded.unwrap_or_else(|| token.into_bytes().into());
        }
        Ok(Self { encoder, bytes })
    }

    /// Tokens of a text, after the one that the tokenizer begins texts with, if any.
    pub(crate) fn encode(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        self.encode_with(text, true)
    }

    /// Tokens of a text that brings that token along, as a chat template's does.
    pub(crate) fn encode_whole(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, begins: bool) -> tokenizers::Result<Vec<u32>> {
        let encoding = self.encoder.encode_fast(text, begins)?;
        let ids = encoding.get_ids();
        match ids.iter().find(|&&id| id as usize >= self.size()) {
            None => Ok(ids.to_vec()),
            Some(id) => Err(format!("token {id} is beyond the model's vocabulary").into()),
        }
    }

    /// The bytes that a token stands for, which need not be whole characters.
    /// Unknown ids stand for none.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        self.bytes.get(token as usize).map_or(&[], |bytes| bytes)
    }

    /// Ids are below this.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// The id of `<|endoftext|>`.
    pub(crate) fn end_of_text(&self) -> Option<u32> {
        self.id(END_OF_TEXT)
    }

    /// The id of a token, as it is in the vocabulary.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        self.encoder.token_to_id(token)
    }
}

/// The bytes of a token of whole characters, or of one for a byte.
fn of_characters(token: &str) -> Box<[u8]> {
    let byte = token
        .strip_prefix("<0x")
        .and_then(|rest| rest.strip_suffix('>'))
        .filter(|digits| digits.len() == 2);
    match byte.map(|digits| u8::from_str_radix(digits, 16)) {
        Some(Ok(byte)) => [byte].into(),
        _ => token.replace(SPACE, " ").into_bytes().into(),
    }
}

/// The characters that stand for the 256 bytes in a byte-level vocabulary:
/// printable ones for themselves, the rest moved up from U+0100 on. After
/// `bytes_to_unicode` in `encoder.py` of OpenAI's gpt-2 repository.
fn alphabet() -> impl Iterator<Item = (char, u8)> {
    let mut moved = '\u{100}'..;
    (0..=u8::MAX).filter_map(move |byte| {
        let char = match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => moved.next()?,
        };
        Some((char, byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Llama 2's, with a token before every text and one that was added beyond.
    #[test]
    fn tokens_of_whole_characters_stand_for_their_bytes() {
        let added = |id: u32, content: &str, special: bool| {
            serde_json::json!({
                "id": id, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": special,
            })
        };
        // as Gemma's runs of spaces
        let run = "\u{2581}\u{2581}";
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": [added(0, "<s>", true), added(6, run, false), added(9, "<image>", true)],
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "Prepend", "prepend": "\u{2581}" },
                { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" },
            ] },
            "pre_tokenizer": null,
            "post_processor": {
                "type": "TemplateProcessing", "pair": [],
                "single": [
                    { "SpecialToken": { "id": "<s>", "type_id": 0 } },
                    { "Sequence": { "id": "A", "type_id": 0 } },
                ],
                "special_tokens": { "<s>": { "id": "<s>", "ids": [0], "tokens": ["<s>"] } },
            },
            "decoder": { "type": "Sequence", "decoders": [
                { "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " },
                { "type": "ByteFallback" }, { "type": "Fuse" },
            ] },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true,
                "vocab": {
                    "<s>": 0, "\u{2581}": 1, "a": 2, "\u{2581}a": 3, "<0xC3>": 4, "<0xA9>": 5, run: 6,
                },
                "merges": ["\u{2581} a"],
            },
        });
        let tokenizer = Tokenizer::from_json(json.to_string().as_bytes(), 7).unwrap();
        assert_eq!(tokenizer.encode("a aé").unwrap(), [0, 3, 3, 4, 5]);
        assert_eq!(tokenizer.encode_whole("a").unwrap(), [3]);
        let bytes = [3, 4, 5].map(|token| tokenizer.bytes(token).to_vec());
        assert_eq!(bytes.concat(), " aé".as_bytes());
        assert_eq!(
            (tokenizer.bytes(6), tokenizer.bytes(0)),
            (&b"  "[..], &b"<s>"[..])
        );
        // the one beyond is text like any other, of which this vocabulary has the a
        assert_eq!(tokenizer.encode("<image>").unwrap(), [0, 3]);
        assert_eq!(tokenizer.encode_whole("<s>a").unwrap(), [0, 3]);
    }
}
