//! Holds: what requests at work may come to cost.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;

use super::budgets::Owner;
use super::{Books, Period, Scope};
use crate::money::NanoDollars;
use crate::store::db::{Query, Row, Script, Transaction, query};
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

impl Reservation {
    /// Who asks.
    pub(in crate::store) fn owner(&self) -> Owner {
        Owner::of_request(self.customer_id, self.api_key_id)
    }
}

/// What is held for a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hold {
    pub amount: NanoDollars,
    pub owner: Owner,
    pub created_at: OffsetDateTime,
}

/// Where it is on record what is held.
#[derive(Debug)]
pub(super) enum Holds {
    /// In the database, for all its servers to see, as of this run of one of them; with
    /// what is yet to be written.
    Shared {
        process: Arc<str>,
        new: Vec<NewHold>,
    },
    /// Here, by request: they end with this process.
    Own(HashMap<String, Hold>),
}

/// A row of `holds`.
#[derive(Debug, Serialize)]
pub(super) struct NewHold {
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

impl Holds {
    pub fn are_shared(&self) -> bool {
        matches!(self, Self::Shared { .. })
    }

    pub fn add(&mut self, wanted: &Reservation, hold: Hold) {
        let request_id = wanted.request_id.clone();
        match self {
            Self::Shared { process, new } => new.push(NewHold {
                request_id,
                customer_id: wanted.customer_id,
                api_key_id: wanted.api_key_id,
                amount: hold.amount.0,
                created_at: millis(wanted.created_at),
                expires_at: millis(wanted.expires_at),
                process: process.to_string(),
            }),
            Self::Own(holds) => {
                holds.insert(request_id, hold);
            }
        }
    }

    /// Those here.
    pub fn own(&self) -> impl Iterator<Item = &Hold> {
        let own = match self {
            Self::Shared { .. } => None,
            Self::Own(holds) => Some(holds.values()),
        };
        own.into_iter().flatten()
    }

    /// Has a script write those that are yet to be.
    pub fn write(&mut self, transaction: &Transaction<'_>, script: &mut Script<'_>) {
        if let Self::Shared { new, .. } = self
            && !new.is_empty()
        {
            script.add(transaction.insert_rows("holds", HOLD, new, ""));
            new.clear();
        }
    }
}

/// A request that is over.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ended<'a> {
    /// Its id.
    pub request_id: &'a str,
    /// Who asked.
    #[serde(skip)]
    pub owner: Owner,
    /// When it was admitted.
    #[serde(skip)]
    pub created_at: OffsetDateTime,
}

/// Takes the holds of these requests off. The sums that they are part of are the
/// caller's to change.
pub(super) fn close(transaction: &Transaction<'_>, requests: &[Ended<'_>]) -> Query<'static> {
    transaction.of_rows("request_id TEXT", requests, |ended| {
        format!(
            "DELETE FROM holds WHERE request_id IN (SELECT request_id FROM {ended} AS ended) \
             RETURNING customer_id, api_key_id, amount, created_at"
        )
    })
}

/// What [`close`] took off.
pub(super) fn closed(rows: &[Row]) -> Result<Vec<Hold>, Error> {
    rows.iter()
        .map(|row| {
            Ok(Hold {
                amount: NanoDollars(row.try_get("amount")?),
                owner: Owner::of_request(row.try_get("customer_id")?, row.try_get("api_key_id")?),
                created_at: from_millis(row.try_get("created_at")?),
            })
        })
        .collect()
}

/// Of a hold, what [`void`] wants to know.
pub(in crate::store) const HELD: &str = "request_id, customer_id, api_key_id, created_at";

/// Frees what is held for requests that will not be settled, given by [`HELD`] of
/// their holds. Returns how many of them something was held for.
pub(in crate::store) async fn void(
    transaction: &mut Transaction<'_>,
    holds: &[Row],
) -> Result<usize, Error> {
    let mut scope = Scope::default();
    for row in holds {
        scope.end(Ended {
            request_id: row.try_get("request_id")?,
            owner: Owner::of_request(row.try_get("customer_id")?, row.try_get("api_key_id")?),
            created_at: from_millis(row.try_get("created_at")?),
        });
    }
    // it reserves nothing, so nothing is held as of a process
    let mut books = Books::shared("".into());
    let mut script = Script::default();
    let asked = books.ask(transaction, &mut script, scope);
    let voided = books.read(asked, &script.run(transaction).await?)?;
    let mut script = Script::default();
    books.write(transaction, &mut script);
    script.run(transaction).await?;
    Ok(voided)
}

impl Store {
    /// Frees what other runs of the server hold, which must be over: nobody else
    /// would. Posts what they left in the journal. Returns how many holds that were.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn void_holds_of_others(&self, process: &str) -> Result<usize, Error> {
        let mut transaction = self.write.begin().await?;
        self.post_what_was_left(&mut transaction).await?;
        self.books.lock().forget();
        let sql = format!("SELECT {HELD} FROM holds WHERE process <> $1");
        let rows = query(AssertSqlSafe(sql))
            .bind(process)
            .fetch_all(&mut transaction)
            .await?;
        let voided = void(&mut transaction, &rows).await?;
        transaction.commit().await?;
        Ok(voided)
    }
}
