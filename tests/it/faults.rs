//! Faults of the machine: clocks that differ, a slow disk. `tests/kill` has more of
//! them, for longer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Act, Events, GPT2, Host, Purse, Redis, Scratch, Upstream, eventually, lawgent, nanos,
};

const DOLLAR: i64 = 1_000_000_000;
const MINUTES_MS: i64 = 60 * 1000;

fn ask() -> Value {
    json!({ "text": "Once", "model_id": 2, "max_new_tokens": 5 })
}

/// What all requests on record cost, in nano-dollars, and how many they are.
async fn recorded(host: &Host) -> (i64, usize) {
    let path = "/usage/requests?limit=1000";
    let rows = host.admin().get(path).await.expect(200);
    let rows = rows["requests"].as_array().expect("a list");
    (rows.iter().map(|row| nanos(&row["cost"])).sum(), rows.len())
}

#[tokio::test]
async fn servers_whose_clocks_differ_count_as_one() {
    let (redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Hold("yes")).await,
    );
    let database = Arc::new(Scratch::new());
    let setup = || {
        Host::builder()
            .config(format!("{GPT2}{}", lawgent(upstream.url())))
            .env("REDIS_URL", redis.url())
            .on(Arc::clone(&database))
    };
    let first = setup().start().await.ready().await;
    let mut hosts = vec![first];
    for minutes in [7, -7] {
        let secret = std::fs::read(hosts[0].dir().join("data/secret")).expect("a secret");
        let setup = setup()
            .file("data/secret", secret)
            .with_clock_off(minutes * MINUTES_MS);
        hosts.push(setup.start().await.ready().await);
    }
    let purse = Purse::prepaid(&hosts[1], DOLLAR).await;
    let budgets = json!({ "budgets": [{ "period": "total", "amount": 1 }] });
    let admin = hosts[2].admin();
    admin
        .put(&purse.path("/budgets"), budgets)
        .await
        .expect(200);

    // a text that is replaced without a grace stops by all clocks
    let replaced = hosts[0].customer().await;
    for host in &hosts {
        replaced.at(host.url()).get("/usage").await.expect(200);
    }
    let keys = replaced.get("/api/keys").await.expect(200);
    let path = format!("/api/keys/{}/rotate", keys["keys"][0]["id"]);
    let none = json!({ "grace_seconds": 0 });
    hosts[1].admin().post(&path, none).await.expect(200);
    for host in &hosts {
        eventually("it has stopped", async || {
            let reply = replaced.at(host.url()).get("/usage").await;
            reply.status == 401 && reply.expect_error(401) == "key_expired"
        })
        .await;
    }

    // one request is at work at each: none takes another for dead
    let asking: Vec<_> = hosts
        .iter()
        .map(|host| {
            let customer = purse.at(host).customer;
            tokio::spawn(async move { customer.post("/generate", ask()).await })
        })
        .collect();
    eventually("all are at work", async || upstream.open() == 3).await;
    let (_, held) = purse.balance().await;
    let lease = "SELECT CAST(extract(epoch FROM min(lease_ends)) * 1000 AS BIGINT) FROM servers";
    let (database, turns) = (hosts[0].database(), 2);
    for _ in 0..turns {
        // each looks for what the dead hold after it has renewed its lease
        let before = database.number(lease).await;
        let renewed = async || database.number(lease).await > before;
        eventually("all have renewed their leases", renewed).await;
    }
    assert_eq!(purse.balance().await, (DOLLAR, held));
    for host in &hosts {
        host.run(&["db", "audit"]);
    }
    upstream.release(3);
    for reply in asking {
        reply.await.expect("no panic").expect(200);
    }
    upstream.act(Act::Answer("yes"));

    // limits and money are of all of them together
    let limited = hosts[0].customer_with(json!({ "rate_limit": 6 })).await;
    let started = Instant::now();
    let mut admitted = 0;
    for number in 0..30 {
        let customer = limited.at(hosts[number % 3].url());
        let status = customer.post("/generate", ask()).await.status;
        admitted += u64::from(status == 200);
    }
    let most = 6 + started.elapsed().as_secs() / 10;
    assert!((6..=most).contains(&admitted), "{admitted}");
    for host in &hosts {
        let (answers, refusals) = purse.at(host).ask_at_once(20, &ask()).await;
        assert_eq!((answers.len(), refusals.len()), (20, 0));
    }
    let left = purse.settled().await;
    let spent = admin.get(&purse.path("/budgets")).await.expect(200)["budgets"][0]["spent"].clone();
    assert_eq!(nanos(&spent), DOLLAR - left);
    let own = purse.customer.get("/usage").await.expect(200)["totals"].clone();
    assert_eq!(
        (nanos(&own["cost"]), &own["requests"]),
        (DOLLAR - left, &json!(63))
    );
    for host in &hosts {
        host.run(&["db", "audit"]);
    }
}

#[tokio::test]
async fn on_a_slow_disk_requests_share_its_flushes_and_none_is_lost() {
    let flush = Duration::from_millis(100);
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let setup = Host::builder().config(config).in_file();
    let host = setup.flushing_slowly(flush).start().await.ready().await;
    let purse = Purse::prepaid(&host, DOLLAR).await;
    let started = Instant::now();
    let (answers, _) = purse.ask_at_once(64, &ask()).await;
    let took = started.elapsed();
    assert_eq!(answers.len(), 64);
    assert!(took > flush, "{took:?}: nothing was flushed");
    assert!(took < flush * 64, "{took:?}");

    // killed while many wait for the disk
    upstream.act(Act::Hold("yes"));
    let customer = purse.customer.clone();
    let lost: Vec<_> = (0..32)
        .map(|_| {
            let request = customer.request(Method::POST, "/generate");
            tokio::spawn(request.json(&ask()).send())
        })
        .collect();
    eventually("all are at work", async || upstream.open() == 32).await;
    assert!(purse.balance().await.1 > 0, "something is held");
    upstream.release(32);
    eventually("all are answered", async || upstream.open() == 0).await;
    let host = host.restart().await.ready().await;
    let purse = purse.at(&host);
    let (balance, held) = purse.balance().await;
    assert_eq!(held, 0);
    let mut in_hand = answers.len();
    for reply in lost {
        let status = reply.await.expect("no panic").map(|reply| reply.status());
        in_hand += usize::from(status.is_ok_and(|status| status == 200));
    }
    let (cost, rows) = recorded(&host).await;
    assert!(rows >= in_hand, "{rows} of {in_hand}");
    assert_eq!(DOLLAR - balance, cost);
    host.run(&["db", "audit"]);
}

#[tokio::test]
async fn each_request_waits_for_a_flush_of_its_own_if_none_is_beside_it() {
    let (requests, flush) = (10, Duration::from_millis(100));
    let setup = Host::builder().in_file().flushing_slowly(flush);
    let host = setup.start().await.ready().await;
    let customer = host.customer().await;
    let mut ask = ask();
    ask["model_id"] = json!(1);
    let started = Instant::now();
    for _ in 0..requests {
        customer.post("/generate", ask.clone()).await.expect(200);
    }
    let took = started.elapsed();
    assert!(took >= flush * requests, "{took:?}: not all were flushed");
}

#[tokio::test]
async fn a_stream_does_not_end_as_if_it_were_on_record_when_it_is_not() {
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let host = Host::builder().config(lawgent(upstream.url())).in_file();
    let host = host.start().await.ready().await;
    let customer = host.customer().await;
    let mut ask = ask();
    ask["stream"] = json!(true);
    let send = async |name: &str| {
        let request = customer.request(Method::POST, "/generate").json(&ask);
        let request = request.header("idempotency-key", name);
        let events = Events::of(request.send().await.expect("an answer"));
        events.rest().await
    };
    host.database().refuse_usage().await;
    let events = send("once").await;
    let last = events.last().expect("an event");
    assert_eq!(last["error"]["code"], "not_recorded", "{events:?}");
    // nothing is kept of it
    let mended = host.database().execute("DROP TRIGGER full").await;
    mended.expect("room again");
    assert_eq!(send("once").await.last(), Some(&json!("[DONE]")));
    assert_eq!(recorded(&host).await.1, 1);
}
