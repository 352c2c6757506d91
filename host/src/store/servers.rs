//! The servers of one database. Each has a lease, which it renews while it
//! lives; what a server held whose lease is over is freed by the others. They tell
//! each other what they keep in memory of the database: of keys, and whose
//! requests anything caps. Nothing of this happens on a file, which has one server.

use std::sync::atomic::Ordering;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor as _};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::db::{Pool, Query, Transaction, query};
use super::{Error, Store, at_work, ledger};

/// Between two renewals of the lease.
const RENEWAL: Duration = Duration::from_secs(3);
/// Between two that are in time. Another server's lease may have been renewed last before
/// this one's: it must be late here long before one is over there.
const LATE: Duration = Duration::from_secs(2 * RENEWAL.as_secs());
/// How long a server that says nothing counts as alive, as in [`RENEW`].
const LEASE: Duration = Duration::from_secs(15);
const RENEW: &str = "\
    INSERT INTO servers (process, lease_ends) \
    VALUES ($1, clock_timestamp() + INTERVAL '15 seconds') \
    ON CONFLICT (process) DO UPDATE SET lease_ends = excluded.lease_ends \
    RETURNING CAST(extract(epoch FROM lease_ends) * 1000 AS BIGINT) AS lease_ends";
/// How long nothing may be heard before the connection is asked for a sign of
/// life, and how long that may take: together less than a second.
const SILENCE: Duration = Duration::from_millis(400);
/// Between two attempts to listen.
const RETRY: Duration = Duration::from_millis(250);
/// Holds that are freed in one transaction.
const BATCH: i64 = 256;
/// What servers listen to.
const CHANNEL: &str = "model_host";

/// What has changed, for servers that keep it in memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Some key.
    Keys,
    /// What caps this customer's requests.
    Limits(i64),
}

/// Tells the other servers, once the transaction is committed.
pub(super) async fn tell(transaction: &mut Transaction<'_>, change: Change) -> Result<(), Error> {
    if transaction.is_shared() {
        let text = match change {
            Change::Keys => "keys".to_owned(),
            Change::Limits(customer_id) => format!("limits {customer_id}"),
        };
        query("SELECT pg_notify($1, $2)")
            .bind(CHANNEL)
            .bind(text)
            .execute(transaction)
            .await?;
    }
    Ok(())
}

/// Renews the lease of whoever holds something in this transaction, so that no
/// hold is ever seen without a lease.
pub(super) fn renew<'q>(transaction: &Transaction<'_>, process: &'q str) -> Option<Query<'q>> {
    transaction.is_shared().then(|| query(RENEW).bind(process))
}

impl Store {
    /// Joins the servers of the database as `process`: takes the lease, renews
    /// it, frees what the dead hold and listens to the living, until `stop`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn join(&self, process: &str, stop: CancellationToken) -> Result<(), Error> {
        let Pool::Postgres(pool) = &self.write else {
            return Ok(());
        };
        query(RENEW).bind(process).execute(&self.urgent).await?;
        let store = self.clone();
        let stopped = stop.clone();
        let options = PgConnectOptions::clone(&pool.connect_options());
        tokio::spawn(async move {
            stopped
                .run_until_cancelled_owned(store.listen(options))
                .await
        });
        let (store, process) = (self.clone(), process.to_owned());
        tokio::spawn(async move { stop.run_until_cancelled_owned(store.stay(process)).await });
        Ok(())
    }

    /// Leaves them, with nothing held any more.
    ///
    /// # Errors
    /// When the database fails: the lease ends by itself then.
    pub async fn leave(&self, process: &str) -> Result<(), Error> {
        if self.write.is_shared() {
            query("DELETE FROM servers WHERE process = $1")
                .bind(process)
                .execute(&self.urgent)
                .await?;
        }
        Ok(())
    }

    /// Renews the lease and frees what the dead hold, for ever. Not before the lease has
    /// been renewed for as long as one lasts: where the database was away, or its clock was
    /// set, the leases of the living are over too, until they renew them.
    async fn stay(self, process: String) {
        let mut ends = 0;
        let mut unbroken: Option<Instant> = None;
        loop {
            let renewal = timeout(RENEWAL, self.renew_lease(&process));
            match renewal.await.unwrap_or_else(|late| Err(silent(late))) {
                Ok(renewed) => {
                    // or the database was away, or its clock was set
                    let between = renewed.saturating_sub(ends).unsigned_abs();
                    let is_late = Duration::from_millis(between) >= LATE;
                    let since = unbroken.filter(|_| !is_late).unwrap_or_else(Instant::now);
                    (ends, unbroken) = (renewed, Some(since));
                }
                Err(error) => {
                    tracing::warn!(%error, "the lease could not be renewed");
                    unbroken = None;
                }
            }
            let is_steady = unbroken.is_some_and(|since| since.elapsed() >= LEASE);
            self.is_steady.store(is_steady, Ordering::Release);
            if is_steady {
                // no longer than the lease can wait
                let freeing = timeout(LATE, self.free_what_the_dead_have());
                match freeing.await.unwrap_or_else(|late| Err(silent(late))) {
                    Ok(0) => {}
                    Ok(voided) => {
                        tracing::warn!(voided, "a server ended with requests at work");
                        // there may be more
                        continue;
                    }
                    Err(error) => tracing::warn!(%error, "what the dead hold is not freed"),
                }
            }
            tokio::time::sleep(RENEWAL).await;
        }
    }

    /// Renews it; says when it ends, in milliseconds since 1970 by the database's clock.
    async fn renew_lease(&self, process: &str) -> Result<i64, Error> {
        let renewed = query(RENEW).bind(process).fetch_one(&self.urgent).await?;
        Ok(renewed.try_get("lease_ends")?)
    }

    /// Frees what servers hold whose lease is over, and the names of requests that
    /// they have. Returns how many holds that were.
    async fn free_what_the_dead_have(&self) -> Result<usize, Error> {
        at_work::end_of_dead(&self.urgent).await?;
        let sql = format!(
            "SELECT {} FROM holds WHERE NOT EXISTS \
             (SELECT FROM servers WHERE servers.process = holds.process \
             AND lease_ends > clock_timestamp()) LIMIT $1",
            ledger::HELD
        );
        let held = query(AssertSqlSafe(sql)).bind(BATCH);
        let rows = held.fetch_all(&self.urgent).await?;
        if rows.is_empty() {
            return Ok(0);
        }
        let mut transaction = self.urgent.begin().await?;
        // fewer where another server was first
        let voided = ledger::void(&mut transaction, &rows).await?;
        transaction.commit().await?;
        Ok(voided)
    }

    /// Hears what others change, for ever. While it cannot, nothing that is in
    /// memory is trusted.
    async fn listen(self, options: PgConnectOptions) {
        loop {
            let heard = self.hear(options.clone()).await;
            self.hears.store(false, Ordering::Release);
            if let Err(error) = heard {
                tracing::warn!(%error, "other servers cannot be heard");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Hears until the connection is lost.
    async fn hear(&self, options: PgConnectOptions) -> Result<(), Error> {
        // none of the pool's: it would have back one that says nothing only once that says
        // that it does not listen any more
        let own = PgPoolOptions::new().max_connections(1);
        let own = own.acquire_timeout(LATE).connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&own).await?;
        // or it would listen again by itself, and what was said meanwhile be lost
        listener.eager_reconnect(false);
        let listening = timeout(LATE, listener.listen(CHANNEL));
        listening.await.map_err(silent)??;
        // what was changed before is read again
        self.limited.reload(&self.read).await?;
        self.count_change();
        self.hears.store(true, Ordering::Release);
        loop {
            let Ok(heard) = timeout(SILENCE, listener.try_recv()).await else {
                let lives = timeout(SILENCE, listener.execute("SELECT 1")).await;
                lives.map_err(silent)??;
                continue;
            };
            let Some(heard) = heard? else {
                return Ok(());
            };
            match heard.payload().split_once(' ') {
                Some(("limits", id)) => {
                    if let Ok(id) = id.parse() {
                        self.hear_of_limits(id);
                    }
                }
                _ => self.count_change(),
            }
        }
    }

    /// Takes over what another server has changed of a customer's limits: at once that it
    /// may have some, and later, if so, that it has none. A change of this server's own may
    /// be in the way of that, and has to wait for whoever has the customer's money.
    fn hear_of_limits(&self, customer_id: i64) {
        self.limited.insert(customer_id);
        let store = self.clone();
        tokio::spawn(async move {
            let changing = store.limited.change(customer_id).await;
            changing.finish(&store.read).await;
        });
    }
}

fn silent(_: Elapsed) -> Error {
    Error::Database("no sign of life".to_owned())
}
