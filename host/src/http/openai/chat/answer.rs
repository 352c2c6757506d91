//! What a chat is answered with.

use serde_json::{Value, json};

use super::tools::Call;
use crate::generate::{Answer, Content, Piece};
use crate::http::error::ApiError;
use crate::http::openai::shape::{Heading, usage, with_limit};
use crate::http::params::finish_reason;
use crate::http::respond::Shape;

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

    fn chunk(&self, delta: Value, finish_reason: Option<&str>) -> Value {
        self.heading.with_choice(json!({
            "index": 0,
            "delta": delta,
            "logprobs": null,
            "finish_reason": finish_reason,
        }))
    }

    /// The first chunk says who speaks.
    fn first(&mut self) -> Option<Value> {
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        is_first.then(|| self.chunk(json!({ "role": "assistant", "content": "" }), None))
    }
}

impl Shape for Chat {
    fn whole(&self, content: Content, answer: &Answer) -> Value {
        let calls: Vec<Call> = content.tool_calls.into_iter().map(Into::into).collect();
        // a call alone has no content, as opposed to an empty one
        let text = (calls.is_empty() || !content.text.is_empty()).then_some(content.text);
        let mut message = json!({ "role": "assistant", "content": text, "refusal": null });
        if !content.reasoning.is_empty() {
            message["reasoning_content"] = json!(content.reasoning);
        }
        if !calls.is_empty() {
            message["tool_calls"] = json!(calls);
        }
        let mut body = self.heading.with_choice(json!({
            "index": 0,
            "message": message,
            "logprobs": null,
            "finish_reason": finish_reason(answer.finish_reason),
        }));
        body["usage"] = usage(answer);
        with_limit(body, answer)
    }

    fn piece(&mut self, piece: Piece) -> Vec<Value> {
        let delta = match piece {
            Piece::Text(text) => json!({ "content": text }),
            Piece::Reasoning(text) => json!({ "reasoning_content": text }),
            Piece::ToolCall(call) => {
                let mut call = json!(Call::from(call));
                call["index"] = json!(self.calls);
                self.calls += 1;
                json!({ "tool_calls": [call] })
            }
        };
        let first = self.first();
        first.into_iter().chain([self.chunk(delta, None)]).collect()
    }

    fn end(&mut self, answer: &Answer) -> Vec<Value> {
        let first = self.first();
        let last = self.chunk(json!({}), Some(finish_reason(answer.finish_reason)));
        let last = with_limit(last, answer);
        let usage = self.has_usage.then(|| self.heading.with_usage(answer));
        first.into_iter().chain([last]).chain(usage).collect()
    }

    fn error(&self, error: ApiError) -> ApiError {
        error
            .rename("prompt", "messages")
            .rename("max_tokens", self.max_tokens)
    }
}
