//! The task that writes. What waits together is committed together, since a commit
//! costs a write to the disk whatever is in it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Job, Reply, Settlement};
use crate::money::NanoDollars;
use crate::store::db::{Script, Transaction};
use crate::store::ledger::{
    self, Asked, Books, Ended, OpenBooks, Reservation, Reserved, Scope, budgets,
};
use crate::store::outbox::{self, Owed};
use crate::store::usage::{self, Status, Usage};
use crate::store::{Error, Outbox, Store, answers, millis, notices, servers};

/// Most jobs of one commit.
const BATCH: usize = 256;
/// How long a commit waits for those who are about to settle.
const PATIENCE: Duration = Duration::from_millis(1);

/// Jobs of one commit.
#[derive(Default)]
struct Batch {
    settlements: Vec<(Box<Settlement>, Reply<()>)>,
    reservations: Vec<(Box<Reservation>, Reply<Reserved>)>,
}

/// What a commit has changed that others are to be told.
#[derive(Default)]
struct Written {
    settled: Vec<Result<(), Error>>,
    reserved: Vec<Reserved>,
    /// Each with the time of its request.
    near: Vec<(ledger::Near, OffsetDateTime)>,
    can_report: bool,
}

struct Writer {
    store: Store,
    /// The store's own where they stay open.
    books: OpenBooks,
    process: Arc<str>,
    /// Requests that could not be settled, and for which other servers still see
    /// something held; it is freed by the next commit that succeeds.
    unsettled: Vec<Arc<Usage>>,
}

/// Starts it; it ends once nobody can have a job for it.
pub(super) fn start(
    store: &Store,
    process: &Arc<str>,
    queue: mpsc::Receiver<Job>,
) -> JoinHandle<()> {
    let writer = Writer {
        books: match store.write.is_shared() {
            true => OpenBooks::new(Books::shared(Arc::clone(process))),
            false => store.books.clone(),
        },
        store: store.clone(),
        process: Arc::clone(process),
        unsettled: Vec::new(),
    };
    tokio::spawn(writer.run(queue))
}

impl Writer {
    async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH);
        while queue.recv_many(&mut jobs, BATCH).await > 0 {
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
    }

    /// Commits a batch and answers those who wait for it.
    async fn commit(&mut self, batch: Batch) {
        let mut outcome = self.write(&batch, true).await;
        if let Err(error) = &outcome
            && !self.store.write.is_shared()
        {
            // a row may be there already, or how the commit ended is unknown
            tracing::warn!(%error, "usage is written once more");
            self.undo(&batch);
            outcome = self.write(&batch, false).await;
        }
        // an asker may be gone; what is written is written all the same
        match outcome {
            Ok(written) => {
                self.books.lock().written();
                self.unsettled.clear();
                for (near, _) in &written.near {
                    near.log();
                }
                if let Some(notices) = self.store.notices.as_ref()
                    && !written.near.is_empty()
                {
                    notices.notify_one();
                }
                if written.can_report {
                    self.store.outbox.wake();
                }
                for ((_, reply), settled) in batch.settlements.into_iter().zip(written.settled) {
                    reply.send(settled).ok();
                }
                for ((_, reply), reserved) in batch.reservations.into_iter().zip(written.reserved) {
                    reply.send(Ok(reserved)).ok();
                }
            }
            Err(error) => {
                let rows = batch.settlements.len();
                tracing::error!(%error, rows, "usage could not be written");
                let failed = || Error::Database(error.to_string());
                self.undo(&batch);
                let mut books = self.books.lock();
                for (settlement, reply) in batch.settlements {
                    if settlement.is_held && !books.give_up(&settlement.usage.request_id) {
                        self.unsettled.push(settlement.usage);
                    }
                    reply.send(Err(failed())).ok();
                }
                drop(books);
                for (_, reply) in batch.reservations {
                    reply.send(Err(failed())).ok();
                }
            }
        }
    }

    /// Has the books as they were before a batch that could not be written.
    fn undo(&self, batch: &Batch) {
        let mut books = self.books.lock();
        for (wanted, _) in &batch.reservations {
            books.give_up(&wanted.request_id);
        }
        books.undo();
    }

    /// Writes a batch. Where nothing need be read and all its requests are expected to be
    /// `new`, it fails if one is not.
    async fn write(&self, batch: &Batch, are_new: bool) -> Result<Written, Error> {
        let mut transaction = self.store.write.begin().await?;
        if self.store.write.is_shared() {
            // others may have changed what they were about
            self.books.lock().forget();
        }
        // which of them other servers took over is known before any money is locked
        let rows = self.rows(&mut transaction, batch).await?;

        let mut script = Script::default();
        let scope = self.scope(batch);
        let asked = self.books.lock().ask(&transaction, &mut script, scope);
        // what nobody else writes and is known: then one trip to the disk is enough
        let is_at_once = are_new
            && !self.store.write.is_shared()
            && script.is_empty()
            && batch.reservations.is_empty();
        let mut new = None;
        if is_at_once {
            script.add(usage::insert(&transaction, rows.iter().map(|row| &**row)));
        } else {
            let read = std::mem::take(&mut script);
            let ran = self.read(&mut transaction, read, asked, &rows, batch);
            new = Some(ran.await?);
        }

        let mut written = Written::default();
        let mut owed = BTreeMap::new();
        {
            let mut books = self.books.lock();
            // before the reservations, for which they free what was held
            if !rows.is_empty() {
                let booked = settle(&mut books, &rows, new, &mut written, &mut owed)?;
                script.add(usage::add_to_sums(&transaction, booked));
            }
            if !batch.reservations.is_empty()
                && let Some(renew) = servers::renew(&transaction, &self.process)
            {
                script.add(renew);
            }
            for (wanted, _) in &batch.reservations {
                written.reserved.push(books.reserve(wanted)?);
            }
            books.write(&transaction, &mut script);
        }
        self.tell(&mut transaction, &mut written, owed).await?;
        script.run_last(transaction).await?;
        Ok(written)
    }

    /// Reads what the books are to know, and adds the rows that are not there yet. Returns
    /// the ids of their requests.
    async fn read(
        &self,
        transaction: &mut Transaction<'_>,
        mut script: Script<'_>,
        asked: Asked<'_>,
        rows: &[Cow<'_, Usage>],
        batch: &Batch,
    ) -> Result<HashSet<String>, Error> {
        let inserted = (!rows.is_empty()).then(|| {
            if let Some(show) = servers::show_rows(transaction) {
                script.add(show);
            }
            script.add(usage::insert_new(
                transaction,
                rows.iter().map(|row| &**row),
            ))
        });
        let ran = script.run(transaction).await?;
        self.books.lock().read(asked, &ran)?;
        for (wanted, _) in &batch.reservations {
            let unopened = self.books.lock().unopened(wanted);
            for mut row in unopened {
                budgets::open(transaction, &mut row).await?;
                self.books.lock().opened(row);
            }
        }
        usage::inserted(ran.rows(inserted))
    }

    /// Whose money a batch changes, and what it frees.
    fn scope<'a>(&'a self, batch: &'a Batch) -> Scope<'a> {
        let mut scope = Scope::default();
        for usage in &self.unsettled {
            scope.end(ended(usage));
        }
        for (settlement, _) in &batch.settlements {
            let usage = &settlement.usage;
            scope.change(usage.customer_id);
            if settlement.is_held {
                scope.end(ended(usage));
            } else if self.store.write.is_shared() || self.store.is_limited(usage.customer_id) {
                // on a shared database another server may have set a budget just now
                let owner = budgets::Owner::of_request(usage.customer_id, usage.api_key_id);
                scope.count(owner, usage.created_at);
            }
        }
        for (wanted, _) in &batch.reservations {
            let owner = budgets::Owner::of_request(wanted.customer_id, wanted.api_key_id);
            scope.count(owner, wanted.created_at);
        }
        scope
    }

    /// The rows of a batch's settlements, in order: not what was handed in where another
    /// server took the request over. Keeps the answers that may be repeated.
    async fn rows<'a>(
        &self,
        transaction: &mut Transaction<'_>,
        batch: &'a Batch,
    ) -> Result<Vec<Cow<'a, Usage>>, Error> {
        let mut rows = Vec::with_capacity(batch.settlements.len());
        for (settlement, _) in &batch.settlements {
            let is_ours = match &settlement.answer {
                Some(answer) => answers::insert(transaction, answer).await?,
                None => true,
            };
            rows.push(match is_ours {
                true => Cow::Borrowed(&*settlement.usage),
                false => Cow::Owned(taken_over(&settlement.usage)),
            });
        }
        Ok(rows)
    }

    /// Has the operator's webhook and Stripe told of what was settled.
    async fn tell(
        &self,
        transaction: &mut Transaction<'_>,
        written: &mut Written,
        owed: BTreeMap<i64, Owed>,
    ) -> Result<(), Error> {
        if self.store.notices.is_some() {
            for (near, at) in &written.near {
                notices::write(transaction, near, *at).await?;
            }
        }
        if !owed.is_empty() && matches!(self.store.outbox, Outbox::On(_)) {
            let owed: Vec<_> = owed.into_values().collect();
            written.can_report = outbox::announce_usage(transaction, &owed).await?;
        }
        Ok(())
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

/// Books those of the rows that are `new`, or all, and returns them: nothing changes for a
/// request that is settled already, but for what may be held for it.
fn settle<'a>(
    books: &mut Books,
    rows: &'a [Cow<'_, Usage>],
    mut new: Option<HashSet<String>>,
    written: &mut Written,
    owed: &mut BTreeMap<i64, Owed>,
) -> Result<Vec<&'a Usage>, Error> {
    let mut booked = Vec::with_capacity(rows.len());
    for row in rows {
        if new.as_mut().is_some_and(|new| !new.remove(&row.request_id)) {
            books.free(&row.request_id)?;
            written.settled.push(Ok(()));
            continue;
        }
        // only what another server took over is not as it was handed in
        written.settled.push(match row {
            Cow::Borrowed(_) => Ok(()),
            Cow::Owned(_) => Err(Error::TakenOver),
        });
        booked.push(&**row);
        let settled = books.settle(row)?;
        let near = settled.near.into_iter();
        written.near.extend(near.map(|near| (near, row.created_at)));
        if settled.owed.0 > 0 {
            let entry = owed.entry(row.customer_id).or_insert(Owed {
                customer_id: row.customer_id,
                amount: 0,
                created_at: millis(row.created_at),
            });
            entry.amount += settled.owed.0;
        }
    }
    Ok(booked)
}

fn ended(usage: &Usage) -> Ended<'_> {
    Ended {
        request_id: &usage.request_id,
        owner: budgets::Owner::of_request(usage.customer_id, usage.api_key_id),
        created_at: usage.created_at,
    }
}

/// What is on record of a request that another server took over, which has it paid.
fn taken_over(usage: &Usage) -> Usage {
    Usage {
        cost: NanoDollars(0),
        status: Status::Failed,
        error_code: Some("idempotency_conflict".to_owned()),
        ..usage.clone()
    }
}
