//! How many requests a second the ledger books, and how long a reservation takes
//! when all of them want the same balance. Not a test: it prints what it measures.
//!
//!     cargo test --release --bin model-host -- --ignored --nocapture speed
//!
//! With `MODEL_HOST_TEST_STORE=postgres` it measures a server, which
//! `MODEL_HOST_TEST_POSTGRES` names.

use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::{Ledger, NOW, Open, owner, settlement};
use crate::money::NanoDollars;
use crate::store::Settler;
use crate::store::ledger::{Reservation, Reserved};

/// How long each number of tasks is measured.
const TIME: Duration = Duration::from_secs(5);

/// Reserves and settles until the time is over; how long each reservation took.
async fn work(settler: Settler, name: String, key: usize) -> Vec<Duration> {
    let (mut took, end) = (Vec::new(), Instant::now() + TIME);
    while Instant::now() < end {
        let owner = owner(key);
        let id = format!("{name}-{}", took.len());
        let wanted = Reservation {
            request_id: id.clone(),
            customer_id: owner.customer_id,
            api_key_id: owner.api_key_id.expect("a request has a key"),
            most: NanoDollars(100),
            least: NanoDollars(100),
            created_at: NOW,
            expires_at: NOW,
        };
        let begun = Instant::now();
        let reserved = settler.reserve(wanted).await.expect("an answer");
        took.push(begun.elapsed());
        let Reserved::Held { amount, .. } = reserved else {
            panic!("{reserved:?}");
        };
        let open = Open {
            id,
            owner,
            held: Some(amount),
            at: NOW,
        };
        let settled = settler.settle(settlement(&open, 60));
        settled.await.expect("settled");
    }
    took
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it measures"]
async fn speed() {
    let servers = 3;
    for tasks in [1, 32, 256] {
        let ledger = Ledger::new(Some(1_000_000_000_000)).await;
        let kind = match ledger.store.write.is_shared() {
            true => "PostgreSQL",
            false => "SQLite",
        };
        let all = (0..tasks).map(|task| work(ledger.settler.clone(), format!("a{task}"), 0));
        report(&format!("{kind}, one server"), tasks, join_all(all).await);
        ledger.check().await;
        if kind == "SQLite" {
            continue;
        }
        let ledger = Ledger::new(Some(1_000_000_000_000)).await;
        let (mut settlers, mut stores) = (Vec::new(), Vec::new());
        for server in 0..servers {
            let store = super::open(&ledger.scratch).await;
            settlers.push(Settler::start(store.clone(), format!("server-{server}")).0);
            stores.push(store);
        }
        let all = (0..tasks).map(|task| {
            let settler = settlers[task % servers].clone();
            work(settler, format!("b{task}"), 0)
        });
        let title = format!("{kind}, {servers} servers");
        report(&title, tasks, join_all(all).await);
        ledger.check().await;
    }
}

fn report(title: &str, tasks: usize, took: Vec<Vec<Duration>>) {
    let mut took: Vec<_> = took.into_iter().flatten().collect();
    took.sort_unstable();
    let at = |part: usize| took[took.len() * part / 100];
    println!(
        "{title}, {tasks} at once on one balance: {:.0} requests a second booked; \
         a reservation takes {:?}, p99 {:?}",
        took.len() as f64 / TIME.as_secs_f64(),
        at(50),
        at(99),
    );
}
