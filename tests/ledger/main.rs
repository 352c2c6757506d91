//! How many requests a second the ledger books, held and settled, and how long a
//! reservation takes while all of them want the same balance: of a file and of a
//! PostgreSQL server, with nothing else of the host about it.
//!
//!     tests/run --release -p model-host --test ledger -- --seconds 5
//!
//! The PostgreSQL that `tests/run` starts does not flush its commits: for figures
//! of one that does, name it in `MODEL_HOST_TEST_POSTGRES`.

#[path = "../../host/src/clock.rs"]
mod clock;
#[path = "../../host/src/money.rs"]
#[expect(dead_code, unused_imports, reason = "the host uses the rest")]
mod money;
#[path = "../../host/src/store/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the host uses the rest")]
mod store;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::future::join_all;
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::Uuid;

use money::{NanoDollars, Price};
use store::ledger::{Reservation, Reserved};
use store::scratch::{Scratch, create_customer, create_key};
use store::usage::{Status, Usage};
use store::{Audience, Settlement, Settler};

const NOW: OffsetDateTime = datetime!(2026-01-31 12:00 UTC);
/// What is held for a request, and what it costs.
const HELD: NanoDollars = NanoDollars(100);
const COST: NanoDollars = NanoDollars(60);
/// What a customer may owe: more than all that is measured.
const MONEY: NanoDollars = NanoDollars(1_000_000_000_000);

/// Measures the ledger.
#[derive(Debug, Parser)]
struct Options {
    /// How long each figure is measured, in seconds
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// Requests at once
    #[arg(long, value_delimiter = ',', default_value = "1,32,256")]
    tasks: Vec<usize>,
    /// Servers of the PostgreSQL database
    #[arg(long, value_delimiter = ',', default_value = "1,3")]
    servers: Vec<usize>,
    /// Customers whose balances the requests want, in turn
    #[arg(long, value_delimiter = ',', default_value = "1")]
    customers: Vec<i64>,
    /// Names and flags that `cargo test` passes to every test; this is none of those named
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    others: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if !options.others.is_empty() {
        return ExitCode::SUCCESS;
    }
    let time = Duration::from_secs_f64(options.seconds);
    let mut is_sound = true;
    for &customers in &options.customers {
        for &tasks in &options.tasks {
            let file = Scratch::file();
            is_sound &= measure("SQLite", &file, 1, customers, tasks, time).await;
            for &servers in &options.servers {
                let Some(database) = Scratch::server() else {
                    println!("no PostgreSQL: MODEL_HOST_TEST_POSTGRES names none");
                    continue;
                };
                is_sound &= measure("PostgreSQL", &database, servers, customers, tasks, time).await;
            }
        }
    }
    match is_sound {
        true => println!("1 passed, 0 failed"),
        false => println!("0 passed, 1 failed"),
    }
    match is_sound {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Prints what a number of requests at once come to; whether the books are right
/// afterwards.
async fn measure(
    kind: &str,
    scratch: &Scratch,
    servers: usize,
    customers: i64,
    tasks: usize,
    time: Duration,
) -> bool {
    let mut stores = Vec::new();
    for _ in 0..servers {
        stores.push(
            scratch
                .open(Audience {
                    stripe: true,
                    ..Audience::default()
                })
                .await,
        );
    }
    for number in 1..=customers {
        // as many keys, which are numbered alike
        let id = create_customer(&stores[0], number, Some(MONEY), NOW).await;
        let key = create_key(&stores[0], id, number.to_string(), NOW).await;
        assert_eq!((id, key), (number, number));
    }
    let settlers: Vec<_> = stores
        .iter()
        .enumerate()
        .map(|(server, store)| Settler::start(store.clone(), format!("server-{server}")).0)
        .collect();
    let work = (0..tasks).map(|task| {
        let customer_id = 1 + i64::try_from(task).unwrap_or_default() % customers;
        tokio::spawn(work(settlers[task % servers].clone(), customer_id, time))
    });
    let took = join_all(work).await;
    let mut took: Vec<_> = took
        .into_iter()
        .flat_map(|took| took.expect("no panic"))
        .collect();
    took.sort_unstable();
    let at = |part: usize| took[took.len() * part / 100];
    println!(
        "{kind}, servers {servers}, balances {customers}, at once {tasks}: {:.0} a second held and settled; \
         a reservation {:.2} ms, p99 {:.2} ms",
        took.len() as f64 / time.as_secs_f64(),
        at(50).as_secs_f64() * 1e3,
        at(99).as_secs_f64() * 1e3,
    );
    let audit = stores[0].audit(NOW).await.expect("an audit");
    for problem in &audit.problems {
        println!("FAILED: {problem}");
    }
    for store in stores {
        store.close().await;
    }
    audit.problems.is_empty() && audit.holds == 0
}

/// Holds and settles until the time is over; how long each reservation took.
async fn work(settler: Settler, customer_id: i64, time: Duration) -> Vec<Duration> {
    let (mut took, end) = (Vec::new(), Instant::now() + time);
    while Instant::now() < end {
        // in order of time, as the server's are
        let request_id = format!("req_{}", Uuid::now_v7().simple());
        let wanted = Reservation {
            request_id: request_id.clone(),
            customer_id,
            api_key_id: customer_id,
            most: HELD,
            least: HELD,
            created_at: NOW,
            expires_at: NOW,
        };
        let begun = Instant::now();
        let reserved = settler.reserve(wanted).await.expect("an answer");
        took.push(begun.elapsed());
        assert!(matches!(reserved, Reserved::Held { .. }), "{reserved:?}");
        let settled = settler.settle(settlement(request_id, customer_id)).await;
        settled.expect("settled");
    }
    took
}

fn settlement(request_id: String, customer_id: i64) -> Settlement {
    let usage = Usage {
        request_id,
        customer_id,
        api_key_id: customer_id,
        model_id: 1,
        model_name: "m".into(),
        plugin_digest: None,
        prompt_tokens: 1,
        completion_tokens: 1,
        tokens_estimated: false,
        price: Price::default(),
        cost: COST,
        status: Status::Ok,
        error_code: None,
        latency_ms: 1,
        created_at: NOW,
    };
    Settlement {
        usage: Arc::new(usage),
        answer: None,
        is_held: true,
    }
}
