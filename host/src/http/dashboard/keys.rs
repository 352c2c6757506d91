//! `/dashboard/{customer_id}/keys`: a customer's keys, and for the operator
//! the forms to switch and delete them. Creating one is in `new_key.rs`, rotating
//! in `rotate.rs`.

use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::response::Redirect;
use maud::{Markup, html};
use secrecy::ExposeSecret;
use serde::Deserialize;
use time::OffsetDateTime;

use super::figures::time;
use super::form::Form;
use super::layout;
use super::session::AdminViewer;
use crate::http::AppState;
use crate::http::api::keys as api;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::keys::{Issued, prefix};
use crate::models::Live;
use crate::store::keys::{Key, Scope};

/// Most keys that are listed.
pub const MOST: u32 = 1000;

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

/// The table of a customer's keys, with forms for whoever may change them.
pub fn table(
    keys: &[Key],
    live: &Live,
    now: OffsetDateTime,
    customer_id: i64,
    may_change: bool,
) -> Markup {
    html! {
        section #keys {
            h2 { "API keys" }
            @if keys.is_empty() {
                p .note { "No key." }
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
                        @if may_change { th {} }
                    } }
                    tbody { @for key in keys { (row(key, live, now, may_change)) } }
                } }
            }
            @if keys.len() >= MOST as usize {
                p .note { "These are the first " (MOST) "; " code { "GET /api/keys" } " lists all." }
            }
            @if may_change {
                p { a .button href={ "/dashboard/" (customer_id) "/keys/new" } { "Create a key" } }
            }
        }
    }
}

fn row(key: &Key, live: &Live, now: OffsetDateTime, may_change: bool) -> Markup {
    let path = path(key);
    let change = if key.is_active { "Turn off" } else { "Turn on" };
    let state = match key.is_active {
        true if key.expires_at.is_some_and(|end| end <= now) => "expired",
        true => "active",
        false => "off",
    };
    let replaced = key.replaced.as_ref();
    let replaced = replaced.filter(|replaced| replaced.works(now));
    html! {
        tr {
            td { (key.name) }
            td {
                code { (prefix(&key.public_id)) "_…" }
                @if let Some(replaced) = replaced {
                    p .note {
                        code { (prefix(&replaced.public_id)) "_…" }
                        @if let Some(until) = replaced.until { " works until " (time(until)) }
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
            td .figure {
                (key.rate_limit)
                @if let Some(tokens) = key.limits.tokens {
                    p .note { (tokens) " tokens" }
                }
                @if let Some(concurrent) = key.limits.concurrent {
                    p .note { (concurrent) " at once" }
                }
            }
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
            @if may_change {
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

/// `POST /dashboard/{customer_id}/keys/{key_id}/active`: turns it on or off.
pub async fn set_active(
    AdminViewer(actor): AdminViewer,
    State(AppState { store, clock, .. }): State<AppState>,
    OfCustomer(key): OfCustomer,
    Form(form): Form<Active>,
) -> Result<Redirect, ApiError> {
    if key.is_active != form.active {
        // not the other way round, or it would be on again where somebody else has just turned it off
        let toggled = store.toggle_key(key.id, Some(form.active), &actor, clock.now());
        toggled.await.map_err(api::missing)?;
    }
    Ok(back(key.customer_id))
}

/// `GET /dashboard/{customer_id}/keys/{key_id}/delete`: asks first.
pub async fn confirm_delete(_: AdminViewer, OfCustomer(key): OfCustomer) -> Markup {
    let form = html! {
        h1 { "Delete " (key.name) "?" }
        form .box method="post" {
            p { "The key " code { (prefix(&key.public_id)) "_…" } " opens nothing any more, for good." }
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

fn back(customer_id: i64) -> Redirect {
    Redirect::to(&format!("/dashboard/{customer_id}#keys"))
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
