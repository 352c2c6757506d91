//! The admin key's keyed hash.

use time::OffsetDateTime;

use super::audit::{self, Act, Actor, Object};
use super::db::query;
use super::{Error, Store, millis};

impl Store {
    /// The keyed hash of the admin key, once one was set.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn admin_hash(&self) -> Result<Option<Vec<u8>>, Error> {
        let row = query("SELECT hash FROM admin_key")
            .fetch_optional(&self.read)
            .await?;
        Ok(row.map(|row| row.try_get("hash")).transpose()?)
    }

    /// Sets the admin key; the one before it is no longer valid.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_admin_hash(
        &self,
        hash: &[u8],
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let mut transaction = self.write.begin().await?;
        query(
            "INSERT INTO admin_key (id, hash, created_at) VALUES (1, $1, $2) \
             ON CONFLICT (id) DO UPDATE SET hash = excluded.hash, created_at = excluded.created_at",
        )
        .bind(hash)
        .bind(millis(now))
        .execute(&mut transaction)
        .await?;
        let act = Act {
            action: "admin_key.reset",
            object: Object::AdminKey,
            before: None,
            after: None,
        };
        audit::record(&mut transaction, by, act, now).await?;
        transaction.commit().await?;
        Ok(())
    }
}
