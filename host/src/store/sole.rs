//! What one server of a database does at a time.

use super::db::{Transaction, query};
use super::{Error, Store};

/// How long whoever does what one server does at a time may do without a word: longer than
/// a transaction may otherwise be idle, but not for ever, which is how long it would be
/// where its machine lost the power and somebody between answers for it.
const SOLE: &str = "SET LOCAL idle_in_transaction_session_timeout = '5min'";

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
}

#[cfg(test)]
mod tests {
    use crate::store::Audience;
    use crate::store::db::query;
    use crate::store::scratch::Scratch;

    #[tokio::test]
    async fn who_has_a_right_alone_and_says_nothing_for_minutes_loses_it() {
        let Some(scratch) = Scratch::server() else {
            return;
        };
        let store = scratch.open(Audience::default()).await;
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
