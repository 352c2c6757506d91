//! `/dashboard/{customer_id}/keys/{key_id}/rotate`: gives a key another text.

use axum::extract::State;
use maud::{Markup, html};
use serde::Deserialize;

use super::form::Form;
use super::keys::{OfCustomer, text_page};
use super::layout;
use super::session::AdminViewer;
use crate::http::AppState;
use crate::http::api::keys as api;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::keys::prefix;

/// How long the text that is replaced may work on, in seconds, for people.
const GRACES: [(u32, &str); 4] = [
    (0, "stops now"),
    (60 * 60, "works for another hour"),
    (api::DEFAULT_GRACE, "works for another day"),
    (7 * api::DEFAULT_GRACE, "works for another week"),
];

/// Form of `POST /dashboard/{customer_id}/keys/{key_id}/rotate`.
#[derive(Debug, Deserialize)]
pub struct Rotate {
    grace_seconds: u32,
}

/// `GET /dashboard/{customer_id}/keys/{key_id}/rotate`: asks first.
pub async fn ask(_: AdminViewer, OfCustomer(key): OfCustomer) -> Markup {
    let form = html! {
        h1 { "Rotate " (key.name) "?" }
        form .box method="post" {
            p { "A new key takes the place of " code { (prefix(&key.public_id)) "_…" } ". Its limits, models and usage stay." }
            @if key.replaced.is_some() {
                p { "What an earlier rotation replaced stops now." }
            }
            label for="grace_seconds" { "The key in use now" }
            select #grace_seconds name="grace_seconds" {
                @for (seconds, words) in GRACES {
                    option value=(seconds) selected[seconds == api::DEFAULT_GRACE] { (words) }
                }
            }
            button { "Rotate" }
            " " a href={ "/dashboard/" (key.customer_id) } { "Leave it" }
        }
    };
    layout::page("Rotate a key", Some(&Caller::Admin), form)
}

/// `POST /dashboard/{customer_id}/keys/{key_id}/rotate`: shows the new text, this once.
pub async fn create(
    AdminViewer(actor): AdminViewer,
    State(AppState { keys, .. }): State<AppState>,
    OfCustomer(key): OfCustomer,
    Form(form): Form<Rotate>,
) -> Result<Markup, ApiError> {
    let issued = keys.rotate(key.id, api::grace(form.grace_seconds)?, &actor);
    let issued = issued.await.map_err(api::not_rotated)?;
    let heading = format!("Key {}, rotated", issued.key.name);
    Ok(text_page("Key rotated", &heading, &issued))
}
