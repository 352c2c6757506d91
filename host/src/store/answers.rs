//! Answers kept for requests that may be repeated.

use time::{Duration, OffsetDateTime};

use super::db::{Transaction, query};
use super::{Error, Store, at_work, millis};

/// How long an answer is kept.
pub const KEPT: Duration = Duration::hours(24);
/// Answers to delete at once: they may be long.
const BATCH: i64 = 1_000;

/// An answer and the request it was for.
#[derive(Clone, Debug)]
pub struct KeptAnswer {
    /// The API key that the request came with.
    pub api_key_id: i64,
    /// The client's name for the request, unique for the API key.
    pub idempotency_key: String,
    /// A hash of the request.
    pub fingerprint: [u8; 32],
    /// Id of the request.
    pub request_id: String,
    /// The answer, as its writer writes it.
    pub answer: String,
    /// When it was given.
    pub created_at: OffsetDateTime,
}

/// Writes an answer and frees its request's name; `false` when the name is another
/// server's by now.
pub(super) async fn insert(
    transaction: &mut Transaction<'_>,
    kept: &KeptAnswer,
) -> Result<bool, Error> {
    if !at_work::end(&mut *transaction, &kept.request_id).await? {
        return Ok(false);
    }
    // one of the same name that was kept long enough makes room
    query(
        "DELETE FROM answers WHERE api_key_id = $1 AND idempotency_key = $2 AND created_at <= $3",
    )
    .bind(kept.api_key_id)
    .bind(&kept.idempotency_key)
    .bind(millis(kept.created_at - KEPT))
    .execute(&mut *transaction)
    .await?;
    query(
        "INSERT INTO answers \
         (api_key_id, idempotency_key, fingerprint, request_id, answer, created_at) \
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
    )
    .bind(kept.api_key_id)
    .bind(&kept.idempotency_key)
    .bind(&kept.fingerprint[..])
    .bind(&kept.request_id)
    .bind(&kept.answer)
    .bind(millis(kept.created_at))
    .execute(transaction)
    .await?;
    Ok(true)
}

impl Store {
    /// Deletes the answers that were kept long enough.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn forget_answers(&self, now: OffsetDateTime) -> Result<(), Error> {
        let some = "DELETE FROM answers WHERE (api_key_id, idempotency_key) IN \
            (SELECT api_key_id, idempotency_key FROM answers WHERE created_at <= $1 LIMIT $2)";
        loop {
            let old = query(some).bind(millis(now - KEPT)).bind(BATCH);
            if old.execute(&self.write).await? == 0 {
                return Ok(());
            }
        }
    }

    /// The hash of the request and the answer that are kept under this name, if
    /// any are.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn kept_answer(
        &self,
        api_key_id: i64,
        idempotency_key: &str,
        now: OffsetDateTime,
    ) -> Result<Option<(Vec<u8>, String)>, Error> {
        let row = query(
            "SELECT fingerprint, answer FROM answers \
             WHERE api_key_id = $1 AND idempotency_key = $2 AND created_at > $3",
        )
        .bind(api_key_id)
        .bind(idempotency_key)
        .bind(millis(now - KEPT))
        .fetch_optional(&self.read)
        .await?;
        row.map(|row| Ok((row.try_get("fingerprint")?, row.try_get("answer")?)))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT, KeptAnswer, insert};
    use crate::store::at_work::{self, NamedRequest};
    use crate::store::scratch::{Scratch, create_customer, create_key};
    use crate::store::{Audience, Store, servers};
    use time::{Duration, OffsetDateTime};

    /// Keeps an answer; on a shared database its request has to be at work.
    async fn keep(store: &Store, kept: KeptAnswer) -> bool {
        if store.is_shared() {
            let request = NamedRequest {
                request_id: kept.request_id.clone(),
                api_key_id: kept.api_key_id,
                idempotency_key: kept.idempotency_key.clone(),
                fingerprint: kept.fingerprint,
            };
            let mut transaction = store.write.begin().await.expect("a transaction");
            let renew = servers::renew(&transaction, "this").expect("servers have leases");
            let renewed = renew.execute(&mut transaction).await;
            renewed.expect("a lease");
            transaction.commit().await.expect("committed");
            let taken = at_work::take(store, "this", &request).await;
            assert_eq!(taken.expect("taken"), None);
        }
        let mut transaction = store.write.begin().await.expect("a transaction");
        let is_kept = insert(&mut transaction, &kept).await.expect("written");
        transaction.commit().await.expect("committed");
        is_kept
    }

    #[tokio::test]
    async fn answers_are_kept_for_a_day() {
        let scratch = Scratch::new();
        let store = scratch.open(Audience::default()).await;
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time");
        let customer_id = create_customer(&store, 1, None, now).await;
        let api_key_id = create_key(&store, customer_id, "k".into(), now).await;
        let kept = |name: &str, created_at| KeptAnswer {
            api_key_id,
            idempotency_key: name.to_owned(),
            fingerprint: [7; 32],
            request_id: name.to_owned(),
            answer: "{}".to_owned(),
            created_at,
        };
        assert!(keep(&store, kept("one", now)).await);
        let found = async |at| {
            store
                .kept_answer(api_key_id, "one", at)
                .await
                .expect("read")
        };
        let almost = now + KEPT - Duration::SECOND;
        assert_eq!(found(almost).await, Some((vec![7; 32], "{}".to_owned())));
        assert_eq!(found(now + KEPT).await, None);

        // another of its name takes its place, and in time goes without one
        assert!(keep(&store, kept("one", now + KEPT)).await);
        assert!(found(now + KEPT).await.is_some());
        let later = now + 2 * KEPT;
        store.forget_answers(later).await.expect("deleted");
        assert_eq!(found(now + KEPT).await, None);
    }
}
