//! The requests at work that may be repeated, where several servers share the
//! database. The name of a request is one server's until the answer is kept, the
//! request ends without one, or the server's lease is over. Of a file's one server
//! its memory knows them.

use super::db::{Pool, Transaction, query};
use super::{Error, Store, servers};

/// A request whose name is to be taken.
#[derive(Clone, Debug)]
pub struct NamedRequest {
    /// Id of the request.
    pub request_id: String,
    /// The API key that it came with.
    pub api_key_id: i64,
    /// The client's name for it, unique for the API key.
    pub idempotency_key: String,
    /// A hash of it.
    pub fingerprint: [u8; 32],
}

/// Takes the name for a request of `process`, or returns the hash of the request
/// that has it. What this process has itself its memory knows better: that is over.
pub(super) async fn take(
    pool: &Pool,
    process: &str,
    request: &NamedRequest,
) -> Result<Option<Vec<u8>>, Error> {
    let mut transaction = pool.begin().await?;
    // locks the row also where it leaves it as it is
    let taken = query(
        "INSERT INTO at_work (request_id, api_key_id, idempotency_key, fingerprint, process) \
         VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (api_key_id, idempotency_key) DO UPDATE SET \
         request_id = excluded.request_id, fingerprint = excluded.fingerprint, \
         process = excluded.process \
         WHERE at_work.process = excluded.process OR NOT EXISTS \
         (SELECT FROM servers WHERE servers.process = at_work.process \
         AND lease_ends > clock_timestamp())",
    )
    .bind(&request.request_id)
    .bind(request.api_key_id)
    .bind(&request.idempotency_key)
    .bind(&request.fingerprint[..])
    .bind(process)
    .execute(&mut transaction)
    .await?;
    if taken == 0 {
        let first =
            query("SELECT fingerprint FROM at_work WHERE api_key_id = $1 AND idempotency_key = $2")
                .bind(request.api_key_id)
                .bind(&request.idempotency_key)
                .fetch_one(&mut transaction)
                .await?;
        return Ok(Some(first.try_get("fingerprint")?));
    }
    // after the name, as settlements do, or two could wait for each other
    servers::renew(&mut transaction, process).await?;
    transaction.commit().await?;
    Ok(None)
}

/// Frees the name of a request whose answer is about to be kept; `false` when
/// another server has taken it, which thought this one dead.
pub(super) async fn end(
    transaction: &mut Transaction<'_>,
    request_id: &str,
) -> Result<bool, Error> {
    if let Transaction::Sqlite(_) = transaction {
        return Ok(true);
    }
    let freed = query("DELETE FROM at_work WHERE request_id = $1")
        .bind(request_id)
        .execute(transaction)
        .await?;
    Ok(freed > 0)
}

/// Frees the names that servers have whose lease is over.
pub(super) async fn end_of_dead(pool: &Pool) -> Result<(), Error> {
    query(
        "DELETE FROM at_work WHERE NOT EXISTS \
         (SELECT FROM servers WHERE servers.process = at_work.process \
         AND lease_ends > clock_timestamp())",
    )
    .execute(pool)
    .await?;
    Ok(())
}

impl Store {
    /// Whether other servers may be at work for the same keys.
    pub fn is_shared(&self) -> bool {
        self.write.is_shared()
    }

    /// Frees the name of a request that ended without an answer, where it has one
    /// by [`Settler::take_name`](super::Settler::take_name).
    ///
    /// # Errors
    /// When the database fails.
    pub async fn free_name(&self, request_id: &str) -> Result<(), Error> {
        query("DELETE FROM at_work WHERE request_id = $1")
            .bind(request_id)
            .execute(&self.write)
            .await?;
        Ok(())
    }
}
