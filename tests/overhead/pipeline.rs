//! What a request costs with all that the host does for it: a key, limits of requests,
//! tokens and those at work, a hold of its price on a prepaid balance and a budget, and
//! its usage on the disk before the answer.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Host, Purse};
use crate::load::{Times, saturating};
use crate::process;

/// Clients at once.
const CLIENTS: [usize; 3] = [1, 32, 256];
/// What the customer has paid, in nano-dollars: more than is asked for.
const PAID: i64 = 1_000_000_000_000_000;

/// Measures the models of these names and numbers, each at every number of clients;
/// they take turns.
pub async fn measure(host: &Host, models: &[(&str, i64)], rounds: u32, time: Duration) {
    let purse = Purse::prepaid(host, PAID).await;
    let budgets = json!({ "budgets": [{ "period": "month", "amount": 1_000_000 }] });
    let admin = host.admin();
    admin
        .put(&purse.path("/budgets"), budgets)
        .await
        .expect(200);
    let keys = purse.customer.get("/api/keys").await.expect(200);
    let limits = json!({
        "rate_limit": 1_000_000, "token_limit": 100_000_000, "concurrent_limit": 1_000,
    });
    let key = format!("/api/keys/{}", keys["keys"][0]["id"]);
    admin.patch(&key, limits).await.expect(200);

    println!(
        "\neverything on               clients    requests  p50 µs  p99 µs  requests/s  CPU µs"
    );
    for clients in CLIENTS {
        let mut costs: Vec<_> = models.iter().map(|_| (Times::default(), 0.0)).collect();
        for round in 0..=rounds {
            for ((_, model), (times, cpu)) in models.iter().zip(&mut costs) {
                let before = process::cpu(host.pid()).as_secs_f64();
                let taken = saturating(&purse.customer, *model, clients, time).await;
                // the first round warms up
                if round > 0 {
                    *cpu += process::cpu(host.pid()).as_secs_f64() - before;
                    times.add(taken, time);
                }
            }
        }
        for ((name, _), (times, cpu)) in models.iter().zip(&costs) {
            let each = cpu / times.count() as f64 * 1e6;
            println!("{name:<27} {clients:>7} {times} {each:>7.0}");
        }
    }
}
