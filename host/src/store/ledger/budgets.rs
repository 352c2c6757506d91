//! Budgets: how much a customer or a key may spend in a day, a month or ever.
//!
//! What is spent and held is kept for each period by itself; a request counts in
//! the period in which it was admitted, however late it is settled.

use serde_json::json;
use time::OffsetDateTime;

use super::{Cap, Period};
use crate::money::NanoDollars;
use crate::store::audit::{self, Act, Actor, Object};
use crate::store::db::{self, On, Transaction, query};
use crate::store::servers::{self, Change};
use crate::store::{Error, Store, millis};

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

/// A budget whose end a request has brought near.
#[derive(Clone, Copy, Debug)]
pub struct Near {
    /// The budget's number.
    pub budget_id: i64,
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
    SELECT budgets.*, start, spent, held FROM budgets LEFT JOIN spending \
    ON budget_id = id AND start = CASE period WHEN 'day' THEN $4 WHEN 'month' THEN $5 ELSE 0 END \
    WHERE customer_id = $1 AND ($3 OR api_key_id IS NULL OR api_key_id = $2) \
    ORDER BY api_key_id NULLS FIRST, budgets.id";

/// The same of `$1` and `$2` as keys of `spending`.
const COUNTS_IN: &str = "\
    SELECT id, CASE period WHEN 'day' THEN $4 WHEN 'month' THEN $5 ELSE 0 END FROM budgets \
    WHERE customer_id = $1 AND (api_key_id IS NULL OR api_key_id = $2)";

/// A row of [`SPENDING`]; nothing was used if its period is not open yet.
struct Row {
    id: i64,
    is_open: bool,
    spending: Spending,
}

impl Row {
    fn read(row: &db::Row, at: OffsetDateTime) -> Result<Self, Error> {
        let period: Period = row.try_get::<&str>("period")?.parse()?;
        let (spent, held): (Option<i64>, Option<i64>) =
            (row.try_get("spent")?, row.try_get("held")?);
        let spending = Spending {
            owner: Owner {
                customer_id: row.try_get("customer_id")?,
                api_key_id: row.try_get("api_key_id")?,
            },
            budget: Budget {
                period,
                amount: NanoDollars(row.try_get("amount")?),
                near_percent: row.try_get("near_percent")?,
            },
            start: period.start(at),
            spent: NanoDollars(spent.unwrap_or_default()),
            held: NanoDollars(held.unwrap_or_default()),
        };
        Ok(Self {
            id: row.try_get("id")?,
            is_open: spent.is_some(),
            spending,
        })
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
    rows.iter().map(|row| Row::read(row, at)).collect()
}

/// The budgets of a request, their periods open.
async fn opened(
    transaction: &mut Transaction<'_>,
    owner: Owner,
    at: OffsetDateTime,
) -> Result<Vec<Row>, Error> {
    let found = rows(&mut *transaction, owner, false, at).await?;
    if found.iter().all(|row| row.is_open) {
        return Ok(found);
    }
    for row in found.iter().filter(|row| !row.is_open) {
        open(transaction, row).await?;
    }
    rows(transaction, owner, false, at).await
}

/// Begins a period of a budget with what was used in it so far, which is nothing
/// unless the budget is newer than the period.
async fn open(transaction: &mut Transaction<'_>, row: &Row) -> Result<(), Error> {
    let Spending {
        owner,
        start,
        budget,
        ..
    } = row.spending;
    query(
        "INSERT INTO spending (budget_id, start, spent, held) SELECT $1, $2, \
         (SELECT coalesce(sum(cost), 0) FROM usage WHERE customer_id = $3 \
         AND ($4 IS NULL OR api_key_id = $4) AND created_at >= $2 AND created_at < $5), \
         (SELECT coalesce(sum(amount), 0) FROM holds WHERE customer_id = $3 \
         AND ($4 IS NULL OR api_key_id = $4) AND created_at >= $2 AND created_at < $5)",
    )
    .bind(row.id)
    .bind(millis(start))
    .bind(owner.customer_id)
    .bind(owner.api_key_id)
    .bind(budget.period.end(start).map_or(i64::MAX, millis))
    .execute(transaction)
    .await?;
    Ok(())
}

/// What each budget leaves to a request admitted at this time.
pub(super) async fn left(
    transaction: &mut Transaction<'_>,
    request: Owner,
    at: OffsetDateTime,
) -> Result<Vec<(NanoDollars, Cap)>, Error> {
    let rows = opened(transaction, request, at).await?;
    let left = rows.into_iter().map(|Row { spending, .. }| {
        let cap = Cap::Budget {
            is_of_key: spending.owner.api_key_id.is_some(),
            period: spending.budget.period,
        };
        (spending.left(), cap)
    });
    Ok(left.collect())
}

/// Holds an amount of each budget of a request, whose periods [`left`] has opened.
pub(super) async fn hold(
    transaction: &mut Transaction<'_>,
    request: Owner,
    at: OffsetDateTime,
    amount: NanoDollars,
) -> Result<(), Error> {
    change(transaction, request, at, NanoDollars(0), amount).await?;
    Ok(())
}

/// Moves what was held for a request to what was spent, and frees the rest.
/// Returns the budgets that it brings near their end. A period that is not open
/// counts it when it is opened.
pub(super) async fn spend(
    transaction: &mut Transaction<'_>,
    request: Owner,
    at: OffsetDateTime,
    cost: NanoDollars,
    freed: NanoDollars,
) -> Result<Vec<Near>, Error> {
    let changed = change(transaction, request, at, cost, NanoDollars(-freed.0)).await?;
    if changed == 0 || cost.0 == 0 {
        return Ok(Vec::new());
    }
    let rows = rows(transaction, request, false, at).await?;
    let near = rows.into_iter().filter_map(|Row { id, spending, .. }| {
        let before = Spending {
            spent: NanoDollars(spending.spent.0 - cost.0),
            ..spending
        };
        (spending.is_near() && !before.is_near()).then_some(Near {
            budget_id: id,
            spending,
        })
    });
    Ok(near.collect())
}

/// Changes what was spent and is held in the open periods of a request; returns how
/// many they are.
async fn change(
    transaction: &mut Transaction<'_>,
    request: Owner,
    at: OffsetDateTime,
    spent: NanoDollars,
    held: NanoDollars,
) -> Result<u64, Error> {
    let sql = format!(
        "UPDATE spending SET spent = spent + $3, held = held + $6 \
         WHERE (budget_id, start) IN ({COUNTS_IN})"
    );
    let changed = query(sqlx::AssertSqlSafe(sql))
        .bind(request.customer_id)
        .bind(request.api_key_id)
        .bind(spent.0)
        .bind(millis(Period::Day.start(at)))
        .bind(millis(Period::Month.start(at)))
        .bind(held.0)
        .execute(transaction)
        .await?;
    Ok(changed)
}

impl Store {
    /// The budgets of this owner alone, with what was used in the periods that
    /// run now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn budgets(&self, owner: Owner, now: OffsetDateTime) -> Result<Vec<Spending>, Error> {
        let rows = rows(&self.read, owner, false, now).await?;
        let spending = rows.into_iter().map(|row| row.spending);
        Ok(spending
            .filter(|spending| spending.owner == owner)
            .collect())
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
        let rows = rows(&self.read, Owner::customer(customer_id), true, now).await?;
        Ok(rows.into_iter().map(|row| row.spending).collect())
    }

    /// Replaces the budgets of an owner, at most one for each period. What was
    /// used before counts in the periods that run now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn set_budgets(
        &self,
        owner: Owner,
        budgets: &[Budget],
        by: &Actor,
        now: OffsetDateTime,
    ) -> Result<(), Error> {
        let limited = self.limited.change(owner.customer_id).await;
        let mut transaction = self.write.begin().await?;
        transaction.lock_customers([owner.customer_id]).await?;
        for period in [Period::Day, Period::Month, Period::Total] {
            match budgets.iter().find(|budget| budget.period == period) {
                Some(budget) => set(&mut transaction, owner, budget).await?,
                None => remove(&mut transaction, owner, period).await?,
            }
        }
        opened(&mut transaction, owner, now).await?;
        let shown =
            |budget: &Budget| json!({ "period": budget.period.as_str(), "amount": budget.amount });
        let act = Act {
            action: "budgets.set",
            object: match owner.api_key_id {
                Some(id) => Object::Key(id),
                None => Object::Customer(owner.customer_id),
            },
            before: None,
            after: Some(budgets.iter().map(shown).collect()),
        };
        audit::record(&mut transaction, by, act, now).await?;
        servers::tell(&mut transaction, Change::Limits(owner.customer_id)).await?;
        transaction.commit().await?;
        limited.finish(&self.read).await
    }
}

async fn set(
    transaction: &mut Transaction<'_>,
    owner: Owner,
    budget: &Budget,
) -> Result<(), Error> {
    query(
        "INSERT INTO budgets (customer_id, api_key_id, period, amount, near_percent) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (customer_id, coalesce(api_key_id, 0), period) \
         DO UPDATE SET amount = excluded.amount, near_percent = excluded.near_percent",
    )
    .bind(owner.customer_id)
    .bind(owner.api_key_id)
    .bind(budget.period.as_str())
    .bind(budget.amount.0)
    .bind(budget.near_percent)
    .execute(transaction)
    .await?;
    Ok(())
}

async fn remove(
    transaction: &mut Transaction<'_>,
    owner: Owner,
    period: Period,
) -> Result<(), Error> {
    query(
        "DELETE FROM budgets WHERE customer_id = $1 \
         AND coalesce(api_key_id, 0) = coalesce($2, 0) AND period = $3",
    )
    .bind(owner.customer_id)
    .bind(owner.api_key_id)
    .bind(period.as_str())
    .execute(transaction)
    .await?;
    Ok(())
}
