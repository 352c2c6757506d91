//! Many clients at once, on both kinds of model: nothing but 200 and 429 may
//! come, and what is on record must be what was answered.
//!
//!     cargo test --release --test load -- --clients 200 --seconds 30

#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;
mod report;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

use harness::{Act, Client, GPT2, Host, Reply, Upstream, lawgent};
use report::Report;

/// Customers, each with one key.
const CUSTOMERS: usize = 10;
/// The models, asked in turn.
const MODELS: [i64; 2] = [1, 2];

/// Puts a server under load and checks its books.
#[derive(Debug, Parser)]
struct Options {
    /// Clients at once
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// How long, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
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
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let host = Host::builder()
        .env("MODEL_HOST_LOG", "info")
        .config(config)
        .start()
        .await
        .ready()
        .await;
    let mut customers = vec![host.customer_with(json!({})).await];
    while customers.len() < CUSTOMERS {
        customers.push(host.customer().await);
    }

    println!("{} clients for {} s", options.clients, options.seconds);
    let started = Instant::now();
    let end = started + Duration::from_secs(options.seconds);
    let clients: Vec<_> = (0..options.clients)
        .map(|number| {
            tokio::spawn(ask_until(
                end,
                customers[number % CUSTOMERS].clone(),
                number,
            ))
        })
        .collect();
    let mut report = Report::default();
    for client in clients {
        report.add(client.await.expect("no panic"));
    }
    print!("{}", report.table(started.elapsed()));
    let problems = report.problems(&MODELS, &host.admin().get("/usage").await.expect(200));
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

/// One client: asks each model in turn, waits when it is told to.
async fn ask_until(end: Instant, customer: Client, number: usize) -> Report {
    let mut report = Report::default();
    for model in MODELS.into_iter().cycle().skip(number) {
        let body = json!({ "text": "Once upon a time", "model_id": model, "max_new_tokens": 8 });
        let sent = Instant::now();
        let answer = match customer
            .request(Method::POST, "/generate")
            .json(&body)
            .send()
            .await
        {
            Ok(response) => Ok(Reply::of(response).await),
            Err(error) => Err(error),
        };
        let wait = report.note(model, sent.elapsed(), answer);
        let next = Instant::now() + wait;
        if next >= end {
            break;
        }
        tokio::time::sleep_until(next).await;
    }
    report
}
