//! Whole characters out of the bytes of tokens.

use std::str;

/// Joins the bytes of tokens to text, and holds back the bytes of a character
/// that is not whole yet. Put together, what it returns is what
/// [`String::from_utf8_lossy`] makes of all the bytes.
#[derive(Debug, Default)]
pub(crate) struct Detokenizer {
    held: Vec<u8>,
}

impl Detokenizer {
    /// Adds the bytes of a token and returns the text that is whole now.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        loop {
            let error = match str::from_utf8(rest) {
                Ok(whole) => {
                    text.push_str(whole);
                    rest = &[];
                    break;
                }
                Err(error) => error,
            };
            let (whole, broken) = rest.split_at(error.valid_up_to());
            text.push_str(str::from_utf8(whole).unwrap_or_default());
            match error.error_len() {
                // these bytes begin no character, whatever follows
                Some(len) => {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &broken[len..];
                }
                None => {
                    rest = broken;
                    break;
                }
            }
        }
        let held = rest.len();
        self.held.drain(..self.held.len() - held);
        text
    }

    /// What stands for the character that did not become whole, if there is one.
    pub(crate) fn finish(&mut self) -> &'static str {
        if std::mem::take(&mut self.held).is_empty() {
            ""
        } else {
            "\u{FFFD}"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_bytes_are_cut_the_text_is_that_of_the_whole() {
        let cases: [&[u8]; 6] = [
            "a é 海 🙂!".as_bytes(),
            b"\xFF\xFEa",
            b"\xE6\xB5 cut off inside",
            b"cut off at the end \xF0\x9F\x99",
            b"\xE6\xE6\xB5\xB7",
            b"",
        ];
        for bytes in cases {
            let whole = String::from_utf8_lossy(bytes);
            for size in 1..=bytes.len().max(1) {
                let mut detokenizer = Detokenizer::default();
                let pieces = bytes.chunks(size).map(|piece| detokenizer.push(piece));
                let mut text: String = pieces.collect();
                text += detokenizer.finish();
                assert_eq!(text, whole, "{bytes:?} by {size}");
            }
        }
    }

    #[test]
    fn a_character_that_is_not_whole_is_held_back() {
        let mut detokenizer = Detokenizer::default();
        assert_eq!(detokenizer.push(b"a\xF0\x9F"), "a");
        assert_eq!(detokenizer.push(b"\x99"), "");
        assert_eq!(detokenizer.push(b"\x82b"), "🙂b");
        assert_eq!(detokenizer.finish(), "");
    }
}
