//! The requests at work that may be repeated, where several servers share the
//! database. The name of a request is one server's until the answer is kept, the
//! request ends without one, or the server's lease is over. Of a file's one server
//! its memory knows them.

use std::sync::atomic::Ordering;

use tokio::sync::{Semaphore, SemaphorePermit};

use super::db::{Pool, Transaction, query};
use super::{Error, Store};

/// Most connections that take and free names: however many requests wait for one,
/// others find another.
const CONNECTIONS: usize = 4;

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

/// Whose turn it is to take or free a name.
#[derive(Debug)]
pub(super) struct Turns(Semaphore);

impl Default for Turns {
    fn default() -> Self {
        Self(Semaphore::new(CONNECTIONS))
    }
}

impl Turns {
    async fn next(&self) -> Result<SemaphorePermit<'_>, Error> {
        self.0.acquire().await.map_err(|_| Error::Stopping)
    }
}

/// Takes the name for a request of `process`, or returns the hash of the request
/// that has it. What this process has itself its memory knows better: that is over.
pub(super) async fn take(
    store: &Store,
    process: &str,
    request: &NamedRequest,
) -> Result<Option<Vec<u8>>, Error> {
    let _turn = store.turns.next().await?;
    let mut transaction = store.write.begin().await?;
    // locks another's row also where it leaves it as it is
    let taken = query(
        "INSERT INTO at_work (request_id, api_key_id, idempotency_key, fingerprint, process) \
         SELECT $1, $2, $3, $4, $5 WHERE EXISTS \
         (SELECT FROM servers WHERE process = $5 AND lease_ends > clock_timestamp()) \
         ON CONFLICT (api_key_id, idempotency_key) DO UPDATE SET \
         request_id = excluded.request_id, fingerprint = excluded.fingerprint, \
         process = excluded.process \
         WHERE at_work.process = excluded.process OR $6 AND NOT EXISTS \
         (SELECT FROM servers WHERE servers.process = at_work.process \
         AND lease_ends > clock_timestamp())",
    )
    .bind(&request.request_id)
    .bind(request.api_key_id)
    .bind(&request.idempotency_key)
    .bind(&request.fingerprint[..])
    .bind(process)
    .bind(store.is_steady.load(Ordering::Acquire))
    .execute(&mut transaction)
    .await?;
    if taken == 0 {
        let first =
            query("SELECT fingerprint FROM at_work WHERE api_key_id = $1 AND idempotency_key = $2")
                .bind(request.api_key_id)
                .bind(&request.idempotency_key)
                .fetch_optional(&mut transaction)
                .await?;
        let first = first.ok_or_else(|| Error::Database("the lease is over".to_owned()))?;
        return Ok(Some(first.try_get("fingerprint")?));
    }
    transaction.commit().await?;
    Ok(None)
}

/// Frees the name of a request whose answer is about to be kept; `false` when
/// another server has taken it, which thought this one dead.
pub(super) async fn end(
    transaction: &mut Transaction<'_>,
    request_id: &str,
) -> Result<bool, Error> {
    if !transaction.is_shared() {
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
    // waits for nobody: one of them may just come back and settle, or another free them
    query(
        "DELETE FROM at_work WHERE request_id IN \
         (SELECT request_id FROM at_work WHERE NOT EXISTS \
         (SELECT FROM servers WHERE servers.process = at_work.process \
         AND lease_ends > clock_timestamp()) FOR UPDATE OF at_work SKIP LOCKED)",
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
        let _turn = self.turns.next().await?;
        query("DELETE FROM at_work WHERE request_id = $1")
            .bind(request_id)
            .execute(&self.write)
            .await?;
        Ok(())
    }
}
