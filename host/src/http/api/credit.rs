//! `POST /customers/{customer_id}/credit` and `GET /customers/{customer_id}/transfers`

use axum::Json as Body;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::customers::missing;
use super::{Page, limit, rfc3339};
use crate::http::AppState;
use crate::http::auth::{Admin, CustomerReader};
use crate::http::error::ApiError;
use crate::http::json::{Id, Json, Query, name};
use crate::money::{self, NanoDollars};
use crate::store::ledger::Transfer;

/// Most dollars of one amount: what JSON's numbers hold to the nano-dollar.
const MOST: i64 = 9_000_000;
const LARGEST: NanoDollars = NanoDollars(MOST * 1_000_000_000);

/// Body of `POST /customers/{customer_id}/credit`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    #[serde(deserialize_with = "money::signed")]
    amount: NanoDollars,
    reference: String,
}

/// A transfer as shown.
#[derive(Debug, Serialize)]
struct Shown {
    id: i64,
    customer_id: i64,
    amount: NanoDollars,
    reason: &'static str,
    reference: String,
    created_at: String,
}

impl From<Transfer> for Shown {
    fn from(transfer: Transfer) -> Self {
        Self {
            id: transfer.id,
            customer_id: transfer.customer_id,
            amount: transfer.amount,
            reason: transfer.reason.as_str(),
            reference: transfer.reference,
            created_at: rfc3339(transfer.created_at),
        }
    }
}

/// `POST /customers/{customer_id}/credit`: books what a customer paid or, below
/// 0, what is taken back; once for a reference, whose repeat is answered alike.
pub async fn create(
    Admin(actor): Admin,
    State(AppState { store, clock, .. }): State<AppState>,
    Id(id): Id,
    Json(body): Json<Create>,
) -> Result<(StatusCode, Body<Value>), ApiError> {
    if body.amount == NanoDollars(0) {
        return Err(ApiError::invalid("amount", "must not be 0"));
    }
    let amount = amount("amount", body.amount)?;
    let reference = name("reference", &body.reference)?;
    let booked = store
        .add_credit(id, amount, &reference, &actor, clock.now())
        .await;
    let transfer = Shown::from(booked.map_err(missing)?);
    Ok((StatusCode::CREATED, Body(json!(transfer))))
}

/// `GET /customers/{customer_id}/transfers`: all that changed the balance, oldest
/// first; go on with `after` the last `id`.
pub async fn transfers(
    CustomerReader(caller): CustomerReader,
    State(AppState { store, .. }): State<AppState>,
    Id(id): Id,
    Query(page): Query<Page>,
) -> Result<Body<Value>, ApiError> {
    caller.scope(Some(id))?;
    store.customer_on_record(id).await.map_err(missing)?;
    let transfers = store.transfers(id, page.after, limit(page.limit)?).await?;
    let transfers: Vec<_> = transfers.into_iter().map(Shown::from).collect();
    Ok(Body(json!({ "transfers": transfers })))
}

/// An amount that is not too large to be shown exactly.
///
/// # Errors
/// 422 for the field `param`.
pub fn amount(param: &str, amount: NanoDollars) -> Result<NanoDollars, ApiError> {
    if amount.0.saturating_abs() > LARGEST.0 {
        let message = format!("must be at most {MOST} dollars");
        return Err(ApiError::invalid(param, message));
    }
    Ok(amount)
}
