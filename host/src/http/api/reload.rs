//! `POST /admin/reload`

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::http::AppState;
use crate::http::auth::Admin;
use crate::http::error::ApiError;

/// `POST /admin/reload`: reads the configuration again and says what came of it.
pub async fn create(
    _: Admin,
    State(AppState { reload, .. }): State<AppState>,
) -> Result<Json<Value>, ApiError> {
    match reload.reload().await {
        None => Err(ApiError::stopping()),
        Some(Err(error)) => Err(ApiError::configuration(error.to_string())),
        Some(Ok(report)) => {
            let failed: Vec<_> = report
                .failed
                .iter()
                .map(|(model, reason)| json!({ "model": model, "reason": reason }))
                .collect();
            Ok(Json(json!({
                "added": report.added,
                "changed": report.changed,
                "removed": report.removed,
                "failed": failed,
                "needs_restart": report.needs_restart,
            })))
        }
    }
}
