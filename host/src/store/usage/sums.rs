//! Sums of usage, by hour and of all time, for each key and model. They are changed
//! in the transaction of the rows that they are of; see [`Store::audit`].

use std::collections::{BTreeMap, HashMap};
use std::iter;
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

/// Of which time sums are, in whole hours; without bounds it is all time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// When it begins.
    pub from: Option<OffsetDateTime>,
    /// When it is over.
    pub to: Option<OffsetDateTime>,
}

impl Span {
    /// The rows to add up, with `$1` and `$2` for the bounds.
    fn rows(self) -> &'static str {
        match (self.from, self.to) {
            // of years of hours there are too many
            (None, None) => "period = 'total' AND start >= $1 AND start < $2",
            _ => "period = 'hour' AND start >= $1 AND start < $2",
        }
    }

    /// A query with this text, and the bounds for [`Span::rows`].
    fn query(self, sql: String) -> Query<'static> {
        query(AssertSqlSafe(sql))
            .bind(self.from.map_or(0, millis))
            .bind(self.to.map_or(i64::MAX, millis))
    }
}

/// Sums of usage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
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

impl<'a> iter::Sum<&'a Totals> for Totals {
    fn sum<I: Iterator<Item = &'a Totals>>(all: I) -> Self {
        all.fold(Self::default(), |mut sum, totals| {
            sum.add(totals);
            sum
        })
    }
}

/// The columns of [`Totals`]. PostgreSQL's sums are of a wider type, and of no row there
/// is none.
const TOTALS: &str = "CAST(coalesce(sum(requests), 0) AS BIGINT) AS requests, \
    CAST(coalesce(sum(prompt_tokens), 0) AS BIGINT) AS prompt_tokens, \
    CAST(coalesce(sum(completion_tokens), 0) AS BIGINT) AS completion_tokens, \
    CAST(coalesce(sum(cost), 0) AS BIGINT) AS cost";

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
    /// Sums of a time by model, of one customer or of all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage_by_model(
        &self,
        customer_id: Option<i64>,
        span: Span,
    ) -> Result<Vec<ModelTotals>, Error> {
        let sums = |customers| {
            span.query(format!(
                "SELECT model_id, model_name, {TOTALS} FROM usage_sums WHERE {} \
                 AND customer_id {customers} \
                 GROUP BY model_id, model_name ORDER BY model_id, max(latest)",
                span.rows()
            ))
        };
        let rows = match customer_id {
            Some(id) => sums("= $3").bind(id),
            // one by one, for the sake of a file's index, in which they come before the hours
            None => sums("IN (SELECT id FROM customers)"),
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

    /// Sums of a time by customer, of those with these numbers who were deleted or were not;
    /// one that used nothing has none.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage_by_customer(
        &self,
        customers: RangeInclusive<i64>,
        are_deleted: bool,
        span: Span,
    ) -> Result<HashMap<i64, Totals>, Error> {
        let sql = format!(
            "SELECT customer_id, {TOTALS} FROM usage_sums WHERE {} AND customer_id IN \
             (SELECT id FROM customers WHERE id BETWEEN $3 AND $4 \
             AND (deleted_at IS NOT NULL) = $5) GROUP BY customer_id",
            span.rows()
        );
        let rows = span
            .query(sql)
            .bind(customers.start())
            .bind(customers.end())
            .bind(are_deleted)
            .fetch_all(self.up_to_date().await?)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get("customer_id")?, totals(row)?)))
            .collect()
    }

    /// Sums of a time of all deleted customers together.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn usage_of_deleted(&self, span: Span) -> Result<Totals, Error> {
        let sql = format!(
            "SELECT {TOTALS} FROM usage_sums WHERE {} AND customer_id IN \
             (SELECT id FROM customers WHERE deleted_at IS NOT NULL)",
            span.rows()
        );
        let rows = span.query(sql).fetch_one(self.up_to_date().await?);
        totals(&rows.await?)
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
    use crate::store::audit::Actor;
    use crate::store::scratch::{Scratch, create_customer, create_key};
    use crate::store::usage::Status;

    /// A request with a token each way, for a nano-dollar.
    fn request(of: (i64, i64), model_name: &str, created_at: OffsetDateTime) -> Arc<Usage> {
        Arc::new(Usage {
            request_id: format!("{model_name} {created_at}"),
            customer_id: of.0,
            api_key_id: of.1,
            model_id: 1,
            model_name: model_name.to_owned(),
            plugin_digest: None,
            prompt_tokens: 1,
            completion_tokens: 1,
            tokens_estimated: false,
            price: Price::default(),
            cost: NanoDollars(1),
            status: Status::Ok,
            error_code: None,
            latency_ms: 0,
            created_at,
        })
    }

    async fn post(store: &Store, batch: &[Arc<Usage>]) {
        let mut transaction = store.write.begin().await.expect("a transaction");
        let added = add(&transaction, batch).execute(&mut transaction).await;
        added.expect("added");
        transaction.commit().await.expect("committed");
    }

    /// A customer with a key.
    async fn customer(store: &Store, number: i64, now: OffsetDateTime) -> (i64, i64) {
        let id = create_customer(store, number, None, now).await;
        (id, create_key(store, id, format!("k{number}"), now).await)
    }

    /// A file, and a database on a server if there is one.
    fn both() -> impl Iterator<Item = Scratch> {
        [Some(Scratch::file()), Scratch::server()]
            .into_iter()
            .flatten()
    }

    #[tokio::test]
    async fn the_name_of_a_model_is_that_of_the_latest_request_whichever_ends_last() {
        let scratch = Scratch::new();
        let store = scratch.open(Audience::default()).await;
        let now = datetime!(2026-01-31 12:00 UTC);
        let of = customer(&store, 1, now).await;
        let request = |name, seconds| request(of, name, now + time::Duration::seconds(seconds));
        for (batch, name) in [
            (vec![request("third", 3), request("first", 1)], "third"),
            (vec![request("second", 2)], "third"),
            (vec![request("fourth", 4)], "fourth"),
        ] {
            post(&store, &batch).await;
            let sums = store.usage_by_model(None, Span::default()).await;
            let sums = sums.expect("sums");
            assert_eq!((sums.len(), sums[0].model_name.as_str()), (1, name));
        }
    }

    #[tokio::test]
    async fn hours_are_grouped_into_days_by_utc() {
        let times = [
            datetime!(2026-02-27 23:59:59.999 UTC),
            datetime!(2026-02-28 00:00 UTC),
            datetime!(2026-02-28 11:59:59.999 UTC),
            datetime!(2026-02-28 12:00 UTC),
            datetime!(2026-02-28 23:59:59.999 UTC),
            datetime!(2026-03-01 00:00 UTC),
            datetime!(2026-03-03 01:30 +02:00),
        ];
        let since = datetime!(2026-02-28 00:00 UTC);
        let day = 24 * HOUR;
        for scratch in both() {
            let store = scratch.open(Audience::default()).await;
            let (one, two) = (
                customer(&store, 1, since).await,
                customer(&store, 2, since).await,
            );
            let requests = times.map(|at| request(one, "m", at));
            post(&store, &requests).await;
            post(&store, &[request(two, "m", times[1])]).await;
            for (period, expected) in [
                (
                    day,
                    vec![
                        (datetime!(2026-02-28 00:00 UTC), 4),
                        (datetime!(2026-03-01 00:00 UTC), 1),
                        (datetime!(2026-03-02 00:00 UTC), 1),
                    ],
                ),
                (
                    HOUR,
                    vec![
                        (datetime!(2026-02-28 00:00 UTC), 1),
                        (datetime!(2026-02-28 11:00 UTC), 1),
                        (datetime!(2026-02-28 12:00 UTC), 1),
                        (datetime!(2026-02-28 23:00 UTC), 1),
                        (datetime!(2026-03-01 00:00 UTC), 1),
                        (datetime!(2026-03-02 23:00 UTC), 1),
                    ],
                ),
            ] {
                let found = store.usage_over_time(one.0, since, period).await;
                let found: Vec<_> = found.expect("sums").iter().map(shown).collect();
                assert_eq!(found, expected);
            }
        }
    }

    /// When a period began and its requests, each of which has a token each way.
    fn shown(PeriodTotals { start, totals }: &PeriodTotals) -> (OffsetDateTime, i64) {
        let count = totals.requests;
        assert_eq!(*totals, sums_of(count));
        (*start, count)
    }

    fn sums_of(requests: i64) -> Totals {
        Totals {
            requests,
            prompt_tokens: requests,
            completion_tokens: requests,
            cost: NanoDollars(requests),
        }
    }

    #[tokio::test]
    async fn a_time_has_its_beginning_and_not_its_end() {
        let times = [
            datetime!(2026-01-31 23:59:59.999 UTC),
            datetime!(2026-02-01 00:00 UTC),
            datetime!(2026-02-28 23:59:59.999 UTC),
            datetime!(2026-03-01 00:00 UTC),
        ];
        let (from, to) = (Some(times[1]), Some(times[3]));
        for scratch in both() {
            let store = scratch.open(Audience::default()).await;
            let one = customer(&store, 1, times[0]).await;
            let two = customer(&store, 2, times[0]).await;
            post(&store, &times.map(|at| request(one, "m", at))).await;
            post(&store, &[request(two, "m", times[2])]).await;
            let deleted = store.delete_customer(two.0, &Actor::Server, times[3]).await;
            deleted.expect("deleted");
            for (span, of_one, of_two) in [
                (Span { from, to }, 2, 1),
                (Span { from, to: None }, 3, 1),
                (Span { from: None, to }, 3, 1),
                (Span { from: to, to: None }, 1, 0),
                (Span::default(), 4, 1),
            ] {
                let by_model = async |id| {
                    let sums = store.usage_by_model(id, span).await.expect("sums");
                    sums.iter().map(|model| &model.totals).sum::<Totals>()
                };
                assert_eq!(by_model(Some(one.0)).await, sums_of(of_one));
                assert_eq!(by_model(Some(two.0)).await, sums_of(of_two));
                assert_eq!(by_model(None).await, sums_of(of_one + of_two));
                for (are_deleted, of, requests) in [(false, one, of_one), (true, two, of_two)] {
                    let both = one.0..=two.0;
                    let found = store.usage_by_customer(both, are_deleted, span).await;
                    let expected = (requests > 0).then(|| (of.0, sums_of(requests)));
                    assert_eq!(found.expect("sums"), expected.into_iter().collect());
                }
                let deleted = store.usage_of_deleted(span).await.expect("sums");
                assert_eq!(deleted, sums_of(of_two));
            }
        }
    }
}
