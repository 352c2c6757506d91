//! Several servers of one database, on PostgreSQL: one truth for all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Act, Client, GPT2, Host, Purse, Reply, Scratch, Setup, Upstream, eventually, lawgent,
};

pub const DOLLAR: i64 = 1_000_000_000;

/// Has the house's account to itself, which every settlement changes last.
pub const HOUSE: &str = "SELECT FROM accounts WHERE id = 2 FOR UPDATE";
/// How many wait for what others have to themselves.
pub const WAITS: &str = "SELECT count(*) FROM pg_stat_activity \
    WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// A second server of the same database, with the same secret.
pub fn another(first: &Host, config: &str) -> Setup {
    let secret = std::fs::read(first.dir().join("data/secret")).expect("a secret");
    Host::builder()
        .config(config)
        .on(first.scratch())
        .file("data/secret", secret)
}

pub async fn first(config: &str) -> Host {
    let database = Arc::new(Scratch::new());
    let setup = Host::builder().config(config).on(database);
    setup.start().await.ready().await
}

async fn two() -> (Host, Host) {
    let first = first(GPT2).await;
    let second = another(&first, GPT2).start().await.ready().await;
    (first, second)
}

pub fn ask(max_new_tokens: u32) -> Value {
    json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": max_new_tokens })
}

/// Sends a request to an upstream's model under a name of its client's.
pub async fn send(customer: &Client, name: &str, body: &Value) -> Reply {
    let request = customer.request(Method::POST, "/generate").json(body);
    let sent = request.header("idempotency-key", name).send().await;
    Reply::of(sent.expect("an answer")).await
}

pub fn ask_upstream() -> Value {
    json!({ "text": "Once", "model_id": 2, "max_new_tokens": 5 })
}

pub async fn statuses(customer: &Client) -> Vec<Value> {
    let rows = customer.get("/usage/requests").await.expect(200);
    let rows = rows["requests"].as_array().expect("a list");
    rows.iter().map(|row| row["status"].clone()).collect()
}

#[tokio::test]
async fn a_key_that_one_server_turns_off_is_off_at_the_others_at_once() {
    let (first, second) = two().await;
    let customer = first.customer().await.at(second.url());
    customer.post("/generate", ask(1)).await.expect(200);
    let toggle = async |status| {
        let toggle = "/api/keys/1/toggle";
        first.admin().post(toggle, Value::Null).await.expect(200);
        let toggled = Instant::now();
        eventually("it is known", async || {
            customer.get("/usage").await.status == status
        })
        .await;
        toggled.elapsed()
    };
    let mut quickest = Duration::MAX;
    for _ in 0..3 {
        quickest = quickest.min(toggle(403).await);
        toggle(200).await;
    }
    // what is in memory would serve for 10 s without a word from the first; a machine
    // that is at its limit may be late once
    assert!(quickest < Duration::from_secs(3), "{quickest:?}");
}

#[tokio::test]
async fn a_server_hears_of_keys_while_a_change_of_limits_waits() {
    let (first, second) = two().await;
    let (one, other) = (
        Purse::postpaid(&first).await,
        Purse::postpaid(&first).await.at(&second),
    );
    other.customer.get("/usage").await.expect(200);
    let budgets = json!({ "budgets": [{ "period": "day", "amount": 1 }] });

    let money = first
        .database()
        .begin("SELECT FROM accounts WHERE customer_id = 1 FOR UPDATE")
        .await;
    let (admin, path, body) = (second.admin(), one.path("/budgets"), budgets.clone());
    let changing = tokio::spawn(async move { admin.put(&path, body).await });
    eventually("it waits", async || {
        first.database().number(WAITS).await == 1
    })
    .await;
    let admin = first.admin();
    let set = admin.put(&other.path("/budgets"), budgets).await;
    set.expect(200);
    admin
        .post("/api/keys/2/toggle", Value::Null)
        .await
        .expect(200);
    let toggled = Instant::now();
    eventually("it is known", async || {
        other.customer.get("/usage").await.status == 403
    })
    .await;
    // what is in memory would serve for 10 s
    assert!(toggled.elapsed() < Duration::from_secs(5));
    drop(money);
    changing.await.expect("no panic").expect(200);
}

#[tokio::test]
async fn who_follows_the_rows_misses_none_that_comes_late() {
    let config = format!("{GPT2}price_per_million = {{ prompt = 1.0, completion = 1.0 }}\n");
    let free = format!("{GPT2}price_per_million = {{ prompt = 0.0, completion = 0.0 }}\n");
    let first = first(&config).await;
    let second = another(&first, &free).start().await.ready().await;
    let (late, early) = (
        first.customer().await,
        first.customer().await.at(second.url()),
    );
    let admin = first.admin();
    let rows = async || {
        let rows = admin.get("/usage/requests").await.expect(200);
        rows["requests"].as_array().expect("a list").len()
    };

    // the house's account is changed last: this settlement has its row and waits
    let house = first.database().begin(HOUSE).await;
    let waiting = tokio::spawn(async move { late.post("/generate", ask(1)).await });
    eventually("it waits", async || {
        first.database().number(WAITS).await == 1
    })
    .await;
    early.post("/generate", ask(1)).await.expect(200);
    // the one before it may still come
    assert_eq!(rows().await, 0);

    drop(house);
    waiting.await.expect("no panic").expect(200);
    assert_eq!(rows().await, 2);
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
async fn however_much_a_killed_server_held_is_freed_soon() {
    let first = first(GPT2).await;
    let purse = Purse::prepaid(&first, DOLLAR).await;
    let killed = "INSERT INTO holds (request_id, customer_id, api_key_id, amount, created_at, \
        expires_at, process) SELECT 'r' || n, 1, 1, 1, 0, 0, 'killed' \
        FROM generate_series(1, 4000) AS n; \
        UPDATE accounts SET held = 4000 WHERE customer_id = 1";
    let database = first.database();
    database.execute(killed).await.expect("holds");
    let since = Instant::now();
    assert_eq!(purse.settled().await, DOLLAR);
    // it frees what others held once it is there for 15 s
    assert!(since.elapsed() < Duration::from_secs(45));
    first.run(&["db", "audit"]);
}

#[tokio::test]
async fn a_server_with_another_secret_does_not_start() {
    let first = first(GPT2).await;
    let (status, said) = Host::builder().on(first.scratch()).refused();
    assert!(!status.success());
    assert!(said.contains("secret"), "{said}");
}

#[tokio::test]
async fn a_request_that_is_sent_to_two_servers_is_charged_once() {
    let upstream = Upstream::start(Act::Hold("at last")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let first = first(&config).await;
    let second = another(&first, &config).start().await.ready().await;
    let here = first.customer().await;
    let there = here.at(second.url());
    let (customer, body) = (here.clone(), ask_upstream());
    let asking = tokio::spawn(async move { send(&customer, "k", &body).await });
    eventually("the upstream has it", async || upstream.open() == 1).await;
    let reply = send(&there, "k", &ask_upstream()).await;
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(reply.expect_error(409), "idempotency_conflict");
    let mut other = ask_upstream();
    other["max_new_tokens"] = json!(6);
    let reply = send(&there, "k", &other).await;
    assert_eq!(reply.expect_error(422), "idempotency_key_reused");

    upstream.release(1);
    asking.await.expect("no panic").expect(200);
    let again = send(&there, "k", &ask_upstream()).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    assert_eq!(again.expect(200)["response"], "at last");
    assert_eq!((statuses(&here).await.len(), upstream.seen().len()), (1, 1));

    // what failed is free at once, and what was refused a moment later
    upstream.act(Act::Say(500, vec![], "{}"));
    let reply = send(&here, "failed", &ask_upstream()).await;
    assert_eq!(reply.expect_error(502), "upstream_failed");
    upstream.act(Act::Answer("yes"));
    send(&there, "failed", &ask_upstream()).await.expect(200);
    other["model_id"] = json!(9);
    let reply = send(&here, "refused", &other).await;
    assert_eq!(reply.expect_error(404), "model_not_found");
    eventually("it is free", async || {
        send(&there, "refused", &ask_upstream()).await.status == 200
    })
    .await;
    assert_eq!(statuses(&here).await.len(), 4);
}

#[tokio::test]
async fn of_many_sent_to_both_servers_at_once_one_is_charged() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let first = first(&config).await;
    let second = another(&first, &config).start().await.ready().await;
    let here = first.customer().await;
    let there = here.at(second.url());
    for name in ["a", "b", "c", "d"] {
        let asking = (0..20).map(|number| {
            let customer = [&here, &there][number % 2].clone();
            tokio::spawn(async move { send(&customer, name, &ask_upstream()).await.status })
        });
        for status in asking.collect::<Vec<_>>() {
            let status = status.await.expect("no panic").as_u16();
            assert!([200, 409].contains(&status), "{status}");
        }
    }
    assert_eq!(upstream.seen().len(), 4);
    assert_eq!(statuses(&here).await.len(), 4);
}

#[tokio::test]
async fn a_request_of_a_killed_server_may_be_sent_to_another() {
    let upstream = Upstream::start(Act::Stall).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let first = first(&config).await;
    let second = another(&first, &config).start().await.ready().await;
    let here = first.customer().await;
    let there = here.at(second.url()).request(Method::POST, "/generate");
    let there = there.header("idempotency-key", "k").json(&ask_upstream());
    let asking = tokio::spawn(there.send());
    eventually("the upstream has it", async || upstream.open() == 1).await;
    drop(second);
    asking.await.expect("no panic").expect_err("nobody answers");
    let reply = send(&here, "k", &ask_upstream()).await;
    assert_eq!(reply.expect_error(409), "idempotency_conflict");
    upstream.act(Act::Answer("yes"));
    eventually("its lease is over", async || {
        send(&here, "k", &ask_upstream()).await.status == 200
    })
    .await;
    assert_eq!(statuses(&here).await, ["ok"]);
}

#[tokio::test]
async fn what_the_limits_refuse_takes_no_name() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let host = first(&lawgent(upstream.url())).await;
    let customer = host.customer_with(json!({ "rate_limit": 1 })).await;
    let answered = send(&customer, "one", &ask_upstream()).await;
    answered.expect(200);
    // a name that is taken now is refused as by a full disk
    host.database().refuse_rows("at_work").await;
    let refused = send(&customer, "two", &ask_upstream()).await;
    assert_eq!(refused.expect_error(429), "rate_limit_exceeded");
}

#[tokio::test]
async fn of_servers_that_start_together_one_makes_the_admin_key() {
    let host = first(GPT2).await;
    let database = host.database();
    let none = database.execute("DELETE FROM admin_key").await;
    none.expect("there is none yet");
    let unmade = "LOCK TABLE admin_key IN SHARE MODE";
    let locked = database.begin(unmade).await;
    let start = || another(&host, GPT2).without_admin_key().start();
    let both_make_one = async {
        eventually("both make one", async || database.number(WAITS).await == 2).await;
        drop(locked);
    };
    let (one, other, ()) = tokio::join!(start(), start(), both_make_one);
    let shown = [one.out(), other.out()].concat();
    let (_, rest) = shown.split_once("keep it): ").expect("a key");
    assert!(!rest.contains("admin key"), "{shown}");
    let key = rest.trim_end().to_owned();
    for server in [one, other] {
        let admin = server.anyone();
        let admin = admin.with_header("x-admin-key", key.clone());
        admin.get("/customers").await.expect(200);
    }
}
