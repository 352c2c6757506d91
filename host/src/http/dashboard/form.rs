//! Forms become types, or errors of ours.

use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum_extra::extract::Form as Extract;
use serde::de::DeserializeOwned;

use crate::http::AppState;
use crate::http::error::ApiError;

/// Largest form, in bytes: a name, a key, and thousands of models.
pub const LARGEST: usize = 64 * 1024;

/// A form's fields; several with one name become a list.
#[derive(Debug)]
pub struct Form<T>(pub T);

impl<T: DeserializeOwned> FromRequest<AppState> for Form<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &AppState) -> Result<Self, ApiError> {
        let timeout = Duration::from_millis(state.requests.body_timeout_ms);
        let form = tokio::time::timeout(timeout, Extract::<T>::from_request(request, state));
        match form.await.map_err(|_| ApiError::body_timeout())? {
            Ok(Extract(form)) => Ok(Self(form)),
            Err(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::body_too_large(LARGEST))
            }
            // nothing of the body, which may hold a key
            Err(_) => Err(ApiError::invalid(
                "form",
                "the form is not as the page has it",
            )),
        }
    }
}
