//! `/customers`

use axum::Json as Body;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::keys::most;
use super::{Page, credit, limit, rfc3339};
use crate::http::AppState;
use crate::http::auth::{Admin, CustomerReader};
use crate::http::error::ApiError;
use crate::http::json::{Id, Json, Query, line, name, nullable};
use crate::money::NanoDollars;
use crate::store;
use crate::store::customers::{Customer, CustomerChange, CustomerLimits, NewCustomer};

/// Longest address of mail, by RFC 5321.
const LONGEST_EMAIL: usize = 254;

/// Body of `POST /customers`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Create {
    name: String,
    email: String,
    #[serde(default)]
    company: String,
    credit_limit: Option<NanoDollars>,
    rate_limit: Option<u32>,
    token_limit: Option<u32>,
    concurrent_limit: Option<u32>,
}

/// Body of `PATCH /customers/{customer_id}`; `null` lifts the limit it names, or
/// makes it as configured.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    name: Option<String>,
    company: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    credit_limit: Option<Option<NanoDollars>>,
    #[serde(default, deserialize_with = "nullable")]
    rate_limit: Option<Option<u32>>,
    #[serde(default, deserialize_with = "nullable")]
    token_limit: Option<Option<u32>>,
    #[serde(default, deserialize_with = "nullable")]
    concurrent_limit: Option<Option<u32>>,
}

/// A customer as shown.
#[derive(Debug, Serialize)]
pub struct Shown {
    id: i64,
    name: String,
    email: String,
    company: String,
    balance: NanoDollars,
    held: NanoDollars,
    credit_limit: Option<NanoDollars>,
    is_near: bool,
    rate_limit: Option<u32>,
    token_limit: Option<u32>,
    concurrent_limit: Option<u32>,
    created_at: String,
}

impl From<Customer> for Shown {
    fn from(customer: Customer) -> Self {
        let created_at = customer.created_at;
        Self {
            id: customer.id,
            name: customer.name,
            email: customer.email,
            company: customer.company,
            balance: customer.balance,
            held: customer.held,
            credit_limit: customer.credit_limit,
            is_near: customer.is_near,
            rate_limit: customer.limits.requests,
            token_limit: customer.limits.tokens,
            concurrent_limit: customer.limits.concurrent,
            created_at: rfc3339(created_at.replace_nanosecond(0).unwrap_or(created_at)),
        }
    }
}

/// `POST /customers`: creates a customer.
pub async fn create(
    Admin(actor): Admin,
    State(AppState { store, clock, .. }): State<AppState>,
    Json(body): Json<Create>,
) -> Result<(StatusCode, Body<Shown>), ApiError> {
    let new = NewCustomer {
        name: name("name", &body.name)?,
        email: email("email", &body.email)?,
        company: line("company", &body.company)?,
        credit_limit: credit_limit(body.credit_limit)?,
        limits: CustomerLimits {
            requests: most("rate_limit", body.rate_limit)?,
            tokens: most("token_limit", body.token_limit)?,
            concurrent: most("concurrent_limit", body.concurrent_limit)?,
        },
    };
    let customer = store.create_customer(new, &actor, clock.now()).await?;
    Ok((StatusCode::CREATED, Body(customer.into())))
}

/// `GET /customers`: customers by number.
pub async fn list(
    _: Admin,
    State(AppState { store, .. }): State<AppState>,
    Query(page): Query<Page>,
) -> Result<Body<Value>, ApiError> {
    let customers = store.customers(page.after, limit(page.limit)?).await?;
    let customers: Vec<_> = customers.into_iter().map(Shown::from).collect();
    Ok(Body(json!({ "customers": customers })))
}

/// `GET /customers/{customer_id}`
pub async fn read(
    CustomerReader(caller): CustomerReader,
    State(AppState { store, .. }): State<AppState>,
    Id(id): Id,
) -> Result<Body<Shown>, ApiError> {
    caller.scope(Some(id))?;
    let customer = store.customer(id).await.map_err(missing)?;
    Ok(Body(customer.into()))
}

/// `PATCH /customers/{customer_id}`: changes its name, company or limits.
pub async fn change(
    Admin(actor): Admin,
    State(AppState { store, clock, .. }): State<AppState>,
    Id(id): Id,
    Json(body): Json<Change>,
) -> Result<Body<Shown>, ApiError> {
    let change = CustomerChange {
        name: body.name.map(|text| name("name", &text)).transpose()?,
        company: body
            .company
            .map(|text| line("company", &text))
            .transpose()?,
        credit_limit: body.credit_limit.map(credit_limit).transpose()?,
        rate_limit: changed("rate_limit", body.rate_limit)?,
        token_limit: changed("token_limit", body.token_limit)?,
        concurrent_limit: changed("concurrent_limit", body.concurrent_limit)?,
    };
    let customer = store
        .change_customer(id, change, &actor, clock.now())
        .await
        .map_err(missing)?;
    Ok(Body(customer.into()))
}

/// `DELETE /customers/{customer_id}`: with its keys; its usage stays on record.
pub async fn delete(
    Admin(actor): Admin,
    State(AppState { store, clock, .. }): State<AppState>,
    Id(id): Id,
) -> Result<StatusCode, ApiError> {
    store
        .delete_customer(id, &actor, clock.now())
        .await
        .map_err(missing)?;
    Ok(StatusCode::NO_CONTENT)
}

/// What a missing customer is called.
pub fn missing(error: store::Error) -> ApiError {
    match error {
        store::Error::NotFound => ApiError::not_found("customer"),
        error => error.into(),
    }
}

fn changed(
    field: &'static str,
    change: Option<Option<u32>>,
) -> Result<Option<Option<u32>>, ApiError> {
    change.map(|limit| most(field, limit)).transpose()
}

fn credit_limit(dollars: Option<NanoDollars>) -> Result<Option<NanoDollars>, ApiError> {
    dollars
        .map(|dollars| credit::amount("credit_limit", dollars))
        .transpose()
}

/// An address that mail could be sent to: one `@`, something on both sides.
///
/// # Errors
/// 422 for the field `param`.
pub fn email(param: &str, text: &str) -> Result<String, ApiError> {
    let text = text.trim();
    let is_address = text.len() <= LONGEST_EMAIL
        && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        && text.split_once('@').is_some_and(|(local, domain)| {
            !local.is_empty() && !domain.is_empty() && !domain.contains('@')
        });
    if is_address {
        Ok(text.to_owned())
    } else {
        Err(ApiError::invalid(param, "must be an email address"))
    }
}
