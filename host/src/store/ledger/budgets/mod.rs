//! Budgets: how much a customer or a key may spend in a day, a month or ever.
//!
//! What is spent and held is kept for each period by itself; a request counts in
//! the period in which it was admitted, however late it is settled.

mod set;

use std::mem::take;

use serde::Serialize;
use time::OffsetDateTime;

use super::{Cap, Period};
use crate::money::NanoDollars;
use crate::store::db::{self, On, Query, Script, Transaction, query};
use crate::store::{Error, Store, from_millis, millis};

/// Whose spending: a customer's as a whole, or that of one of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The customer.
    pub customer_id: i64,
    /// Its key; none for all of them together.
    pub api_key_id: Option<i64>,
}

impl Owner {
    /// The customer as a whole.
    pub fn customer(customer_id: i64) -> Self {
        Self {
            customer_id,
            api_key_id: None,
        }
    }

    /// One of the customer's keys.
    pub fn of_request(customer_id: i64, api_key_id: i64) -> Self {
        Self {
            customer_id,
            api_key_id: Some(api_key_id),
        }
    }
}

/// A budget as it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// What it is for.
    pub period: Period,
    /// How much may be spent in it.
    pub amount: NanoDollars,
    /// From this part of it, in percent, the end is near.
    pub near_percent: u8,
}

/// A budget and what was used of it in the period that runs.
#[derive(Clone, Copy, Debug)]
pub struct Spending {
    /// Whose it is.
    pub owner: Owner,
    /// The budget.
    pub budget: Budget,
    /// When the period began.
    pub start: OffsetDateTime,
    /// What was spent in it.
    pub spent: NanoDollars,
    /// What requests at work may yet spend.
    pub held: NanoDollars,
}

impl Spending {
    /// What may yet be spent in it; below 0 where the budget was lowered.
    pub fn left(&self) -> NanoDollars {
        NanoDollars(self.budget.amount.0 - self.spent.0 - self.held.0)
    }

    /// Whether a request of this owner counts in it, admitted at this time.
    pub(super) fn counts(&self, request: Owner, at: OffsetDateTime) -> bool {
        let Owner {
            customer_id,
            api_key_id,
        } = self.owner;
        customer_id == request.customer_id
            && (api_key_id.is_none() || api_key_id == request.api_key_id)
            && self.budget.period.start(at) == self.start
    }

    /// Whether its near part is spent.
    pub fn is_near(&self) -> bool {
        let Budget {
            amount,
            near_percent,
            ..
        } = self.budget;
        i128::from(self.spent.0) * 100 >= i128::from(amount.0) * i128::from(near_percent)
    }
}

/// A budget whose end a request, or a change of it, has brought near.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    /// The budget's number.
    pub budget_id: i64,
    /// When it was changed, if that is what did.
    pub changed_at: Option<OffsetDateTime>,
    /// What was spent of it.
    pub spending: Spending,
}

impl Near {
    /// Tells the operator.
    pub fn log(&self) {
        let Spending {
            owner,
            budget,
            spent,
            ..
        } = self.spending;
        tracing::warn!(
            customer_id = owner.customer_id,
            api_key_id = owner.api_key_id,
            period = budget.period.as_str(),
            amount_nano = budget.amount.0,
            spent_nano = spent.0,
            "a budget is nearly spent"
        );
    }
}

/// The budgets that the spending of `$1` by its key `$2` counts in, or with `$3`
/// all of the customer and its keys; with what was used since their periods began:
/// a day's at `$4`, a month's at `$5`.
const SPENDING: &str = "\
    WITH counted AS (SELECT *, \
        CASE period WHEN 'day' THEN $4 WHEN 'month' THEN $5 ELSE 0 END AS since FROM budgets \
        WHERE customer_id = $1 AND ($3 OR api_key_id IS NULL OR api_key_id = $2)) \
    SELECT counted.*, spent, held FROM counted \
    LEFT JOIN spending ON budget_id = id AND start = since ORDER BY api_key_id NULLS FIRST, id";

/// All requests that the same budgets count, in the same periods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub(super) struct Counted {
    customer_id: i64,
    api_key_id: Option<i64>,
    day: i64,
    month: i64,
}

impl Counted {
    /// Those of this owner that are admitted on the day of this time.
    pub fn new(request: Owner, at: OffsetDateTime) -> Self {
        Self {
            customer_id: request.customer_id,
            api_key_id: request.api_key_id,
            day: millis(Period::Day.start(at)),
            month: millis(Period::Month.start(at)),
        }
    }

    /// When that day began, in milliseconds since 1970.
    pub fn day(&self) -> i64 {
        self.day
    }
}

const COUNTED: &str = "customer_id BIGINT, api_key_id BIGINT, day BIGINT, month BIGINT";

/// A budget in one of its periods; nothing was used if that is not open yet.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) struct Row {
    id: i64,
    is_open: bool,
    pub spending: Spending,
    /// What is to be added to what is kept.
    spent: i64,
    held: i64,
}

/// The same of a row of `spending`.
#[derive(Serialize)]
pub(super) struct Used {
    id: i64,
    since: i64,
    more_spent: i64,
    more_held: i64,
}

const USED: &str = "id BIGINT, since BIGINT, more_spent BIGINT, more_held BIGINT";

impl Row {
    fn read(row: &db::Row) -> Result<Self, Error> {
        let (spent, held): (Option<i64>, Option<i64>) =
            (row.try_get("spent")?, row.try_get("held")?);
        let spending = Spending {
            owner: Owner {
                customer_id: row.try_get("customer_id")?,
                api_key_id: row.try_get("api_key_id")?,
            },
            budget: Budget {
                period: row.try_get::<&str>("period")?.parse()?,
                amount: NanoDollars(row.try_get("amount")?),
                near_percent: row.try_get("near_percent")?,
            },
            start: from_millis(row.try_get("since")?),
            spent: NanoDollars(spent.unwrap_or_default()),
            held: NanoDollars(held.unwrap_or_default()),
        };
        Ok(Self {
            id: row.try_get("id")?,
            is_open: spent.is_some(),
            spending,
            spent: 0,
            held: 0,
        })
    }

    /// Whether it is the same budget in the same period.
    pub fn is_same(&self, other: &Self) -> bool {
        (self.id, self.spending.start) == (other.id, other.spending.start)
    }

    /// Whether its period has begun.
    pub fn is_open(&self) -> bool {
        self.is_open
    }

    /// What it leaves to a request that counts in it.
    pub fn left(&self) -> (NanoDollars, Cap) {
        let cap = Cap::Budget {
            is_of_key: self.spending.owner.api_key_id.is_some(),
            period: self.spending.budget.period,
        };
        (self.spending.left(), cap)
    }

    /// Adds to what is held in it, or takes from it; to be written if others are to see
    /// it. Of a period that is not open the database counts that when it is opened.
    pub fn hold(&mut self, amount: i64, is_shared: bool) {
        if self.is_open || !is_shared {
            self.spending.held.0 += amount;
        }
        if self.is_open && is_shared {
            self.held += amount;
        }
    }

    /// What is to be added to what is kept, once. Of a period that is not open nothing
    /// is: its requests are added up when it is opened.
    pub(super) fn written(&mut self) -> Option<Used> {
        let (more_spent, more_held) = (take(&mut self.spent), take(&mut self.held));
        if !self.is_open {
            self.spending.spent = NanoDollars(0);
        }
        let is_any = self.is_open && (more_spent != 0 || more_held != 0);
        is_any.then_some(Used {
            id: self.id,
            since: millis(self.spending.start),
            more_spent,
            more_held,
        })
    }

    /// Adds what a request cost, which is not written yet; returns whether it brings
    /// the budget near its end.
    pub fn spend(&mut self, cost: NanoDollars) -> Option<Near> {
        let was_near = self.spending.is_near();
        self.spending.spent.0 += cost.0;
        self.spent += cost.0;
        let is_near = self.is_open && self.spending.is_near() && !was_near;
        is_near.then(|| self.near())
    }

    /// Whether something was spent in it, and its end is near.
    fn is_near(&self) -> bool {
        self.spending.spent.0 > 0 && self.spending.is_near()
    }

    fn near(&self) -> Near {
        Near {
            budget_id: self.id,
            changed_at: None,
            spending: self.spending,
        }
    }
}

/// The budgets that requests count in.
pub(super) fn of_requests(transaction: &Transaction<'_>, requests: &[&Counted]) -> Query<'static> {
    transaction.of_rows(COUNTED, requests, |requests| {
        format!(
            "WITH counted AS (SELECT DISTINCT budgets.*, \
                CASE period WHEN 'day' THEN day WHEN 'month' THEN month ELSE 0 END AS since \
                FROM {requests} AS request JOIN budgets \
                ON budgets.customer_id = request.customer_id AND \
                (budgets.api_key_id IS NULL OR budgets.api_key_id = request.api_key_id)) \
             SELECT counted.*, spent, held FROM counted \
             LEFT JOIN spending ON budget_id = id AND start = since \
             ORDER BY api_key_id NULLS FIRST, id"
        )
    })
}

/// What [`of_requests`] found.
pub(super) fn found(rows: &[db::Row]) -> Result<Vec<Row>, Error> {
    rows.iter().map(Row::read).collect()
}

/// Has a script add what was spent and is held more, or less, to what is kept.
pub(super) fn write(transaction: &Transaction<'_>, script: &mut Script<'_>, used: &[Used]) {
    if !used.is_empty() {
        let update = transaction.of_rows(USED, used, |used| {
            format!(
                "UPDATE spending SET spent = spent + more_spent, held = held + more_held \
                 FROM {used} AS used WHERE budget_id = id AND start = since"
            )
        });
        script.add_change_of(used.len(), update);
    }
}

/// The budgets that a request of this owner counts in, admitted at this time; or
/// all of the customer and its keys.
async fn rows<'a, 'c: 'a>(
    on: impl Into<On<'a, 'c>>,
    owner: Owner,
    are_all: bool,
    at: OffsetDateTime,
) -> Result<Vec<Row>, Error> {
    let rows = query(SPENDING)
        .bind(owner.customer_id)
        .bind(owner.api_key_id)
        .bind(are_all)
        .bind(millis(Period::Day.start(at)))
        .bind(millis(Period::Month.start(at)))
        .fetch_all(on)
        .await?;
    rows.iter().map(Row::read).collect()
}

/// Begins a period of a budget with what was used in it so far, which is nothing
/// unless the budget is newer than the period.
pub(in crate::store) async fn open(
    transaction: &mut Transaction<'_>,
    row: &mut Row,
) -> Result<(), Error> {
    let Spending {
        owner,
        start,
        budget,
        ..
    } = row.spending;
    let begun = query(
        "INSERT INTO spending (budget_id, start, spent, held) SELECT $1, $2, \
         (SELECT coalesce(sum(cost), 0) FROM usage_sums WHERE period = $6 AND customer_id = $3 \
         AND ($4 IS NULL OR api_key_id = $4) AND start >= $2 AND start < $5), \
         (SELECT coalesce(sum(amount), 0) FROM holds WHERE customer_id = $3 \
         AND ($4 IS NULL OR api_key_id = $4) AND created_at >= $2 AND created_at < $5) \
         RETURNING spent, held",
    )
    .bind(row.id)
    .bind(millis(start))
    .bind(owner.customer_id)
    .bind(owner.api_key_id)
    .bind(budget.period.end(start).map_or(i64::MAX, millis))
    .bind(match budget.period {
        Period::Day | Period::Month => "hour",
        // of years of hours there are too many to add up meanwhile
        Period::Total => "total",
    })
    .fetch_one(transaction)
    .await?;
    row.spending.spent.0 += begun.try_get::<i64>("spent")?;
    row.spending.held.0 += begun.try_get::<i64>("held")?;
    row.is_open = true;
    Ok(())
}

impl Store {
    /// The budgets of this owner alone, with what was used in the periods that
    /// run now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn budgets(&self, owner: Owner, now: OffsetDateTime) -> Result<Vec<Spending>, Error> {
        let mut spending = self.spending(owner, false, now).await?;
        spending.retain(|spending| spending.owner == owner);
        Ok(spending)
    }

    /// All budgets of a customer and its keys.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn all_budgets(
        &self,
        customer_id: i64,
        now: OffsetDateTime,
    ) -> Result<Vec<Spending>, Error> {
        self.spending(Owner::customer(customer_id), true, now).await
    }

    async fn spending(
        &self,
        owner: Owner,
        are_all: bool,
        now: OffsetDateTime,
    ) -> Result<Vec<Spending>, Error> {
        let held = self.books.lock().held();
        let rows = rows(self.up_to_date().await?, owner, are_all, now).await?;
        let spending = rows.into_iter().map(|Row { mut spending, .. }| {
            spending.held.0 += held.counting_in(&spending).0;
            spending
        });
        Ok(spending.collect())
    }
}
