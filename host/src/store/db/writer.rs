//! The one connection that writes a file. Those who write take turns at it, in the order
//! in which they come.
//!
//! No pool of sqlx's: each command is a trip to the connection's thread and back, and a
//! pool makes one more after each use. Here `BEGIN` goes with the first queries of a
//! transaction, and `COMMIT` with the last.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::runtime::Handle;
use tokio::sync::{Mutex, OwnedMutexGuard};

/// How long a transaction waits for those before it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Takes no row, and fails where one should come: see [`super::Script::add_change_of`].
const CHANGED: &str = "PRAGMA temp_store = memory; CREATE TEMP TABLE changed (rows INTEGER, \
    CONSTRAINT statement_changed_other_rows_than_it_must CHECK (FALSE))";

/// The connection; clones are the same. It is gone once it is closed.
#[derive(Clone)]
pub struct Writer(Arc<Mutex<Option<SqliteConnection>>>);

/// A turn at it, for a transaction, or several that nobody is to come between. What is not
/// committed when it is dropped is undone before the next one.
pub struct Turn {
    connection: Option<OwnedMutexGuard<Option<SqliteConnection>>>,
    /// Whether the transaction may have begun.
    is_open: bool,
}

impl Writer {
    /// # Errors
    /// When the file cannot be opened.
    pub(super) async fn open(options: &SqliteConnectOptions) -> Result<Self, sqlx::Error> {
        let mut connection = SqliteConnection::connect_with(options).await?;
        connection.execute(CHANGED).await?;
        Ok(Self(Arc::new(Mutex::new(Some(connection)))))
    }

    /// Waits for a turn.
    ///
    /// # Errors
    /// When the file is closed, or others take long.
    pub async fn turn(&self) -> Result<Turn, sqlx::Error> {
        let lock = Arc::clone(&self.0).lock_owned();
        let connection = tokio::time::timeout(PATIENCE, lock).await;
        Ok(Turn {
            connection: Some(connection.map_err(|_| sqlx::Error::PoolTimedOut)?),
            is_open: false,
        })
    }

    /// Closes the file, which is whole without its log afterwards.
    pub(super) async fn close(&self) {
        if let Some(connection) = self.0.lock().await.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(%error, "the database is not closed");
        }
    }
}

impl Turn {
    /// The connection, within a transaction or not.
    ///
    /// # Errors
    /// When it is closed.
    pub fn connection(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        let connection = self.connection.as_mut().and_then(|turn| turn.as_mut());
        connection.ok_or(sqlx::Error::PoolClosed)
    }

    /// The connection within the transaction, which has the lock for writing.
    ///
    /// # Errors
    /// When it is closed, or the file is written by another for long.
    pub(super) async fn begun(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        if let Some(begin) = self.begin() {
            self.connection()?.execute(begin).await?;
        }
        self.connection()
    }

    /// What begins the transaction, if it has not begun; it is to be run first.
    pub(super) fn begin(&mut self) -> Option<&'static str> {
        let is_open = std::mem::replace(&mut self.is_open, true);
        // what is read in it is still so when it is written
        (!is_open).then_some("BEGIN IMMEDIATE")
    }

    /// Whether a transaction may have begun.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Says that the transaction is committed.
    pub(super) fn committed(&mut self) {
        self.is_open = false;
    }

    /// Makes what was written last.
    ///
    /// # Errors
    /// When the database fails; whether it was written is unknown then.
    pub(super) async fn commit(mut self) -> Result<(), sqlx::Error> {
        if self.is_open {
            self.connection()?.execute("COMMIT").await?;
        }
        self.committed();
        Ok(())
    }

    /// Undoes what was written; the turn goes on.
    ///
    /// # Errors
    /// When the file is closed.
    pub async fn undo(&mut self) -> Result<(), sqlx::Error> {
        if self.is_open {
            // it fails where nothing had begun, or the database undid it
            let _ = self.connection()?.execute("ROLLBACK").await;
            self.is_open = false;
        }
        Ok(())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(mut turn) = self.connection.take().filter(|_| self.is_open) else {
            return;
        };
        let undo = async move {
            // it fails where nothing had begun, or it was committed all the same
            if let Some(connection) = turn.as_mut() {
                let _ = connection.execute("ROLLBACK").await;
            }
        };
        // without a runtime the program is at its end, and so is the transaction
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(undo);
        }
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Place, Pool, Script, query, writers};
    use tempfile::TempDir;

    /// A file with one table, of which nothing is in it, and the folder it is in.
    async fn file() -> (Pool, TempDir) {
        let folder = TempDir::new().expect("a folder");
        let pool = writers(&Place::File(folder.path().join("db"))).await;
        let pool = pool.expect("a database");
        let made = query("CREATE TABLE t (x INTEGER)").execute(&pool).await;
        made.expect("a table");
        (pool, folder)
    }

    async fn rows(pool: &Pool) -> i64 {
        let row = query("SELECT count(*) AS rows FROM t").fetch_one(pool);
        let row = row.await.expect("a row");
        row.try_get("rows").expect("a number")
    }

    #[tokio::test]
    async fn what_is_not_committed_is_undone_before_the_next_turn() {
        let (pool, _folder) = file().await;
        let mut transaction = pool.begin().await.expect("a turn");
        let added = query("INSERT INTO t VALUES (1)").execute(&mut transaction);
        assert_eq!(added.await.expect("written"), 1);
        drop(transaction);
        assert_eq!(rows(&pool).await, 0);

        // nor what is committed by a script of which a query changes other rows than it must
        for (changed, is_written) in [(2, false), (1, true)] {
            let mut script = Script::default();
            script.add(query("INSERT INTO t VALUES (1)"));
            script.add_change_of(changed, query("UPDATE t SET x = 2 WHERE x = 1"));
            let mut transaction = pool.begin().await.expect("a turn");
            let done = script
                .commit_in(transaction.turn().expect("its turn"))
                .await;
            assert_eq!(done.is_ok(), is_written, "{done:?}");
        }
        assert_eq!(rows(&pool).await, 1);
    }

    #[tokio::test]
    async fn a_transaction_of_several_scripts_is_one() {
        let (pool, _folder) = file().await;
        let mut transaction = pool.begin().await.expect("a turn");
        for added in 1..=2_i64 {
            let mut script = Script::default();
            script.add(query("INSERT INTO t VALUES ($1)").bind(added));
            let all = script.add(query("SELECT x FROM t WHERE x <= $1").bind(added));
            let ran = script.run(&mut transaction).await.expect("run");
            assert_eq!(ran.rows(Some(all)).len(), usize::try_from(added).unwrap());
        }
        let turn = transaction.turn().expect("its turn");
        let nothing = Script::default().commit_in(turn).await;
        nothing.expect("committed");
        drop(transaction);
        assert_eq!(rows(&pool).await, 2);
    }

    #[tokio::test]
    async fn a_closed_file_is_written_no_more() {
        let (pool, _folder) = file().await;
        pool.close().await;
        let late = query("INSERT INTO t VALUES (1)").execute(&pool).await;
        assert!(matches!(late, Err(sqlx::Error::PoolClosed)), "{late:?}");
    }
}
