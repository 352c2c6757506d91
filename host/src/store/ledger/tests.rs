//! The ledger under any order of what can happen to it, many things at once.

use futures_util::future::join_all;
use proptest::prelude::*;
use tempfile::TempDir;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::budgets::{Budget, Owner, Period};
use super::{Cap, Reservation, Reserved};
use crate::money::{NanoDollars, Price};
use crate::store::customers::{CustomerChange, NewCustomer};
use crate::store::keys::NewKey;
use crate::store::usage::{Status, Usage};
use crate::store::{Error, Outbox, Settlement, Settler, Store};

/// An hour before a day and a month end.
const NOW: OffsetDateTime = datetime!(2026-01-31 23:00 UTC);

/// A ledger with two customers, two keys each, and what its requests hold.
struct Ledger {
    store: Store,
    settler: Settler,
    starts: u32,
    folder: TempDir,
    requests: u32,
    open: Vec<Open>,
}

/// A request at work.
#[derive(Clone, Debug)]
struct Open {
    id: String,
    owner: Owner,
    held: Option<NanoDollars>,
    at: OffsetDateTime,
}

fn customer(number: i64, credit_limit: Option<i64>) -> NewCustomer {
    NewCustomer {
        name: "A".into(),
        email: format!("{number}@example.com"),
        company: String::new(),
        credit_limit: credit_limit.map(NanoDollars),
    }
}

impl Ledger {
    /// Customer 1 is limited to this, customer 2 is not.
    async fn new(credit_limit: Option<i64>) -> Self {
        let folder = TempDir::new().expect("a folder");
        let store = open(&folder).await;
        for (number, limit) in [(1, credit_limit), (2, None)] {
            let created = store.create_customer(customer(number, limit), NOW).await;
            let customer_id = created.expect("a customer").id;
            for key in ["a", "b"] {
                let key = NewKey {
                    customer_id,
                    name: "K".into(),
                    public_id: format!("{number}{key}"),
                    hash: vec![0],
                    rate_limit: 1,
                    allowed_models: vec![],
                };
                store.create_key(key, NOW).await.expect("a key");
            }
        }
        let (settler, _) = Settler::start(store.clone(), "0".into());
        Self {
            store,
            settler,
            starts: 0,
            folder,
            requests: 0,
            open: Vec::new(),
        }
    }

    /// Ends all requests at work without a word, as a crash does, and opens the
    /// same database again.
    async fn crash(&mut self) {
        self.starts += 1;
        self.open.clear();
        let process = self.starts.to_string();
        self.store = open(&self.folder).await;
        let voided = self.store.void_holds_of_others(&process).await;
        voided.expect("holds are voided");
        (self.settler, _) = Settler::start(self.store.clone(), process);
    }

    fn reservation(
        &mut self,
        owner: Owner,
        least: i64,
        most: i64,
        at: OffsetDateTime,
    ) -> Reservation {
        self.requests += 1;
        Reservation {
            request_id: format!("req_{}", self.requests),
            customer_id: owner.customer_id,
            api_key_id: owner.api_key_id.expect("a request has a key"),
            most: NanoDollars(most),
            least: NanoDollars(least),
            created_at: at,
            expires_at: at + Duration::days(100),
        }
    }

    async fn reserve(
        &mut self,
        owner: Owner,
        least: i64,
        most: i64,
        at: OffsetDateTime,
    ) -> Reserved {
        let wanted = self.reservation(owner, least, most, at);
        self.settler.reserve(wanted).await.expect("an answer")
    }

    async fn settle(&self, open: &Open, cost: i64) {
        self.settler
            .settle(settlement(open, cost))
            .await
            .expect("settled");
    }

    async fn budgets(&self, owner: Owner, budgets: &[(Period, i64)]) {
        let budgets: Vec<_> = budgets
            .iter()
            .map(|&(period, amount)| Budget {
                period,
                amount: NanoDollars(amount),
                near_percent: 80,
            })
            .collect();
        self.store
            .set_budgets(owner, &budgets, NOW)
            .await
            .expect("set");
    }

    /// What is wrong with the sums; and what customer 1 may yet spend.
    async fn check(&self) -> Option<i64> {
        let audit = self.store.audit(NOW).await.expect("an audit");
        assert_eq!(audit.problems, []);
        let customer = self.store.customer(1).await.expect("customer 1");
        let limit = customer.credit_limit?;
        Some(customer.balance.0 - customer.held.0 + limit.0)
    }
}

async fn open(folder: &TempDir) -> Store {
    let file = folder.path().join("db");
    Store::open(&file, Outbox::Off).await.expect("a database")
}

fn settlement(open: &Open, cost: i64) -> Settlement {
    let usage = Usage {
        request_id: open.id.clone(),
        customer_id: open.owner.customer_id,
        api_key_id: open.owner.api_key_id.expect("a request has a key"),
        model_id: 1,
        model_name: "m".into(),
        plugin_digest: None,
        prompt_tokens: 1,
        completion_tokens: 1,
        tokens_estimated: false,
        price: Price::default(),
        cost: NanoDollars(open.held.map_or(cost, |held| held.0.min(cost))),
        status: Status::Ok,
        error_code: None,
        latency_ms: 1,
        created_at: open.at,
    };
    Settlement {
        usage,
        answer: None,
        is_held: open.held.is_some(),
    }
}

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

/// The four keys' owners, then the two customers.
fn owner(number: usize) -> Owner {
    let number = i64::try_from(number % 6).expect("small");
    match number {
        0..4 => Owner::of_request(1 + number / 2, 1 + number),
        _ => Owner::customer(number - 3),
    }
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
                let booked = self
                    .store
                    .add_credit(1, NanoDollars(amount), &reference, NOW);
                match booked.await {
                    Ok(booked) => assert_eq!(booked.amount, NanoDollars(amount)),
                    Err(error) => assert!(matches!(error, Error::ReferenceTaken), "{error}"),
                }
            }
            Event::Correct(amount) => {
                self.requests += 1;
                let reference = format!("correction-{}", self.requests);
                let booked = self
                    .store
                    .add_credit(1, NanoDollars(-amount), &reference, NOW);
                booked.await.expect("booked");
            }
            Event::Limit(limit) => {
                let change = CustomerChange {
                    credit_limit: Some(limit.map(NanoDollars)),
                    ..CustomerChange::default()
                };
                self.store
                    .change_customer(1, change)
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

#[tokio::test]
async fn a_budget_begins_anew_with_its_period() {
    let mut ledger = Ledger::new(None).await;
    let key = owner(0);
    ledger
        .budgets(Owner::customer(1), &[(Period::Month, 150)])
        .await;
    ledger.budgets(key, &[(Period::Day, 100)]).await;
    let day = Cap::Budget {
        is_of_key: true,
        period: Period::Day,
    };
    let month = Cap::Budget {
        is_of_key: false,
        period: Period::Month,
    };

    let yesterday = NOW - Duration::DAY;
    let late = ledger.reserve(key, 1, 60, yesterday).await;
    assert_eq!(
        late,
        Reserved::Held {
            amount: NanoDollars(60),
            capped_by: None
        }
    );
    // a new day, the same month
    let today = ledger.reserve(key, 1, 200, NOW).await;
    assert_eq!(
        today,
        Reserved::Held {
            amount: NanoDollars(90),
            capped_by: Some(month)
        }
    );
    // yesterday's is settled today, and counts for yesterday
    let open = |id: &str, held, at| Open {
        id: id.into(),
        owner: key,
        held: Some(NanoDollars(held)),
        at,
    };
    ledger.settle(&open("req_1", 60, yesterday), 10).await;
    let today = ledger.reserve(key, 1, 200, NOW).await;
    assert_eq!(
        today,
        Reserved::Held {
            amount: NanoDollars(10),
            capped_by: Some(day)
        }
    );
    let refused = ledger.reserve(key, 1, 1, NOW).await;
    assert_eq!(
        refused,
        Reserved::Refused {
            by: day,
            left: NanoDollars(0)
        }
    );
    // the next day is the next month too
    let tomorrow = NOW + Duration::DAY;
    let reserved = ledger.reserve(key, 1, 200, tomorrow).await;
    assert_eq!(
        reserved,
        Reserved::Held {
            amount: NanoDollars(100),
            capped_by: Some(day)
        }
    );
    let spending = ledger.store.budgets(key, tomorrow).await.expect("budgets");
    assert_eq!(
        (spending[0].spent, spending[0].held),
        (NanoDollars(0), NanoDollars(100))
    );
    ledger.check().await;
}

#[tokio::test]
async fn a_budget_that_comes_late_counts_what_was_used_in_its_period() {
    let ledger = Ledger::new(None).await;
    let request = |id: &str, key, at| Open {
        id: id.into(),
        owner: owner(key),
        held: None,
        at,
    };
    ledger
        .settle(&request("old", 0, NOW - Duration::days(40)), 1000)
        .await;
    ledger.settle(&request("one", 0, NOW), 30).await;
    ledger.settle(&request("two", 1, NOW), 50).await;
    let all = [(Period::Month, 100), (Period::Total, 2000)];
    ledger.budgets(Owner::customer(1), &all).await;
    ledger.budgets(owner(0), &[(Period::Day, 40)]).await;
    let spending = ledger.store.all_budgets(1, NOW).await.expect("budgets");
    let spent: Vec<_> = spending
        .iter()
        .map(|s| (s.budget.period, s.spent.0, s.is_near()))
        .collect();
    let expected = [
        (Period::Month, 80, true),
        (Period::Total, 1080, false),
        (Period::Day, 30, false),
    ];
    assert_eq!(spent, expected);
    ledger.check().await;
}

#[tokio::test]
async fn a_sum_that_is_not_as_kept_is_found() {
    let ledger = Ledger::new(None).await;
    let open = Open {
        id: "one".into(),
        owner: owner(0),
        held: None,
        at: NOW,
    };
    ledger.budgets(owner(0), &[(Period::Day, 40)]).await;
    ledger.settle(&open, 30).await;
    ledger.check().await;
    for sql in [
        "UPDATE accounts SET posted = posted + 1 WHERE id = 2",
        "UPDATE accounts SET held = 1 WHERE customer_id = 1",
        "UPDATE transfers SET amount = 31",
        "DELETE FROM transfers",
        "UPDATE usage SET cost = 29",
        "UPDATE spending SET held = 7",
    ] {
        let mut transaction = ledger.store.write.begin().await.expect("a transaction");
        sqlx::query(sql)
            .execute(&mut *transaction)
            .await
            .expect("changed");
        transaction.commit().await.expect("committed");
        let audit = ledger.store.audit(NOW).await.expect("an audit");
        assert!(!audit.problems.is_empty(), "{sql}");
    }
}
