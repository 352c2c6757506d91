//! Many at once at the database of several servers, who take no connection from others.

use serde_json::json;

use crate::harness::{GPT2, Purse, eventually};
use crate::servers::{WAITS, ask, first};

#[tokio::test]
async fn strangers_keep_nobody_from_the_database() {
    let host = first(GPT2).await;
    let customer = host.customer().await;
    customer.get("/usage").await.expect(200);
    // whoever looks for the admin key waits
    let table = "LOCK TABLE admin_key IN ACCESS EXCLUSIVE MODE";
    let _locked = host.database().begin(table).await;
    for number in 0..40 {
        let key = format!("not the admin key {number}");
        let stranger = host.anyone().with_header("x-admin-key", key);
        tokio::spawn(async move { stranger.get("/customers").await });
    }
    let database = host.database();
    eventually("one waits", async || database.number(WAITS).await > 0).await;
    customer.get("/usage").await.expect(200);
    assert_eq!(database.number(WAITS).await, 1);
}

#[tokio::test]
async fn a_flood_of_keys_that_are_not_known_is_no_failure_of_the_database() {
    let host = first(GPT2).await;
    let [one, two, three] = [
        host.customer().await,
        host.customer().await,
        host.customer().await,
    ];
    let database = host.database();
    let table = "LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE";
    let locked = database.begin(table).await;
    // two are looked for, and the third does not come to its turn
    let looked_for = [one, two].map(|key| tokio::spawn(async move { key.get("/usage").await }));
    eventually("they wait", async || database.number(WAITS).await == 2).await;
    let refused = three.get("/usage").await;
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.expect_error(503), "busy");
    let log = host.log();
    assert!(!log.contains("ERROR"), "{log}");
    drop(locked);
    for key in looked_for {
        key.await.expect("no panic").expect(200);
    }
    three.get("/usage").await.expect(200);
}

#[tokio::test]
async fn however_much_the_operator_writes_a_server_settles_and_counts_as_alive() {
    let host = first(GPT2).await;
    let (busy, other) = (Purse::postpaid(&host).await, Purse::postpaid(&host).await);
    let database = host.database();
    // a machine that is at its limit may be late with the first
    let failed = || host.log().matches("the lease could not be renewed").count();
    let before = failed();
    let account = "SELECT FROM accounts WHERE customer_id = 1 FOR UPDATE";
    let _locked = database.begin(account).await;
    for number in 0..40 {
        let (admin, path) = (host.admin(), busy.path("/credit"));
        let credit = json!({ "amount": 1, "reference": number.to_string() });
        tokio::spawn(async move { admin.post(&path, credit).await });
    }
    eventually("many wait", async || database.number(WAITS).await >= 8).await;
    let lease = "SELECT CAST(extract(epoch FROM lease_ends) * 1000 AS BIGINT) FROM servers";
    let ends = database.number(lease).await;
    other.customer.post("/generate", ask(1)).await.expect(200);
    eventually("the lease is renewed", async || {
        database.number(lease).await > ends
    })
    .await;
    assert_eq!(failed(), before);
}

#[tokio::test]
async fn who_asks_whether_a_server_is_ready_takes_no_connections() {
    let host = first(GPT2).await;
    let (anyone, database) = (host.anyone(), host.database());
    let all = (0..200).map(|_| {
        let anyone = anyone.clone();
        tokio::spawn(async move { anyone.get("/ready").await })
    });
    for one in all.collect::<Vec<_>>() {
        one.await.expect("no panic").expect(200);
    }
    // of eight that read, those that were asked last whether there is an answer
    let asked = "SELECT count(*) FROM pg_stat_activity \
        WHERE datname = current_database() AND query = 'SELECT 1'";
    let asked = database.number(asked).await;
    assert!(asked < 4, "{asked} connections were asked");
}
