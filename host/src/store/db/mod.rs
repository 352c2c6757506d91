//! The two databases: a file of SQLite's, or a PostgreSQL server. Queries are
//! written once, in the SQL that both speak; where they differ is here and in
//! the migrations.
//!
//! SQLite has one writer at a time, and a transaction that begins to write waits
//! for that. PostgreSQL has many, also of other servers: there, whoever changes
//! the money of customers first locks their accounts, all it needs at once and in
//! order, so that nobody waits in a ring. What is read after that is as the last one
//! left it.
//!
//! sqlx's `Any` would do less: no booleans from SQLite, no options of a pool, no
//! notifications.

mod begun;
mod query;
mod row;
mod rows;
mod script;
mod writer;

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fmt, io};

use secrecy::{ExposeSecret, SecretString};
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions as _, Connection as _, Sqlite};
use tokio::time::timeout;

use super::Error;
use begun::Begun;
use writer::Writer;

pub use query::{On, Query, query};
pub use row::Row;
pub use rows::insert_from;
pub use script::{Ran, Script, StepId};
pub use writer::Turn;

/// Connections to PostgreSQL that write: one to have the right alone and one to write for
/// Stripe, the webhook and old rows, at most four for the names of requests, and for what the
/// operator does. They wait for each other.
const WRITERS: u32 = 8;
/// Connections for what must not wait for that: settling, the server's lease, and one to
/// take the place of one that says nothing any more.
const URGENT: u32 = 3;
/// Connections that read.
const READERS: u32 = 8;
/// How long a query waits for a connection, which includes making one, and a connection
/// for the end of what was left undone on it.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a connection that was not used may take for a sign of life; there is time
/// to make another one then.
const SIGN_OF_LIFE: Duration = Duration::from_secs(1);
/// How long a statement may take: PostgreSQL ends it then.
const STATEMENT: &str = "10s";
/// How long one is waited for. A connection that says nothing for longer is dead, whatever
/// TCP thinks of it: the other end may have lost its power, or somebody between.
const ANSWER: Duration = Duration::from_secs(12);

/// Where a database is.
#[derive(Clone, Debug)]
pub enum Place {
    /// In this file.
    File(PathBuf),
    /// Behind this URL, which may hold a password.
    Server(SecretString),
}

impl fmt::Display for Place {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(file) => write!(f, "{}", file.display()),
            Self::Server(_) => f.write_str("that DATABASE_URL names"),
        }
    }
}

/// Connections to a database.
#[derive(Clone, Debug)]
pub enum Pool {
    /// To a file, to read by.
    Sqlite(SqlitePool),
    /// To a file, to write by.
    Writer(Writer),
    /// To a server.
    Postgres(PgPool),
}

/// A transaction; undone if it is dropped before it is committed.
pub enum Transaction<'c> {
    /// On a file, that reads.
    Sqlite(sqlx::Transaction<'c, Sqlite>),
    /// On a file, with the lock for writing from its first query on.
    Writer(Turn),
    /// On a server, and how long it may say nothing.
    Postgres(Begun, Duration),
}

/// Connects to a database, to write. What it is read by is to be opened once the schema
/// is there.
///
/// # Errors
/// When it cannot be reached.
pub async fn writers(place: &Place) -> Result<Pool, Error> {
    match place {
        Place::File(file) => {
            let writer = Writer::open(&file_options(file)).await?;
            Ok(Pool::Writer(writer))
        }
        Place::Server(url) => server(url, WRITERS).await,
    }
}

/// Connections for what must not wait for others that write; a file has one writer.
///
/// # Errors
/// When the database cannot be reached.
pub async fn urgent(place: &Place, writers: &Pool) -> Result<Pool, Error> {
    match place {
        Place::File(_) => Ok(writers.clone()),
        Place::Server(url) => server(url, URGENT).await,
    }
}

/// Connections to read by.
///
/// # Errors
/// When the database cannot be reached.
pub async fn readers(place: &Place) -> Result<Pool, Error> {
    match place {
        Place::File(file) => {
            let options = SqlitePoolOptions::new()
                .max_connections(4)
                // a file does not go away: no trip to its thread to ask
                .test_before_acquire(false);
            let file = file_options(file).read_only(true).create_if_missing(false);
            Ok(Pool::Sqlite(options.connect_with(file).await?))
        }
        Place::Server(url) => server(url, READERS).await,
    }
}

fn file_options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // a commit is on the disk when it returns: usage is money
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
}

async fn server(url: &SecretString, connections: u32) -> Result<Pool, Error> {
    // its error may quote the URL, which holds a password
    let options: PgConnectOptions = url.expose_secret().parse().map_err(|_| {
        Error::Database("DATABASE_URL is no URL of a PostgreSQL database".to_owned())
    })?;
    let options = options
        .application_name("model-host")
        // whatever the server's defaults are: usage is money, and others wait for the locks
        // of a process that stands still, or of a machine that is gone
        .options([
            ("synchronous_commit", "on"),
            ("default_transaction_isolation", "read committed"),
            ("statement_timeout", STATEMENT),
            ("idle_in_transaction_session_timeout", "5s"),
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
            ("client_min_messages", "warning"),
        ])
        // for a statement or a notice sqlx asks whether its line would be logged, and
        // where layers have filters of their own, tracing loses the next line of
        // the thread over an answer of no
        .disable_statement_logging();
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        // its own tests wait for ever
        .test_before_acquire(false)
        .before_acquire(|connection, _| Box::pin(lives(connection, SIGN_OF_LIFE)))
        .after_release(|connection, _| Box::pin(lives(connection, PATIENCE)))
        .connect_with(options)
        .await?;
    Ok(Pool::Postgres(pool))
}

/// Whether a connection still is one; it is not given to anybody on an error.
async fn lives(connection: &mut PgConnection, within: Duration) -> Result<bool, sqlx::Error> {
    answer(within, connection.ping()).await?;
    Ok(true)
}

/// An answer of a server, or an error where it says nothing.
async fn answer<T>(
    within: Duration,
    asking: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let silence = || io::Error::new(io::ErrorKind::TimedOut, "the server says nothing");
    let answer = timeout(within, asking).await;
    answer.unwrap_or_else(|_| Err(silence().into()))
}

impl Pool {
    /// Begins a transaction that may write, and is on the disk when it is committed. Of
    /// a file the lock comes first: what is read in it is still so when it is written.
    ///
    /// # Errors
    /// When the database cannot be reached, or is written by another for long.
    pub async fn begin(&self) -> Result<Transaction<'static>, sqlx::Error> {
        match self {
            Self::Writer(writer) => Ok(Transaction::Writer(writer.turn().await?)),
            // of which no transaction can write
            Self::Sqlite(pool) => Ok(Transaction::Sqlite(pool.begin().await?)),
            Self::Postgres(pool) => {
                let begun = Begun::begin(pool, "BEGIN").await?;
                Ok(Transaction::Postgres(begun, ANSWER))
            }
        }
    }

    /// Begins a transaction that reads the database at one moment.
    ///
    /// # Errors
    /// When the database cannot be reached.
    pub async fn moment(&self) -> Result<Transaction<'static>, sqlx::Error> {
        match self {
            Self::Sqlite(pool) => Ok(Transaction::Sqlite(pool.begin().await?)),
            Self::Writer(writer) => Ok(Transaction::Writer(writer.turn().await?)),
            Self::Postgres(pool) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                let begun = Begun::begin(pool, begin).await?;
                Ok(Transaction::Postgres(begun, ANSWER))
            }
        }
    }

    /// Whether others may write at the same time.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// Ends all connections; a file is whole without its log afterwards.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(pool) => pool.close().await,
            Self::Writer(writer) => writer.close().await,
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

impl Transaction<'_> {
    /// Whether others may write at the same time.
    pub fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(..))
    }

    /// The turn that it is in, where it is one that may write a file.
    pub fn turn(&mut self) -> Option<&mut Turn> {
        match self {
            Self::Writer(turn) => Some(turn),
            Self::Sqlite(_) | Self::Postgres(..) => None,
        }
    }

    /// Makes what was written last.
    ///
    /// # Errors
    /// When the database fails; whether it was written is unknown then.
    pub async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
            Self::Writer(turn) => turn.commit().await,
            Self::Postgres(transaction, within) => transaction.commit(within).await,
        }
    }

    /// Lets its queries take as long as they do, however much there is to read.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn take_long(&mut self) -> Result<(), sqlx::Error> {
        if let Self::Postgres(_, within) = self {
            *within = Duration::MAX;
            query("SET LOCAL statement_timeout = 0")
                .execute(&mut *self)
                .await?;
            query("SET LOCAL idle_in_transaction_session_timeout = 0")
                .execute(self)
                .await?;
        }
        Ok(())
    }

    /// Has the account of a customer to itself until the end. To be called before
    /// anything of its money is read, and once in a transaction.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lock_customer(&mut self, id: i64) -> Result<(), sqlx::Error> {
        if self.is_shared() {
            // not FOR UPDATE, which would also keep off new rows that refer to the account
            query("SELECT FROM accounts WHERE customer_id = $1 FOR NO KEY UPDATE")
                .bind(id)
                .execute(self)
                .await?;
        }
        Ok(())
    }

    /// Has all API keys of a customer to itself until the end, one after the other in the
    /// order in which who writes their uses has them.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lock_keys_of(&mut self, customer_id: i64) -> Result<(), sqlx::Error> {
        if self.is_shared() {
            let lock = "SELECT FROM api_keys WHERE customer_id = $1 AND deleted_at IS NULL \
                ORDER BY id FOR NO KEY UPDATE";
            query(lock).bind(customer_id).execute(self).await?;
        }
        Ok(())
    }

    /// Has an API key to itself until the end, to put on record what it was
    /// before a change.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn lock_key(&mut self, id: i64) -> Result<(), sqlx::Error> {
        if self.is_shared() {
            query("SELECT FROM api_keys WHERE id = $1 FOR NO KEY UPDATE")
                .bind(id)
                .execute(self)
                .await?;
        }
        Ok(())
    }
}
