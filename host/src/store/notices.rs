//! Notices for the operator's webhook, written in the transaction of the change
//! that they tell of.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::db::{Transaction, query};
use super::ledger::{NEAR_PERCENT, Near, Nearly, budgets};
use super::{Error, Store, from_millis, millis};
use crate::clock::rfc3339;

/// A notice to be sent.
#[derive(Clone, Debug)]
pub struct Notice {
    /// Its number.
    pub id: i64,
    /// What makes it one and the same however often it is sent.
    pub key: String,
    /// JSON; the same at each attempt.
    pub body: String,
    /// How often sending it was begun.
    pub attempts: u32,
}

/// Writes that something's end is near: of a budget once in its period as it is set, and at
/// each change that makes it so, of credit once until there is more.
pub(super) async fn write(
    transaction: &mut Transaction<'_>,
    near: &Near,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let (key, kind, data) = match near {
        Near::Budget(near) => of_budget(near),
        Near::Credit(near) => of_credit(near),
    };
    let body = json!({ "type": kind, "timestamp": rfc3339(at), "data": data });
    query(
        "INSERT INTO notices (key, body, created_at, next_attempt_at) VALUES ($1, $2, $3, $3) \
         ON CONFLICT (key) DO NOTHING",
    )
    .bind(key)
    .bind(body.to_string())
    .bind(millis(at))
    .execute(transaction)
    .await?;
    Ok(())
}

fn of_budget(near: &budgets::Near) -> (String, &'static str, Value) {
    let (spending, start) = (near.spending, near.spending.start);
    let has_end = spending.budget.period.end(start).is_some();
    let (amount, percent) = (spending.budget.amount.0, spending.budget.near_percent);
    let (id, start_ms) = (near.budget_id, millis(start));
    let mut key = format!("msg_budget_{id}_{start_ms}_{amount}_{percent}");
    if let Some(changed_at) = near.changed_at {
        // it may have been as it is now before, and told of
        key = format!("{key}_{}", millis(changed_at));
    }
    let data = json!({
            "customer_id": spending.owner.customer_id,
            "api_key_id": spending.owner.api_key_id,
            "period": spending.budget.period,
            "period_start": has_end.then(|| rfc3339(start)),
            "amount": spending.budget.amount,
            "near_percent": spending.budget.near_percent,
            "spent": spending.spent,
    });
    (key, "budget.near", data)
}

fn of_credit(near: &Nearly) -> (String, &'static str, Value) {
    let data = json!({
        "customer_id": near.customer_id,
        "balance": near.balance,
        "credit_limit": near.limit,
        "near_percent": NEAR_PERCENT,
    });
    let key = format!("msg_credit_{}", near.request_id);
    (key, "credit.near", data)
}

impl Store {
    /// Waits until there is something new to be sent, since the last time.
    pub async fn notices_changed(&self) {
        self.notices.changed().await;
    }

    /// The notice that has waited longest to be sent.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn due_notice(&self, now: OffsetDateTime) -> Result<Option<Notice>, Error> {
        let row = query(
            "SELECT id, key, body, attempts FROM notices WHERE next_attempt_at <= $1 \
             ORDER BY next_attempt_at, id LIMIT 1",
        )
        .bind(millis(now))
        .fetch_optional(&self.read)
        .await?;
        row.map(|row| {
            Ok(Notice {
                id: row.try_get("id")?,
                key: row.try_get("key")?,
                body: row.try_get("body")?,
                attempts: row.try_get("attempts")?,
            })
        })
        .transpose()
    }

    /// When there will be something to send.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn notice_due_at(&self) -> Result<Option<OffsetDateTime>, Error> {
        let row = query("SELECT min(next_attempt_at) AS at FROM notices")
            .fetch_one(&self.read)
            .await?;
        let at: Option<i64> = row.try_get("at")?;
        Ok(at.map(from_millis))
    }

    /// Writes that a notice is about to be sent, and when to send it again should
    /// nothing more be written about it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_notice(&self, id: i64, retry_at: OffsetDateTime) -> Result<(), Error> {
        query("UPDATE notices SET attempts = attempts + 1, next_attempt_at = $2 WHERE id = $1")
            .bind(id)
            .bind(millis(retry_at))
            .execute(&self.write)
            .await?;
        Ok(())
    }

    /// Writes what came of sending a notice: nothing where it was delivered, or
    /// why it was not. It is sent again when that was written first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_notice(
        &self,
        id: i64,
        problem: Option<&str>,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let delivered_at = problem.is_none().then(|| millis(now));
        query(
            "UPDATE notices SET last_error = $2, delivered_at = $3, \
             next_attempt_at = CASE WHEN $3 IS NULL THEN next_attempt_at END WHERE id = $1",
        )
        .bind(id)
        .bind(problem)
        .bind(delivered_at)
        .execute(&self.write)
        .await?;
        Ok(())
    }
}
