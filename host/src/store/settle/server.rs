//! Of a server: what was used and what is held are rows, for all who share it to see.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::writer::{Batch, Reserving, Settling, Written, ended, owner};
use crate::money::NanoDollars;
use crate::store::db::{Script, Transaction};
use crate::store::ledger::{Books, Reserved, Scope, budgets};
use crate::store::lists::{self, List};
use crate::store::servers;
use crate::store::usage::{self, Status, Usage};
use crate::store::{Error, Store, answers};

/// How long what is held for a request that could not be settled waits for a commit.
const WAIT: Duration = Duration::from_secs(1);

/// Code of the error of a request that another server took over.
const TAKEN_OVER: &str = "idempotency_conflict";

/// Writes to a server.
pub(super) struct Server {
    store: Store,
    process: Arc<str>,
    /// Requests at work for which other servers may see something held.
    held: HashSet<String>,
    /// Those of them that could not be settled; what is held for them is freed by the
    /// next commit that succeeds.
    unsettled: Vec<Arc<Usage>>,
    /// When there is to be one, though it be for them alone.
    free_at: Option<Instant>,
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
            held: HashSet::new(),
            unsettled: Vec::new(),
            free_at: None,
        }
    }

    /// Has what is held for a request that could not be settled freed by the next commit.
    pub fn give_up(&mut self, usage: Arc<Usage>) {
        // while nothing can be written, nothing is held for those that come
        if self.held.remove(&usage.request_id) {
            self.unsettled.push(usage);
            self.free_at.get_or_insert_with(|| Instant::now() + WAIT);
        }
    }

    /// When what is held for those that could not be settled is to be freed, if anything is.
    pub fn must_free_at(&self) -> Option<Instant> {
        self.free_at
    }

    /// Frees it, or tries again later.
    pub async fn free(&mut self) {
        if self.unsettled.is_empty() {
            return;
        }
        let freed = match self.store.urgent.begin().await {
            Ok(transaction) => self.write_in(transaction, &[], &[]).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = freed {
            let requests = self.unsettled.len();
            tracing::warn!(%error, requests, "something stays held that is over");
            self.free_at = Some(Instant::now() + WAIT);
        }
    }

    /// Writes a batch; its settlements once more, if it is unknown whether they are written.
    ///
    /// # Errors
    /// When nothing of it is written, or that is unknown.
    pub async fn write(&mut self, batch: &Batch) -> Result<Written, Error> {
        let Batch {
            settlements,
            reservations,
        } = batch;
        let transaction = self.store.urgent.begin().await?;
        let error = match self.write_in(transaction, settlements, reservations).await {
            Err(error) if !settlements.is_empty() => error,
            written => return written,
        };
        tracing::warn!(%error, "usage is written once more");
        // what is settled already stays as it is; what is reserved would be so twice
        let transaction = self.store.urgent.begin().await?;
        let mut written = self.write_in(transaction, settlements, &[]).await?;
        let failed = || Err(Error::Database(error.to_string()));
        written.reserved = reservations.iter().map(|_| failed()).collect();
        Ok(written)
    }

    async fn write_in(
        &mut self,
        mut transaction: Transaction<'static>,
        settlements: &[Settling],
        reservations: &[Reserving],
    ) -> Result<Written, Error> {
        // which of them other servers took over is known before any money is locked
        let rows = rows(&mut transaction, settlements).await?;
        let usage: Vec<_> = rows.iter().map(|row| Arc::clone(&row.usage)).collect();

        // others may have changed what they were about
        let mut books = Books::shared(Arc::clone(&self.process));
        let mut script = Script::default();
        let asked = books.ask(
            &transaction,
            &mut script,
            self.scope(settlements, reservations),
        );
        let inserted = (!rows.is_empty()).then(|| {
            if let Some(show) = lists::show_rows(&transaction, List::Usage) {
                script.add(show);
            }
            script.add(usage::insert_new(&transaction, &usage))
        });
        let ran = script.run(&mut transaction).await?;
        books.read(asked, &ran)?;
        for (wanted, _) in reservations {
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
            let is_taken_over = match (is_ours, is_new) {
                (true, _) => false,
                (false, true) => true,
                // it may be settled already: as what?
                (false, false) => usage::failed_by(&mut transaction, usage, TAKEN_OVER).await?,
            };
            written.settled.push(match is_taken_over {
                true => Err(Error::TakenOver),
                false => Ok(()),
            });
        }
        let mut script = Script::default();
        if !reservations.is_empty()
            && let Some(renew) = servers::renew(&transaction, &self.process)
        {
            script.add(renew);
        }
        for (wanted, _) in reservations {
            written.reserved.push(Ok(books.reserve(wanted)?));
        }
        let booked = books.write(&transaction, &mut script);
        let telling = self.store.tell(&mut transaction, booked).await?;
        script.run(&mut transaction).await?;
        // from here on it may be written, whatever is said of it
        for ((wanted, _), reserved) in reservations.iter().zip(&written.reserved) {
            if let Ok(Reserved::Held { .. }) = reserved {
                self.held.insert(wanted.request_id.clone());
            }
        }
        transaction.commit().await?;
        for row in &rows {
            self.held.remove(&row.usage.request_id);
        }
        self.unsettled.clear();
        self.free_at = None;
        self.store.told(&telling);
        Ok(written)
    }

    /// Whose money they change, and what is freed.
    fn scope<'a>(
        &'a self,
        settlements: &'a [Settling],
        reservations: &'a [Reserving],
    ) -> Scope<'a> {
        let mut scope = Scope::default();
        for usage in &self.unsettled {
            scope.end(ended(usage));
        }
        for (settlement, _) in settlements {
            let usage = &settlement.usage;
            scope.change(usage.customer_id);
            if settlement.is_held {
                scope.end(ended(usage));
            } else {
                // another server may have set a budget just now
                scope.count(owner(usage), usage.created_at);
            }
        }
        for (wanted, _) in reservations {
            scope.count(wanted.owner(), wanted.created_at);
        }
        scope
    }
}

/// The rows of settlements, in order: not what was handed in where another
/// server took the request over. Keeps the answers that may be repeated.
async fn rows(
    transaction: &mut Transaction<'_>,
    settlements: &[Settling],
) -> Result<Vec<Row>, Error> {
    let mut rows = Vec::with_capacity(settlements.len());
    for (settlement, _) in settlements {
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
        error_code: Some(TAKEN_OVER.to_owned()),
        ..usage.clone()
    }
}
