//! What the operator sets of budgets.

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::super::{Booked, Near};
use super::{Budget, Owner, Period, Row, open, rows};
use crate::store::audit::{self, Act, Actor, Object};
use crate::store::db::{Transaction, query};
use crate::store::servers::{self, Change};
use crate::store::{Error, Store};

impl Store {
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
        let mut transaction = self.begin_with_money_of(owner.customer_id).await?;
        let before = rows(&mut transaction, owner, false, now).await?;
        for period in [Period::Day, Period::Month, Period::Total] {
            match budgets.iter().find(|budget| budget.period == period) {
                Some(budget) => set(&mut transaction, owner, budget).await?,
                None => remove(&mut transaction, owner, period).await?,
            }
        }
        let mut booked = Booked::default();
        let mut after = rows(&mut transaction, owner, false, now).await?;
        for row in &mut after {
            if !row.is_open {
                open(&mut transaction, row).await?;
            }
            // no request that is to come would bring it there
            let was_near = before
                .iter()
                .any(|before| before.is_same(row) && before.is_near());
            if row.spending.owner == owner && row.is_near() && !was_near {
                let mut near = row.near();
                near.changed_at = Some(now);
                booked.near.push((Near::Budget(near), now));
            }
        }
        let telling = self.tell(&mut transaction, booked).await?;
        let act = Act {
            action: "budgets.set",
            object: match owner.api_key_id {
                Some(id) => Object::Key(id),
                None => Object::Customer(owner.customer_id),
            },
            before: Some(on_record(&before, owner)),
            after: Some(on_record(&after, owner)),
        };
        audit::record(&mut transaction, by, act, now).await?;
        servers::tell(&mut transaction, Change::Limits(owner.customer_id)).await?;
        transaction.commit().await?;
        self.told(&telling);
        limited.finish(&self.read).await;
        Ok(())
    }
}

/// What the audit log keeps of an owner's budgets: those that are its own.
fn on_record(rows: &[Row], owner: Owner) -> Value {
    let own = rows.iter().filter(|row| row.spending.owner == owner);
    let own = own.map(|row| {
        let Budget {
            period,
            amount,
            near_percent,
        } = row.spending.budget;
        json!({ "period": period.as_str(), "amount": amount, "near_percent": near_percent })
    });
    own.collect()
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
