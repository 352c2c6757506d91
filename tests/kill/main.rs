//! Kills the server at random moments under load and starts it again on the same
//! data: whatever a client has in hand must be on record, once and at its price,
//! all sums of money must be as kept, and nothing may be held for the dead. Then the
//! same for three servers of one PostgreSQL, where that is stopped too.
//!
//!     cargo test --release --test kill -- --rounds 50

#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;
mod servers;

use std::collections::HashMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use reqwest::Method;
use serde_json::{Value, json};

use harness::{Act, Client, GPT2, Host, Purse, Upstream, lawgent};

/// Rows of a page of the server's records.
const PAGE: usize = 1000;

/// Kills a server again and again and checks its books.
#[derive(Debug, Parser)]
struct Options {
    /// How often to kill it
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Clients at once
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Longest time between a start and a kill, in milliseconds
    #[arg(long, default_value_t = 1500)]
    longest_ms: u64,
    /// Names and flags that `cargo test` passes to every test; this is none of those named
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    others: Vec<String>,
}

/// Answers that came whole: the request's id and what it said it cost.
type Answers = Arc<Mutex<HashMap<String, Value>>>;

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if !options.others.is_empty() {
        return ExitCode::SUCCESS;
    }
    let upstream = Upstream::start(Act::Answer(" and so it was.")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let setup = Host::builder()
        .config(config)
        .env("MODEL_HOST_LOG", "warn,model_host::app=info");
    let mut host = setup.start().await.ready().await;
    // limited, so that something is held for each request
    let mut purse = Purse::prepaid(&host, 9_000_000_000_000_000).await;
    let answers = Answers::default();
    let stop = Arc::new(AtomicBool::new(false));
    println!("{} clients, {} rounds", options.clients, options.rounds);
    for round in 1..=options.rounds {
        let clients: Vec<_> = (0..options.clients)
            .map(|number| {
                tokio::spawn(ask_until_it_dies(
                    purse.customer.clone(),
                    number,
                    Arc::clone(&answers),
                    Arc::clone(&stop),
                ))
            })
            .collect();
        // not a wait for something: the moment is to be any moment
        tokio::time::sleep(Duration::from_millis(random(options.longest_ms))).await;
        host = host.restart().await.ready().await;
        for client in clients {
            client.await.expect("no panic");
        }
        purse = purse.at(&host);
        let mut problems = problems(&host, &answers).await;
        problems.extend(unsound(&host, &purse).await);
        let count = answers.lock().expect("no panic").len();
        println!("round {round}: {count} answers so far");
        if !problems.is_empty() {
            for problem in problems {
                println!("FAILED: {problem}");
            }
            println!("0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    }
    if answers.lock().expect("no panic").is_empty() {
        println!("FAILED: nothing was ever answered\n0 passed, 1 failed");
        return ExitCode::FAILURE;
    }
    if let Err(problem) = servers::run(&options).await {
        println!("FAILED: {problem}\n0 passed, 1 failed");
        return ExitCode::FAILURE;
    }
    println!(
        "every answer is on record once, at its price; the ledger is sound\n1 passed, 0 failed"
    );
    ExitCode::SUCCESS
}

/// One client: asks, streamed and not, until there is nobody to ask, or it is stopped.
async fn ask_until_it_dies(
    customer: Client,
    number: usize,
    answers: Answers,
    stop: Arc<AtomicBool>,
) {
    for turn in number.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let (model, is_streamed) = (1 + turn % 2, turn % 4 < 2);
        let body = json!({
            "text": "Once upon a time", "model_id": model, "max_new_tokens": 4, "stream": is_streamed
        });
        let sent = customer
            .request(Method::POST, "/generate")
            .json(&body)
            .send()
            .await;
        let Ok(response) = sent else { return };
        let id = response.headers()["x-request-id"]
            .to_str()
            .expect("text")
            .to_owned();
        let status = response.status();
        let Ok(text) = response.text().await else {
            return;
        };
        if status != 200 {
            continue;
        }
        let whole = if is_streamed {
            // a stream that is not at its end is no answer
            let events: Vec<_> = text
                .split("\n\n")
                .filter_map(|event| event.strip_prefix("data: "))
                .collect();
            let [.., end, "[DONE]"] = events[..] else {
                continue;
            };
            serde_json::from_str(end)
        } else {
            serde_json::from_str(&text)
        };
        let answer: Value = whole.expect("JSON");
        answers
            .lock()
            .expect("no panic")
            .insert(id, answer["cost"].clone());
    }
}

/// What is wrong with the ledger, when nobody asks for anything.
async fn unsound(host: &Host, purse: &Purse) -> Option<String> {
    let held = purse.balance().await.1;
    if held != 0 {
        return Some(format!(
            "{held} nano-dollars are held for requests that are over"
        ));
    }
    let (status, said) = host.try_run(&["db", "audit"]);
    (!status.success()).then_some(said)
}

/// What is wrong with the server's books.
async fn problems(host: &Host, answers: &Answers) -> Vec<String> {
    let mut rows: HashMap<String, Value> = HashMap::new();
    let mut found = Vec::new();
    let (mut after, mut sum) = (0, 0.0);
    loop {
        let path = format!("/usage/requests?after={after}&limit={PAGE}");
        let page = host.admin().get(&path).await.expect(200);
        let page = page["requests"].as_array().expect("a list");
        for row in page {
            after = row["id"].as_i64().expect("an integer");
            sum += row["cost"].as_f64().expect("a number");
            let id = row["request_id"].as_str().expect("text").to_owned();
            if rows.insert(id.clone(), row.clone()).is_some() {
                found.push(format!("{id} is on record twice"));
            }
        }
        if page.len() < PAGE {
            break;
        }
    }
    for (id, cost) in answers.lock().expect("no panic").iter() {
        match rows.get(id) {
            Some(row) if row["status"] == "ok" && row["cost"] == *cost => {}
            row => found.push(format!("{id} cost {cost}; on record: {row:?}")),
        }
    }
    let totals = host.admin().get("/usage").await.expect(200)["totals"].clone();
    let total = totals["cost"].as_f64().expect("a number");
    if (total - sum).abs() > 1e-9 || totals["requests"] != rows.len() {
        found.push(format!(
            "totals {totals} are not the sum of {} rows, {sum}",
            rows.len()
        ));
    }
    found
}

/// Up to `most`.
fn random(most: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("randomness");
    u64::from_le_bytes(bytes) % most.max(1)
}
