//! Charges: transfers of what requests cost.

use serde::Serialize;

use super::REVENUE;
use crate::store::db::{Script, Transaction, query};

/// What a request cost, to be taken from its customer's account.
#[derive(Debug, Serialize)]
pub(super) struct Charge {
    debit: i64,
    credit: i64,
    amount: i64,
    reason: &'static str,
    reference: String,
    created_at: i64,
}

const CHARGE: &str =
    "debit BIGINT, credit BIGINT, amount BIGINT, reason TEXT, reference TEXT, created_at BIGINT";

impl Charge {
    /// Of a request that was admitted at this time, to this account.
    pub fn new(account: i64, amount: i64, request_id: &str, created_at: i64) -> Self {
        Self {
            debit: account,
            credit: REVENUE,
            amount,
            reason: "usage",
            reference: request_id.to_owned(),
            created_at,
        }
    }
}

/// Has a script write them, and credit the house.
pub(super) fn write(transaction: &Transaction<'_>, script: &mut Script<'_>, charges: &[Charge]) {
    if !charges.is_empty() {
        script.add(transaction.insert_rows("transfers", CHARGE, charges, ""));
        let earned: i64 = charges.iter().map(|charge| charge.amount).sum();
        let earn = query("UPDATE accounts SET posted = posted + $1 WHERE id = $2");
        script.add_change_of(1, earn.bind(earned).bind(REVENUE));
    }
}
