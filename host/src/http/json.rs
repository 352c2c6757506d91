//! Bodies, paths and queries become validated types, or errors of ours.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{HeaderValue, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

use super::AppState;
use super::error::ApiError;
use crate::generate::Repeatable;

/// Most characters of a name.
const LONGEST_NAME: usize = 200;

/// The client's name for a request that it may repeat.
const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Most characters of it.
const LONGEST_IDEMPOTENCY_KEY: usize = 255;

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for Json<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        parse(&read(request, state).await?).map(Self)
    }
}

/// A JSON body that may be left out, which says nothing.
#[derive(Debug)]
pub struct OptionalJson<T>(pub T);

impl<T: DeserializeOwned + Default> FromRequest<AppState> for OptionalJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        match read(request, state).await? {
            body if body.is_empty() => Ok(Self(T::default())),
            body => parse(&body).map(Self),
        }
    }
}

/// A JSON body of a request that its client may repeat.
#[derive(Debug)]
pub struct RepeatableJson<T>(pub T, pub Option<Repeatable>);

impl<T: DeserializeOwned> FromRequest<AppState> for RepeatableJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let key = match request.headers().get(IDEMPOTENCY_KEY) {
            Some(key) => Some(idempotency_key(key)?),
            None => None,
        };
        let path = request.uri().path().to_owned();
        let body = read(request, state).await?;
        let repeatable = key.map(|key| Repeatable {
            key,
            fingerprint: Sha256::new()
                .chain_update(path)
                .chain_update([0])
                .chain_update(&body)
                .finalize()
                .into(),
        });
        Ok(Self(parse(&body)?, repeatable))
    }
}

fn idempotency_key(value: &HeaderValue) -> Result<String, ApiError> {
    let key = value.to_str().unwrap_or_default();
    if key.is_empty() || key.len() > LONGEST_IDEMPOTENCY_KEY {
        let message = format!("must be 1 to {LONGEST_IDEMPOTENCY_KEY} ASCII characters");
        return Err(ApiError::invalid("Idempotency-Key", message));
    }
    Ok(key.to_owned())
}

/// The whole body, within the limits on its type, size and time.
async fn read(request: Request, state: &AppState) -> Result<Bytes, ApiError> {
    if let Some(kind) = request.headers().get(header::CONTENT_TYPE) {
        let kind = kind.to_str().unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::not_json_type());
        }
    }
    let limit = state.requests.max_body_bytes;
    let body = Limited::new(request.into_body(), limit).collect();
    let timeout = Duration::from_millis(state.requests.body_timeout_ms);
    let body = tokio::time::timeout(timeout, body)
        .await
        .map_err(|_| ApiError::body_timeout())?;
    let body = body.map_err(|error| {
        if error.is::<LengthLimitError>() {
            ApiError::body_too_large(limit)
        } else {
            ApiError::not_json("the body ended early")
        }
    })?;
    Ok(body.to_bytes())
}

/// Tells a field that is `null` from one that is not there; for serde's
/// `deserialize_with`.
///
/// # Errors
/// When it is something else than `null` and `T`.
pub fn nullable<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// A time as RFC 3339 writes it, in UTC.
///
/// # Errors
/// 422 for the field `param`.
pub fn time(param: &str, text: &str) -> Result<OffsetDateTime, ApiError> {
    let time = OffsetDateTime::parse(text, &Rfc3339)
        .map_err(|_| ApiError::invalid(param, "must be a time such as 2027-01-31T12:00:00Z"))?;
    // the end of the year 9999 comes later in the west
    time.checked_to_offset(UtcOffset::UTC)
        .ok_or_else(|| ApiError::invalid(param, "must be before the year 10000 in UTC"))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    // where a value is takes time to know, and only that of one that does not fit is told
    serde_json::from_slice(body).or_else(|_| parse_by_path(body))
}

fn parse_by_path<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        match error.classify() {
            serde_json::error::Category::Data => {
                // without the position: it is the field that helps
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or_default();
                invalid(&path, message)
            }
            _ => ApiError::not_json(error.to_string()),
        }
    })?;
    json.end()
        .map_err(|error| ApiError::not_json(error.to_string()))?;
    Ok(value)
}

/// The error of a value that does not fit, at the place where serde stopped.
fn invalid(path: &str, message: &str) -> ApiError {
    // a missing field is found missing in what should hold it
    let missing = message
        .strip_prefix("missing field `")
        .and_then(|rest| rest.strip_suffix('`'));
    match (path, missing) {
        (".", Some(field)) => ApiError::invalid(field, message),
        (".", None) => {
            ApiError::invalid_body("the body must be an object with this endpoint's fields")
        }
        (path, Some(field)) => ApiError::invalid(&format!("{path}.{field}"), message),
        (path, None) => ApiError::invalid(path, message),
    }
}

/// A number in the path. One that is none names nothing.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub i64);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Path::<i64>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Path(id)| Self(id))
            .map_err(|_| ApiError::no_such_endpoint())
    }
}

/// The query of the URL.
#[derive(Debug)]
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(query)| Self(query))
            .map_err(|rejection| {
                let mut message = rejection.body_text();
                message = message
                    .trim_start_matches("Failed to deserialize query string: ")
                    .to_owned();
                let param = match message.split_once(": ") {
                    Some((param, _)) => param,
                    // it is there twice, as the message says
                    None => message.split('`').nth(1).unwrap_or_default(),
                };
                ApiError::invalid(param, message.as_str())
            })
    }
}

/// A name that people gave: trimmed, not empty, not too long, on one line.
///
/// # Errors
/// 422 for the field `param`.
pub fn name(param: &str, text: &str) -> Result<String, ApiError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(ApiError::invalid(param, "must not be empty"));
    }
    line(param, text)
}

/// Text on one line, perhaps empty.
///
/// # Errors
/// 422 for the field `param`.
pub fn line(param: &str, text: &str) -> Result<String, ApiError> {
    let text = text.trim();
    if text.chars().count() > LONGEST_NAME {
        return Err(ApiError::invalid(
            param,
            format!("must have at most {LONGEST_NAME} characters"),
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(ApiError::invalid(param, "must not hold control characters"));
    }
    Ok(text.to_owned())
}
