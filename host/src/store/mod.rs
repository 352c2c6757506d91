//! The database: the only place with SQL. It is a file of SQLite's or a PostgreSQL
//! server, which [`db`] makes one of.
//!
//! Usage is settled, and room for requests reserved, by [`settle`], a task that
//! commits many rows at once; all other writes are rare.

pub mod admin;
pub mod answers;
pub mod at_work;
pub mod audit;
mod claim;
mod copy;
pub mod customers;
mod db;
pub mod keys;
pub mod ledger;
mod lists;
mod migrations;
pub mod notices;
pub mod outbox;
mod outgoing;
mod pulse;
#[cfg(test)]
pub mod scratch;
mod servers;
mod settle;
mod sole;
pub mod usage;

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use parking_lot::Mutex;
use time::OffsetDateTime;

use at_work::Turns;
use db::{Pool, Transaction, query};
use ledger::{Books, Limited};
use outgoing::Outgoing;
use pulse::Pulse;

pub use claim::Claim;
pub use db::Place;
pub use outgoing::Audience;
pub use settle::{Settlement, Settler};

/// Why the database did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no such row.
    #[error("not found")]
    NotFound,
    /// Another customer has this address.
    #[error("a customer with this email exists")]
    EmailTaken,
    /// The reference is that of another amount or customer.
    #[error("this reference was used for another amount or customer")]
    ReferenceTaken,
    /// Another server has taken the request over, since this one said nothing for
    /// too long.
    #[error("another server is at work on the request")]
    TakenOver,
    /// The task that does it has ended.
    #[error("the server is stopping")]
    Stopping,
    /// The database failed.
    #[error("database: {0}")]
    Database(String),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::RowNotFound => Self::NotFound,
            error => Self::Database(error.to_string()),
        }
    }
}

/// A handle to the database; clones are the same.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

/// What a [`Store`] is a handle to.
#[derive(Debug)]
pub struct Inner {
    write: Pool,
    /// Writes too: what settles and the lease, which wait for nobody else's connection.
    urgent: Pool,
    read: Pool,
    /// To Stripe.
    outbox: Outgoing,
    /// To the operator's webhook.
    notices: Outgoing,
    key_changes: AtomicU64,
    limited: Limited,
    /// Of a file; what is in those of a server is in the database as well.
    books: Mutex<Books>,
    /// Whether this server hears what others change; a file has nobody else to change it.
    hears: AtomicBool,
    /// Whether the lease is unbroken for so long that others may be taken for dead.
    is_steady: AtomicBool,
    turns: Turns,
    pulse: Pulse,
}

impl Deref for Store {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Store {
    /// Opens the database, making and migrating it as needed. Messages are written to it for
    /// the `audience`.
    ///
    /// # Errors
    /// When it cannot be reached or migrated.
    pub async fn open(place: &Place, audience: Audience) -> Result<Self, Error> {
        let write = db::writers(place).await?;
        migrations::run(&write).await?;
        Ok(Self(Arc::new(Inner {
            limited: Limited::load(&write).await?,
            books: Mutex::new(Books::own()),
            hears: AtomicBool::new(!write.is_shared()),
            read: db::readers(place).await?,
            urgent: db::urgent(place, &write).await?,
            write,
            outbox: Outgoing::new(audience.stripe),
            notices: Outgoing::new(audience.webhook),
            key_changes: AtomicU64::default(),
            is_steady: AtomicBool::default(),
            turns: Turns::default(),
            pulse: Pulse::default(),
        })))
    }

    /// Begins a transaction that has the money of a customer to itself until its end:
    /// balance, holds, budgets and open messages.
    async fn begin_with_money_of(&self, customer_id: i64) -> Result<Transaction<'static>, Error> {
        let mut transaction = self.write.begin().await?;
        transaction.lock_customer(customer_id).await?;
        if !self.write.is_shared() {
            // once the file is this transaction's, before anything of it is changed
            self.post(&mut transaction).await?;
            self.books.lock().forget();
        }
        Ok(transaction)
    }

    /// Asks the database for an answer, once a second however many want to know.
    ///
    /// # Errors
    /// When it gives none, or gave none within the last second.
    pub async fn ping(&self) -> Result<(), Error> {
        let ask = async {
            query("SELECT 1").execute(&self.read).await?;
            Ok(())
        };
        self.pulse.feel(Instant::now, ask).await
    }

    /// Ends all connections; the file is whole without its log afterwards.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
        self.urgent.close().await;
    }
}

/// Milliseconds since 1970, as times are stored.
fn millis(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX)
}

/// The time that was stored as milliseconds since 1970.
fn from_millis(millis: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
