//! How long rows of usage are kept. What is deleted stays in the sums and in the
//! ledger. Not by partitions of a table: a request's id could not be unique in all
//! of them, which is what keeps a request from being charged twice.

use std::time::Duration;

use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::store::db::{Transaction, query};
use crate::store::ledger::Period;
use crate::store::{Error, Store, millis};

/// Rows that are deleted in one transaction, and the pause after it: settlements
/// are not to wait for more than a few milliseconds.
const BATCH: i64 = 1000;
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks for rows to delete.
const INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The time before which rows may have been deleted.
pub async fn deleted_before(moment: &mut Transaction<'_>) -> Result<i64, Error> {
    let row = query("SELECT coalesce(max(before), 0) AS before FROM usage_deleted")
        .fetch_one(moment)
        .await?;
    Ok(row.try_get("before")?)
}

impl Store {
    /// Deletes the rows of usage of days that are more than `days` past, now and
    /// once an hour, until `stop`. Of the servers of a database one at a time does.
    pub async fn keep_usage(self, days: u32, clock: Clock, stop: CancellationToken) {
        let mut hours = tokio::time::interval(INTERVAL);
        while stop.run_until_cancelled(hours.tick()).await.is_some() {
            let before = Period::Day.start(clock.now()) - time::Duration::days(days.into());
            let deleted = stop.run_until_cancelled(self.delete_usage(before)).await;
            match deleted {
                Some(Ok(0)) | None => {}
                Some(Ok(rows)) => tracing::info!(rows, "old rows of usage are deleted"),
                Some(Err(error)) => tracing::warn!(%error, "old rows of usage are not deleted"),
            }
        }
    }

    /// Deletes the rows of requests that were admitted before this, the start of a
    /// day; returns how many.
    async fn delete_usage(&self, before: OffsetDateTime) -> Result<u64, Error> {
        let Some(mut sole) = self.sole("old usage").await? else {
            return Ok(0);
        };
        let mut deleted = 0;
        loop {
            let rows = self.delete_batch(millis(before)).await?;
            deleted += rows;
            if rows == 0 {
                return Ok(deleted);
            }
            sole.keep().await?;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn delete_batch(&self, before: i64) -> Result<u64, Error> {
        let mut transaction = self.write.begin().await?;
        // the oldest have the lowest numbers, give or take a request's duration
        let deleted = query(
            "DELETE FROM usage WHERE created_at < $1 \
             AND id IN (SELECT id FROM usage ORDER BY id LIMIT $2)",
        )
        .bind(before)
        .bind(BATCH)
        .execute(&mut transaction)
        .await?;
        if deleted > 0 {
            query(
                "INSERT INTO usage_deleted (id, before) VALUES (1, $1) ON CONFLICT (id) \
                 DO UPDATE SET before = excluded.before WHERE usage_deleted.before < excluded.before",
            )
            .bind(before)
            .execute(&mut transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(deleted)
    }
}
