//! `POST /generate`

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json as Body};
use plugin_sdk::{FinishReason, Params};
use serde::Deserialize;
use serde_json::json;

use crate::generate::{Ask, ModelRef, Outcome};
use crate::http::AppState;
use crate::http::auth::Customer;
use crate::http::envelope::RequestId;
use crate::http::error::{ApiError, rate_headers};
use crate::http::json::Json;

/// Most stop strings, and most bytes of one.
const STOPS: (usize, usize) = (16, 256);

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
}

/// One stop string or several.
#[derive(Debug, Default, Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
pub enum Stop {
    /// None.
    #[default]
    None,
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// `POST /generate`: continues a text.
pub async fn create(
    Customer(key): Customer,
    State(AppState { generator, .. }): State<AppState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Json(body): Json<Create>,
) -> Result<Response, ApiError> {
    if body.max_length == Some(0) {
        return Err(ApiError::invalid("max_length", "must be at least 1"));
    }
    let ask = Ask {
        request_id: request_id.clone(),
        key,
        model: ModelRef::Id(body.model_id),
        prompt: prompt("text", body.text)?,
        max_length: body.max_length,
        params: params(Params {
            max_tokens: body.max_new_tokens,
            temperature: body.temperature,
            top_p: body.top_p,
            top_k: body.top_k,
            seed: body.seed,
            stop: stops(body.stop),
            ..Params::default()
        })
        .map_err(named)?,
    };
    let Outcome { rate, result } = generator.run(ask).await;
    let answer = result.map_err(|error| named(ApiError::from(error).rate(rate)))?;
    let mut response = Body(json!({
        "response": answer.text,
        "tokens_used": answer.prompt_tokens + answer.completion_tokens,
        "cost": answer.cost,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "finish_reason": finish_reason(answer.finish_reason),
        "model_id": answer.model_id,
        "model": answer.model_name,
        "request_id": request_id,
    }))
    .into_response();
    if let Some(rate) = rate {
        rate_headers(response.headers_mut(), rate);
    }
    Ok(response)
}

/// The error with the names of this endpoint's fields.
fn named(error: ApiError) -> ApiError {
    error
        .rename("prompt", "text")
        .rename("model", "model_id")
        .rename("max_tokens", "max_new_tokens")
}

/// A prompt that is not empty.
///
/// # Errors
/// 422 for the field `param`.
pub fn prompt(param: &str, text: String) -> Result<String, ApiError> {
    if text.is_empty() {
        Err(ApiError::invalid(param, "must not be empty"))
    } else {
        Ok(text)
    }
}

/// The stop strings as a list.
pub fn stops(stop: Stop) -> Vec<String> {
    match stop {
        Stop::None => Vec::new(),
        Stop::One(text) => vec![text],
        Stop::Several(texts) => texts,
    }
}

/// Parameters that are in their ranges.
///
/// # Errors
/// 422 for the first field that is not.
pub fn params(params: Params) -> Result<Params, ApiError> {
    let in_range = |value: Option<f32>, low: f32, high: f32| {
        value.is_none_or(|value| value >= low && value <= high)
    };
    if params.max_tokens == Some(0) {
        return Err(ApiError::invalid("max_tokens", "must be at least 1"));
    }
    if !in_range(params.temperature, 0.0, 2.0) {
        return Err(ApiError::invalid("temperature", "must be from 0 to 2"));
    }
    if !in_range(params.top_p, f32::MIN_POSITIVE, 1.0) {
        return Err(ApiError::invalid("top_p", "must be above 0 and at most 1"));
    }
    if params.top_k == Some(0) {
        return Err(ApiError::invalid("top_k", "must be at least 1"));
    }
    for (name, value) in [
        ("frequency_penalty", params.frequency_penalty),
        ("presence_penalty", params.presence_penalty),
    ] {
        if !in_range(value, -2.0, 2.0) {
            return Err(ApiError::invalid(name, "must be from -2 to 2"));
        }
    }
    let (most, longest) = STOPS;
    if params.stop.len() > most
        || params
            .stop
            .iter()
            .any(|s| s.is_empty() || s.len() > longest)
    {
        let message = format!("must be at most {most} texts of 1 to {longest} bytes");
        return Err(ApiError::invalid("stop", message));
    }
    Ok(params)
}

/// OpenAI's word for why an answer ended.
pub fn finish_reason(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop | FinishReason::Other => "stop",
        FinishReason::Length => "length",
        FinishReason::ToolCalls => "tool_calls",
        FinishReason::ContentFilter => "content_filter",
    }
}
