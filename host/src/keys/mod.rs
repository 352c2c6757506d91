//! Keys: issuing them and telling whose they are. A key is shown once; what is
//! kept is a hash keyed with a secret that is not in the database.

mod cache;
mod format;
mod secret;
mod strangers;
mod uses;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::{ExposeSecret, SecretString};
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::network;
use crate::store::audit::Actor;
use crate::store::keys::{Found, Key, NewKey, Text};
use crate::store::{self, Store};

use cache::Cache;
use strangers::Strangers;
use uses::Uses;

pub use format::prefix;
pub use secret::Secret;

/// Between two writings of when keys were used.
const BETWEEN_USES: Duration = Duration::from_secs(5);

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
    /// Its time is over.
    #[error("the key has expired")]
    Expired,
    /// Another text took its place, and its grace period is over.
    #[error("the key was rotated: use the one that replaced it")]
    Replaced,
    /// It may not be used from where the client is.
    #[error("the key may not be used from {0}")]
    NetworkNotAllowed(IpAddr),
    /// The database's keys were hashed with another secret.
    #[error(
        "the file `secret` in the data folder is not that of the database's other servers: copy theirs"
    )]
    OtherSecret,
    /// The preset admin key cannot be one, for this reason.
    #[error("an admin key {0}")]
    UnfitAdminKey(String),
    /// The operating system gives no randomness.
    #[error("no randomness: {0}")]
    Randomness(getrandom::Error),
    /// It is not known yet, and too many such keys are looked for.
    #[error("too many keys that are not known are looked for")]
    Busy,
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// Whether it is the key that is at fault.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Invalid
            | Self::Disabled
            | Self::Expired
            | Self::Replaced
            | Self::NetworkNotAllowed(_) => true,
            Self::OtherSecret
            | Self::UnfitAdminKey(_)
            | Self::Randomness(_)
            | Self::Busy
            | Self::Store(_) => false,
        }
    }
}

/// A key just issued or rotated, with the only copy of its text.
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
    cache: Arc<Cache>,
    strangers: Arc<Strangers>,
    uses: Arc<Uses>,
}

impl Keys {
    /// Keys of this database, hashed with `secret`.
    pub fn new(store: Store, secret: Secret, clock: Clock) -> Self {
        Self {
            store,
            secret,
            clock,
            cache: Arc::default(),
            strangers: Arc::default(),
            uses: Arc::default(),
        }
    }

    /// Makes sure that all servers of the database have the same secret.
    ///
    /// # Errors
    /// [`Error::OtherSecret`] when this one has another.
    pub async fn check_secret(&self) -> Result<(), Error> {
        let fingerprint = self.mac(b"fingerprint").finalize().into_bytes();
        match self.store.shares_secret(&fingerprint).await? {
            true => Ok(()),
            false => Err(Error::OtherSecret),
        }
    }

    /// Issues a customer's key.
    ///
    /// # Errors
    /// When the customer does not exist or the database fails.
    pub async fn issue(&self, new: NewKey, by: &Actor) -> Result<Issued, Error> {
        let (stored, text) = self.make()?;
        let created = self.store.create_key(new, stored, by, self.clock.now());
        let key = created.await?;
        Ok(Issued { key, text })
    }

    /// Gives a key a new text. The one it has works for `grace` beside it, or stops at
    /// once; at most two work at any time, since one that an earlier rotation replaced
    /// stops now.
    ///
    /// # Errors
    /// When the key does not exist or the database fails.
    pub async fn rotate(&self, id: i64, grace: Duration, by: &Actor) -> Result<Issued, Error> {
        let (stored, text) = self.make()?;
        let now = self.clock.now();
        // not "until now", which is later where another server's clock is behind
        let until = (!grace.is_zero()).then(|| now + grace);
        let rotated = self.store.rotate_key(id, stored, until, by, now);
        let key = rotated.await?;
        Ok(Issued { key, text })
    }

    /// Whose key this is, which a client at this address wants to use.
    ///
    /// # Errors
    /// When it does not open anything, or not from there or not now.
    pub async fn authenticate(&self, text: &str, client: IpAddr) -> Result<Arc<Key>, Error> {
        let public_id = Self::public_id(text).ok_or(Error::Invalid)?;
        let found = self.find(public_id).await?;
        if !same(&self.hash(text), &found.hash) {
            return Err(Error::Invalid);
        }
        self.admit(&found, client)
    }

    /// Whose key the text with this public part is, for somebody who showed the
    /// whole text before.
    ///
    /// # Errors
    /// When it does not open anything any more, or not from there.
    pub async fn recall(&self, public_id: &str, client: IpAddr) -> Result<Arc<Key>, Error> {
        let found = self.find(public_id).await?;
        self.admit(&found, client)
    }

    /// The part of a customer's key that names it; nothing of what is no key.
    pub fn public_id(text: &str) -> Option<&str> {
        format::public_id(format::CUSTOMER, text)
    }

    /// Writes every few seconds when keys were used, until `stop`.
    pub async fn write_uses_until(self, stop: CancellationToken) {
        let pause = || tokio::time::sleep(BETWEEN_USES);
        while stop.run_until_cancelled(pause()).await.is_some() {
            self.write_uses().await;
        }
    }

    /// Writes when keys were used since it was last written.
    pub async fn write_uses(&self) {
        let uses = self.uses.take();
        if uses.is_empty() {
            return;
        }
        if let Err(error) = self.store.mark_used(&uses).await {
            tracing::warn!(%error, keys = uses.len(), "not written yet: when keys were last used");
            self.uses.put_back(uses);
        }
    }

    async fn find(&self, public_id: &str) -> Result<Arc<Found>, Error> {
        if let Some(found) = self.cache.get(public_id, self.store.key_changes()) {
            return found.ok_or(Error::Invalid);
        }
        let _turn = match self.cache.knows(public_id) {
            true => None,
            false => Some(self.strangers.turn().await?),
        };
        // before the reading, or a change in between would go unnoticed
        let changes = self.store.key_changes();
        if let Some(found) = self.cache.get(public_id, changes) {
            return found.ok_or(Error::Invalid);
        }
        let found = match self.store.key_by_public_id(public_id).await {
            Ok(found) => Some(Arc::new(found)),
            Err(store::Error::NotFound) => None,
            Err(error) => return Err(error.into()),
        };
        self.cache.put(public_id, found.clone(), changes);
        found.ok_or(Error::Invalid)
    }

    /// The key, if it may be used now and from there.
    fn admit(&self, found: &Found, client: IpAddr) -> Result<Arc<Key>, Error> {
        let (key, now) = (&found.key, self.clock.now());
        if !key.is_active {
            return Err(Error::Disabled);
        }
        if key.expires_at.is_some_and(|end| end <= now) {
            return Err(Error::Expired);
        }
        let replaced = key.replaced.as_ref();
        if found.is_replaced && !replaced.is_some_and(|replaced| replaced.works(now)) {
            return Err(Error::Replaced);
        }
        if let Some(networks) = &key.allowed_networks
            && !network::contain(networks, client)
        {
            return Err(Error::NetworkNotAllowed(client));
        }
        self.uses.note(key.id, now);
        Ok(Arc::clone(key))
    }

    /// A new text, and what is stored of it.
    fn make(&self) -> Result<(Text, SecretString), Error> {
        let made = format::generate(format::CUSTOMER).map_err(Error::Randomness)?;
        let stored = Text {
            hash: self.hash(made.text.expose_secret()),
            public_id: made.public_id,
        };
        Ok((stored, made.text))
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
        match self.strangers.admin_hash(&self.store).await? {
            Some(hash) if same(&self.hash(text), &hash) => Ok(()),
            _ => Err(Error::Invalid),
        }
    }

    /// Sets the admin key to `preset`, without space around it, as what clients send is
    /// read; or makes one if there is none yet. Returns the one made.
    ///
    /// # Errors
    /// [`Error::UnfitAdminKey`] when the preset is too easy to guess, or would open nothing.
    pub async fn ensure_admin(
        &self,
        preset: Option<&SecretString>,
    ) -> Result<Option<SecretString>, Error> {
        let Some(preset) = preset else {
            return match self.store.admin_hash().await? {
                Some(_) => Ok(None),
                None => self.first_admin().await,
            };
        };
        let preset = preset.expose_secret().trim();
        let unfit = |why| Err(Error::UnfitAdminKey(why));
        if preset.len() < SHORTEST_ADMIN_KEY {
            return unfit(format!("needs at least {SHORTEST_ADMIN_KEY} characters"));
        }
        if !preset.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
            return unfit("must be printable ASCII: no client can send other text".to_owned());
        }
        if Self::is_customers(preset) {
            let prefix = format::CUSTOMER;
            return unfit(format!(
                "must not begin with {prefix}, as customers' keys do"
            ));
        }
        self.set_admin(preset, &Actor::Server).await?;
        Ok(None)
    }

    /// Makes an admin key, unless another server has made one meanwhile.
    async fn first_admin(&self) -> Result<Option<SecretString>, Error> {
        let text = new_admin()?;
        let (hash, now) = (self.hash(text.expose_secret()), self.clock.now());
        let is_first = self.store.set_first_admin_hash(&hash, &Actor::Server, now);
        Ok(is_first.await?.then_some(text))
    }

    /// Makes a new admin key; the one before it is no longer valid.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn reset_admin(&self, by: &Actor) -> Result<SecretString, Error> {
        let text = new_admin()?;
        self.set_admin(text.expose_secret(), by).await?;
        Ok(text)
    }

    /// A key for another purpose, derived from the same secret and, so that
    /// a new admin key makes it another, from the admin key's hash.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn derive(&self, purpose: &str) -> Result<Vec<u8>, Error> {
        let admin = self.strangers.admin_hash(&self.store).await?;
        let admin = admin.unwrap_or_default();
        let mut mac = self.mac(b"derive");
        mac.update(purpose.as_bytes());
        mac.update(&admin);
        Ok(mac.finalize().into_bytes().to_vec())
    }

    async fn set_admin(&self, text: &str, by: &Actor) -> Result<(), Error> {
        let (hash, now) = (self.hash(text), self.clock.now());
        if self
            .store
            .admin_hash()
            .await?
            .is_some_and(|stored| same(&stored, &hash))
        {
            return Ok(());
        }
        Ok(self.store.set_admin_hash(&hash, by, now).await?)
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

/// The text of a new admin key.
fn new_admin() -> Result<SecretString, Error> {
    let made = format::generate(format::ADMIN);
    Ok(made.map_err(Error::Randomness)?.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Audience;
    use crate::store::customers::{CustomerLimits, NewCustomer};
    use crate::store::keys::{KeyLimits, Scope};
    use crate::store::scratch::Scratch;

    #[tokio::test]
    async fn a_key_in_use_and_one_that_nobody_has_are_read_once() {
        let folder = tempfile::TempDir::new().unwrap();
        // on a server nothing in memory serves while that cannot be reached
        let scratch = Scratch::file();
        let store = scratch.open(Audience::default()).await;
        let secret = Secret::open(&folder.path().join("secret")).unwrap();
        let keys = Keys::new(store.clone(), secret, Clock);
        let customer = NewCustomer {
            name: "A".to_owned(),
            email: "a@example.com".to_owned(),
            company: String::new(),
            credit_limit: None,
            limits: CustomerLimits::default(),
        };
        let by = Actor::Server;
        let customer = store.create_customer(customer, &by, Clock.now()).await;
        let new = NewKey {
            customer_id: customer.unwrap().id,
            name: "K".to_owned(),
            rate_limit: 1,
            limits: KeyLimits::default(),
            allowed_models: vec![],
            scopes: Scope::ALL.to_vec(),
            allowed_networks: None,
            expires_at: None,
        };
        let issued = keys.issue(new, &by).await.unwrap();
        let client = "127.0.0.1".parse().unwrap();
        let known = issued.text.expose_secret();
        let [unknown, other] = [(); 2].map(|()| format::generate(format::CUSTOMER).unwrap().text);
        keys.authenticate(known, client).await.unwrap();
        let ask = async |text: &SecretString| keys.authenticate(text.expose_secret(), client).await;
        assert!(matches!(ask(&unknown).await, Err(Error::Invalid)));

        // nothing can be read any more
        store.close().await;
        keys.authenticate(known, client).await.unwrap();
        assert!(matches!(ask(&unknown).await, Err(Error::Invalid)));
        assert!(matches!(ask(&other).await, Err(Error::Store(_))));
    }
}
