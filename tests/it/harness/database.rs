//! The database of a test: a file, or one of its own on the PostgreSQL server that
//! `MODEL_HOST_TEST_POSTGRES` names, where `MODEL_HOST_TEST_STORE` asks for that.

use std::path::PathBuf;

use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Connection, Executor};

/// A database on a server, dropped with this.
#[derive(Debug)]
pub struct Scratch {
    server: String,
    name: String,
}

impl Scratch {
    /// A new one, if the tests are to run on PostgreSQL.
    pub fn if_asked() -> Option<Self> {
        (variable("MODEL_HOST_TEST_STORE")? == "postgres").then(Self::new)
    }

    /// A new one, if there is a server.
    pub fn if_there() -> Option<Self> {
        let this = Self {
            server: variable("MODEL_HOST_TEST_POSTGRES")?,
            name: format!("test_{}", uuid::Uuid::now_v7().simple()),
        };
        this.manage(format!("CREATE DATABASE {}", this.name));
        Some(this)
    }

    /// A new one.
    ///
    /// # Panics
    /// When there is no server.
    pub fn new() -> Self {
        Self::if_there().expect("MODEL_HOST_TEST_POSTGRES: tests/run starts one")
    }

    /// Its URL.
    pub fn url(&self) -> String {
        let (server, _) = self.server.rsplit_once('/').expect("a URL");
        format!("{server}/{}", self.name)
    }

    /// Runs a statement on the server: on a thread of its own, since it is also
    /// wanted where nothing can be awaited.
    fn manage(&self, sql: String) {
        let server = self.server.clone();
        let run = async move || {
            let mut connection = PgConnection::connect(&server).await?;
            connection.execute(AssertSqlSafe(sql)).await
        };
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(run())
        });
        let done = thread.join().expect("no panic");
        done.expect("a statement on the server");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // the server may be gone already, with all that is on it
        if !std::thread::panicking() {
            self.manage(format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
    }
}

/// A way into a server's database past the server.
#[derive(Debug)]
pub enum Database {
    File(PathBuf),
    Server(String),
}

impl Database {
    /// Runs a statement.
    pub async fn execute(&self, sql: &str) -> Result<(), sqlx::Error> {
        let sql = AssertSqlSafe(sql.to_owned());
        match self {
            Self::File(_) => {
                let mut file = self.file().await;
                file.execute(sql).await?;
                // a dropped one goes in its own time, and may be in the next one's way
                file.close().await
            }
            Self::Server(url) => {
                let mut connection = PgConnection::connect(url).await?;
                connection.execute(sql).await.map(drop)
            }
        }
    }

    /// Runs a statement in a transaction on the server, which is undone when this
    /// is dropped.
    pub async fn begin(&self, sql: &str) -> PgConnection {
        let Self::Server(url) = self else {
            panic!("a file has one writer");
        };
        let connection = PgConnection::connect(url).await;
        let mut connection = connection.expect("a connection");
        let sql = AssertSqlSafe(format!("BEGIN; {sql}"));
        connection.execute(sql).await.expect("a transaction");
        connection
    }

    /// Has all changes of this kind on the server wait until what is returned is dropped.
    pub async fn hold_back(&self, change: &str) -> PgConnection {
        let waits = format!(
            "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$; \
             CREATE TRIGGER waits BEFORE {change} FOR EACH ROW EXECUTE FUNCTION wait()"
        );
        self.execute(&waits).await.expect("a trigger");
        self.begin("SELECT pg_advisory_xact_lock(1)").await
    }

    /// The number that a query finds.
    pub async fn number(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        let found = match self {
            Self::File(_) => {
                let mut file = self.file().await;
                let found = sqlx::query_scalar(sql).fetch_one(&mut file).await;
                file.close().await.expect("closed");
                found
            }
            Self::Server(url) => {
                let connection = PgConnection::connect(url).await;
                let mut connection = connection.expect("a connection");
                sqlx::query_scalar(sql).fetch_one(&mut connection).await
            }
        };
        found.expect("a number")
    }

    /// Has every new row of a table refused, as a full disk would.
    pub async fn refuse_rows(&self, table: &str) {
        let sql = match self {
            Self::File(_) => format!(
                "CREATE TRIGGER full BEFORE INSERT ON {table} BEGIN SELECT RAISE(ABORT, 'full'); END"
            ),
            Self::Server(_) => {
                format!("ALTER TABLE {table} ADD CONSTRAINT is_full CHECK (FALSE) NOT VALID")
            }
        };
        self.execute(&sql).await.expect("rows are refused");
    }

    /// Refuses to have usage on record, which a file has in its journal first.
    pub async fn refuse_usage(&self) {
        let table = if self.is_on_server() {
            "usage"
        } else {
            "journal"
        };
        self.refuse_rows(table).await;
    }

    /// Whether it is on a server.
    pub fn is_on_server(&self) -> bool {
        matches!(self, Self::Server(_))
    }

    async fn file(&self) -> SqliteConnection {
        let Self::File(file) = self else {
            panic!("it is on a server");
        };
        let options = SqliteConnectOptions::new().filename(file);
        let connection = SqliteConnection::connect_with(&options).await;
        connection.expect("a database")
    }
}

/// A variable of the tests' own.
#[expect(clippy::disallowed_methods, reason = "a test's own settings")]
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
