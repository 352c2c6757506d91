//! Holds: what requests at work may come to cost.

use std::fmt;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::budgets::Owner;
use super::{Books, Period, Scope};
use crate::money::NanoDollars;
use crate::store::db::{Row, Transaction, query};
use crate::store::{Error, Store, from_millis};

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
    pub owner: Owner,
    pub created_at: OffsetDateTime,
}

#[derive(Serialize)]
struct Ended<'a> {
    id: &'a str,
}

/// Takes the holds of these requests off. The sums that they are part of are the
/// caller's to change.
pub(super) async fn close(
    transaction: &mut Transaction<'_>,
    requests: &[&str],
) -> Result<Vec<Closed>, Error> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let requests: Vec<_> = requests.iter().map(|&id| Ended { id }).collect();
    let rows = transaction
        .of_rows("id TEXT", &requests, |ended| {
            format!(
                "DELETE FROM holds WHERE request_id IN (SELECT id FROM {ended} AS ended) \
                 RETURNING customer_id, api_key_id, amount, created_at"
            )
        })
        .fetch_all(transaction)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Closed {
                amount: NanoDollars(row.try_get("amount")?),
                owner: Owner::of_request(row.try_get("customer_id")?, row.try_get("api_key_id")?),
                created_at: from_millis(row.try_get("created_at")?),
            })
        })
        .collect()
}

/// Frees what is held for requests that will not be settled, given with their
/// customers. Returns how many of them something was held for.
pub(in crate::store) async fn void(
    transaction: &mut Transaction<'_>,
    requests: &[Row],
) -> Result<usize, Error> {
    let mut scope = Scope::default();
    for row in requests {
        scope.customers.push(row.try_get("customer_id")?);
        scope.ended.push(row.try_get("request_id")?);
    }
    let books = Books::open(transaction, &scope).await?;
    let voided = books.freed();
    books.write(transaction).await?;
    Ok(voided)
}

impl Store {
    /// Frees what other runs of the server hold, which must be over: nobody else
    /// would. Returns how many holds that were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn void_holds_of_others(&self, process: &str) -> Result<usize, Error> {
        let mut transaction = self.write.begin().await?;
        let rows = query("SELECT request_id, customer_id FROM holds WHERE process <> $1")
            .bind(process)
            .fetch_all(&mut transaction)
            .await?;
        let voided = void(&mut transaction, &rows).await?;
        transaction.commit().await?;
        Ok(voided)
    }
}
