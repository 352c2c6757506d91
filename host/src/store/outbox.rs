//! Messages for Stripe, written in the transaction of the change that they
//! report, so that neither is there without the other.
//!
//! Usage is added up in the customer's one open message. Sealing it leaves whole
//! cents in it and moves the rest to the next one, so that at any time the
//! amounts of all messages are the sum of what was used, to the nano-dollar.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;

use super::db::{Row, Transaction, query};
use super::{Error, Store, from_millis, millis};
use crate::money::NanoDollars;

/// A message to be sent.
#[derive(Clone, Debug)]
pub struct Message {
    /// Its number.
    pub id: i64,
    /// What makes it one and the same however often it is sent.
    pub key: String,
    /// The customer it is about.
    pub customer_id: i64,
    /// How often sending it was begun.
    pub attempts: u32,
    /// What it says; the same at each attempt, unless the customer was renamed or made
    /// anew meanwhile.
    pub content: Content,
}

/// What a message says.
#[derive(Clone, Debug)]
pub enum Content {
    /// There is a new customer.
    Customer {
        /// Name of the person or team.
        name: String,
        /// Address.
        email: String,
        /// Company, which may be empty.
        company: String,
    },
    /// A customer used something.
    Usage {
        /// Stripe's name of the customer.
        stripe_id: String,
        /// What it costs: whole cents.
        amount: NanoDollars,
        /// The time that the message covers.
        from: OffsetDateTime,
        /// The end of that time.
        until: OffsetDateTime,
    },
}

/// Writes that a customer is to be created at Stripe.
pub(super) async fn announce_customer(
    transaction: &mut Transaction<'_>,
    customer_id: i64,
    now: OffsetDateTime,
) -> Result<(), Error> {
    query(
        "INSERT INTO outbox (kind, customer_id, created_at, sealed_at, next_attempt_at) \
         VALUES ('customer', $1, $2, $2, $2)",
    )
    .bind(customer_id)
    .bind(millis(now))
    .execute(transaction)
    .await?;
    Ok(())
}

/// What a customer owes of its usage.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Owed {
    pub customer_id: i64,
    /// Nano-dollars.
    pub amount: i64,
    /// When its first request was admitted, in milliseconds since 1970.
    pub created_at: i64,
}

/// Adds usage to what is to be reported to Stripe, at most one amount a customer.
/// Returns whether that of one of them has now come to a cent.
pub(super) async fn announce_usage(
    transaction: &mut Transaction<'_>,
    owed: &[Owed],
) -> Result<bool, Error> {
    let rows = transaction
        .of_rows(
            "customer_id BIGINT, amount BIGINT, created_at BIGINT",
            owed,
            |owed| {
                format!(
                    "INSERT INTO outbox (kind, customer_id, amount, created_at) \
                 SELECT 'usage', customer_id, amount, created_at FROM {owed} AS owed WHERE TRUE \
                 ON CONFLICT (customer_id) WHERE sealed_at IS NULL \
                 DO UPDATE SET amount = outbox.amount + excluded.amount \
                 RETURNING customer_id, amount"
                )
            },
        )
        .fetch_all(transaction)
        .await?;
    let added: HashMap<_, _> = owed
        .iter()
        .map(|owed| (owed.customer_id, owed.amount))
        .collect();
    for row in &rows {
        let (customer_id, amount): (i64, i64) =
            (row.try_get("customer_id")?, row.try_get("amount")?);
        let added = added.get(&customer_id).copied().unwrap_or_default();
        if amount - added < NanoDollars::CENT.0 && amount >= NanoDollars::CENT.0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What can be sealed: a cent or more of a customer whom Stripe knows and who has
/// no other message on its way, so that an outage adds to one amount rather than
/// to a heap of messages.
const READY: &str = "\
    FROM outbox open JOIN customers ON customers.id = open.customer_id \
    WHERE open.sealed_at IS NULL AND open.amount >= 10000000 AND customers.stripe_id IS NOT NULL \
    AND NOT EXISTS (SELECT 1 FROM outbox other WHERE other.customer_id = open.customer_id \
        AND other.kind = 'usage' AND other.sealed_at IS NOT NULL AND other.delivered_at IS NULL)";

/// What is on its way. Usage waits for its customer, if that is made anew.
const ON_ITS_WAY: &str = "\
    FROM outbox JOIN customers ON customers.id = customer_id \
    WHERE sealed_at IS NOT NULL AND delivered_at IS NULL \
    AND (kind = 'customer' OR customers.stripe_id IS NOT NULL)";

fn message(row: &Row) -> Result<Message, Error> {
    let content = match row.try_get("kind")? {
        "customer" => Content::Customer {
            name: row.try_get("name")?,
            email: row.try_get("email")?,
            company: row.try_get("company")?,
        },
        _ => Content::Usage {
            stripe_id: row.try_get("stripe_id")?,
            amount: NanoDollars(row.try_get("amount")?),
            from: from_millis(row.try_get("created_at")?),
            until: from_millis(row.try_get("sealed_at")?),
        },
    };
    Ok(Message {
        id: row.try_get("id")?,
        key: row.try_get("key")?,
        customer_id: row.try_get("customer_id")?,
        attempts: row.try_get("attempts")?,
        content,
    })
}

impl Store {
    /// Waits until there is something new to be sent, since the last time.
    pub async fn outbox_changed(&self) {
        self.outbox.changed().await;
    }

    /// Writes that the customers are to be created at Stripe who came before
    /// Stripe was in use.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn announce_customers(&self, now: OffsetDateTime) -> Result<(), Error> {
        query(
            "INSERT INTO outbox (kind, customer_id, created_at, sealed_at, next_attempt_at) \
             SELECT 'customer', id, $1, $1, $1 FROM customers WHERE deleted_at IS NULL \
             AND id NOT IN (SELECT customer_id FROM outbox WHERE kind = 'customer') \
             ON CONFLICT DO NOTHING",
        )
        .bind(millis(now))
        .execute(&self.write)
        .await?;
        Ok(())
    }

    /// Makes usage ready to be sent of which the open message is as old as
    /// `opened_before`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn seal_usage(
        &self,
        opened_before: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let sql = format!("SELECT open.customer_id {READY} AND open.created_at <= $1");
        let ready = query(AssertSqlSafe(sql))
            .bind(millis(opened_before))
            .fetch_all(&self.write)
            .await?;
        for row in ready {
            self.seal(row.try_get("customer_id")?, now).await?;
        }
        Ok(())
    }

    /// Makes the customer's usage ready to be sent, if it still is.
    async fn seal(&self, customer_id: i64, now: OffsetDateTime) -> Result<(), Error> {
        let mut transaction = self.begin_with_money_of(customer_id).await?;
        let sql = format!("SELECT open.id, open.amount {READY} AND open.customer_id = $1");
        let open = query(AssertSqlSafe(sql))
            .bind(customer_id)
            .fetch_optional(&mut transaction)
            .await?;
        let Some(open) = open else {
            return Ok(());
        };
        let amount = NanoDollars(open.try_get("amount")?);
        let (_, rest) = amount.cents();
        query("UPDATE outbox SET amount = $2, sealed_at = $3, next_attempt_at = $3 WHERE id = $1")
            .bind(open.try_get::<i64>("id")?)
            .bind(amount.0 - rest.0)
            .bind(millis(now))
            .execute(&mut transaction)
            .await?;
        // always, even of nothing: the time until the next report starts here
        query(
            "INSERT INTO outbox (kind, customer_id, amount, created_at) \
             VALUES ('usage', $1, $2, $3)",
        )
        .bind(customer_id)
        .bind(rest.0)
        .bind(millis(now))
        .execute(&mut transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The message that has waited longest to be sent.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn due_message(&self, now: OffsetDateTime) -> Result<Option<Message>, Error> {
        let sql = format!(
            "SELECT outbox.id, key, kind, customer_id, amount, outbox.created_at, sealed_at, \
             attempts, name, email, company, customers.stripe_id {ON_ITS_WAY} \
             AND next_attempt_at <= $1 ORDER BY next_attempt_at, outbox.id LIMIT 1"
        );
        let row = query(AssertSqlSafe(sql))
            .bind(millis(now))
            .fetch_optional(&self.read)
            .await?;
        row.as_ref().map(message).transpose()
    }

    /// When there will be something to seal or to send, where usage is reported
    /// `period` after its message was opened.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn outbox_due_at(&self, period: Duration) -> Result<Option<OffsetDateTime>, Error> {
        let sql = format!(
            "SELECT min(at) AS at FROM (SELECT next_attempt_at AS at {ON_ITS_WAY} \
             UNION ALL SELECT open.created_at + $1 {READY}) AS due"
        );
        let row = query(AssertSqlSafe(sql))
            .bind(i64::try_from(period.as_millis()).unwrap_or(i64::MAX))
            .fetch_one(&self.read)
            .await?;
        let at: Option<i64> = row.try_get("at")?;
        Ok(at.map(from_millis))
    }

    /// Writes that a message is about to be sent, and when to send it again
    /// should nothing more be written about it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn begin_attempt(&self, id: i64, retry_at: OffsetDateTime) -> Result<(), Error> {
        query("UPDATE outbox SET attempts = attempts + 1, next_attempt_at = $2 WHERE id = $1")
            .bind(id)
            .bind(millis(retry_at))
            .execute(&self.write)
            .await?;
        Ok(())
    }

    /// Writes that a message could not be delivered, why, and when to try again.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn attempt_failed(
        &self,
        id: i64,
        reason: &str,
        retry_at: OffsetDateTime,
    ) -> Result<(), Error> {
        query("UPDATE outbox SET last_error = $2, next_attempt_at = $3 WHERE id = $1")
            .bind(id)
            .bind(reason)
            .bind(millis(retry_at))
            .execute(&self.write)
            .await?;
        Ok(())
    }

    /// Writes that a message was delivered, and what Stripe calls what it made.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn message_delivered(
        &self,
        message: &Message,
        stripe_id: &str,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let mut transaction = self.write.begin().await?;
        query(
            "UPDATE outbox SET delivered_at = $2, stripe_id = $3, last_error = NULL WHERE id = $1",
        )
        .bind(message.id)
        .bind(millis(now))
        .bind(stripe_id)
        .execute(&mut transaction)
        .await?;
        if let Content::Customer { .. } = message.content {
            query("UPDATE customers SET stripe_id = $2 WHERE id = $1")
                .bind(message.customer_id)
                .bind(stripe_id)
                .execute(&mut transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Forgets what Stripe calls the customer of a message of usage, and writes that it
    /// is to be created there anew; the message waits for that.
    ///
    /// Not where this was done for the message already, since `renewed_before`: so a Stripe
    /// that has none of the new ones either is not sent one after the other. Returns
    /// whether it is done. What an attempt made whose answer was lost is gone with the
    /// customer that it was made for, unless that is another account's: then both have it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn renew_customer(
        &self,
        message: &Message,
        renewed_before: OffsetDateTime,
        now: OffsetDateTime,
    ) -> Result<bool, Error> {
        let Content::Usage { until, .. } = message.content else {
            return Ok(false);
        };
        let mut transaction = self.write.begin().await?;
        // a new one has a new key, by which nothing is found that is gone
        let forgotten = query(
            "DELETE FROM outbox WHERE customer_id = $1 AND kind = 'customer' AND delivered_at <= $2",
        )
        .bind(message.customer_id)
        .bind(millis(until.max(renewed_before)))
        .execute(&mut transaction)
        .await?;
        if forgotten == 0 {
            return Ok(false);
        }
        query("UPDATE customers SET stripe_id = NULL WHERE id = $1")
            .bind(message.customer_id)
            .execute(&mut transaction)
            .await?;
        announce_customer(&mut transaction, message.customer_id, now).await?;
        query("UPDATE outbox SET next_attempt_at = $2 WHERE id = $1")
            .bind(message.id)
            .bind(millis(now))
            .execute(&mut transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }
}
