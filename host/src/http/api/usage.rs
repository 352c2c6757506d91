//! `GET /usage` and `GET /usage/requests`

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{PageOf, limit, rfc3339};
use crate::http::AppState;
use crate::http::auth::UsageReader;
use crate::http::error::ApiError;
use crate::http::json::{Query, time};
use crate::money::{NanoDollars, Price};
use crate::store::usage::{Span, Totals, UsageRow};

/// Which sums.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Which {
    /// Those of this customer; of all for the operator.
    customer_id: Option<i64>,
    /// Of requests that were admitted since this time.
    from: Option<String>,
    /// Of those that were admitted before this time.
    to: Option<String>,
}

impl Which {
    fn span(&self) -> Result<Span, ApiError> {
        let bound = |param, text: &Option<String>| {
            let bound = text.as_deref().map(|text| whole_hour(param, text));
            bound.transpose()
        };
        let (from, to) = (bound("from", &self.from)?, bound("to", &self.to)?);
        if from.zip(to).is_some_and(|(from, to)| from >= to) {
            return Err(ApiError::invalid("to", "must be later than `from`"));
        }
        Ok(Span { from, to })
    }
}

/// A time that sums begin or end at.
fn whole_hour(param: &str, text: &str) -> Result<OffsetDateTime, ApiError> {
    let time = time(param, text)?;
    if (time.minute(), time.second(), time.nanosecond()) == (0, 0, 0) {
        return Ok(time);
    }
    let message = "must be a whole hour in UTC, such as 2027-01-31T12:00:00Z";
    Err(ApiError::invalid(param, message))
}

#[derive(Debug, Serialize)]
struct ByModel {
    model_id: i64,
    model: String,
    #[serde(flatten)]
    totals: Totals,
}

#[derive(Debug, Serialize)]
struct Row {
    id: i64,
    request_id: String,
    customer_id: i64,
    api_key_id: i64,
    model_id: i64,
    model: String,
    plugin_digest: Option<String>,
    prompt_tokens: u32,
    completion_tokens: u32,
    tokens_used: u32,
    tokens_estimated: bool,
    /// US dollars per million tokens, as they were then.
    price_per_million: Price,
    cost: NanoDollars,
    status: &'static str,
    error_code: Option<String>,
    latency_ms: i64,
    created_at: String,
}

impl From<UsageRow> for Row {
    fn from(UsageRow { id, usage }: UsageRow) -> Self {
        Self {
            id,
            request_id: usage.request_id,
            customer_id: usage.customer_id,
            api_key_id: usage.api_key_id,
            model_id: usage.model_id,
            model: usage.model_name,
            plugin_digest: usage.plugin_digest,
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            tokens_used: usage.prompt_tokens.saturating_add(usage.completion_tokens),
            tokens_estimated: usage.tokens_estimated,
            price_per_million: usage.price,
            cost: usage.cost,
            status: usage.status.as_str(),
            error_code: usage.error_code,
            latency_ms: usage.latency_ms,
            created_at: rfc3339(usage.created_at),
        }
    }
}

/// `GET /usage`: sums, of one customer or for the operator of all, of all time or of some
/// hours.
pub async fn totals(
    UsageReader(caller): UsageReader,
    State(AppState { store, .. }): State<AppState>,
    Query(which): Query<Which>,
) -> Result<Json<Value>, ApiError> {
    let customer_id = caller.scope(which.customer_id)?;
    let by_model = store.usage_by_model(customer_id, which.span()?).await?;
    let all: Totals = by_model.iter().map(|model| &model.totals).sum();
    let by_model: Vec<_> = by_model
        .into_iter()
        .map(|model| ByModel {
            model_id: model.model_id,
            model: model.model_name,
            totals: model.totals,
        })
        .collect();
    Ok(Json(json!({ "totals": all, "by_model": by_model })))
}

/// `GET /usage/requests`: rows, oldest first; go on with `after` the last `id`.
pub async fn requests(
    UsageReader(caller): UsageReader,
    State(AppState { store, .. }): State<AppState>,
    Query(page): Query<PageOf>,
) -> Result<Json<Value>, ApiError> {
    let customer_id = caller.scope(page.customer_id)?;
    let rows = store
        .usage_rows(customer_id, page.after, limit(page.limit)?)
        .await?;
    let rows: Vec<_> = rows.into_iter().map(Row::from).collect();
    Ok(Json(json!({ "requests": rows })))
}
