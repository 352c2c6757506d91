//! Text to tokens, and tokens to the bytes they stand for: `tokenizer.json`.

use std::collections::HashMap;

use tokenizers::DecoderWrapper;

use crate::checkpoint::{Refusal, TOKENIZER};

/// The end of a text, in OpenAI's vocabulary.
const END_OF_TEXT: &str = "<|endoftext|>";
/// A model's vocabulary may be bigger than its tokenizer's by less than this:
/// embeddings are often padded to a round size.
const PADDING: usize = 128;

/// A byte-level BPE tokenizer.
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
        if !matches!(encoder.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(refuse("it is not byte-level, as GPT-2's is".to_owned()));
        }
        // a file may carry its training's habits; here nothing is cut off or filled up
        encoder
            .with_truncation(None)
            .map_err(|error| refuse(error.to_string()))?
            .with_padding(None);

        let ids = encoder.get_vocab(true);
        let size = ids.values().max().map_or(0, |&last| last as usize + 1);
        if size > vocab || size + PADDING <= vocab {
            return Err(refuse(format!(
                "it has {size} tokens, and by config.json the model has {vocab}"
            )));
        }
        let byte_of: HashMap<char, u8> = alphabet().collect();
        let added = encoder.get_added_tokens_decoder();
        let mut bytes = vec![Box::default(); size];
        for (token, id) in ids {
            let is_added = added.contains_key(&id);
            let decoded = (!is_added)
                .then(|| {
                    token
                        .chars()
                        .map(|char| byte_of.get(&char).copied())
                        .collect()
                })
                .flatten();
            bytes[id as usize] = decoded.unwrap_or_else(|| token.into_bytes().into());
        }
        Ok(Self { encoder, bytes })
    }

    /// Tokens of a text; no token is added to it.
    pub(crate) fn encode(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        let encoding = self.encoder.encode_fast(text, false)?;
        Ok(encoding.get_ids().to_vec())
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
        self.encoder.token_to_id(END_OF_TEXT)
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
