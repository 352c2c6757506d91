//! What chats bring along of earlier answers, as clients keep and send them.

use serde_json::{Value, json};

use crate::adapters::with;
use crate::harness::Act;

const CHATS: &str = "/v1/chat/completions";

/// A chat that goes on after this message.
fn after(message: Value) -> Value {
    let (ask, again) = (
        json!({ "role": "user", "content": "How?" }),
        json!({ "role": "user", "content": "And why?" }),
    );
    json!({ "model": "it", "messages": [ask, message, again] })
}

#[tokio::test]
async fn a_refusal_is_what_the_model_said() {
    let (_host, customer, upstream) = with("openai", Act::Answer("So."), "").await;
    for (message, content) in [
        (json!({ "content": null, "refusal": "No." }), json!("No.")),
        (json!({ "content": "", "refusal": "No." }), json!("No.")),
        (json!({ "refusal": "No." }), json!("No.")),
        (
            json!({ "content": [{ "type": "refusal", "refusal": "No." }] }),
            json!("No."),
        ),
        (
            json!({ "content": "Well.", "refusal": "No." }),
            json!([{ "type": "text", "text": "Well." }, { "type": "text", "text": "No." }]),
        ),
        (json!({ "content": "Yes.", "refusal": null }), json!("Yes.")),
        (json!({ "content": "Yes.", "refusal": "" }), json!("Yes.")),
    ] {
        let mut said = message.clone();
        said["role"] = json!("assistant");
        customer.post(CHATS, after(said)).await.expect(200);
        let seen = upstream.seen();
        let seen = &seen.last().expect("asked").body["messages"][1];
        assert_eq!(seen["content"], content, "{message}");
    }
    // only models refuse
    for (message, param) in [
        (
            json!({ "role": "user", "content": [{ "type": "refusal", "refusal": "No." }] }),
            "messages[1].content[0].type",
        ),
        (
            json!({ "role": "user", "content": null, "refusal": "No." }),
            "messages[1].content",
        ),
        (
            json!({ "role": "assistant", "content": null, "refusal": "" }),
            "messages[1].content",
        ),
    ] {
        let reply = customer.post(CHATS, after(message)).await;
        assert_eq!(reply.body["error"]["param"], param, "{}", reply.body);
        reply.expect_error(422);
    }
}

#[tokio::test]
async fn what_would_be_missing_from_the_chat_is_refused() {
    let (_host, customer, upstream) = with("openai", Act::Answer("So."), "").await;
    for (field, value) in [
        (
            "function_call",
            json!({ "name": "look", "arguments": "{}" }),
        ),
        ("audio", json!({ "id": "audio_1" })),
    ] {
        let mut message = json!({ "role": "assistant", "content": "So." });
        message[field] = value;
        for content in [json!("So."), Value::Null] {
            message["content"] = content;
            let reply = customer.post(CHATS, after(message.clone())).await;
            let param = format!("messages[1].{field}");
            assert_eq!(reply.body["error"]["param"], param, "{}", reply.body);
            assert_eq!(reply.expect_error(422), "unsupported");
        }
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn all_that_an_answer_had_may_come_back() {
    let (_host, customer, upstream) = with("openai", Act::Answer("So."), "").await;
    // as OpenAI's SDKs dump one, with what other servers and clients add
    let message = json!({
        "role": "assistant", "content": "So.", "refusal": null, "annotations": [], "audio": null,
        "function_call": null, "tool_calls": null, "reasoning_content": "Hm.",
        "reasoning_details": [{ "type": "reasoning.text", "text": "Hm." }], "id": "msg_1",
    });
    customer.post(CHATS, after(message)).await.expect(200);
    let seen = &upstream.seen()[0].body["messages"][1];
    assert_eq!(*seen, json!({ "role": "assistant", "content": "So." }));
    // and one of ours as it is
    let answer = customer.post(CHATS, after(seen.clone())).await.expect(200);
    let message = answer["choices"][0]["message"].clone();
    customer.post(CHATS, after(message)).await.expect(200);
}
