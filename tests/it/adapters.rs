//! The adapters, where APIs of one family differ.

use serde_json::{Value, json};

use crate::component::ask;
use crate::harness::{Act, Client, Host, Upstream, component};

const CHATS: &str = "/v1/chat/completions";

/// A server with a model of this adapter, a customer, and the API behind it.
pub async fn with(plugin: &str, act: Act, more: &str) -> (Host, Client, Upstream) {
    let upstream = Upstream::start(act).await;
    let url = match plugin {
        "lawgent-thinking" => upstream.url(),
        _ => upstream.base(),
    };
    let config = format!(
        "[[models]]\nid = 2\nname = \"it\"\nplugin = \"{}\"\napi_url = \"{url}\"\n\
         model_name = \"upstream\"\n{more}\n",
        component(plugin)
    );
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    (host, customer, upstream)
}

fn chat(messages: Value) -> Value {
    json!({ "model": "it", "messages": messages })
}

fn hello() -> Value {
    chat(json!([{ "role": "user", "content": "Hello" }]))
}

/// What a streamed answer says in this field of its deltas.
fn said(events: &[Value], field: &str) -> String {
    let deltas = events
        .iter()
        .map(|event| &event["choices"][0]["delta"][field]);
    deltas.filter_map(Value::as_str).collect()
}

#[tokio::test]
async fn reasoning_that_an_api_counts_beside_the_completion_is_charged() {
    const XAI: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"4"},
      "finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":1,"total_tokens":399,
      "completion_tokens_details":{"reasoning_tokens":386}}}"#;
    let price = "price_per_million = { prompt = 1.00, completion = 3.00 }";
    let (_host, customer, _upstream) = with("openai", Act::Json(XAI), price).await;
    let answer = customer.post(CHATS, hello()).await.expect(200);
    let usage = &answer["usage"];
    assert_eq!(
        (&usage["completion_tokens"], &usage["total_tokens"]),
        (&json!(387), &json!(399))
    );
    let rows = customer.get("/usage/requests").await.expect(200);
    let row = &rows["requests"][0];
    assert_eq!(
        (&row["completion_tokens"], &row["cost"]),
        (&json!(387), &json!(0.001173))
    );
}

#[tokio::test]
async fn a_message_beside_a_delta_is_one_answer() {
    const WHOLE: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"It is."},
      "delta":{"role":"assistant","content":""},"finish_reason":"stop"}]}"#;
    const STREAM: &[&str] = &[concat!(
        r#"data: {"choices":[{"delta":{"content":"It"},"message":{"content":"It"}}]}"#,
        "\n\n",
        r#"data: {"choices":[{"delta":{"content":" is."},"message":{"content":"It is."},"finish_reason":"stop"}]}"#,
        "\n\n",
    )];
    let (_host, customer, upstream) = with("openai", Act::Json(WHOLE), "").await;
    let answer = customer.post(CHATS, hello()).await.expect(200);
    assert_eq!(answer["choices"][0]["message"]["content"], "It is.");
    upstream.act(Act::Stream(STREAM));
    let mut ask = hello();
    ask["stream"] = json!(true);
    let events = customer.stream(CHATS, ask).await.rest().await;
    assert_eq!(said(&events, "content"), "It is.", "{events:?}");
}

#[tokio::test]
async fn content_in_parts_is_text_and_reasoning() {
    const WHOLE: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":[
      {"type":"thinking","thinking":[{"type":"text","text":"Hm."}]},{"type":"text","text":"It is."}
      ]},"finish_reason":"stop"}]}"#;
    const STREAM: &[&str] = &[concat!(
        r#"data: {"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"Hm."}]}]}}]}"#,
        "\n\n",
        r#"data: {"choices":[{"delta":{"content":[{"type":"text","text":"It"}]}}]}"#,
        "\n\n",
        r#"data: {"choices":[{"delta":{"content":" is."},"finish_reason":"stop"}]}"#,
        "\n\n",
    )];
    let (_host, customer, upstream) = with("openai", Act::Json(WHOLE), "").await;
    let answer = customer.post(CHATS, hello()).await.expect(200);
    let message = &answer["choices"][0]["message"];
    assert_eq!(
        (&message["content"], &message["reasoning_content"]),
        (&json!("It is."), &json!("Hm."))
    );
    upstream.act(Act::Stream(STREAM));
    let mut ask = hello();
    ask["stream"] = json!(true);
    let events = customer.stream(CHATS, ask).await.rest().await;
    assert_eq!(said(&events, "content"), "It is.", "{events:?}");
    assert_eq!(said(&events, "reasoning_content"), "Hm.");
}

#[tokio::test]
async fn an_empty_account_is_not_the_callers_fault() {
    const EMPTY: &str = r#"{"type":"error","error":{"type":"invalid_request_error","message":
      "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing."}}"#;
    let (_host, customer, _upstream) = with("anthropic", Act::Say(400, vec![], EMPTY), "").await;
    let reply = customer.post(CHATS, hello()).await;
    let told = reply.body.to_string();
    assert!(!told.contains("credit"), "{told}");
    assert_eq!(reply.expect_error(502), "upstream_refused");
}

#[tokio::test]
async fn an_answer_may_be_as_long_as_the_operator_allows() {
    let alive = format!(": {}\n\n", "a".repeat(64 << 10)).repeat(17 << 4);
    let end = "data: {\"choices\":[{\"text\":\"yes\",\"finish_reason\":\"stop\"}]}\n\n";
    let long: &str = (alive + end).leak();
    let stream = vec![("content-type", "text/event-stream")];
    for plugin in ["openai", "lawgent-thinking"] {
        let act = Act::Say(200, stream.clone(), long);
        let limits = "[models.limits]\nresponse_bytes = 33554432";
        let (_host, customer, _upstream) = with(plugin, act, limits).await;
        let answer = customer.post("/generate", ask("Is it?")).await.expect(200);
        assert_eq!(answer["response"], "yes", "{plugin}");
    }
}

#[tokio::test]
async fn a_chat_goes_on_after_an_empty_message() {
    const ANSWER: &str = r#"{"type":"message","content":[{"type":"text","text":"Yes."}],
      "stop_reason":"end_turn","usage":{"input_tokens":3,"output_tokens":1}}"#;
    let (_host, customer, upstream) = with("anthropic", Act::Json(ANSWER), "").await;
    let messages = json!([
        { "role": "user", "content": "Hello" },
        { "role": "assistant", "content": "" },
        { "role": "user", "content": "Are you there?" },
    ]);
    customer.post(CHATS, chat(messages)).await.expect(200);
    let text = |text: &str| json!({ "type": "text", "text": text });
    let content = [text("Hello"), text("Are you there?")];
    assert_eq!(
        upstream.seen()[0].body["messages"],
        json!([{ "role": "user", "content": content }])
    );
}

#[tokio::test]
async fn a_call_comes_back_without_its_type() {
    let (_host, customer, upstream) = with("openai", Act::Answer("Yes."), "").await;
    let called = |kind: Value| {
        let function = json!({ "name": "look", "arguments": "{}" });
        let mut call = json!({ "id": "call_1", "function": function });
        if kind != "none" {
            call["type"] = kind;
        }
        chat(json!([
            { "role": "user", "content": "Who is it?" },
            { "role": "assistant", "content": null, "tool_calls": [call] },
            { "role": "tool", "tool_call_id": "call_1", "content": "nobody" },
        ]))
    };
    for (at, kind) in [json!("function"), json!("none"), Value::Null]
        .into_iter()
        .enumerate()
    {
        customer.post(CHATS, called(kind)).await.expect(200);
        let messages = &upstream.seen()[at].body["messages"];
        assert_eq!(messages[1]["tool_calls"][0]["type"], "function");
    }
}

#[tokio::test]
async fn what_the_upstream_says_stands_where_no_more_tries_are_allowed() {
    let more = "settings = { retries = 2 }\n[models.limits]\nupstream_requests = 1";
    let soon = vec![("retry-after-ms", "20")];
    for plugin in ["openai", "lawgent-thinking"] {
        for (status, code) in [(429, "upstream_rate_limited"), (503, "model_overloaded")] {
            let act = Act::Say(status, soon.clone(), "{}");
            let (_host, customer, upstream) = with(plugin, act, more).await;
            let reply = customer.post("/generate", ask("Is it?")).await;
            assert_eq!(reply.header("retry-after"), "1", "{plugin}: {}", reply.body);
            assert_eq!(reply.expect_error(status), code, "{plugin}");
            assert_eq!(upstream.seen().len(), 1, "{plugin}");
        }
    }
}

/// A chat with all that has no place of its own on the way to a plugin.
fn detailed() -> Value {
    let image = |url: &str, detail: &str| {
        let image_url = json!({ "url": url, "detail": detail });
        json!({ "type": "image_url", "image_url": image_url })
    };
    let plain = json!({ "url": "data:image/png;base64,AAEC" });
    let mut chat = chat(json!([{ "role": "user", "content": [
        { "type": "image_url", "image_url": plain },
        image("https://pictures.example/1.png", "low"),
        image("data:image/png;base64,AAEC", "high"),
    ] }]));
    let tool = |name: &str, strict: Value| {
        let parameters = json!({ "type": "object" });
        let function = json!({ "name": name, "parameters": parameters, "strict": strict });
        json!({ "type": "function", "function": function })
    };
    chat["tools"] = json!([
        tool("one", json!(true)),
        tool("two", json!(false)),
        tool("three", Value::Null)
    ]);
    chat["verbosity"] = json!("low");
    chat
}

#[tokio::test]
async fn strict_tools_details_of_images_and_verbosity_are_passed_on() {
    let (_host, customer, upstream) = with("openai", Act::Answer("Yes."), "").await;
    let ask = detailed();
    customer.post(CHATS, ask.clone()).await.expect(200);
    let body = &upstream.seen()[0].body;
    assert_eq!(
        body["messages"][0]["content"],
        ask["messages"][0]["content"]
    );
    assert_eq!(body["verbosity"], "low");
    let strict = |at: usize| &body["tools"][at]["function"]["strict"];
    assert_eq!(
        (strict(0), strict(1), strict(2)),
        (&json!(true), &Value::Null, &Value::Null)
    );
}

#[tokio::test]
async fn anthropic_takes_strict_tools_and_refuses_verbosity() {
    let act = Act::Json(r#"{"type":"message","content":[],"stop_reason":"end_turn"}"#);
    let (_host, customer, upstream) = with("anthropic", act, "").await;
    let mut ask = detailed();
    let reply = customer.post(CHATS, ask.clone()).await;
    assert_eq!(reply.body["error"]["param"], "verbosity");
    assert_eq!(reply.expect_error(501), "unsupported");
    ask["verbosity"] = Value::Null;
    customer.post(CHATS, ask).await.expect(200);
    let tools = &upstream.seen()[0].body["tools"];
    assert_eq!(
        (&tools[0]["strict"], &tools[1]["strict"]),
        (&json!(true), &Value::Null)
    );
}

#[tokio::test]
async fn calls_that_come_whole_at_one_index_stay_apart() {
    const STREAM: &[&str] = &[concat!(
        r#"data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}}]}}]}"#,
        "\n\n",
        r#"data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"b","type":"function","function":{"name":"f","arguments":"{\"x\":2}"}}]}}]}"#,
        "\n\n",
        r#"data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        "\n\ndata: [DONE]\n\n",
    )];
    let (_host, customer, _upstream) = with("openai", Act::Stream(STREAM), "").await;
    let mut ask = hello();
    ask["stream"] = json!(true);
    let events = customer.stream(CHATS, ask).await.rest().await;
    let calls = |event: &Value| event["choices"][0]["delta"]["tool_calls"][0].clone();
    let calls: Vec<_> = events.iter().map(calls).filter(Value::is_object).collect();
    let read = |at: usize| (&calls[at]["id"], &calls[at]["function"]["arguments"]);
    assert_eq!(read(0), (&json!("a"), &json!(r#"{"x":1}"#)), "{calls:?}");
    assert_eq!(read(1), (&json!("b"), &json!(r#"{"x":2}"#)), "{calls:?}");
}

#[tokio::test]
async fn an_answer_that_failed_at_its_provider_costs_nothing() {
    const ENDS: [&str; 3] = [
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"It"},
          "finish_reason":"error"}],"usage":{"prompt_tokens":9,"completion_tokens":1}}"#,
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"It"},
          "finish_reason":"insufficient_system_resource"}],
          "usage":{"prompt_tokens":9,"completion_tokens":1}}"#,
        r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"It"},
          "error":{"code":502,"message":"a provider failed"},"finish_reason":"stop"}]}"#,
    ];
    let price = "price_per_million = { prompt = 1.00, completion = 3.00 }";
    let (_host, customer, upstream) = with("openai", Act::Json(ENDS[0]), price).await;
    for end in ENDS {
        upstream.act(Act::Json(end));
        let reply = customer.post(CHATS, hello()).await;
        assert_eq!(reply.expect_error(502), "upstream_failed", "{end}");
    }
    let usage = customer.get("/usage").await.expect(200);
    assert_eq!(usage["totals"]["cost"], 0.0);
}

#[tokio::test]
async fn a_wrong_key_and_a_flagged_prompt_are_told_apart() {
    const XAI: &str = r#"{"code":"Client specified an invalid argument","error":"Incorrect API key provided: xa***."}"#;
    const GEMINI: &str =
        r#"[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key."}}]"#;
    const FLAGGED: &str = r#"{"error":{"code":403,"message":"Your input was flagged","metadata":
        {"reasons":["violence"],"flagged_input":"Hello"}}}"#;
    let (_host, customer, upstream) = with("openai", Act::Stall, "").await;
    for (status, body, answered, code) in [
        (400, XAI, 502, "upstream_refused"),
        (400, GEMINI, 502, "upstream_refused"),
        (403, FLAGGED, 400, "content_filtered"),
    ] {
        upstream.act(Act::Say(status, vec![], body));
        let reply = customer.post(CHATS, hello()).await;
        assert_eq!(reply.expect_error(answered), code, "{body}");
    }
}

#[tokio::test]
async fn reasoning_goes_back_where_the_operator_says() {
    let called = |field: &str| {
        let function = json!({ "name": "f", "arguments": "{}" });
        let calls = json!([{ "id": "a", "type": "function", "function": function }]);
        json!({ "role": "assistant", "content": null, "tool_calls": calls, field: "Hm." })
    };
    let told = json!({ "role": "tool", "tool_call_id": "a", "content": "4" });
    for (setting, field) in [
        ("", None),
        ("reasoning_content", Some("reasoning_content")),
        ("reasoning", Some("reasoning")),
    ] {
        let more = format!("settings = {{ reasoning_field = \"{setting}\" }}");
        let (_host, customer, upstream) = with("openai", Act::Answer("Yes."), &more).await;
        for given in ["reasoning_content", "reasoning"] {
            let messages = json!([{ "role": "user", "content": "2+2?" }, called(given), told]);
            customer.post(CHATS, chat(messages)).await.expect(200);
            let body = upstream.seen().pop().expect("a request").body;
            let sent = &body["messages"][1];
            for name in ["reasoning_content", "reasoning"] {
                let expected = (field == Some(name)).then_some("Hm.");
                assert_eq!(sent[name].as_str(), expected, "{setting}: {sent}");
            }
        }
    }
}
