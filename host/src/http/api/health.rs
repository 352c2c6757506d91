//! `GET /health` and `GET /ready`: the endpoints without a key.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::http::AppState;

/// `GET /health`: the process runs.
pub async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// `GET /ready`: the database answers and the models that should be there from the start
/// have been loaded. One that cannot be does not hold the others back, nor does one that
/// is added later.
pub async fn ready(
    State(AppState {
        store, generator, ..
    }): State<AppState>,
) -> Response {
    let reason = if let Err(error) = store.ping().await {
        tracing::error!(%error, "the database does not answer");
        Some("the database does not answer")
    } else if !generator.live().has_started() {
        Some("models are loading")
    } else {
        None
    };
    match reason {
        None => Json(json!({ "status": "ready" })).into_response(),
        Some(reason) => {
            let body = Json(json!({ "status": "not ready", "reason": reason }));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}
