//! The dashboard: pages for people.

use axum::Router;

use super::AppState;

/// The pages.
pub fn router(_state: &AppState) -> Router<AppState> {
    Router::new()
}
