//! The dashboard: pages for people, written on the server. No script, nothing
//! from elsewhere, no state beside a signed cookie. A page is a file.

mod around;
mod audit;
mod chart;
mod customer;
mod figures;
mod form;
mod keys;
mod layout;
mod login;
mod money;
mod month;
mod new_key;
mod origin;
mod overview;
mod rotate;
mod session;
mod usage;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::header;
use axum::response::Redirect;
use axum::routing::{get, post};

use super::AppState;
use super::error::ApiError;

/// The pages.
pub fn router(state: &AppState) -> Router<AppState> {
    Router::new()
        .route("/", get(|| async { Redirect::to("/dashboard") }))
        .route("/login", get(login::show).post(login::sign_in))
        .route("/logout", post(login::sign_out))
        .route("/dashboard", get(overview::show))
        .route("/dashboard/style.css", get(style))
        .route("/dashboard/audit", get(audit::show))
        .route("/dashboard/{customer_id}", get(customer::show))
        .route("/dashboard/{customer_id}/keys", post(new_key::create))
        .route("/dashboard/{customer_id}/keys/new", get(new_key::form))
        .route(
            "/dashboard/{customer_id}/keys/{key_id}/active",
            post(keys::set_active),
        )
        .route(
            "/dashboard/{customer_id}/keys/{key_id}/rotate",
            get(rotate::ask).post(rotate::create),
        )
        .route(
            "/dashboard/{customer_id}/keys/{key_id}/delete",
            get(keys::confirm_delete).post(keys::delete),
        )
        // before the layer, so that this too becomes a page
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        // all other bodies are held to their limit by http/json.rs
        .layer(DefaultBodyLimit::max(form::LARGEST))
        .layer(axum::middleware::from_fn(around::wrap))
        .with_state(state.clone())
}

async fn style() -> impl axum::response::IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/css; charset=utf-8")];
    (kind, include_str!("style.css"))
}
