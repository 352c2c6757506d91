//! `GET /admin/audit`

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{limit, rfc3339};
use crate::http::AppState;
use crate::http::auth::Admin;
use crate::http::error::ApiError;
use crate::http::json::{Query, line, time};
use crate::store::audit::Recorded;

/// Which acts.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// On this object alone, such as `key/7`.
    object: Option<String>,
    /// Since this time.
    since: Option<String>,
    /// After the act of this number.
    after: i64,
    /// At most so many.
    limit: Option<u32>,
}

/// An act as shown.
#[derive(Debug, Serialize)]
struct Shown {
    id: i64,
    at: String,
    actor: String,
    action: String,
    object: String,
    before: Option<Value>,
    after: Option<Value>,
    request_id: Option<String>,
    client: Option<String>,
}

impl From<Recorded> for Shown {
    fn from(act: Recorded) -> Self {
        Self {
            id: act.id,
            at: rfc3339(act.at),
            actor: act.actor,
            action: act.action,
            object: act.object,
            before: act.before,
            after: act.after,
            request_id: act.request_id,
            client: act.client,
        }
    }
}

/// `GET /admin/audit`: what was done, oldest first; go on with `after` the last
/// `id`.
pub async fn list(
    _: Admin,
    State(AppState { store, .. }): State<AppState>,
    Query(filter): Query<Filter>,
) -> Result<Json<Value>, ApiError> {
    let since = filter.since.as_deref().map(|text| time("since", text));
    let object = filter
        .object
        .map(|text| line("object", &text))
        .transpose()?;
    let (object, limit) = (object.as_deref(), limit(filter.limit)?);
    let acts = store.acts(object, since.transpose()?, filter.after, limit);
    let acts: Vec<_> = acts.await?.into_iter().map(Shown::from).collect();
    Ok(Json(json!({ "acts": acts })))
}
