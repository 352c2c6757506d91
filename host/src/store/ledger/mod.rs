//! The ledger: what customers have, what is held for requests at work, and what
//! was spent, to the nano-dollar.
//!
//! Double entry: a *transfer* takes from one account what it gives to another.
//! Before a request is sent to its model, the most that it can cost is *held*;
//! at its end the hold is turned into the transfer of what it did cost, in the
//! transaction of its usage row. What is stored beside transfers, usage and
//! holds (`posted`, `held`, `spending`) is a sum of them, kept so that no sum
//! must be made for a request; [`Store::audit`](super::Store::audit) makes them again.
//!
//! Whatever is held or settled is written by the one task of
//! [`Settler`](super::Settler).

mod audit;
pub mod budgets;
mod credit;
mod hold;
mod limited;
mod period;
#[cfg(test)]
mod tests;

use super::db::{Transaction, query};
use super::usage::Usage;
use super::{Error, millis};
use crate::money::NanoDollars;

pub(super) use credit::renew_near;
pub use credit::{NEAR_PERCENT, Nearly, Transfer};
pub use hold::{Cap, Reservation, Reserved};
pub(super) use hold::{reserve, void};
pub(super) use limited::Limited;
pub use period::Period;

/// The account of what customers used.
const REVENUE: i64 = 2;
/// The account of what customers paid.
const PAYMENTS: i64 = 1;

/// What a request has brought near its end.
#[derive(Debug)]
pub(super) enum Near {
    Budget(budgets::Near),
    Credit(Nearly),
}

impl Near {
    /// Tells the operator.
    pub(super) fn log(&self) {
        match self {
            Self::Budget(near) => near.log(),
            Self::Credit(near) => near.log(),
        }
    }
}

/// What booking a request has come to.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// The part of its cost that the customer has not paid before, and is to be
    /// asked for.
    pub owed: NanoDollars,
    /// What it brings near its end.
    pub near: Vec<Near>,
}

/// Books a request that has just got its usage row: posts its cost and frees
/// what was held for it.
pub(super) async fn settle(
    transaction: &mut Transaction<'_>,
    usage: &Usage,
    is_held: bool,
    is_limited: bool,
) -> Result<Settled, Error> {
    let cost = usage.cost;
    let freed = match is_held {
        true => hold::close(transaction, &usage.request_id).await?,
        false => None,
    };
    let freed = freed.map_or(NanoDollars(0), |hold| hold.amount);
    if cost.0 == 0 && freed.0 == 0 {
        return Ok(Settled::default());
    }
    let row = query(
        "UPDATE accounts SET posted = posted - $1, held = held - $2 \
         WHERE customer_id = $3 RETURNING id, posted, credit_limit, near_at",
    )
    .bind(cost.0)
    .bind(freed.0)
    .bind(usage.customer_id)
    .fetch_one(&mut *transaction)
    .await?;
    let (account, posted): (i64, i64) = (row.try_get("id")?, row.try_get("posted")?);
    let paid = (posted + cost.0).clamp(0, cost.0);
    let mut settled = Settled {
        owed: NanoDollars(cost.0 - paid),
        near: Vec::new(),
    };
    if cost.0 > 0 {
        query(
            "INSERT INTO transfers (debit, credit, amount, reason, reference, created_at) \
             VALUES ($1, $2, $3, 'usage', $4, $5)",
        )
        .bind(account)
        .bind(REVENUE)
        .bind(cost.0)
        .bind(&usage.request_id)
        .bind(millis(usage.created_at))
        .execute(&mut *transaction)
        .await?;
    }
    let (limit, near_at): (Option<i64>, Option<i64>) =
        (row.try_get("credit_limit")?, row.try_get("near_at")?);
    if let (Some(limit), Some(near_at)) = (limit, near_at)
        && posted <= near_at
        && posted + cost.0 > near_at
    {
        settled.near.push(Near::Credit(Nearly {
            request_id: usage.request_id.clone(),
            customer_id: usage.customer_id,
            balance: NanoDollars(posted),
            limit: NanoDollars(limit),
        }));
    }
    if is_limited {
        let owner = budgets::Owner::of_request(usage.customer_id, usage.api_key_id);
        let near = budgets::spend(transaction, owner, usage.created_at, cost, freed).await?;
        settled.near.extend(near.into_iter().map(Near::Budget));
    }
    Ok(settled)
}

/// Adds what many requests cost to the house's account, which all of them have
/// in common.
pub(super) async fn earn(
    transaction: &mut Transaction<'_>,
    amount: NanoDollars,
) -> Result<(), Error> {
    if amount.0 > 0 {
        query("UPDATE accounts SET posted = posted + $1 WHERE id = $2")
            .bind(amount.0)
            .bind(REVENUE)
            .execute(transaction)
            .await?;
    }
    Ok(())
}
