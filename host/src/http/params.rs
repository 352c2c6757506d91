//! The fields that all generating endpoints share.

use plugin_sdk::{FinishReason, Params};
use serde::Deserialize;

use super::error::ApiError;
use crate::store::ledger::Cap;

/// Most stop strings, and most bytes of one.
const STOPS: (usize, usize) = (16, 256);

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

impl From<Stop> for Vec<String> {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::None => Self::new(),
            Stop::One(text) => vec![text],
            Stop::Several(texts) => texts,
        }
    }
}

/// A prompt that is not empty.
///
/// # Errors
/// 422 for the field `param`.
pub fn prompt(param: &str, text: String) -> Result<plugin_sdk::Prompt, ApiError> {
    if text.is_empty() {
        Err(ApiError::invalid(param, "must not be empty"))
    } else {
        Ok(plugin_sdk::Prompt::Text(text))
    }
}

/// Parameters that are in their ranges. A penalty of 0 is none.
///
/// # Errors
/// 422 for the first field that is not.
pub fn params(mut params: Params) -> Result<Params, ApiError> {
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
        ("frequency_penalty", &mut params.frequency_penalty),
        ("presence_penalty", &mut params.presence_penalty),
    ] {
        if !in_range(*value, -2.0, 2.0) {
            return Err(ApiError::invalid(name, "must be from -2 to 2"));
        }
        *value = value.filter(|&penalty| penalty != 0.0);
    }
    let (most, longest) = STOPS;
    let fits = |stop: &String| !stop.is_empty() && stop.len() <= longest;
    if params.stop.len() > most || !params.stop.iter().all(fits) {
        let message = format!("must be at most {most} texts of 1 to {longest} bytes");
        return Err(ApiError::invalid("stop", message));
    }
    Ok(params)
}

/// What made an answer end sooner than was asked for, in one word.
pub fn limited_by(cap: Cap) -> &'static str {
    match cap {
        Cap::Credit => "credit",
        Cap::Budget { .. } => "budget",
    }
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
