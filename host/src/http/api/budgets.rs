//! `/customers/{customer_id}/budgets` and `/api/keys/{key_id}/budgets`

use axum::Json as Body;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{credit, customers, keys, rfc3339};
use crate::http::AppState;
use crate::http::auth::{Admin, CustomerReader, KeysReader};
use crate::http::error::ApiError;
use crate::http::json::{Id, Json};
use crate::money::NanoDollars;
use crate::store::audit::Actor;
use crate::store::ledger::Period;
use crate::store::ledger::budgets::{Budget, Owner, Spending};

/// From this part of a budget, in percent, its end is near, unless it says so itself.
const NEAR_PERCENT: u8 = 80;

/// Body of `PUT`: all budgets that there shall be.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replace {
    budgets: Vec<Wanted>,
}

/// A budget as it comes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    period: Period,
    amount: NanoDollars,
    near_percent: Option<u8>,
}

/// A budget as shown.
#[derive(Debug, Serialize)]
struct Shown {
    period: Period,
    amount: NanoDollars,
    near_percent: u8,
    spent: NanoDollars,
    held: NanoDollars,
    is_near: bool,
    /// When the period that runs began; none for a total.
    period_start: Option<String>,
    /// When the next one begins.
    period_end: Option<String>,
}

impl From<Spending> for Shown {
    fn from(spending: Spending) -> Self {
        let Budget {
            period,
            amount,
            near_percent,
        } = spending.budget;
        let end = period.end(spending.start);
        Self {
            period,
            amount,
            near_percent,
            spent: spending.spent,
            held: spending.held,
            is_near: spending.is_near(),
            period_start: end.map(|_| rfc3339(spending.start)),
            period_end: end.map(rfc3339),
        }
    }
}

/// `GET /customers/{customer_id}/budgets`: those of all its keys together.
pub async fn of_customer(
    CustomerReader(caller): CustomerReader,
    State(state): State<AppState>,
    Id(id): Id,
) -> Result<Body<Value>, ApiError> {
    caller.scope(Some(id))?;
    let found = state.store.customer_on_record(id).await;
    found.map_err(customers::missing)?;
    shown(&state, Owner::customer(id)).await
}

/// `PUT /customers/{customer_id}/budgets`
pub async fn replace_of_customer(
    Admin(actor): Admin,
    State(state): State<AppState>,
    Id(id): Id,
    Json(body): Json<Replace>,
) -> Result<Body<Value>, ApiError> {
    state.store.customer(id).await.map_err(customers::missing)?;
    replace(&state, Owner::customer(id), body, &actor).await
}

/// `GET /api/keys/{key_id}/budgets`: the key's own.
pub async fn of_key(
    KeysReader(caller): KeysReader,
    State(state): State<AppState>,
    Id(id): Id,
) -> Result<Body<Value>, ApiError> {
    let key = state.store.key(id).await.map_err(keys::missing)?;
    if !caller.may_see(key.customer_id) {
        return Err(ApiError::not_found("key"));
    }
    shown(&state, Owner::of_request(key.customer_id, id)).await
}

/// `PUT /api/keys/{key_id}/budgets`
pub async fn replace_of_key(
    Admin(actor): Admin,
    State(state): State<AppState>,
    Id(id): Id,
    Json(body): Json<Replace>,
) -> Result<Body<Value>, ApiError> {
    let key = state.store.key(id).await.map_err(keys::missing)?;
    replace(&state, Owner::of_request(key.customer_id, id), body, &actor).await
}

async fn replace(
    state: &AppState,
    owner: Owner,
    body: Replace,
    by: &Actor,
) -> Result<Body<Value>, ApiError> {
    let budgets = checked(body.budgets)?;
    let now = state.clock.now();
    state.store.set_budgets(owner, &budgets, by, now).await?;
    shown(state, owner).await
}

async fn shown(state: &AppState, owner: Owner) -> Result<Body<Value>, ApiError> {
    let budgets = state.store.budgets(owner, state.clock.now()).await?;
    let budgets: Vec<_> = budgets.into_iter().map(Shown::from).collect();
    Ok(Body(json!({ "budgets": budgets })))
}

/// At most one budget for each period, each of them possible.
fn checked(wanted: Vec<Wanted>) -> Result<Vec<Budget>, ApiError> {
    let mut budgets: Vec<Budget> = Vec::new();
    for (place, wanted) in wanted.into_iter().enumerate() {
        let at = |field: &str| format!("budgets[{place}].{field}");
        let period = wanted.period;
        if budgets.iter().any(|budget| budget.period == period) {
            let message = format!("there is a budget for {} already", period.as_str());
            return Err(ApiError::invalid(&at("period"), message));
        }
        let near_percent = wanted.near_percent.unwrap_or(NEAR_PERCENT);
        if !(1..=100).contains(&near_percent) {
            let message = "must be from 1 to 100 percent";
            return Err(ApiError::invalid(&at("near_percent"), message));
        }
        budgets.push(Budget {
            period,
            amount: credit::amount(&at("amount"), wanted.amount)?,
            near_percent,
        });
    }
    Ok(budgets)
}
