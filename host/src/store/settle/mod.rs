//! What requests ask of the one writer of usage and holds.

mod file;
mod server;
mod writer;

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::answers::KeptAnswer;
use super::at_work::{self, NamedRequest};
use super::ledger::{Reservation, Reserved};
use super::usage::Usage;
use super::{Error, Store};

/// Jobs that may wait; more wait in their senders.
const QUEUE: usize = 1024;

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A request at its end.
#[derive(Debug)]
pub struct Settlement {
    /// What it used.
    pub usage: Arc<Usage>,
    /// Its answer, if it may be repeated.
    pub answer: Option<KeptAnswer>,
    /// Whether something may be held for it.
    pub is_held: bool,
}

#[derive(Debug)]
enum Job {
    Settle(Box<Settlement>, Reply<()>),
    Reserve(Box<Reservation>, Reply<Reserved>),
}

/// A handle to the task that writes.
#[derive(Clone, Debug)]
pub struct Settler {
    jobs: mpsc::Sender<Job>,
    store: Store,
    process: Arc<str>,
}

impl Settler {
    /// Starts the task; `process` names this run of the server in holds. It ends,
    /// with nothing left unwritten, when the last handle is dropped.
    pub fn start(store: Store, process: String) -> (Self, JoinHandle<()>) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let this = Self {
            jobs,
            store,
            process: process.into(),
        };
        let writer = writer::start(&this.store, &this.process, queue);
        (this, writer)
    }

    /// Takes a request's name among the servers of a shared database, or returns the
    /// hash of the request that has it. It is free again when the request is settled
    /// with an answer, or by [`Store::free_name`].
    ///
    /// # Errors
    /// When the database fails: it may be taken all the same then.
    pub async fn take_name(&self, request: &NamedRequest) -> Result<Option<Vec<u8>>, Error> {
        // no job of the writer's: it may have to wait for another server
        at_work::take(&self.store, &self.process, request).await
    }

    /// Returns when it is on the disk, and what was held for it is free. A second
    /// one of the same request changes nothing; of a file, once it is posted: until then
    /// the books count its cost twice.
    ///
    /// # Errors
    /// [`Error::TakenOver`] when another server took its name meanwhile: it is on
    /// record as failed. Else when it could not be written.
    pub async fn settle(&self, settlement: Settlement) -> Result<(), Error> {
        // to measure what being on record costs; no build for users has this
        #[cfg(feature = "twins")]
        if settlement.usage.model_name.starts_with("unrecorded") {
            let request_id = &settlement.usage.request_id;
            self.store.books.lock().give_up(request_id);
            return Ok(());
        }
        self.send(|reply| Job::Settle(Box::new(settlement), reply))
            .await
    }

    /// Holds what a request may come to cost, as far as its caps leave it. What is
    /// held stays so until the request is settled, even if this is given up.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn reserve(&self, reservation: Reservation) -> Result<Reserved, Error> {
        let reserved = self.store.books.lock().reserve_at_once(&reservation);
        if let Some(reserved) = reserved {
            return reserved;
        }
        self.send(|reply| Job::Reserve(Box::new(reservation), reply))
            .await
    }

    async fn send<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, Error> {
        let (reply, done) = oneshot::channel();
        self.jobs
            .send(job(reply))
            .await
            .map_err(|_| Error::Stopping)?;
        done.await.map_err(|_| Error::Stopping)?
    }
}
