//! A database for a unit test, of the kind that `MODEL_HOST_TEST_STORE` asks for.

#[path = "../../../tests/it/harness/database.rs"]
#[expect(dead_code, reason = "the integration tests use the rest")]
mod database;

use tempfile::TempDir;

use super::{Outbox, Place, Store};

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
    pub async fn open(&self, outbox: Outbox) -> Store {
        Store::open(&self.place(), outbox)
            .await
            .expect("a database")
    }
}
