//! `POST /v1/chat/completions`

mod answer;
mod messages;
mod tools;

use axum::Extension;
use axum::extract::State;
use axum::response::Response;
use plugin_sdk::{Params, Prompt};
use serde::Deserialize;
use serde_json::{Value, json};

use self::answer::Chat;
use self::messages::Message;
use self::tools::Tool;
use super::shape::{Heading, Options, Seed, Unread, top_p};
use crate::generate::{Ask, ModelRef};
use crate::http::AppState;
use crate::http::auth::Customer;
use crate::http::envelope::RequestId;
use crate::http::error::ApiError;
use crate::http::json::RepeatableJson;
use crate::http::params::{Stop, params};
use crate::http::respond::respond;

/// Body of `POST /v1/chat/completions`.
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
    seed: Option<Seed>,
    #[serde(default)]
    stop: Stop,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    #[serde(default)]
    tools: Option<Vec<Tool>>,
    stream: Option<bool>,
    stream_options: Option<Options>,
    #[serde(flatten)]
    passed_on: PassedOn,
    #[serde(flatten)]
    unread: Unread,
}

/// What the plugin gets under OpenAI's names: whether it can do it is for it to
/// say.
#[derive(Debug, Deserialize)]
struct PassedOn {
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<Value>,
    response_format: Option<Value>,
    reasoning_effort: Option<Value>,
    verbosity: Option<Value>,
}

impl PassedOn {
    fn extensions(self) -> Vec<plugin_sdk::Extension> {
        let named = [
            ("tool_choice", self.tool_choice),
            ("parallel_tool_calls", self.parallel_tool_calls),
            ("response_format", self.response_format),
            ("reasoning_effort", self.reasoning_effort),
            ("verbosity", self.verbosity),
        ];
        let extension = |(name, value): (&str, Option<Value>)| {
            Some(plugin_sdk::Extension::new(name, value?.to_string()))
        };
        named.into_iter().filter_map(extension).collect()
    }
}

/// `POST /v1/chat/completions`: answers a chat.
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
    body.unread.check(&requests.ignored_fields, |name, value| {
        match name {
            "n" => *value == 1,
            "logprobs" => *value == false,
            "top_logprobs" => *value == 0,
            // Spring AI 1.1 sends an empty `extra_body`
            "logit_bias" | "extra_body" => *value == json!({}),
            "modalities" => *value == json!(["text"]) || *value == json!([]),
            _ => false,
        }
    })?;
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
    let tools = body.tools.unwrap_or_default();
    let passed_on = body.passed_on.extensions().into_iter();
    let ask = Ask {
        request_id,
        key,
        model: ModelRef::Name(body.model),
        prompt: Prompt::Chat(messages::checked(body.messages)?),
        max_length: None,
        params: params(Params {
            max_tokens: most_tokens,
            temperature: body.temperature,
            top_p: top_p(body.top_p),
            top_k: body.top_k,
            seed: body.seed.map(Into::into),
            frequency_penalty: body.frequency_penalty,
            presence_penalty: body.presence_penalty,
            stop: body.stop.into(),
        })
        .map_err(|error| error.rename("max_tokens", named))?,
        ext: passed_on.chain(tools::strict(&tools)).collect(),
        tools: tools::checked(tools)?,
        is_streamed,
        repeatable,
    };
    respond(&generator, ask, Chat::new(heading, has_usage, named)).await
}
