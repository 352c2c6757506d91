//! Kills the server at random moments under load and starts it again on the same
//! data: whatever a client has in hand must be on record, once and at its price,
//! all sums of money must be as kept, and nothing may be held for the dead. What was
//! asked under a name (`Idempotency-Key`) is asked again, and must have been charged
//! once. On a disk as it is, on a slow one, and for three servers of one PostgreSQL and
//! one Redis, whose clocks differ, and where these fail too.
//!
//!     tests/run --release -p model-host --test kill -- --rounds 50

mod asking;
mod books;
#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;
mod servers;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Parser;
use serde_json::json;

use asking::{Names, ask_until_it_dies};
use books::{Answers, Books};
use harness::{Act, GPT2, Host, Purse, Setup, Upstream, component, lawgent};

/// What the customer has paid, in nano-dollars: more than all that is asked for, and
/// little enough to be exact as a number of dollars.
const PAID: i64 = 1_000_000_000_000_000;

/// Kills a server again and again and checks its books.
#[derive(Debug, Parser)]
struct Options {
    /// How often to kill it
    #[arg(long, default_value_t = 5)]
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
            .config(format!(
                "{GPT2}{}[[models]]\nid = 3\nname = \"chats\"\nplugin = \"{}\"\n\
                 api_url = \"{}\"\nmodel_name = \"upstream\"\n",
                lawgent(upstream.url()),
                component("openai"),
                upstream.base()
            ))
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
    let mut purses = purses(&host).await;
    let (answers, names) = (Answers::default(), Names::default());
    let mut books = Books::default();
    for round in 1..=options.rounds {
        let stop = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..options.clients)
            .map(|number| {
                let purses = [purses[0].at(&host), purses[1].at(&host)];
                let noted = (answers.clone(), names.clone());
                tokio::spawn(ask_until_it_dies(purses, number, noted, Arc::clone(&stop)))
            })
            .collect();
        // not a wait for something: the moment is to be any moment
        tokio::time::sleep(Duration::from_millis(random(options.longest_ms))).await;
        host = host.restart().await.ready().await;
        for client in clients {
            client.await.expect("no panic");
        }
        purses = [purses[0].at(&host), purses[1].at(&host)];
        for purse in &purses {
            if purse.balance().await.1 != 0 {
                return Err("something is held for requests that are over".to_owned());
            }
        }
        books.named += names.repeat(&purses[1]).await?;
        if let Some(problem) = books.problem(&host, &answers, &purses[1]).await {
            return Err(problem);
        }
        println!("round {round}: {}", books.so_far());
    }
    end(&books, &purses).await
}

/// Two customers, both limited, so that something is held for each request: one asks
/// without names and one under names.
async fn purses(host: &Host) -> [Purse; 2] {
    let purses = [
        Purse::prepaid(host, PAID).await,
        Purse::prepaid(host, PAID).await,
    ];
    for purse in &purses {
        let budgets = json!({ "budgets": [{ "period": "day", "amount": 1_000_000 }] });
        let path = purse.path("/budgets");
        host.admin().put(&path, budgets).await.expect(200);
    }
    purses
}

/// What is wrong at the end.
async fn end(books: &Books, purses: &[Purse; 2]) -> Result<(), String> {
    if books.answered == 0 || books.named == 0 {
        return Err("nothing was ever answered".to_owned());
    }
    books.unpaid(purses, PAID).await.map_or(Ok(()), Err)
}

/// Up to `most`.
fn random(most: u64) -> u64 {
    random_bits() as u64 % most.max(1)
}

fn random_bits() -> u128 {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).expect("randomness");
    u128::from_le_bytes(bytes)
}
