//! One generation as its client sees it: pieces, then the answer.

use plugin_sdk::{FinishReason, ToolCall, Usage};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::DropGuard;

use super::Error;
use crate::limits::Rate;
use crate::money::NanoDollars;

/// A part of an answer, in the order the model produced it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Text, never cut inside a character.
    Text(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// A call that the model asks for.
    ToolCall(ToolCall),
}

/// All pieces of an answer put together.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// The text, without the prompt.
    pub text: String,
    /// What the model thought.
    pub reasoning: String,
    /// The calls that it asks for.
    pub tool_calls: Vec<ToolCall>,
}

/// How a generation ended whose usage is on record.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Number of the model.
    pub model_id: i64,
    /// Name of the model.
    pub model_name: String,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// Tokens that were charged.
    pub usage: Usage,
    /// What it cost.
    pub cost: NanoDollars,
}

/// A generation that was admitted. Dropping it ends the work.
#[derive(Debug)]
pub struct Generation {
    rate: Rate,
    pieces: mpsc::Receiver<Piece>,
    task: JoinHandle<Result<Answer, Error>>,
    leaves_on_drop: DropGuard,
}

impl Generation {
    pub(super) fn new(
        rate: Rate,
        pieces: mpsc::Receiver<Piece>,
        task: JoinHandle<Result<Answer, Error>>,
        leaves_on_drop: DropGuard,
    ) -> Self {
        Self {
            rate,
            pieces,
            task,
            leaves_on_drop,
        }
    }

    /// What is left of the rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// The next piece; none when there are no more, and then the answer.
    pub async fn next(&mut self) -> Option<Piece> {
        self.pieces.recv().await
    }

    /// How it ended, once that is on record. To be asked after the last piece:
    /// a piece that nobody takes ends the work.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn answer(self) -> Result<Answer, Error> {
        let Self {
            task,
            leaves_on_drop,
            pieces,
            ..
        } = self;
        drop(pieces);
        let answer = task.await.unwrap_or(Err(Error::Stopping));
        drop(leaves_on_drop);
        answer
    }

    /// The answer as a whole, once it is on record.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn whole(mut self) -> Result<(Content, Answer), Error> {
        let mut content = Content::default();
        while let Some(piece) = self.next().await {
            match piece {
                Piece::Text(text) => content.text += &text,
                Piece::Reasoning(text) => content.reasoning += &text,
                Piece::ToolCall(call) => content.tool_calls.push(call),
            }
        }
        Ok((content, self.answer().await?))
    }
}
