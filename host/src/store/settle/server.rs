//! Of a server: what was used and what is held are rows, for all who share it to see.

use std::sync::Arc;

use super::writer::{Batch, Written, ended, owner};
use crate::money::NanoDollars;
use crate::store::db::{Script, Transaction};
use crate::store::ledger::{Books, Scope, budgets};
use crate::store::servers::{self, List};
use crate::store::usage::{self, Status, Usage};
use crate::store::{Error, Store, answers};

/// Writes to a server.
pub(super) struct Server {
    store: Store,
    process: Arc<str>,
    /// Requests that could not be settled, and for which other servers still see
    /// something held; it is freed by the next commit that succeeds.
    unsettled: Vec<Arc<Usage>>,
}

/// A row of a settlement.
struct Row {
    usage: Arc<Usage>,
    /// Or else another server took the request over.
    is_ours: bool,
}

impl Server {
    pub fn new(store: Store, process: Arc<str>) -> Self {
        Self {
            store,
            process,
            unsettled: Vec::new(),
        }
    }

    /// Has what is held for a request that could not be settled freed by the next commit.
    pub fn give_up(&mut self, usage: Arc<Usage>) {
        self.unsettled.push(usage);
    }

    /// Writes a batch.
    ///
    /// # Errors
    /// When nothing of it is written, or that is unknown.
    pub async fn write(&mut self, batch: &Batch) -> Result<Written, Error> {
        let mut transaction = self.store.write.begin().await?;
        // which of them other servers took over is known before any money is locked
        let rows = rows(&mut transaction, batch).await?;
        let usage: Vec<_> = rows.iter().map(|row| Arc::clone(&row.usage)).collect();

        // others may have changed what they were about
        let mut books = Books::shared(Arc::clone(&self.process));
        let mut script = Script::default();
        let asked = books.ask(&transaction, &mut script, self.scope(batch));
        let inserted = (!rows.is_empty()).then(|| {
            if let Some(show) = servers::show_rows(&transaction, List::Usage) {
                script.add(show);
            }
            script.add(usage::insert_new(&transaction, &usage))
        });
        let ran = script.run(&mut transaction).await?;
        books.read(asked, &ran)?;
        for (wanted, _) in &batch.reservations {
            for mut row in books.unopened(wanted) {
                budgets::open(&mut transaction, &mut row).await?;
                books.opened(row);
            }
        }

        let mut new = usage::inserted(ran.rows(inserted))?;
        let mut written = Written::default();
        for Row { usage, is_ours } in &rows {
            // nothing changes for a request that is settled already
            let is_new = new.remove(&usage.request_id);
            if is_new {
                books.settle(usage)?;
            }
            written.settled.push(match is_new && !is_ours {
                true => Err(Error::TakenOver),
                false => Ok(()),
            });
        }
        let mut script = Script::default();
        if !batch.reservations.is_empty()
            && let Some(renew) = servers::renew(&transaction, &self.process)
        {
            script.add(renew);
        }
        for (wanted, _) in &batch.reservations {
            written.reserved.push(books.reserve(wanted)?);
        }
        let booked = books.write(&transaction, &mut script);
        let telling = self.store.tell(&mut transaction, booked).await?;
        script.run_last(transaction).await?;
        self.unsettled.clear();
        self.store.told(&telling);
        Ok(written)
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
            } else {
                // another server may have set a budget just now
                scope.count(owner(usage), usage.created_at);
            }
        }
        for (wanted, _) in &batch.reservations {
            scope.count(wanted.owner(), wanted.created_at);
        }
        scope
    }
}

/// The rows of a batch's settlements, in order: not what was handed in where another
/// server took the request over. Keeps the answers that may be repeated.
async fn rows(transaction: &mut Transaction<'_>, batch: &Batch) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::with_capacity(batch.settlements.len());
    for (settlement, _) in &batch.settlements {
        let is_ours = match &settlement.answer {
            Some(answer) => answers::insert(transaction, answer).await?,
            None => true,
        };
        let usage = match is_ours {
            true => Arc::clone(&settlement.usage),
            false => Arc::new(taken_over(&settlement.usage)),
        };
        rows.push(Row { usage, is_ours });
    }
    Ok(rows)
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
