//! `Idempotency-Key`: a request that is sent twice is charged once.

use reqwest::Method;
use serde_json::{Value, json};

use crate::adapters;
use crate::harness::{Act, Client, GPT2, Host, Reply, Upstream, eventually, lawgent};

/// The server with both models; each request to the second is seen upstream.
async fn both(act: Act) -> (Host, Client, Upstream) {
    let upstream = Upstream::start(act).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    (host, customer, upstream)
}

fn request(customer: &Client, path: &str, key: &str, body: &Value) -> reqwest::RequestBuilder {
    let request = customer.request(Method::POST, path).json(body);
    request.header("idempotency-key", key)
}

async fn send(customer: &Client, path: &str, key: &str, body: &Value) -> Reply {
    let sent = request(customer, path, key, body).send().await;
    Reply::of(sent.expect("an answer")).await
}

async fn rows(customer: &Client) -> Vec<Value> {
    let rows = customer.get("/usage/requests").await.expect(200);
    rows["requests"].as_array().expect("a list").clone()
}

fn ask() -> Value {
    json!({ "text": "Once upon a time", "model_id": 2, "max_new_tokens": 5 })
}

#[tokio::test]
async fn a_repeat_gets_the_same_answer_and_is_not_charged() {
    let (host, customer, upstream) = both(Act::Answer(" and so it was.")).await;
    let completion = json!({ "model": "lawgent-thinking", "prompt": "Once", "max_tokens": 5 });
    for (path, key, body) in [
        ("/generate", "one", ask()),
        ("/v1/completions", "two", completion),
    ] {
        let first = send(&customer, path, key, &body).await;
        assert_eq!(first.header("idempotent-replayed"), "");
        let before = (rows(&customer).await, upstream.seen().len());
        let again = send(&customer, path, key, &body).await;
        assert_eq!(again.header("idempotent-replayed"), "true");
        let (mut first, mut again) = (first.expect(200), again.expect(200));
        for own in ["request_id", "id", "created"] {
            for answer in [&mut first, &mut again] {
                answer.as_object_mut().expect("an object").remove(own);
            }
        }
        assert_eq!(first, again);
        assert_eq!(before, (rows(&customer).await, upstream.seen().len()));
    }
    // even when the server was killed in between, and for that customer alone
    let host = host.restart().await.ready().await;
    let again = send(&customer.at(host.url()), "/generate", "one", &ask()).await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    let other = send(&host.customer().await, "/generate", "one", &ask()).await;
    assert_eq!(other.header("idempotent-replayed"), "");
    other.expect(200);
}

#[tokio::test]
async fn a_stream_is_repeated_as_a_stream() {
    let (_host, customer, _upstream) = both(Act::Stall).await;
    let body = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 6, "stream": true });
    let mut texts = Vec::new();
    for is_replayed in [false, true] {
        let sent = request(&customer, "/generate", "s", &body).send().await;
        let sent = sent.expect("an answer");
        assert_eq!(
            sent.headers().contains_key("idempotent-replayed"),
            is_replayed
        );
        let stream = sent.text().await.expect("a body");
        assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
        let events = stream
            .split("\n\n")
            .filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok());
        let text: String = events
            .filter_map(|event| event["text"].as_str().map(str::to_owned))
            .collect();
        texts.push(text);
    }
    assert!(!texts[0].is_empty());
    assert_eq!(texts[0], texts[1]);
    assert_eq!(rows(&customer).await.len(), 1);
}

const CHAT: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"So.","reasoning_content":"Hm.",
  "tool_calls":[{"id":"call_1","type":"function","function":{"name":"weather","arguments":"{}"}}]},
  "finish_reason":"tool_calls"}],"usage":{"prompt_tokens":8,"completion_tokens":5,"total_tokens":13}}"#;
const CHAT_STREAM: &[&str] = &[concat!(
    r#"data: {"choices":[{"index":0,"delta":{"reasoning_content":"Hm."}}]}"#,
    "\n\n",
    r#"data: {"choices":[{"index":0,"delta":{"content":"So."}}]}"#,
    "\n\n",
    r#"data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"call_1","function":{"name":"weather","arguments":"{}"}}]}}]}"#,
    "\n\n",
    r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
    "\n\ndata: [DONE]\n\n",
)];

#[tokio::test]
async fn a_chat_is_repeated_with_its_reasoning_and_its_calls() {
    let (_host, customer, upstream) = adapters::with("openai", Act::Json(CHAT), "").await;
    for is_streamed in [false, true] {
        if is_streamed {
            upstream.act(Act::Stream(CHAT_STREAM));
        }
        let messages = json!([{ "role": "user", "content": "Hello" }]);
        let ask = json!({ "model": "it", "messages": messages, "stream": is_streamed });
        let key = if is_streamed { "streamed" } else { "whole" };
        let mut answers = Vec::new();
        for is_replayed in [false, true] {
            let sent = request(&customer, "/v1/chat/completions", key, &ask).send();
            let sent = sent.await.expect("an answer");
            assert_eq!(
                sent.headers().contains_key("idempotent-replayed"),
                is_replayed
            );
            let text = sent.text().await.expect("a body");
            let parts = text
                .split("\n\n")
                .map(|part| part.trim_start_matches("data: "));
            let mut parts: Vec<Value> = parts
                .filter_map(|part| serde_json::from_str(part).ok())
                .collect();
            for own in ["id", "created"] {
                for part in &mut parts {
                    part.as_object_mut().expect("an object").remove(own);
                }
            }
            answers.push(parts);
        }
        let first = json!(answers[0]).to_string();
        for part in ["\"Hm.\"", "\"So.\"", "\"weather\"", "\"tool_calls\""] {
            assert!(first.contains(part), "{part}: {first}");
        }
        assert_eq!(answers[0], answers[1]);
    }
    assert_eq!((rows(&customer).await.len(), upstream.seen().len()), (2, 2));
}

#[tokio::test]
async fn a_repeat_takes_nothing_of_the_limits() {
    let (host, _, _upstream) = both(Act::Answer("yes")).await;
    let customer = host.customer_with(json!({ "rate_limit": 1 })).await;
    send(&customer, "/generate", "k", &ask()).await.expect(200);
    for _ in 0..2 {
        let again = send(&customer, "/generate", "k", &ask()).await;
        assert_eq!(again.header("idempotent-replayed"), "true");
        assert_eq!(again.header("ratelimit"), "");
        again.expect(200);
    }
    let other = send(&customer, "/generate", "other", &ask()).await;
    assert_eq!(other.expect_error(429), "rate_limit_exceeded");
}

#[tokio::test]
async fn a_key_is_for_one_request() {
    let (_host, customer, upstream) = both(Act::Answer("yes")).await;
    send(&customer, "/generate", "k", &ask()).await.expect(200);
    let mut other = ask();
    other["max_new_tokens"] = json!(6);
    let reply = send(&customer, "/generate", "k", &other).await;
    assert_eq!(reply.expect_error(422), "idempotency_key_reused");
    let completion = json!({ "model": "lawgent-thinking", "prompt": "Once" });
    let reply = send(&customer, "/v1/completions", "k", &completion).await;
    assert_eq!(reply.expect_error(422), "idempotency_key_reused");
    let reply = send(&customer, "/generate", &"k".repeat(256), &ask()).await;
    assert_eq!(reply.body["error"]["param"], "Idempotency-Key");
    assert_eq!(reply.expect_error(422), "invalid_request");
    assert_eq!((rows(&customer).await.len(), upstream.seen().len()), (1, 1));
}

#[tokio::test]
async fn a_repeat_waits_for_its_turn_even_if_the_first_client_left() {
    let (_host, customer, upstream) = both(Act::Hold("at last")).await;
    let body = ask();
    let first = request(&customer, "/generate", "k", &body);
    let first = tokio::spawn(first.send());
    eventually("the upstream has it", async || upstream.open() == 1).await;
    let reply = send(&customer, "/generate", "k", &body).await;
    assert_eq!(reply.header("retry-after"), "1");
    assert_eq!(reply.expect_error(409), "idempotency_conflict");

    let mut other = ask();
    other["max_new_tokens"] = json!(6);
    let reply = send(&customer, "/generate", "k", &other).await;
    assert_eq!(reply.expect_error(422), "idempotency_key_reused");

    first.abort();
    first.await.expect_err("it was aborted");
    upstream.release(1);
    eventually("the answer is kept", async || {
        send(&customer, "/generate", "k", &body).await.status == 200
    })
    .await;
    let again = send(&customer, "/generate", "k", &body).await.expect(200);
    assert_eq!(again["response"], "at last");
    let rows = rows(&customer).await;
    assert_eq!((rows.len(), &rows[0]["status"]), (1, &json!("ok")));
    assert_eq!(upstream.seen().len(), 1);
}

#[tokio::test]
async fn what_failed_may_be_tried_again() {
    let (_host, customer, upstream) = both(Act::Say(500, vec![], "{}")).await;
    let reply = send(&customer, "/generate", "k", &ask()).await;
    assert_eq!(reply.expect_error(502), "upstream_failed");
    upstream.act(Act::Answer("yes"));
    let reply = send(&customer, "/generate", "k", &ask()).await;
    assert_eq!(reply.expect(200)["response"], "yes");
    assert_eq!(rows(&customer).await.len(), 2);
}

#[tokio::test]
async fn of_many_at_once_one_is_charged() {
    let (_host, customer, upstream) = both(Act::Answer("yes")).await;
    let body = ask();
    let all = (0..20).map(|_| {
        let (customer, body) = (customer.clone(), body.clone());
        tokio::spawn(async move { send(&customer, "/generate", "k", &body).await })
    });
    let mut statuses = Vec::new();
    for one in all.collect::<Vec<_>>() {
        statuses.push(one.await.expect("no panic").status.as_u16());
    }
    assert!(statuses.contains(&200));
    assert!(
        statuses.iter().all(|status| [200, 409].contains(status)),
        "{statuses:?}"
    );
    assert_eq!((rows(&customer).await.len(), upstream.seen().len()), (1, 1));
}

#[tokio::test]
async fn answers_are_deleted_after_a_day_whether_or_not_more_come() {
    let (host, customer, _upstream) = both(Act::Answer("yes")).await;
    for key in ["old", "new"] {
        send(&customer, "/generate", key, &ask()).await.expect(200);
    }
    let age = "UPDATE answers SET created_at = created_at - 86400000 WHERE idempotency_key = 'old'";
    host.database().execute(age).await.expect("aged");

    let host = host.restart().await.ready().await;
    let (old, all) = (
        "SELECT count(*) FROM answers WHERE idempotency_key = 'old'",
        "SELECT count(*) FROM answers",
    );
    eventually("the old one is gone", async || {
        host.database().number(old).await == 0
    })
    .await;
    assert_eq!(host.database().number(all).await, 1);
}
