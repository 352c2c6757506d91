//! HTTP: the router as a table of contents. Each endpoint is a file.

mod api;
mod auth;
mod client;
mod dashboard;
mod envelope;
mod error;
mod json;
mod limits;
mod openai;
mod params;
mod respond;
mod room;
mod serve;
mod socket;
mod unread;
mod unwanted;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::{get, post};
use ipnet::IpNet;
use tower_http::catch_panic::CatchPanicLayer;

use crate::clock::Clock;
use crate::config::Requests;
use crate::generate::Generator;
use crate::keys::Keys;
use crate::reload;
use crate::store::Store;

use error::ApiError;

pub use room::room_for_connections;
pub use serve::serve;

/// What handlers work with; clones share everything.
#[derive(Clone, Debug)]
pub struct AppState {
    /// Lists and totals are read from here directly.
    pub store: Store,
    /// Issues and checks keys.
    pub keys: Keys,
    /// Answers requests to models.
    pub generator: Arc<Generator>,
    /// Reloads the configuration.
    pub reload: reload::Handle,
    /// What every request must keep to.
    pub requests: Arc<Requests>,
    /// Networks of proxies that are believed.
    pub trusted_proxies: Arc<[IpNet]>,
    /// The time.
    pub clock: Clock,
}

/// All endpoints.
pub fn router(state: AppState) -> Router {
    Router::new()
        // generating
        .route("/generate", post(api::generate::create))
        .route("/v1/completions", post(openai::completions::create))
        .route("/v1/chat/completions", post(openai::chat::create))
        // what there is
        .route("/models", get(api::models::list))
        .route("/v1/models", get(openai::models::list))
        .route("/v1/models/{*model}", get(openai::models::read))
        // who may
        .route(
            "/customers",
            post(api::customers::create).get(api::customers::list),
        )
        .route(
            "/customers/{customer_id}",
            get(api::customers::read)
                .patch(api::customers::change)
                .delete(api::customers::delete),
        )
        .route("/api/keys", post(api::keys::create).get(api::keys::list))
        .route(
            "/api/keys/{key_id}",
            get(api::keys::read)
                .patch(api::keys::change)
                .delete(api::keys::delete),
        )
        .route("/api/keys/{key_id}/toggle", post(api::keys::toggle))
        .route("/api/keys/{key_id}/rotate", post(api::keys::rotate))
        // what they may spend
        .route("/customers/{customer_id}/credit", post(api::credit::create))
        .route(
            "/customers/{customer_id}/transfers",
            get(api::credit::transfers),
        )
        .route(
            "/customers/{customer_id}/budgets",
            get(api::budgets::of_customer).put(api::budgets::replace_of_customer),
        )
        .route(
            "/api/keys/{key_id}/budgets",
            get(api::budgets::of_key).put(api::budgets::replace_of_key),
        )
        // what was used
        .route("/usage", get(api::usage::totals))
        .route("/usage/requests", get(api::usage::requests))
        // running it
        .route("/admin/reload", post(api::reload::create))
        .route("/admin/audit", get(api::audit::list))
        .route("/health", get(api::health::alive))
        .route("/ready", get(api::health::ready))
        .merge(dashboard::router(&state))
        .method_not_allowed_fallback(|| async { ApiError::method_not_allowed() })
        .fallback(|| async { ApiError::no_such_endpoint() })
        // json.rs holds bodies to the limit of the configuration
        .layer(DefaultBodyLimit::disable())
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(axum::middleware::from_fn(envelope::wrap))
        .with_state(state)
}
