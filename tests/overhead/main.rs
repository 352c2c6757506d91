//! What the whole way of a request costs, and what of it the sandbox of a component
//! does, against the same source compiled in: the latency that it adds to an echo, the
//! requests a second that an adapter reaches, and the memory of many models. The server has its own cores; this program, which is
//! its clients and its upstream, has another one.
//!
//!     cargo test --release -p model-host --features twins --test overhead -- --seconds 2

#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;
mod load;
mod pipeline;
#[path = "../serving/process.rs"]
mod process;

use std::fmt::Write;
use std::ops::Range;
use std::time::{Duration, Instant};

use clap::Parser;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde_json::json;

use harness::{Act, Client, Host, Upstream, component};
use load::{Times, paced, saturating};
use process::memory;

/// Compares components with their native twins
#[derive(Debug, Parser)]
struct Options {
    /// How long each plugin is asked in a round, in seconds
    #[arg(long, default_value_t = 1)]
    seconds: u64,
    /// Rounds, in which the plugins take turns
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Requests a second of the clients that do not saturate the server
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Cores of the server; the one after them is the clients' and the upstream's
    #[arg(long, default_value_t = 1)]
    cores: usize,
    /// Names and flags that `cargo test` passes to every test; this is none of those named
    #[arg(hide = true, trailing_var_arg = true, allow_hyphen_values = true)]
    others: Vec<String>,
}

/// Numbers of the two models that have the same source.
struct Twins {
    native: i64,
    component: i64,
}

const ECHO: Twins = Twins {
    native: 1,
    component: 2,
};
const ADAPTER: Twins = Twins {
    native: 3,
    component: 4,
};
/// The adapter to OpenAI's API, a component.
const OPENAI: i64 = 5;
/// The same, whose instances answer more than one request.
const REUSED: i64 = 6;
/// The same, whose requests leave no row.
const UNRECORDED: i64 = 7;
/// Clients that ask one request after the other, to see the most that the server does.
const SATURATING: usize = 32;
/// A piece of an answer by the upstream.
const PIECE: &str = "data: {\"choices\":[{\"text\":\" and\"}]}\n\n";
/// Clients that leave, one after the other.
const LEAVING: usize = 50;
/// How many models' memory is looked at.
const MODELS: [usize; 3] = [1, 10, 100];

fn main() {
    let options = Options::parse();
    if !options.others.is_empty() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(compare(&options));
    runtime.block_on(weigh());
}

/// Keeps this thread, and the threads and processes that it begins, on these cores.
fn pin(cores: Range<usize>) {
    let mut set = CpuSet::new();
    cores.for_each(|core| set.set(core));
    sched_setaffinity(None, &set).expect("so many cores");
}

async fn compare(options: &Options) {
    let upstream = Upstream::start(Act::Answer(" and so it was.")).await;
    pin(0..options.cores);
    let host = Host::builder()
        .env("MODEL_HOST_LOG", "warn,model_host::app=info")
        .config(config(&upstream))
        .start()
        .await
        .ready()
        .await;
    pin(options.cores..options.cores + 1);
    let customer = host.customer_with(json!({ "rate_limit": 1_000_000 })).await;
    let time = Duration::from_secs(options.seconds);

    println!("{} rounds of {time:?} each", options.rounds);
    println!("\nclients                     plugin       requests  p50 µs  p99 µs  requests/s");
    for (name, clients, twins) in [
        ("echo, 1 client", 1, ECHO),
        ("echo, 64 clients, paced", 64, ECHO),
        ("echo, 32 clients", SATURATING, ECHO),
        ("adapter, 1 client", 1, ADAPTER),
        ("adapter, 32 clients", SATURATING, ADAPTER),
    ] {
        let models = [twins.native, twins.component];
        let mut times = models.map(|_| Times::default());
        for round in 0..=options.rounds {
            for (model, times) in models.into_iter().zip(&mut times) {
                let taken = if name.ends_with("paced") {
                    paced(&customer, model, clients, options.rate, time).await
                } else {
                    saturating(&customer, model, clients, time).await
                };
                // the first round warms up
                if round > 0 {
                    times.add(taken, time);
                }
            }
        }
        let [native, component] = &mut times;
        println!("{name:<27} native    {native}");
        println!("{:<27} component {component}", "");
        println!(
            "{:<27} added µs: p50 {:.0}, p99 {:.0}; rate {:.2} of native",
            "",
            component.at(50) - native.at(50),
            component.at(99) - native.at(99),
            component.rate() / native.rate(),
        );
    }
    let models = [
        ("echo, native", ECHO.native),
        ("echo, component", ECHO.component),
        ("openai", OPENAI),
        ("openai, instances reused", REUSED),
        ("openai, reused, no rows", UNRECORDED),
    ];
    pipeline::measure(&host, &models, options.rounds, time).await;
    leave(&customer, &upstream).await;
}

/// Clients that leave in the midst of an answer: how long until the upstream is left.
async fn leave(customer: &Client, upstream: &Upstream) {
    upstream.act(Act::Stream(&[PIECE, PIECE]));
    let mut times = Times::default();
    for _ in 0..LEAVING {
        let ask = json!({ "text": "Once", "model_id": ADAPTER.component, "stream": true });
        let mut stream = customer.stream("/generate", ask).await;
        stream.next().await.expect("an event");
        assert_eq!(upstream.open(), 1);
        drop(stream);
        let left = Instant::now();
        while upstream.open() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.add(vec![left.elapsed()], Duration::from_secs(1));
    }
    println!(
        "{LEAVING} clients that left: the upstream was left after ms: p50 {:.1}, most {:.1}",
        times.at(50) / 1e3,
        times.at(100) / 1e3
    );
}

/// Two pairs of twins, threads enough for the native ones, and the adapter three times.
fn config(upstream: &Upstream) -> String {
    let mut config = String::new();
    let mut model = |id: i64, name: &str, plugin: &str, url: &str, per_instance: u32| {
        // a field of components alone
        let url = match plugin.ends_with(".wasm") {
            true => format!("api_url = \"{url}\""),
            false => format!("settings = {{ api_url = \"{url}\" }}"),
        };
        let _ = write!(
            config,
            "[[models]]\nid = {id}\nname = \"{name}-{id}\"\nplugin = \"{plugin}\"\npreload = true\n\
             {url}\nmodel_name = \"upstream\"\n\
             price_per_million = {{ prompt = 1.00, completion = 2.00 }}\n\
             [models.limits]\nparallel = 64\nqueue = 256\nrequests_per_instance = {per_instance}\n"
        );
    };
    for (twins, name) in [(ECHO, "offline"), (ADAPTER, "lawgent-thinking")] {
        let plugins = [
            (twins.native, name.to_owned()),
            (twins.component, component(name)),
        ];
        for (id, plugin) in plugins {
            model(id, name, &plugin, upstream.url(), 1);
        }
    }
    let openai = component("openai");
    for (id, name, per_instance) in [
        (OPENAI, "openai", 1),
        (REUSED, "reused", 1_000),
        (UNRECORDED, "unrecorded", 1_000),
    ] {
        model(id, name, &openai, upstream.base(), per_instance);
    }
    config
}

/// The server's memory with so many models of one component.
async fn weigh() {
    println!("\nmodels  resident MiB  after a request to each");
    let upstream = Upstream::start(Act::Answer("yes")).await;
    for count in MODELS {
        let mut config = String::new();
        for id in 1..=count {
            let (plugin, url) = (component("lawgent-thinking"), upstream.url());
            let _ = write!(
                config,
                "[[models]]\nid = {id}\nname = \"model-{id}\"\nplugin = \"{plugin}\"\npreload = true\n\
                 api_url = \"{url}\"\nmodel_name = \"upstream\"\n"
            );
        }
        let host = Host::builder().config(config).start().await.ready().await;
        let customer = host.customer().await;
        let loaded = memory(host.pid(), "VmRSS");
        for id in 1..=count {
            let body = json!({ "text": "hello", "model_id": id });
            customer.post("/generate", body).await.expect(200);
        }
        println!(
            "{count:>6} {:>13.1} {:>24.1}",
            loaded,
            memory(host.pid(), "VmRSS")
        );
    }
}
