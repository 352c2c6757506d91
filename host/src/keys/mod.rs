//! Keys: issuing them and telling whose they are. A key is shown once; what is
//! kept is a hash keyed with a secret that is not in the database.

mod format;
mod secret;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::clock::Clock;
use crate::store::keys::{Key, NewKey};
use crate::store::{self, Store};

pub use secret::Secret;

/// Shortest admin key that may be preset, in bytes.
pub const SHORTEST_ADMIN_KEY: usize = 16;

/// Why a key is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not a key, or nobody's.
    #[error("the key is not valid")]
    Invalid,
    /// It was turned off.
    #[error("the key is disabled")]
    Disabled,
    /// The preset admin key is too easy to guess.
    #[error("an admin key needs at least {SHORTEST_ADMIN_KEY} characters")]
    WeakAdminKey,
    /// The operating system gives no randomness.
    #[error("no randomness: {0}")]
    Randomness(getrandom::Error),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

/// A key to issue.
#[derive(Clone, Debug)]
pub struct Order {
    /// The customer it is for.
    pub customer_id: i64,
    /// Name given to it.
    pub name: String,
    /// Requests a minute, for each model.
    pub rate_limit: u32,
    /// Numbers of the models it may use.
    pub allowed_models: Vec<i64>,
}

/// A key just issued, with the only copy of its text.
#[derive(Debug)]
pub struct Issued {
    /// What is stored of it.
    pub key: Key,
    /// The key itself.
    pub text: SecretString,
}

/// Issues and checks keys; clones are cheap.
#[derive(Clone, Debug)]
pub struct Keys {
    store: Store,
    secret: Secret,
    clock: Clock,
}

impl Keys {
    /// Keys of this database, hashed with `secret`.
    pub fn new(store: Store, secret: Secret, clock: Clock) -> Self {
        Self {
            store,
            secret,
            clock,
        }
    }

    /// Issues a customer's key.
    ///
    /// # Errors
    /// When the customer does not exist or the database fails.
    pub async fn issue(&self, order: Order) -> Result<Issued, Error> {
        let made = format::generate(format::CUSTOMER).map_err(Error::Randomness)?;
        let new = NewKey {
            customer_id: order.customer_id,
            name: order.name,
            hash: self.hash(made.text.expose_secret()),
            public_id: made.public_id,
            rate_limit: order.rate_limit,
            allowed_models: order.allowed_models,
        };
        let key = self.store.create_key(new, self.clock.now()).await?;
        Ok(Issued {
            key,
            text: made.text,
        })
    }

    /// Whose key this is.
    ///
    /// # Errors
    /// [`Error::Invalid`] or [`Error::Disabled`] when it does not open anything.
    pub async fn authenticate(&self, text: &str) -> Result<Key, Error> {
        let public_id = format::public_id(format::CUSTOMER, text).ok_or(Error::Invalid)?;
        let (key, hash) = match self.store.key_by_public_id(public_id).await {
            Err(store::Error::NotFound) => return Err(Error::Invalid),
            found => found?,
        };
        if !same(&self.hash(text), &hash) {
            return Err(Error::Invalid);
        }
        if key.is_active {
            Ok(key)
        } else {
            Err(Error::Disabled)
        }
    }

    /// Whether a text looks like a customer's key, whoever's it may be.
    pub fn is_customers(text: &str) -> bool {
        text.starts_with(format::CUSTOMER)
    }

    /// Checks the admin key.
    ///
    /// # Errors
    /// [`Error::Invalid`] when it is not the one.
    pub async fn authenticate_admin(&self, text: &str) -> Result<(), Error> {
        match self.store.admin_hash().await? {
            Some(hash) if same(&self.hash(text), &hash) => Ok(()),
            _ => Err(Error::Invalid),
        }
    }

    /// Sets the admin key to `preset`, or makes one if there is none yet.
    /// Returns the one made.
    ///
    /// # Errors
    /// [`Error::WeakAdminKey`] when the preset is too short.
    pub async fn ensure_admin(
        &self,
        preset: Option<&SecretString>,
    ) -> Result<Option<SecretString>, Error> {
        let Some(preset) = preset else {
            return match self.store.admin_hash().await? {
                Some(_) => Ok(None),
                None => self.reset_admin().await.map(Some),
            };
        };
        if preset.expose_secret().len() < SHORTEST_ADMIN_KEY {
            return Err(Error::WeakAdminKey);
        }
        self.set_admin(preset).await?;
        Ok(None)
    }

    /// Makes a new admin key; the one before it is no longer valid.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reset_admin(&self) -> Result<SecretString, Error> {
        let text = format::generate(format::ADMIN)
            .map_err(Error::Randomness)?
            .text;
        self.set_admin(&text).await?;
        Ok(text)
    }

    /// A key for another purpose, derived from the same secret and, so that
    /// a new admin key makes it another, from the admin key's hash.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn derive(&self, purpose: &str) -> Result<Vec<u8>, Error> {
        let admin = self.store.admin_hash().await?.unwrap_or_default();
        let mut mac = self.mac(b"derive");
        mac.update(purpose.as_bytes());
        mac.update(&admin);
        Ok(mac.finalize().into_bytes().to_vec())
    }

    async fn set_admin(&self, text: &SecretString) -> Result<(), Error> {
        let hash = self.hash(text.expose_secret());
        if self
            .store
            .admin_hash()
            .await?
            .is_some_and(|stored| same(&stored, &hash))
        {
            return Ok(());
        }
        Ok(self.store.set_admin_hash(&hash, self.clock.now()).await?)
    }

    fn hash(&self, text: &str) -> Vec<u8> {
        let mut mac = self.mac(b"key");
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().to_vec()
    }

    /// HMAC-SHA256 under the secret, with a domain so that no two uses meet.
    fn mac(&self, domain: &[u8]) -> Hmac<Sha256> {
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&self.secret.bytes().into());
        mac.update(domain);
        mac.update(&[0]);
        mac
    }
}

fn same(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}
