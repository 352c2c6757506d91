//! {{name}}: echoes the prompt, a word at a time. A token is a word here.
//!
//! `max-tokens` and `stop` are honoured. There is nothing random in an echo, so
//! `temperature` and its like change nothing. What it cannot do is refused.

use plugin_sdk::{
    Backend, Completion, CountSource, Error, ErrorKind, Event, Finish, FinishReason, ModelInfo,
    Part, PluginInfo, Prompt, Request, Settings, TokenEstimate, Usage,
};

struct Echo;

/// What a request may ask for besides `max-tokens`. Of it, nothing is dropped in silence:
/// name what your model does, and leave out what it does not.
const ABLE: [&str; 5] = ["stop", "temperature", "top_p", "top_k", "seed"];

/// The words that are still to come.
struct Words {
    left: std::vec::IntoIter<String>,
    reason: FinishReason,
    usage: Usage,
}

impl Backend for Echo {
    type Completion = Words;

    /// Settings of the model come in here; an echo needs none.
    fn open(_: &Settings) -> Result<Self, Error> {
        Ok(Self)
    }

    fn describe(&self) -> Result<PluginInfo, Error> {
        let features = ["chat", "completion", "stream"];
        let model = ModelInfo {
            id: "{{name}}".to_owned(),
            description: "echoes its prompt".to_owned(),
            features: features.map(str::to_owned).to_vec(),
            ..ModelInfo::default()
        };
        Ok(PluginInfo {
            name: "{{name}}".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            models: vec![model],
            ext: vec![],
        })
    }

    fn estimate(&self, request: &Request) -> Result<TokenEstimate, Error> {
        Ok(TokenEstimate {
            prompt_tokens: count(&words(&text(request)?)),
            source: CountSource::Exact,
        })
    }

    fn generate(&self, request: Request) -> Result<Words, Error> {
        let prompt = text(&request)?;
        let stops = request.params.stop.iter().filter(|stop| !stop.is_empty());
        let end = stops.filter_map(|stop| prompt.find(stop.as_str())).min();
        let mut answer = words(&prompt[..end.unwrap_or(prompt.len())]);
        let most = request.params.max_tokens.unwrap_or(u32::MAX);
        let reason = if count(&answer) > most {
            answer.truncate(most as usize);
            FinishReason::Length
        } else {
            FinishReason::Stop
        };
        let usage = Usage {
            prompt_tokens: count(&words(&prompt)),
            completion_tokens: count(&answer),
            source: CountSource::Exact,
            ..Usage::default()
        };
        let left = answer.into_iter();
        Ok(Words {
            left,
            reason,
            usage,
        })
    }
}

impl Completion for Words {
    /// One word a call, so that a caller sees it at once; the end after the last.
    fn next(&mut self) -> Result<Vec<Event>, Error> {
        let event = match self.left.next() {
            Some(word) => Event::Text(word),
            None => Event::Finish(Finish {
                reason: self.reason,
                usage: self.usage,
                ext: vec![],
            }),
        };
        Ok(vec![event])
    }
}

/// The text to echo: the prompt, or the last message of a chat.
fn text(request: &Request) -> Result<String, Error> {
    request.refuse_all_but(&ABLE)?;
    let text: String = match &request.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Chat(messages) => {
            let parts = messages.last().map_or(&[][..], |message| &message.content);
            let texts = parts.iter().filter_map(|part| match part {
                Part::Text(text) => Some(text.as_str()),
                _ => None,
            });
            texts.collect()
        }
    };
    if text.is_empty() {
        return Err(
            Error::new(ErrorKind::InvalidRequest, "there is nothing to echo").param("prompt"),
        );
    }
    Ok(text)
}

/// Words with the space behind them.
fn words(text: &str) -> Vec<String> {
    text.split_inclusive(' ').map(str::to_owned).collect()
}

fn count(words: &[String]) -> u32 {
    u32::try_from(words.len()).unwrap_or(u32::MAX)
}

plugin_sdk::export!(Echo);
