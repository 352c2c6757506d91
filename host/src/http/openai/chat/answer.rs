//! What a chat is answered with.

use serde::Serialize;

use super::tools::Call;
use crate::generate::{Answer, Content, Piece};
use crate::http::error::ApiError;
use crate::http::openai::shape::Heading;
use crate::http::params::finish_reason;
use crate::http::respond::{Shape, Written};

/// OpenAI's shape of a chat's answer. Reasoning has no place in it; it goes
/// where most servers put it, into `reasoning_content`.
pub(super) struct Chat {
    heading: Heading,
    has_usage: bool,
    /// The name that the request gave to its bound of new tokens.
    max_tokens: &'static str,
    has_begun: bool,
    calls: usize,
}

#[derive(Serialize)]
struct Choice {
    index: u32,
    message: Message,
    logprobs: (),
    finish_reason: &'static str,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: Option<String>,
    refusal: (),
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning_content: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Call>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: u32,
    delta: Delta,
    logprobs: (),
    finish_reason: Option<&'static str>,
}

/// What a chunk adds to the message.
#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[CallChunk; 1]>,
}

#[derive(Serialize)]
struct CallChunk {
    index: usize,
    #[serde(flatten)]
    call: Call,
}

impl Chat {
    pub(super) fn new(heading: Heading, has_usage: bool, max_tokens: &'static str) -> Self {
        Self {
            heading,
            has_usage,
            max_tokens,
            has_begun: false,
            calls: 0,
        }
    }

    /// The first chunk says who speaks.
    fn first(&mut self) -> Option<Written> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        is_first.then(|| {
            self.heading.chunk(ChunkChoice::adding(Delta {
                role: Some("assistant"),
                content: Some(String::new()),
                ..Delta::default()
            }))
        })
    }
}

impl ChunkChoice {
    fn adding(delta: Delta) -> Self {
        Self {
            index: 0,
            delta,
            logprobs: (),
            finish_reason: None,
        }
    }
}

impl Shape for Chat {
    fn whole(&self, content: Content, answer: &Answer) -> Written {
        let tool_calls: Vec<Call> = content.tool_calls.into_iter().map(Into::into).collect();
        // a call alone has no content, as opposed to an empty one
        let has_text = tool_calls.is_empty() || !content.text.is_empty();
        let choice = Choice {
            index: 0,
            message: Message {
                role: "assistant",
                content: has_text.then_some(content.text),
                refusal: (),
                reasoning_content: content.reasoning,
                tool_calls,
            },
            logprobs: (),
            finish_reason: finish_reason(answer.finish_reason),
        };
        self.heading.answer(choice, answer)
    }

    fn piece(&mut self, piece: Piece) -> Vec<Written> {
        let mut delta = Delta::default();
        match piece {
            Piece::Text(text) => delta.content = Some(text),
            Piece::Reasoning(text) => delta.reasoning_content = Some(text),
            Piece::ToolCall(call) => {
                let index = self.calls;
                self.calls += 1;
                let call = call.into();
                delta.tool_calls = Some([CallChunk { index, call }]);
            }
        }
        let first = self.first();
        let chunk = self.heading.chunk(ChunkChoice::adding(delta));
        first.into_iter().chain([chunk]).collect()
    }

    fn end(&mut self, answer: &Answer) -> Vec<Written> {
        let first = self.first();
        let choice = ChunkChoice {
            finish_reason: Some(finish_reason(answer.finish_reason)),
            ..ChunkChoice::adding(Delta::default())
        };
        let last = self.heading.last_chunk(choice, answer);
        let usage = self.has_usage.then(|| self.heading.usage_chunk(answer));
        first.into_iter().chain([last]).chain(usage).collect()
    }

    fn error(&self, error: ApiError) -> ApiError {
        error
            .rename("prompt", "messages")
            .rename("max_tokens", self.max_tokens)
    }
}
