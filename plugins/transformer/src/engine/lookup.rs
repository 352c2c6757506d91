//! Guesses at the next tokens: what followed when the last ones came before.
//!
//! Prompt lookup decoding (Saxena, 2023): answers repeat their prompts and
//! themselves, in names, quotations and code. A step takes guessed tokens along
//! as it takes a piece of a prompt; those that the model would have chosen itself
//! are kept.

/// Tokens that must have come before in the same order.
const ALIKE: usize = 3;

/// Where one sequence repeats itself.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    /// The place of the next token, if it is guessed.
    next: Option<usize>,
    /// How many guesses were right since the last wrong one.
    right: usize,
}

impl Lookup {
    /// Takes note of a new token, the last of `tokens`.
    pub(super) fn see(&mut self, tokens: &[u32]) {
        let last = tokens.len() - 1;
        match self.next {
            Some(next) if tokens[next] == tokens[last] => {
                self.next = Some(next + 1);
                self.right += 1;
            }
            _ => {
                self.next = find(tokens);
                self.right = 0;
            }
        }
    }

    /// Adds guesses to `tokens`, at most `most` and no more than were right in a
    /// row until now: text that does not repeat costs nothing. Returns how many.
    pub(super) fn guess(&self, tokens: &mut Vec<u32>, most: usize) -> usize {
        let Some(next) = self.next else {
            return 0;
        };
        let count = self.right.min(most);
        for place in next..next + count {
            // where a repetition is short, a guess repeats guesses
            tokens.push(tokens[place]);
        }
        count
    }
}

/// The place after the latest one at which the last few tokens came before.
fn find(tokens: &[u32]) -> Option<usize> {
    let last = tokens.last_chunk::<ALIKE>()?;
    let before = &tokens[..tokens.len() - 1];
    let place = before.windows(ALIKE).rposition(|alike| alike == last)?;
    Some(place + ALIKE)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guesses after each token, at most four.
    fn guesses(tokens: &[u32]) -> Vec<Vec<u32>> {
        let mut lookup = Lookup::default();
        let all = (1..=tokens.len()).map(|count| {
            let mut tokens = tokens[..count].to_vec();
            lookup.see(&tokens);
            assert_eq!(lookup.guess(&mut tokens, 4), tokens.len() - count);
            tokens.split_off(count)
        });
        all.collect()
    }

    #[test]
    fn as_many_are_guessed_as_were_right_in_a_row() {
        let said = guesses(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3, 4, 5, 6, 7, 0, 9]);
        let no: &[u32] = &[];
        // "1 2 3" came before, which no guess had foreseen; from then on they are right
        assert_eq!(said[..12], vec![no; 12]);
        assert_eq!(said[12], [5]);
        assert_eq!(said[13], [6, 7]);
        assert_eq!(said[14], [7, 8, 9]);
        // what comes after 9 is what has come since
        assert_eq!(said[15], [8, 9, 1, 2]);
        assert_eq!(said[16..], vec![no; 2]);
    }

    #[test]
    fn a_short_repetition_is_guessed_beyond_its_end() {
        let said = guesses(&[8, 1, 2, 1, 2, 1, 2, 1, 2]);
        assert_eq!(said[8], [1, 2, 1]);
        assert_eq!(guesses(&[7; 9])[8], [7; 4]);
    }

    #[test]
    fn text_that_does_not_repeat_is_not_guessed() {
        let text: Vec<u32> = (0..60).collect();
        assert!(guesses(&text).iter().all(Vec::is_empty));
    }
}
