//! What serving a model on this machine through HTTP costs: the built server, with
//! clients whose requests come at random times and are of all lengths, and beside it
//! the same requests in the same order put to the model itself in this process. The
//! answers must be the same to the letter.
//!
//!     cargo test --release -p model-host --test serving -- --model ./gpt2 --requests 200
//!
//! With more requests a second than the model can answer, all clients always wait for
//! one; with fewer, it is seen how long they wait on a server that is not full.

mod clients;
mod figures;
#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;
mod process;
mod schedule;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use plugin_sdk::{Backend, Settings};
use serde_json::json;
use transformer::Transformer;

use clients::{MODEL, by_itself, through_http};
use figures::{Figures, HEAD};
use harness::Host;
use process::{cpu, memory};
use schedule::{Random, schedule};

/// Compares a model behind the server with the model by itself
#[derive(Debug, Parser)]
struct Options {
    /// A folder with a checkpoint, or a GGUF; by default the model in the binary
    #[arg(long, default_value = "embedded")]
    model: String,
    /// What weights are held in; the plugin's default if not given
    #[arg(long)]
    dtype: Option<String>,
    /// Memory for keys and values, in MiB; the plugin's default if not given
    #[arg(long)]
    kv_cache_mib: Option<usize>,
    /// Clients, each with one request at a time
    #[arg(long, default_value_t = 32)]
    clients: usize,
    /// Requests of a round
    #[arg(long, default_value_t = 48)]
    requests: usize,
    /// Requests that come in a second, in the mean
    #[arg(long, default_value_t = 50.0)]
    rate: f64,
    /// Rounds, in which the two take turns
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// What the requests and their times are made of
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Names and flags that `cargo test` passes to every test; this is none of those named
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    others: Vec<String>,
}

impl Options {
    /// The plugin's settings.
    fn settings(&self) -> Vec<(&'static str, String)> {
        let dtype = self.dtype.iter().map(|dtype| ("dtype", dtype.clone()));
        let room = self.kv_cache_mib.iter();
        let room = room.map(|mib| ("kv_cache_mib", mib.to_string()));
        // prompt lookup would measure how much the answers repeat themselves
        let rest = [
            ("model_path", self.model.clone()),
            ("prompt_lookup", "false".to_owned()),
        ];
        dtype.chain(room).chain(rest).collect()
    }

    /// The server's configuration.
    fn config(&self) -> String {
        let settings = self.settings();
        let settings = settings
            .iter()
            .map(|(name, value)| format!("{name} = {}", json!(value)));
        let settings = settings.collect::<Vec<_>>().join(", ");
        format!(
            "[[models]]\nid = {MODEL}\nname = \"model\"\nplugin = \"transformer\"\n\
             settings = {{ {settings} }}\n[models.limits]\nparallel = {}\n",
            self.clients
        )
    }
}

fn main() -> ExitCode {
    let mut options = Options::parse();
    if !options.others.is_empty() {
        return ExitCode::SUCCESS;
    }
    if let Ok(path) = std::path::absolute(&options.model)
        && path.exists()
    {
        // the server has a folder of its own
        options.model = path.to_str().expect("a path in UTF-8").to_owned();
    }
    // one thread for all clients, so that they leave the processors to the server
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(compare(&options))
}

async fn compare(options: &Options) -> ExitCode {
    let started = Instant::now();
    let host = Host::builder()
        .env("MODEL_HOST_LOG", "info")
        .config(options.config())
        .start()
        .await
        .ready()
        .await;
    let ready = started.elapsed();
    let loaded = memory(host.pid(), "VmHWM");
    let customer = host.customer_with(json!({ "rate_limit": 1_000_000 })).await;

    let settings = options.settings().into_iter();
    let settings: Settings = settings
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let model = Arc::new(Transformer::open(&settings).expect("the model"));
    let (mut served, mut alone) = (Figures::default(), Figures::default());
    let (mut time, mut of_server, mut of_clients) =
        (Duration::ZERO, Duration::ZERO, Duration::ZERO);
    let mut random = Random(options.seed);
    let (us, them) = (std::process::id(), host.pid());
    let mut different = 0;
    for _ in 0..options.rounds {
        let asks = Arc::new(schedule(
            &model,
            options.requests,
            options.rate,
            &mut random,
        ));
        let before = (Instant::now(), cpu(them), cpu(us));
        let answers = through_http(&customer, &asks, options.clients).await;
        time += before.0.elapsed();
        of_server += cpu(them) - before.1;
        of_clients += cpu(us) - before.2;
        served.add(&answers);

        let own = by_itself(&model, &asks, options.clients);
        alone.add(&own);
        let pairs = answers.iter().zip(&own);
        different += pairs
            .filter(|(served, own)| served.text != own.text)
            .count();
    }
    let of_a_core = |cpu: Duration| 100.0 * cpu.as_secs_f64() / time.as_secs_f64();
    println!(
        "{} clients, {} rounds of {} requests",
        options.clients, options.rounds, options.requests
    );
    println!("{HEAD}");
    println!("through HTTP {served}");
    println!("by itself    {alone}");
    println!(
        "through HTTP: {:.1} % of the model's own rate; p99 between tokens is {:.1} times the median, {:.1} times by itself",
        100.0 * served.share_of(&alone),
        served.spread(),
        alone.spread()
    );
    println!(
        "of a core: the server {:.0} %, the clients {:.1} %",
        of_a_core(of_server),
        of_a_core(of_clients)
    );
    println!(
        "the server was ready after {:.2} s; at most {loaded:.0} MiB until then, {:.0} MiB in the end",
        ready.as_secs_f64(),
        memory(them, "VmHWM")
    );
    if different == 0 {
        println!("all answers are the model's own\n1 passed, 0 failed");
        ExitCode::SUCCESS
    } else {
        println!("FAILED: {different} answers are not the model's own\n0 passed, 1 failed");
        ExitCode::FAILURE
    }
}
