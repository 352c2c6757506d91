//! lawgent-thinking and any other model behind an API in the format of OpenAI's
//! `/v1/completions`.
//!
//! Settings: `api_url`, the full URL of the completions endpoint, and
//! `model_name`, the model's name there. The API key is added by the host.

mod failure;
mod wire;

use std::time::Duration;

use plugin_sdk::http::Post;
use plugin_sdk::{
    Backend, Completion, CountSource, Error, ErrorKind, Event, Finish, ModelInfo, PluginInfo,
    Prompt, Request, Settings, TokenEstimate,
};

/// The longest answer to read, in bytes: some hundred thousand tokens.
const RESPONSE_LIMIT: usize = 4 << 20;

struct Completions {
    api_url: String,
    model_name: String,
}

/// The answer came whole, so it is reported at once.
struct Answer(Vec<Event>);

impl Backend for Completions {
    type Completion = Answer;

    fn open(settings: &Settings) -> Result<Self, Error> {
        let required = |key: &str| match settings.get(key) {
            Some(value) if !value.is_empty() => Ok(value.to_owned()),
            _ => Err(Error::new(
                ErrorKind::InvalidRequest,
                format!("setting {key} is missing"),
            )),
        };
        Ok(Self {
            api_url: required("api_url")?,
            model_name: required("model_name")?,
        })
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        Ok(PluginInfo {
            name: "lawgent-thinking".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![ModelInfo {
                id: self.model_name.clone(),
                description: "a model behind an OpenAI-style completions API".to_owned(),
                features: vec!["completion".to_owned(), "seed".to_owned()],
                ..ModelInfo::default()
            }],
            ext: vec![],
        })
    }

    fn estimate(&self, request: &Request) -> Result<TokenEstimate, Error> {
        Ok(TokenEstimate {
            prompt_tokens: wire::estimate_tokens(prompt(request)?),
            source: CountSource::Estimated,
        })
    }

    fn generate(&self, request: Request) -> Result<Answer, Error> {
        let prompt = prompt(&request)?;
        let response = Post {
            url: &self.api_url,
            headers: &[("x-request-id", &request.request_id)],
            json: &wire::body(&self.model_name, prompt, &request.params)?,
            timeout: Duration::from_millis(request.deadline_ms.into()),
            response_limit: RESPONSE_LIMIT,
        }
        .send()?;
        if response.status != 200 {
            return Err(failure::from_response(&response));
        }
        let answer = wire::answer(&response.body, prompt)?;
        let mut events = Vec::with_capacity(2);
        if !answer.text.is_empty() {
            events.push(Event::Text(answer.text));
        }
        events.push(Event::Finish(Finish {
            reason: answer.reason,
            usage: answer.usage,
            ext: vec![],
        }));
        Ok(Answer(events))
    }
}

impl Completion for Answer {
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        Ok(std::mem::take(&mut self.0))
    }
}

fn prompt(request: &Request) -> Result<&str, Error> {
    if !request.tools.is_empty() {
        let message = "this model cannot call tools";
        return Err(Error::new(ErrorKind::Unsupported, message).param("tools"));
    }
    match &request.prompt {
        Prompt::Text(text) => Ok(text),
        Prompt::Chat(_) => {
            let message = "this model continues text; it does not chat";
            Err(Error::new(ErrorKind::Unsupported, message).param("messages"))
        }
    }
}

plugin_sdk::export!(Completions);
