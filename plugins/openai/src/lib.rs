//! Models behind an API in the format of OpenAI's, of which there are many:
//! `/v1/chat/completions` for chats, `/v1/completions` for texts. See README.md for
//! the settings.

mod chat;

use openai_format::{Completion, Decoder, Options};
use plugin_sdk::http::{Answer, Api};
use plugin_sdk::{
    Backend, Error, ErrorKind, Message, ModelInfo, PluginInfo, Prompt, Request, Role, Settings,
};

use self::chat::Chat;

/// The settings besides those of every adapter.
const SETTINGS: [&str; 5] = [
    "max_tokens_field",
    "model_name",
    "reasoning_field",
    "stream_options",
    "text_as_chat",
];

struct OpenAi {
    api: Api,
    model_name: String,
    has_stream_options: bool,
    has_max_completion_tokens: bool,
    /// Where the reasoning of earlier answers goes, if anywhere.
    reasoning_field: Option<&'static str>,
    /// The API has only chats.
    is_text_a_chat: bool,
}

impl Backend for OpenAi {
    type Completion = Answer<Decoder>;

    fn open(settings: &Settings) -> Result<Self, Error> {
        settings.only(Api::SETTINGS.into_iter().chain(SETTINGS))?;
        let field = settings.get("max_tokens_field").unwrap_or_default();
        let has_max_completion_tokens = match field {
            "" | "max_tokens" => false,
            "max_completion_tokens" => true,
            _ => {
                let message =
                    "setting max_tokens_field is neither max_tokens nor max_completion_tokens";
                return Err(Error::new(ErrorKind::InvalidRequest, message));
            }
        };
        let reasoning_field = match settings.get("reasoning_field").unwrap_or_default() {
            "" => None,
            "reasoning_content" => Some("reasoning_content"),
            "reasoning" => Some("reasoning"),
            _ => {
                let message = "setting reasoning_field is neither reasoning_content nor reasoning";
                return Err(Error::new(ErrorKind::InvalidRequest, message));
            }
        };
        Ok(Self {
            api: Api::open(settings)?,
            model_name: settings.required("model_name")?.to_owned(),
            has_stream_options: settings.parsed("stream_options")?.unwrap_or(true),
            has_max_completion_tokens,
            reasoning_field,
            is_text_a_chat: settings.parsed("text_as_chat")?.unwrap_or(false),
        })
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        let features = [
            "chat",
            "completion",
            "tools",
            "vision",
            "reasoning",
            "seed",
            "stream",
        ];
        Ok(PluginInfo {
            name: "openai".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![ModelInfo {
                id: self.model_name.clone(),
                description: "a model behind an OpenAI-style API".to_owned(),
                features: features.map(str::to_owned).into(),
                ..ModelInfo::default()
            }],
            ext: vec![],
        })
    }

    fn generate(&self, mut request: Request) -> Result<Self::Completion, Error> {
        if let Prompt::Text(text) = &mut request.prompt
            && self.is_text_a_chat
        {
            request.prompt = Prompt::Chat(vec![Message::text(Role::User, std::mem::take(text))]);
        }
        let decoder = Decoder::new(&request);
        let mut options = Options::new(&request);
        if !self.has_stream_options {
            options = options.without_stream_options();
        }
        match &request.prompt {
            Prompt::Text(_) => {
                let body = Completion::new(&self.model_name, &request, options)?;
                self.api.ask(&request, "/completions", &body, decoder)
            }
            Prompt::Chat(messages) => {
                if self.has_max_completion_tokens {
                    options = options.with_max_completion_tokens();
                }
                let (model, field) = (&self.model_name, self.reasoning_field);
                let body = Chat::new(model, &request, messages, options, field)?;
                self.api.ask(&request, "/chat/completions", &body, decoder)
            }
        }
    }
}

plugin_sdk::export!(OpenAi);

#[cfg(test)]
mod tests {
    use super::OpenAi;
    use plugin_sdk::{Backend, Settings};

    fn open(key: &str, value: &str) -> Result<OpenAi, plugin_sdk::Error> {
        let pairs = [
            ("api_url", "https://a/v1"),
            ("model_name", "m"),
            (key, value),
        ];
        let pairs = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
        OpenAi::open(&pairs.into_iter().collect::<Settings>())
    }

    #[test]
    fn settings_are_read_and_wrong_ones_named() {
        let plain = open("max_tokens_field", "").unwrap();
        assert!(plain.has_stream_options && !plain.has_max_completion_tokens);
        let newer = open("max_tokens_field", "max_completion_tokens").unwrap();
        assert!(newer.has_max_completion_tokens);
        assert!(!open("stream_options", "false").unwrap().has_stream_options);
        let with_reasoning = open("reasoning_field", "reasoning").unwrap();
        assert_eq!(with_reasoning.reasoning_field, Some("reasoning"));
        for (key, value) in [
            ("max_tokens_field", "tokens"),
            ("stream_options", "no"),
            ("reasoning_field", "thoughts"),
            ("text_as_chat", "no"),
            ("retries", "many"),
            ("model_name", ""),
            ("max_token_field", "max_tokens"),
        ] {
            let error = open(key, value).err().expect("an error");
            assert!(error.message.contains(key), "{}", error.message);
        }
    }
}
