//! `/api/keys`

use axum::Json as Body;
use axum::extract::State;
use axum::http::StatusCode;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::customers;
use super::{Page, rfc3339};
use crate::http::AppState;
use crate::http::auth::{Admin, Caller};
use crate::http::error::ApiError;
use crate::http::json::{Id, Json, Query, name};
use crate::keys::Order;
use crate::models::Live;
use crate::store;
use crate::store::keys::{Key, KeyChange};

/// Highest rate a key may have.
pub const HIGHEST_RATE: u32 = 1_000_000;

/// Body of `POST /api/keys`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    customer_email: Option<String>,
    customer_id: Option<i64>,
    name: String,
    allowed_models: Option<Vec<i64>>,
    rate_limit: Option<u32>,
}

/// Body of `PATCH /api/keys/{key_id}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    name: Option<String>,
    allowed_models: Option<Vec<i64>>,
    rate_limit: Option<u32>,
}

/// A key as shown; the key itself only when it was just issued.
#[derive(Debug, Serialize)]
pub struct Shown {
    id: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    key_prefix: String,
    customer_id: i64,
    name: String,
    rate_limit: u32,
    allowed_models: Vec<i64>,
    is_active: bool,
    created_at: String,
}

impl From<Key> for Shown {
    fn from(key: Key) -> Self {
        Self {
            id: key.id,
            key: None,
            key_prefix: format!("mhk_{}", key.public_id),
            customer_id: key.customer_id,
            name: key.name,
            rate_limit: key.rate_limit,
            allowed_models: key.allowed_models,
            is_active: key.is_active,
            created_at: rfc3339(key.created_at),
        }
    }
}

/// `POST /api/keys`: issues a key and shows it, this once.
pub async fn create(
    _: Admin,
    State(state): State<AppState>,
    Json(body): Json<Create>,
) -> Result<(StatusCode, Body<Shown>), ApiError> {
    let customer = match (body.customer_email, body.customer_id) {
        (Some(email), None) => state.store.customer_by_email(email.trim()).await,
        (None, Some(id)) => state.store.customer(id).await,
        _ => {
            let message = "give customer_email or customer_id, one of them";
            return Err(ApiError::invalid("customer_email", message));
        }
    };
    let live = state.generator.live().take();
    let order = Order {
        customer_id: customer.map_err(customers::missing)?.id,
        name: name("name", &body.name)?,
        rate_limit: rate(body.rate_limit.unwrap_or(state.requests.per_minute))?,
        allowed_models: match body.allowed_models {
            Some(models) => known(&live, models)?,
            None => live.models().map(|model| model.spec.id).collect(),
        },
    };
    let issued = state.keys.issue(order).await?;
    let mut shown = Shown::from(issued.key);
    shown.key = Some(issued.text.expose_secret().to_owned());
    Ok((StatusCode::CREATED, Body(shown)))
}

/// `GET /api/keys`: keys by number.
pub async fn list(
    caller: Caller,
    State(AppState { store, .. }): State<AppState>,
    Query(page): Query<Page>,
) -> Result<Body<Value>, ApiError> {
    let customer_id = caller.scope(page.customer_id)?;
    let keys = store.keys(customer_id, page.after, page.limit()?).await?;
    let keys: Vec<_> = keys.into_iter().map(Shown::from).collect();
    Ok(Body(json!({ "keys": keys })))
}

/// `GET /api/keys/{key_id}`
pub async fn read(
    caller: Caller,
    State(AppState { store, .. }): State<AppState>,
    Id(id): Id,
) -> Result<Body<Shown>, ApiError> {
    let key = store.key(id).await.map_err(missing)?;
    if caller.may_see(key.customer_id) {
        Ok(Body(key.into()))
    } else {
        Err(ApiError::not_found("key"))
    }
}

/// `PATCH /api/keys/{key_id}`: changes its name, models or rate.
pub async fn change(
    _: Admin,
    State(AppState {
        store, generator, ..
    }): State<AppState>,
    Id(id): Id,
    Json(body): Json<Change>,
) -> Result<Body<Shown>, ApiError> {
    let live = generator.live().take();
    let change = KeyChange {
        name: body.name.map(|text| name("name", &text)).transpose()?,
        rate_limit: body.rate_limit.map(rate).transpose()?,
        allowed_models: body
            .allowed_models
            .map(|models| known(&live, models))
            .transpose()?,
    };
    Ok(Body(
        store.change_key(id, change).await.map_err(missing)?.into(),
    ))
}

/// `POST /api/keys/{key_id}/toggle`: turns it off, or on again.
pub async fn toggle(
    _: Admin,
    State(AppState { store, .. }): State<AppState>,
    Id(id): Id,
) -> Result<Body<Shown>, ApiError> {
    Ok(Body(store.toggle_key(id).await.map_err(missing)?.into()))
}

/// `DELETE /api/keys/{key_id}`: for good; its usage stays on record.
pub async fn delete(
    _: Admin,
    State(AppState { store, clock, .. }): State<AppState>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    store.delete_key(id, clock.now()).await.map_err(missing)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a missing key is called.
pub fn missing(error: store::Error) -> ApiError {
    match error {
        store::Error::NotFound => ApiError::not_found("key"),
        error => error.into(),
    }
}

/// A rate that a key may have.
///
/// # Errors
/// 422 when it is none.
pub fn rate(per_minute: u32) -> Result<u32, ApiError> {
    match per_minute {
        1..=HIGHEST_RATE => Ok(per_minute),
        _ => Err(ApiError::invalid(
            "rate_limit",
            format!("must be from 1 to {HIGHEST_RATE} a minute"),
        )),
    }
}

/// The models' numbers, each once and in order.
///
/// # Errors
/// 422 when a model does not exist.
pub fn known(live: &Live, mut models: Vec<i64>) -> Result<Vec<i64>, ApiError> {
    models.sort_unstable();
    models.dedup();
    match models.iter().find(|&&id| live.by_id(id).is_none()) {
        Some(id) => Err(ApiError::invalid(
            "allowed_models",
            format!("there is no model {id}"),
        )),
        None => Ok(models),
    }
}
