//! What years of usage cost whoever looks at it: fills a database with rows, starts
//! the server on it and measures its pages, just after its start and later, and a
//! request to a model beside them. On a file, then on a PostgreSQL server.
//!
//!     TMPDIR=/a/disk/with/room tests/run --release -p model-host --test volume -- --rows 10000000

mod fill;
#[path = "../it/harness/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;

use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use serde_json::{Value, json};

use fill::{KEYS, Size, fill};
use harness::{Client, Host, Purse, Scratch};

/// Fills databases and measures the pages that show what is in them.
#[derive(Clone, Debug, Parser)]
struct Options {
    /// Requests on record
    #[arg(long, default_value_t = 20_000)]
    rows: i64,
    /// Customers, with three keys each
    #[arg(long, default_value_t = 500)]
    customers: i64,
    /// Days over which the requests are spread
    #[arg(long, default_value_t = 730)]
    days: i64,
    /// How often each page is asked for
    #[arg(long, default_value_t = 5)]
    times: usize,
    /// What a page may take, in milliseconds, at the median
    #[arg(long, default_value_t = 1000)]
    most_ms: u64,
    /// A command that has the machine forget what it keeps of the disk in memory, run
    /// before each first look at a page; the server is started again after it
    #[arg(long)]
    forget: Option<String>,
    /// Databases that are measured
    #[arg(long, value_delimiter = ',', default_value = "sqlite,postgres")]
    on: Vec<String>,
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
    let mut problems = Vec::new();
    for kind in &options.on {
        let setup = Host::builder().env("MODEL_HOST_LOG", "warn,model_host::app=info");
        let setup = match kind.as_str() {
            "sqlite" => setup.in_file(),
            _ => match Scratch::if_there() {
                Some(database) => setup.on(Arc::new(database)),
                None => {
                    println!("no PostgreSQL: MODEL_HOST_TEST_POSTGRES names none");
                    continue;
                }
            },
        };
        let host = setup.start().await.ready().await;
        println!("{kind}, {} requests", options.rows);
        problems.extend(measure(host, &options).await);
    }
    for problem in &problems {
        println!("FAILED: {problem}");
    }
    println!(
        "{} passed, {} failed",
        u8::from(problems.is_empty()),
        problems.len()
    );
    match problems.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Fills the server's database and measures; what is wrong.
async fn measure(mut host: Host, options: &Options) -> Vec<String> {
    let size = Size {
        rows: options.rows,
        customers: options.customers,
        days: options.days,
    };
    let purse = Purse::prepaid(&host, 9_000_000_000_000_000).await;
    host.signal("TERM");
    host.wait_exit().await;
    let started = Instant::now();
    fill(&host.database(), size).await.expect("rows");
    println!("filled in {:.0} s", started.elapsed().as_secs_f64());

    let mut pages: Vec<_> = pages(size).into_iter().map(Page::new).collect();
    for page in &mut pages {
        if let Some(command) = &options.forget {
            let status = Command::new("sh").args(["-c", command]).status();
            assert!(status.expect("it runs").success(), "{command}");
        }
        host = host.restart().await.ready().await;
        page.cold = page.ask(&host.admin()).await;
    }
    let customer = purse.at(&host).customer;
    report(
        "a request to a model, alone",
        &requests(&customer, 50).await,
    );
    let stop = Arc::new(AtomicBool::new(false));
    let beside = tokio::spawn(requests_until(customer.clone(), Arc::clone(&stop)));
    for _ in 0..options.times {
        for page in &mut pages {
            let took = page.ask(&host.admin()).await;
            page.warm.push(took);
        }
    }
    stop.store(true, Ordering::Relaxed);
    report(
        "a request to a model beside them",
        &beside.await.expect("no panic"),
    );
    let limit = Duration::from_millis(options.most_ms);
    let mut problems: Vec<_> = pages
        .iter_mut()
        .filter_map(|page| page.verdict(limit))
        .collect();
    problems.extend(is_whole(&host, size).await);
    problems
}

/// What shows usage and money: of all, of the customer with most and of one with
/// little, at the beginning of lists and far into them.
fn pages(
    Size {
        rows, customers, ..
    }: Size,
) -> Vec<(String, Option<Value>)> {
    let little = customers * 3 / 4;
    let get = [
        "/dashboard".to_owned(),
        format!("/dashboard?after={}", customers - 100),
        "/dashboard?month=last".to_owned(),
        "/dashboard/1".to_owned(),
        "/dashboard/1?month=last".to_owned(),
        format!("/dashboard/1?before={}", rows / 2),
        "/dashboard/1?range=month".to_owned(),
        format!("/dashboard/{little}?range=month"),
        "/dashboard/audit".to_owned(),
        format!("/dashboard/audit?before={}", rows / 200),
        "/usage".to_owned(),
        "/usage?customer_id=1".to_owned(),
        "/usage/requests?limit=1000".to_owned(),
        format!("/usage/requests?limit=1000&after={}", rows - 1000),
        format!(
            "/usage/requests?limit=1000&customer_id=1&after={}",
            rows / 2
        ),
        format!(
            "/usage/requests?limit=1000&customer_id={little}&after={}",
            rows / 2
        ),
        "/customers?limit=1000".to_owned(),
        "/customers/1/transfers?limit=1000".to_owned(),
        format!("/customers/1/transfers?limit=1000&after={}", rows / 2),
        "/customers/1/budgets".to_owned(),
        "/api/keys?customer_id=1".to_owned(),
        format!("/api/keys?limit=1000&after={}", customers * KEYS / 2),
        "/admin/audit?object=key/7&limit=1000".to_owned(),
    ];
    let budgets = json!({ "budgets": [
        { "period": "day", "amount": 1000 }, { "period": "month", "amount": 100_000 },
        { "period": "total", "amount": 1_000_000 },
    ] });
    let mut pages: Vec<_> = get.into_iter().map(|path| (path, None)).collect();
    // of one that had none: what was used before counts
    pages.push(("/customers/2/budgets".to_owned(), Some(budgets)));
    pages
}

/// A page, and how long it took.
struct Page {
    path: String,
    /// What is written, where it is not read.
    body: Option<Value>,
    cold: Duration,
    warm: Vec<Duration>,
}

impl Page {
    fn new((path, body): (String, Option<Value>)) -> Self {
        Self {
            path,
            body,
            cold: Duration::ZERO,
            warm: Vec::new(),
        }
    }

    async fn ask(&self, admin: &Client) -> Duration {
        let started = Instant::now();
        let reply = match &self.body {
            None => admin.get(&self.path).await,
            Some(body) => {
                // no budget is kept from before
                let none = json!({ "budgets": [] });
                admin.put(&self.path, none).await.expect(200);
                admin.put(&self.path, body.clone()).await
            }
        };
        let took = started.elapsed();
        reply.expect(200);
        took
    }

    /// Prints how long it took, and says so if that was too long.
    fn verdict(&mut self, limit: Duration) -> Option<String> {
        self.warm.sort_unstable();
        let (median, most) = (
            self.warm[self.warm.len() / 2],
            self.warm[self.warm.len() - 1],
        );
        let is_slow = median > limit || self.cold > limit;
        let (cold, median, most) = (millis(self.cold), millis(median), millis(most));
        let said = format!(
            "{}: at first {cold} ms, then {median}, at most {most}",
            self.path
        );
        println!("{said}");
        is_slow.then_some(said)
    }
}

/// What is wrong with the server's books.
async fn is_whole(host: &Host, size: Size) -> Option<String> {
    let usage = host.admin().get("/usage").await.expect(200);
    let kept = host.database().number("SELECT count(*) FROM usage").await;
    if usage["totals"]["requests"] != kept || kept < size.rows {
        return Some(format!("{usage}, and {kept} rows"));
    }
    let started = Instant::now();
    let (status, said) = host.try_run(&["db", "audit"]);
    println!("db audit: {:.0} s", started.elapsed().as_secs_f64());
    (!status.success()).then_some(said)
}

/// How long requests took, one after another.
async fn requests(customer: &Client, count: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..count {
        let body = json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": 1 });
        let started = Instant::now();
        customer.post("/generate", body).await.expect(200);
        took.push(started.elapsed());
    }
    took
}

async fn requests_until(customer: Client, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut took = requests(&customer, 1).await;
    while !stop.load(Ordering::Relaxed) {
        took.extend(requests(&customer, 1).await);
    }
    took
}

fn report(what: &str, took: &[Duration]) {
    let mut took = took.to_vec();
    took.sort_unstable();
    let at = |part: usize| millis(took[(took.len() * part / 100).min(took.len() - 1)]);
    println!(
        "{what}: median {} ms, p99 {}, {} of them",
        at(50),
        at(99),
        took.len()
    );
}

fn millis(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}
