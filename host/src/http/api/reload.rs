//! `POST /admin/reload`

use axum::Json;
use axum::extract::State;
use serde_json::Value;

use crate::http::AppState;
use crate::http::auth::Admin;
use crate::http::error::ApiError;

/// `POST /admin/reload`: reads the configuration again and says what came of it.
pub async fn create(
    Admin(actor): Admin,
    State(AppState { reload, .. }): State<AppState>,
) -> Result<Json<Value>, ApiError> {
    match reload.reload(actor).await {
        None => Err(ApiError::stopping()),
        Some(Err(error)) => Err(ApiError::configuration(error.to_string())),
        Some(Ok(report)) => Ok(Json(report.to_json())),
    }
}
