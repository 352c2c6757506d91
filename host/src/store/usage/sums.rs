//! Sums of usage, by hour and of all time, for each key and model. They are changed
//! in the transaction of the rows that they are of; see [`Store::audit`].

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::Serialize;
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;

use super::Usage;
use crate::money::NanoDollars;
use crate::store::db::{Query, Row, Transaction, query};
use crate::store::{Error, Store, from_millis, millis};

/// Milliseconds of the time that a row of `usage_sums` is about.
const HOUR: i64 = 60 * 60 * 1000;

/// Sums of usage.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    /// Requests, however they ended.
    pub requests: i64,
    /// Tokens of prompts.
    pub prompt_tokens: i64,
    /// Tokens of answers.
    pub completion_tokens: i64,
    /// What they cost.
    pub cost: NanoDollars,
}

/// Sums of usage of one model.
#[derive(Clone, Debug)]
pub struct ModelTotals {
    /// Number of the model.
    pub model_id: i64,
    /// Its latest name.
    pub model_name: String,
    /// The sums.
    pub totals: Totals,
}

/// Sums of usage of one period.
#[derive(Clone, Debug)]
pub struct PeriodTotals {
    /// When it begins.
    pub start: OffsetDateTime,
    /// The sums.
    pub totals: Totals,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.cost.0 += other.cost.0;
    }
}

/// The columns of [`Totals`]. PostgreSQL's sums are of a wider type.
const TOTALS: &str = "CAST(sum(requests) AS BIGINT) AS requests, \
    CAST(sum(prompt_tokens) AS BIGINT) AS prompt_tokens, \
    CAST(sum(completion_tokens) AS BIGINT) AS completion_tokens, \
    CAST(sum(cost) AS BIGINT) AS cost";

fn totals(row: &Row) -> Result<Totals, Error> {
    Ok(Totals {
        requests: row.try_get("requests")?,
        prompt_tokens: row.try_get("prompt_tokens")?,
        completion_tokens: row.try_get("completion_tokens")?,
        cost: NanoDollars(row.try_get("cost")?),
    })
}

/// What a row is a sum of.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Of {
    period: &'static str,
    customer_id: i64,
    start: i64,
    api_key_id: i64,
    model_id: i64,
}

/// A row, or what is added to it.
#[derive(Serialize)]
struct Sum<'a> {
    #[serde(flatten)]
    of: Of,
    requests: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    cost: i64,
    model_name: &'a str,
    latest: i64,
}

const SUM: &str = "period TEXT, customer_id BIGINT, start BIGINT, api_key_id BIGINT, \
    model_id BIGINT, requests BIGINT, prompt_tokens BIGINT, completion_tokens BIGINT, \
    cost BIGINT, model_name TEXT, latest BIGINT";

/// Adds rows of usage to all sums that they are part of. They come as requests end: the
/// latest of a sum, by when they were admitted, may be there before.
pub fn add(transaction: &Transaction<'_>, usage: &[Arc<Usage>]) -> Query<'static> {
    let mut sums = BTreeMap::new();
    for usage in usage {
        let at = millis(usage.created_at);
        for (period, start) in [("hour", at / HOUR * HOUR), ("total", 0)] {
            let of = Of {
                period,
                customer_id: usage.customer_id,
                start,
                api_key_id: usage.api_key_id,
                model_id: usage.model_id,
            };
            let sum = sums.entry(of).or_insert(Sum {
                of,
                requests: 0,
                prompt_tokens: 0,
                completion_tokens: 0,
                cost: 0,
                model_name: &usage.model_name,
                latest: at,
            });
            sum.requests += 1;
            sum.prompt_tokens += i64::from(usage.prompt_tokens);
            sum.completion_tokens += i64::from(usage.completion_tokens);
            sum.cost += usage.cost.0;
            if at >= sum.latest {
                (sum.model_name, sum.latest) = (&usage.model_name, at);
            }
        }
    }
    let sums: Vec<_> = sums.into_values().collect();
    let then = "ON CONFLICT (period, customer_id, start, api_key_id, model_id) DO UPDATE SET \
        requests = usage_sums.requests + excluded.requests, \
        prompt_tokens = usage_sums.prompt_tokens + excluded.prompt_tokens, \
        completion_tokens = usage_sums.completion_tokens + excluded.completion_tokens, \
        cost = usage_sums.cost + excluded.cost, \
        model_name = CASE WHEN usage_sums.latest > excluded.latest \
        THEN usage_sums.model_name ELSE excluded.model_name END, \
        latest = CASE WHEN usage_sums.latest > excluded.latest \
        THEN usage_sums.latest ELSE excluded.latest END";
    transaction.insert_rows("usage_sums", SUM, &sums, then)
}

impl Store {
    /// Sums by model, of one customer or of all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage_by_model(
        &self,
        customer_id: Option<i64>,
    ) -> Result<Vec<ModelTotals>, Error> {
        let sums = |condition| {
            format!(
                "SELECT model_id, model_name, {TOTALS} FROM usage_sums WHERE period = 'total' \
                 {condition} GROUP BY model_id, model_name ORDER BY model_id, max(latest)"
            )
        };
        let rows = match customer_id {
            Some(id) => query(AssertSqlSafe(sums("AND customer_id = $1"))).bind(id),
            None => query(AssertSqlSafe(sums(""))),
        };
        let mut by_model: Vec<ModelTotals> = Vec::new();
        for row in rows.fetch_all(self.up_to_date().await?).await? {
            let (model_id, model_name) = (row.try_get("model_id")?, row.try_get("model_name")?);
            match by_model.last_mut() {
                // a later name of the same
                Some(last) if last.model_id == model_id => {
                    last.model_name = model_name;
                    last.totals.add(&totals(&row)?);
                }
                _ => by_model.push(ModelTotals {
                    model_id,
                    model_name,
                    totals: totals(&row)?,
                }),
            }
        }
        Ok(by_model)
    }

    /// Sums by customer, of those with these numbers; one that used nothing has none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage_by_customer(
        &self,
        customers: RangeInclusive<i64>,
    ) -> Result<HashMap<i64, Totals>, Error> {
        let sql = format!(
            "SELECT customer_id, {TOTALS} FROM usage_sums \
             WHERE period = 'total' AND customer_id BETWEEN $1 AND $2 GROUP BY customer_id"
        );
        let rows = query(AssertSqlSafe(sql))
            .bind(customers.start())
            .bind(customers.end())
            .fetch_all(self.up_to_date().await?)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("customer_id")?, totals(row)?)))
            .collect()
    }

    /// Sums of a customer's usage since `since`, a whole hour, by periods of
    /// `period_ms` milliseconds, whole hours too; periods without a request are
    /// left out.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage_over_time(
        &self,
        customer_id: i64,
        since: OffsetDateTime,
        period_ms: i64,
    ) -> Result<Vec<PeriodTotals>, Error> {
        let sql = format!(
            "SELECT start / $3 * $3 AS begun, {TOTALS} FROM usage_sums \
             WHERE period = 'hour' AND customer_id = $1 AND start >= $2 GROUP BY 1 ORDER BY 1"
        );
        let rows = query(AssertSqlSafe(sql))
            .bind(customer_id)
            .bind(millis(since))
            .bind(period_ms)
            .fetch_all(self.up_to_date().await?)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(PeriodTotals {
                    start: from_millis(row.try_get("begun")?),
                    totals: totals(row)?,
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::money::Price;
    use crate::store::Audience;
    use crate::store::scratch::{Scratch, create_customer, create_key};
    use crate::store::usage::Status;

    #[tokio::test]
    async fn the_name_of_a_model_is_that_of_the_latest_request_whichever_ends_last() {
        let scratch = Scratch::new();
        let store = scratch.open(Audience::default()).await;
        let now = datetime!(2026-01-31 12:00 UTC);
        let customer_id = create_customer(&store, 1, None, now).await;
        let api_key_id = create_key(&store, customer_id, "k".into(), now).await;
        let request = |model_name: &str, seconds| {
            Arc::new(Usage {
                request_id: model_name.to_owned(),
                customer_id,
                api_key_id,
                model_id: 1,
                model_name: model_name.to_owned(),
                plugin_digest: None,
                prompt_tokens: 1,
                completion_tokens: 1,
                tokens_estimated: false,
                price: Price::default(),
                cost: NanoDollars(0),
                status: Status::Ok,
                error_code: None,
                latency_ms: 0,
                created_at: now + time::Duration::seconds(seconds),
            })
        };
        for (batch, name) in [
            (vec![request("third", 3), request("first", 1)], "third"),
            (vec![request("second", 2)], "third"),
            (vec![request("fourth", 4)], "fourth"),
        ] {
            let mut transaction = store.write.begin().await.expect("a transaction");
            let added = add(&transaction, &batch).execute(&mut transaction).await;
            added.expect("added");
            transaction.commit().await.expect("committed");
            let sums = store.usage_by_model(None).await.expect("sums");
            assert_eq!((sums.len(), sums[0].model_name.as_str()), (1, name));
        }
    }
}
