//! The only place where an error becomes a response.
//!
//! Body: `{"error": {"code", "message", "type", "param"?, "limit"?, "request_id"}}`;
//! the same for OpenAI's SDKs, which read `message`, `type`, `param` and `code`.

use std::any::Any;
use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use plugin_sdk::ErrorKind;
use serde_json::{Value, json};

use super::limits::{self, Told};
use crate::limits::Standing;
use crate::{generate, keys, store};

/// Tells SDKs whether to repeat a request that failed.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An error as the client sees it.
#[derive(Clone, Debug)]
pub struct ApiError {
    status: StatusCode,
    code: String,
    message: String,
    param: Option<String>,
    retry_after: Option<Duration>,
    limits: Box<Told>,
    /// Whether the log tells it only to who debugs.
    is_quiet: bool,
}

impl ApiError {
    fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self {
            status,
            code: code.to_owned(),
            message: message.into(),
            param: None,
            retry_after: None,
            limits: Box::default(),
            is_quiet: false,
        }
    }

    /// 422: a field has a wrong value.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", message).at(param)
    }

    /// 422: the body as a whole is not what the endpoint takes.
    pub fn invalid_body(message: &str) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_request", message)
    }

    /// 422: a feature that this server does not have.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "unsupported", message).at(param)
    }

    /// 400: the body is not JSON.
    pub fn not_json(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_json", message)
    }

    /// 413: the body is too large.
    pub fn body_too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message)
    }

    /// 408: the body did not come.
    pub fn body_timeout() -> Self {
        Self::new(
            StatusCode::REQUEST_TIMEOUT,
            "body_timeout",
            "the body did not come in time",
        )
    }

    /// 415: the body is of another type.
    pub fn not_json_type() -> Self {
        let message = "expected a body of type application/json";
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            message,
        )
    }

    /// 401: no key came.
    pub fn no_key(expected: &str) -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "missing_api_key",
            format!("send {expected}"),
        )
    }

    /// 403: a key of the other kind came.
    pub fn wrong_kind_of_key(expected: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "wrong_kind_of_key",
            format!("this endpoint needs {expected}"),
        )
    }

    /// 403: the key is not for this.
    pub fn missing_scope(scope: &str) -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "missing_scope",
            format!("the key does not have the scope {scope}"),
        )
    }

    /// 404: there is no such thing, or it is somebody else's.
    pub fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            &format!("{what}_not_found"),
            format!("there is no such {what}"),
        )
    }

    /// 404: there is no such path.
    pub fn no_such_endpoint() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "endpoint_not_found",
            "there is no such endpoint",
        )
    }

    /// 405.
    pub fn method_not_allowed() -> Self {
        let message = "the endpoint does not take this method";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            message,
        )
    }

    /// 403: a form that another site sent.
    pub fn cross_site() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "cross_site_request",
            "the request came from another site",
        )
    }

    /// 409: the configuration file cannot be used.
    pub fn configuration(message: String) -> Self {
        Self::new(StatusCode::CONFLICT, "invalid_configuration", message)
    }

    /// 500: nobody but the server is at fault.
    fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the server failed",
        )
    }

    /// 503: the server is about to end.
    pub fn stopping() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "the server is stopping",
        )
        .retry_after(Duration::from_secs(1))
    }

    /// Names the field at fault.
    #[must_use]
    pub fn at(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// Names the field as this endpoint does.
    #[must_use]
    pub fn rename(mut self, from: &str, to: &str) -> Self {
        if self.param.as_deref() == Some(from) {
            self.param = Some(to.to_owned());
        }
        self
    }

    /// Adds how the limits stand.
    #[must_use]
    pub fn with_standings(mut self, standings: Vec<Standing>) -> Self {
        self.limits.standings = standings;
        self
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What happened, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The field at fault.
    pub fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// The body for the request with this id; its line goes to the log.
    pub fn body(&self, request_id: &str) -> Value {
        let (status, code) = (self.status.as_u16(), &self.code);
        if self.status.is_server_error() && !self.is_quiet {
            tracing::error!(status, code, "{}", self.message);
        } else {
            tracing::debug!(status, code, "{}", self.message);
        }
        let mut error = json!({
            "code": code,
            "message": self.message,
            "type": kind(self.status),
            "request_id": request_id,
        });
        if let Some(param) = &self.param {
            error["param"] = json!(param);
        }
        if let Some(limit) = &self.limits.refuses {
            error["limit"] = limits::body(limit);
        }
        json!({ "error": error })
    }

    /// The response of the request with this id.
    pub fn render(self, request_id: &str) -> Response {
        let mut response = (self.status, Json(self.body(request_id))).into_response();
        let headers = response.headers_mut();
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.status == StatusCode::NOT_IMPLEMENTED {
            // what no repeat changes: OpenAI's and Anthropic's SDKs, which read this header of
            // theirs, repeat all other answers of 500 and above
            headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(after) = self.retry_after {
            let seconds = limits::whole_seconds(after).max(1);
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        limits::write(headers, &self.limits.standings);
        response
    }
}

impl IntoResponse for ApiError {
    /// Leaves itself for the envelope, which knows the request's id.
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

/// OpenAI's `type` of an error.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        // OpenAI's word for it, though not its status: its clients repeat a 429
        StatusCode::PAYMENT_REQUIRED => "insufficient_quota",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

/// The response when a handler panicked.
pub fn panicked(_: Box<dyn Any + Send>) -> Response {
    ApiError::internal().into_response()
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NotFound => {
                Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such thing")
            }
            store::Error::EmailTaken => {
                Self::new(StatusCode::CONFLICT, "email_taken", error.to_string()).at("email")
            }
            store::Error::ReferenceTaken => {
                Self::new(StatusCode::CONFLICT, "reference_taken", error.to_string())
                    .at("reference")
            }
            store::Error::TakenOver => generate::Error::AtWork.into(),
            store::Error::Stopping => Self::stopping(),
            store::Error::Database(detail) => {
                tracing::error!(detail, "the database failed");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "storage_failed",
                    "the database failed",
                )
                .retry_after(Duration::from_secs(1))
            }
        }
    }
}

impl From<keys::Error> for ApiError {
    fn from(error: keys::Error) -> Self {
        let refused = |status, code| Self::new(status, code, error.to_string());
        match error {
            keys::Error::Invalid => refused(StatusCode::UNAUTHORIZED, "invalid_api_key"),
            keys::Error::Expired | keys::Error::Replaced => {
                refused(StatusCode::UNAUTHORIZED, "key_expired")
            }
            keys::Error::Disabled => refused(StatusCode::FORBIDDEN, "key_disabled"),
            keys::Error::NetworkNotAllowed(_) => {
                refused(StatusCode::FORBIDDEN, "network_not_allowed")
            }
            keys::Error::OtherSecret
            | keys::Error::UnfitAdminKey(_)
            | keys::Error::Randomness(_) => {
                tracing::error!(%error, "a key could not be made");
                Self::internal()
            }
            keys::Error::Busy => Self {
                // whoever comes with many keys that nobody has is not to fill the log
                is_quiet: true,
                ..refused(StatusCode::SERVICE_UNAVAILABLE, "busy")
                    .retry_after(Duration::from_secs(1))
            },
            keys::Error::Store(error) => error.into(),
        }
    }
}

impl From<generate::Error> for ApiError {
    fn from(error: generate::Error) -> Self {
        let status = match &error {
            generate::Error::UnknownModel => StatusCode::NOT_FOUND,
            generate::Error::ModelNotAllowed => StatusCode::FORBIDDEN,
            generate::Error::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            generate::Error::PromptTooLong { .. }
            | generate::Error::NoRoom { .. }
            | generate::Error::ExceedsTokenLimit { .. } => StatusCode::BAD_REQUEST,
            generate::Error::Capped { .. } => StatusCode::PAYMENT_REQUIRED,
            generate::Error::Plugin(error) => of_plugin(error.kind),
            // nobody is there to read it
            generate::Error::Left(_) => StatusCode::REQUEST_TIMEOUT,
            generate::Error::AtWork => StatusCode::CONFLICT,
            generate::Error::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            generate::Error::LimitsAway
            | generate::Error::NotRecorded
            | generate::Error::Stopping => StatusCode::SERVICE_UNAVAILABLE,
        };
        let message = match &error {
            generate::Error::Plugin(error) => error.message.clone(),
            other => other.to_string(),
        };
        let mut this = Self::new(status, error.code(), message);
        match error {
            generate::Error::UnknownModel | generate::Error::ModelNotAllowed => this.at("model"),
            generate::Error::PromptTooLong { .. } | generate::Error::NoRoom { .. } => {
                this.at("prompt")
            }
            generate::Error::ExceedsTokenLimit { limit, .. } => {
                this.limits.refuses = Some(limit);
                this.at("max_tokens")
            }
            generate::Error::Limited(refusal) => {
                this.limits.refuses = Some(refusal.by);
                this.retry_after(refusal.retry_after)
                    .with_standings(refusal.standings)
            }
            generate::Error::Plugin(error) => {
                let is_temporary =
                    matches!(error.kind, ErrorKind::Overloaded | ErrorKind::RateLimited);
                this.param = error.param;
                this.retry_after = match error.retry_after_ms {
                    Some(ms) => Some(Duration::from_millis(ms.into())),
                    None => is_temporary.then_some(Duration::from_secs(1)),
                };
                this
            }
            generate::Error::Capped { .. }
            | generate::Error::KeyReused
            | generate::Error::Left(_) => this,
            generate::Error::AtWork
            | generate::Error::LimitsAway
            | generate::Error::NotRecorded
            | generate::Error::Stopping => this.retry_after(Duration::from_secs(1)),
        }
    }
}

/// The status of a plugin's error, as its contract says.
fn of_plugin(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidRequest | ErrorKind::ContextLength | ErrorKind::ContentFilter => {
            StatusCode::BAD_REQUEST
        }
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        // a client that leaves is no error of the plugin's: it has given up by itself
        ErrorKind::UpstreamAuth | ErrorKind::Upstream | ErrorKind::Cancelled => {
            StatusCode::BAD_GATEWAY
        }
        ErrorKind::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorKind::Unsupported => StatusCode::NOT_IMPLEMENTED,
        ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
