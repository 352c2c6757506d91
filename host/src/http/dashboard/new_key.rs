//! `/dashboard/{customer_id}/keys/new`: the form that creates a key.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use maud::{Markup, html};
use serde::Deserialize;
use time::OffsetDateTime;

use super::form::Form;
use super::session::AdminViewer;
use super::{keys, layout};
use crate::config::{HIGHEST_LIMIT, HIGHEST_RATE};
use crate::http::AppState;
use crate::http::api::{customers, keys as api};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::json::{Id, name};
use crate::models::Live;
use crate::store::customers::Customer;
use crate::store::keys::{KeyLimits, NewKey, Scope};

/// Form of `POST /dashboard/{customer_id}/keys`. What is empty is as configured,
/// or without a bound.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct New {
    name: String,
    rate_limit: u32,
    token_limit: Option<u32>,
    concurrent_limit: Option<u32>,
    allowed_models: Vec<i64>,
    scopes: Vec<Scope>,
    /// Separated by spaces, commas or lines.
    allowed_networks: String,
    /// By UTC, as browsers write it: `2027-01-31T12:00`.
    expires_at: String,
}

/// `GET /dashboard/{customer_id}/keys/new`
pub async fn form(
    _: AdminViewer,
    State(state): State<AppState>,
    Id(customer_id): Id,
) -> Result<Markup, ApiError> {
    let customer = customer(&state, customer_id).await?;
    let live = state.generator.live().load();
    let form = New {
        rate_limit: state.requests.per_minute,
        allowed_models: live.models().map(|model| model.spec.id).collect(),
        scopes: Scope::ALL.to_vec(),
        ..New::default()
    };
    Ok(page(&customer, &live, &form, None))
}

/// `POST /dashboard/{customer_id}/keys`: issues a key and shows it, this once.
pub async fn create(
    AdminViewer(actor): AdminViewer,
    State(state): State<AppState>,
    Id(customer_id): Id,
    Form(form): Form<New>,
) -> Result<Response, ApiError> {
    let customer = customer(&state, customer_id).await?;
    let live = state.generator.live().load();
    let new = match key(&customer, &live, &form, state.clock.now()) {
        Ok(new) => new,
        Err(error) => {
            let page = page(&customer, &live, &form, Some(&error));
            return Ok((error.status(), page).into_response());
        }
    };
    let issued = state.keys.issue(new, &actor).await?;
    let title = format!("Key {} for {}", issued.key.name, customer.name);
    let page = keys::text_page("Key created", &title, &issued);
    Ok((StatusCode::CREATED, page).into_response())
}

fn key(
    customer: &Customer,
    live: &Live,
    form: &New,
    now: OffsetDateTime,
) -> Result<NewKey, ApiError> {
    let networks: Vec<_> = form
        .allowed_networks
        .split([' ', ',', '\n', '\r', '\t'])
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .collect();
    let expires_at = match form.expires_at.trim() {
        "" => None,
        // a browser leaves out seconds that are 0
        text if text.matches(':').count() == 1 => Some(format!("{text}:00Z")),
        text => Some(format!("{text}Z")),
    };
    Ok(NewKey {
        customer_id: customer.id,
        name: name("name", &form.name)?,
        rate_limit: api::rate(form.rate_limit)?,
        limits: KeyLimits {
            tokens: api::most("token_limit", form.token_limit)?,
            concurrent: api::most("concurrent_limit", form.concurrent_limit)?,
        },
        allowed_models: api::known(live, form.allowed_models.clone())?,
        scopes: api::scopes(form.scopes.clone())?,
        allowed_networks: match networks.is_empty() {
            true => None,
            false => Some(api::networks(networks)?),
        },
        expires_at: expires_at.map(|text| api::expiry(&text, now)).transpose()?,
    })
}

async fn customer(state: &AppState, id: i64) -> Result<Customer, ApiError> {
    state.store.customer(id).await.map_err(customers::missing)
}

fn page(customer: &Customer, live: &Live, form: &New, error: Option<&ApiError>) -> Markup {
    let path = format!("/dashboard/{}", customer.id);
    let content = html! {
        h1 { "Create a key for " (customer.name) }
        form .box method="post" action={ (path) "/keys" } {
            @if let Some(error) = error {
                p .problem role="alert" {
                    @if let Some(param) = error.param() { (param.replace('_', " ")) ": " }
                    (error.message())
                }
            }
            label for="name" { "Name" }
            input #name name="name" value=(form.name) required maxlength="200" autofocus
                autocomplete="off";
            label for="rate_limit" { "Requests a minute, for each model" }
            input #rate_limit type="number" name="rate_limit" value=(form.rate_limit) required
                min="1" max=(HIGHEST_RATE);
            (limit("token_limit", "Tokens a minute, for each model", form.token_limit))
            (limit("concurrent_limit", "Requests at once, for each model", form.concurrent_limit))
            fieldset {
                legend { "Models it may use" }
                @for model in live.models() {
                    @let id = model.spec.id;
                    label .check {
                        input type="checkbox" name="allowed_models" value=(id)
                            checked[form.allowed_models.contains(&id)];
                        " " (model.spec.name)
                    }
                }
            }
            fieldset {
                legend { "What it may do" }
                @for scope in Scope::ALL {
                    label .check {
                        input type="checkbox" name="scopes" value=(scope.as_str())
                            checked[form.scopes.contains(&scope)];
                        " " (scope.as_str())
                    }
                }
            }
            label for="allowed_networks" { "Networks it may be used from" }
            input #allowed_networks name="allowed_networks" value=(form.allowed_networks)
                placeholder="anywhere" autocomplete="off" aria-describedby="networks-note";
            p #networks-note .note { "Such as 203.0.113.0/24, 2001:db8::/32" }
            label for="expires_at" { "Ends at (UTC)" }
            input #expires_at type="datetime-local" name="expires_at" value=(form.expires_at)
                aria-describedby="end-note";
            p #end-note .note { "Empty: never" }
            button { "Create" }
            " " a href=(path) { "Cancel" }
        }
    };
    layout::page("Create a key", Some(&Caller::Admin), content)
}

/// A field for a limit that the key need not have.
fn limit(field: &str, label: &str, value: Option<u32>) -> Markup {
    html! {
        label for=(field) { (label) }
        input id=(field) type="number" name=(field) value=[value] min="1" max=(HIGHEST_LIMIT)
            placeholder="as configured";
    }
}
