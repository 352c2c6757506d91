//! What the bodies of OpenAI's generating endpoints have in common.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::generate::Answer;
use crate::http::error::ApiError;
use crate::http::params::limited_by;
use crate::http::respond::Written;

/// Fields that change no answer of ours, as they change none of OpenAI's.
const HARMLESS: [&str; 9] = [
    // whom the request is for
    "user",
    "safety_identifier",
    // whether OpenAI keeps the answer, and under which names
    "store",
    "metadata",
    // how soon it comes there, and from which of its caches
    "service_tier",
    "prediction",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
];

/// The fields of a request that the endpoint does not read. One could be meant to change the
/// answer, or be misspelt, so that what it should change is not.
#[derive(Debug, Deserialize)]
pub struct Unread(Map<String, Value>);

impl Unread {
    /// Refuses all but those that change nothing, `null`, those that the operator has `ignored`,
    /// and those that have what the endpoint does anyway.
    ///
    /// # Errors
    /// 422 for the first that is none of them.
    pub fn check(
        &self,
        ignored: &[String],
        is_default: impl Fn(&str, &Value) -> bool,
    ) -> Result<(), ApiError> {
        let changes_nothing = |name: &str, value: &Value| {
            value.is_null()
                || HARMLESS.contains(&name)
                || ignored.iter().any(|ignored| ignored == name)
                || is_default(name, value)
        };
        let mut fields = self.0.iter();
        match fields.find(|(name, value)| !changes_nothing(name, value)) {
            Some((name, _)) => {
                let message = format!("{name} is not supported");
                Err(ApiError::unsupported(name, message))
            }
            None => Ok(()),
        }
    }
}

/// `stream_options` of a request.
#[derive(Debug, Deserialize)]
pub struct Options {
    include_usage: Option<bool>,
}

impl Options {
    /// Whether the stream's last chunk tells the usage.
    ///
    /// # Errors
    /// 422 when there is no stream that the options could be for.
    pub fn has_usage(options: Option<Self>, is_streamed: bool) -> Result<bool, ApiError> {
        match options {
            Some(_) if !is_streamed => Err(ApiError::invalid(
                "stream_options",
                "is only for requests with stream: true",
            )),
            options => Ok(options.is_some_and(|options| options.include_usage == Some(true))),
        }
    }
}

/// `seed` of a request, which has a sign at OpenAI's: plugins get its bits.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged, expecting = "a whole number of at most 64 bits")]
pub enum Seed {
    /// Without a sign.
    Unsigned(u64),
    /// Below 0.
    Signed(i64),
}

impl From<Seed> for u64 {
    fn from(seed: Seed) -> Self {
        match seed {
            Seed::Unsigned(seed) => seed,
            Seed::Signed(seed) => seed.cast_unsigned(),
        }
    }
}

/// `top_p` of a request, which may be 0 at OpenAI's: for plugins the least above it.
pub fn top_p(asked: Option<f32>) -> Option<f32> {
    asked.map(|p| if p == 0.0 { f32::MIN_POSITIVE } else { p })
}

/// The fields with which every body and chunk of an answer begins.
pub struct Heading {
    /// Of the completion, the same in all chunks.
    pub id: String,
    /// Kind of the object.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    /// Name of the model.
    pub model: String,
}

impl Heading {
    /// A whole answer, with this one choice and what it took.
    pub fn answer(&self, choice: impl Serialize, answer: &Answer) -> Written {
        self.body([choice], Some(usage(answer)), Some(answer))
    }

    /// A chunk with this one choice.
    pub fn chunk(&self, choice: impl Serialize) -> Written {
        self.body([choice], None, None)
    }

    /// The chunk that ends the choice.
    pub fn last_chunk(&self, choice: impl Serialize, answer: &Answer) -> Written {
        self.body([choice], None, Some(answer))
    }

    /// The chunk after the last, which has the usage and no choice.
    pub fn usage_chunk(&self, answer: &Answer) -> Written {
        self.body([(); 0], Some(usage(answer)), None)
    }

    /// What made the answer end sooner than was asked for goes with its end: OpenAI has
    /// no word for it.
    fn body(
        &self,
        choices: impl Serialize,
        usage: Option<Usage>,
        ended: Option<&Answer>,
    ) -> Written {
        Written::of(&Body {
            id: &self.id,
            object: self.object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
            limited_by: ended.and_then(|answer| answer.limited_by).map(limited_by),
        })
    }
}

#[derive(Serialize)]
struct Body<'a, C> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    choices: C,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limited_by: Option<&'static str>,
}

/// OpenAI's `usage` object.
#[derive(Serialize)]
struct Usage {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    prompt_tokens_details: PromptTokens,
    completion_tokens_details: CompletionTokens,
}

#[derive(Serialize)]
struct PromptTokens {
    cached_tokens: u32,
}

#[derive(Serialize)]
struct CompletionTokens {
    reasoning_tokens: u32,
}

fn usage(answer: &Answer) -> Usage {
    let usage = answer.usage;
    Usage {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        total_tokens: u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
        prompt_tokens_details: PromptTokens {
            cached_tokens: usage.cached_prompt_tokens,
        },
        completion_tokens_details: CompletionTokens {
            reasoning_tokens: usage.reasoning_tokens,
        },
    }
}
