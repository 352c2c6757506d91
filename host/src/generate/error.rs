//! Why a request is not answered.

use plugin_sdk::{Error as PluginError, ErrorKind};

use crate::limits::{Limit, Refusal, Unit};
use crate::money::NanoDollars;
use crate::store::ledger::Cap;

/// Why a request is not answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No model has this number or name.
    #[error("there is no such model")]
    UnknownModel,
    /// The key may not use the model.
    #[error("the key may not use this model")]
    ModelNotAllowed,
    /// A limit does not leave what the request needs now.
    #[error("too many {}: the limit is {}", too_many(.0.by), .0.by)]
    Limited(Box<Refusal>),
    /// The limits are shared, and what shares them is away.
    #[error("the limits cannot be checked now")]
    LimitsAway,
    /// A limit never leaves what the request needs.
    #[error("the request may come to {tokens} tokens; the limit is {limit}")]
    ExceedsTokenLimit {
        /// Tokens of its prompt, guessed, and the most of its answer.
        tokens: u32,
        /// The limit.
        limit: Limit,
    },
    /// The prompt has too many bytes.
    #[error("the prompt has {bytes} bytes; the limit is {limit}")]
    PromptTooLong {
        /// Bytes of the prompt.
        bytes: usize,
        /// Most bytes.
        limit: usize,
    },
    /// The prompt leaves no room for an answer.
    #[error(
        "the prompt has {prompt_tokens} tokens and leaves no room for an answer: {bound} is {limit}"
    )]
    NoRoom {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// What bounds the length.
        bound: &'static str,
        /// Its value, in tokens.
        limit: u32,
    },
    /// What the request may spend does not cover it.
    #[error("{by} leaves {left}; the prompt with one token of answer may cost {least}")]
    Capped {
        /// What leaves so little.
        by: Cap,
        /// What it leaves.
        left: NanoDollars,
        /// What the shortest answer may cost.
        least: NanoDollars,
    },
    /// A request with the same idempotency key is at work.
    #[error("a request with this Idempotency-Key is still at work")]
    AtWork,
    /// The idempotency key was another request's.
    #[error("this Idempotency-Key was used for another request")]
    KeyReused,
    /// The plugin refused or failed.
    #[error("{0}")]
    Plugin(PluginError),
    /// The client did not wait for the answer, or did not read it.
    #[error("the client {0}")]
    Left(&'static str),
    /// The usage could not be written, so there is no answer.
    #[error("the usage could not be recorded")]
    NotRecorded,
    /// The server is about to end.
    #[error("the server is stopping")]
    Stopping,
}

impl Error {
    /// The client has closed its connection.
    pub(super) const LEFT: Self = Self::Left("left");

    /// What went wrong at a plugin, or on the way to it.
    pub(super) fn plugin(kind: ErrorKind, message: &str) -> Self {
        Self::Plugin(PluginError::new(kind, message))
    }

    /// A stable word for the kind of error.
    pub fn code(&self) -> &str {
        match self {
            Self::UnknownModel => "model_not_found",
            Self::ModelNotAllowed => "model_not_allowed",
            Self::LimitsAway => "limits_unavailable",
            Self::Limited(_) => "rate_limit_exceeded",
            Self::ExceedsTokenLimit { .. } => "exceeds_token_limit",
            Self::PromptTooLong { .. } => "prompt_too_long",
            Self::NoRoom { .. } => "context_length_exceeded",
            Self::Plugin(error) => error.code.as_deref().unwrap_or(match error.kind {
                ErrorKind::InvalidRequest => "invalid_request",
                ErrorKind::ContextLength => "context_length_exceeded",
                ErrorKind::ContentFilter => "content_filtered",
                ErrorKind::NotFound => "not_found",
                ErrorKind::RateLimited => "upstream_rate_limited",
                ErrorKind::Overloaded => "model_overloaded",
                ErrorKind::UpstreamAuth => "upstream_refused",
                // nobody has asked it to stop
                ErrorKind::Upstream | ErrorKind::Cancelled => "upstream_failed",
                ErrorKind::Timeout => "timeout",
                ErrorKind::Unsupported => "unsupported",
                ErrorKind::Internal => "plugin_failed",
            }),
            Self::Left(_) => "cancelled",
            Self::Capped {
                by: Cap::Credit, ..
            } => "insufficient_credit",
            Self::Capped {
                by: Cap::Budget { .. },
                ..
            } => "budget_exceeded",
            Self::AtWork => "idempotency_conflict",
            Self::KeyReused => "idempotency_key_reused",
            Self::NotRecorded => "not_recorded",
            Self::Stopping => "stopping",
        }
    }
}

/// What there was too much of.
fn too_many(limit: Limit) -> &'static str {
    match limit.unit {
        Unit::Requests => "requests",
        Unit::Tokens => "tokens",
        Unit::Concurrent => "requests at once",
    }
}
