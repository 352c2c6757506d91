//! A transaction on a connection to a server.
//!
//! None of sqlx's: that counts as one only once it has begun. Given up before, since nobody
//! waits any more or the server says nothing, it would go on on the connection of somebody
//! else.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnection, PgPool};
use sqlx::{Executor, Postgres};
use tokio::runtime::Handle;

use super::{ANSWER, PATIENCE, answer};

/// A transaction that may have begun; undone if it is dropped before it is committed.
pub struct Begun(Option<PoolConnection<Postgres>>);

impl Begun {
    /// Begins one by this statement.
    ///
    /// # Errors
    /// When there is no connection, or it says nothing.
    pub async fn begin(pool: &PgPool, statement: &'static str) -> Result<Self, sqlx::Error> {
        let mut this = Self(Some(pool.acquire().await?));
        answer(ANSWER, this.connection()?.execute(statement)).await?;
        Ok(this)
    }

    /// The connection within it.
    ///
    /// # Errors
    /// None while it is not over.
    pub fn connection(&mut self) -> Result<&mut PgConnection, sqlx::Error> {
        let connection = self.0.as_deref_mut();
        connection.ok_or(sqlx::Error::PoolClosed)
    }

    /// Makes what was written last.
    ///
    /// # Errors
    /// When the server fails, or says nothing for so long; whether it was written is
    /// unknown then.
    pub async fn commit(mut self, within: Duration) -> Result<(), sqlx::Error> {
        answer(within, self.connection()?.execute("COMMIT")).await?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        let Some(mut connection) = self.0.take() else {
            return;
        };
        let undo = async move {
            if answer(PATIENCE, connection.execute("ROLLBACK"))
                .await
                .is_err()
            {
                // its place is free at once, whatever becomes of it
                drop(connection.detach());
            }
        };
        // without a runtime the program is at its end, and so is the transaction
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(undo);
        }
    }
}
