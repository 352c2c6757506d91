//! `/dashboard/{customer_id}/keys`: a customer's keys, and for the operator
//! the forms to create, switch and delete them. Rotating is in `rotate.rs`.

use axum::extract::{FromRequestParts, Path, State};
use axum::http::{StatusCode, request::Parts};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use secrecy::ExposeSecret;
use serde::Deserialize;
use time::OffsetDateTime;

use super::figures::time;
use super::form::Form;
use super::layout;
use super::session::AdminViewer;
use crate::http::AppState;
use crate::http::api::{customers, keys as api};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::json::{Id, name};
use crate::keys::Issued;
use crate::models::Live;
use crate::store::customers::Customer;
use crate::store::keys::{Key, KeyLimits, NewKey, Scope};

/// Most keys that are listed.
const MOST: u32 = 1000;

/// Form of `POST /dashboard/{customer_id}/keys`.
#[derive(Debug, Deserialize)]
pub struct New {
    name: String,
    rate_limit: u32,
    #[serde(default)]
    allowed_models: Vec<i64>,
}

/// Form of `POST /dashboard/{customer_id}/keys/{key_id}/active`: what the key
/// shall be, so that a second click does not undo the first.
#[derive(Debug, Deserialize)]
pub struct Active {
    active: bool,
}

/// The key in the path, if it is the customer's in the path.
#[derive(Debug)]
pub struct OfCustomer(pub Key);

impl FromRequestParts<AppState> for OfCustomer {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, ApiError> {
        let Path((customer_id, key_id)) = Path::<(i64, i64)>::from_request_parts(parts, state)
            .await
            .map_err(|_| ApiError::no_such_endpoint())?;
        let key = state.store.key(key_id).await.map_err(api::missing)?;
        if key.customer_id == customer_id {
            Ok(Self(key))
        } else {
            Err(ApiError::not_found("key"))
        }
    }
}

/// The table of a customer's keys, with forms for the operator.
///
/// # Errors
/// When the database fails.
pub async fn table(
    state: &AppState,
    caller: &Caller,
    customer_id: i64,
) -> Result<Markup, ApiError> {
    let keys = state.store.keys(Some(customer_id), 0, MOST).await?;
    let (live, now) = (state.generator.live().take(), state.clock.now());
    let is_admin = matches!(caller, Caller::Admin);
    Ok(html! {
        section #keys {
            h2 { "API keys" }
            @if keys.is_empty() {
                p .note { "No key yet." }
            } @else {
                div .scroll { table {
                    thead { tr {
                        th { "Name" }
                        th { "Key" }
                        th .figure { "Requests a minute" }
                        th { "Models" }
                        th { "Scopes" }
                        th { "Last used" }
                        th { "Expires" }
                        th { "State" }
                        @if is_admin { th {} }
                    } }
                    tbody { @for key in &keys { (row(key, &live, now, is_admin)) } }
                } }
            }
            @if keys.len() >= MOST as usize {
                p .note { "These are the first " (MOST) "; " code { "GET /api/keys" } " lists all." }
            }
            @if is_admin {
                p { a .button href={ "/dashboard/" (customer_id) "/keys/new" } { "Create a key" } }
            }
        }
    })
}

fn row(key: &Key, live: &Live, now: OffsetDateTime, is_admin: bool) -> Markup {
    let path = path(key);
    let change = if key.is_active { "Turn off" } else { "Turn on" };
    let state = match key.is_active {
        true if key.expires_at.is_some_and(|end| end <= now) => "expired",
        true => "active",
        false => "off",
    };
    let replaced = key
        .replaced
        .as_ref()
        .filter(|replaced| replaced.until > now);
    html! {
        tr {
            td { (key.name) }
            td {
                code { "mhk_" (key.public_id) "_…" }
                @if let Some(replaced) = replaced {
                    p .note {
                        code { "mhk_" (replaced.public_id) "_…" } " works until " (time(replaced.until))
                    }
                }
                @if let Some(networks) = &key.allowed_networks {
                    p .note {
                        "from "
                        @for (place, network) in networks.iter().enumerate() {
                            @if place > 0 { ", " }
                            (network)
                        }
                    }
                }
            }
            td .figure { (key.rate_limit) }
            td {
                @for (place, id) in key.allowed_models.iter().enumerate() {
                    @if place > 0 { ", " }
                    @match live.by_id(*id) {
                        Some(model) => (model.spec.name),
                        None => { "model " (id) ", gone" },
                    }
                }
            }
            td { (scopes(key)) }
            td .time { @match key.last_used_at { Some(at) => (time(at)), None => "never" } }
            td .time { @match key.expires_at { Some(at) => (time(at)), None => "never" } }
            td { span class={ "status " (state) } { (state) } }
            @if is_admin {
                td .actions {
                    form method="post" action={ (path) "/active" } {
                        input type="hidden" name="active" value=(!key.is_active);
                        button .quiet aria-label={ (change) " " (key.name) } { (change) }
                    }
                    a href={ (path) "/rotate" } aria-label={ "Rotate " (key.name) } { "Rotate" }
                    a href={ (path) "/delete" } aria-label={ "Delete " (key.name) } { "Delete" }
                }
            }
        }
    }
}

fn scopes(key: &Key) -> String {
    if Scope::ALL.iter().all(|scope| key.scopes.contains(scope)) {
        return "all".to_owned();
    }
    let names: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    names.join(", ")
}

/// The path that a key's pages begin with.
pub fn path(key: &Key) -> String {
    format!("/dashboard/{}/keys/{}", key.customer_id, key.id)
}

/// `GET /dashboard/{customer_id}/keys/new`
pub async fn new(
    _: AdminViewer,
    State(state): State<AppState>,
    Id(customer_id): Id,
) -> Result<Markup, ApiError> {
    let customer = customer(&state, customer_id).await?;
    let live = state.generator.live().take();
    let form = New {
        name: String::new(),
        rate_limit: state.requests.per_minute,
        allowed_models: live.models().map(|model| model.spec.id).collect(),
    };
    Ok(new_page(&customer, &live, &form, None))
}

/// `POST /dashboard/{customer_id}/keys`: issues a key and shows it, this once.
pub async fn create(
    AdminViewer(actor): AdminViewer,
    State(state): State<AppState>,
    Id(customer_id): Id,
    Form(form): Form<New>,
) -> Result<Response, ApiError> {
    let customer = customer(&state, customer_id).await?;
    let live = state.generator.live().take();
    let new = match new_key(&customer, &live, &form) {
        Ok(new) => new,
        Err(error) => {
            let page = new_page(&customer, &live, &form, Some(&error));
            return Ok((error.status(), page).into_response());
        }
    };
    let issued = state.keys.issue(new, &actor).await?;
    let title = format!("Key {} for {}", issued.key.name, customer.name);
    let page = text_page("Key created", &title, &issued);
    Ok((StatusCode::CREATED, page).into_response())
}

/// The form has no more than most keys need; the API has the rest.
fn new_key(customer: &Customer, live: &Live, form: &New) -> Result<NewKey, ApiError> {
    Ok(NewKey {
        customer_id: customer.id,
        name: name("name", &form.name)?,
        rate_limit: api::rate(form.rate_limit)?,
        limits: KeyLimits::default(),
        allowed_models: api::known(live, form.allowed_models.clone())?,
        scopes: Scope::ALL.to_vec(),
        allowed_networks: None,
        expires_at: None,
    })
}

/// `POST /dashboard/{customer_id}/keys/{key_id}/active`: turns it on or off.
pub async fn set_active(
    AdminViewer(actor): AdminViewer,
    State(AppState { store, clock, .. }): State<AppState>,
    OfCustomer(key): OfCustomer,
    Form(form): Form<Active>,
) -> Result<Redirect, ApiError> {
    if key.is_active != form.active {
        let toggled = store.toggle_key(key.id, &actor, clock.now()).await;
        toggled.map_err(api::missing)?;
    }
    Ok(back(key.customer_id))
}

/// `GET /dashboard/{customer_id}/keys/{key_id}/delete`: asks first.
pub async fn confirm_delete(_: AdminViewer, OfCustomer(key): OfCustomer) -> Markup {
    let form = html! {
        h1 { "Delete " (key.name) "?" }
        form .box method="post" {
            p { "The key " code { "mhk_" (key.public_id) "_…" } " opens nothing any more, for good." }
            p { "What was used with it stays on record." }
            button .danger { "Delete" }
            " " a href={ "/dashboard/" (key.customer_id) } { "Keep it" }
        }
    };
    layout::page("Delete a key", Some(&Caller::Admin), form)
}

/// `POST /dashboard/{customer_id}/keys/{key_id}/delete`
pub async fn delete(
    AdminViewer(actor): AdminViewer,
    State(AppState { store, clock, .. }): State<AppState>,
    OfCustomer(key): OfCustomer,
) -> Result<Redirect, ApiError> {
    let deleted = store.delete_key(key.id, &actor, clock.now()).await;
    deleted.map_err(api::missing)?;
    Ok(back(key.customer_id))
}

async fn customer(state: &AppState, id: i64) -> Result<Customer, ApiError> {
    state.store.customer(id).await.map_err(customers::missing)
}

fn back(customer_id: i64) -> Redirect {
    Redirect::to(&format!("/dashboard/{customer_id}#keys"))
}

fn new_page(customer: &Customer, live: &Live, form: &New, error: Option<&ApiError>) -> Markup {
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
                min="1" max=(api::HIGHEST_RATE);
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
            button { "Create" }
            " " a href=(path) { "Cancel" }
        }
    };
    layout::page("Create a key", Some(&Caller::Admin), content)
}

/// The page that shows a key's text, this once.
pub fn text_page(title: &str, heading: &str, issued: &Issued) -> Markup {
    let content = html! {
        h1 { (heading) }
        div .box {
            p { "Keep it now: it is not shown again." }
            pre .key { code #new-key { (issued.text.expose_secret()) } }
            p { a .button href={ "/dashboard/" (issued.key.customer_id) } { "Done" } }
        }
    };
    layout::page(title, Some(&Caller::Admin), content)
}
