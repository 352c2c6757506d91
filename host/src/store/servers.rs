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
/// How long whoever does what one server does at a time may do without a word: longer than
/// a transaction may otherwise be idle, but not for ever, which is how long it would be
/// where its machine lost the power and somebody between answers for it.
const SOLE: &str = "SET LOCAL idle_in_transaction_session_timeout = '5min'";
/// What servers listen to.
const CHANNEL: &str = "model_host";
/// The number of the next row, in the sequence of a table's numbers.
const NEXT_ROW: &str = "last_value + is_called::INT";

/// What has changed, for servers that keep it in memory.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    /// Some key.
    Keys,
    /// What caps this customer's requests.
    Limits(i64),
}

/// Tables of which somebody reads the rows that came after those he has.
#[derive(Clone, Copy, Debug)]
pub(super) enum List {
    Usage,
    Audit,
}

impl List {
    /// Where the numbers of its rows come from.
    fn sequence(self) -> &'static str {
        match self {
            Self::Usage => "usage_id_seq",
            Self::Audit => "audit_id_seq",
        }
    }

    /// To which the number of a row is added to make that of a lock; there are fewer
    /// than 2^48 rows.
    fn locks(self) -> i64 {
        match self {
            Self::Usage => 0x6d68 << 48,
            Self::Audit => 0x6d69 << 48,
        }
    }
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

/// Shows the others from which number on this transaction may write rows of a list,
/// until it ends: their numbers are given before they can be seen, and transactions
/// end in any order. To be called before the first of them.
pub(super) fn show_rows(transaction: &Transaction<'_>, list: List) -> Option<Query<'static>> {
    if !transaction.is_shared() {
        return None;
    }
    // a lock that nobody waits for is a note that is gone with the transaction
    let sequence = list.sequence();
    let sql = format!("SELECT pg_advisory_xact_lock_shared($1 + {NEXT_ROW}) FROM {sequence}");
    Some(query(AssertSqlSafe(sql)).bind(list.locks()))
}

/// The number before which no row of a list is still to come.
pub(super) async fn whole_before(pool: &Pool, list: List) -> Result<i64, Error> {
    if !pool.is_shared() {
        return Ok(i64::MAX);
    }
    // in this order: a transaction that is too late for the second shows numbers
    // that are past the first
    let sql = format!("SELECT {NEXT_ROW} AS next FROM {}", list.sequence());
    let next = query(AssertSqlSafe(sql)).fetch_one(pool).await?;
    let shown = query(
        "SELECT min((classid::BIGINT << 32 | objid::BIGINT) - $1) AS first FROM pg_locks \
         WHERE locktype = 'advisory' AND objsubid = 1 AND classid::BIGINT >> 16 = $1 >> 48 \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .bind(list.locks())
    .fetch_one(pool)
    .await?;
    let (next, first) = (next.try_get("next")?, shown.try_get("first")?);
    Ok(Option::<i64>::map_or(first, next, |first| next.min(first)))
}

/// Renews the lease of whoever holds something in this transaction, so that no
/// hold is ever seen without a lease.
pub(super) fn renew<'q>(transaction: &Transaction<'_>, process: &'q str) -> Option<Query<'q>> {
    transaction.is_shared().then(|| query(RENEW).bind(process))
}

/// The right to do something that one server does at a time, until it is dropped, or
/// nobody says for [`SOLE`] that it is needed.
pub struct Sole(Option<Transaction<'static>>);

impl Sole {
    /// Says that it is needed, to be called between steps that together may take minutes.
    ///
    /// # Errors
    /// When it may be another's by now.
    pub async fn keep(&mut self) -> Result<(), Error> {
        if let Some(lock) = &mut self.0 {
            query("SELECT 1").execute(lock).await?;
        }
        Ok(())
    }
}

impl Store {
    /// The right to do what this names, which one server of a database has at a
    /// time; none while another has it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn sole(&self, what: &str) -> Result<Option<Sole>, Error> {
        if !self.write.is_shared() {
            return Ok(Some(Sole(None)));
        }
        let mut transaction = self.write.begin().await?;
        query(SOLE).execute(&mut transaction).await?;
        let row = query("SELECT pg_try_advisory_xact_lock(hashtext($1)) AS is_ours")
            .bind(what)
            .fetch_one(&mut transaction)
            .await?;
        let is_ours: bool = row.try_get("is_ours")?;
        Ok(is_ours.then_some(Sole(Some(transaction))))
    }

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

    /// Whether the secret with this fingerprint is that of all servers of the
    /// database: the first one's is.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn shares_secret(&self, fingerprint: &[u8]) -> Result<bool, Error> {
        if !self.write.is_shared() {
            return Ok(true);
        }
        query("INSERT INTO secret (id, fingerprint) VALUES (1, $1) ON CONFLICT DO NOTHING")
            .bind(fingerprint)
            .execute(&self.write)
            .await?;
        let row = query("SELECT fingerprint FROM secret")
            .fetch_one(&self.write)
            .await?;
        Ok(row.try_get::<Vec<u8>>("fingerprint")? == fingerprint)
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

#[cfg(test)]
mod tests {
    use crate::store::Outbox;
    use crate::store::db::query;
    use crate::store::scratch::Scratch;

    #[tokio::test]
    async fn who_has_a_right_alone_and_says_nothing_for_minutes_loses_it() {
        let Some(scratch) = Scratch::server() else {
            return;
        };
        let store = scratch.open(Outbox::Off).await;
        let mut sole = store.sole("it").await.expect("asked").expect("its");
        assert!(store.sole("it").await.expect("asked").is_none());
        let lock = sole.0.as_mut().expect("a transaction");
        let silence = "SELECT CAST(extract(epoch FROM CAST(current_setting( \
            'idle_in_transaction_session_timeout') AS INTERVAL)) AS BIGINT) AS seconds";
        let row = query(silence).fetch_one(lock).await.expect("a row");
        let seconds: i64 = row.try_get("seconds").expect("a number");
        assert!((60..=600).contains(&seconds), "{seconds}");
        sole.keep().await.expect("it is still its");

        // as it is when those are over
        let end = "SELECT pg_terminate_backend(pid, 9000) FROM pg_locks WHERE locktype = 'advisory' \
            AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        query(end).execute(&store.read).await.expect("ended");
        sole.keep().await.expect_err("it may be another's");
        assert!(store.sole("it").await.expect("asked").is_some());
    }
}
