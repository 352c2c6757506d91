//! One sequence on its way through the engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use plugin_sdk::{Error, ErrorKind};
use tokio::sync::mpsc;

use super::pages::{Lease, Pages};
use crate::model::{Cache, Predict, Run};
use crate::sampling::Sampler;

/// A prompt and what was made of it so far.
#[derive(Debug)]
pub(super) struct Sequence {
    /// Tokens from the prompt's first on; the last one made is not seen yet.
    tokens: Vec<u32>,
    cache: Cache,
    lease: Lease,
    /// Tokens of the prompt that were in shared pages.
    cached: Arc<AtomicU32>,
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
        sender: mpsc::Sender<Result<u32, Error>>,
    ) -> Self {
        Self {
            tokens: prompt,
            cache,
            lease: Lease::default(),
            cached: Arc::default(),
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

    /// Lets other sequences have the pages that are full.
    pub(super) fn share(&mut self, pages: &mut Pages) {
        let seen = self.cache.len();
        pages.share(&mut self.lease, &self.tokens, self.cache.pages_mut(), seen);
    }

    /// Gives back what it took, at its end.
    pub(super) fn release(&self, pages: &mut Pages) {
        pages.release(&self.lease);
    }

    /// Tokens that the model has not seen.
    pub(super) fn unseen(&self) -> usize {
        self.tokens.len() - self.cache.len()
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
        self.left == 0 || self.sender.is_closed()
    }

    /// The next `count` tokens that are not seen.
    pub(super) fn next_run(&mut self, count: usize) -> Run<'_> {
        let seen = self.cache.len();
        let predict = if seen + count == self.tokens.len() {
            Predict::Last
        } else {
            Predict::None
        };
        Run {
            tokens: &self.tokens[seen..seen + count],
            cache: &mut self.cache,
            predict,
        }
    }

    /// Chooses the next token and sends it.
    pub(super) fn choose(&mut self, logits: &[f32], end_tokens: &[u32]) {
        let token = self.sampler.sample(logits);
        self.left -= 1;
        match &token {
            Ok(token) if !end_tokens.contains(token) => self.tokens.push(*token),
            _ => self.left = 0,
        }
        let token = token.map_err(|error| failed(&error.to_string()));
        // there was room for it; if the receiver is gone, the next step sees that
        let _ = self.sender.try_send(token);
    }
}

fn failed(detail: &str) -> Error {
    Error::new(ErrorKind::Internal, "the model failed").detail(detail)
}
