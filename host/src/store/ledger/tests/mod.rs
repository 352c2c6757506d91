//! A ledger to test, and what a budget does with time.

mod any_order;
mod at_once;
mod audit;
mod failures;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use time::macros::datetime;
use time::{Duration, OffsetDateTime};
use tokio::task::JoinHandle;

use super::budgets::{Budget, Owner, Spending};
use super::{Cap, Period, Reservation, Reserved};
use crate::money::{NanoDollars, Price};
use crate::store::audit::Actor;
use crate::store::customers::Customer;
use crate::store::db::query;
use crate::store::scratch::{Scratch, create_customer, create_key};
use crate::store::usage::{Status, Usage};
use crate::store::{Audience, Settlement, Settler, Store};

/// An hour before a day and a month end.
const NOW: OffsetDateTime = datetime!(2026-01-31 23:00 UTC);

/// A ledger with two customers, two keys each, and what its requests hold.
struct Ledger {
    store: Store,
    settler: Settler,
    writer: JoinHandle<()>,
    starts: u32,
    scratch: Scratch,
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

impl Ledger {
    /// Customer 1 is limited to this, customer 2 is not.
    async fn new(credit_limit: Option<i64>) -> Self {
        Self::on(Scratch::new(), credit_limit).await
    }

    /// The same, in this database.
    async fn on(scratch: Scratch, credit_limit: Option<i64>) -> Self {
        let store = open(&scratch).await;
        for (number, limit) in [(1, credit_limit), (2, None)] {
            let limit = limit.map(NanoDollars);
            let customer_id = create_customer(&store, number, limit, NOW).await;
            for key in ["a", "b"] {
                create_key(&store, customer_id, format!("{number}{key}"), NOW).await;
            }
        }
        let (settler, writer) = Settler::start(store.clone(), "0".into());
        Self {
            store,
            settler,
            writer,
            starts: 0,
            scratch,
            requests: 0,
            open: Vec::new(),
        }
    }

    /// Ends all requests at work without a word, as a crash does, and opens the
    /// same database again.
    async fn crash(&mut self) {
        self.starts += 1;
        self.open.clear();
        self.writer.abort();
        (&mut self.writer).await.expect_err("it is cut off");
        let process = self.starts.to_string();
        self.store = open(&self.scratch).await;
        let voided = self.store.void_holds_of_others(&process).await;
        voided.expect("holds are voided");
        (self.settler, self.writer) = Settler::start(self.store.clone(), process);
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
            .set_budgets(owner, &budgets, &Actor::Server, NOW)
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

async fn open(scratch: &Scratch) -> Store {
    scratch
        .open(Audience {
            stripe: true,
            ..Audience::default()
        })
        .await
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
        usage: Arc::new(usage),
        answer: None,
        is_held: open.held.is_some(),
    }
}

/// The four keys' owners, then the two customers.
fn owner(number: usize) -> Owner {
    let number = i64::try_from(number % 6).expect("small");
    match number {
        0..4 => Owner::of_request(1 + number / 2, 1 + number),
        _ => Owner::customer(number - 3),
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
async fn a_period_counts_a_request_that_is_settled_as_it_begins() {
    let mut ledger = Ledger::new(None).await;
    let (key, tomorrow) = (owner(0), NOW + Duration::DAY);
    ledger.budgets(key, &[(Period::Day, 100)]).await;
    let settled = Open {
        id: "one".into(),
        owner: key,
        held: None,
        at: tomorrow,
    };
    let wanted = ledger.reservation(key, 1, 200, tomorrow);
    // in one commit: both wait before the writer has its turn
    let (settled, reserved) = tokio::join!(
        ledger.settler.settle(settlement(&settled, 30)),
        ledger.settler.reserve(wanted),
    );
    settled.expect("settled");
    let Ok(Reserved::Held { amount, .. }) = reserved else {
        panic!("{reserved:?}")
    };
    assert_eq!(amount, NanoDollars(70));
    let spending = ledger.store.budgets(key, tomorrow).await.expect("budgets");
    let [Spending { spent, held, .. }] = spending[..] else {
        panic!("{spending:?}")
    };
    assert_eq!((spent, held), (NanoDollars(30), NanoDollars(70)));
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_a_request_cost_is_nobodys_while_it_is_settled() {
    let mut ledger = Ledger::on(Scratch::file(), Some(0)).await;
    ledger.budgets(owner(0), &[(Period::Day, 10_000)]).await;
    for turn in 1..20 {
        let (all, reference) = (NanoDollars(100), format!("payment-{turn}"));
        let paid = ledger
            .store
            .add_credit(1, all, &reference, &Actor::Server, NOW);
        paid.await.expect("booked");
        let wanted = ledger.reservation(owner(0), 100, 100, NOW);
        let request = Open {
            id: wanted.request_id.clone(),
            owner: owner(0),
            held: Some(all),
            at: NOW,
        };
        let held = ledger.settler.reserve(wanted).await.expect("an answer");
        assert!(matches!(held, Reserved::Held { .. }), "{held:?}");

        let is_over = Arc::new(AtomicBool::new(false));
        let others: Vec<_> = (0..3)
            .map(|_| {
                let (settler, is_over) = (ledger.settler.clone(), Arc::clone(&is_over));
                let wanted = ledger.reservation(owner(1), 1, 100, NOW);
                tokio::spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        let reserved = settler.reserve(wanted.clone()).await;
                        let reserved = reserved.expect("an answer");
                        assert!(matches!(reserved, Reserved::Refused { .. }), "{reserved:?}");
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let (store, over) = (ledger.store.clone(), Arc::clone(&is_over));
        let watching = tokio::spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let Customer { balance, held, .. } = store.customer(1).await.expect("read");
                assert!(balance <= held, "{balance:?} with {held:?} held");
            }
        });
        // a period that begins in the same commit takes it a while
        let past = ledger.reservation(owner(0), 1, 1, NOW - Duration::days(turn));
        let (_, past) = tokio::join!(ledger.settle(&request, 100), ledger.settler.reserve(past));
        assert!(matches!(past, Ok(Reserved::Refused { .. })), "{past:?}");
        is_over.store(true, Ordering::Relaxed);
        for other in others {
            other.await.expect("refused each time");
        }
        watching.await.expect("no more than there is");
    }
    assert_eq!(ledger.check().await, Some(0));
}

#[tokio::test]
async fn only_what_was_not_paid_before_is_asked_for() {
    let ledger = Ledger::new(None).await;
    let ten = NanoDollars(10);
    let booked = ledger
        .store
        .add_credit(1, ten, "paid", &Actor::Server, NOW)
        .await;
    booked.expect("booked");
    for (id, cost, owed) in [("a", 4, 0), ("b", 9, 3), ("c", 5, 8)] {
        let open = Open {
            id: id.into(),
            owner: owner(0),
            held: None,
            at: NOW,
        };
        ledger.settle(&open, cost).await;
        let row = query(
            "SELECT CAST(coalesce(sum(amount), 0) AS BIGINT) AS owed FROM outbox WHERE kind = 'usage'",
        );
        let read = ledger.store.up_to_date().await.expect("posted");
        let row = row.fetch_one(read).await.expect("a sum");
        assert_eq!(row.try_get::<i64>("owed").expect("a sum"), owed, "{id}");
    }
}

/// Does to the database what no code of ours would.
async fn change(ledger: &Ledger, sql: &'static str) {
    let done = query(sql).execute(&ledger.store.write).await;
    done.expect("changed");
}
