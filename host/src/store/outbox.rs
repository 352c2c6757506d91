//! Messages for another service, written in the transaction of the change that
//! they report, so that neither is there without the other.

use sqlx::SqliteConnection;
use time::OffsetDateTime;

use super::usage::Usage;
use super::{Error, millis};

/// Writes that a customer is to be created at Stripe.
pub(super) async fn announce_customer(
    connection: &mut SqliteConnection,
    customer_id: i64,
    now: OffsetDateTime,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO outbox (kind, customer_id, dedup_key, next_attempt_at, created_at) \
         VALUES ('customer', $1, 'customer:' || $1, $2, $2)",
    )
    .bind(customer_id)
    .bind(millis(now))
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes that usage is to be reported to Stripe.
pub(super) async fn announce_usage(
    connection: &mut SqliteConnection,
    usage: &Usage,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT INTO outbox (kind, customer_id, dedup_key, amount, next_attempt_at, created_at) \
         VALUES ('usage', $1, 'usage:' || $2, $3, $4, $4)",
    )
    .bind(usage.customer_id)
    .bind(&usage.request_id)
    .bind(usage.cost.0)
    .bind(millis(usage.created_at))
    .execute(connection)
    .await?;
    Ok(())
}
