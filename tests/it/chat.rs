//! `/v1/chat/completions`, through the adapters and back.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Act, Client, GPT2, Host, Upstream, component, eventually};

/// A server with GPT-2 and a model of this adapter, and what is behind it.
async fn with(plugin: &str, act: Act) -> (Host, Client, Upstream) {
    let upstream = Upstream::start(act).await;
    let (file, url) = (component(plugin), upstream.base());
    let header = match plugin {
        "anthropic" => "api_key_header = \"x-api-key\"\n",
        _ => "",
    };
    let config = format!(
        "{GPT2}[[models]]\nid = 2\nname = \"chatty\"\nplugin = \"{file}\"\napi_url = \"{url}\"\n\
         api_key = \"sk-upstream-secret\"\nmodel_name = \"upstream\"\n{header}"
    );
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    (host, customer, upstream)
}

fn hello() -> Value {
    json!({ "model": "chatty", "messages": [{ "role": "user", "content": "Hello" }] })
}

const OPENAI: &str = r#"{"id":"c","object":"chat.completion","created":1,"model":"upstream","choices":[{"index":0,
  "message":{"role":"assistant","content":"Hi.","reasoning_content":"A greeting."},"finish_reason":"stop"}],
  "usage":{"prompt_tokens":8,"completion_tokens":5,"total_tokens":13,"prompt_tokens_details":{"cached_tokens":4},
  "completion_tokens_details":{"reasoning_tokens":3}}}"#;

const OPENAI_CALL: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[
  {"id":"call_1","type":"function","function":{"name":"weather","arguments":"{\"city\":\"Oslo\"}"}}]},
  "finish_reason":"tool_calls"}],"usage":{"prompt_tokens":20,"completion_tokens":9,"total_tokens":29}}"#;

const OPENAI_STREAM: &[&str] = &[
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"Hi\"},\"finish_reason\":null}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\" th\u{e9}re\"},\"finish_reason\":null}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"id\":\"call_1\",\"function\":{\"name\":\"weather\",\"arguments\":\"{\\\"ci\"}}]}}]}\n\n",
    "data: {\"choices\":[{\"index\":0,\"delta\":{\"tool_calls\":[{\"index\":0,\"function\":{\"arguments\":\"ty\\\":1}\"}}]}}]}\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"tool_calls\"}]}\n\n",
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":8,\"completion_tokens\":5,\"total_tokens\":13}}\n\ndata: [DONE]\n\n",
];

const ANTHROPIC_STREAM: &[&str] = &[
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"role\":\"assistant\",\"usage\":{\"input_tokens\":6,\"cache_read_input_tokens\":2,\"output_tokens\":1}}}\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\nevent: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hi\"}}\n\n",
    "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\" there\"}}\n\nevent: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\n",
    "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\",\"stop_sequence\":null},\"usage\":{\"output_tokens\":5}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
];

#[tokio::test]
async fn a_chat_is_passed_on_and_answered_in_openais_shape() {
    let (_host, customer, upstream) = with("openai", Act::Json(OPENAI)).await;
    let mut ask = hello();
    ask["messages"] = json!([
        { "role": "developer", "content": "Be brief." },
        { "role": "user", "name": "ann", "content": [
            { "type": "text", "text": "Who is it?" },
            { "type": "image_url", "image_url": { "url": "data:image/png;base64,AAEC" } },
            { "type": "image_url", "image_url": { "url": "https://pictures.example/1.png", "detail": "low" } },
        ] },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "call_0", "type": "function", "function": { "name": "look", "arguments": "{}" } },
        ] },
        { "role": "tool", "tool_call_id": "call_0", "content": "nobody" },
    ]);
    ask["max_completion_tokens"] = json!(50);
    ask["response_format"] = json!({ "type": "json_object" });
    ask["tools"] = json!([{ "type": "function", "function": { "name": "look", "parameters": { "type": "object" } } }]);
    ask["tool_choice"] = json!("auto");
    let answer = customer
        .post("/v1/chat/completions", ask.clone())
        .await
        .expect(200);

    let seen = &upstream.seen()[0];
    assert_eq!(seen.headers["authorization"], "Bearer sk-upstream-secret");
    for field in ["response_format", "tool_choice"] {
        assert_eq!(seen.body[field], ask[field], "{field}");
    }
    assert_eq!(
        (&seen.body["max_tokens"], &seen.body["model"]),
        (&json!(50), &json!("upstream"))
    );
    let messages = &seen.body["messages"];
    assert_eq!(
        messages[0],
        json!({ "role": "system", "content": "Be brief." })
    );
    assert_eq!(messages[1]["name"], "ann");
    assert_eq!(messages[1]["content"], ask["messages"][1]["content"]);
    assert_eq!(messages[2]["tool_calls"], ask["messages"][2]["tool_calls"]);
    assert_eq!(messages[3], ask["messages"][3]);

    assert!(
        answer["id"]
            .as_str()
            .is_some_and(|id| id.starts_with("chatcmpl-")),
        "{answer}"
    );
    assert_eq!(
        (&answer["object"], &answer["model"]),
        (&json!("chat.completion"), &json!("chatty"))
    );
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "stop");
    assert_eq!(
        choice["message"],
        json!({
            "role": "assistant", "content": "Hi.", "refusal": null, "reasoning_content": "A greeting.",
        })
    );
    assert_eq!(
        answer["usage"],
        json!({
            "prompt_tokens": 8, "completion_tokens": 5, "total_tokens": 13,
            "prompt_tokens_details": { "cached_tokens": 4 },
            "completion_tokens_details": { "reasoning_tokens": 3 },
        })
    );
}

#[tokio::test]
async fn a_model_can_call_tools() {
    let (_host, customer, _upstream) = with("openai", Act::Json(OPENAI_CALL)).await;
    let answer = customer
        .post("/v1/chat/completions", hello())
        .await
        .expect(200);
    let choice = &answer["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(
        (&call["id"], &call["type"]),
        (&json!("call_1"), &json!("function"))
    );
    assert_eq!(
        call["function"],
        json!({ "name": "weather", "arguments": "{\"city\":\"Oslo\"}" })
    );
}

/// Streams a chat; the upstream goes on only when an event has come.
async fn streamed(customer: &Client, upstream: &Upstream, pieces: usize) -> Vec<Value> {
    let mut ask = hello();
    ask["stream"] = json!(true);
    ask["stream_options"] = json!({ "include_usage": true });
    let mut stream = customer.stream("/v1/chat/completions", ask).await;
    let mut events = Vec::new();
    for _ in 1..pieces {
        // what the upstream has sent arrives although it holds back the rest
        while text(&events).len() < 2 {
            events.push(stream.next().await.expect("an event"));
        }
        upstream.release(1);
    }
    events.extend(stream.rest().await);
    events
}

fn text(events: &[Value]) -> String {
    let deltas = events
        .iter()
        .map(|event| &event["choices"][0]["delta"]["content"]);
    deltas.filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn a_stream_arrives_chunk_by_chunk() {
    let (_host, customer, upstream) = with("openai", Act::Stream(OPENAI_STREAM)).await;
    let events = streamed(&customer, &upstream, OPENAI_STREAM.len()).await;
    assert_eq!(upstream.seen()[0].body["stream"], true);
    assert_eq!(text(&events), "Hi th\u{e9}re");
    assert_eq!(
        events[0]["choices"][0]["delta"],
        json!({ "role": "assistant", "content": "" })
    );
    let calls: Vec<_> = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["tool_calls"].as_array())
        .collect();
    assert_eq!(
        calls,
        [&vec![json!({
            "index": 0, "id": "call_1", "type": "function",
            "function": { "name": "weather", "arguments": "{\"city\":1}" },
        })]]
    );
    let [.., last, usage, done] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(last["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(
        (&usage["usage"]["total_tokens"], &usage["choices"]),
        (&json!(13), &json!([]))
    );
    assert_eq!(done, "[DONE]");
    assert!(
        events[..events.len() - 1]
            .iter()
            .all(|event| event["object"] == "chat.completion.chunk")
    );
}

#[tokio::test]
async fn anthropics_messages_are_a_chat_like_any_other() {
    let (_host, customer, upstream) = with("anthropic", Act::Stream(ANTHROPIC_STREAM)).await;
    let events = streamed(&customer, &upstream, ANTHROPIC_STREAM.len()).await;
    let seen = &upstream.seen()[0];
    assert_eq!(seen.headers["x-api-key"], "sk-upstream-secret");
    assert!(!seen.headers.contains_key("authorization"));
    assert_eq!(text(&events), "Hi there");
    let [.., last, usage, done] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(last["choices"][0]["finish_reason"], "stop");
    assert_eq!(usage["usage"]["prompt_tokens"], 8);
    assert_eq!(usage["usage"]["completion_tokens"], 5);
    assert_eq!(done, "[DONE]");
}

#[tokio::test]
async fn a_text_is_a_message_where_the_api_has_only_chats() {
    let upstream = Upstream::start(Act::Json(OPENAI)).await;
    let config = format!(
        "[[models]]\nid = 2\nname = \"chatty\"\nplugin = \"{}\"\napi_url = \"{}\"\n\
         model_name = \"upstream\"\nsettings = {{ text_as_chat = true }}\n",
        component("openai"),
        upstream.base()
    );
    let host = Host::builder().config(config).start().await.ready().await;
    let ask = json!({ "text": "Hello", "model_id": 2 });
    let said = host.customer().await.post("/generate", ask).await;
    assert_eq!(said.expect(200)["response"], "Hi.");
    let messages = &upstream.seen()[0].body["messages"];
    assert_eq!(*messages, json!([{ "role": "user", "content": "Hello" }]));
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_upstream() {
    let (_host, customer, upstream) = with("openai", Act::Stream(OPENAI_STREAM)).await;
    let mut ask = hello();
    ask["stream"] = json!(true);
    let mut stream = customer.stream("/v1/chat/completions", ask).await;
    while text(&[stream.next().await.expect("an event")]).is_empty() {}
    assert_eq!(upstream.open(), 1);
    drop(stream);
    let left = Instant::now();
    eventually("the upstream is left too", async || upstream.open() == 0).await;
    // 100 ms on a quiet machine; this one runs other tests
    assert!(
        left.elapsed() < Duration::from_secs(5),
        "{:?}",
        left.elapsed()
    );
    println!(
        "the upstream's connection was closed after {:?}",
        left.elapsed()
    );
}

#[tokio::test]
async fn an_upstream_that_breaks_off_is_an_error_and_costs_nothing() {
    const BROKEN: &[&str] = &[OPENAI_STREAM[0]];
    let (_host, customer, _upstream) = with("openai", Act::Stream(BROKEN)).await;
    let mut ask = hello();
    ask["stream"] = json!(true);
    let events = customer
        .stream("/v1/chat/completions", ask)
        .await
        .rest()
        .await;
    assert_eq!(text(&events), "Hi");
    assert_eq!(
        events.last().expect("events")["error"]["type"],
        "server_error",
        "{events:?}"
    );
    let rows = customer.get("/usage/requests").await.expect(200);
    assert_eq!(
        (&rows["requests"][0]["status"], &rows["requests"][0]["cost"]),
        (&json!("failed"), &json!(0.0))
    );
}

#[tokio::test]
async fn chats_that_make_no_sense_are_refused_by_field() {
    let (_host, customer, upstream) = with("openai", Act::Json(OPENAI)).await;
    let user = |content: Value| json!([{ "role": "user", "content": content }]);
    for (field, value, param, code) in [
        ("messages", json!([]), "messages", "invalid_request"),
        (
            "messages",
            json!([{ "role": "robot", "content": "x" }]),
            "messages[0].role",
            "invalid_request",
        ),
        (
            "messages",
            json!([{ "role": "user" }]),
            "messages[0].content",
            "invalid_request",
        ),
        (
            "messages",
            user(json!(7)),
            "messages[0].content",
            "invalid_request",
        ),
        (
            "messages",
            user(json!([{ "type": "input_audio" }])),
            "messages[0].content[0].type",
            "unsupported",
        ),
        (
            "messages",
            user(json!([{ "type": "text" }])),
            "messages[0].content[0]",
            "invalid_request",
        ),
        (
            "messages",
            user(json!([{ "type": "image_url", "image_url": { "url": "file:///etc/passwd" } }])),
            "messages[0].content[0].image_url.url",
            "invalid_request",
        ),
        (
            "messages",
            user(
                json!([{ "type": "image_url", "image_url": { "url": "data:image/png;base64,?" } }]),
            ),
            "messages[0].content[0].image_url.url",
            "invalid_request",
        ),
        (
            "messages",
            json!([{ "role": "tool", "content": "x" }]),
            "messages[0].tool_call_id",
            "invalid_request",
        ),
        (
            "tools",
            json!([{ "type": "web_search" }]),
            "tools[0].type",
            "unsupported",
        ),
        (
            "tools",
            json!([{ "type": "function", "function": { "name": "" } }]),
            "tools[0].function.name",
            "invalid_request",
        ),
        ("n", json!(2), "n", "unsupported"),
        ("logprobs", json!(true), "logprobs", "unsupported"),
        ("functions", json!([]), "functions", "unsupported"),
        (
            "modalities",
            json!(["text", "audio"]),
            "modalities",
            "unsupported",
        ),
        ("max_tokens", json!(0), "max_tokens", "invalid_request"),
        (
            "max_completion_tokens",
            json!(0),
            "max_completion_tokens",
            "invalid_request",
        ),
        ("temperature", json!(3), "temperature", "invalid_request"),
        (
            "stream_options",
            json!({}),
            "stream_options",
            "invalid_request",
        ),
    ] {
        let mut ask = hello();
        ask[field] = value.clone();
        let reply = customer.post("/v1/chat/completions", ask).await;
        assert_eq!(
            reply.body["error"]["param"], param,
            "{field} = {value}: {}",
            reply.body
        );
        assert_eq!(reply.expect_error(422), code);
    }
    assert_eq!(upstream.seen().len(), 0);
    // and a model that only continues text says so itself
    let mut ask = hello();
    ask["model"] = json!("gpt2");
    let reply = customer.post("/v1/chat/completions", ask).await;
    assert_eq!(reply.body["error"]["param"], "messages");
    assert_eq!(reply.expect_error(501), "unsupported");
}
