//! One sequence on its way through the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use plugin_sdk::{Error, ErrorKind};
use tokio::sync::mpsc;

use super::lookup::Lookup;
use super::pages::{Lease, Pages};
use crate::model::{Cache, Predict, Run};
use crate::sampling::Sampler;

/// A prompt and what was made of it so far.
#[derive(Debug)]
pub(super) struct Sequence {
    /// Tokens from the prompt's first on; the last one made is not seen yet.
    /// After it those that are guessed, until a step shows which were right.
    tokens: Vec<u32>,
    guessed: usize,
    /// None where nothing is guessed.
    lookup: Option<Lookup>,
    /// Guesses that were right and wrong, since it was last asked.
    guesses: [u64; 2],
    cache: Cache,
    lease: Lease,
    /// Tokens of the prompt that were in shared pages.
    cached: Arc<AtomicU32>,
    /// Whether nobody wants its tokens any more.
    is_left: Arc<AtomicBool>,
    sampler: Sampler,
    /// New tokens that may still come.
    left: u32,
    sender: mpsc::Sender<Result<u32, Error>>,
}

impl Sequence {
    pub(super) fn new(
        prompt: Vec<u32>,
        cache: Cache,
        max_tokens: u32,
        sampler: Sampler,
        lookup: Option<Lookup>,
        sender: mpsc::Sender<Result<u32, Error>>,
    ) -> Self {
        Self {
            tokens: prompt,
            guessed: 0,
            lookup,
            guesses: [0; 2],
            cache,
            lease: Lease::default(),
            cached: Arc::default(),
            is_left: Arc::default(),
            sampler,
            left: max_tokens,
            sender,
        }
    }

    /// Takes the pages that it can come to need, before its first step. False
    /// when there is no room.
    pub(super) fn lease(&mut self, pages: &mut Pages) -> bool {
        // the last token is not seen
        let positions = self.tokens.len() + self.left as usize - 1;
        let Some((lease, found)) = pages.lease(&self.tokens, positions) else {
            return false;
        };
        self.lease = lease;
        self.cache.resume(found);
        let cached = u32::try_from(self.cache.len()).unwrap_or(u32::MAX);
        self.cached.store(cached, Ordering::Relaxed);
        true
    }

    /// How many tokens of the prompt were in shared pages, known once it begins.
    pub(super) fn cached(&self) -> Arc<AtomicU32> {
        Arc::clone(&self.cached)
    }

    /// To be set when nobody wants its tokens any more.
    pub(super) fn is_left(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_left)
    }

    /// Lets other sequences have the pages that are full.
    pub(super) fn share(&mut self, pages: &mut Pages) {
        let seen = self.cache.len();
        pages.share(&mut self.lease, &self.tokens, self.cache.pages_mut(), seen);
    }

    /// Gives back what it took, at its end.
    pub(super) fn release(&self, pages: &mut Pages) {
        pages.release(&self.lease);
    }

    /// Tokens that the model has not seen, guesses aside.
    pub(super) fn unseen(&self) -> usize {
        self.known().saturating_sub(self.cache.len())
    }

    /// Tokens that are not guessed.
    fn known(&self) -> usize {
        self.tokens.len() - self.guessed
    }

    /// Tokens that the model has seen.
    pub(super) fn seen(&self) -> usize {
        self.cache.len()
    }

    /// Forgets all but the first `seen` tokens that the model has seen.
    pub(super) fn rewind(&mut self, seen: usize) {
        self.cache.truncate(seen);
    }

    /// Ends it with an error; `detail` is for the log.
    pub(super) fn fail(&mut self, detail: &str) {
        self.left = 0;
        // as in `choose`
        let _ = self.sender.try_send(Err(failed(detail)));
    }

    /// Whether a token that is made now finds a place.
    pub(super) fn is_ready(&self) -> bool {
        self.sender.capacity() > 0
    }

    /// Whether its last token was made, or nobody wants one any more.
    pub(super) fn is_over(&self) -> bool {
        self.left == 0 || self.is_left.load(Ordering::Relaxed)
    }

    /// Guesses at most `most` of the tokens after the one that is to come next,
    /// for the next run to show which are right.
    pub(super) fn guess(&mut self, most: usize) {
        if let Some(lookup) = &self.lookup {
            // the model chooses one more than it was right to guess
            let room = self.sender.capacity().min(self.left as usize) - 1;
            self.guessed = lookup.guess(&mut self.tokens, most.min(room));
        }
    }

    /// How many guesses were right and how many wrong, since this was last asked.
    pub(super) fn take_guesses(&mut self) -> [u64; 2] {
        std::mem::take(&mut self.guesses)
    }

    /// The next `count` tokens that are not seen, and those that are guessed.
    pub(super) fn next_run(&mut self, count: usize) -> Run<'_> {
        let seen = self.cache.len();
        let predict = match (seen + count == self.known(), self.guessed) {
            (false, _) => Predict::None,
            (true, 0) => Predict::Last,
            (true, _) => Predict::All,
        };
        Run {
            tokens: &self.tokens[seen..seen + count + self.guessed],
            cache: &mut self.cache,
            predict,
        }
    }

    /// How many tokens were predicted after its last run, unless the rest of the
    /// prompt is still to come: the next one, and one after each guess.
    pub(super) fn predictions(&self) -> Option<usize> {
        (self.unseen() == 0).then_some(1 + self.guessed)
    }

    /// Chooses the next token and sends it. Returns whether it had been guessed:
    /// then the prediction after it holds too.
    pub(super) fn choose(&mut self, logits: &[f32], end_tokens: &[u32]) -> bool {
        let token = self.sampler.sample(logits);
        self.left -= 1;
        let known = self.known();
        let next = token.as_ref().ok();
        let next = next.filter(|token| !end_tokens.contains(token)).copied();
        let is_guessed = self.guessed > 0 && next == Some(self.tokens[known]);
        if is_guessed {
            self.guessed -= 1;
            self.guesses[0] += 1;
        } else {
            self.guesses[1] += self.guessed as u64;
            self.guessed = 0;
            self.tokens.truncate(known);
            self.cache.truncate(known);
            self.tokens.extend(next);
        }
        match (next, &mut self.lookup) {
            (Some(_), Some(lookup)) => lookup.see(&self.tokens[..=known]),
            (Some(_), None) => {}
            (None, _) => self.left = 0,
        }
        let token = token.map_err(|error| failed(&error.to_string()));
        // there was room for it; if the receiver is gone, the next step sees that
        let _ = self.sender.try_send(token);
        is_guessed
    }
}

fn failed(detail: &str) -> Error {
    Error::new(ErrorKind::Internal, "the model failed").detail(detail)
}
