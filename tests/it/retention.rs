//! How old rows of usage go while requests are answered, and that one server of a
//! database does it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::harness::{GPT2, Host, Purse, Scratch, Setup, eventually, nanos};

/// Old rows: many batches of them.
const OLD: i64 = 20_000;
const PAID: i64 = 1_000_000_000_000;

fn ask() -> Value {
    json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": 1 })
}

/// A server of a customer that had used much long ago, stopped.
async fn with_old_rows(setup: Setup) -> (Host, Purse) {
    let mut host = setup.start().await.ready().await;
    let purse = Purse::prepaid(&host, PAID).await;
    purse.customer.post("/generate", ask()).await.expect(200);
    host.signal("TERM");
    host.wait_exit().await;
    let database = host.database();
    let of_old = "request_id LIKE 'old-%'";
    for sql in [
        // as the one that there is, but ten weeks ago and free
        format!(
            "INSERT INTO usage (request_id, customer_id, api_key_id, model_id, model_name, \
             prompt_tokens, completion_tokens, tokens_estimated, prompt_price, completion_price, \
             cost, status, latency_ms, created_at) \
             WITH RECURSIVE numbers (n) AS \
             (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {OLD}) \
             SELECT 'old-' || n, customer_id, api_key_id, model_id, model_name, 1, 1, \
             tokens_estimated, 0, 0, 0, status, latency_ms, \
             created_at - 6048000000 + n FROM numbers CROSS JOIN usage ORDER BY n"
        ),
        format!(
            "INSERT INTO usage_sums (period, customer_id, start, api_key_id, model_id, requests, \
             prompt_tokens, completion_tokens, cost, model_name, latest) \
             SELECT 'hour', customer_id, created_at / 3600000 * 3600000, api_key_id, model_id, \
             count(*), count(*), count(*), 0, min(model_name), max(created_at) \
             FROM usage WHERE {of_old} GROUP BY 1, 2, 3, 4, 5"
        ),
        format!(
            "UPDATE usage_sums SET requests = requests + {OLD}, \
             prompt_tokens = prompt_tokens + {OLD}, \
             completion_tokens = completion_tokens + {OLD} WHERE period = 'total'"
        ),
        // what came later has the higher number
        "UPDATE usage SET id = 100000 WHERE request_id NOT LIKE 'old-%'".to_owned(),
    ] {
        database.execute(&sql).await.expect("old rows");
    }
    if database.is_on_server() {
        let next = "SELECT setval('usage_id_seq', 100000)";
        database.execute(next).await.expect("the next number");
    }
    host.run(&["db", "audit"]);
    (host, purse)
}

/// Asks without a pause; how many were answered.
async fn ask_until(purse: Purse, stop: Arc<AtomicBool>) -> i64 {
    let mut answered = 0;
    while !stop.load(Ordering::Relaxed) {
        purse.customer.post("/generate", ask()).await.expect(200);
        answered += 1;
    }
    answered
}

/// The rows that a server says it deleted.
fn deleted(host: &Host) -> Vec<i64> {
    let lines = host.log();
    let lines = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["message"] == "old rows of usage are deleted")
        .map(|line| line["rows"].as_i64().expect("a number"))
        .collect()
}

/// Waits under load until these servers have deleted what is old, and checks what is
/// left.
async fn under_load(hosts: Vec<Host>, purse: Purse) {
    let stop = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..4)
        .map(|number| {
            let purse = purse.at(&hosts[number % hosts.len()]);
            tokio::spawn(ask_until(purse, Arc::clone(&stop)))
        })
        .collect();
    eventually("the old rows are deleted", async || {
        hosts.iter().any(|host| !deleted(host).is_empty())
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut answered = 1;
    for asked in asking {
        answered += asked.await.expect("no panic");
    }
    let all: Vec<_> = hosts.iter().flat_map(deleted).collect();
    assert_eq!(all, [OLD]);
    let purse = purse.at(&hosts[0]);
    let left = purse.settled().await;
    let database = hosts[0].database();
    let rows = database.number("SELECT count(*) FROM usage").await;
    assert_eq!(rows, answered);
    let totals = purse.customer.get("/usage").await.expect(200)["totals"].clone();
    assert_eq!(totals["requests"], answered + OLD);
    assert_eq!(nanos(&totals["cost"]), PAID - left);
    hosts[0].run(&["db", "audit"]);
}

fn keeping(days: u32) -> String {
    format!("[database]\nkeep_usage_days = {days}\n{GPT2}")
}

#[tokio::test]
async fn old_rows_go_while_requests_are_answered() {
    let (host, purse) = with_old_rows(Host::builder().in_file()).await;
    host.write_config(&keeping(30));
    let host = host.restart().await.ready().await;
    let purse = purse.at(&host);
    under_load(vec![host], purse).await;
}

#[tokio::test]
async fn of_two_servers_one_deletes_them() {
    let (first, purse) = with_old_rows(Host::builder().on(Arc::new(Scratch::new()))).await;
    first.write_config(&keeping(30));
    let secret = std::fs::read(first.dir().join("data/secret")).expect("a secret");
    let second = Host::builder()
        .config(keeping(30))
        .on(first.scratch())
        .file("data/secret", secret);
    let (first, second) = tokio::join!(first.restart(), second.start());
    let hosts = vec![first.ready().await, second.ready().await];
    let purse = purse.at(&hosts[0]);
    under_load(hosts, purse).await;
}
