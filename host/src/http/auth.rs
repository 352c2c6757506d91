//! Who calls, as types: a handler that takes one of these has said who may.

use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, header, request::Parts};

use super::AppState;
use super::error::ApiError;
use crate::keys::Keys;
use crate::store::keys::Key;

/// The operator.
#[derive(Debug)]
pub struct Admin;

/// A customer, by one of its keys.
#[derive(Debug)]
pub struct Customer(pub Key);

/// Either.
#[derive(Debug)]
pub enum Caller {
    /// The operator.
    Admin,
    /// A customer, by one of its keys.
    Customer(Key),
}

impl Caller {
    /// The customer whose things are asked for: the caller itself, or for the
    /// operator the one named.
    ///
    /// # Errors
    /// 404 when a customer names another: it does not learn whether there is one.
    pub fn scope(&self, asked: Option<i64>) -> Result<Option<i64>, ApiError> {
        match (self, asked) {
            (Self::Admin, asked) => Ok(asked),
            (Self::Customer(key), Some(asked)) if asked != key.customer_id => {
                Err(ApiError::not_found("customer"))
            }
            (Self::Customer(key), _) => Ok(Some(key.customer_id)),
        }
    }

    /// Whether this caller may see the customer's things.
    pub fn may_see(&self, customer_id: i64) -> bool {
        match self {
            Self::Admin => true,
            Self::Customer(key) => key.customer_id == customer_id,
        }
    }
}

impl FromRequestParts<AppState> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        if let Some(key) = text(&parts.headers, "x-admin-key") {
            state.keys.authenticate_admin(key).await?;
            return Ok(Self::Admin);
        }
        if let Some(key) = text(&parts.headers, "x-api-key") {
            return Ok(Self::Customer(state.keys.authenticate(key).await?));
        }
        match bearer(&parts.headers) {
            Some(key) if Keys::is_customers(key) => {
                Ok(Self::Customer(state.keys.authenticate(key).await?))
            }
            Some(key) => {
                state.keys.authenticate_admin(key).await?;
                Ok(Self::Admin)
            }
            None => Err(ApiError::no_key(
                "a key as X-API-Key, X-Admin-Key or Authorization: Bearer",
            )),
        }
    }
}

impl FromRequestParts<AppState> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        match Caller::from_request_parts(parts, state).await? {
            Caller::Admin => Ok(Self),
            Caller::Customer(_) => Err(ApiError::wrong_kind_of_key("the admin key")),
        }
    }
}

impl FromRequestParts<AppState> for Customer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        match Caller::from_request_parts(parts, state).await? {
            Caller::Customer(key) => Ok(Self(key)),
            Caller::Admin => Err(ApiError::wrong_kind_of_key("a customer's key")),
        }
    }
}

/// Whether a key came in a header, valid or not.
pub fn has_key(headers: &HeaderMap) -> bool {
    headers.contains_key("x-admin-key")
        || headers.contains_key("x-api-key")
        || bearer(headers).is_some()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // a header that is not text is a key that nobody has
    headers
        .get(name)
        .map(|value| value.to_str().unwrap_or_default().trim())
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = text(headers, header::AUTHORIZATION.as_str())?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}
