//! The ledger under any order of what can happen to it, many things at once.

use futures_util::future::join_all;
use proptest::prelude::*;
use time::Duration;

use super::{Ledger, NOW, Open, owner};
use crate::money::NanoDollars;
use crate::store::Error;
use crate::store::audit::Actor;
use crate::store::customers::CustomerChange;
use crate::store::ledger::budgets::Owner;
use crate::store::ledger::{Period, Reservation, Reserved};

/// Something that happens; numbers name keys, amounts and requests at work.
#[derive(Clone, Debug)]
enum Event {
    TopUp(i64, i64),
    Correct(i64),
    Limit(Option<i64>),
    Budgets(usize, Vec<(Period, i64)>),
    Reserve {
        key: usize,
        least: i64,
        more: i64,
        days: i64,
    },
    GiveUp {
        key: usize,
        most: i64,
    },
    Settle {
        open: usize,
        cost: i64,
    },
    SettleTwice {
        open: usize,
        cost: i64,
    },
    Crash,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let period = prop_oneof![Just(Period::Day), Just(Period::Month), Just(Period::Total)];
    let budgets = prop::collection::vec((period, 0..300_i64), 0..3).prop_map(|mut budgets| {
        budgets.sort_unstable();
        budgets.dedup_by_key(|(period, _)| *period);
        budgets
    });
    let event = prop_oneof![
        2 => (1..4_i64, 1..200_i64).prop_map(|(reference, amount)| Event::TopUp(reference, amount)),
        1 => (1..50_i64).prop_map(Event::Correct),
        1 => prop::option::of(0..100_i64).prop_map(Event::Limit),
        1 => (0..6_usize, budgets).prop_map(|(owner, budgets)| Event::Budgets(owner, budgets)),
        8 => (0..4_usize, 0..30_i64, 0..100_i64, 0..3_i64)
            .prop_map(|(key, least, more, days)| Event::Reserve { key, least, more, days }),
        1 => (0..4_usize, 1..100_i64).prop_map(|(key, most)| Event::GiveUp { key, most }),
        6 => (0..20_usize, 0..150_i64).prop_map(|(open, cost)| Event::Settle { open, cost }),
        1 => (0..20_usize, 0..150_i64).prop_map(|(open, cost)| Event::SettleTwice { open, cost }),
        1 => Just(Event::Crash),
    ];
    prop::collection::vec(event, 1..40)
}

impl Ledger {
    /// Lets things happen: what the writer is asked for all at once, as requests
    /// do, the rest one after another.
    async fn play(&mut self, events: Vec<Event>) {
        let mut at_once = Vec::new();
        let mut room = self.check().await;
        for event in events {
            match event {
                Event::Reserve { .. } | Event::GiveUp { .. } | Event::Settle { .. } => {
                    at_once.push(event);
                }
                event => {
                    self.rush(std::mem::take(&mut at_once)).await;
                    room = self.compare(room, false).await;
                    let is_operators = matches!(event, Event::Correct(_) | Event::Limit(_));
                    self.happen(event).await;
                    room = self.compare(room, is_operators).await;
                }
            }
        }
        self.rush(at_once).await;
        self.compare(room, false).await;
    }

    /// Only the operator may take a limited customer below its limit.
    async fn compare(&self, before: Option<i64>, is_operators: bool) -> Option<i64> {
        let after = self.check().await;
        if let (Some(before), Some(after), false) = (before, after, is_operators) {
            assert!(after >= before.min(0), "{after} of {before} left");
        }
        after
    }

    async fn happen(&mut self, event: Event) {
        match event {
            Event::TopUp(reference, amount) => {
                // the same reference comes again, with the same amount or another
                let reference = format!("payment-{reference}");
                let booked =
                    self.store
                        .add_credit(1, NanoDollars(amount), &reference, &Actor::Server, NOW);
                match booked.await {
                    Ok(booked) => assert_eq!(booked.amount, NanoDollars(amount)),
                    Err(error) => assert!(matches!(error, Error::ReferenceTaken), "{error}"),
                }
            }
            Event::Correct(amount) => {
                self.requests += 1;
                let reference = format!("correction-{}", self.requests);
                let booked =
                    self.store
                        .add_credit(1, NanoDollars(-amount), &reference, &Actor::Server, NOW);
                booked.await.expect("booked");
            }
            Event::Limit(limit) => {
                let change = CustomerChange {
                    credit_limit: Some(limit.map(NanoDollars)),
                    ..CustomerChange::default()
                };
                self.store
                    .change_customer(1, change, &Actor::Server, NOW)
                    .await
                    .expect("changed");
                // what was let through without a hold is not bound by a later limit
                for open in std::mem::take(&mut self.open) {
                    self.settle(&open, 40).await;
                }
            }
            Event::Budgets(number, budgets) => self.budgets(owner(number), &budgets).await,
            Event::SettleTwice { open, cost } if !self.open.is_empty() => {
                let open = self.open.remove(open % self.open.len());
                self.settle(&open, cost).await;
                self.settle(&open, cost + 1).await;
            }
            Event::Crash => self.crash().await,
            _ => {}
        }
    }

    /// Asks the writer for all of this at once.
    async fn rush(&mut self, events: Vec<Event>) {
        let mut reserving = Vec::new();
        let mut settling = Vec::new();
        let mut giving_up = Vec::new();
        for event in events {
            match event {
                Event::Reserve {
                    key,
                    least,
                    more,
                    days,
                } => {
                    let at = NOW + Duration::days(days);
                    reserving.push(self.reservation(owner(key), least, least + more, at));
                }
                Event::GiveUp { key, most } => {
                    giving_up.push(self.reservation(owner(key), 0, most, NOW));
                }
                Event::Settle { open, cost } if !self.open.is_empty() => {
                    let open = self.open.remove(open % self.open.len());
                    settling.push((open, cost));
                }
                _ => {}
            }
        }
        let settler = &self.settler;
        let reserve = async |wanted: Reservation| {
            let open = Open {
                id: wanted.request_id.clone(),
                owner: Owner::of_request(wanted.customer_id, wanted.api_key_id),
                held: None,
                at: wanted.created_at,
            };
            let (least, most) = (wanted.least, wanted.most);
            match settler.reserve(wanted).await.expect("an answer") {
                Reserved::Uncapped => Some(open),
                Reserved::Held { amount, capped_by } => {
                    assert!(least <= amount && amount <= most);
                    assert_eq!(capped_by.is_some(), amount < most);
                    Some(Open {
                        held: Some(amount),
                        ..open
                    })
                }
                Reserved::Refused { left, .. } => {
                    assert!(left < least);
                    None
                }
            }
        };
        // a client leaves while its reservation is on its way
        let give_up = async |wanted: Reservation| {
            let open = Open {
                id: wanted.request_id.clone(),
                owner: Owner::of_request(wanted.customer_id, wanted.api_key_id),
                held: Some(NanoDollars(0)),
                at: wanted.created_at,
            };
            tokio::select! {
                biased;
                _ = settler.reserve(wanted) => {}
                () = std::future::ready(()) => {}
            }
            self.settle(&open, 1).await;
        };
        let settle = async |(open, cost): (Open, i64)| self.settle(&open, cost).await;
        let (opened, _, _) = tokio::join!(
            join_all(reserving.into_iter().map(reserve)),
            join_all(settling.into_iter().map(settle)),
            join_all(giving_up.into_iter().map(give_up)),
        );
        self.open.extend(opened.into_iter().flatten());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_sums_hold_and_no_limit_is_passed(
        limit in prop::option::of(0..100_i64),
        events in events(),
    ) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(async {
            let mut ledger = Ledger::new(limit).await;
            ledger.play(events).await;
            // at last all that is at work ends, and nothing is held any more
            for open in std::mem::take(&mut ledger.open) {
                ledger.settle(&open, 40).await;
            }
            ledger.check().await;
            let audit = ledger.store.audit(NOW).await.expect("an audit");
            assert_eq!(audit.holds, 0);
        });
    }
}
