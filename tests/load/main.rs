//! Load: many clients on both kinds of model, then the books are compared with
//! the answers. Fails on any answer but 200 and 429, and when there are not as
//! many usage rows as answers.
//!
//!     cargo test --release --test load -- --clients 200 --seconds 30

#[expect(dead_code, unused_imports, reason = "the tests use more of it")]
#[path = "../it/harness/mod.rs"]
mod harness;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::json;

use harness::{Act, Client, GPT2, Host, Upstream, lawgent};

/// Calls both models from many clients at once and checks the books afterwards.
#[derive(Debug, Parser)]
struct Options {
    /// Clients at once
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// How long they call
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Requests a minute of each key and model
    #[arg(long, default_value_t = 100_000)]
    rate: u32,
}

/// What a client saw of one model.
#[derive(Debug, Default)]
struct Seen {
    statuses: BTreeMap<u16, u64>,
    latencies: Vec<Duration>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let upstream = Upstream::start(Act::Answer(" and so it was.")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let host = Host::builder()
        .config(config)
        .env("MODEL_HOST_LOG", "warn,model_host::app=info")
        .start()
        .await
        .ready()
        .await;
    let customer = host
        .customer_with(json!({ "rate_limit": options.rate }))
        .await;

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..options.clients)
        .map(|number| {
            let model_id = 1 + number % 2;
            tokio::spawn(call(customer.clone(), model_id, Arc::clone(&stop)))
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(options.seconds)).await;
    stop.store(true, Ordering::Relaxed);
    let mut models = [Seen::default(), Seen::default()];
    for (number, client) in clients.into_iter().enumerate() {
        let seen = client.await.expect("a client does not panic");
        let model = &mut models[number % 2];
        model.latencies.extend(seen.latencies);
        for (status, count) in seen.statuses {
            *model.statuses.entry(status).or_default() += count;
        }
    }

    let mut is_right = true;
    println!("{} clients, {} s", options.clients, options.seconds);
    println!(
        "{:18} {:>8} {:>8} {:>9} {:>9}  answers by status",
        "model", "answers", "per s", "p50 ms", "p99 ms"
    );
    for (name, seen) in ["gpt2", "lawgent-thinking"].into_iter().zip(&mut models) {
        seen.latencies.sort_unstable();
        let count = seen.latencies.len();
        let at = |share: usize| {
            let index = (count * share / 100).min(count.saturating_sub(1));
            seen.latencies.get(index).map_or(0.0, Duration::as_secs_f64) * 1000.0
        };
        let rate = count as f64 / options.seconds as f64;
        println!(
            "{name:18} {count:8} {rate:8.1} {:9.1} {:9.1}  {:?}",
            at(50),
            at(99),
            seen.statuses
        );
        is_right &= count > 0
            && seen
                .statuses
                .keys()
                .all(|status| [200, 429].contains(status));
    }
    let usage = customer.get("/usage").await.expect(200);
    for (model, seen) in usage["by_model"]
        .as_array()
        .into_iter()
        .flatten()
        .zip(&models)
    {
        let answers = seen.statuses.get(&200).copied().unwrap_or_default();
        println!(
            "{}: {answers} answers, {} usage rows",
            model["model"], model["requests"]
        );
        is_right &= model["requests"].as_u64() == Some(answers);
    }
    println!(
        "{}",
        if is_right {
            "1 passed, 0 failed"
        } else {
            "0 passed, 1 failed"
        }
    );
    if is_right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Calls a model until told to stop.
async fn call(customer: Client, model_id: usize, stop: Arc<AtomicBool>) -> Seen {
    let mut seen = Seen::default();
    while !stop.load(Ordering::Relaxed) {
        let ask = json!({ "text": "Once upon a time", "model_id": model_id, "max_new_tokens": 16 });
        let started = Instant::now();
        let reply = customer.post("/generate", ask).await;
        *seen.statuses.entry(reply.status.as_u16()).or_default() += 1;
        if reply.status == 200 {
            seen.latencies.push(started.elapsed());
        } else {
            // a client that is told to wait does not hammer
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    seen
}
