//! One model's plugin misbehaves while two other models are asked: each of their
//! requests must be answered, and the table says how much later than at rest.
//!
//!     cargo test --release --test attack -- --attackers 8 --seconds 10

#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use harness::{Act, Client, GPT2, Host, Upstream, component};

/// What the attacked plugin is told.
const ATTACKS: [&str; 9] = [
    "loop",
    "allocate",
    "recurse",
    "trap",
    "endless stream",
    "huge header",
    FLOOD,
    "flood upstream",
    "sleep",
];
/// The one that is only cut short, where there is time enough.
const FLOOD: &str = "log flood";
/// No attack, to compare with.
const REST: &str = "(at rest)";

/// Asks two models while a third misbehaves
#[derive(Debug, Parser)]
struct Options {
    /// Clients at once that make the plugin misbehave
    #[arg(long, default_value_t = 4)]
    attackers: usize,
    /// How long each attack takes, in seconds
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    /// Names and flags that `cargo test` passes to every test; this is none of those named
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    others: Vec<String>,
}

/// A model that must not notice.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    name: &'static str,
    id: i64,
}

const NEIGHBOURS: [Neighbour; 2] = [
    Neighbour {
        name: "gpt2",
        id: 1,
    },
    Neighbour {
        name: "component",
        id: 3,
    },
];

/// The attacked model, number 2, and its neighbour, number 3.
fn config(upstream: &Upstream) -> String {
    let (plugin, url) = (component("misbehave"), upstream.url());
    let entry = |id: i64, limits: &str| {
        format!(
            "[[models]]\nid = {id}\nname = \"component-{id}\"\nplugin = \"{plugin}\"\n\
             api_url = \"{url}\"\n[models.limits]\n{limits}\n"
        )
    };
    let attacked = "cpu_ms = 500\ntimeout_ms = 500\nmemory_mib = 16\nresponse_bytes = 1048576";
    format!("{GPT2}{}{}", entry(2, attacked), entry(3, ""))
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if !options.others.is_empty() {
        return ExitCode::SUCCESS;
    }
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let host = Host::builder()
        .env("MODEL_HOST_LOG", "info")
        .config(config(&upstream))
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    let seconds = Duration::from_secs(options.seconds);

    println!("{} attackers, {seconds:?} each", options.attackers);
    println!("attack          neighbour  requests   p50 ms   p99 ms  attacks");
    let mut problems = Vec::new();
    for attack in [REST].into_iter().chain(ATTACKS) {
        let end = Instant::now() + seconds;
        let mut attackers = JoinSet::new();
        if attack != REST {
            for _ in 0..options.attackers {
                attackers.spawn(attack_until(end, customer.clone(), attack));
            }
        }
        let [native, other] = NEIGHBOURS.map(|one| ask_until(end, customer.clone(), one));
        let (native, other) = tokio::join!(native, other);
        let mut attacks = 0;
        for attacker in attackers.join_all().await {
            match attacker {
                Ok(count) => attacks += count,
                Err(problem) => problems.push(problem),
            }
        }
        for (neighbour, times) in NEIGHBOURS.into_iter().zip([native, other]) {
            let name = neighbour.name;
            match times {
                Ok(times) => println!("{attack:<15} {name:<10} {} {attacks:>8}", columns(times)),
                Err(problem) => problems.push(format!("{name} during {attack}: {problem}")),
            }
        }
    }
    for problem in &problems {
        println!("FAILED: {problem}");
    }
    if problems.is_empty() {
        println!("every neighbour was answered\n1 passed, 0 failed");
        ExitCode::SUCCESS
    } else {
        println!("0 passed, 1 failed");
        ExitCode::FAILURE
    }
}

/// Attacks again and again; how often, or the first answer that was no failure.
async fn attack_until(
    end: Instant,
    customer: Client,
    attack: &'static str,
) -> Result<usize, String> {
    let mut attacks = 0;
    while Instant::now() < end {
        let body = json!({ "text": attack, "model_id": 2 });
        let reply = customer.post("/generate", body).await;
        // the plugin failed, or its time was over
        let may_be =
            [502, 504].contains(&reply.status.as_u16()) || (attack == FLOOD && reply.status == 200);
        if !may_be {
            return Err(format!("{attack}: {} {}", reply.status, reply.body));
        }
        attacks += 1;
    }
    Ok(attacks)
}

/// One request after the other; their times, or the first answer that is no 200.
async fn ask_until(
    end: Instant,
    customer: Client,
    neighbour: Neighbour,
) -> Result<Vec<Duration>, Value> {
    let mut times = Vec::new();
    while times.is_empty() || Instant::now() < end {
        let body = json!({ "text": "Once upon", "model_id": neighbour.id, "max_new_tokens": 2 });
        let sent = Instant::now();
        let reply = customer.post("/generate", body).await;
        times.push(sent.elapsed());
        if reply.status != 200 {
            return Err(reply.body);
        }
    }
    Ok(times)
}

/// Requests, p50 and p99.
fn columns(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
    format!("{:>8} {:>8.1} {:>8.1}", times.len(), at(50), at(99))
}
