//! API keys. What is stored of a key is its public part and a keyed hash.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::query::Query;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteRow};
use sqlx::{Row, SqliteConnection};
use time::OffsetDateTime;

use super::audit::{self, Act, Actor, Object};
use super::{Error, Store, from_millis, millis};
use crate::clock::rfc3339;

/// Something that a customer's key may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "&'static str", try_from = "String")]
pub enum Scope {
    /// Asking models.
    Generate,
    /// Seeing the models that it may ask.
    ModelsRead,
    /// Seeing what its customer used.
    UsageRead,
    /// Seeing its customer's keys.
    KeysRead,
    /// Seeing what is known of its customer.
    CustomerRead,
}

impl Scope {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::Generate,
        Self::ModelsRead,
        Self::UsageRead,
        Self::KeysRead,
        Self::CustomerRead,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::ModelsRead => "models:read",
            Self::UsageRead => "usage:read",
            Self::KeysRead => "keys:read",
            Self::CustomerRead => "customer:read",
        }
    }
}

impl From<Scope> for &'static str {
    fn from(scope: Scope) -> Self {
        scope.as_str()
    }
}

impl TryFrom<String> for Scope {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|scope| scope.as_str() == name);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::as_str).join(", ");
            format!("there is no scope {name:?}; there are {names}")
        })
    }
}

/// An API key, without its secret.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its number.
    pub id: i64,
    /// The customer it belongs to.
    pub customer_id: i64,
    /// Name given to it.
    pub name: String,
    /// The part of the key's text that names it.
    pub public_id: String,
    /// Requests a minute, for each model.
    pub rate_limit: u32,
    /// Numbers of the models it may use.
    pub allowed_models: Vec<i64>,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// Networks that it may be used from; without, from anywhere.
    pub allowed_networks: Option<Vec<IpNet>>,
    /// Whether it may be used now.
    pub is_active: bool,
    /// When it was created.
    pub created_at: OffsetDateTime,
    /// When it ends, if it does.
    pub expires_at: Option<OffsetDateTime>,
    /// When it was last used; some seconds late.
    pub last_used_at: Option<OffsetDateTime>,
    /// The text that the latest rotation replaced.
    pub replaced: Option<Replaced>,
}

/// The text that a key had before it was rotated.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// The part of it that named the key.
    pub public_id: String,
    /// When it stops working.
    pub until: OffsetDateTime,
}

/// What the operator says of a key to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The customer it is for.
    pub customer_id: i64,
    /// Name given to it.
    pub name: String,
    /// Requests a minute, for each model.
    pub rate_limit: u32,
    /// Numbers of the models it may use.
    pub allowed_models: Vec<i64>,
    /// What it may be used for.
    pub scopes: Vec<Scope>,
    /// Networks that it may be used from; without, from anywhere.
    pub allowed_networks: Option<Vec<IpNet>>,
    /// When it ends, if it does.
    pub expires_at: Option<OffsetDateTime>,
}

/// What is stored of a key's text.
#[derive(Clone, Debug)]
pub struct Text {
    /// The part that names the key.
    pub public_id: String,
    /// Keyed hash of the whole.
    pub hash: Vec<u8>,
}

/// What the public part of a text leads to.
#[derive(Clone, Debug)]
pub struct Found {
    /// The key.
    pub key: Key,
    /// Keyed hash of the whole text.
    pub hash: Vec<u8>,
    /// When this text stops working, where a rotation replaced it.
    pub until: Option<OffsetDateTime>,
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
    /// New list of scopes.
    pub scopes: Option<Vec<Scope>>,
    /// New list of networks, or none.
    pub allowed_networks: Option<Option<Vec<IpNet>>>,
    /// New end, or none.
    pub expires_at: Option<Option<OffsetDateTime>>,
}

fn key(row: &SqliteRow) -> Result<Key, Error> {
    let time = |column| -> Result<Option<OffsetDateTime>, Error> {
        Ok(row.try_get::<Option<i64>, _>(column)?.map(from_millis))
    };
    let replaced: Option<String> = row.try_get("replaced_public_id")?;
    let networks: Option<String> = row.try_get("allowed_networks")?;
    Ok(Key {
        id: row.try_get("id")?,
        customer_id: row.try_get("customer_id")?,
        name: row.try_get("name")?,
        public_id: row.try_get("public_id")?,
        rate_limit: row.try_get("rate_limit")?,
        allowed_models: parsed(row.try_get("allowed_models")?)?,
        scopes: parsed(row.try_get("scopes")?)?,
        allowed_networks: networks.as_deref().map(parsed).transpose()?,
        is_active: row.try_get("is_active")?,
        created_at: from_millis(row.try_get("created_at")?),
        expires_at: time("expires_at")?,
        last_used_at: time("last_used_at")?,
        replaced: replaced
            .zip(time("replaced_until")?)
            .map(|(public_id, until)| Replaced { public_id, until }),
    })
}

fn parsed<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Database(error.to_string()))
}

/// What the audit log keeps of a key.
fn on_record(key: &Key) -> Value {
    let replaced = key.replaced.as_ref().map(
        |replaced| json!({ "public_id": replaced.public_id, "until": rfc3339(replaced.until) }),
    );
    json!({
        "customer_id": key.customer_id,
        "name": key.name,
        "public_id": key.public_id,
        "rate_limit": key.rate_limit,
        "allowed_models": key.allowed_models,
        "scopes": key.scopes,
        "allowed_networks": key.allowed_networks,
        "is_active": key.is_active,
        "expires_at": key.expires_at.map(rfc3339),
        "replaced": replaced,
    })
}

async fn record(
    transaction: &mut SqliteConnection,
    by: &Actor,
    action: &'static str,
    (id, before, after): (i64, Option<&Key>, Option<&Key>),
    at: OffsetDateTime,
) -> Result<(), Error> {
    let act = Act {
        action,
        object: Object::Key(id),
        before: before.map(on_record),
        after: after.map(on_record),
    };
    audit::record(transaction, by, act, at).await
}

/// Deletes all keys of a customer who is being deleted.
pub(super) async fn delete_all(
    transaction: &mut SqliteConnection,
    customer_id: i64,
    by: &Actor,
    now: OffsetDateTime,
) -> Result<(), Error> {
    let rows = sqlx::query(
        "UPDATE api_keys SET deleted_at = $1 \
         WHERE customer_id = $2 AND deleted_at IS NULL RETURNING *",
    )
    .bind(millis(now))
    .bind(customer_id)
    .fetch_all(&mut *transaction)
    .await?;
    for row in &rows {
        let key = key(row)?;
        record(
            transaction,
            by,
            "key.deleted",
            (key.id, Some(&key), None),
            now,
        )
        .await?;
    }
    Ok(())
}

impl Store {
    /// How often keys have changed. What was read of them at another count may
    /// be out of date.
    pub fn key_changes(&self) -> u64 {
        self.key_changes.load(Ordering::Acquire)
    }

    /// Every change of a key ends here, once it is on the disk: whoever keeps
    /// keys in memory looks at the count. Other replicas are to be told here.
    pub(super) fn keys_changed(&self) {
        self.key_changes.fetch_add(1, Ordering::Release);
    }

    /// Stores a new key.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the customer does not exist.
    pub async fn create_key(
        &self,
        new: NewKey,
        text: Text,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, Error> {
        let mut transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query(
            "INSERT INTO api_keys (customer_id, name, public_id, hash, rate_limit, \
             allowed_models, scopes, allowed_networks, expires_at, created_at) \
             SELECT id, $2, $3, $4, $5, $6, $7, $8, $9, $10 FROM customers \
             WHERE id = $1 AND deleted_at IS NULL RETURNING *",
        )
        .bind(new.customer_id)
        .bind(new.name)
        .bind(text.public_id)
        .bind(text.hash)
        .bind(new.rate_limit)
        .bind(json!(new.allowed_models).to_string())
        .bind(json!(new.scopes).to_string())
        .bind(
            new.allowed_networks
                .map(|networks| json!(networks).to_string()),
        )
        .bind(new.expires_at.map(millis))
        .bind(millis(now))
        .fetch_one(&mut *transaction)
        .await?;
        let key = key(&row)?;
        record(
            &mut transaction,
            by,
            "key.created",
            (key.id, None, Some(&key)),
            now,
        )
        .await?;
        transaction.commit().await?;
        self.keys_changed();
        Ok(key)
    }

    /// The key with this number.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn key(&self, id: i64) -> Result<Key, Error> {
        let sql = "SELECT * FROM api_keys WHERE id = $1 AND deleted_at IS NULL";
        key(&sqlx::query(sql).bind(id).fetch_one(&self.read).await?)
    }

    /// The key that has a text with this public part, or had it before it was
    /// rotated.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn key_by_public_id(&self, public_id: &str) -> Result<Found, Error> {
        let row = sqlx::query(
            "SELECT * FROM api_keys WHERE (public_id = $1 OR replaced_public_id = $1) \
             AND deleted_at IS NULL",
        )
        .bind(public_id)
        .fetch_one(&self.read)
        .await?;
        let key = key(&row)?;
        let (hash, until) = match &key.replaced {
            Some(replaced) if replaced.public_id == public_id => {
                (row.try_get("replaced_hash")?, Some(replaced.until))
            }
            _ => (row.try_get("hash")?, None),
        };
        Ok(Found { key, hash, until })
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
    pub async fn toggle_key(&self, id: i64, by: &Actor, now: OffsetDateTime) -> Result<Key, Error> {
        let sql = "UPDATE api_keys SET is_active = 1 - is_active \
                   WHERE id = $1 AND deleted_at IS NULL RETURNING *";
        let update = sqlx::query(sql).bind(id);
        self.update_key(id, "key.toggled", update, by, now).await
    }

    /// Changes a key.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn change_key(
        &self,
        id: i64,
        change: KeyChange,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, Error> {
        let networks = change.allowed_networks.as_ref();
        let update = sqlx::query(
            "UPDATE api_keys SET name = coalesce($2, name), \
             rate_limit = coalesce($3, rate_limit), \
             allowed_models = coalesce($4, allowed_models), \
             scopes = coalesce($5, scopes), \
             allowed_networks = CASE WHEN $6 THEN $7 ELSE allowed_networks END, \
             expires_at = CASE WHEN $8 THEN $9 ELSE expires_at END \
             WHERE id = $1 AND deleted_at IS NULL RETURNING *",
        )
        .bind(id)
        .bind(change.name)
        .bind(change.rate_limit)
        .bind(
            change
                .allowed_models
                .map(|models| json!(models).to_string()),
        )
        .bind(change.scopes.map(|scopes| json!(scopes).to_string()))
        .bind(networks.is_some())
        .bind(
            networks
                .and_then(Option::as_ref)
                .map(|networks| json!(networks).to_string()),
        )
        .bind(change.expires_at.is_some())
        .bind(change.expires_at.flatten().map(millis));
        self.update_key(id, "key.changed", update, by, now).await
    }

    /// Gives a key another text. The one it has works until `until`; one that
    /// an earlier rotation replaced stops now.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn rotate_key(
        &self,
        id: i64,
        text: Text,
        until: OffsetDateTime,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, Error> {
        let update = sqlx::query(
            "UPDATE api_keys SET replaced_public_id = public_id, replaced_hash = hash, \
             replaced_until = $2, public_id = $3, hash = $4 \
             WHERE id = $1 AND deleted_at IS NULL RETURNING *",
        )
        .bind(id)
        .bind(millis(until))
        .bind(text.public_id)
        .bind(text.hash);
        self.update_key(id, "key.rotated", update, by, now).await
    }

    /// Deletes a key; its usage stays on record.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn delete_key(&self, id: i64, by: &Actor, now: OffsetDateTime) -> Result<(), Error> {
        let mut transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let row = sqlx::query(
            "UPDATE api_keys SET deleted_at = $1 WHERE id = $2 AND deleted_at IS NULL RETURNING *",
        )
        .bind(millis(now))
        .bind(id)
        .fetch_one(&mut *transaction)
        .await?;
        let before = key(&row)?;
        record(
            &mut transaction,
            by,
            "key.deleted",
            (id, Some(&before), None),
            now,
        )
        .await?;
        transaction.commit().await?;
        self.keys_changed();
        Ok(())
    }

    /// Writes when keys were last used, by their numbers.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mark_used(&self, used: &HashMap<i64, OffsetDateTime>) -> Result<(), Error> {
        let mut transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
        for (id, at) in used {
            sqlx::query("UPDATE api_keys SET last_used_at = $1 WHERE id = $2")
                .bind(millis(*at))
                .bind(id)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Runs an update of one key that returns it, and puts it on record.
    async fn update_key(
        &self,
        id: i64,
        action: &'static str,
        update: Query<'_, Sqlite, SqliteArguments>,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, Error> {
        // the lock first: between the reading and the writing nobody else writes
        let mut transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
        let sql = "SELECT * FROM api_keys WHERE id = $1 AND deleted_at IS NULL";
        let before = sqlx::query(sql)
            .bind(id)
            .fetch_one(&mut *transaction)
            .await?;
        let before = key(&before)?;
        let after = key(&update.fetch_one(&mut *transaction).await?)?;
        record(
            &mut transaction,
            by,
            action,
            (id, Some(&before), Some(&after)),
            now,
        )
        .await?;
        transaction.commit().await?;
        self.keys_changed();
        Ok(after)
    }
}
