//! `/api/keys`

use std::time::Duration;

use axum::Json as Body;
use axum::extract::State;
use axum::http::StatusCode;
use ipnet::IpNet;
use secrecy::ExposeSecret;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::customers;
use super::{PageOf, limit, rfc3339};
use crate::config::{HIGHEST_LIMIT, HIGHEST_RATE, network};
use crate::http::AppState;
use crate::http::auth::{Admin, KeysReader};
use crate::http::error::ApiError;
use crate::http::json::{Id, Json, OptionalJson, Query, name, nullable, time};
use crate::keys::{self, Issued, prefix};
use crate::models::Live;
use crate::store;
use crate::store::keys::{Key, KeyChange, KeyLimits, NewKey, Scope};

/// Most networks a key may be used from.
const MOST_NETWORKS: usize = 100;
/// Seconds that a replaced text works, where the request does not say: a day.
pub const DEFAULT_GRACE: u32 = 24 * 60 * 60;
/// Most seconds that it may work: 30 days.
const LONGEST_GRACE: u32 = 30 * DEFAULT_GRACE;

/// Body of `POST /api/keys`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    customer_email: Option<String>,
    customer_id: Option<i64>,
    name: String,
    allowed_models: Option<Vec<i64>>,
    rate_limit: Option<u32>,
    token_limit: Option<u32>,
    concurrent_limit: Option<u32>,
    scopes: Option<Vec<Scope>>,
    allowed_networks: Option<Vec<String>>,
    expires_at: Option<String>,
}

/// Body of `PATCH /api/keys/{key_id}`; `null` lifts what it names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    name: Option<String>,
    allowed_models: Option<Vec<i64>>,
    rate_limit: Option<u32>,
    #[serde(default, deserialize_with = "nullable")]
    token_limit: Option<Option<u32>>,
    #[serde(default, deserialize_with = "nullable")]
    concurrent_limit: Option<Option<u32>>,
    scopes: Option<Vec<Scope>>,
    #[serde(default, deserialize_with = "nullable")]
    allowed_networks: Option<Option<Vec<String>>>,
    #[serde(default, deserialize_with = "nullable")]
    expires_at: Option<Option<String>>,
}

/// Body of `POST /api/keys/{key_id}/rotate`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    grace_seconds: Option<u32>,
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
    token_limit: Option<u32>,
    concurrent_limit: Option<u32>,
    allowed_models: Vec<i64>,
    scopes: Vec<Scope>,
    allowed_networks: Option<Vec<IpNet>>,
    is_active: bool,
    created_at: String,
    expires_at: Option<String>,
    last_used_at: Option<String>,
    /// What the latest rotation replaced.
    replaced_key: Option<Replaced>,
}

#[derive(Debug, Serialize)]
struct Replaced {
    key_prefix: String,
    /// Without a grace: it stopped at once.
    works_until: Option<String>,
}

impl From<Key> for Shown {
    fn from(key: Key) -> Self {
        Self {
            id: key.id,
            key: None,
            key_prefix: prefix(&key.public_id),
            customer_id: key.customer_id,
            name: key.name,
            rate_limit: key.rate_limit,
            token_limit: key.limits.tokens,
            concurrent_limit: key.limits.concurrent,
            allowed_models: key.allowed_models,
            scopes: key.scopes,
            allowed_networks: key.allowed_networks,
            is_active: key.is_active,
            created_at: rfc3339(key.created_at),
            expires_at: key.expires_at.map(rfc3339),
            last_used_at: key.last_used_at.map(rfc3339),
            replaced_key: key.replaced.map(|replaced| Replaced {
                key_prefix: prefix(&replaced.public_id),
                works_until: replaced.until.map(rfc3339),
            }),
        }
    }
}

impl From<Issued> for Shown {
    fn from(issued: Issued) -> Self {
        Self {
            key: Some(issued.text.expose_secret().to_owned()),
            ..Self::from(issued.key)
        }
    }
}

/// `POST /api/keys`: issues a key and shows it, this once.
pub async fn create(
    Admin(actor): Admin,
    State(state): State<AppState>,
    Json(body): Json<Create>,
) -> Result<(StatusCode, Body<Shown>), ApiError> {
    let customer = match (body.customer_email, body.customer_id) {
        (Some(email), None) => {
            let email = customers::email("customer_email", &email)?;
            state.store.customer_by_email(&email).await
        }
        (None, Some(id)) => state.store.customer(id).await,
        _ => {
            let message = "give customer_email or customer_id, one of them";
            return Err(ApiError::invalid("customer_email", message));
        }
    };
    let live = state.generator.live().load();
    let new = NewKey {
        customer_id: customer.map_err(customers::missing)?.id,
        name: name("name", &body.name)?,
        rate_limit: rate(body.rate_limit.unwrap_or(state.requests.per_minute))?,
        limits: KeyLimits {
            tokens: most("token_limit", body.token_limit)?,
            concurrent: most("concurrent_limit", body.concurrent_limit)?,
        },
        allowed_models: match body.allowed_models {
            Some(models) => known(&live, models)?,
            None => live.models().map(|model| model.spec.id).collect(),
        },
        scopes: scopes(body.scopes.unwrap_or_else(|| Scope::ALL.to_vec()))?,
        allowed_networks: body.allowed_networks.map(networks).transpose()?,
        expires_at: body
            .expires_at
            .map(|text| expiry(&text, state.clock.now()))
            .transpose()?,
    };
    let issued = state.keys.issue(new, &actor).await?;
    Ok((StatusCode::CREATED, Body(issued.into())))
}

/// `GET /api/keys`: keys by number.
pub async fn list(
    KeysReader(caller): KeysReader,
    State(AppState { store, .. }): State<AppState>,
    Query(page): Query<PageOf>,
) -> Result<Body<Value>, ApiError> {
    let customer_id = caller.scope(page.customer_id)?;
    let keys = store
        .keys(customer_id, page.after, limit(page.limit)?)
        .await?;
    let keys: Vec<_> = keys.into_iter().map(Shown::from).collect();
    Ok(Body(json!({ "keys": keys })))
}

/// `GET /api/keys/{key_id}`
pub async fn read(
    KeysReader(caller): KeysReader,
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

/// `PATCH /api/keys/{key_id}`: changes what the operator says of it.
pub async fn change(
    Admin(actor): Admin,
    State(AppState {
        store,
        generator,
        clock,
        ..
    }): State<AppState>,
    Id(id): Id,
    Json(body): Json<Change>,
) -> Result<Body<Shown>, ApiError> {
    let (live, now) = (generator.live().load(), clock.now());
    let change = KeyChange {
        name: body.name.map(|text| name("name", &text)).transpose()?,
        rate_limit: body.rate_limit.map(rate).transpose()?,
        token_limit: body
            .token_limit
            .map(|limit| most("token_limit", limit))
            .transpose()?,
        concurrent_limit: body
            .concurrent_limit
            .map(|limit| most("concurrent_limit", limit))
            .transpose()?,
        allowed_models: body
            .allowed_models
            .map(|models| known(&live, models))
            .transpose()?,
        scopes: body.scopes.map(scopes).transpose()?,
        allowed_networks: match body.allowed_networks {
            Some(texts) => Some(texts.map(networks).transpose()?),
            None => None,
        },
        expires_at: match body.expires_at {
            Some(text) => Some(text.map(|text| expiry(&text, now)).transpose()?),
            None => None,
        },
    };
    let changed = store.change_key(id, change, &actor, now).await;
    Ok(Body(changed.map_err(missing)?.into()))
}

/// `POST /api/keys/{key_id}/rotate`: gives it a new text and shows it, this once.
pub async fn rotate(
    Admin(actor): Admin,
    State(AppState { keys, .. }): State<AppState>,
    Id(id): Id,
    OptionalJson(body): OptionalJson<Rotate>,
) -> Result<Body<Shown>, ApiError> {
    let grace = grace(body.grace_seconds.unwrap_or(DEFAULT_GRACE))?;
    let issued = keys.rotate(id, grace, &actor).await;
    Ok(Body(issued.map_err(not_rotated)?.into()))
}

/// `POST /api/keys/{key_id}/toggle`: turns it off, or on again.
pub async fn toggle(
    Admin(actor): Admin,
    State(AppState { store, clock, .. }): State<AppState>,
    Id(id): Id,
) -> Result<Body<Shown>, ApiError> {
    let toggled = store.toggle_key(id, None, &actor, clock.now()).await;
    Ok(Body(toggled.map_err(missing)?.into()))
}

/// `DELETE /api/keys/{key_id}`: for good; its usage stays on record.
pub async fn delete(
    Admin(actor): Admin,
    State(AppState { store, clock, .. }): State<AppState>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    let deleted = store.delete_key(id, &actor, clock.now()).await;
    deleted.map_err(missing)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a missing key is called.
pub fn missing(error: store::Error) -> ApiError {
    match error {
        store::Error::NotFound => ApiError::not_found("key"),
        error => error.into(),
    }
}

/// Why a key was not rotated.
pub fn not_rotated(error: keys::Error) -> ApiError {
    match error {
        keys::Error::Store(error) => missing(error),
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

/// A limit that a key or a customer may have, if it has one.
///
/// # Errors
/// 422 when it is none.
pub fn most(param: &str, limit: Option<u32>) -> Result<Option<u32>, ApiError> {
    if limit.is_none_or(|limit| (1..=HIGHEST_LIMIT).contains(&limit)) {
        return Ok(limit);
    }
    let message = format!("must be from 1 to {HIGHEST_LIMIT}, or null for what is configured");
    Err(ApiError::invalid(param, message))
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

/// Scopes that a key may have, each once and in order.
///
/// # Errors
/// 422 when there is none.
pub fn scopes(mut scopes: Vec<Scope>) -> Result<Vec<Scope>, ApiError> {
    if scopes.is_empty() {
        let message = "must name at least one; leave it out for all";
        return Err(ApiError::invalid("scopes", message));
    }
    scopes.sort_unstable();
    scopes.dedup();
    Ok(scopes)
}

/// Networks that a key may be used from.
///
/// # Errors
/// 422 when one is none, or they are none or too many.
pub fn networks(texts: Vec<String>) -> Result<Vec<IpNet>, ApiError> {
    let invalid = |message| ApiError::invalid("allowed_networks", message);
    if texts.is_empty() || texts.len() > MOST_NETWORKS {
        let message = format!("must name 1 to {MOST_NETWORKS} networks, or be null for any");
        return Err(invalid(message));
    }
    let network = |text: &String| {
        network::parse(text).ok_or_else(|| {
            let message = format!("{text:?} is no network such as 203.0.113.0/24 or 2001:db8::/32");
            invalid(message)
        })
    };
    texts.iter().map(network).collect()
}

/// The time when a key ends, which is yet to come.
///
/// # Errors
/// 422 when it is none, or past.
pub fn expiry(text: &str, now: OffsetDateTime) -> Result<OffsetDateTime, ApiError> {
    let end = time("expires_at", text)?;
    if end <= now {
        let message = "must be in the future; to end a key now, turn it off or delete it";
        return Err(ApiError::invalid("expires_at", message));
    }
    Ok(end)
}

/// How long a replaced text may work on.
///
/// # Errors
/// 422 when that is too long.
pub fn grace(seconds: u32) -> Result<Duration, ApiError> {
    match seconds {
        0..=LONGEST_GRACE => Ok(Duration::from_secs(seconds.into())),
        _ => Err(ApiError::invalid(
            "grace_seconds",
            format!("must be from 0 to {LONGEST_GRACE}"),
        )),
    }
}
