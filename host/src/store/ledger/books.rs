//! What a batch of requests changes of their customers' money: read by one script,
//! changed in memory, and written by another with a statement for each table, however
//! many requests they are.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;
use time::OffsetDateTime;

use super::budgets::{self, Owner};
use super::credit::Nearly;
use super::hold::{self, Closed, Ended};
use super::{Cap, Near, REVENUE, Reservation, Reserved, Settled};
use crate::money::NanoDollars;
use crate::store::db::{PlaceInScript as Place, Query, Ran, Row, Script, Transaction, query};
use crate::store::usage::Usage;
use crate::store::{Error, millis};

/// Whose books to open, and for what.
#[derive(Debug, Default)]
pub(in crate::store) struct Scope<'a> {
    customers: BTreeSet<i64>,
    /// Requests that are over: what is held for them is freed.
    ended: Vec<Ended<'a>>,
    /// Who asks, and the time at which they were admitted, of requests that budgets
    /// may count.
    counted: Vec<(Owner, OffsetDateTime)>,
}

impl<'a> Scope<'a> {
    /// Adds a customer of whom money is changed.
    pub fn change(&mut self, customer_id: i64) {
        self.customers.insert(customer_id);
    }

    /// Adds a request, admitted at this time, of which budgets are to know.
    pub fn count(&mut self, request: Owner, at: OffsetDateTime) {
        self.change(request.customer_id);
        self.counted.push((request, at));
    }

    /// Adds a request for which nothing is to be held any more.
    pub fn end(&mut self, request: Ended<'a>) {
        self.count(request.owner, request.created_at);
        self.ended.push(request);
    }
}

/// Books that a script will read.
pub(in crate::store) struct Asked {
    accounts: Place,
    ended: Option<Place>,
    budgets: Option<Place>,
}

/// The accounts and budgets of some customers, and what is to be written of them.
/// Nobody else changes them before the end of the transaction.
#[derive(Debug)]
pub(in crate::store) struct Books {
    accounts: HashMap<i64, Account>,
    budgets: HashMap<i64, Vec<budgets::Row>>,
    freed: usize,
    transfers: Vec<Transfer>,
    holds: Vec<Hold>,
}

#[derive(Debug)]
struct Account {
    posted: i64,
    held: i64,
    credit_limit: Option<i64>,
    near_at: Option<i64>,
    change: Change,
}

/// A row of the change of accounts.
#[derive(Debug, Serialize)]
struct Change {
    account: i64,
    cost: i64,
    holding: i64,
    is_reserved: bool,
}

const CHANGE: &str = "account BIGINT, cost BIGINT, holding BIGINT, is_reserved BOOLEAN";

#[derive(Debug, Serialize)]
struct Transfer {
    debit: i64,
    credit: i64,
    amount: i64,
    reason: &'static str,
    reference: String,
    created_at: i64,
}

const TRANSFER: &str =
    "debit BIGINT, credit BIGINT, amount BIGINT, reason TEXT, reference TEXT, created_at BIGINT";

#[derive(Debug, Serialize)]
struct Hold {
    request_id: String,
    customer_id: i64,
    api_key_id: i64,
    amount: i64,
    created_at: i64,
    expires_at: i64,
    process: String,
}

const HOLD: &str = "request_id TEXT, customer_id BIGINT, api_key_id BIGINT, amount BIGINT, \
    created_at BIGINT, expires_at BIGINT, process TEXT";

#[derive(Serialize)]
struct Customer {
    customer_id: i64,
}

impl Books {
    /// Has a script read them, and free what is held for requests that are over.
    pub fn ask(transaction: &Transaction<'_>, script: &mut Script<'_>, scope: &Scope<'_>) -> Asked {
        // first of all, since what is read after it nobody else changes
        let accounts = script.add(lock(transaction, &scope.customers));
        let ended =
            (!scope.ended.is_empty()).then(|| script.add(hold::close(transaction, &scope.ended)));
        let budgets = (!scope.counted.is_empty())
            .then(|| script.add(budgets::of_requests(transaction, &scope.counted)));
        Asked {
            accounts,
            ended,
            budgets,
        }
    }

    /// How many requests something was freed of.
    pub fn freed(&self) -> usize {
        self.freed
    }

    fn account(&mut self, customer_id: i64) -> Result<&mut Account, Error> {
        self.accounts.get_mut(&customer_id).ok_or(Error::NotFound)
    }

    /// The budgets that a request counts in, in the periods of its time.
    fn budgets(
        &mut self,
        request: Owner,
        at: OffsetDateTime,
    ) -> impl Iterator<Item = &mut budgets::Row> {
        let budgets = self.budgets.get_mut(&request.customer_id);
        budgets
            .into_iter()
            .flatten()
            .filter(move |row| row.counts(request, at))
    }

    fn free(&mut self, hold: &Closed) -> Result<(), Error> {
        self.account(hold.owner.customer_id)?.hold(-hold.amount.0);
        for row in self.budgets(hold.owner, hold.created_at) {
            row.hold(NanoDollars(-hold.amount.0));
        }
        Ok(())
    }

    /// Books a request that has just got its usage row: posts its cost.
    pub fn settle(&mut self, usage: &Usage) -> Result<Settled, Error> {
        let cost = usage.cost;
        if cost.0 == 0 {
            return Ok(Settled::default());
        }
        let account = self.account(usage.customer_id)?;
        account.posted -= cost.0;
        account.change.cost += cost.0;
        let paid = (account.posted + cost.0).clamp(0, cost.0);
        let mut near = Vec::new();
        if let (Some(limit), Some(near_at)) = (account.credit_limit, account.near_at)
            && account.posted <= near_at
            && account.posted + cost.0 > near_at
        {
            near.push(Near::Credit(Nearly {
                request_id: usage.request_id.clone(),
                customer_id: usage.customer_id,
                balance: NanoDollars(account.posted),
                limit: NanoDollars(limit),
            }));
        }
        let debit = account.change.account;
        self.transfers.push(Transfer {
            debit,
            credit: REVENUE,
            amount: cost.0,
            reason: "usage",
            reference: usage.request_id.clone(),
            created_at: millis(usage.created_at),
        });
        let owner = Owner::of_request(usage.customer_id, usage.api_key_id);
        let rows = self.budgets(owner, usage.created_at);
        near.extend(rows.filter_map(|row| row.spend(cost)).map(Near::Budget));
        Ok(Settled {
            owed: NanoDollars(cost.0 - paid),
            near,
        })
    }

    /// Holds what a request may come to cost, as far as all of its caps leave it.
    /// To be called after all that this transaction settles.
    pub async fn reserve(
        &mut self,
        transaction: &mut Transaction<'_>,
        process: &str,
        wanted: &Reservation,
    ) -> Result<Reserved, Error> {
        let owner = Owner::of_request(wanted.customer_id, wanted.api_key_id);
        let mut tightest = self
            .account(wanted.customer_id)?
            .left()
            .map(|left| (left, Cap::Credit));
        for row in self.budgets(owner, wanted.created_at) {
            let (left, cap) = row.left(transaction).await?;
            if tightest.is_none_or(|(least, _)| left < least) {
                tightest = Some((left, cap));
            }
        }
        let Some((left, by)) = tightest else {
            return Ok(Reserved::Uncapped);
        };
        if left < wanted.least {
            return Ok(Reserved::Refused { by, left });
        }
        let amount = left.min(wanted.most);
        let account = self.account(wanted.customer_id)?;
        account.hold(amount.0);
        account.change.is_reserved = true;
        for row in self.budgets(owner, wanted.created_at) {
            row.hold(amount);
        }
        self.holds.push(Hold {
            request_id: wanted.request_id.clone(),
            customer_id: wanted.customer_id,
            api_key_id: wanted.api_key_id,
            amount: amount.0,
            created_at: millis(wanted.created_at),
            expires_at: millis(wanted.expires_at),
            process: process.to_owned(),
        });
        let capped_by = (amount < wanted.most).then_some(by);
        Ok(Reserved::Held { amount, capped_by })
    }

    /// Has a script write what has changed. The house's account comes last: all servers
    /// of a database have it in common, and wait for each other from then on.
    pub fn write(self, transaction: &Transaction<'_>, script: &mut Script<'_>) {
        budgets::write(transaction, script, self.budgets.into_values().flatten());
        if !self.holds.is_empty() {
            script.add(transaction.insert_rows("holds", HOLD, &self.holds, ""));
        }
        let changes = self.accounts.into_values().map(|account| account.change);
        let changes: Vec<_> = changes.filter(Change::is_any).collect();
        if !changes.is_empty() {
            // guarded, so that no mistake above can reserve what there is not
            let update = transaction.of_rows(CHANGE, &changes, |new| {
                format!(
                    "UPDATE accounts SET posted = posted - cost, held = held + holding \
                     FROM {new} AS new WHERE id = account AND (NOT is_reserved \
                     OR credit_limit IS NULL OR posted - cost - held - holding + credit_limit >= 0)"
                )
            });
            script.add_change_of(changes.len(), update);
        }
        if !self.transfers.is_empty() {
            script.add(transaction.insert_rows("transfers", TRANSFER, &self.transfers, ""));
            let earned: i64 = self.transfers.iter().map(|transfer| transfer.amount).sum();
            let earn = query("UPDATE accounts SET posted = posted + $1 WHERE id = $2");
            script.add_change_of(1, earn.bind(earned).bind(REVENUE));
        }
    }
}

impl Asked {
    /// The books, once the script was run.
    ///
    /// # Errors
    /// When it read what cannot be.
    pub fn books(self, ran: &Ran) -> Result<Books, Error> {
        let ended = hold::closed(ran.rows(self.ended))?;
        let mut books = Books {
            accounts: accounts(ran.rows(Some(self.accounts)))?,
            budgets: budgets::by_customer(ran.rows(self.budgets))?,
            freed: ended.len(),
            transfers: Vec::new(),
            holds: Vec::new(),
        };
        for hold in &ended {
            books.free(hold)?;
        }
        Ok(books)
    }
}

impl Account {
    /// What the balance and the credit limit leave; nothing without a limit.
    fn left(&self) -> Option<NanoDollars> {
        let limit = self.credit_limit?;
        Some(NanoDollars(self.posted - self.held + limit))
    }

    fn hold(&mut self, amount: i64) {
        self.held += amount;
        self.change.holding += amount;
    }
}

impl Change {
    fn is_any(&self) -> bool {
        self.cost != 0 || self.holding != 0
    }
}

/// Has the money of these customers for this transaction alone, and reads their
/// accounts.
fn lock(transaction: &Transaction<'_>, customers: &BTreeSet<i64>) -> Query<'static> {
    let customers: Vec<_> = customers
        .iter()
        .map(|&customer_id| Customer { customer_id })
        .collect();
    let lock = transaction.lock("accounts");
    transaction.of_rows("customer_id BIGINT", &customers, |wanted| {
        format!(
            "SELECT id, customer_id, posted, held, credit_limit, near_at FROM accounts \
             WHERE customer_id IN (SELECT customer_id FROM {wanted} AS wanted) \
             ORDER BY id {lock}"
        )
    })
}

/// What [`lock`] read, by customer.
fn accounts(rows: &[Row]) -> Result<HashMap<i64, Account>, Error> {
    rows.iter()
        .map(|row| {
            let account = Account {
                posted: row.try_get("posted")?,
                held: row.try_get("held")?,
                credit_limit: row.try_get("credit_limit")?,
                near_at: row.try_get("near_at")?,
                change: Change {
                    account: row.try_get("id")?,
                    cost: 0,
                    holding: 0,
                    is_reserved: false,
                },
            };
            Ok((row.try_get("customer_id")?, account))
        })
        .collect()
}
