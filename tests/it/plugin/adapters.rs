//! Projects of adapters to an API.

use serde_json::{Value, json};

use super::{Workshop, bad, failed, good};
use crate::harness::{Act, Upstream};

/// From `new` to answers of a server that serves the project, of all that it is asked.
async fn adapter(lang: &str) {
    const ANSWER: &str = r#"{"choices":[{"message":{"content":"Ja, 世界 🌍."},"finish_reason":"stop"}],
        "usage":{"prompt_tokens":12,"completion_tokens":1,"total_tokens":399,
        "completion_tokens_details":{"reasoning_tokens":386}}}"#;
    const REFUSED: &str = r#"{"choices":[{"message":{"content":null,"refusal":"Grüße, 世界."},
        "finish_reason":"stop"}]}"#;
    const CUT: &str = r#"{"choices":[{"message":{"content":null,"reasoning_content":"Hm"},
        "finish_reason":"length"}],"usage":{"prompt_tokens":12,"completion_tokens":400}}"#;
    let workshop = Workshop::new(&format!("{lang}-http"));
    good(&workshop.plugin(&["new", "asked", "--lang", lang, "--http"]));
    let built = good(&workshop.plugin(&["build", "asked"]));
    assert!(built.starts_with("asked/asked.wasm ("), "{built}");
    let cache = workshop.text("data/cache");
    let said = good(&workshop.plugin(&["check", "asked/asked.wasm", "--cache-dir", &cache]));
    assert!(said.contains("asked: 23 ok, 0 failed, 8 skipped"), "{said}");

    let upstream = Upstream::start(Act::Json(ANSWER)).await;
    let server = workshop
        .server("asked")
        .env("API_URL", upstream.base())
        .env("API_KEY", "sk-upstream-secret")
        .env("MODEL_NAME", "upstream");
    let host = server.start().await.ready().await;
    let customer = host.customer().await;
    let said = "Grüße, 世界 🌍";
    let mut ask = json!({
        "model": "asked", "messages": [{ "role": "user", "content": said, "name": "anna" }],
        "response_format": { "type": "json_object" }, "reasoning_effort": "low", "verbosity": "low",
        "temperature": 0.5, "top_p": 0.25, "top_k": 3, "seed": -7, "frequency_penalty": 1.5,
        "presence_penalty": -0.5, "stop": ["\n"], "max_tokens": 400,
    });
    let chats = "/v1/chat/completions";
    let answer = customer.post(chats, ask.clone()).await.expect(200);
    assert_eq!(answer["choices"][0]["message"]["content"], "Ja, 世界 🌍.");
    assert_eq!(answer["usage"]["completion_tokens"], 387);
    let seen = &upstream.seen()[0];
    assert_eq!(seen.headers["authorization"], "Bearer sk-upstream-secret");
    let mut expected = ask.clone();
    expected["model"] = json!("upstream");
    for (name, value) in expected.as_object().expect("fields") {
        assert!(same(&seen.body[name], value), "{name}: {}", seen.body[name]);
    }

    // what says something else, or nothing, is an answer as well; four bytes are a token
    upstream.act(Act::Json(REFUSED));
    let answer = customer.post(chats, ask.clone()).await.expect(200);
    let prompt = ask["messages"].to_string().len().div_ceil(4);
    assert_eq!(answer["choices"][0]["message"]["content"], "Grüße, 世界.");
    assert_eq!(answer["usage"]["completion_tokens"], 4);
    assert_eq!(answer["usage"]["prompt_tokens"], prompt);
    upstream.act(Act::Json(CUT));
    let answer = customer.post(chats, ask.clone()).await.expect(200);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 400);

    let call =
        json!({ "id": "a", "type": "function", "function": { "name": "f", "arguments": "{}" } });
    let called = json!({ "role": "assistant", "content": "Hm.", "tool_calls": [call] });
    let tool = json!({ "type": "function", "function": { "name": "f" } });
    for (name, value) in [
        ("tools", json!([tool])),
        ("tool_choice", json!("required")),
        ("messages", json!([ask["messages"][0], called])),
    ] {
        let kept = ask[name].take();
        ask[name] = value;
        let reply = customer.post(chats, ask.clone()).await;
        assert_eq!(reply.body["error"]["param"], name);
        assert_eq!(reply.expect_error(501), "unsupported", "{name}");
        ask[name] = kept;
    }
}

/// Whether they are equal, numbers by their value: 3 and 3.0 are one.
fn same(one: &Value, other: &Value) -> bool {
    match (one.as_f64(), other.as_f64()) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

#[tokio::test]
async fn a_rust_adapter_comes_to_answer() {
    adapter("rust").await;
}

#[tokio::test]
async fn a_python_adapter_comes_to_answer() {
    adapter("python").await;
}

#[tokio::test]
async fn a_javascript_adapter_comes_to_answer() {
    adapter("javascript").await;
}

#[test]
fn each_flaw_of_an_adapter_is_found() {
    let workshop = Workshop::new("flaws");
    good(&workshop.plugin(&["new", "adapter", "--lang", "rust", "--http"]));
    let flawed = include_str!("../fixtures/flawed.rs");
    std::fs::write(workshop.path("adapter/src/lib.rs"), flawed).expect("a file");
    // it calls its API by WASI, which the kit knows as well
    let manifest = workshop.path("adapter/Cargo.toml");
    let by_host = std::fs::read_to_string(&manifest).expect("a file");
    let by_wasi = by_host.replace(r#"["upstream"]"#, r#"["http"]"#);
    std::fs::write(&manifest, by_wasi).expect("a file");
    good(&workshop.plugin(&["build", "adapter"]));
    let check = |flaw: &str, only: &[&str]| {
        let flaw = format!("settings.flaw={flaw}");
        let mut arguments = vec!["check", "adapter/adapter.wasm", "--set", &flaw];
        arguments.extend(only.iter().flat_map(|check| ["--only", check]));
        workshop.plugin(&arguments)
    };
    good(&check("none", &[]));
    for (flaw, broken) in [
        ("nameless", "describe"),
        ("estimates-nothing", "estimate"),
        ("empty-traps", "empty-prompt"),
        ("chats-anyway", "other-prompts"),
        ("drops-the-rest", "unpromised"),
        ("trims", "answer"),
        ("counts-itself", "usage"),
        ("claims-exact", "missing-usage"),
        ("forgets-max-tokens", "max-tokens"),
        ("forgets-stop", "stop-strings"),
        ("forgets-tools", "tools"),
        ("reads-first-record", "coalesced-records"),
        ("reads-pieces-as-records", "split-records"),
        ("reads-pieces-as-text", "split-characters"),
        ("reads-plain-records", "dressed-records"),
        ("buffers", "first-event"),
        ("never-waits", "rate-limited"),
        ("blames-caller", "upstream-auth"),
        ("blames-caller", "upstream-failure"),
        ("swallows", "garbage"),
        ("swallows", "cut"),
        ("impatient", "stall"),
        ("constant", "concurrency"),
        ("flaky", "growth"),
    ] {
        let said = bad(&check(flaw, &[broken]));
        assert_eq!(failed(&said), [broken], "{flaw}: {said}");
        assert!(said.contains("expected"), "{said}");
    }
    for (flaw, dropped) in [
        ("drops-the-rest", "for a tool,"),
        ("drops-seed", "for seed,"),
        ("answers-seeded", "for seed,"),
        ("drops-choice", "for tool_choice,"),
    ] {
        let said = bad(&check(flaw, &["unpromised"]));
        assert!(said.contains(dropped), "{flaw}: {said}");
    }
    // these are other ways to be right
    for (way, expected) in [
        ("untempered", "ok      answer:"),
        ("unstopped", "skipped stop-strings: refuses stop strings"),
        ("calls-format", "ok      unpromised:"),
        (
            "stamps",
            "skipped unpromised: asks its upstream in another way",
        ),
    ] {
        let only = ["unpromised", "answer", "stop-strings"];
        let said = good(&check(way, &only));
        assert!(said.contains(expected), "{way}: {said}");
    }
}
