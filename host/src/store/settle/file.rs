//! Of a file: what was used goes to the journal, and what is held to memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::writer::{Batch, Written, ended, owner};
use crate::store::db::{Script, Transaction};
use crate::store::ledger::{Scope, budgets};
use crate::store::usage::{self, Usage};
use crate::store::{Error, Store, answers};

/// As soon as so many requests wait they are posted: those who settle wait for it.
const MANY: usize = 256;
/// How long a request waits at most until it is posted.
const WAIT: Duration = Duration::from_millis(100);
/// How much longer after that failed.
const AGAIN: Duration = Duration::from_secs(1);

/// Writes to a file.
pub(super) struct File {
    store: Store,
    /// Since when something waits to be posted; others may have done it.
    waiting: Option<Instant>,
}

impl File {
    pub fn new(store: Store) -> Self {
        Self {
            store,
            waiting: None,
        }
    }

    /// When what waits is to be posted, if anything does.
    pub fn must_post_at(&self) -> Option<Instant> {
        let since = self.waiting?;
        let are_many = self.store.books.lock().unposted() >= MANY;
        Some(if are_many { since } else { since + WAIT })
    }

    /// Posts what waits, or tries again later.
    pub async fn post(&mut self) {
        self.waiting = None;
        if let Err(error) = self.store.up_to_date().await {
            tracing::error!(%error, "usage could not be posted");
            self.waiting = Some(Instant::now() + AGAIN);
        }
    }

    /// Writes a batch.
    ///
    /// # Errors
    /// When nothing of it is written.
    pub async fn write(&mut self, batch: &Batch) -> Result<Written, Error> {
        let mut turn = self.store.write.begin().await?;
        // not before the turn: who sets a first budget first says whom it concerns
        let scope = self.scope(batch);
        if batch.reservations.is_empty() && self.store.books.lock().have_all(&scope) {
            return self.add(turn, batch).await;
        }
        let written = match self.read(&mut turn, scope, batch).await {
            Ok(()) => self.add(turn, batch).await,
            Err(error) => Err(error),
        };
        if written.is_err() {
            // a period that they have as begun is not on the disk
            self.store.books.lock().forget();
        }
        written
    }

    /// Has the books know all that they need for a batch.
    async fn read(
        &self,
        turn: &mut Transaction<'_>,
        scope: Scope<'_>,
        batch: &Batch,
    ) -> Result<(), Error> {
        let books = &self.store.books;
        self.store.post(turn).await?;
        let mut script = Script::default();
        let asked = books.lock().ask(turn, &mut script, scope);
        let ran = script.run(turn).await?;
        books.lock().read(asked, &ran)?;
        for (wanted, _) in &batch.reservations {
            let unopened = books.lock().unopened(wanted);
            for mut row in unopened {
                budgets::open(turn, &mut row).await?;
                books.lock().opened(row);
            }
        }
        Ok(())
    }

    /// Adds a batch to the journal, and then to the books, before anybody else has a turn.
    async fn add(&mut self, mut turn: Transaction<'_>, batch: &Batch) -> Result<Written, Error> {
        let rows: Vec<_> = batch
            .settlements
            .iter()
            .map(|(settlement, _)| Arc::clone(&settlement.usage))
            .collect();
        let customers = rows.iter().map(|usage| usage.customer_id);
        // or they could not be booked once they are on the disk
        self.store.books.lock().must_have(customers)?;
        for (settlement, _) in &batch.settlements {
            if let Some(answer) = &settlement.answer {
                answers::insert(&mut turn, answer).await?;
            }
        }
        let mut script = Script::default();
        if !rows.is_empty() {
            script.add(usage::add_to_journal(&turn, &rows));
        }
        if let Some(turn) = turn.turn() {
            script.commit_in(turn).await?;
        }

        let mut books = self.store.books.lock();
        // before the reservations, for which they free what was held
        for usage in &rows {
            if let Err(error) = books.settle(usage) {
                books.fall_behind();
                return Err(error);
            }
        }
        let reservations = batch.reservations.iter();
        let reserved = reservations.map(|(wanted, _)| books.reserve(wanted).map(Ok));
        let reserved = reserved.collect::<Result<_, _>>()?;
        drop(books);
        if !rows.is_empty() {
            self.waiting.get_or_insert_with(Instant::now);
        }
        Ok(Written {
            settled: rows.iter().map(|_| Ok(())).collect(),
            reserved,
        })
    }

    /// Frees what is held for a request that could not be settled.
    pub fn give_up(&self, usage: &Usage) {
        self.store.books.lock().give_up(&usage.request_id);
    }

    /// Whose money a batch changes, and what it frees.
    fn scope<'a>(&self, batch: &'a Batch) -> Scope<'a> {
        let mut scope = Scope::default();
        for (settlement, _) in &batch.settlements {
            let usage = &settlement.usage;
            scope.change(usage.customer_id);
            if settlement.is_held {
                scope.end(ended(usage));
            } else if self.store.is_limited(usage.customer_id) {
                scope.count(owner(usage), usage.created_at);
            }
        }
        for (wanted, _) in &batch.reservations {
            scope.count(wanted.owner(), wanted.created_at);
        }
        scope
    }
}
