//! What the books have of requests and others are yet to be told, in the database and
//! beside it.

use std::collections::BTreeMap;
use std::sync::Arc;

use time::OffsetDateTime;

use super::Near;
use crate::store::db::Transaction;
use crate::store::outbox::{self, Owed};
use crate::store::usage::Usage;
use crate::store::{Error, Store, notices};

/// Requests that are booked, and what has come of it.
#[derive(Debug, Default)]
pub(in crate::store) struct Booked {
    /// What they used.
    pub usage: Vec<Arc<Usage>>,
    /// What they have brought near its end, each with the time of its request.
    pub near: Vec<(Near, OffsetDateTime)>,
    /// What customers are to be asked for, by their numbers.
    pub owed: BTreeMap<i64, Owed>,
}

/// That [`Store::told`] is to be called once the transaction is committed.
#[must_use]
pub(in crate::store) struct Telling {
    near: Vec<(Near, OffsetDateTime)>,
    can_report: bool,
}

impl Store {
    /// Has the operator's webhook and Stripe told of what was booked, by what is written in
    /// this transaction.
    pub(in crate::store) async fn tell(
        &self,
        transaction: &mut Transaction<'_>,
        booked: Booked,
    ) -> Result<Telling, Error> {
        let Booked { near, owed, .. } = booked;
        if self.notices.is_on() {
            for (near, at) in &near {
                notices::write(transaction, near, *at).await?;
            }
        }
        let mut can_report = false;
        if !owed.is_empty() && self.outbox.is_on() {
            let owed: Vec<_> = owed.into_values().collect();
            can_report = outbox::announce_usage(transaction, &owed).await?;
        }
        Ok(Telling { near, can_report })
    }

    /// Wakes those who have something to tell now.
    pub(in crate::store) fn told(&self, telling: &Telling) {
        for (near, _) in &telling.near {
            near.log();
        }
        if !telling.near.is_empty() {
            self.notices.wake();
        }
        if telling.can_report {
            self.outbox.wake();
        }
    }
}
