//! One generation as its client sees it: pieces, then the answer.

use plugin_sdk::{FinishReason, ToolCall, Usage};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::DropGuard;

use super::Error;
use super::idempotency::Kept;
use crate::limits::Standing;
use crate::money::NanoDollars;
use crate::store::ledger::Cap;

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

impl Content {
    /// Adds the next piece.
    pub fn push(&mut self, piece: Piece) {
        match piece {
            Piece::Text(text) => self.text += &text,
            Piece::Reasoning(text) => self.reasoning += &text,
            Piece::ToolCall(call) => self.tool_calls.push(call),
        }
    }
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
    /// What made it end sooner than was asked for.
    pub limited_by: Option<Cap>,
}

/// A generation that was admitted. Dropping it ends the work.
#[derive(Debug)]
pub struct Generation {
    standings: Vec<Standing>,
    pieces: mpsc::Receiver<Piece>,
    end: End,
}

#[derive(Debug)]
enum End {
    /// To come, from a task that stops when the guard is dropped.
    Task(JoinHandle<Result<Answer, Error>>, DropGuard),
    /// On record already.
    Known(Box<Answer>),
}

impl Generation {
    pub(super) fn new(
        standings: Vec<Standing>,
        pieces: mpsc::Receiver<Piece>,
        task: JoinHandle<Result<Answer, Error>>,
        leaves_on_drop: DropGuard,
    ) -> Self {
        Self {
            standings,
            pieces,
            end: End::Task(task, leaves_on_drop),
        }
    }

    /// One that was answered before.
    pub(super) fn replay(kept: Kept) -> Self {
        let (all, answer) = kept.replay();
        let (sender, pieces) = mpsc::channel(all.len().max(1));
        for piece in all {
            // there is room for all of them, and the receiver is here
            let _ = sender.try_send(piece);
        }
        Self {
            standings: Vec::new(),
            pieces,
            end: End::Known(Box::new(answer)),
        }
    }

    /// How the limits stood that this counted in, once; what was answered before
    /// counts in none.
    pub fn take_standings(&mut self) -> Vec<Standing> {
        std::mem::take(&mut self.standings)
    }

    /// Whether this was answered before.
    pub fn is_repeated(&self) -> bool {
        matches!(self.end, End::Known(_))
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
        drop(self.pieces);
        match self.end {
            End::Task(task, leaves_on_drop) => {
                let answer = task.await.unwrap_or(Err(Error::Stopping));
                drop(leaves_on_drop);
                answer
            }
            End::Known(answer) => Ok(*answer),
        }
    }

    /// The answer as a whole, once it is on record.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn whole(mut self) -> Result<(Content, Answer), Error> {
        let mut content = Content::default();
        while let Some(piece) = self.next().await {
            content.push(piece);
        }
        Ok((content, self.answer().await?))
    }
}
