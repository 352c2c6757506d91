//! What a request counts as: where nobody counts its tokens, and where a plugin does.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::adapters;
use crate::component::with_misbehave;
use crate::harness::{Act, Client, Events, Host, Purse, Upstream, eventually};

/// A piece, and no end.
const BEGUN: &[&str] = &[
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"It is\"}}]}\n\n",
    "data: [DONE]\n\n",
];
/// A piece, with a count that begins with the last one; and no end.
const NOT_COUNTED_YET: &[&str] = &[
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"It is so, as I said\"}}],\
     \"usage\":{\"prompt_tokens\":9,\"completion_tokens\":0,\"total_tokens\":9}}\n\n",
    "data: [DONE]\n\n",
];
/// A piece, and then the API's own upstream takes too long.
const GIVEN_UP: &[&str] = &[
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"It is\"}}]}\n\n\
     data: {\"error\":{\"code\":504,\"message\":\"Provider timed out\"}}\n\n",
];
const OF_MANY: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi."},
  "finish_reason":"stop"}],"usage":{"prompt_tokens":60000,"completion_tokens":5,"total_tokens":60005}}"#;

/// A server with the adapter `openai`, a customer, and the API behind it.
async fn chatty(act: Act) -> (Host, Client, Upstream) {
    adapters::with("openai", act, "[models.limits]\ntimeout_ms = 5000").await
}

/// A chat about a picture of 150 KB.
fn about_a_picture() -> Value {
    let picture = STANDARD.encode(vec![7; 150_000]);
    let content = json!([
        { "type": "text", "text": "What is it?" },
        { "type": "image_url", "image_url": { "url": format!("data:image/png;base64,{picture}") } },
    ]);
    json!({ "model": "it", "max_tokens": 10, "messages": [{ "role": "user", "content": content }] })
}

#[tokio::test]
async fn a_picture_that_nobody_counts_is_taken_for_a_thousand_tokens() {
    let (_host, customer, _upstream) = chatty(Act::Stream(BEGUN)).await;
    let mut ask = about_a_picture();
    ask["stream"] = json!(true);
    let mut events = customer.stream("/v1/chat/completions", ask).await;
    events.next().await.expect("a piece");
    drop(events);
    let rows = async || customer.get("/usage/requests").await.expect(200)["requests"].clone();
    eventually("it is on record", async || {
        rows().await[0]["status"] == "cancelled"
    })
    .await;
    let tokens = rows().await[0]["prompt_tokens"].as_i64();
    assert!(
        tokens.is_some_and(|n| (1000..1100).contains(&n)),
        "{tokens:?}"
    );
}

#[tokio::test]
async fn a_failure_takes_no_more_of_a_limit_than_was_reserved() {
    let (host, _, _upstream) = chatty(Act::Say(500, vec![], "{}")).await;
    let customer = host.customer_with(json!({ "token_limit": 10_000 })).await;
    for _ in 0..3 {
        let reply = customer
            .post("/v1/chat/completions", about_a_picture())
            .await;
        assert_eq!(reply.expect_error(502), "upstream_failed");
    }
}

#[tokio::test]
async fn what_a_template_puts_around_each_message_is_charged() {
    let (host, customer, _upstream) = chatty(Act::Json(OF_MANY)).await;
    let messages = vec![json!({ "role": "user", "content": "a" }); 10_000];
    let ask = json!({ "model": "it", "messages": messages });
    let answer = customer.post("/v1/chat/completions", ask).await.expect(200);
    assert_eq!(answer["usage"]["prompt_tokens"], 60_000);
    assert!(!host.log().contains("counts more"), "{}", host.log());
    // but what no prompt of this size can be is not
    let ask = json!({ "model": "it", "messages": [{ "role": "user", "content": "a" }] });
    let answer = customer.post("/v1/chat/completions", ask).await.expect(200);
    let charged = answer["usage"]["prompt_tokens"].as_i64();
    assert!(charged.is_some_and(|n| n < 2_000), "{answer}");
    assert!(host.log().contains("counts more"), "{}", host.log());
}

#[tokio::test]
async fn a_plugin_that_gives_up_has_failed() {
    let (_host, customer, _upstream) = with_misbehave(Act::Answer("yes"), "").await;
    let ask = json!({ "model_id": 2, "text": "give up" });
    let reply = customer.post("/generate", ask).await;
    assert_eq!(reply.expect_error(502), "upstream_failed");
    let row = customer.get("/usage/requests").await.expect(200)["requests"][0].clone();
    assert_eq!(
        (&row["status"], &row["cost"]),
        (&json!("failed"), &json!(0.0)),
        "{row}"
    );
}

#[tokio::test]
async fn what_was_streamed_until_its_time_was_over_is_charged() {
    let (_host, customer, _upstream) = chatty(Act::Stream(BEGUN)).await;
    let messages = json!([{ "role": "user", "content": "What is it?" }]);
    let mut ask = json!({ "model": "it", "stream": true, "messages": messages });
    let events = customer.stream("/v1/chat/completions", ask.clone()).await;
    let events = events.rest().await;
    let last = events.last().expect("an event");
    assert_eq!(last["error"]["code"], "timeout", "{events:?}");
    // who has nothing of it, or left, pays nothing
    let request = customer.request(Method::POST, "/v1/chat/completions");
    let request = request.header("idempotency-key", "once").json(&ask);
    let mut events = Events::of(request.send().await.expect("an answer"));
    events.next().await.expect("a piece");
    drop(events);
    ask["stream"] = json!(false);
    let reply = customer.post("/v1/chat/completions", ask).await;
    assert_eq!(reply.expect_error(504), "timeout");
    let rows = async || customer.get("/usage/requests").await.expect(200)["requests"].clone();
    eventually("all are on record", async || {
        rows().await.as_array().map(Vec::len) == Some(3)
    })
    .await;
    let rows = rows().await;
    let ended = |row: &Value| (row["status"].clone(), row["error_code"].clone());
    assert_eq!(ended(&rows[0]), (json!("cancelled"), json!("timeout")));
    assert!(rows[0]["cost"].as_f64() > Some(0.0), "{rows}");
    for row in [&rows[1], &rows[2]] {
        assert_eq!(ended(row), (json!("failed"), json!("timeout")));
        assert_eq!(row["cost"], 0.0);
    }
}

/// The customer's latest request on record.
async fn last_row(customer: &Client) -> Value {
    customer.get("/usage/requests").await.expect(200)["requests"][0].clone()
}

/// A stream whose end is that something took too long, and which costs nothing.
async fn times_out_for_nothing(customer: &Client, events: Events) {
    let events = events.rest().await;
    let last = events.last().expect("an event");
    assert_eq!(last["error"]["code"], "timeout", "{events:?}");
    let row = last_row(customer).await;
    assert_eq!(
        (&row["status"], &row["cost"]),
        (&json!("failed"), &json!(0.0))
    );
}

fn streamed_chat() -> Value {
    let messages = json!([{ "role": "user", "content": "What is it?" }]);
    json!({ "model": "it", "stream": true, "messages": messages })
}

#[tokio::test]
async fn a_stream_that_may_be_asked_for_again_is_not_charged_when_its_time_is_over() {
    let more = "[models.limits]\ntimeout_ms = 3000";
    let (_host, customer, _upstream) = adapters::with("openai", Act::Stream(BEGUN), more).await;
    let request = customer.request(Method::POST, "/v1/chat/completions");
    let request = request
        .header("idempotency-key", "once")
        .json(&streamed_chat());
    let events = Events::of(request.send().await.expect("an answer"));
    times_out_for_nothing(&customer, events).await;
}

#[tokio::test]
async fn a_stream_that_the_upstream_gave_up_is_not_charged() {
    let (_host, customer, _upstream) = chatty(Act::Stream(GIVEN_UP)).await;
    let events = customer.stream("/v1/chat/completions", streamed_chat());
    times_out_for_nothing(&customer, events.await).await;
}

#[tokio::test]
async fn a_stream_that_is_left_is_charged_though_its_api_counts_only_at_the_end() {
    let (_host, customer, _upstream) = chatty(Act::Stream(NOT_COUNTED_YET)).await;
    let events = customer.stream("/v1/chat/completions", streamed_chat());
    let mut events = events.await;
    events.next().await.expect("a piece");
    drop(events);
    eventually("it is on record", async || {
        last_row(&customer).await["status"] == "cancelled"
    })
    .await;
    let row = last_row(&customer).await;
    let tokens = (&row["prompt_tokens"], &row["completion_tokens"]);
    assert_eq!(tokens, (&json!(9), &json!(5)), "{row}");
    assert!(row["cost"].as_f64() > Some(0.0), "{row}");
}

/// A piece of a streamed text, as counted until then.
fn piece(text: &str, usage: &Value) -> &'static str {
    let choice = json!({ "index": 0, "text": text, "finish_reason": null });
    let event = json!({ "choices": [choice], "usage": usage });
    format!("data: {event}\n\n").leak()
}

#[tokio::test]
async fn a_stream_ends_where_what_is_held_for_it_ends() {
    /// Nano-dollars of a token at the default price.
    const TOKEN: i64 = 10_000;
    let counted = |completion: u32| {
        json!({ "prompt_tokens": 2, "completion_tokens": completion,
                "total_tokens": 2 + completion })
    };
    let by_count = [
        piece("It is", &counted(2)),
        piece(" more than that", &counted(6)),
        piece(" and more", &counted(8)),
    ];
    // no five tokens are as long
    let by_length = [
        piece(&"-".repeat(5 * 128 + 1), &Value::Null),
        piece(" and more", &Value::Null),
    ];
    for pieces in [by_count.to_vec(), by_length.to_vec()] {
        let more = pieces.len() - 2;
        let (host, _, upstream) = chatty(Act::Stream(pieces.leak())).await;
        upstream.release(more);
        // of the prompt five bytes, and what a template may add
        let paid = (5 + 1024 + 5) * TOKEN;
        let purse = Purse::prepaid(&host, paid).await;
        let ask = json!({ "model": "it", "prompt": "Hello", "stream": true });
        let events = purse.customer.stream("/v1/completions", ask).await;
        let events = events.rest().await;
        let [.., last, done] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(done, "[DONE]");
        assert_eq!(last["choices"][0]["finish_reason"], "length", "{last}");
        assert_eq!(last["limited_by"], "credit", "{last}");
        assert_eq!(upstream.seen()[0].body["max_tokens"], 5);
        eventually("the API is told", async || upstream.open() == 0).await;
        let row = last_row(&purse.customer).await;
        assert_eq!(
            (&row["status"], &row["completion_tokens"]),
            (&json!("ok"), &json!(5))
        );
        let tokens = row["prompt_tokens"].as_i64().expect("a number") + 5;
        assert_eq!(purse.balance().await, (paid - tokens * TOKEN, 0));
        host.run(&["db", "audit"]);
    }
}

#[tokio::test]
async fn reasoning_that_is_counted_beside_an_answer_cuts_nothing_of_it() {
    let usage = json!({ "prompt_tokens": 2, "completion_tokens": 50, "total_tokens": 452,
                        "completion_tokens_details": { "reasoning_tokens": 400 } });
    let chunk = |delta: Value, reason: Value| {
        let choice = json!({ "index": 0, "delta": delta, "finish_reason": reason });
        let event = json!({ "choices": [choice], "usage": usage });
        &*format!("data: {event}\n\n").leak()
    };
    let call = json!({ "index": 0, "id": "call_1", "type": "function",
                       "function": { "name": "look", "arguments": "{}" } });
    let pieces = [
        chunk(json!({ "content": "Let me see." }), Value::Null),
        chunk(json!({ "tool_calls": [call] }), json!("tool_calls")),
        "data: [DONE]\n\n",
    ];
    let (host, _, upstream) = chatty(Act::Stream(pieces.to_vec().leak())).await;
    upstream.release(2);
    let purse = Purse::prepaid(&host, 1_000_000_000).await;
    let mut ask = streamed_chat();
    ask["max_tokens"] = json!(256);
    let events = purse.customer.stream("/v1/chat/completions", ask).await;
    let events = events.rest().await;
    let called =
        |event: &Value| event["choices"][0]["delta"]["tool_calls"][0]["function"]["name"] == "look";
    assert!(events.iter().any(called), "{events:?}");
    let ended = |event: &Value| event["choices"][0]["finish_reason"] == "tool_calls";
    assert!(events.iter().any(ended), "{events:?}");
}

#[tokio::test]
async fn reasoning_that_comes_back_takes_no_room_of_a_prompt() {
    let (_host, customer, upstream) = chatty(Act::Answer("yes")).await;
    let ask = json!({ "model": "it", "messages": [
        { "role": "user", "content": "Is it?" },
        { "role": "assistant", "content": "It is.", "reasoning_content": "a".repeat(300_000) },
        { "role": "user", "content": "Why?" },
    ] });
    customer.post("/v1/chat/completions", ask).await.expect(200);
    assert_eq!(
        upstream.seen()[0].body["messages"][1].get("reasoning_content"),
        None
    );
}
