//! `POST /generate`

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use plugin_sdk::Params;
use serde::{Deserialize, Serialize};

use crate::generate::{Answer, Ask, Content, ModelRef, Piece};
use crate::http::AppState;
use crate::http::auth::Customer;
use crate::http::envelope::RequestId;
use crate::http::error::ApiError;
use crate::http::json::RepeatableJson;
use crate::http::params::{Stop, finish_reason, limited_by, params, prompt};
use crate::http::respond::{Shape, Written, respond};
use crate::money::NanoDollars;

/// New tokens where the request says nothing of length.
const DEFAULT_NEW_TOKENS: u32 = 100;

/// Body of `POST /generate`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    text: String,
    model_id: i64,
    max_length: Option<u32>,
    max_new_tokens: Option<u32>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    seed: Option<u64>,
    #[serde(default)]
    stop: Stop,
    stream: Option<bool>,
}

/// `POST /generate`: continues a text.
pub async fn create(
    Customer(key): Customer,
    State(AppState { generator, .. }): State<AppState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    RepeatableJson(body, repeatable): RepeatableJson<Create>,
) -> Result<Response, ApiError> {
    if body.max_length == Some(0) {
        return Err(ApiError::invalid("max_length", "must be at least 1"));
    }
    let shape = Generated {
        request_id: request_id.clone(),
    };
    let default_tokens = body.max_length.is_none().then_some(DEFAULT_NEW_TOKENS);
    let ask = Ask {
        request_id,
        key,
        model: ModelRef::Id(body.model_id),
        prompt: prompt("text", body.text)?,
        max_length: body.max_length,
        params: params(Params {
            max_tokens: body.max_new_tokens.or(default_tokens),
            temperature: body.temperature,
            top_p: body.top_p,
            top_k: body.top_k,
            seed: body.seed,
            stop: body.stop.into(),
            ..Params::default()
        })
        .map_err(|error| shape.error(error))?,
        tools: Vec::new(),
        ext: Vec::new(),
        is_streamed: body.stream == Some(true),
        repeatable,
    };
    respond(&generator, ask, shape).await
}

/// The service's own shape. A stream is pieces, `{"text": …}`, then the same
/// object as a whole answer, without the text that was sent.
struct Generated {
    request_id: String,
}

/// What is told of an answer.
#[derive(Serialize)]
struct Summary<'a> {
    tokens_used: u64,
    cost: NanoDollars,
    prompt_tokens: u32,
    completion_tokens: u32,
    finish_reason: &'static str,
    model_id: i64,
    model: &'a str,
    request_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limited_by: Option<&'static str>,
}

#[derive(Serialize)]
struct Whole<'a> {
    response: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    reasoning: String,
    #[serde(flatten)]
    summary: Summary<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Text(String),
    Reasoning(String),
}

impl Generated {
    fn summary<'a>(&'a self, answer: &'a Answer) -> Summary<'a> {
        Summary {
            tokens_used: total(answer),
            cost: answer.cost,
            prompt_tokens: answer.usage.prompt_tokens,
            completion_tokens: answer.usage.completion_tokens,
            finish_reason: finish_reason(answer.finish_reason),
            model_id: answer.model_id,
            model: &answer.model_name,
            request_id: &self.request_id,
            limited_by: answer.limited_by.map(limited_by),
        }
    }
}

impl Shape for Generated {
    fn whole(&self, content: Content, answer: &Answer) -> Written {
        Written::of(&Whole {
            response: content.text,
            reasoning: content.reasoning,
            summary: self.summary(answer),
        })
    }

    fn piece(&mut self, piece: Piece) -> Vec<Written> {
        match piece {
            Piece::Text(text) => vec![Written::of(&Part::Text(text))],
            Piece::Reasoning(text) => vec![Written::of(&Part::Reasoning(text))],
            // there is no way to offer tools here
            Piece::ToolCall(_) => Vec::new(),
        }
    }

    fn end(&mut self, answer: &Answer) -> Vec<Written> {
        vec![Written::of(&self.summary(answer))]
    }

    fn error(&self, error: ApiError) -> ApiError {
        error
            .rename("prompt", "text")
            .rename("model", "model_id")
            .rename("max_tokens", "max_new_tokens")
    }
}

/// Tokens of prompt and answer.
fn total(answer: &Answer) -> u64 {
    u64::from(answer.usage.prompt_tokens) + u64::from(answer.usage.completion_tokens)
}
