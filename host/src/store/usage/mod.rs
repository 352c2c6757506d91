//! Usage: one row for every request that the limits admitted, for as long as the
//! configuration says, and sums of them for ever.

mod retention;
mod sums;

use std::collections::HashSet;
use std::sync::Arc;

use serde::Serialize;
use time::OffsetDateTime;

use super::db::{Query, Row, Transaction, insert_from, query};
use super::lists::{self, List};
use super::{Error, Store, from_millis, millis};
use crate::money::{NanoDollars, Price};

pub(super) use retention::deleted_before;
pub(super) use sums::add as add_to_sums;
pub use sums::{ModelTotals, PeriodTotals, Span, Totals};

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Answered.
    Ok,
    /// Failed; costs nothing.
    Failed,
    /// The client left; costs what was produced until then.
    Cancelled,
}

impl Status {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "ok" => Ok(Self::Ok),
            "failed" => Ok(Self::Failed),
            "cancelled" => Ok(Self::Cancelled),
            other => Err(Error::Database(format!("unknown status {other:?}"))),
        }
    }
}

/// What one request used.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Id of the request, unique.
    pub request_id: String,
    /// Who pays.
    pub customer_id: i64,
    /// The key it came with.
    pub api_key_id: i64,
    /// Number of the model.
    pub model_id: i64,
    /// Name of the model at the time.
    pub model_name: String,
    /// SHA-256 of the component that answered, in hex.
    pub plugin_digest: Option<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Whether the tokens were guessed rather than counted.
    pub tokens_estimated: bool,
    /// Price at the time.
    pub price: Price,
    /// What it costs.
    pub cost: NanoDollars,
    /// How it ended.
    pub status: Status,
    /// Code of the error, when it failed.
    pub error_code: Option<String>,
    /// From the request's admission to its end, in milliseconds.
    pub latency_ms: i64,
    /// When it was admitted.
    pub created_at: OffsetDateTime,
}

/// A row of [`Usage`] and its place in the list.
#[derive(Clone, Debug)]
pub struct UsageRow {
    /// Place in the list, for [`Store::usage_rows`].
    pub id: i64,
    /// What the request used.
    pub usage: Usage,
}

/// A row with its key, as that is called now.
#[derive(Clone, Debug)]
pub struct WithKey {
    /// The row.
    pub row: UsageRow,
    /// Name of the key.
    pub key_name: String,
    /// The part of the key's text that names it.
    pub public_id: String,
}

fn usage_row(row: &Row) -> Result<UsageRow, Error> {
    let usage = Usage {
        request_id: row.try_get("request_id")?,
        customer_id: row.try_get("customer_id")?,
        api_key_id: row.try_get("api_key_id")?,
        model_id: row.try_get("model_id")?,
        model_name: row.try_get("model_name")?,
        plugin_digest: row.try_get("plugin_digest")?,
        prompt_tokens: row.try_get("prompt_tokens")?,
        completion_tokens: row.try_get("completion_tokens")?,
        tokens_estimated: row.try_get("tokens_estimated")?,
        price: Price {
            prompt: NanoDollars(row.try_get("prompt_price")?),
            completion: NanoDollars(row.try_get("completion_price")?),
        },
        cost: NanoDollars(row.try_get("cost")?),
        status: Status::parse(row.try_get("status")?)?,
        error_code: row.try_get("error_code")?,
        latency_ms: row.try_get("latency_ms")?,
        created_at: from_millis(row.try_get("created_at")?),
    };
    Ok(UsageRow {
        id: row.try_get("id")?,
        usage,
    })
}

/// A row as it is stored.
#[derive(Serialize)]
struct Stored<'a> {
    request_id: &'a str,
    customer_id: i64,
    api_key_id: i64,
    model_id: i64,
    model_name: &'a str,
    plugin_digest: Option<&'a str>,
    prompt_tokens: u32,
    completion_tokens: u32,
    tokens_estimated: bool,
    prompt_price: i64,
    completion_price: i64,
    cost: i64,
    status: &'static str,
    error_code: Option<&'a str>,
    latency_ms: i64,
    created_at: i64,
}

const STORED: &str = "request_id TEXT, customer_id BIGINT, api_key_id BIGINT, model_id BIGINT, \
    model_name TEXT, plugin_digest TEXT, prompt_tokens BIGINT, completion_tokens BIGINT, \
    tokens_estimated BOOLEAN, prompt_price BIGINT, completion_price BIGINT, cost BIGINT, \
    status TEXT, error_code TEXT, latency_ms BIGINT, created_at BIGINT";

impl<'a> From<&'a Usage> for Stored<'a> {
    fn from(usage: &'a Usage) -> Self {
        Self {
            request_id: &usage.request_id,
            customer_id: usage.customer_id,
            api_key_id: usage.api_key_id,
            model_id: usage.model_id,
            model_name: &usage.model_name,
            plugin_digest: usage.plugin_digest.as_deref(),
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            tokens_estimated: usage.tokens_estimated,
            prompt_price: usage.price.prompt.0,
            completion_price: usage.price.completion.0,
            cost: usage.cost.0,
            status: usage.status.as_str(),
            error_code: usage.error_code.as_deref(),
            latency_ms: usage.latency_ms,
            created_at: millis(usage.created_at),
        }
    }
}

/// Writes rows; gives the `request_id` of those that had none yet.
pub(super) fn insert_new(transaction: &Transaction<'_>, usage: &[Arc<Usage>]) -> Query<'static> {
    transaction.insert_rows("usage", STORED, &stored(usage), IF_NEW)
}

/// Writes rows to the journal.
pub(super) fn add_to_journal(
    transaction: &Transaction<'_>,
    usage: &[Arc<Usage>],
) -> Query<'static> {
    transaction.insert_rows("journal", STORED, &stored(usage), "")
}

/// Writes what is in the journal; fails where a request has a row.
pub(super) fn post() -> Query<'static> {
    insert_from("journal", "usage", STORED, "")
}

/// Writes what is in the journal; gives what [`insert_new`] does.
pub(super) fn post_new() -> Query<'static> {
    insert_from("journal", "usage", STORED, IF_NEW)
}

const IF_NEW: &str = "ON CONFLICT (request_id) DO NOTHING RETURNING request_id";

fn stored(usage: &[Arc<Usage>]) -> Vec<Stored<'_>> {
    usage.iter().map(|usage| Stored::from(&**usage)).collect()
}

/// What is in the journal, in order.
pub(super) async fn in_journal(
    transaction: &mut Transaction<'_>,
) -> Result<Vec<Arc<Usage>>, Error> {
    let rows = query("SELECT * FROM journal ORDER BY id").fetch_all(transaction);
    let rows = rows.await?;
    rows.iter()
        .map(|row| Ok(Arc::new(usage_row(row)?.usage)))
        .collect()
}

/// Whether a request is on record as failed with this code.
pub(super) async fn failed_by(
    transaction: &mut Transaction<'_>,
    usage: &Usage,
    code: &str,
) -> Result<bool, Error> {
    let found = query("SELECT id FROM usage WHERE request_id = $1 AND error_code = $2")
        .bind(&usage.request_id)
        .bind(code)
        .fetch_optional(transaction)
        .await?;
    Ok(found.is_some())
}

/// Ids of the requests for which [`insert_new`] or [`post_new`] wrote these rows.
pub(super) fn inserted(rows: &[Row]) -> Result<HashSet<String>, Error> {
    rows.iter()
        .map(|row| Ok(row.try_get("request_id")?))
        .collect()
}

impl Store {
    /// At most `limit` rows after the place `after`, oldest first, of one
    /// customer or of all. No row ever comes before one that was returned.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage_rows(
        &self,
        customer_id: Option<i64>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<UsageRow>, Error> {
        let read = self.up_to_date().await?;
        let before = lists::whole_before(read, List::Usage).await?;
        // two queries, for the sake of their indices
        let of_customer = "SELECT * FROM usage WHERE customer_id = $4 AND id > $1 AND id < $2 \
             ORDER BY id LIMIT $3";
        let of_all = "SELECT * FROM usage WHERE id > $1 AND id < $2 ORDER BY id LIMIT $3";
        let rows = query(if customer_id.is_some() {
            of_customer
        } else {
            of_all
        })
        .bind(after)
        .bind(before)
        .bind(limit);
        let rows = match customer_id {
            Some(customer_id) => rows.bind(customer_id),
            None => rows,
        };
        let rows = rows.fetch_all(read).await?;
        rows.iter().map(usage_row).collect()
    }

    /// The latest `limit` rows of a customer before the place `before`, newest first, with
    /// their keys, which may be deleted.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn latest_usage(
        &self,
        customer_id: i64,
        before: i64,
        limit: u32,
    ) -> Result<Vec<WithKey>, Error> {
        let rows = query(
            "SELECT usage.*, name, public_id FROM usage JOIN api_keys ON api_keys.id = api_key_id \
             WHERE usage.customer_id = $1 AND usage.id < $2 ORDER BY usage.id DESC LIMIT $3",
        )
        .bind(customer_id)
        .bind(before)
        .bind(limit)
        .fetch_all(self.up_to_date().await?)
        .await?;
        let with_key = |row| {
            Ok(WithKey {
                row: usage_row(row)?,
                key_name: row.try_get("name")?,
                public_id: row.try_get("public_id")?,
            })
        };
        rows.iter().map(with_key).collect()
    }
}
