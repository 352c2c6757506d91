//! Credit: what the operator books for a customer, and all that was booked.

use serde_json::json;
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;

use super::PAYMENTS;
use crate::money::NanoDollars;
use crate::store::audit::{self, Act, Actor, Object};
use crate::store::db::{Row, Transaction, query};
use crate::store::{Error, Store, from_millis, millis};

/// The part of a customer's credit, in percent, from which its end is near.
pub const NEAR_PERCENT: i64 = 80;

/// What a transfer is booked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A request.
    Usage,
    /// Money of the customer's.
    TopUp,
    /// Money that is taken back.
    Correction,
}

impl Reason {
    /// As stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::TopUp => "top_up",
            Self::Correction => "correction",
        }
    }

    fn parse(text: &str) -> Result<Self, Error> {
        match text {
            "usage" => Ok(Self::Usage),
            "top_up" => Ok(Self::TopUp),
            "correction" => Ok(Self::Correction),
            other => Err(Error::Database(format!("unknown reason {other:?}"))),
        }
    }
}

/// A transfer to or from a customer's account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Its number.
    pub id: i64,
    /// The customer.
    pub customer_id: i64,
    /// What it adds to the balance; below 0 if it takes.
    pub amount: NanoDollars,
    /// What it is for.
    pub reason: Reason,
    /// The request's id, or the operator's name for the payment.
    pub reference: String,
    /// When the request was admitted, or when it was booked.
    pub created_at: OffsetDateTime,
}

fn transfer(row: &Row) -> Result<Transfer, Error> {
    Ok(Transfer {
        id: row.try_get("id")?,
        customer_id: row.try_get("customer_id")?,
        amount: NanoDollars(row.try_get("amount")?),
        reason: Reason::parse(row.try_get("reason")?)?,
        reference: row.try_get("reference")?,
        created_at: from_millis(row.try_get("created_at")?),
    })
}

/// Sets the balance at which a customer's credit is nearly used, from what there
/// is now.
pub(in crate::store) async fn renew_near(
    transaction: &mut Transaction<'_>,
    customer_id: i64,
) -> Result<(), Error> {
    query(
        "UPDATE accounts SET near_at = posted - (posted + credit_limit) / 100 * $2 \
         WHERE customer_id = $1",
    )
    .bind(customer_id)
    .bind(NEAR_PERCENT)
    .execute(transaction)
    .await?;
    Ok(())
}

/// A customer of whose credit a request has left little.
#[derive(Clone, Debug)]
pub struct Nearly {
    /// The request.
    pub request_id: String,
    /// The customer.
    pub customer_id: i64,
    /// Its balance, of which requests at work may yet cost something.
    pub balance: NanoDollars,
    /// How far below 0 requests may take it.
    pub limit: NanoDollars,
}

impl Nearly {
    /// Tells the operator.
    pub fn log(&self) {
        tracing::warn!(
            customer_id = self.customer_id,
            balance_nano = self.balance.0,
            limit_nano = self.limit.0,
            "a customer's credit is nearly used"
        );
    }
}

impl Store {
    /// Books money that a customer paid or, below 0, that is taken back; also of one that
    /// was deleted, which may owe something or have something left. It is booked once for
    /// a reference: a repeat gives the same transfer again.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such customer; [`Error::ReferenceTaken`]
    /// when the reference is another amount's or customer's.
    pub async fn add_credit(
        &self,
        customer_id: i64,
        amount: NanoDollars,
        reference: &str,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Transfer, Error> {
        let mut transaction = self.begin_with_money_of(customer_id).await?;
        let account: i64 = query("SELECT id FROM accounts WHERE customer_id = $1")
            .bind(customer_id)
            .fetch_one(&mut transaction)
            .await?
            .try_get("id")?;
        if let Some(booked) = booked(&mut transaction, reference).await? {
            let is_same = booked.customer_id == customer_id && booked.amount == amount;
            return is_same.then_some(booked).ok_or(Error::ReferenceTaken);
        }
        let (reason, debit, credit) = match amount.0 {
            ..0 => (Reason::Correction, account, PAYMENTS),
            0.. => (Reason::TopUp, PAYMENTS, account),
        };
        let id = query(
            "INSERT INTO transfers (debit, credit, amount, reason, reference, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6) RETURNING id",
        )
        .bind(debit)
        .bind(credit)
        .bind(amount.0.saturating_abs())
        .bind(reason.as_str())
        .bind(reference)
        .bind(millis(now))
        .fetch_one(&mut transaction)
        .await
        .map_err(|error| match error.as_database_error() {
            // another customer's, at this moment
            Some(database) if database.is_unique_violation() => Error::ReferenceTaken,
            _ => error.into(),
        })?
        .try_get("id")?;
        for (account, change) in [(account, amount.0), (PAYMENTS, -amount.0)] {
            query("UPDATE accounts SET posted = posted + $1 WHERE id = $2")
                .bind(change)
                .bind(account)
                .execute(&mut transaction)
                .await?;
        }
        renew_near(&mut transaction, customer_id).await?;
        let act = Act {
            action: "credit.booked",
            object: Object::Customer(customer_id),
            before: None,
            after: Some(json!({ "amount": amount, "reference": reference })),
        };
        audit::record(&mut transaction, by, act, now).await?;
        transaction.commit().await?;
        Ok(Transfer {
            id,
            customer_id,
            amount,
            reason,
            reference: reference.to_owned(),
            created_at: now,
        })
    }

    /// At most `limit` transfers of a customer after the number `after`, in order.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn transfers(
        &self,
        customer_id: i64,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Transfer>, Error> {
        // two halves, each of them by an index in order
        let rows = query(
            "WITH account AS (SELECT id FROM accounts WHERE customer_id = $1) \
             SELECT id, $1 AS customer_id, amount, reason, reference, created_at FROM \
             (SELECT * FROM (SELECT id, -amount AS amount, reason, reference, created_at \
             FROM transfers WHERE debit = (SELECT id FROM account) AND id > $2 \
             ORDER BY id LIMIT $3) AS from_it UNION ALL \
             SELECT * FROM (SELECT id, amount, reason, reference, created_at \
             FROM transfers WHERE credit = (SELECT id FROM account) AND reason <> 'usage' \
             AND id > $2 ORDER BY id LIMIT $3) AS to_it) AS both_ways ORDER BY id LIMIT $3",
        )
        .bind(customer_id)
        .bind(after)
        .bind(limit)
        .fetch_all(self.up_to_date().await?)
        .await?;
        rows.iter().map(transfer).collect()
    }

    /// The latest `limit` payments and corrections of a customer before the number
    /// `before`, newest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn latest_payments(
        &self,
        customer_id: i64,
        before: i64,
        limit: u32,
    ) -> Result<Vec<Transfer>, Error> {
        // corrections by whom they are to, of which few are: `+` keeps off the index of
        // all that is taken from the customer, of which most is usage
        let sql = format!(
            "WITH account AS (SELECT id FROM accounts WHERE customer_id = $1) \
             SELECT id, $1 AS customer_id, amount, reason, reference, created_at FROM \
             (SELECT * FROM (SELECT id, amount, reason, reference, created_at \
             FROM transfers WHERE credit = (SELECT id FROM account) AND reason <> 'usage' \
             AND id < $2 ORDER BY id DESC LIMIT $3) AS to_it UNION ALL \
             SELECT * FROM (SELECT id, -amount AS amount, reason, reference, created_at \
             FROM transfers WHERE credit = {PAYMENTS} AND reason <> 'usage' \
             AND +debit = (SELECT id FROM account) AND id < $2 \
             ORDER BY id DESC LIMIT $3) AS from_it) AS both_ways ORDER BY id DESC LIMIT $3"
        );
        let rows = query(AssertSqlSafe(sql))
            .bind(customer_id)
            .bind(before)
            .bind(limit)
            .fetch_all(self.up_to_date().await?)
            .await?;
        rows.iter().map(transfer).collect()
    }
}

/// What the operator has booked under a reference.
async fn booked(
    transaction: &mut Transaction<'_>,
    reference: &str,
) -> Result<Option<Transfer>, Error> {
    let row = query(
        "SELECT transfers.id, customer_id, reason, reference, created_at, \
         CASE WHEN credit = accounts.id THEN amount ELSE -amount END AS amount \
         FROM transfers JOIN accounts ON accounts.id IN (debit, credit) \
         WHERE reason IN ('top_up', 'correction') AND reference = $1 AND customer_id IS NOT NULL",
    )
    .bind(reference)
    .fetch_optional(transaction)
    .await?;
    row.as_ref().map(transfer).transpose()
}
