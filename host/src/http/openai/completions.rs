//! `POST /v1/completions`

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json as Body};
use plugin_sdk::Params;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::generate::{Ask, ModelRef, Outcome};
use crate::http::AppState;
use crate::http::api::generate::{Stop, finish_reason, params, prompt, stops};
use crate::http::auth::Customer;
use crate::http::envelope::RequestId;
use crate::http::error::{ApiError, rate_headers};
use crate::http::json::Json;

/// New tokens where the request does not say: OpenAI's default.
const DEFAULT_MAX_TOKENS: u32 = 16;

/// Body of `POST /v1/completions`. Fields of OpenAI's that change nothing here
/// are ignored, those that would change the answer are refused.
#[derive(Debug, Deserialize)]
pub struct Create {
    model: String,
    prompt: Prompt,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    seed: Option<u64>,
    #[serde(default)]
    stop: Option<Stop>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    #[serde(flatten)]
    rest: Rest,
}

/// What is refused unless it has its default.
#[derive(Debug, Deserialize)]
struct Rest {
    n: Option<u32>,
    best_of: Option<u32>,
    echo: Option<bool>,
    logprobs: Option<u32>,
    logit_bias: Option<serde_json::Map<String, Value>>,
    suffix: Option<String>,
    stream: Option<bool>,
}

/// One prompt, perhaps in a list.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a text or a list of one text")]
enum Prompt {
    One(String),
    List(Vec<String>),
}

impl Rest {
    fn check(&self) -> Result<(), ApiError> {
        let wanted = [
            ("n", self.n.is_some_and(|n| n != 1)),
            ("best_of", self.best_of.is_some_and(|n| n != 1)),
            ("echo", self.echo == Some(true)),
            ("logprobs", self.logprobs.is_some()),
            (
                "logit_bias",
                self.logit_bias
                    .as_ref()
                    .is_some_and(|bias| !bias.is_empty()),
            ),
            (
                "suffix",
                self.suffix
                    .as_ref()
                    .is_some_and(|suffix| !suffix.is_empty()),
            ),
            ("stream", self.stream == Some(true)),
        ];
        match wanted.into_iter().find(|(_, is_wanted)| *is_wanted) {
            Some((name, _)) => Err(ApiError::unsupported(
                name,
                format!("{name} is not supported"),
            )),
            None => Ok(()),
        }
    }
}

/// `POST /v1/completions`: continues a text.
pub async fn create(
    Customer(key): Customer,
    State(AppState {
        generator, clock, ..
    }): State<AppState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Json(body): Json<Create>,
) -> Result<Response, ApiError> {
    body.rest.check()?;
    let text = match body.prompt {
        Prompt::One(text) => text,
        Prompt::List(mut texts) => match (texts.pop(), texts.is_empty()) {
            (Some(text), true) => text,
            _ => return Err(ApiError::unsupported("prompt", "expected one prompt")),
        },
    };
    let ask = Ask {
        request_id: request_id.clone(),
        key,
        model: ModelRef::Name(body.model),
        prompt: prompt("prompt", text)?,
        max_length: None,
        params: params(Params {
            max_tokens: Some(body.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS)),
            temperature: body.temperature,
            top_p: body.top_p,
            top_k: body.top_k,
            seed: body.seed,
            frequency_penalty: body.frequency_penalty.filter(|&penalty| penalty != 0.0),
            presence_penalty: body.presence_penalty.filter(|&penalty| penalty != 0.0),
            stop: stops(body.stop.unwrap_or_default()),
        })?,
    };
    let Outcome { rate, result } = generator.run(ask).await;
    let answer = result.map_err(|error| ApiError::from(error).rate(rate))?;
    let mut response = Body(json!({
        "id": request_id.replacen("req_", "cmpl-", 1),
        "object": "text_completion",
        "created": clock.now().unix_timestamp(),
        "model": answer.model_name,
        "choices": [{
            "text": answer.text,
            "index": 0,
            "logprobs": null,
            "finish_reason": finish_reason(answer.finish_reason),
        }],
        "usage": {
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "total_tokens": answer.prompt_tokens + answer.completion_tokens,
        },
    }))
    .into_response();
    if let Some(rate) = rate {
        rate_headers(response.headers_mut(), rate);
    }
    Ok(response)
}
