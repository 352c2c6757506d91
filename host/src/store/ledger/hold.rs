//! Holds: what requests at work may come to cost.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::Period;
use super::budgets::{self, Owner};
use crate::money::NanoDollars;
use crate::store::db::{Transaction, query};
use crate::store::{Error, Store, from_millis, millis};

/// What caps the spending of a customer or a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cap {
    /// The customer's balance and credit limit.
    Credit,
    /// A budget.
    Budget {
        /// Whether it is the key's own, or else all keys' of the customer.
        is_of_key: bool,
        /// What it is for.
        period: Period,
    },
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Credit => f.write_str("the credit"),
            Self::Budget { is_of_key, period } => {
                let owner = if *is_of_key { "key" } else { "customer" };
                match period {
                    Period::Day => write!(f, "the {owner}'s budget for the day"),
                    Period::Month => write!(f, "the {owner}'s budget for the month"),
                    Period::Total => write!(f, "the {owner}'s total budget"),
                }
            }
        }
    }
}

/// What to hold for a request.
#[derive(Clone, Debug)]
pub struct Reservation {
    /// Id of the request.
    pub request_id: String,
    /// Who pays.
    pub customer_id: i64,
    /// The key it came with.
    pub api_key_id: i64,
    /// The most that it can cost.
    pub most: NanoDollars,
    /// What it costs if it is cut as short as makes sense.
    pub least: NanoDollars,
    /// When it was admitted.
    pub created_at: OffsetDateTime,
    /// When it is settled for certain.
    pub expires_at: OffsetDateTime,
}

/// What a reservation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// Nothing caps the request, and nothing is held for it.
    Uncapped,
    /// So much is held for it.
    Held {
        /// Between the least and the most that was asked for.
        amount: NanoDollars,
        /// What left less than the most.
        capped_by: Option<Cap>,
    },
    /// Not even the least is there.
    Refused {
        /// What leaves the least.
        by: Cap,
        /// What it leaves; below 0 where a limit was lowered.
        left: NanoDollars,
    },
}

/// A hold that was taken off.
#[derive(Clone, Copy, Debug)]
pub(super) struct Closed {
    pub amount: NanoDollars,
    owner: Owner,
    created_at: OffsetDateTime,
}

/// Holds what a request may come to cost, as far as all of its caps leave it.
pub(in crate::store) async fn reserve(
    transaction: &mut Transaction<'_>,
    process: &str,
    wanted: &Reservation,
) -> Result<Reserved, Error> {
    let owner = Owner::of_request(wanted.customer_id, wanted.api_key_id);
    let credit = left_of_credit(transaction, wanted.customer_id).await?;
    let budgets = budgets::left(transaction, owner, wanted.created_at).await?;
    let caps = credit.map(|left| (left, Cap::Credit));
    let tightest = caps
        .into_iter()
        .chain(budgets)
        .min_by_key(|(left, _)| *left);
    let Some((left, by)) = tightest else {
        return Ok(Reserved::Uncapped);
    };
    if left < wanted.least {
        return Ok(Reserved::Refused { by, left });
    }
    let amount = left.min(wanted.most);
    // guarded, so that no mistake above can take an account below its limit
    let done = query(
        "UPDATE accounts SET held = held + $1 WHERE customer_id = $2 \
         AND (credit_limit IS NULL OR posted - held + credit_limit >= $1)",
    )
    .bind(amount.0)
    .bind(wanted.customer_id)
    .execute(&mut *transaction)
    .await?;
    if done != 1 {
        return Err(Error::Database("the account does not cover a hold".into()));
    }
    budgets::hold(transaction, owner, wanted.created_at, amount).await?;
    query(
        "INSERT INTO holds \
         (request_id, customer_id, api_key_id, amount, created_at, expires_at, process) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&wanted.request_id)
    .bind(wanted.customer_id)
    .bind(wanted.api_key_id)
    .bind(amount.0)
    .bind(millis(wanted.created_at))
    .bind(millis(wanted.expires_at))
    .bind(process)
    .execute(transaction)
    .await?;
    let capped_by = (amount < wanted.most).then_some(by);
    Ok(Reserved::Held { amount, capped_by })
}

/// What the customer's balance and credit limit leave; nothing without a limit.
async fn left_of_credit(
    transaction: &mut Transaction<'_>,
    customer_id: i64,
) -> Result<Option<NanoDollars>, Error> {
    let row = query(
        "SELECT posted - held + credit_limit AS remaining FROM accounts WHERE customer_id = $1",
    )
    .bind(customer_id)
    .fetch_one(transaction)
    .await?;
    let left: Option<i64> = row.try_get("remaining")?;
    Ok(left.map(NanoDollars))
}

/// Takes a request's hold off, if there is one. The sums that it is part of are
/// the caller's to change.
pub(super) async fn close(
    transaction: &mut Transaction<'_>,
    request_id: &str,
) -> Result<Option<Closed>, Error> {
    let row = query(
        "DELETE FROM holds WHERE request_id = $1 \
         RETURNING customer_id, api_key_id, amount, created_at",
    )
    .bind(request_id)
    .fetch_optional(transaction)
    .await?;
    row.map(|row| {
        Ok(Closed {
            amount: NanoDollars(row.try_get("amount")?),
            owner: Owner::of_request(row.try_get("customer_id")?, row.try_get("api_key_id")?),
            created_at: from_millis(row.try_get("created_at")?),
        })
    })
    .transpose()
}

/// Frees what is held for a request that will not be settled. Returns whether
/// anything was.
pub(in crate::store) async fn void(
    transaction: &mut Transaction<'_>,
    request_id: &str,
) -> Result<bool, Error> {
    let Some(hold) = close(transaction, request_id).await? else {
        return Ok(false);
    };
    query("UPDATE accounts SET held = held - $1 WHERE customer_id = $2")
        .bind(hold.amount.0)
        .bind(hold.owner.customer_id)
        .execute(&mut *transaction)
        .await?;
    let nothing = NanoDollars(0);
    budgets::spend(
        transaction,
        hold.owner,
        hold.created_at,
        nothing,
        hold.amount,
    )
    .await?;
    Ok(true)
}

impl Store {
    /// Frees what other runs of the server hold, which must be over: nobody else
    /// would. Returns how many holds that were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn void_holds_of_others(&self, process: &str) -> Result<usize, Error> {
        let mut transaction = self.write.begin().await?;
        let rows = query("SELECT request_id FROM holds WHERE process <> $1")
            .bind(process)
            .fetch_all(&mut transaction)
            .await?;
        for row in &rows {
            void(&mut transaction, row.try_get("request_id")?).await?;
        }
        transaction.commit().await?;
        Ok(rows.len())
    }
}
