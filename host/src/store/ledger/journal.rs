//! The journal of a file: usage that is on record, and yet to be *posted* to all that is
//! made of it, which is the list of usage, its sums, transfers, balances, budgets, and
//! what the operator and Stripe are told.
//!
//! A row of the journal is one write to one table. What is made of it are a dozen
//! statements, however many requests they are for, on tables with indices. So a
//! request waits for its row alone, and the rest is done for many together: when they are
//! many, or the first of them has waited, or somebody is to read it ([`Store::up_to_date`])
//! or to change money in another way.
//!
//! The books in memory have all of it at once, so that no request ever sees a balance
//! without what others have cost; what is in them goes to the file when it is posted. If
//! that fails, or the process ends before, it is made again from the journal, which is
//! emptied in the transaction that posts. Two rules make that safe:
//! - The books of a file are read from it only when nothing is left to be posted.
//! - Whoever adds to the journal, or posts, has the file's one turn at writing.

use std::collections::HashSet;
use std::sync::Arc;

use super::budgets::Owner;
use super::{Booked, Books, Scope};
use crate::store::db::{Pool, Script, Transaction, query};
use crate::store::usage::{self, Usage};
use crate::store::{Error, Store};

impl Store {
    /// What to read by, with all in it that is on record.
    ///
    /// # Errors
    /// When it could not be posted.
    pub(in crate::store) async fn up_to_date(&self) -> Result<&Pool, Error> {
        if self.books.lock().is_any_unposted() {
            self.post(&mut self.write.begin().await?).await?;
        }
        Ok(&self.read)
    }

    /// Posts what the process before this one has left in the journal of a file.
    ///
    /// # Errors
    /// When the database fails.
    pub(in crate::store) async fn post_what_was_left(
        &self,
        turn: &mut Transaction<'_>,
    ) -> Result<(), Error> {
        if turn.turn().is_some() {
            self.books.lock().fall_behind();
        }
        self.post(turn).await
    }

    /// Posts what is in the journal, in a transaction of its own, before another in the
    /// same turn. Nothing, where there is no journal.
    ///
    /// # Errors
    /// When it could not be posted. It stays in the journal, and the books are empty.
    pub(in crate::store) async fn post(&self, turn: &mut Transaction<'_>) -> Result<(), Error> {
        let (is_any, is_behind) = {
            let books = self.books.lock();
            (books.is_any_unposted(), books.is_behind())
        };
        if !is_any || turn.turn().is_none() {
            return Ok(());
        }
        if !is_behind {
            match self.post_books(turn).await {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(%error, "usage is posted once more"),
            }
            self.give_up_posting(turn).await?;
        }
        let posted = self.post_journal(turn).await;
        if posted.is_err() {
            self.give_up_posting(turn).await?;
        }
        posted
    }

    async fn give_up_posting(&self, transaction: &mut Transaction<'_>) -> Result<(), Error> {
        self.books.lock().fall_behind();
        if let Some(turn) = transaction.turn() {
            turn.undo().await?;
        }
        Ok(())
    }

    /// Posts what the books have, which is all that is in the journal.
    async fn post_books(&self, transaction: &mut Transaction<'_>) -> Result<(), Error> {
        let mut script = Script::default();
        script.add(usage::post());
        let booked = self.books.lock().write(transaction, &mut script);
        let rows = booked.usage.len();
        self.end_posting(transaction, script, booked, rows).await
    }

    /// Posts what is in the journal, whatever the books have.
    async fn post_journal(&self, transaction: &mut Transaction<'_>) -> Result<(), Error> {
        self.books.lock().fall_behind();
        let rows = usage::in_journal(transaction).await?;
        let mut scope = Scope::default();
        for usage in &rows {
            let owner = Owner::of_request(usage.customer_id, usage.api_key_id);
            scope.count(owner, usage.created_at);
        }
        let mut script = Script::default();
        let asked = self.books.lock().ask(transaction, &mut script, scope);
        let inserted = script.add(usage::post_new());
        let ran = script.run(transaction).await?;
        let new = usage::inserted(ran.rows(Some(inserted)))?;

        let mut script = Script::default();
        let booked = {
            // at one moment: nobody may reserve by a balance that lacks what is posted here
            let mut books = self.books.lock();
            let settled = books
                .read(asked, &ran)
                .and_then(|_| settle_new(&mut books, &rows, new));
            if settled.is_err() {
                books.fall_behind();
            }
            settled?;
            books.write(transaction, &mut script)
        };
        self.end_posting(transaction, script, booked, rows.len())
            .await
    }

    async fn end_posting(
        &self,
        transaction: &mut Transaction<'_>,
        mut script: Script<'_>,
        booked: Booked,
        rows: usize,
    ) -> Result<(), Error> {
        // so many, or else others have written to the file
        script.add_change_of(rows, query("DELETE FROM journal"));
        let telling = self.tell(transaction, booked).await?;
        if let Some(turn) = transaction.turn() {
            script.commit_in(turn).await?;
        }
        self.books.lock().catch_up();
        self.told(&telling);
        Ok(())
    }
}

/// Books the rows of requests that had none yet.
fn settle_new(
    books: &mut Books,
    rows: &[Arc<Usage>],
    mut new: HashSet<String>,
) -> Result<(), Error> {
    for usage in rows {
        if new.remove(&usage.request_id) {
            books.settle(usage)?;
        } else {
            books.free(&usage.request_id)?;
        }
    }
    Ok(())
}
