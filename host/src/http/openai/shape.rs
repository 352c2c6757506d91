//! What the bodies of OpenAI's generating endpoints have in common.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::generate::Answer;
use crate::http::error::ApiError;
use crate::http::params::limited_by;

/// `stream_options` of a request.
#[derive(Debug, Deserialize)]
pub struct Options {
    include_usage: Option<bool>,
}

impl Options {
    /// Whether the stream's last chunk tells the usage.
    ///
    /// # Errors
    /// 422 when there is no stream that the options could be for.
    pub fn has_usage(options: Option<Self>, is_streamed: bool) -> Result<bool, ApiError> {
        match options {
            Some(_) if !is_streamed => Err(ApiError::invalid(
                "stream_options",
                "is only for requests with stream: true",
            )),
            options => Ok(options.is_some_and(|options| options.include_usage == Some(true))),
        }
    }
}

/// The fields with which every body and chunk of an answer begins.
pub struct Heading {
    /// Of the completion, the same in all chunks.
    pub id: String,
    /// Kind of the object.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    /// Name of the model.
    pub model: String,
}

impl Heading {
    /// A body with this one choice.
    pub fn with_choice(&self, choice: Value) -> Value {
        self.body(json!([choice]))
    }

    /// The chunk after the last, which has the usage and no choice.
    pub fn with_usage(&self, answer: &Answer) -> Value {
        let mut body = self.body(json!([]));
        body["usage"] = usage(answer);
        body
    }

    fn body(&self, choices: Value) -> Value {
        json!({
            "id": self.id,
            "object": self.object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        })
    }
}

/// Adds what made the answer end sooner than was asked for, for which OpenAI has
/// no word.
pub fn with_limit(mut body: Value, answer: &Answer) -> Value {
    if let Some(cap) = answer.limited_by {
        body["limited_by"] = json!(limited_by(cap));
    }
    body
}

/// OpenAI's `usage` object.
pub fn usage(answer: &Answer) -> Value {
    let usage = answer.usage;
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
        "prompt_tokens_details": { "cached_tokens": usage.cached_prompt_tokens },
        "completion_tokens_details": { "reasoning_tokens": usage.reasoning_tokens },
    })
}
