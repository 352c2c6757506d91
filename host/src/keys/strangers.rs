//! Readings of the database that anybody can cause, by a key that opens nothing. However
//! many do, those whose keys are known find a connection.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use tokio::sync::{Mutex, Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::Error;
use crate::store::{self, Store};

/// Connections that look for keys which nobody is known to have.
const CONNECTIONS: usize = 2;
/// How long one waits for them.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who comes with a key that is not known, or with what may be the admin key.
#[derive(Debug)]
pub struct Strangers {
    turns: Semaphore,
    /// Readings of the admin key's hash that were begun.
    begun: AtomicU64,
    last: Mutex<Reading>,
}

/// The last reading of the admin key's hash.
#[derive(Debug)]
struct Reading {
    number: u64,
    hash: Result<Option<Vec<u8>>, store::Error>,
}

impl Default for Strangers {
    fn default() -> Self {
        Self {
            turns: Semaphore::new(CONNECTIONS),
            begun: AtomicU64::new(0),
            last: Mutex::new(Reading {
                number: 0,
                hash: Ok(None),
            }),
        }
    }
}

impl Strangers {
    /// The turn of one whose key is not known.
    ///
    /// # Errors
    /// [`Error::Busy`] when it does not come in time.
    pub async fn turn(&self) -> Result<SemaphorePermit<'_>, Error> {
        let turn = timeout(PATIENCE, self.turns.acquire()).await;
        let turn = turn.map_err(|_| Error::Busy)?;
        turn.map_err(|_| store::Error::Stopping.into())
    }

    /// The keyed hash of the admin key, once one was set: by one reading for all who asked
    /// before it began.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn admin_hash(&self, store: &Store) -> Result<Option<Vec<u8>>, store::Error> {
        let begun = self.begun.load(SeqCst);
        let mut last = self.last.lock().await;
        if last.number <= begun {
            let number = self.begun.fetch_add(1, SeqCst) + 1;
            let hash = store.admin_hash().await;
            *last = Reading { number, hash };
        }
        last.hash.clone()
    }
}
