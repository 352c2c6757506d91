//! The ways in which clients ask, and what they read of the answers.

use std::fmt;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::client::Events;
use crate::harness::{Client, Reply};

/// A way to ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ask {
    model: (i64, &'static str),
    path: Path,
    is_streamed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Path {
    Generate,
    Completions,
    Chat,
}

/// What came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Seconds, of a refusal.
    pub retry_after: u64,
    /// Of prompt and answer, if they are told.
    pub tokens: Option<(i64, i64)>,
    /// The body, or a stream's last event.
    pub said: Value,
}

const GPT2: (i64, &str) = (1, "gpt2");
const LAWGENT: (i64, &str) = (2, "lawgent-thinking");
const OPENAI: (i64, &str) = (3, "openai-3");
const REUSED: (i64, &str) = (4, "openai-4");

/// All that are asked for, what most ask for twice.
pub const ASKS: [Ask; 12] = [
    Ask::whole(GPT2, Path::Generate),
    Ask::whole(LAWGENT, Path::Generate),
    Ask::whole(OPENAI, Path::Chat),
    Ask::whole(REUSED, Path::Chat),
    Ask::streamed(REUSED, Path::Chat),
    Ask::streamed(OPENAI, Path::Chat),
    Ask::streamed(LAWGENT, Path::Completions),
    Ask::whole(REUSED, Path::Completions),
    Ask::streamed(REUSED, Path::Generate),
    Ask::whole(OPENAI, Path::Generate),
    Ask::streamed(GPT2, Path::Completions),
    Ask::whole(REUSED, Path::Chat),
];

impl Ask {
    const fn whole(model: (i64, &'static str), path: Path) -> Self {
        Self {
            model,
            path,
            is_streamed: false,
        }
    }

    const fn streamed(model: (i64, &'static str), path: Path) -> Self {
        let mut this = Self::whole(model, path);
        this.is_streamed = true;
        this
    }

    /// Asks, and reads the answer to its end.
    ///
    /// # Errors
    /// When none comes.
    ///
    /// # Panics
    /// When it breaks off.
    pub async fn send(&self, customer: &Client) -> reqwest::Result<Answer> {
        const TEXT: &str = "Once upon a time";
        let (id, name) = self.model;
        let mut body = match self.path {
            Path::Generate => json!({ "model_id": id, "text": TEXT, "max_new_tokens": 8 }),
            Path::Completions => json!({ "model": name, "prompt": TEXT, "max_tokens": 8 }),
            Path::Chat => json!({
                "model": name,
                "max_tokens": 8,
                "messages": [{ "role": "user", "content": TEXT }],
            }),
        };
        body["stream"] = self.is_streamed.into();
        if self.is_streamed && self.path != Path::Generate {
            body["stream_options"] = json!({ "include_usage": true });
        }
        let request = customer.request(Method::POST, self.path.text()).json(&body);
        let response = request.send().await?;
        if response.status() != 200 || !self.is_streamed {
            let reply = Reply::of(response).await;
            let retry_after = match reply.status.as_u16() {
                429 => reply.header("retry-after").parse().unwrap_or(1),
                _ => 0,
            };
            return Ok(Answer {
                status: reply.status.as_u16(),
                retry_after,
                tokens: tokens(&reply.body),
                said: reply.body,
            });
        }
        let status = response.status().as_u16();
        let events = Events::of(response).rest().await;
        let said = events.last().cloned().unwrap_or_default();
        // one that broke off with an error counted nothing
        let is_whole = said == "[DONE]";
        let tokens = events.iter().rev().find_map(tokens);
        Ok(Answer {
            status,
            retry_after: 0,
            tokens: tokens.filter(|_| is_whole),
            said,
        })
    }
}

impl Path {
    fn text(self) -> &'static str {
        match self {
            Self::Generate => "/generate",
            Self::Completions => "/v1/completions",
            Self::Chat => "/v1/chat/completions",
        }
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let streamed = if self.is_streamed { ", streamed" } else { "" };
        write!(f, "{} {}{streamed}", self.model.1, self.path.text())
    }
}

/// Those of prompt and answer, where OpenAI's format has them or the service's own.
fn tokens(body: &Value) -> Option<(i64, i64)> {
    let counts = if body["usage"].is_object() {
        &body["usage"]
    } else {
        body
    };
    let count = |field: &str| counts[field].as_i64();
    Some((count("prompt_tokens")?, count("completion_tokens")?))
}
