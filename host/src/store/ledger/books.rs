//! What a batch of requests changes of their customers' money: read once, changed
//! in memory, and written with a statement for each table, however many requests
//! they are.

use std::collections::HashMap;

use serde::Serialize;
use time::OffsetDateTime;

use super::budgets::{self, Owner};
use super::credit::Nearly;
use super::hold::{self, Closed};
use super::{Cap, Near, REVENUE, Reservation, Reserved, Settled};
use crate::money::NanoDollars;
use crate::store::db::{Transaction, query};
use crate::store::usage::Usage;
use crate::store::{Error, millis};

/// Whose books to open, and for what.
#[derive(Debug, Default)]
pub(in crate::store) struct Scope<'a> {
    /// Whose money is changed.
    pub customers: Vec<i64>,
    /// Requests that are over: what is held for them is freed.
    pub ended: Vec<&'a str>,
    /// Who asks, and the time at which they were admitted, of requests that budgets
    /// may count.
    pub counted: Vec<(Owner, OffsetDateTime)>,
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
    /// Opens them, and frees what is held for requests that are over.
    pub async fn open(transaction: &mut Transaction<'_>, scope: &Scope<'_>) -> Result<Self, Error> {
        // first of all, since what is read after it nobody else changes
        let accounts = lock(transaction, &scope.customers).await?;
        let ended = hold::close(transaction, &scope.ended).await?;
        let held = ended.iter().map(|hold| (hold.owner, hold.created_at));
        let counted: Vec<_> = scope.counted.iter().copied().chain(held).collect();
        let mut this = Self {
            accounts,
            budgets: budgets::of_requests(transaction, &counted).await?,
            freed: ended.len(),
            transfers: Vec::new(),
            holds: Vec::new(),
        };
        for hold in &ended {
            this.free(hold)?;
        }
        Ok(this)
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
            row.change(NanoDollars(0), NanoDollars(-hold.amount.0));
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
            row.change(NanoDollars(0), amount);
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

    /// Writes what has changed. The house's account comes last: all servers of a
    /// database have it in common, and wait for each other from then on.
    pub async fn write(self, transaction: &mut Transaction<'_>) -> Result<(), Error> {
        budgets::write(transaction, self.budgets.into_values().flatten()).await?;
        if !self.holds.is_empty() {
            let insert = transaction.insert_rows("holds", HOLD, &self.holds, "");
            insert.execute(&mut *transaction).await?;
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
            let done = update.execute(&mut *transaction).await?;
            if done != changes.len() as u64 {
                return Err(Error::Database("an account does not cover a hold".into()));
            }
        }
        if !self.transfers.is_empty() {
            let insert = transaction.insert_rows("transfers", TRANSFER, &self.transfers, "");
            insert.execute(&mut *transaction).await?;
            let earned: i64 = self.transfers.iter().map(|transfer| transfer.amount).sum();
            query("UPDATE accounts SET posted = posted + $1 WHERE id = $2")
                .bind(earned)
                .bind(REVENUE)
                .execute(transaction)
                .await?;
        }
        Ok(())
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
async fn lock(
    transaction: &mut Transaction<'_>,
    customers: &[i64],
) -> Result<HashMap<i64, Account>, Error> {
    let customers: Vec<_> = customers
        .iter()
        .map(|&customer_id| Customer { customer_id })
        .collect();
    let lock = transaction.lock("accounts");
    let rows = transaction
        .of_rows("customer_id BIGINT", &customers, |wanted| {
            format!(
                "SELECT id, customer_id, posted, held, credit_limit, near_at FROM accounts \
                 WHERE customer_id IN (SELECT customer_id FROM {wanted} AS wanted) \
                 ORDER BY id {lock}"
            )
        })
        .fetch_all(transaction)
        .await?;
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
