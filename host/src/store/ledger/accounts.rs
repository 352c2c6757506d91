//! Accounts of customers, as books have them.

use std::collections::{BTreeSet, HashMap};
use std::mem::take;

use serde::Serialize;

use crate::store::Error;
use crate::store::db::{Query, Row, Script, Transaction};

/// What a customer has.
#[derive(Debug)]
pub(super) struct Account {
    pub id: i64,
    pub posted: i64,
    pub held: i64,
    pub credit_limit: Option<i64>,
    pub near_at: Option<i64>,
    changed: Changed,
}

/// What is to be written of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Changed {
    account: i64,
    cost: i64,
    holding: i64,
    is_reserved: bool,
}

const CHANGED: &str = "account BIGINT, cost BIGINT, holding BIGINT, is_reserved BOOLEAN";

#[derive(Serialize)]
struct Customer {
    customer_id: i64,
}

impl Account {
    /// What may yet be spent; nothing without a limit.
    pub fn left(&self) -> Option<i64> {
        Some(self.posted - self.held + self.credit_limit?)
    }

    /// Takes what a request cost.
    pub fn post(&mut self, cost: i64) {
        self.posted -= cost;
        self.changed.cost += cost;
    }

    /// Adds to what is held, or takes from it; to be written if others are to see it.
    pub fn hold(&mut self, amount: i64, is_shared: bool) {
        self.held += amount;
        if is_shared {
            self.changed.holding += amount;
            self.changed.is_reserved |= amount > 0;
        }
    }

    /// What is to be written of it, once.
    pub fn written(&mut self) -> Option<Changed> {
        let changed = Changed {
            account: self.id,
            ..take(&mut self.changed)
        };
        (changed.cost != 0 || changed.holding != 0).then_some(changed)
    }
}

/// Has the money of these customers for this transaction alone, and reads their
/// accounts.
pub(super) fn lock(transaction: &Transaction<'_>, customers: &BTreeSet<i64>) -> Query<'static> {
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
pub(super) fn by_customer(rows: &[Row]) -> Result<HashMap<i64, Account>, Error> {
    rows.iter()
        .map(|row| {
            let account = Account {
                id: row.try_get("id")?,
                posted: row.try_get("posted")?,
                held: row.try_get("held")?,
                credit_limit: row.try_get("credit_limit")?,
                near_at: row.try_get("near_at")?,
                changed: Changed::default(),
            };
            Ok((row.try_get("customer_id")?, account))
        })
        .collect()
}

/// Has a script write what has changed.
pub(super) fn write(transaction: &Transaction<'_>, script: &mut Script<'_>, changed: &[Changed]) {
    if !changed.is_empty() {
        // guarded, so that no mistake above can reserve what there is not
        let update = transaction.of_rows(CHANGED, changed, |new| {
            format!(
                "UPDATE accounts SET posted = posted - cost, held = held + holding \
                 FROM {new} AS new WHERE id = account AND (NOT is_reserved \
                 OR credit_limit IS NULL OR posted - cost - held - holding + credit_limit >= 0)"
            )
        });
        script.add_change_of(changed.len(), update);
    }
}
