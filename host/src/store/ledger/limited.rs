//! Whose requests anything caps. All others are not to wait for a transaction
//! before their model is asked.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::RwLock;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::store::db::{Pool, query};
use crate::store::{Error, Store};

/// Customers with a credit limit or a budget, of their own or of a key. Clones
/// share it. A customer is in it from before its first limit is committed until
/// after its last one is gone, so that whoever is not in it has none; what
/// changes limits does so one after another.
#[derive(Clone, Debug, Default)]
pub struct Limited {
    /// With how often each was taken for limited.
    ids: Arc<RwLock<HashMap<i64, u64>>>,
    changing: Arc<Mutex<()>>,
}

/// A change of a customer's limits that is not over.
#[must_use]
pub struct Changing {
    limited: Limited,
    customer_id: i64,
    _others_wait: OwnedMutexGuard<()>,
}

/// The customer `$1`, if it is limited; all that are, for null.
const LIMITED: &str = "\
    SELECT customer_id FROM accounts WHERE credit_limit IS NOT NULL \
    AND customer_id = coalesce($1, customer_id) UNION \
    SELECT customer_id FROM budgets WHERE customer_id = coalesce($1, customer_id)";

impl Limited {
    /// As it is in the database.
    pub async fn load(pool: &Pool) -> Result<Self, Error> {
        let this = Self::default();
        this.reload(pool).await?;
        Ok(this)
    }

    /// Takes all of it from the database again.
    pub async fn reload(&self, pool: &Pool) -> Result<(), Error> {
        let _others_wait = self.changing.lock().await;
        let rows = query(LIMITED).bind(None::<i64>).fetch_all(pool).await?;
        let found: Result<HashSet<i64>, _> =
            rows.iter().map(|row| row.try_get("customer_id")).collect();
        let found = found?.into_iter().map(|id| (id, 0)).collect();
        *self.ids.write() = found;
        Ok(())
    }

    /// Whether anything caps the customer's requests.
    pub fn contains(&self, customer_id: i64) -> bool {
        let ids = self.ids.read();
        ids.contains_key(&customer_id)
    }

    /// Takes the customer for limited.
    pub fn insert(&self, customer_id: i64) {
        let mut ids = self.ids.write();
        *ids.entry(customer_id).or_default() += 1;
    }

    /// How often it was taken for that, if it is.
    fn insertions(&self, customer_id: i64) -> Option<u64> {
        let ids = self.ids.read();
        ids.get(&customer_id).copied()
    }

    /// Begins a change: the customer is taken for limited from now on. To be
    /// called before the transaction of the change begins.
    pub async fn change(&self, customer_id: i64) -> Changing {
        let others_wait = Arc::clone(&self.changing).lock_owned().await;
        self.insert(customer_id);
        Changing {
            limited: self.clone(),
            customer_id,
            _others_wait: others_wait,
        }
    }
}

impl Changing {
    /// Takes over what was committed. Where that cannot be read, the customer's requests
    /// only wait a little longer.
    pub async fn finish(self, pool: &Pool) {
        let (limited, id) = (&self.limited, self.customer_id);
        let before = limited.insertions(id);
        match query(LIMITED).bind(id).fetch_optional(pool).await {
            Ok(Some(_)) => {}
            Ok(None) => {
                let mut ids = limited.ids.write();
                // or another server said meanwhile that it may have a limit
                if ids.get(&id).copied() == before {
                    ids.remove(&id);
                }
            }
            Err(error) => {
                tracing::warn!(%error, customer_id = id, "the customer still counts as limited");
            }
        }
    }
}

impl Store {
    /// Whether the customer's requests must be reserved for: it has a credit limit
    /// or a budget, of its own or of a key. Where other servers cannot be heard, it
    /// may have.
    pub fn is_limited(&self, customer_id: i64) -> bool {
        !self.hears.load(Ordering::Acquire) || self.limited.contains(customer_id)
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use crate::money::NanoDollars;
    use crate::store::Audience;
    use crate::store::audit::Actor;
    use crate::store::customers::CustomerChange;
    use crate::store::db::query;
    use crate::store::ledger::Period;
    use crate::store::ledger::budgets::{Budget, Owner};
    use crate::store::scratch::{Scratch, create_customer};

    #[tokio::test]
    async fn a_limit_that_another_server_tells_of_while_a_change_ends_is_not_missed() {
        let Some(scratch) = Scratch::server() else {
            return;
        };
        let store = scratch.open(Audience::default()).await;
        let changing = store.limited.change(7).await;
        // what it reads at its end waits
        let mut lock = store.write.begin().await.expect("a transaction");
        let locked = query("LOCK TABLE budgets IN ACCESS EXCLUSIVE MODE");
        locked.execute(&mut lock).await.expect("locked");
        let ending = tokio::spawn({
            let store = store.clone();
            async move { changing.finish(&store.read).await }
        });
        loop {
            let waits = query(
                "SELECT count(*) AS waits FROM pg_locks \
                 WHERE NOT granted AND relation = CAST('budgets' AS REGCLASS)",
            );
            let row = waits.fetch_one(&mut lock).await.expect("a row");
            if row.try_get::<i64>("waits").expect("a number") == 1 {
                break;
            }
            assert!(!ending.is_finished());
        }
        store.limited.insert(7);
        drop(lock);
        ending.await.expect("no panic");
        assert!(store.limited.contains(7));
        // who heard of it looks again
        let changing = store.limited.change(7).await;
        changing.finish(&store.read).await;
        assert!(!store.limited.contains(7));
    }

    #[tokio::test]
    async fn a_change_that_cannot_be_read_again_is_made_all_the_same() {
        let scratch = Scratch::new();
        let store = scratch.open(Audience::default()).await;
        let now = datetime!(2026-01-31 23:00 UTC);
        let (id, by) = (create_customer(&store, 1, None, now).await, Actor::Server);
        store.read.close().await;
        let budget = Budget {
            period: Period::Day,
            amount: NanoDollars(1),
            near_percent: 80,
        };
        let owner = Owner::customer(id);
        let set = store.set_budgets(owner, &[budget], &by, now).await;
        set.expect("it is made");
        let named = CustomerChange {
            name: Some("B".to_owned()),
            ..CustomerChange::default()
        };
        let changed = store.change_customer(id, named, &by, now).await;
        assert_eq!(changed.expect("it is made").name, "B");
        assert!(store.limited.contains(id));
    }
}
