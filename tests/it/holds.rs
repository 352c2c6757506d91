//! What is held for requests at work, and that it is freed however they end.

use std::sync::Arc;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{
    Act, GPT2, Host, Purse, Scratch, Setup, Upstream, eventually, lawgent, leave, nanos,
};
use crate::servers::WAITS;

const PROMPT: &str = "Once upon a time";
/// A piece of an upstream's answer.
const PIECE: &str = "data: {\"choices\":[{\"text\":\" and\"}]}\n\n";

/// Nano-dollars of a token at the default price.
const TOKEN: i64 = 10_000;
const DOLLAR: i64 = 1_000_000_000;

/// A server with both models, and the upstream of the second.
async fn both(act: Act) -> (Host, Upstream) {
    both_with(Host::builder(), act).await
}

async fn both_with(setup: Setup, act: Act) -> (Host, Upstream) {
    let upstream = Upstream::start(act).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let host = setup.config(config).start().await.ready().await;
    (host, upstream)
}

fn ask(max_new_tokens: u32) -> Value {
    json!({ "text": PROMPT, "model_id": 2, "max_new_tokens": max_new_tokens })
}

/// Every sum of money is as kept.
fn audit(host: &Host) {
    host.run(&["db", "audit"]);
}

#[tokio::test]
async fn what_is_held_is_freed_when_a_client_leaves() {
    // the second piece never comes, so that the answer does not end before the client leaves
    let (host, _upstream) = both(Act::Stream(&[PIECE, PIECE])).await;
    let purse = Purse::prepaid(&host, DOLLAR).await;
    let mut body = ask(400);
    body["stream"] = json!(true);
    let mut stream = purse.customer.stream("/generate", body).await;
    stream.next().await.expect("an event");
    let (balance, held) = purse.balance().await;
    assert!(balance == DOLLAR && held > 400 * TOKEN, "{balance} {held}");
    drop(stream);
    let balance = purse.settled().await;
    let rows = purse.customer.get("/usage/requests").await.expect(200);
    let row = &rows["requests"][0];
    assert_eq!(row["status"], "cancelled");
    let cost = nanos(&row["cost"]);
    assert!((TOKEN..held).contains(&cost), "{row}");
    assert_eq!(balance, DOLLAR - cost);
    audit(&host);
}

#[tokio::test]
async fn what_was_being_held_for_a_client_that_left_is_freed() {
    // of a file nobody waits for others to hold something
    let setup = Host::builder().on(Arc::new(Scratch::new()));
    let (host, upstream) = both_with(setup, Act::Stall).await;
    let purse = Purse::prepaid(&host, DOLLAR).await;
    let database = host.database();
    let money = database
        .begin("SELECT FROM accounts WHERE customer_id = 1 FOR UPDATE")
        .await;
    let socket = purse.customer.by_hand("/generate", &ask(5)).await;
    eventually("it waits for the money", async || {
        database.number(WAITS).await == 1
    })
    .await;
    assert_eq!(leave(socket).await, "");
    drop(money);
    let rows = async || purse.customer.get("/usage/requests").await.expect(200);
    eventually("it is on record", async || {
        !rows().await["requests"][0].is_null()
    })
    .await;
    let row = &rows().await["requests"][0];
    assert_eq!(
        (&row["status"], &row["cost"]),
        (&json!("cancelled"), &json!(0.0))
    );
    // in the transaction of its row
    assert_eq!(database.number("SELECT count(*) FROM holds").await, 0);
    assert_eq!(purse.balance().await, (DOLLAR, 0));
    assert!(upstream.seen().is_empty());
    audit(&host);
}

#[tokio::test]
async fn what_is_held_is_freed_when_the_upstream_fails_or_answers() {
    let (host, upstream) = both(Act::Say(500, vec![], "{}")).await;
    let purse = Purse::prepaid(&host, DOLLAR).await;
    let body = ask(5);
    let reply = purse.customer.post("/generate", body.clone()).await;
    assert_eq!(reply.expect_error(502), "upstream_failed");
    assert_eq!(purse.balance().await, (DOLLAR, 0));

    // it counts 7 and 3 tokens; nobody could know before
    upstream.act(Act::Hold("yes"));
    let customer = purse.customer.clone();
    let asking = tokio::spawn(async move { customer.post("/generate", body).await });
    eventually("the upstream has it", async || upstream.open() == 1).await;
    assert!(purse.balance().await.1 > 1000 * TOKEN);
    upstream.release(1);
    asking.await.expect("no panic").expect(200);
    assert_eq!(purse.balance().await, (DOLLAR - 10 * TOKEN, 0));
    audit(&host);
}

#[tokio::test]
async fn what_a_killed_server_held_is_free_when_it_starts_again() {
    let (host, upstream) = both(Act::Stall).await;
    let purse = Purse::prepaid(&host, DOLLAR).await;
    let customer = purse.customer.clone();
    let body = ask(5);
    let asking = tokio::spawn(async move {
        customer
            .request(Method::POST, "/generate")
            .json(&body)
            .send()
            .await
    });
    eventually("the upstream has it", async || upstream.open() == 1).await;
    assert!(purse.balance().await.1 > 0);
    // by SIGKILL
    let host = host.restart().await;
    assert!(asking.await.expect("no panic").is_err());
    // at once in a file; on a server, which may have others, when its lease is over
    assert_eq!(purse.at(&host).settled().await, DOLLAR);
    audit(&host);
}

#[tokio::test]
async fn a_second_server_on_the_same_file_does_not_start() {
    let file = Host::builder().env("DATABASE_URL", "sqlite:data/model-host.db");
    let (host, upstream) = both_with(file, Act::Hold("yes")).await;
    let purse = Purse::prepaid(&host, DOLLAR).await;
    let customer = purse.customer.clone();
    let body = ask(5);
    let asking = tokio::spawn(async move { customer.post("/generate", body).await });
    eventually("the upstream has it", async || upstream.open() == 1).await;
    let data = host.dir().join("data").display().to_string();
    let same_folder = Host::builder().argument(format!("--data-dir={data}"));
    let same_file = Host::builder().env("DATABASE_URL", format!("sqlite:{data}/model-host.db"));
    for second in [same_folder, same_file] {
        let (status, said) = second.refused();
        assert!(!status.success());
        assert!(
            said.contains("another server runs on") && said.contains(&data),
            "{said}"
        );
    }
    assert!(purse.balance().await.1 > 0, "what the first holds is held");
    upstream.release(1);
    asking.await.expect("no panic").expect(200);
    assert_eq!(purse.balance().await, (DOLLAR - 10 * TOKEN, 0));
}
