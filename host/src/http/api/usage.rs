//! `GET /usage` and `GET /usage/requests`

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{PageOf, limit, rfc3339};
use crate::http::AppState;
use crate::http::auth::UsageReader;
use crate::http::error::ApiError;
use crate::http::json::Query;
use crate::money::NanoDollars;
use crate::store::usage::{ModelTotals, Totals, UsageRow};

/// Which usage is summed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filter {
    /// The customer whose it is; all for the operator.
    customer_id: Option<i64>,
}

#[derive(Debug, Default, Serialize)]
struct Sums {
    requests: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    cost: NanoDollars,
}

impl From<&Totals> for Sums {
    fn from(totals: &Totals) -> Self {
        Self {
            requests: totals.requests,
            prompt_tokens: totals.prompt_tokens,
            completion_tokens: totals.completion_tokens,
            cost: totals.cost,
        }
    }
}

#[derive(Debug, Serialize)]
struct ByModel {
    model_id: i64,
    model: String,
    #[serde(flatten)]
    sums: Sums,
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
            cost: usage.cost,
            status: usage.status.as_str(),
            error_code: usage.error_code,
            latency_ms: usage.latency_ms,
            created_at: rfc3339(usage.created_at),
        }
    }
}

/// `GET /usage`: sums, of one customer or for the operator of all.
pub async fn totals(
    UsageReader(caller): UsageReader,
    State(AppState { store, .. }): State<AppState>,
    Query(filter): Query<Filter>,
) -> Result<Json<Value>, ApiError> {
    let by_model = store
        .usage_by_model(caller.scope(filter.customer_id)?)
        .await?;
    let all = sum(&by_model);
    let by_model: Vec<_> = by_model
        .into_iter()
        .map(|model| ByModel {
            model_id: model.model_id,
            sums: Sums::from(&model.totals),
            model: model.model_name,
        })
        .collect();
    Ok(Json(
        json!({ "totals": Sums::from(&all), "by_model": by_model }),
    ))
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

/// The sums of all models together.
pub fn sum(by_model: &[ModelTotals]) -> Totals {
    by_model
        .iter()
        .fold(Totals::default(), |sum, ModelTotals { totals, .. }| {
            Totals {
                requests: sum.requests + totals.requests,
                prompt_tokens: sum.prompt_tokens + totals.prompt_tokens,
                completion_tokens: sum.completion_tokens + totals.completion_tokens,
                cost: NanoDollars(sum.cost.0 + totals.cost.0),
            }
        })
}
