//! API keys. What is stored of a key is its public part and a keyed hash.

use sqlx::Row;
use sqlx::sqlite::SqliteRow;
use time::OffsetDateTime;

use super::{Error, Store, from_millis, millis};

/// An API key, without its secret.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its number.
    pub id: i64,
    /// The customer it belongs to.
    pub customer_id: i64,
    /// Name given to it.
    pub name: String,
    /// The part of the key that names it.
    pub public_id: String,
    /// Requests a minute, for each model.
    pub rate_limit: u32,
    /// Numbers of the models it may use.
    pub allowed_models: Vec<i64>,
    /// Whether it may be used now.
    pub is_active: bool,
    /// When it was created.
    pub created_at: OffsetDateTime,
}

/// A key to store.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The customer it belongs to.
    pub customer_id: i64,
    /// Name given to it.
    pub name: String,
    /// The part of the key that names it.
    pub public_id: String,
    /// Keyed hash of the whole key.
    pub hash: Vec<u8>,
    /// Requests a minute, for each model.
    pub rate_limit: u32,
    /// Numbers of the models it may use.
    pub allowed_models: Vec<i64>,
}

/// What to change of a key; what is absent stays.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    /// New name.
    pub name: Option<String>,
    /// New rate.
    pub rate_limit: Option<u32>,
    /// New list of models.
    pub allowed_models: Option<Vec<i64>>,
}

fn key(row: &SqliteRow) -> Result<Key, Error> {
    let models: String = row.try_get("allowed_models")?;
    Ok(Key {
        id: row.try_get("id")?,
        customer_id: row.try_get("customer_id")?,
        name: row.try_get("name")?,
        public_id: row.try_get("public_id")?,
        rate_limit: row.try_get("rate_limit")?,
        allowed_models: serde_json::from_str(&models)
            .map_err(|e| Error::Database(e.to_string()))?,
        is_active: row.try_get("is_active")?,
        created_at: from_millis(row.try_get("created_at")?),
    })
}

fn json(models: &[i64]) -> String {
    serde_json::json!(models).to_string()
}

impl Store {
    /// Stores a new key.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the customer does not exist.
    pub async fn create_key(&self, new: NewKey, now: OffsetDateTime) -> Result<Key, Error> {
        let row = sqlx::query(
            "INSERT INTO api_keys \
             (customer_id, name, public_id, hash, rate_limit, allowed_models, created_at) \
             SELECT id, $2, $3, $4, $5, $6, $7 FROM customers \
             WHERE id = $1 AND deleted_at IS NULL RETURNING *",
        )
        .bind(new.customer_id)
        .bind(new.name)
        .bind(new.public_id)
        .bind(new.hash)
        .bind(new.rate_limit)
        .bind(json(&new.allowed_models))
        .bind(millis(now))
        .fetch_one(&self.write)
        .await?;
        key(&row)
    }

    /// The key with this number.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn key(&self, id: i64) -> Result<Key, Error> {
        let sql = "SELECT * FROM api_keys WHERE id = $1 AND deleted_at IS NULL";
        key(&sqlx::query(sql).bind(id).fetch_one(&self.read).await?)
    }

    /// The key with this public part, and its keyed hash.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn key_by_public_id(&self, public_id: &str) -> Result<(Key, Vec<u8>), Error> {
        let sql = "SELECT * FROM api_keys WHERE public_id = $1 AND deleted_at IS NULL";
        let row = sqlx::query(sql)
            .bind(public_id)
            .fetch_one(&self.read)
            .await?;
        Ok((key(&row)?, row.try_get("hash")?))
    }

    /// At most `limit` keys with numbers above `after`, of one customer or of all.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keys(
        &self,
        customer_id: Option<i64>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Key>, Error> {
        let rows = sqlx::query(
            "SELECT * FROM api_keys WHERE id > $1 AND ($2 IS NULL OR customer_id = $2) \
             AND deleted_at IS NULL ORDER BY id LIMIT $3",
        )
        .bind(after)
        .bind(customer_id)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(key).collect()
    }

    /// Turns an active key off and an inactive one on.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn toggle_key(&self, id: i64) -> Result<Key, Error> {
        let sql = "UPDATE api_keys SET is_active = 1 - is_active \
                   WHERE id = $1 AND deleted_at IS NULL RETURNING *";
        key(&sqlx::query(sql).bind(id).fetch_one(&self.write).await?)
    }

    /// Changes a key.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn change_key(&self, id: i64, change: KeyChange) -> Result<Key, Error> {
        let row = sqlx::query(
            "UPDATE api_keys SET name = coalesce($2, name), \
             rate_limit = coalesce($3, rate_limit), \
             allowed_models = coalesce($4, allowed_models) \
             WHERE id = $1 AND deleted_at IS NULL RETURNING *",
        )
        .bind(id)
        .bind(change.name)
        .bind(change.rate_limit)
        .bind(change.allowed_models.as_deref().map(json))
        .fetch_one(&self.write)
        .await?;
        key(&row)
    }

    /// Deletes a key; its usage stays on record.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn delete_key(&self, id: i64, now: OffsetDateTime) -> Result<(), Error> {
        let deleted =
            sqlx::query("UPDATE api_keys SET deleted_at = $1 WHERE id = $2 AND deleted_at IS NULL")
                .bind(millis(now))
                .bind(id)
                .execute(&self.write)
                .await?;
        if deleted.rows_affected() == 0 {
            Err(Error::NotFound)
        } else {
            Ok(())
        }
    }
}
