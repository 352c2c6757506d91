//! What a model has produced of an answer, and what of it counts.

use std::time::Duration;

use plugin_sdk::{CountSource, ErrorKind, Usage as PluginUsage, guess_tokens};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::reserve::{Bounds, Room};
use super::{Content, Error, Piece};
use crate::models::Completion;

/// Longest answer, in bytes, whatever a plugin sends.
const MAX_ANSWER_BYTES: usize = 4 << 20;

/// The most bytes of a token: the vocabularies in use have runs of 128 spaces or signs.
const LONGEST_TOKEN: usize = 128;

/// What was produced so far.
#[derive(Debug, Default)]
pub(super) struct Produced {
    /// Length of all pieces.
    pub(super) bytes: usize,
    /// Of the prompt from the start; the rest as the plugin counts it.
    pub(super) usage: PluginUsage,
    /// Whether the plugin has counted.
    is_counted: bool,
    /// What it counted beyond what the request allows.
    beyond: Bounds,
    /// Whether it counted more of an answer than the request allows, without the reasoning: some
    /// APIs count that beside what their bound is for.
    is_over: bool,
    /// How long it waited for a client that had not read what there was.
    unread: Duration,
    /// Since when it waits so now.
    unread_since: Option<Instant>,
    pub(super) digest: Option<String>,
    /// What it may be charged for.
    pub(super) bounds: Bounds,
    /// What is held for it.
    pub(super) room: Room,
    /// All of it, where a repeat may ask for it.
    pub(super) content: Option<Content>,
    /// What came to its end, with the instance of a component.
    pub(super) ended: Option<Completion>,
}

impl Produced {
    /// Nothing yet; all of it is kept where a repeat may ask for it.
    pub(super) fn new(is_repeatable: bool) -> Self {
        Self {
            content: is_repeatable.then(Content::default),
            ..Self::default()
        }
    }

    /// Takes the plugin's count, within what the request allows.
    pub(super) fn count(&mut self, usage: PluginUsage) {
        let prompt_tokens = usage.prompt_tokens.min(self.bounds.prompt_tokens);
        let completion_tokens = usage.completion_tokens.min(self.bounds.new_tokens);
        self.beyond = Bounds {
            prompt_tokens: usage.prompt_tokens - prompt_tokens,
            new_tokens: usage.completion_tokens - completion_tokens,
        };
        let answered = usage
            .completion_tokens
            .saturating_sub(usage.reasoning_tokens);
        self.is_over = answered > self.bounds.new_tokens;
        self.usage = PluginUsage {
            prompt_tokens,
            completion_tokens,
            cached_prompt_tokens: usage.cached_prompt_tokens.min(prompt_tokens),
            reasoning_tokens: usage.reasoning_tokens.min(completion_tokens),
            source: usage.source,
        };
        // some APIs count none until the last piece
        self.is_counted |= completion_tokens > 0;
    }

    /// Takes the plugin's last count, which is one even if it is 0.
    pub(super) fn finish(&mut self, usage: PluginUsage) {
        self.count(usage);
        self.is_counted = true;
    }

    /// Whether more was produced than is held for the request, by the plugin's count or
    /// else by its length: the API behind it does not keep to what it is told.
    pub(super) fn is_beyond_what_is_held(&self) -> bool {
        let most = (self.bounds.new_tokens as usize).saturating_mul(LONGEST_TOKEN);
        self.room.held.is_some() && (self.is_over || (!self.is_counted && self.bytes > most))
    }

    /// Whether, of this time, the client took a good part to read.
    pub(super) fn is_held_up(&self, time: Duration) -> bool {
        let now = self.unread_since.map_or(Duration::ZERO, |at| at.elapsed());
        self.unread + now > time / 10
    }

    /// Tells the operator of a plugin that counts more than it may.
    pub(super) fn warn_of_beyond(&self, model: &str) {
        let Bounds {
            prompt_tokens,
            new_tokens,
        } = self.beyond;
        if prompt_tokens > 0 || new_tokens > 0 {
            tracing::warn!(
                model,
                prompt_tokens,
                new_tokens,
                "the plugin counts more than the request allows, which is not charged"
            );
        }
    }

    /// Puts a guess where the plugin has not counted.
    pub(super) fn counted(mut self) -> Self {
        if !self.is_counted {
            let guess = guess_tokens(self.bytes);
            self.usage.completion_tokens = guess.min(self.bounds.new_tokens);
            self.usage.source = CountSource::Estimated;
        }
        self
    }

    /// Hands a piece to the client, and waits while it has not read the last ones.
    /// A client that is gone ends the work, unless it may come back for it.
    pub(super) async fn pass_on(
        &mut self,
        pieces: &mpsc::Sender<Piece>,
        piece: Piece,
    ) -> Result<(), Error> {
        self.bytes += match &piece {
            Piece::Text(text) | Piece::Reasoning(text) => text.len(),
            Piece::ToolCall(call) => call.name.len() + call.arguments.len(),
        };
        if self.bytes > MAX_ANSWER_BYTES {
            return Err(Error::plugin(ErrorKind::Upstream, "the answer is too long"));
        }
        if let Some(content) = &mut self.content {
            content.push(piece.clone());
        }
        let since = Instant::now();
        self.unread_since = Some(since);
        let sent = pieces.send(piece).await;
        self.unread_since = None;
        self.unread += since.elapsed();
        if self.content.is_some() {
            return Ok(());
        }
        sent.map_err(|_| Error::LEFT)
    }
}
