//! The admin key's keyed hash, and whether servers make it with one secret.

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
        let set = "INSERT INTO admin_key (id, hash, created_at) VALUES (1, $1, $2) \
            ON CONFLICT (id) DO UPDATE SET hash = excluded.hash, created_at = excluded.created_at";
        self.write_admin_hash(set, hash, by, now).await.map(drop)
    }

    /// Sets the admin key if there is none yet; `false` where another server was first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_first_admin_hash(
        &self,
        hash: &[u8],
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<bool, Error> {
        let set = "INSERT INTO admin_key (id, hash, created_at) VALUES (1, $1, $2) \
            ON CONFLICT DO NOTHING";
        self.write_admin_hash(set, hash, by, now).await
    }

    /// Runs what sets the admin key, and puts it on record if it does.
    async fn write_admin_hash(
        &self,
        set: &'static str,
        hash: &[u8],
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<bool, Error> {
        let mut transaction = self.write.begin().await?;
        let set = query(set).bind(hash).bind(millis(now));
        if set.execute(&mut transaction).await? == 0 {
            return Ok(false);
        }
        let act = Act {
            action: "admin_key.reset",
            object: Object::AdminKey,
            before: None,
            after: None,
        };
        audit::record(&mut transaction, by, act, now).await?;
        transaction.commit().await?;
        Ok(true)
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
}
