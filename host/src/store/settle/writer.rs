//! The task that writes. What waits together is committed together, since a commit
//! costs a write to the disk whatever is in it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use super::file::File;
use super::server::Server;
use super::{Job, Reply, Settlement};
use crate::store::ledger::{Ended, Reservation, Reserved, budgets};
use crate::store::usage::Usage;
use crate::store::{Error, Store};

/// Most jobs of one commit.
const BATCH: usize = 256;
/// How long a commit waits for those who are about to settle.
const PATIENCE: Duration = Duration::from_millis(1);

pub(super) type Settling = (Box<Settlement>, Reply<()>);
pub(super) type Reserving = (Box<Reservation>, Reply<Reserved>);

/// Jobs of one commit.
#[derive(Default)]
pub(super) struct Batch {
    pub settlements: Vec<Settling>,
    pub reservations: Vec<Reserving>,
}

/// What a commit has come to, for each job in order.
#[derive(Default)]
pub(super) struct Written {
    pub settled: Vec<Result<(), Error>>,
    pub reserved: Vec<Result<Reserved, Error>>,
}

/// Where it writes.
enum Writer {
    File(File),
    Server(Server),
}

/// Starts it; it ends once nobody can have a job for it.
pub(super) fn start(
    store: &Store,
    process: &Arc<str>,
    queue: mpsc::Receiver<Job>,
) -> JoinHandle<()> {
    let writer = match store.is_shared() {
        true => Writer::Server(Server::new(store.clone(), Arc::clone(process))),
        false => Writer::File(File::new(store.clone())),
    };
    tokio::spawn(writer.run(queue))
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        loop {
            let more = match self.must_write_at() {
                None => Some(queue.recv_many(&mut jobs, BATCH).await),
                // before any job, however many wait
                Some(at) if at <= Instant::now() => None,
                Some(at) => timeout_at(at, queue.recv_many(&mut jobs, BATCH)).await.ok(),
            };
            match more {
                Some(0) => break,
                Some(_) => {}
                None => {
                    self.write_rest().await;
                    continue;
                }
            }
            gather(&mut queue, &mut jobs).await;
            let mut batch = Batch::default();
            for job in jobs.drain(..) {
                match job {
                    Job::Settle(settlement, reply) => batch.settlements.push((settlement, reply)),
                    Job::Reserve(reservation, reply) => {
                        batch.reservations.push((reservation, reply));
                    }
                }
            }
            // who gave up may have a settlement in this very batch, which goes first
            // and would not find the hold
            batch.reservations.retain(|(_, reply)| !reply.is_closed());
            if !(batch.settlements.is_empty() && batch.reservations.is_empty()) {
                self.commit(batch).await;
            }
        }
        self.write_rest().await;
    }

    /// When something is to be written though nobody has a job, if anything is.
    fn must_write_at(&self) -> Option<Instant> {
        match self {
            Self::File(file) => file.must_post_at(),
            Self::Server(server) => server.must_free_at(),
        }
    }

    /// Writes what no job is for.
    async fn write_rest(&mut self) {
        match self {
            Self::File(file) => file.post().await,
            Self::Server(server) => server.free().await,
        }
    }

    /// Commits a batch and answers those who wait for it.
    async fn commit(&mut self, batch: Batch) {
        let outcome = match self {
            Self::File(file) => file.write(&batch).await,
            Self::Server(server) => server.write(&batch).await,
        };
        // an asker may be gone; what is written is written all the same
        match outcome {
            Ok(written) => {
                for ((_, reply), settled) in batch.settlements.into_iter().zip(written.settled) {
                    reply.send(settled).ok();
                }
                for ((_, reply), reserved) in batch.reservations.into_iter().zip(written.reserved) {
                    reply.send(reserved).ok();
                }
            }
            Err(error) => {
                let rows = batch.settlements.len();
                tracing::error!(%error, rows, "usage could not be written");
                let failed = || Error::Database(error.to_string());
                for (settlement, reply) in batch.settlements {
                    if settlement.is_held {
                        match self {
                            Self::File(file) => file.give_up(&settlement.usage),
                            Self::Server(server) => server.give_up(settlement.usage),
                        }
                    }
                    reply.send(Err(failed())).ok();
                }
                for (_, reply) in batch.reservations {
                    reply.send(Err(failed())).ok();
                }
            }
        }
    }
}

/// Adds the jobs of those who are about to have one: who runs on this thread goes first,
/// again and again for as long as that brings more, and all share the flush.
async fn gather(queue: &mut mpsc::Receiver<Job>, jobs: &mut Vec<Job>) {
    let since = Instant::now();
    let mut before = 0;
    while jobs.len() > before && jobs.len() < BATCH && since.elapsed() < PATIENCE {
        before = jobs.len();
        tokio::task::yield_now().await;
        while jobs.len() < BATCH
            && let Ok(job) = queue.try_recv()
        {
            jobs.push(job);
        }
    }
}

/// What a settlement ends.
pub(super) fn ended(usage: &Usage) -> Ended<'_> {
    Ended {
        request_id: &usage.request_id,
        owner: owner(usage),
        created_at: usage.created_at,
    }
}

/// Who asked.
pub(super) fn owner(usage: &Usage) -> budgets::Owner {
    budgets::Owner::of_request(usage.customer_id, usage.api_key_id)
}
