//! {{name}}: an adapter to an API in the format of OpenAI's chat completions.
//!
//! Settings: `api_url`, the base of the API, and `model_name`, the model's name
//! there. The key is added by the host; no plugin ever sees one.

use std::time::Duration;

use plugin_sdk::http::{Post, Response, unusable};
use plugin_sdk::{
    Backend, Completion, CountSource, Error, ErrorKind, Event, Finish, FinishReason, Message,
    ModelInfo, Part, PluginInfo, Prompt, Request, Role, Settings, Usage, guess_tokens,
};
use serde_json::{Value, json};

/// What [`body`] passes on besides `max_tokens`. All else is refused: nothing that a caller
/// asks for is dropped in silence.
const PASSED_ON: [&str; 10] = [
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "stop",
    "response_format",
    "reasoning_effort",
    "verbosity",
];

struct Adapter {
    url: String,
    model: String,
}

/// The answer came whole, so it is reported at once.
struct Answer(Vec<Event>);

impl Backend for Adapter {
    type Completion = Answer;

    fn open(settings: &Settings) -> Result<Self, Error> {
        let required = |key: &str| {
            let missing = || {
                Error::new(
                    ErrorKind::InvalidRequest,
                    format!("setting {key} is missing"),
                )
            };
            settings.get(key).ok_or_else(missing)
        };
        Ok(Self {
            url: format!(
                "{}/chat/completions",
                required("api_url")?.trim_end_matches('/')
            ),
            model: required("model_name")?.to_owned(),
        })
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        let model = ModelInfo {
            id: self.model.clone(),
            description: "a model behind an OpenAI-style chat API".to_owned(),
            features: vec!["chat".to_owned()],
            ..ModelInfo::default()
        };
        Ok(PluginInfo {
            name: "{{name}}".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![model],
            ext: vec![],
        })
    }

    fn generate(&self, request: Request) -> Result<Answer, Error> {
        let Prompt::Chat(messages) = &request.prompt else {
            let message = "this model chats; it does not continue text";
            return Err(Error::new(ErrorKind::Unsupported, message).param("prompt"));
        };
        request.refuse_all_but(&PASSED_ON)?;
        let messages = messages.iter().map(message);
        let messages = messages.collect::<Result<Vec<_>, _>>()?;
        let response = Post {
            url: &self.url,
            headers: &[("x-request-id", &request.request_id)],
            json: body(&self.model, &messages, &request)?
                .to_string()
                .as_bytes(),
            timeout: Duration::from_millis(request.deadline_ms.into()),
            response_limit: 4 << 20,
        }
        .send()?;
        match response.status {
            200 => answer(&response.body, &Value::from(messages)),
            _ => Err(refusal(&response)),
        }
    }
}

impl Completion for Answer {
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        Ok(std::mem::take(&mut self.0))
    }
}

/// A message as the API wants it.
fn message(message: &Message) -> Result<Value, Error> {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let texts = message.content.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        // refused before
        Part::Blob(_) | Part::Other(_) => None,
    });
    let mut json = json!({ "role": role, "content": texts.collect::<String>() });
    // who of several of this role speaks
    if let Some(name) = message.ext.iter().find(|one| one.name == "name") {
        json["name"] = parsed(&name.value, "messages")?;
    }
    Ok(json)
}

/// The request's body. What the caller left out is left out here, and what the API cannot
/// do it refuses itself.
fn body(model: &str, messages: &[Value], request: &Request) -> Result<Value, Error> {
    let params = &request.params;
    let mut body = json!({ "model": model, "messages": messages });
    let fields = [
        ("max_tokens", params.max_tokens.map(Value::from)),
        ("temperature", params.temperature.map(Value::from)),
        ("top_p", params.top_p.map(Value::from)),
        ("top_k", params.top_k.map(Value::from)),
        ("seed", params.seed.map(u64::cast_signed).map(Value::from)),
        (
            "frequency_penalty",
            params.frequency_penalty.map(Value::from),
        ),
        ("presence_penalty", params.presence_penalty.map(Value::from)),
        (
            "stop",
            Some(&params.stop)
                .filter(|stop| !stop.is_empty())
                .map(|stop| json!(stop)),
        ),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            body[name] = value;
        }
    }
    for name in ["response_format", "reasoning_effort", "verbosity"] {
        if let Some(json) = request.extension(name) {
            body[name] = parsed(json, name)?;
        }
    }
    Ok(body)
}

/// The JSON of an extension, which the parameter of this name brought.
fn parsed(json: &str, param: &str) -> Result<Value, Error> {
    let invalid = |error: serde_json::Error| {
        Error::new(ErrorKind::InvalidRequest, error.to_string()).param(param)
    };
    serde_json::from_str(json).map_err(invalid)
}

fn answer(body: &[u8], messages: &Value) -> Result<Answer, Error> {
    let json: Value = serde_json::from_slice(body).map_err(unusable)?;
    let choice = &json["choices"][0];
    let message = &choice["message"];
    let reason = choice["finish_reason"].as_str();
    let said = [&message["content"], &message["refusal"]];
    let text = match said.into_iter().find(|said| !said.is_null()) {
        Some(said) => said.as_str(),
        // one that is cut while the model reasons says nothing, and is paid for
        None => reason.map(|_| ""),
    };
    let text = text.ok_or_else(|| unusable("no content"))?;
    let reason = match reason {
        Some("stop") => FinishReason::Stop,
        Some("length") => FinishReason::Length,
        Some("content_filter") => FinishReason::ContentFilter,
        _ => FinishReason::Other,
    };
    let estimated = Usage {
        prompt_tokens: guess_tokens(messages.to_string().len()),
        completion_tokens: guess_tokens(text.len()),
        source: CountSource::Estimated,
        ..Usage::default()
    };
    let finish = Event::Finish(Finish {
        reason,
        usage: counted(&json["usage"]).unwrap_or(estimated),
        ext: vec![],
    });
    Ok(Answer(vec![Event::Text(text.to_owned()), finish]))
}

/// What the API counted, if it did.
fn counted(usage: &Value) -> Option<Usage> {
    let count = |path: &str| {
        usage
            .pointer(path)?
            .as_u64()
            .map(|count| tokens(count as usize))
    };
    let (prompt, completion) = (count("/prompt_tokens")?, count("/completion_tokens")?);
    let reasoning = count("/completion_tokens_details/reasoning_tokens");
    // some count reasoning beside the completion, where only the total has it
    let total = count("/total_tokens").unwrap_or(0);
    let beside = total.saturating_sub(prompt.saturating_add(completion));
    let beside = beside.min(reasoning.unwrap_or(u32::MAX));
    Some(Usage {
        prompt_tokens: prompt,
        completion_tokens: completion.saturating_add(beside),
        cached_prompt_tokens: count("/prompt_tokens_details/cached_tokens").unwrap_or(0),
        reasoning_tokens: reasoning.unwrap_or(0),
        source: CountSource::Exact,
    })
}

fn tokens(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// What a status other than 200 means. What the API says of a refused key or of
/// its own failure is nothing for the caller.
fn refusal(response: &Response) -> Error {
    let (kind, message) = match response.status {
        400 | 413 | 422 => (
            ErrorKind::InvalidRequest,
            "the model's upstream refused the request",
        ),
        401..=403 => (
            ErrorKind::UpstreamAuth,
            "the model's upstream did not accept this server",
        ),
        429 => (
            ErrorKind::RateLimited,
            "the model's upstream has too many requests",
        ),
        503 => (ErrorKind::Overloaded, "the model's upstream is overloaded"),
        _ => (ErrorKind::Upstream, "the model's upstream failed"),
    };
    let seconds = response
        .header("retry-after")
        .and_then(|value| value.parse::<u32>().ok());
    let waits = matches!(kind, ErrorKind::RateLimited | ErrorKind::Overloaded);
    let wait = seconds.filter(|_| waits);
    let mut error = Error::new(kind, message)
        .retry_after_ms(wait.map(|seconds| seconds.saturating_mul(1000)))
        .detail(String::from_utf8_lossy(&response.body));
    error.upstream_status = Some(response.status);
    error
}

plugin_sdk::export!(Adapter);
