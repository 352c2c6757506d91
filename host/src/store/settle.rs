//! Settling: the one writer of usage. Rows that wait together are committed
//! together, since a commit costs a write to the disk whatever it holds.

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::answers::{self, KeptAnswer};
use super::usage::{self, Usage};
use super::{Error, Outbox, Store, outbox};

/// Rows that may wait; more wait in their senders.
const QUEUE: usize = 1024;
/// Most rows of one commit.
const BATCH: usize = 256;

type Reply = oneshot::Sender<Result<(), Error>>;

/// A request at its end.
#[derive(Debug)]
pub struct Settlement {
    /// What it used.
    pub usage: Usage,
    /// Its answer, if it may be repeated.
    pub answer: Option<KeptAnswer>,
}

/// A handle to the task that settles.
#[derive(Clone, Debug)]
pub struct Settler {
    jobs: mpsc::Sender<(Settlement, Reply)>,
}

impl Settler {
    /// Starts the task. It ends, with nothing left unwritten, when the last
    /// handle is dropped.
    pub fn start(store: Store) -> (Self, JoinHandle<()>) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        (Self { jobs }, tokio::spawn(run(store, queue)))
    }

    /// Returns when it is on the disk. A second one of the same request changes
    /// nothing.
    ///
    /// # Errors
    /// When it could not be written.
    pub async fn settle(&self, settlement: Settlement) -> Result<(), Error> {
        let (reply, done) = oneshot::channel();
        self.jobs
            .send((settlement, reply))
            .await
            .map_err(|_| Error::Stopping)?;
        done.await.map_err(|_| Error::Stopping)?
    }
}

async fn run(store: Store, mut queue: mpsc::Receiver<(Settlement, Reply)>) {
    let mut batch = Vec::with_capacity(BATCH);
    while queue.recv_many(&mut batch, BATCH).await > 0 {
        let outcome = commit(&store, batch.iter().map(|(settlement, _)| settlement)).await;
        if let Err(error) = &outcome {
            tracing::error!(%error, rows = batch.len(), "usage could not be written");
        }
        for (_, reply) in batch.drain(..) {
            let answer = match &outcome {
                Ok(()) => Ok(()),
                Err(error) => Err(Error::Database(error.to_string())),
            };
            // the asker may be gone; the row is written all the same
            reply.send(answer).ok();
        }
    }
}

async fn commit(
    store: &Store,
    settlements: impl Iterator<Item = &Settlement>,
) -> Result<(), Error> {
    let mut transaction = store.write.begin().await?;
    let mut can_report = false;
    for Settlement { usage: row, answer } in settlements {
        let is_new = usage::insert(&mut transaction, row).await?;
        if let (true, Some(answer)) = (is_new, answer) {
            answers::insert(&mut transaction, answer).await?;
        }
        if is_new && row.cost.0 > 0 && matches!(store.outbox, Outbox::On(_)) {
            can_report |= outbox::announce_usage(&mut transaction, row).await?;
        }
    }
    transaction.commit().await?;
    if can_report {
        store.outbox.wake();
    }
    Ok(())
}
