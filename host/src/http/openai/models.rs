//! `GET /v1/models`

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::http::AppState;
use crate::http::auth::{Caller, ModelsReader};
use crate::http::error::ApiError;
use crate::models::Model;

fn may_use(caller: &Caller, model: &Model) -> bool {
    match caller {
        Caller::Admin => true,
        Caller::Customer(key) => key.may_use(model.spec.id),
    }
}

fn shown(model: &Model) -> Value {
    json!({ "id": model.spec.name, "object": "model", "created": 0, "owned_by": "model-host" })
}

/// `GET /v1/models`: the models the caller may use.
pub async fn list(
    ModelsReader(caller): ModelsReader,
    State(AppState { generator, .. }): State<AppState>,
) -> Json<Value> {
    let live = generator.live().load();
    let models: Vec<_> = live
        .models()
        .filter(|model| may_use(&caller, model))
        .map(|model| shown(model))
        .collect();
    Json(json!({ "object": "list", "data": models }))
}

/// `GET /v1/models/{model}`, whose name may have slashes
pub async fn read(
    ModelsReader(caller): ModelsReader,
    State(AppState { generator, .. }): State<AppState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    // what is not text names no model
    let Path(name) = name.map_err(|_| ApiError::not_found("model"))?;
    let live = generator.live().load();
    let model = live.by_name(&name).filter(|model| may_use(&caller, model));
    model
        .map(|model| Json(shown(model)))
        .ok_or_else(|| ApiError::not_found("model"))
}
