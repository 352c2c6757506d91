//! The queue in front of a model that computes here: bounded, and fair between keys.

use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::harness::{Client, GPT2, Host};

/// A server whose model answers one request at a time.
async fn one_at_a_time(queue: u32) -> Host {
    let config = format!("{GPT2}[models.limits]\nparallel = 1\nqueue = {queue}\n");
    Host::builder().config(config).start().await.ready().await
}

fn ask(tokens: u32, is_streamed: bool) -> Value {
    json!({ "model_id": 1, "text": "Once", "max_new_tokens": tokens, "stream": is_streamed })
}

/// So many requests at once.
fn send(customer: &Client, requests: usize, tokens: u32) -> JoinSet<u16> {
    let sent = (0..requests).map(|_| {
        let customer = customer.clone();
        async move {
            let reply = customer.post("/generate", ask(tokens, false)).await;
            if reply.status == 503 {
                let seconds = reply.header("retry-after").parse::<u32>();
                assert!(seconds.is_ok_and(|seconds| (1..=60).contains(&seconds)));
                assert_eq!(reply.expect_error(503), "queue_full");
                return 503;
            }
            reply.expect(200);
            200
        }
    });
    sent.collect()
}

#[tokio::test]
async fn what_finds_no_place_to_wait_is_told_when_to_try_again() {
    let host = one_at_a_time(2).await;
    let customer = host.customer().await;
    let mut sent = send(&customer, 20, 40);
    let (mut answered, mut turned_away) = (0, 0);
    while let Some(status) = sent.join_next().await {
        match status.expect("no panic") {
            200 => answered += 1,
            _ => turned_away += 1,
        }
    }
    assert!(
        answered >= 3 && turned_away > 0,
        "{answered}, {turned_away}"
    );
    // each is on record, and costs nothing if it was turned away
    let rows = customer.get("/usage/requests").await.expect(200);
    let rows = rows["requests"].as_array().expect("a list");
    assert_eq!(rows.len(), 20);
    let failed = rows.iter().filter(|row| row["status"] == "failed");
    for row in failed.clone() {
        assert_eq!(
            (&row["error_code"], &row["cost"]),
            (&json!("queue_full"), &json!(0.0))
        );
    }
    assert_eq!(failed.count(), turned_away);
}

#[tokio::test]
async fn a_key_with_many_requests_does_not_hold_up_anothers_one() {
    const MANY: usize = 40;
    let host = one_at_a_time(100).await;
    let (busy, other) = (host.customer().await, host.customer().await);
    // while the model is at work on this, the many get into the queue
    let mut first = busy.stream("/generate", ask(300, true)).await;
    first.next().await.expect("a piece");
    let mut many = send(&busy, MANY, 300);
    first.rest().await;
    many.join_next().await.expect("one").expect("no panic");
    other.post("/generate", ask(1, false)).await.expect(200);
    // it came last and was the next, or the one after
    let mut answered = 1;
    while many.try_join_next().is_some() {
        answered += 1;
    }
    assert!(
        answered <= MANY / 2,
        "{answered} of the {MANY} were answered before"
    );
    while let Some(status) = many.join_next().await {
        assert_eq!(status.expect("no panic"), 200);
    }
}
