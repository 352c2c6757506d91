//! Whose requests anything caps. All others are not to wait for a transaction
//! before their model is asked.

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

use sqlx::{Row, SqliteConnection, SqlitePool};

use crate::store::{Error, Store};

/// Customers with a credit limit or a budget, of their own or of a key. Clones
/// share it. It is right because one server writes the limits of a database:
/// it is changed while the writing connection is held.
#[derive(Clone, Debug, Default)]
pub struct Limited(Arc<RwLock<HashSet<i64>>>);

/// The customer `$1`, if it is limited; all that are, for null.
const LIMITED: &str = "\
    SELECT customer_id FROM accounts WHERE credit_limit IS NOT NULL \
    AND customer_id = coalesce($1, customer_id) UNION \
    SELECT customer_id FROM budgets WHERE customer_id = coalesce($1, customer_id)";

impl Limited {
    /// As it is in the database.
    pub async fn load(pool: &SqlitePool) -> Result<Self, Error> {
        let rows = sqlx::query(LIMITED).bind(None::<i64>).fetch_all(pool);
        let ids = rows.await?;
        let ids = ids.iter().map(|row| row.try_get("customer_id"));
        let ids: Result<HashSet<i64>, _> = ids.collect();
        Ok(Self(Arc::new(RwLock::new(ids?))))
    }

    /// Whether anything caps the customer's requests.
    pub fn contains(&self, customer_id: i64) -> bool {
        let ids = self.0.read().unwrap_or_else(PoisonError::into_inner);
        ids.contains(&customer_id)
    }

    /// Takes over what a change has made of the customer. To be called once it is
    /// committed, on the connection that wrote it.
    pub async fn renew(
        &self,
        connection: &mut SqliteConnection,
        customer_id: i64,
    ) -> Result<(), Error> {
        let found = sqlx::query(LIMITED)
            .bind(customer_id)
            .fetch_optional(connection)
            .await;
        let mut ids = self.0.write().unwrap_or_else(PoisonError::into_inner);
        match &found {
            Ok(None) => ids.remove(&customer_id),
            // one that is unlimited after all only waits a little longer
            Ok(Some(_)) | Err(_) => ids.insert(customer_id),
        };
        drop(ids);
        found?;
        Ok(())
    }
}

impl Store {
    /// Whether the customer's requests must be reserved for: it has a credit limit
    /// or a budget, of its own or of a key.
    pub fn is_limited(&self, customer_id: i64) -> bool {
        self.limited.contains(customer_id)
    }
}
