//! How keys change. Each change is on record, both or neither, and is counted,
//! for whoever keeps keys in memory.

use std::sync::atomic::Ordering;

use ipnet::IpNet;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Key, KeyLimits, Scope, columns, key};
use crate::clock::rfc3339;
use crate::store::audit::{self, Act, Actor, Object};
use crate::store::db::{Query, Transaction, query};
use crate::store::servers::{self, Change};
use crate::store::{Error, Store, millis};

/// What the operator says of a key to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// The customer it is for.
    pub customer_id: i64,
    /// Name given to it.
    pub name: String,
    /// Requests a minute, for each model.
    pub rate_limit: u32,
    /// Its limits of other things.
    pub limits: KeyLimits,
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

/// What to change of a key; what is absent stays.
#[derive(Clone, Debug, Default)]
pub struct KeyChange {
    /// New name.
    pub name: Option<String>,
    /// New rate.
    pub rate_limit: Option<u32>,
    /// New limit of tokens, or as configured.
    pub token_limit: Option<Option<u32>>,
    /// New limit of requests at work, or as configured.
    pub concurrent_limit: Option<Option<u32>>,
    /// New list of models.
    pub allowed_models: Option<Vec<i64>>,
    /// New list of scopes.
    pub scopes: Option<Vec<Scope>>,
    /// New list of networks, or none.
    pub allowed_networks: Option<Option<Vec<IpNet>>>,
    /// New end, or none.
    pub expires_at: Option<Option<OffsetDateTime>>,
}

/// What the audit log keeps of a key.
fn on_record(key: &Key) -> Value {
    let replaced = key.replaced.as_ref().map(
        |replaced| json!({ "public_id": replaced.public_id, "until": replaced.until.map(rfc3339) }),
    );
    json!({
        "customer_id": key.customer_id,
        "name": key.name,
        "public_id": key.public_id,
        "rate_limit": key.rate_limit,
        "token_limit": key.limits.tokens,
        "concurrent_limit": key.limits.concurrent,
        "allowed_models": key.allowed_models,
        "scopes": key.scopes,
        "allowed_networks": key.allowed_networks,
        "is_active": key.is_active,
        "expires_at": key.expires_at.map(rfc3339),
        "replaced": replaced,
    })
}

/// What was done to a key, for the audit log.
fn act(action: &'static str, id: i64, before: Option<&Key>, after: Option<&Key>) -> Act {
    Act {
        action,
        object: Object::Key(id),
        before: before.map(on_record),
        after: after.map(on_record),
    }
}

/// Deletes all keys of a customer who is being deleted.
pub async fn delete_all(
    transaction: &mut Transaction<'_>,
    customer_id: i64,
    by: &Actor,
    now: OffsetDateTime,
) -> Result<(), Error> {
    transaction.lock_keys_of(customer_id).await?;
    let rows = query(concat!(
        "UPDATE api_keys SET deleted_at = $1 \
         WHERE customer_id = $2 AND deleted_at IS NULL RETURNING ",
        columns!()
    ))
    .bind(millis(now))
    .bind(customer_id)
    .fetch_all(&mut *transaction)
    .await?;
    let acts = rows.iter().map(|row| {
        let key = key(row)?;
        Ok(act("key.deleted", key.id, Some(&key), None))
    });
    let acts: Vec<_> = acts.collect::<Result<_, Error>>()?;
    audit::record_all(transaction, by, acts, now).await
}

impl Store {
    /// How often keys have changed. What was read of them at another count may
    /// be out of date; where other servers cannot be heard, no count comes twice.
    pub fn key_changes(&self) -> u64 {
        if !self.hears.load(Ordering::Acquire) {
            self.count_change();
        }
        self.key_changes.load(Ordering::Acquire)
    }

    /// Every change of a key ends here: it is counted once it is on the disk, for
    /// whoever keeps keys in memory, here and in other servers.
    pub(in crate::store) async fn commit_keys(
        &self,
        mut transaction: Transaction<'_>,
    ) -> Result<(), Error> {
        servers::tell(&mut transaction, Change::Keys).await?;
        transaction.commit().await?;
        self.count_change();
        Ok(())
    }

    pub(in crate::store) fn count_change(&self) {
        self.key_changes.fetch_add(1, Ordering::AcqRel);
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
        let mut transaction = self.begin_with_money_of(new.customer_id).await?;
        let row = query(concat!(
            "INSERT INTO api_keys (customer_id, name, public_id, hash, rate_limit, \
             allowed_models, scopes, allowed_networks, expires_at, created_at, token_limit, \
             concurrent_limit) \
             SELECT id, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 FROM customers \
             WHERE id = $1 AND deleted_at IS NULL RETURNING ",
            columns!()
        ))
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
        .bind(new.limits.tokens)
        .bind(new.limits.concurrent)
        .fetch_one(&mut transaction)
        .await?;
        let key = key(&row)?;
        let act = act("key.created", key.id, None, Some(&key));
        audit::record(&mut transaction, by, act, now).await?;
        self.commit_keys(transaction).await?;
        Ok(key)
    }

    /// Turns a key on or off, as is said or else from what it is to the other.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn toggle_key(
        &self,
        id: i64,
        is_active: Option<bool>,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, Error> {
        let sql = concat!(
            "UPDATE api_keys SET is_active = coalesce($2, NOT is_active) \
                   WHERE id = $1 AND deleted_at IS NULL RETURNING ",
            columns!()
        );
        let update = query(sql).bind(id).bind(is_active);
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
        let update = query(concat!(
            "UPDATE api_keys SET name = coalesce($2, name), \
             rate_limit = coalesce($3, rate_limit), \
             allowed_models = coalesce($4, allowed_models), \
             scopes = coalesce($5, scopes), \
             allowed_networks = CASE WHEN $6 THEN $7 ELSE allowed_networks END, \
             expires_at = CASE WHEN $8 THEN $9 ELSE expires_at END, \
             token_limit = CASE WHEN $10 THEN $11 ELSE token_limit END, \
             concurrent_limit = CASE WHEN $12 THEN $13 ELSE concurrent_limit END \
             WHERE id = $1 AND deleted_at IS NULL RETURNING ",
            columns!()
        ))
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
        .bind(change.expires_at.flatten().map(millis))
        .bind(change.token_limit.is_some())
        .bind(change.token_limit.flatten())
        .bind(change.concurrent_limit.is_some())
        .bind(change.concurrent_limit.flatten());
        self.update_key(id, "key.changed", update, by, now).await
    }

    /// Gives a key another text. The one it has works until `until`, or stops now, as
    /// does one that an earlier rotation replaced.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn rotate_key(
        &self,
        id: i64,
        text: Text,
        until: Option<OffsetDateTime>,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, Error> {
        let update = query(concat!(
            "UPDATE api_keys SET replaced_public_id = public_id, replaced_hash = hash, \
             replaced_until = $2, public_id = $3, hash = $4 \
             WHERE id = $1 AND deleted_at IS NULL RETURNING ",
            columns!()
        ))
        .bind(id)
        .bind(until.map(millis))
        .bind(text.public_id)
        .bind(text.hash);
        self.update_key(id, "key.rotated", update, by, now).await
    }

    /// Deletes a key; its usage stays on record.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none.
    pub async fn delete_key(&self, id: i64, by: &Actor, now: OffsetDateTime) -> Result<(), Error> {
        let mut transaction = self.write.begin().await?;
        let row = query(concat!(
            "UPDATE api_keys SET deleted_at = $1 WHERE id = $2 AND deleted_at IS NULL RETURNING ",
            columns!()
        ))
        .bind(millis(now))
        .bind(id)
        .fetch_one(&mut transaction)
        .await?;
        let before = key(&row)?;
        let act = act("key.deleted", id, Some(&before), None);
        audit::record(&mut transaction, by, act, now).await?;
        self.commit_keys(transaction).await
    }

    /// Runs an update of one key that returns it, and puts it on record.
    async fn update_key(
        &self,
        id: i64,
        action: &'static str,
        update: Query<'_>,
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<Key, Error> {
        let mut transaction = self.write.begin().await?;
        transaction.lock_key(id).await?;
        let sql = concat!(
            "SELECT ",
            columns!(),
            " FROM api_keys WHERE id = $1 AND deleted_at IS NULL"
        );
        let before = query(sql).bind(id).fetch_one(&mut transaction).await?;
        let before = key(&before)?;
        let after = key(&update.fetch_one(&mut transaction).await?)?;
        let act = act(action, id, Some(&before), Some(&after));
        audit::record(&mut transaction, by, act, now).await?;
        self.commit_keys(transaction).await?;
        Ok(after)
    }
}
