//! Several servers of one database, on PostgreSQL: one truth for all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Act, Cable, GPT2, Host, PATIENCE, Purse, Scratch, Setup, Upstream, eventually, lawgent,
};

const DOLLAR: i64 = 1_000_000_000;

/// A second server of the same database, with the same secret.
fn another(first: &Host, config: &str) -> Setup {
    let secret = std::fs::read(first.dir().join("data/secret")).expect("a secret");
    Host::builder()
        .config(config)
        .on(first.scratch())
        .file("data/secret", secret)
}

async fn first(config: &str) -> Host {
    let database = Arc::new(Scratch::new());
    let setup = Host::builder().config(config).on(database);
    setup.start().await.ready().await
}

async fn two() -> (Host, Host) {
    let first = first(GPT2).await;
    let second = another(&first, GPT2).start().await.ready().await;
    (first, second)
}

fn ask(max_new_tokens: u32) -> Value {
    json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": max_new_tokens })
}

#[tokio::test]
async fn a_key_that_one_server_turns_off_is_off_at_the_others_at_once() {
    let (first, second) = two().await;
    let customer = first.customer().await.at(second.url());
    customer.post("/generate", ask(1)).await.expect(200);
    let toggle = "/api/keys/1/toggle";
    first.admin().post(toggle, Value::Null).await.expect(200);
    let off = Instant::now();
    eventually("it is off", async || {
        customer.get("/usage").await.status == 403
    })
    .await;
    // what is in memory would serve for 10 s without a word from the first
    assert!(
        off.elapsed() < Duration::from_secs(5),
        "{:?}",
        off.elapsed()
    );
    first.admin().post(toggle, Value::Null).await.expect(200);
    eventually("it is on", async || {
        customer.get("/usage").await.status == 200
    })
    .await;
}

#[tokio::test]
async fn a_balance_for_ten_pays_ten_at_any_server() {
    let (first, second) = two().await;
    let customer = first.customer().await;
    let cost = &customer.post("/generate", ask(1)).await.expect(200)["cost"];
    let cost = crate::harness::nanos(cost);
    let purse = Purse::prepaid(&first, 10 * cost).await;
    let elsewhere = purse.at(&second);
    let body = ask(1);
    let (here, there) = tokio::join!(
        purse.ask_at_once(50, &body),
        elsewhere.ask_at_once(50, &body)
    );
    assert_eq!(here.0.len() + there.0.len(), 10);
    for code in here.1.iter().chain(&there.1) {
        assert_eq!(code, "insufficient_credit");
    }
    assert_eq!(purse.balance().await, (0, 0));
    second.run(&["db", "audit"]);
}

#[tokio::test]
async fn what_a_killed_server_held_is_freed_by_another() {
    let upstream = Upstream::start(Act::Stall).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let first = first(&config).await;
    let second = another(&first, &config).start().await.ready().await;
    let purse = Purse::prepaid(&first, DOLLAR).await;
    let customer = purse.customer.at(second.url());
    let body = json!({ "text": "Once", "model_id": 2, "max_new_tokens": 5 });
    let asking = tokio::spawn(async move {
        let request = customer.request(Method::POST, "/generate").json(&body);
        request.send().await
    });
    eventually("it is held", async || purse.balance().await.1 > 0).await;
    drop(second);
    asking.await.expect("no panic").expect_err("nobody answers");
    assert_eq!(purse.settled().await, DOLLAR);
    first.run(&["db", "audit"]);
}

#[tokio::test]
async fn a_server_without_its_database_takes_no_money_and_comes_back() {
    let first = first(GPT2).await;
    let database = first.scratch();
    let cable = Cable::to(&database.url()).await;
    let second = another(&first, GPT2).env("DATABASE_URL", cable.url());
    let second = second.start().await.ready().await;
    let purse = Purse::prepaid(&first, DOLLAR).await;
    let elsewhere = purse.at(&second);
    elsewhere
        .customer
        .post("/generate", ask(1))
        .await
        .expect(200);
    let left = purse.balance().await.0;

    cable.cut();
    let cut = Instant::now();
    let refused = elsewhere.customer.post("/generate", ask(1)).await;
    assert!(["storage_failed", "not_recorded"].contains(&refused.expect_error(503).as_str()));
    assert!(cut.elapsed() < PATIENCE);
    // meanwhile its key is turned off elsewhere
    let toggle = "/api/keys/1/toggle";
    first.admin().post(toggle, Value::Null).await.expect(200);
    cable.mend();
    eventually("it knows", async || {
        elsewhere.customer.get("/usage").await.status == 403
    })
    .await;
    first.admin().post(toggle, Value::Null).await.expect(200);
    eventually("it answers again", async || {
        elsewhere.customer.post("/generate", ask(1)).await.status == 200
    })
    .await;
    assert!(purse.settled().await < left);
    first.run(&["db", "audit"]);
}

#[tokio::test]
async fn a_server_with_another_secret_does_not_start() {
    let first = first(GPT2).await;
    let (status, said) = Host::builder().on(first.scratch()).refused();
    assert!(!status.success());
    assert!(said.contains("secret"), "{said}");
}
