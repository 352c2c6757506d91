//! A checkpoint's chat template: messages become the text that the model was
//! trained to answer.
//!
//! Rendered as transformers does: Jinja with `trim_blocks` and `lstrip_blocks`,
//! Python's methods of strings and lists, `raise_exception`; a template sees
//! `messages`, `add_generation_prompt` and the special tokens.

use minijinja::{Environment, Error as Failure, ErrorKind as FailureKind, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use plugin_sdk::{Error, ErrorKind, Message, Part, Role};
use serde::{Deserialize, Serialize};

use crate::checkpoint::Refusal;

/// Beside `tokenizer.json`: special tokens by role, and often the template.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The template alone, where transformers keeps it since 4.52.
pub(crate) const TEMPLATE: &str = "chat_template.jinja";
/// Steps of a rendering: a template comes with the checkpoint, and may never end.
const FUEL: u64 = 10_000_000;
const NAME: &str = "chat";

/// A template that was read.
#[derive(Debug)]
pub(crate) struct Template {
    environment: Environment<'static>,
    tokens: Special,
}

/// What templates call the special tokens. One that there is not is undefined, which is
/// written as nothing.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Special {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bos_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) eos_token: Option<String>,
}

/// One message as templates see it.
#[derive(Serialize)]
struct Said {
    role: &'static str,
    content: String,
}

impl Template {
    /// Reads a template; `file` names it in the refusal.
    pub(crate) fn new(source: String, tokens: Special, file: &str) -> Result<Self, Refusal> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", |reason: String| -> Result<(), Failure> {
            Err(Failure::new(FailureKind::InvalidOperation, reason))
        });
        environment
            .add_template_owned(NAME, source)
            .map_err(|error| Refusal::file(file, format!("the chat template: {error}")))?;
        Ok(Self {
            environment,
            tokens,
        })
    }

    /// Of a folder's files, each as it is there or not.
    pub(crate) fn of_files(
        tokenizer_config: Option<&[u8]>,
        template: Option<Vec<u8>>,
    ) -> Result<Option<Self>, Refusal> {
        let config: TokenizerConfig = match tokenizer_config {
            Some(json) => serde_json::from_slice(json)
                .map_err(|error| Refusal::file(TOKENIZER_CONFIG, error))?,
            None => TokenizerConfig::default(),
        };
        let tokens = Special {
            bos_token: config.bos_token.map(Token::text),
            eos_token: config.eos_token.map(Token::text),
        };
        let (source, file) = match (template, config.chat_template) {
            (Some(template), _) => {
                let source =
                    String::from_utf8(template).map_err(|error| Refusal::file(TEMPLATE, error))?;
                (source, TEMPLATE)
            }
            (None, Some(Templates::One(source))) => (source, TOKENIZER_CONFIG),
            (None, Some(Templates::Named(all))) => {
                let default = all.into_iter().find(|named| named.name == "default");
                match default {
                    Some(named) => (named.template, TOKENIZER_CONFIG),
                    None => return Ok(None),
                }
            }
            (None, None) => return Ok(None),
        };
        Self::new(source, tokens, file).map(Some)
    }

    /// The text that the model is to go on from.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidRequest`] with the template's reason when it refuses
    /// the messages.
    pub(crate) fn render(&self, messages: &[Message]) -> Result<String, Error> {
        let messages: Vec<_> = messages.iter().map(said).collect();
        let tokens = &self.tokens;
        let rendered = self.environment.get_template(NAME).and_then(|template| {
            template.render(context! {
                messages,
                add_generation_prompt => true,
                ..minijinja::Value::from_serialize(tokens)
            })
        });
        rendered.map_err(|error| {
            let reason = error
                .detail()
                .map_or_else(|| error.to_string(), str::to_owned);
            Error::new(
                ErrorKind::InvalidRequest,
                format!("the model's chat template refuses the messages: {reason}"),
            )
            .code("chat_template")
            .param("messages")
        })
    }
}

/// What else a message may have is refused before.
fn said(message: &Message) -> Said {
    let role = match message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
        Role::Tool => "tool",
    };
    let texts = message.content.iter().filter_map(|part| match part {
        Part::Text(text) => Some(text.as_str()),
        _ => None,
    });
    let content = texts.collect();
    Said { role, content }
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<Token>,
    eos_token: Option<Token>,
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Added { content: String },
}

impl Token {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Added { content: text } => text,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written as Llama 2's and Gemma's are, with all that they make use of.
    const STRICT: &str = "{{ bos_token }}{% for message in messages %}\n    \
        {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n        \
        {{ raise_exception('Roles must alternate') }}\n    {% endif %}\n    \
        {%- set role = 'model' if message.role == 'assistant' else message.role -%}\n\
        <{{ role }}>{{ message['content'].strip() }}{{ eos_token }}\n{% endfor %}\n\
        {% if add_generation_prompt %}\n<model>{% endif %}\n";

    fn strict() -> Template {
        let config = serde_json::json!({
            "bos_token": "<s>", "eos_token": { "content": "</s>", "lstrip": false },
            "chat_template": [{ "name": "default", "template": STRICT }],
        });
        Template::of_files(Some(config.to_string().as_bytes()), None)
            .unwrap()
            .unwrap()
    }

    #[test]
    fn a_template_is_rendered_as_transformers_does() {
        let said = strict()
            .render(&[
                Message::text(Role::User, " Hi.\n"),
                Message::text(Role::Assistant, "Yes?"),
                Message::text(Role::User, "Why?"),
            ])
            .unwrap();
        // by apply_chat_template of transformers 5.23
        assert_eq!(
            said,
            "<s><user>Hi.</s>\n<model>Yes?</s>\n<user>Why?</s>\n<model>"
        );
    }

    #[test]
    fn a_special_token_that_there_is_not_is_undefined() {
        let source = "{{ bos_token }}{% if eos_token is defined %}{{ eos_token }}{% endif %}a";
        let template = Template::new(source.to_owned(), Special::default(), TEMPLATE).unwrap();
        assert_eq!(template.render(&[]).unwrap(), "a");
    }

    #[test]
    fn what_a_template_refuses_is_the_callers_fault_and_says_why() {
        let error = strict()
            .render(&[Message::text(Role::Assistant, "Yes?")])
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidRequest);
        assert!(
            error.message.ends_with("Roles must alternate"),
            "{}",
            error.message
        );
    }

    #[test]
    fn a_template_that_is_broken_is_refused_and_one_without_end_is_stopped() {
        let new = |source: &str| Template::new(source.to_owned(), Special::default(), TEMPLATE);
        let refusal = new("{% for %}").unwrap_err();
        assert!(refusal.to_string().starts_with(TEMPLATE), "{refusal}");
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}";
        assert!(new(endless).unwrap().render(&[]).is_err());
    }
}
