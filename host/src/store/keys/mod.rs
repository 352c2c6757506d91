//! API keys. What is stored of a key is its public part and a keyed hash.

mod change;
mod scope;

use std::collections::HashMap;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;
use time::OffsetDateTime;

use super::customers::CustomerLimits;
use super::db::{Row, query};
use super::{Error, Store, from_millis, millis};

pub use change::{KeyChange, NewKey, Text};
pub use scope::Scope;

pub(super) use change::delete_all;

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
    /// Its limits of other things.
    pub limits: KeyLimits,
    /// Limits of all keys of its customer together.
    pub customer_limits: CustomerLimits,
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

impl Key {
    /// Whether it may be used for the model of this number.
    pub fn may_use(&self, model_id: i64) -> bool {
        self.allowed_models.contains(&model_id)
    }
}

/// Limits of a key, for each model; without one, as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyLimits {
    /// Tokens of prompts and answers a minute.
    pub tokens: Option<u32>,
    /// Requests at work at once.
    pub concurrent: Option<u32>,
}

/// The text that a key had before it was rotated.
#[derive(Clone, Debug)]
pub struct Replaced {
    /// The part of it that named the key.
    pub public_id: String,
    /// When it stops working; without, it did at once, by whatever clock.
    pub until: Option<OffsetDateTime>,
}

impl Replaced {
    /// Whether it works beside the one that took its place.
    pub fn works(&self, now: OffsetDateTime) -> bool {
        self.until.is_some_and(|end| end > now)
    }
}

/// What the public part of a text leads to.
#[derive(Clone, Debug)]
pub struct Found {
    /// The key.
    pub key: Arc<Key>,
    /// Keyed hash of the whole text.
    pub hash: Vec<u8>,
    /// Whether a rotation replaced this text.
    pub is_replaced: bool,
}

/// When a key was used.
#[derive(Serialize)]
struct Used {
    key: i64,
    at: i64,
}

const USED: &str = "key BIGINT, at BIGINT";

/// The columns of a [`Key`].
macro_rules! columns {
    () => {
        "*, \
         (SELECT rate_limit FROM customers WHERE customers.id = customer_id) \
         AS customer_rate_limit, \
         (SELECT token_limit FROM customers WHERE customers.id = customer_id) \
         AS customer_token_limit, \
         (SELECT concurrent_limit FROM customers WHERE customers.id = customer_id) \
         AS customer_concurrent_limit"
    };
}
use columns;

fn key(row: &Row) -> Result<Key, Error> {
    let time = |column| -> Result<Option<OffsetDateTime>, Error> {
        Ok(row.try_get::<Option<i64>>(column)?.map(from_millis))
    };
    let replaced: Option<String> = row.try_get("replaced_public_id")?;
    let networks: Option<String> = row.try_get("allowed_networks")?;
    Ok(Key {
        id: row.try_get("id")?,
        customer_id: row.try_get("customer_id")?,
        name: row.try_get("name")?,
        public_id: row.try_get("public_id")?,
        rate_limit: row.try_get("rate_limit")?,
        limits: KeyLimits {
            tokens: row.try_get("token_limit")?,
            concurrent: row.try_get("concurrent_limit")?,
        },
        customer_limits: CustomerLimits {
            requests: row.try_get("customer_rate_limit")?,
            tokens: row.try_get("customer_token_limit")?,
            concurrent: row.try_get("customer_concurrent_limit")?,
        },
        allowed_models: parsed(row.try_get("allowed_models")?)?,
        scopes: parsed(row.try_get("scopes")?)?,
        allowed_networks: networks.as_deref().map(parsed).transpose()?,
        is_active: row.try_get("is_active")?,
        created_at: from_millis(row.try_get("created_at")?),
        expires_at: time("expires_at")?,
        last_used_at: time("last_used_at")?,
        replaced: match replaced {
            Some(public_id) => Some(Replaced {
                public_id,
                until: time("replaced_until")?,
            }),
            None => None,
        },
    })
}

fn parsed<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Error> {
    serde_json::from_str(text).map_err(|error| Error::Database(error.to_string()))
}

impl Store {
    /// The key with this number.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn key(&self, id: i64) -> Result<Key, Error> {
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM api_keys WHERE id = $1 AND deleted_at IS NULL"
        );
        key(&query(sql).bind(id).fetch_one(&self.read).await?)
    }

    /// The key that has a text with this public part, or had it before it was
    /// rotated.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn key_by_public_id(&self, public_id: &str) -> Result<Found, Error> {
        let row = query(concat!(
            "SELECT ",
            columns!(),
            " FROM api_keys WHERE (public_id = $1 OR replaced_public_id = $1) \
             AND deleted_at IS NULL",
        ))
        .bind(public_id)
        .fetch_one(&self.read)
        .await?;
        let key = Arc::new(key(&row)?);
        let replaced = key.replaced.as_ref();
        let is_replaced = replaced.is_some_and(|replaced| replaced.public_id == public_id);
        let hash = row.try_get(if is_replaced { "replaced_hash" } else { "hash" })?;
        Ok(Found {
            key,
            hash,
            is_replaced,
        })
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
        let rows = query(concat!(
            "SELECT ",
            columns!(),
            " FROM api_keys WHERE id > $1 AND ($2 IS NULL OR customer_id = $2) \
             AND deleted_at IS NULL ORDER BY id LIMIT $3",
        ))
        .bind(after)
        .bind(customer_id)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        rows.iter().map(key).collect()
    }

    /// Writes when keys were last used, by their numbers.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn mark_used(&self, used: &HashMap<i64, OffsetDateTime>) -> Result<(), Error> {
        let used: Vec<_> = used
            .iter()
            .map(|(id, at)| Used {
                key: *id,
                at: millis(*at),
            })
            .collect();
        let mut transaction = self.write.begin().await?;
        let lock = transaction.lock("api_keys");
        // in one order, or servers with the same keys would wait for each other
        let written = transaction.of_rows(USED, &used, |used| {
            format!(
                "UPDATE api_keys SET last_used_at = at FROM \
                 (SELECT key, at FROM {used} AS used JOIN api_keys ON id = key ORDER BY id {lock}) \
                 AS used WHERE id = key AND (last_used_at IS NULL OR last_used_at < at)"
            )
        });
        written.execute(&mut transaction).await?;
        transaction.commit().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use time::Duration;
    use time::macros::datetime;

    use crate::store::Audience;
    use crate::store::scratch::{Scratch, create_customer, create_key};

    #[tokio::test]
    async fn servers_with_the_same_keys_write_their_uses_beside_each_other() {
        let scratch = Scratch::server().unwrap_or_else(Scratch::new);
        let store = scratch.open(Audience::default()).await;
        let now = datetime!(2026-01-31 23:00 UTC);
        let customer = create_customer(&store, 1, None, now).await;
        let mut keys = Vec::new();
        for number in 0..64 {
            keys.push(create_key(&store, customer, number.to_string(), now).await);
        }
        let write = async |ahead: i64| {
            for round in 0..16 {
                // each map is in an order of its own
                let at = now + Duration::seconds(ahead + round);
                let used = keys.iter().map(|key| (*key, at)).collect();
                store.mark_used(&used).await.expect("written");
            }
        };
        tokio::join!(write(0), write(100), write(200));
        let last = Some(now + Duration::seconds(215));
        for key in store.keys(None, 0, 100).await.expect("a list") {
            assert_eq!(key.last_used_at, last);
        }
    }
}
