//! The data of the interface, one to one with `interface schema` of the WIT.

use std::fmt;

/// Growth without a new version: a well-known or `x-` name and JSON text.
/// Unknown names are ignored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// A well-known name, or one that starts with `x-`.
    pub name: String,
    /// JSON text.
    pub value: String,
}

impl Extension {
    /// An extension of this name with JSON text.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            value: value.into(),
        }
    }
}

/// Who speaks in a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Instructions of the application.
    System,
    /// The person asking.
    User,
    /// The model.
    Assistant,
    /// The answer of a tool.
    Tool,
}

/// Bytes with their media type, such as an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// An IANA media type, such as `image/png`.
    pub media_type: String,
    /// The bytes themselves, not encoded.
    pub data: Vec<u8>,
}

/// A piece of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// Text.
    Text(String),
    /// Bytes with a media type.
    Blob(Blob),
    /// Anything else. Well-known is `image_url`: OpenAI's object of that name. A
    /// part that a plugin doesn't know is refused as
    /// [`ErrorKind::Unsupported`], or the answer would be to something else.
    Other(Extension),
}

/// A call that the model asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// Id that the tool's answer refers to.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// JSON text of the arguments.
    pub arguments: String,
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said, in order.
    pub content: Vec<Part>,
    /// Calls asked for by an assistant's message.
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    pub tool_call_id: Option<String>,
    /// Extensions. Well-known are `name`, who of several of the same role speaks,
    /// `image_detail`, a list of OpenAI's `detail`, or null, for each blob, and
    /// `reasoning`, that of the model before it said this.
    pub ext: Vec<Extension>,
}

impl Message {
    /// A message of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Self {
        Self {
            role,
            content: vec![Part::Text(text.into())],
            tool_calls: Vec::new(),
            tool_call_id: None,
            ext: Vec::new(),
        }
    }
}

/// A tool that the model may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Name, unique within a request.
    pub name: String,
    /// What it does, for the model to read.
    pub description: String,
    /// JSON Schema of the arguments, as text.
    pub parameters: String,
}

/// What the model continues or answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text to continue.
    Text(String),
    /// Messages to answer.
    Chat(Vec<Message>),
}

/// How to generate. A value that is absent is the backend's choice.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Params {
    /// The most new tokens to generate.
    pub max_tokens: Option<u32>,
    /// 0 is greedy.
    pub temperature: Option<f32>,
    /// Probability mass to sample from, above 0 and at most 1.
    pub top_p: Option<f32>,
    /// Number of likeliest tokens to sample from.
    pub top_k: Option<u32>,
    /// Same seed, same request: same answer, where the backend can promise it.
    /// Of a number with a sign, as OpenAI's API has it, these are the bits.
    pub seed: Option<u64>,
    /// As in OpenAI's API, -2 to 2.
    pub frequency_penalty: Option<f32>,
    /// As in OpenAI's API, -2 to 2.
    pub presence_penalty: Option<f32>,
    /// Generation ends before the first of these; none of them is in the answer.
    pub stop: Vec<String>,
}

/// One request to a backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Opaque id for logs and for the upstream; never a caller's API key.
    pub request_id: String,
    /// The name the operator gave this model at the upstream.
    pub model: String,
    /// What to continue or answer.
    pub prompt: Prompt,
    /// How to generate.
    pub params: Params,
    /// Tools the model may call.
    pub tools: Vec<Tool>,
    /// Milliseconds the host will still wait; the host enforces it as well.
    pub deadline_ms: u32,
    /// Extensions. Well-known are `stream`, see [`Request::is_streamed`], and,
    /// named and made as in OpenAI's API, `tool_choice`, `parallel_tool_calls`,
    /// `response_format`, `reasoning_effort` and `verbosity`, and `strict_tools`, a
    /// list of the names of tools whose arguments must keep to their schema.
    pub ext: Vec<Extension>,
}

impl Request {
    /// Whether the caller reads the answer as it is produced. It is a hint: an
    /// adapter asks its upstream to stream only then.
    pub fn is_streamed(&self) -> bool {
        self.extension("stream").map(str::trim) == Some("true")
    }

    /// The JSON text of an extension.
    pub fn extension(&self, name: &str) -> Option<&str> {
        self.ext
            .iter()
            .find(|extension| extension.name == name)
            .map(|extension| extension.value.as_str())
    }

    /// A guess at the prompt's tokens, tools included, for a tokenizer that is
    /// unknown.
    pub fn guess_tokens(&self) -> u32 {
        let part = |part: &Part| match part {
            Part::Text(text) => text.len(),
            Part::Blob(_) | Part::Other(_) => PART_BYTES,
        };
        let message = |message: &Message| {
            let content: usize = message.content.iter().map(part).sum();
            let calls = message.tool_calls.iter();
            content
                + calls
                    .map(|call| call.name.len() + call.arguments.len())
                    .sum::<usize>()
        };
        let prompt = match &self.prompt {
            Prompt::Text(text) => text.len(),
            Prompt::Chat(messages) => messages.iter().map(message).sum(),
        };
        let tool = |tool: &Tool| tool.name.len() + tool.description.len() + tool.parameters.len();
        guess_tokens(prompt + self.tools.iter().map(tool).sum::<usize>())
    }
}

/// What an image weighs in a guess: about a thousand tokens, as most providers
/// count one of a usual size.
const PART_BYTES: usize = 4_000;

/// A guess at the tokens of so many bytes of text: four bytes a token, which is
/// about right for English and too many for nothing.
pub fn guess_tokens(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(4)).unwrap_or(u32::MAX)
}

/// Whether tokens were counted or guessed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CountSource {
    /// Counted by the model's own tokenizer or by its provider.
    Exact,
    /// Guessed.
    #[default]
    Estimated,
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: u32,
    /// Tokens generated, reasoning included.
    pub completion_tokens: u32,
    /// Tokens of the prompt that a cache supplied.
    pub cached_prompt_tokens: u32,
    /// Tokens generated as reasoning.
    pub reasoning_tokens: u32,
    /// How the counts came about.
    pub source: CountSource,
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model ended, or a stop string came.
    Stop,
    /// `max_tokens` or the context window was reached.
    Length,
    /// The model asks for tools.
    ToolCalls,
    /// The provider withheld the rest.
    ContentFilter,
    /// Anything else.
    Other,
}

/// The end of a completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finish {
    /// Why it ended.
    pub reason: FinishReason,
    /// Final totals.
    pub usage: Usage,
    /// Extensions.
    pub ext: Vec<Extension>,
}

/// What a completion reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A piece of the answer: whole UTF-8, prompt excluded.
    Text(String),
    /// A piece of the reasoning.
    Reasoning(String),
    /// A call that the model asks for.
    ToolCall(ToolCall),
    /// Running totals; an aborted request is billed by the last one seen.
    Usage(Usage),
    /// Always the last event of a completion that did not fail.
    Finish(Finish),
    /// Anything a later version adds.
    Other(Extension),
}

/// What went wrong. The host answers with the status named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// 400
    InvalidRequest,
    /// 400
    ContextLength,
    /// 400
    ContentFilter,
    /// 404
    NotFound,
    /// 429 with `Retry-After`
    RateLimited,
    /// 503 with `Retry-After`
    Overloaded,
    /// 502, and the operator is told
    UpstreamAuth,
    /// 502
    Upstream,
    /// 504
    Timeout,
    /// 501
    Unsupported,
    /// 502: it has given up by itself
    Cancelled,
    /// 500
    Internal,
}

/// An error of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// What went wrong.
    pub kind: ErrorKind,
    /// Shown to the caller.
    pub message: String,
    /// Machine-readable reason finer than `kind`.
    pub code: Option<String>,
    /// Name of the request field at fault.
    pub param: Option<String>,
    /// When to try again.
    pub retry_after_ms: Option<u32>,
    /// Status of the upstream's answer.
    pub upstream_status: Option<u16>,
    /// For the log only, never shown to the caller.
    pub detail: Option<String>,
}

impl Error {
    /// An error with a message for the caller and nothing else.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            code: None,
            param: None,
            retry_after_ms: None,
            upstream_status: None,
            detail: None,
        }
    }

    /// Names the request field at fault.
    #[must_use]
    pub fn param(mut self, param: impl Into<String>) -> Self {
        self.param = Some(param.into());
        self
    }

    /// Adds a machine-readable reason finer than the kind.
    #[must_use]
    pub fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// Says when to try again, if that is known.
    #[must_use]
    pub fn retry_after_ms(mut self, wait: impl Into<Option<u32>>) -> Self {
        self.retry_after_ms = wait.into();
        self
    }

    /// Adds what only the log may say.
    #[must_use]
    pub fn detail(mut self, detail: impl fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.detail {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {}

/// One model that a plugin offers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelInfo {
    /// Name of the model.
    pub id: String,
    /// One line for people.
    pub description: String,
    /// Tokens of prompt and answer together.
    pub context_window: Option<u32>,
    /// The most tokens of an answer.
    pub max_output_tokens: Option<u32>,
    /// `"chat"`, `"completion"`, `"tools"`, `"vision"`, `"reasoning"`, `"seed"`,
    /// `"stream"`, …: each a promise.
    pub features: Vec<String>,
    /// Extensions. `source` names where a local model was loaded from.
    pub ext: Vec<Extension>,
}

/// What a plugin is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PluginInfo {
    /// Name of the plugin.
    pub name: String,
    /// Version of the plugin.
    pub version: String,
    /// The models it offers.
    pub models: Vec<ModelInfo>,
    /// Extensions.
    pub ext: Vec<Extension>,
}

/// Tokens that a prompt will be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenEstimate {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// How the count came about.
    pub source: CountSource,
}

#[cfg(test)]
mod tests {
    use super::{Extension, Message, Part, Prompt, Request, Role, Tool};

    fn request() -> Request {
        Request {
            request_id: String::new(),
            model: String::new(),
            prompt: Prompt::Text("12345".to_owned()),
            params: Default::default(),
            tools: vec![],
            deadline_ms: 1,
            ext: vec![],
        }
    }

    #[test]
    fn only_true_is_a_wish_to_stream() {
        for (value, is_streamed) in [("true", true), ("false", false), ("\"true\"", false)] {
            let ext = vec![Extension::new("stream", value)];
            let request = Request { ext, ..request() };
            assert_eq!(request.is_streamed(), is_streamed, "{value}");
            assert_eq!(request.extension("stream"), Some(value));
            assert_eq!(request.extension("other"), None);
        }
        assert!(!request().is_streamed());
    }

    #[test]
    fn a_guess_counts_all_that_is_sent() {
        assert_eq!(request().guess_tokens(), 2);
        let mut message = Message::text(Role::User, "1234");
        message
            .content
            .push(Part::Other(Extension::new("image_url", "{}")));
        let tool = Tool {
            name: "a".to_owned(),
            description: "b".to_owned(),
            parameters: "{}".to_owned(),
        };
        let request = Request {
            prompt: Prompt::Chat(vec![message]),
            tools: vec![tool],
            ..request()
        };
        assert_eq!(request.guess_tokens(), 1 + 1000 + 1);
    }
}
