//! Kills the server at random moments under load and starts it again on the same
//! data: whatever a client has in hand must be on record, once and at its price,
//! all sums of money must be as kept, and nothing may be held for the dead. On a disk
//! as it is, on a slow one, and for three servers of one PostgreSQL, whose clocks
//! differ, and where that fails too.
//!
//!     tests/run --release -p model-host --test kill -- --rounds 50

mod books;
#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;
mod servers;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use reqwest::Method;
use serde_json::{Value, json};

use books::{Answers, Books};
use harness::{Act, Client, GPT2, Host, Purse, Setup, Upstream, lawgent};

/// What the customer has paid, in nano-dollars: more than all that is asked for, and
/// little enough to be exact as a number of dollars.
const PAID: i64 = 1_000_000_000_000_000;

/// Kills a server again and again and checks its books.
#[derive(Debug, Parser)]
struct Options {
    /// How often to kill it
    #[arg(long, default_value_t = 4)]
    rounds: u32,
    /// Clients at once
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Longest time between a start and a kill, in milliseconds
    #[arg(long, default_value_t = 1500)]
    longest_ms: u64,
    /// How much longer a slow disk takes for each flush, in milliseconds
    #[arg(long, default_value_t = 100)]
    flush_ms: u64,
    /// How far the clocks of three servers differ, in seconds
    #[arg(long, default_value_t = 420)]
    clocks_s: i64,
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
    println!("{} clients, {} rounds", options.clients, options.rounds);
    let upstream = Upstream::start(Act::Answer(" and so it was.")).await;
    let setup = || {
        Host::builder()
            .config(format!("{GPT2}{}", lawgent(upstream.url())))
            .env("MODEL_HOST_LOG", "warn,model_host::app=info")
    };
    match run(&options, setup).await {
        Ok(()) => {
            println!("every answer is on record once, at its price; the ledger is sound");
            println!("1 passed, 0 failed");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            println!("FAILED: {problem}\n0 passed, 1 failed");
            ExitCode::FAILURE
        }
    }
}

/// All rounds; what is wrong at the end of one is the error.
async fn run(options: &Options, setup: impl Fn() -> Setup) -> Result<(), String> {
    println!("one server");
    one_server(options, setup()).await?;
    println!("one server on a slow disk");
    let flush = Duration::from_millis(options.flush_ms);
    one_server(options, setup().flushing_slowly(flush)).await?;
    servers::run(options, setup).await
}

/// The rounds of one server; what is wrong at the end of one is the error.
async fn one_server(options: &Options, setup: Setup) -> Result<(), String> {
    let mut host = setup.in_file().start().await.ready().await;
    // limited, so that something is held for each request
    let mut purse = Purse::prepaid(&host, PAID).await;
    let (answers, mut books) = (Answers::default(), Books::default());
    for round in 1..=options.rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..options.clients)
            .map(|number| {
                let (customer, answers) = (purse.customer.clone(), answers.clone());
                tokio::spawn(ask_until_it_dies(
                    customer,
                    number,
                    answers,
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
        if purse.balance().await.1 != 0 {
            return Err("something is held for requests that are over".to_owned());
        }
        if let Some(problem) = books.problem(&host, &answers).await {
            return Err(problem);
        }
        println!("round {round}: {} answers so far", books.answered);
    }
    end(&books, &purse).await
}

/// What is wrong at the end.
async fn end(books: &Books, purse: &Purse) -> Result<(), String> {
    if books.answered == 0 {
        return Err("nothing was ever answered".to_owned());
    }
    books.unpaid(purse, PAID).await.map_or(Ok(()), Err)
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
        answers.note(id, answer["cost"].clone());
    }
}

/// Up to `most`.
fn random(most: u64) -> u64 {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).expect("randomness");
    u64::from_le_bytes(bytes) % most.max(1)
}
