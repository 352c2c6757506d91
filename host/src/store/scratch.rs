//! A database for a unit test, of the kind that `MODEL_HOST_TEST_STORE` asks for.

#[path = "../../../tests/it/harness/database.rs"]
#[expect(dead_code, reason = "the integration tests use the rest")]
mod database;

use tempfile::TempDir;
use time::OffsetDateTime;

use super::audit::Actor;
use super::customers::{CustomerLimits, NewCustomer};
use super::keys::{KeyLimits, NewKey, Text};
use super::{Audience, Place, Store};
use crate::money::NanoDollars;

/// A new database; gone when this is dropped.
pub struct Scratch {
    folder: TempDir,
    server: Option<database::Scratch>,
}

impl Scratch {
    /// Of the kind that is asked for.
    pub fn new() -> Self {
        Self {
            server: database::Scratch::if_asked(),
            ..Self::file()
        }
    }

    /// A file.
    pub fn file() -> Self {
        Self {
            folder: TempDir::new().expect("a folder"),
            server: None,
        }
    }

    /// On a server, if there is one.
    pub fn server() -> Option<Self> {
        database::Scratch::if_there().map(|database| Self {
            server: Some(database),
            ..Self::file()
        })
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        match &self.server {
            Some(database) => Place::Server(database.url().into()),
            None => Place::File(self.folder.path().join("db")),
        }
    }

    /// Opens it, once more if it is open.
    pub async fn open(&self, audience: Audience) -> Store {
        Store::open(&self.place(), audience)
            .await
            .expect("a database")
    }
}

/// Creates a customer that is unlike others by `number`; returns its own number.
pub async fn create_customer(
    store: &Store,
    number: i64,
    credit_limit: Option<NanoDollars>,
    now: OffsetDateTime,
) -> i64 {
    let new = NewCustomer {
        name: "A".into(),
        email: format!("{number}@example.com"),
        company: String::new(),
        credit_limit,
        limits: CustomerLimits::default(),
    };
    let created = store.create_customer(new, &Actor::Server, now).await;
    created.expect("a customer").id
}

/// Creates a key that no text opens; returns its number.
pub async fn create_key(
    store: &Store,
    customer_id: i64,
    public_id: String,
    now: OffsetDateTime,
) -> i64 {
    let new = NewKey {
        customer_id,
        name: "K".into(),
        rate_limit: 1,
        limits: KeyLimits::default(),
        allowed_models: vec![],
        scopes: vec![],
        allowed_networks: None,
        expires_at: None,
    };
    let text = Text {
        public_id,
        hash: vec![0],
    };
    let created = store.create_key(new, text, &Actor::Server, now).await;
    created.expect("a key").id
}
