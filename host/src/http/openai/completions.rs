//! `POST /v1/completions`

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use plugin_sdk::Params;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::shape::{Heading, Options, Seed, Unread, top_p};
use crate::generate::{Answer, Ask, Content, ModelRef, Piece};
use crate::http::AppState;
use crate::http::auth::Customer;
use crate::http::envelope::RequestId;
use crate::http::error::ApiError;
use crate::http::json::RepeatableJson;
use crate::http::params::{Stop, finish_reason, params, prompt};
use crate::http::respond::{Shape, Written, respond};

/// New tokens where the request does not say: OpenAI's default.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Body of `POST /v1/completions`.
#[derive(Debug, Deserialize)]
pub struct Create {
    model: String,
    prompt: Prompt,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    seed: Option<Seed>,
    #[serde(default)]
    stop: Stop,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    stream: Option<bool>,
    stream_options: Option<Options>,
    #[serde(flatten)]
    unread: Unread,
}

/// One prompt, perhaps in a list.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of one text")]
enum Prompt {
    One(String),
    List(Vec<String>),
}

/// `POST /v1/completions`: continues a text.
pub async fn create(
    Customer(key): Customer,
    State(AppState {
        generator,
        clock,
        requests,
        ..
    }): State<AppState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    RepeatableJson(body, repeatable): RepeatableJson<Create>,
) -> Result<Response, ApiError> {
    body.unread
        .check(&requests.ignored_fields, |name, value| match name {
            "n" | "best_of" => *value == 1,
            "echo" => *value == false,
            "logit_bias" => *value == json!({}),
            "suffix" => *value == "",
            _ => false,
        })?;
    let text = match body.prompt {
        Prompt::One(text) => text,
        Prompt::List(mut texts) => match (texts.pop(), texts.is_empty()) {
            (Some(text), true) => text,
            _ => return Err(ApiError::unsupported("prompt", "expected one prompt")),
        },
    };
    let is_streamed = body.stream == Some(true);
    let shape = Completion {
        has_usage: Options::has_usage(body.stream_options, is_streamed)?,
        heading: Heading {
            id: request_id.replacen("req_", "cmpl-", 1),
            object: "text_completion",
            created: clock.now().unix_timestamp(),
            model: body.model.clone(),
        },
    };
    let ask = Ask {
        request_id,
        key,
        model: ModelRef::Name(body.model),
        prompt: prompt("prompt", text)?,
        max_length: None,
        params: params(Params {
            max_tokens: Some(body.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            temperature: body.temperature,
            top_p: top_p(body.top_p),
            top_k: body.top_k,
            seed: body.seed.map(Into::into),
            frequency_penalty: body.frequency_penalty,
            presence_penalty: body.presence_penalty,
            stop: body.stop.into(),
        })?,
        tools: Vec::new(),
        ext: Vec::new(),
        is_streamed,
        repeatable,
    };
    respond(&generator, ask, shape).await
}

struct Completion {
    heading: Heading,
    has_usage: bool,
}

#[derive(Serialize)]
struct Choice {
    text: String,
    index: u32,
    logprobs: (),
    finish_reason: Option<&'static str>,
}

impl Choice {
    fn new(text: String, ended: Option<&Answer>) -> Self {
        Self {
            text,
            index: 0,
            logprobs: (),
            finish_reason: ended.map(|answer| finish_reason(answer.finish_reason)),
        }
    }
}

impl Shape for Completion {
    fn whole(&self, content: Content, answer: &Answer) -> Written {
        let choice = Choice::new(content.text, Some(answer));
        self.heading.answer(choice, answer)
    }

    fn piece(&mut self, piece: Piece) -> Vec<Written> {
        match piece {
            Piece::Text(text) => vec![self.heading.chunk(Choice::new(text, None))],
            // the format has no place for them
            Piece::Reasoning(_) | Piece::ToolCall(_) => Vec::new(),
        }
    }

    fn end(&mut self, answer: &Answer) -> Vec<Written> {
        let choice = Choice::new(String::new(), Some(answer));
        let last = self.heading.last_chunk(choice, answer);
        let usage = self.has_usage.then(|| self.heading.usage_chunk(answer));
        [last].into_iter().chain(usage).collect()
    }
}
