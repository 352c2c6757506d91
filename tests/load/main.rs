//! Many clients at once, at every endpoint that generates, of each kind of model: nothing
//! but 200 and 429 may come, and what is on record must be what was answered. The server
//! ends when it is told to, with nothing left undone.
//!
//!     cargo test --release --test load -- --clients 200 --seconds 30

mod ask;
#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;
mod report;

use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use tokio::time::Instant;

use ask::ASKS;
use harness::{Act, Client, GPT2, Host, Purse, Upstream, component, lawgent};
use report::Report;

/// Customers, each with one key; every second one has paid, and has a budget.
const CUSTOMERS: usize = 10;
/// What such a customer has paid, in nano-dollars: more than is asked for.
const PAID: i64 = 1_000_000_000_000_000;

/// Puts a server under load and checks its books.
#[derive(Debug, Parser)]
struct Options {
    /// Clients at once
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// How long, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Requests a minute that the first customer's key has for each model; the others have many
    #[arg(long, default_value_t = 60)]
    rate: u32,
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
    let upstream = Upstream::start(Act::Answer(" and so it was.")).await;
    let mut host = Host::builder()
        .env("MODEL_HOST_LOG", "info")
        .config(config(&upstream))
        .start()
        .await
        .ready()
        .await;
    let customers = customers(&host, options.rate).await;

    println!("{} clients for {} s", options.clients, options.seconds);
    let started = Instant::now();
    let end = started + Duration::from_secs(options.seconds);
    let clients: Vec<_> = (0..options.clients)
        .map(|number| {
            let customer = customers[number % CUSTOMERS].clone();
            tokio::spawn(ask_until(end, customer, number))
        })
        .collect();
    let mut report = Report::default();
    for client in clients {
        report.add(client.await.expect("no panic"));
    }
    print!("{}", report.table(started.elapsed()));
    let mut problems = report.problems(&host.admin().get("/usage").await.expect(200));
    host.signal("TERM");
    let status = host.wait_exit().await;
    if !status.success() {
        problems.push(format!("the server ended with {status}"));
    }
    for problem in &problems {
        println!("FAILED: {problem}");
    }
    if problems.is_empty() {
        println!("every answer is on record, and nothing else");
        println!("1 passed, 0 failed");
        ExitCode::SUCCESS
    } else {
        println!("0 passed, 1 failed");
        ExitCode::FAILURE
    }
}

/// A native model, and components whose instances answer one request and many.
fn config(upstream: &Upstream) -> String {
    let mut config = format!("{GPT2}{}", lawgent(upstream.url()));
    for (id, per_instance) in [(3, 1), (4, 1_000)] {
        let _ = write!(
            config,
            "[[models]]\nid = {id}\nname = \"openai-{id}\"\nplugin = \"{}\"\n\
             api_url = \"{}\"\nmodel_name = \"upstream\"\n\
             [models.limits]\nrequests_per_instance = {per_instance}\n",
            component("openai"),
            upstream.base(),
        );
    }
    config
}

async fn customers(host: &Host, rate: u32) -> Vec<Client> {
    let mut customers = vec![host.customer_with(json!({ "rate_limit": rate })).await];
    while customers.len() < CUSTOMERS {
        if customers.len() % 2 == 0 {
            customers.push(host.customer().await);
            continue;
        }
        let purse = Purse::prepaid(host, PAID).await;
        let budgets = json!({ "budgets": [{ "period": "month", "amount": 1_000_000 }] });
        let path = purse.path("/budgets");
        host.admin().put(&path, budgets).await.expect(200);
        customers.push(purse.customer);
    }
    customers
}

/// One client: asks in every way in turn, waits when it is told to.
async fn ask_until(end: Instant, customer: Client, number: usize) -> Report {
    let mut report = Report::default();
    for ask in ASKS.iter().cycle().skip(number % ASKS.len()) {
        let sent = Instant::now();
        let answer = ask.send(&customer).await;
        let wait = report.note(ask, sent.elapsed(), answer);
        let next = Instant::now() + wait;
        if next >= end {
            break;
        }
        tokio::time::sleep_until(next).await;
    }
    report
}
