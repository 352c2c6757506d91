//! `POST /v1/chat/completions`

mod answer;
mod messages;
mod tools;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use plugin_sdk::{Params, Prompt};
use serde::Deserialize;
use serde_json::{Map, Value};

use self::answer::Chat;
use self::messages::Message;
use self::tools::Tool;
use super::shape::{Heading, Options};
use crate::generate::{Ask, ModelRef};
use crate::http::AppState;
use crate::http::auth::Customer;
use crate::http::envelope::RequestId;
use crate::http::error::ApiError;
use crate::http::json::Json;
use crate::http::params::{Stop, params};
use crate::http::respond::respond;

/// Body of `POST /v1/chat/completions`. Fields of OpenAI's that change nothing
/// here are ignored, those that would change the answer are refused.
#[derive(Debug, Deserialize)]
pub struct Create {
    model: String,
    messages: Vec<Message>,
    max_completion_tokens: Option<u32>,
    /// The older name of `max_completion_tokens`.
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<u32>,
    seed: Option<u64>,
    #[serde(default)]
    stop: Option<Stop>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    #[serde(default)]
    tools: Option<Vec<Tool>>,
    stream: Option<bool>,
    stream_options: Option<Options>,
    #[serde(flatten)]
    passed_on: PassedOn,
    #[serde(flatten)]
    rest: Rest,
}

/// What the plugin gets under OpenAI's names: whether it can do it is for it to
/// say.
#[derive(Debug, Deserialize)]
struct PassedOn {
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<Value>,
    response_format: Option<Value>,
    reasoning_effort: Option<Value>,
}

impl PassedOn {
    fn extensions(self) -> Vec<plugin_sdk::Extension> {
        let named = [
            ("tool_choice", self.tool_choice),
            ("parallel_tool_calls", self.parallel_tool_calls),
            ("response_format", self.response_format),
            ("reasoning_effort", self.reasoning_effort),
        ];
        let extension = |(name, value): (&str, Option<Value>)| {
            Some(plugin_sdk::Extension {
                name: name.to_owned(),
                value: value?.to_string(),
            })
        };
        named.into_iter().filter_map(extension).collect()
    }
}

/// What is refused unless it has its default.
#[derive(Debug, Deserialize)]
struct Rest {
    n: Option<u32>,
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    logit_bias: Option<Map<String, Value>>,
    modalities: Option<Vec<String>>,
    audio: Option<Value>,
    functions: Option<Value>,
    function_call: Option<Value>,
    web_search_options: Option<Value>,
}

impl Rest {
    fn check(&self) -> Result<(), ApiError> {
        let is_biased = self
            .logit_bias
            .as_ref()
            .is_some_and(|bias| !bias.is_empty());
        let is_more_than_text = |modalities: &Vec<String>| modalities.iter().any(|m| m != "text");
        ApiError::refuse(&[
            ("n", self.n.is_some_and(|n| n != 1)),
            ("logprobs", self.logprobs == Some(true)),
            ("top_logprobs", self.top_logprobs.is_some_and(|n| n != 0)),
            ("logit_bias", is_biased),
            (
                "modalities",
                self.modalities.as_ref().is_some_and(is_more_than_text),
            ),
            ("audio", self.audio.is_some()),
            // OpenAI's own older names of `tools` and `tool_choice`
            ("functions", self.functions.is_some()),
            ("function_call", self.function_call.is_some()),
            ("web_search_options", self.web_search_options.is_some()),
        ])
    }
}

/// `POST /v1/chat/completions`: answers a chat.
pub async fn create(
    Customer(key): Customer,
    State(AppState {
        generator, clock, ..
    }): State<AppState>,
    Extension(RequestId(request_id)): Extension<RequestId>,
    Json(body): Json<Create>,
) -> Result<Response, ApiError> {
    body.rest.check()?;
    let (named, most_tokens) = match (body.max_completion_tokens, body.max_tokens) {
        (Some(most), _) => ("max_completion_tokens", Some(most)),
        (None, most) => ("max_tokens", most),
    };
    let is_streamed = body.stream == Some(true);
    let has_usage = Options::has_usage(body.stream_options, is_streamed)?;
    let heading = Heading {
        id: request_id.replacen("req_", "chatcmpl-", 1),
        object: if is_streamed {
            "chat.completion.chunk"
        } else {
            "chat.completion"
        },
        created: clock.now().unix_timestamp(),
        model: body.model.clone(),
    };
    let ask = Ask {
        request_id,
        key,
        model: ModelRef::Name(body.model),
        prompt: Prompt::Chat(messages::checked(body.messages)?),
        max_length: None,
        params: params(Params {
            max_tokens: most_tokens,
            temperature: body.temperature,
            top_p: body.top_p,
            top_k: body.top_k,
            seed: body.seed,
            frequency_penalty: body.frequency_penalty,
            presence_penalty: body.presence_penalty,
            stop: body.stop.unwrap_or_default().into(),
        })
        .map_err(|error| error.rename("max_tokens", named))?,
        tools: tools::checked(body.tools.unwrap_or_default())?,
        ext: body.passed_on.extensions(),
        is_streamed,
    };
    respond(&generator, ask, Chat::new(heading, has_usage, named)).await
}
