//! Several servers, and the way to their database that breaks.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{
    Act, Cable, Client, GPT2, Host, PATIENCE, Purse, Reply, Upstream, eventually, lawgent,
};
use crate::servers::{DOLLAR, HOUSE, WAITS, another, ask, ask_upstream, first, send, statuses};

/// A server of the same database, and the cable that it reaches it by.
async fn by_cable(first: &Host, config: &str) -> (Host, Cable) {
    let cable = Cable::to(&first.scratch().url()).await;
    let host = another(first, config).env("DATABASE_URL", cable.url());
    (host.start().await.ready().await, cable)
}

#[tokio::test]
async fn a_server_without_its_database_takes_no_money_and_comes_back() {
    let first = first(GPT2).await;
    let (second, cable) = by_cable(&first, GPT2).await;
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

/// Asks a server for what it has to wait with for others; returns once it does.
async fn ask_and_wait(host: &Host, customer: Client) -> JoinHandle<Reply> {
    let waiting = tokio::spawn(async move { customer.post("/generate", ask(1)).await });
    let database = host.database();
    eventually("it waits", async || database.number(WAITS).await == 1).await;
    waiting
}

#[tokio::test]
async fn connections_that_say_nothing_any_more_are_not_waited_for() {
    let first = first(GPT2).await;
    let (second, cable) = by_cable(&first, GPT2).await;
    let purse = Purse::prepaid(&first, DOLLAR).await;
    let customer = purse.at(&second).customer;
    customer.post("/generate", ask(1)).await.expect(200);

    let house = first.database().begin(HOUSE).await;
    let waiting = ask_and_wait(&first, customer.clone()).await;
    cable.freeze();
    drop(house);
    let frozen = Instant::now();
    let reply = customer.post("/generate", ask(1)).await;
    assert!([200, 503].contains(&reply.status.as_u16()), "{reply:?}");
    assert!(frozen.elapsed() < Duration::from_secs(25));
    waiting.await.expect("no panic").expect(200);
    eventually("it answers again", async || {
        customer.post("/generate", ask(1)).await.status == 200
    })
    .await;
    assert_eq!(purse.settled().await, purse.at(&second).balance().await.0);
    first.run(&["db", "audit"]);
}

#[tokio::test]
async fn a_server_that_stands_still_keeps_the_others_waiting_for_seconds() {
    let first = first(GPT2).await;
    let second = another(&first, GPT2).start().await.ready().await;
    let purse = Purse::prepaid(&first, DOLLAR).await;

    let house = first.database().begin(HOUSE).await;
    let waiting = ask_and_wait(&first, purse.at(&second).customer).await;
    second.signal("STOP");
    drop(house);
    let stopped = Instant::now();
    purse.customer.post("/generate", ask(1)).await.expect(200);
    assert!(stopped.elapsed() < Duration::from_secs(20));
    second.signal("CONT");
    waiting.await.expect("no panic").expect(200);
    purse.settled().await;
    first.run(&["db", "audit"]);
}

#[tokio::test]
async fn what_was_never_held_is_not_kept_to_be_freed() {
    let first = first(GPT2).await;
    let purse = Purse::prepaid(&first, DOLLAR).await;
    let database = first.database();
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS \
        $$ BEGIN RAISE 'full'; END $$; \
        CREATE TRIGGER is_full BEFORE INSERT OR DELETE ON holds EXECUTE FUNCTION refuse()";
    database.execute(refuse).await.expect("rows are refused");
    database.refuse_usage().await;
    for _ in 0..3 {
        let refused = purse.customer.post("/generate", ask(1)).await;
        refused.expect_error(503);
    }
    // it would be tried after a second
    let since = Instant::now();
    let passed = async || since.elapsed() > Duration::from_secs(3);
    eventually("it has had time", passed).await;
    let log = first.log();
    assert!(!log.contains("something stays held"), "{log}");
}

#[tokio::test]
async fn what_is_said_while_a_server_connects_again_is_not_lost() {
    let first = first(GPT2).await;
    let (second, cable) = by_cable(&first, GPT2).await;
    // longer than it waits for a word, and than for a sign of life after that
    for gap in [500, 600, 700, 900] {
        let purse = Purse::postpaid(&first).await;
        let elsewhere = purse.at(&second).customer;
        eventually("it is not limited", async || {
            elsewhere.post("/generate", ask(1)).await.status == 200
        })
        .await;
        cable.stall();
        let stalled = Instant::now();
        let limit = json!({ "credit_limit": 0 });
        let limited = first.admin().patch(&purse.path(""), limit).await;
        limited.expect(200);
        let mended = async || stalled.elapsed() >= Duration::from_millis(gap);
        eventually("it has waited", mended).await;
        cable.mend();
        eventually("it knows of the limit", async || {
            elsewhere.post("/generate", ask(1)).await.status == 402
        })
        .await;
    }
}

#[tokio::test]
async fn a_server_that_was_taken_for_dead_charges_nothing_for_what_another_did() {
    let upstream = Upstream::start(Act::Hold("too late")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let first = first(&config).await;
    let (second, cable) = by_cable(&first, &config).await;
    let purse = Purse::prepaid(&first, DOLLAR).await;
    let (here, there) = (purse.customer.clone(), purse.customer.at(second.url()));
    let customer = there.clone();
    let asking = tokio::spawn(async move { send(&customer, "k", &ask_upstream()).await });
    eventually("the upstream has it", async || upstream.open() == 1).await;

    cable.cut();
    upstream.act(Act::Answer("in time"));
    eventually("its lease is over", async || {
        send(&here, "k", &ask_upstream()).await.status == 200
    })
    .await;
    let left = purse.settled().await;
    assert!(left < DOLLAR);
    cable.mend();
    eventually("it has its database again", async || {
        there.get("/usage").await.status == 200
    })
    .await;
    upstream.release(1);
    let reply = asking.await.expect("no panic");
    assert_eq!(reply.expect_error(409), "idempotency_conflict");
    let again = send(&there, "k", &ask_upstream()).await.expect(200);
    assert_eq!(again["response"], "in time");
    assert_eq!(purse.settled().await, left);
    let mut ends = statuses(&here).await;
    ends.sort_by_key(Value::to_string);
    assert_eq!(ends, ["failed", "ok"]);
    first.run(&["db", "audit"]);
}

#[tokio::test]
async fn an_outage_of_the_database_frees_nothing_of_those_who_live() {
    let upstream = Upstream::start(Act::Hold("yes")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let host = first(&config).await;
    let database = host.database();
    let (first, first_cable) = by_cable(&host, &config).await;
    let (second, second_cable) = by_cable(&host, &config).await;
    let purse = Purse::prepaid(&host, DOLLAR).await;
    // who would free it rightly is gone
    drop(host);
    let customer = purse.at(&second).customer;
    let asking = tokio::spawn(async move { customer.post("/generate", ask_upstream()).await });
    eventually("the upstream has it", async || upstream.open() == 1).await;
    let held = "SELECT count(*) FROM holds";
    assert_eq!(database.number(held).await, 1);

    first_cable.cut();
    second_cable.cut();
    let alive = "SELECT count(*) FROM servers WHERE lease_ends > clock_timestamp()";
    eventually("all leases are over", async || {
        database.number(alive).await == 0
    })
    .await;
    first_cable.mend();
    // after each renewal it looks for what the dead hold
    let last = "SELECT CAST(extract(epoch FROM max(lease_ends)) * 1000 AS BIGINT) FROM servers";
    for _ in 0..2 {
        let before = database.number(last).await;
        let renewed = async || database.number(last).await > before;
        eventually("the first has renewed its lease", renewed).await;
    }
    assert_eq!(database.number(held).await, 1);
    second_cable.mend();
    eventually("the second has too", async || {
        database.number(alive).await == 2
    })
    .await;
    upstream.release(1);
    asking.await.expect("no panic").expect(200);
    assert!(purse.at(&first).settled().await < DOLLAR);
    let third = another(&first, &config).start().await;
    third.run(&["db", "audit"]);
}

#[tokio::test]
async fn what_the_database_did_without_saying_so_is_answered_and_charged_once() {
    let first = first(GPT2).await;
    let (second, cable) = by_cable(&first, GPT2).await;
    let purse = Purse::postpaid(&first).await;
    let customer = purse.at(&second).customer;
    let mut answers = 0;
    let said_so = || second.log().contains("usage is written once more");
    // another commit may be the one that is not confirmed
    for _ in 0..100 {
        cable.lose_a_commit();
        let reply = customer.post("/generate", ask(1)).await;
        if reply.status == 503 {
            // where it was to reserve, which is not tried again
            reply.expect_error(503);
        } else {
            reply.expect(200);
            answers += 1;
        }
        if said_so() {
            break;
        }
    }
    assert!(said_so(), "{}", second.log());
    let statuses = statuses(&purse.customer).await;
    let ok = statuses.iter().filter(|status| *status == "ok").count();
    assert_eq!(ok, answers);
    first.run(&["db", "audit"]);
}

#[tokio::test]
async fn connections_that_say_nothing_once_a_transaction_begins_are_given_up() {
    let first = first(GPT2).await;
    let (second, cable) = by_cable(&first, GPT2).await;
    let create = |number: u32| {
        let email = format!("{number}@example.com");
        let new = json!({ "name": "A", "email": email, "company": "A Inc" });
        let admin = second.admin();
        async move { admin.post("/customers", new).await }
    };
    cable.lose_begins(true);
    let creating: Vec<_> = (0..16).map(|number| tokio::spawn(create(number))).collect();
    for created in creating {
        created.await.expect("no panic").expect_error(503);
    }
    cable.lose_begins(false);
    eventually("it has connections again", async || {
        create(100).await.status == 201
    })
    .await;
}

#[tokio::test]
async fn a_server_that_cannot_hear_the_others_trusts_no_key_in_memory() {
    let first = first(GPT2).await;
    let (second, cable) = by_cable(&first, GPT2).await;
    let customer = first.customer().await.at(second.url());
    // nothing but the key is read for it
    customer.get("/v1/models").await.expect(200);
    cable.cut();
    eventually("it cannot hear", async || {
        second.log().contains("other servers cannot be heard")
    })
    .await;
    // what is in memory would serve for 10 s
    let refused = customer.get("/v1/models").await;
    assert_eq!(refused.expect_error(503), "storage_failed");
}
