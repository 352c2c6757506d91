//! What one server of a database does at a time, for all of them.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::harness::{
    Act, Database, FakeStripe, GPT2, Host, Purse, STRIPE_KEY, Setup, Upstream, eventually, text,
};
use crate::servers::{WAITS, another, ask, first};

/// Two servers of a database, which are set up so.
async fn two(config: &str, env: &[(&str, &str)]) -> [Host; 2] {
    let with = |setup: Setup| {
        let env = env.iter();
        env.fold(setup, |setup, (name, value)| setup.env(name, *value))
    };
    let none = first(GPT2).await;
    let [one, other] = [(); 2].map(|()| with(another(&none, config)));
    let (one, other) = tokio::join!(one.start(), other.start());
    [one.ready().await, other.ready().await]
}

/// Waits until one server is about to make such a change, and the other has had time for
/// as much.
async fn one_is_about_to(database: &Database) {
    eventually("one is", async || database.number(WAITS).await > 0).await;
    // who waits for the right to do it asks for it once a second
    let since = Instant::now();
    let passed = async || since.elapsed() > Duration::from_secs(3);
    eventually("the other has had time", passed).await;
    assert_eq!(database.number(WAITS).await, 1);
}

#[tokio::test]
async fn of_two_servers_one_tells_the_webhook() {
    let webhook = Upstream::start(Act::Say(200, vec![], "")).await;
    let config = format!(
        "[webhook]\nurl = \"{}\"\nsecret = \"${{WEBHOOK_SECRET}}\"\n{GPT2}",
        webhook.base()
    );
    let secret = format!("whsec_{}", STANDARD.encode([7; 32]));
    let hosts = two(&config, &[("WEBHOOK_SECRET", &secret)]).await;
    let database = hosts[0].database();
    let held_back = database.hold_back("UPDATE ON notices").await;
    for host in &hosts {
        let purse = Purse::postpaid(host).await;
        purse.customer.post("/generate", ask(1)).await.expect(200);
        // less than it has used
        let budget = json!({ "period": "total", "amount": text(1) });
        let budgets = json!({ "budgets": [budget] });
        let set = host.admin().put(&purse.path("/budgets"), budgets).await;
        set.expect(200);
    }
    one_is_about_to(&database).await;
    drop(held_back);
    let left = "SELECT count(*) FROM notices WHERE delivered_at IS NULL";
    eventually("all is told", async || database.number(left).await == 0).await;
    let seen = webhook.seen();
    let ids: HashSet<_> = seen
        .iter()
        .map(|seen| &seen.headers["webhook-id"])
        .collect();
    assert_eq!((seen.len(), ids.len()), (2, 2));
}

#[tokio::test]
async fn of_two_servers_one_reports_to_stripe() {
    let stripe = FakeStripe::start().await;
    let env = [
        ("STRIPE_SECRET_KEY", STRIPE_KEY),
        ("STRIPE_API_BASE", stripe.url()),
    ];
    let hosts = two(GPT2, &env).await;
    let database = hosts[0].database();
    let held_back = database.hold_back("UPDATE OF attempts ON outbox").await;
    for host in &hosts {
        host.customer().await;
    }
    one_is_about_to(&database).await;
    drop(held_back);
    let left = "SELECT count(*) FROM outbox WHERE sealed_at IS NOT NULL AND delivered_at IS NULL";
    eventually("all is told", async || database.number(left).await == 0).await;
    let counts = (
        stripe.asked("customers").len(),
        stripe.made("customers").len(),
    );
    assert_eq!(counts, (2, 2));
}
