//! Components: what becomes of their upstream's failures, and of their own.

use serde_json::{Value, json};

use crate::harness::{Act, Client, GPT2, Host, Upstream, component, eventually, lawgent};
use crate::models::shown;

/// What the upstream's key is.
pub const SECRET: &str = "sk-upstream-secret";

async fn with_lawgent(act: Act, more: &str) -> (Host, Client, Upstream) {
    let upstream = Upstream::start(act).await;
    let config = format!("{}{more}", lawgent(upstream.url()));
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    (host, customer, upstream)
}

/// The entry of a model with number 2 that misbehaves; `more` are more settings.
pub fn misbehave(upstream: &str, more: &str) -> String {
    let plugin = component("misbehave");
    format!(
        "[[models]]\nid = 2\nname = \"misbehave\"\nplugin = \"{plugin}\"\napi_url = \"{upstream}\"\n\
         api_key = \"{SECRET}\"\n{more}\n"
    )
}

/// A server with GPT-2 and a model that misbehaves, and a customer of it.
pub async fn with_misbehave(act: Act, more: &str) -> (Host, Client, Upstream) {
    let upstream = Upstream::start(act).await;
    let config = format!("{GPT2}{}", misbehave(upstream.url(), more));
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    (host, customer, upstream)
}

/// A request to model number 2.
pub fn ask(text: &str) -> Value {
    json!({ "text": text, "model_id": 2 })
}

#[tokio::test]
async fn the_upstream_gets_the_request_and_the_secret() {
    let (_host, customer, upstream) = with_lawgent(Act::Answer(" yes"), "").await;
    let body = json!({
        "text": "Is it?", "model_id": 2, "max_new_tokens": 9, "temperature": 0.5, "top_p": 0.5, "top_k": 3,
        "seed": 4, "stop": ["no"],
    });
    let answer = customer.post("/generate", body).await.expect(200);
    assert_eq!(
        (&answer["response"], &answer["tokens_used"]),
        (&json!(" yes"), &json!(10))
    );
    let seen = &upstream.seen()[0];
    assert_eq!(seen.headers["authorization"], format!("Bearer {SECRET}"));
    assert_eq!(seen.headers["content-type"], "application/json");
    assert!(seen.headers.get("x-api-key").is_none());
    assert_eq!(
        seen.body,
        json!({
            "model": "upstream", "prompt": "Is it?", "max_tokens": 9, "temperature": 0.5, "top_p": 0.5, "top_k": 3,
            "seed": 4, "stop": ["no"],
        })
    );
}

#[tokio::test]
async fn an_upstreams_failure_has_a_status_of_its_own_and_tells_no_secret() {
    let (host, customer, upstream) = with_lawgent(Act::Stall, "").await;
    let error = r#"{"error": {"message": "the key sk-upstream-… is bad"}}"#;
    let telling = r#"{"error": {"message": "the key sk-upstream-secret is bad"}}"#;
    let long = r#"{"error": {"message": "too long", "code": "context_length_exceeded"}}"#;
    let later = vec![("retry-after", "7")];
    for (act, status, code, retry) in [
        (
            Act::Say(400, vec![], r#"{"error": {"message": "no such thing"}}"#),
            400,
            "invalid_request",
            "",
        ),
        // what repeats the secret is not read at all
        (
            Act::Say(400, vec![], telling),
            502,
            "upstream_answer_broken",
            "",
        ),
        (
            Act::Say(401, vec![], telling),
            502,
            "upstream_answer_broken",
            "",
        ),
        (
            Act::Say(400, vec![], long),
            400,
            "context_length_exceeded",
            "",
        ),
        (Act::Say(401, vec![], error), 502, "upstream_refused", ""),
        (Act::Say(403, vec![], error), 502, "upstream_refused", ""),
        (Act::Say(404, vec![], error), 502, "upstream_failed", ""),
        (
            Act::Say(429, later.clone(), error),
            429,
            "upstream_rate_limited",
            "7",
        ),
        (
            Act::Say(429, vec![], error),
            429,
            "upstream_rate_limited",
            "1",
        ),
        (Act::Say(500, vec![], error), 502, "upstream_failed", ""),
        (Act::Say(503, later, error), 503, "model_overloaded", "7"),
        (
            Act::Say(307, vec![("location", "http://127.0.0.1:9/")], ""),
            502,
            "upstream_failed",
            "",
        ),
        (
            Act::Say(200, vec![], "<html>hello</html>"),
            502,
            "upstream_answer_broken",
            "",
        ),
        (
            Act::Say(200, vec![], r#"{"choices": []}"#),
            502,
            "upstream_answer_broken",
            "",
        ),
        (Act::Say(200, vec![], ""), 502, "upstream_answer_broken", ""),
        (Act::Cut, 502, "", ""),
        (Act::Echo, 502, "", ""),
    ] {
        upstream.act(act.clone());
        let reply = customer.post("/generate", ask("Once")).await;
        let (said, after) = (
            reply.body.to_string(),
            reply.header("retry-after").to_owned(),
        );
        assert_eq!(reply.status, status, "{act:?}: {said}");
        assert!(!said.contains(SECRET), "{said}");
        let found = reply.expect_error(status);
        assert!(code.is_empty() || found == code, "{act:?}: {found}");
        assert_eq!(after, retry, "{act:?}");
    }
    upstream.act(Act::Answer(" well"));
    customer.post("/generate", ask("Once")).await.expect(200);
    assert!(!host.log().contains(SECRET), "{}", host.log());
    let usage = customer.get("/usage").await.expect(200);
    assert_eq!(
        (&usage["totals"]["requests"], &usage["totals"]["cost"]),
        (&json!(18), &json!(0.0001))
    );
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_in_time_is_a_504() {
    let (_host, customer, upstream) =
        with_lawgent(Act::Stall, "[models.limits]\ntimeout_ms = 3000\n").await;
    assert_eq!(
        customer
            .post("/generate", ask("Once"))
            .await
            .expect_error(504),
        "timeout"
    );
    eventually("the upstream request is given up", async || {
        upstream.open() == 0
    })
    .await;
    upstream.act(Act::Answer(" well"));
    customer.post("/generate", ask("Once")).await.expect(200);
}

#[tokio::test]
async fn an_upstream_that_is_not_there_is_a_502() {
    let config = lawgent("http://127.0.0.1:9/v1/completions");
    let host = Host::builder().config(config).start().await.ready().await;
    let reply = host.customer().await.post("/generate", ask("Once")).await;
    assert_eq!(reply.expect_error(502), "upstream_unreachable");
}

#[tokio::test]
async fn this_server_can_be_the_upstream() {
    let behind = Host::start().await.ready().await;
    let key = behind.customer().await.key().to_owned();
    let config = lawgent(&format!("{}/v1/completions", behind.url()))
        .replace(SECRET, &key)
        .replace("model_name = \"upstream\"", "model_name = \"gpt2\"");
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let body =
        json!({ "text": "Once upon a time", "model_id": 2, "max_new_tokens": 8, "temperature": 0 });
    let through = customer.post("/generate", body.clone()).await.expect(200);
    let mut direct = body;
    direct["model_id"] = json!(1);
    let direct = behind
        .customer()
        .await
        .post("/generate", direct)
        .await
        .expect(200);
    for field in [
        "response",
        "prompt_tokens",
        "completion_tokens",
        "tokens_used",
        "cost",
    ] {
        assert_eq!(through[field], direct[field], "{field}");
    }
}

#[tokio::test]
async fn a_component_can_neither_send_nor_learn_a_secret() {
    let (host, customer, upstream) = with_misbehave(Act::Echo, "").await;
    let reply = customer
        .post("/generate", ask("fetch\nauthorization: Bearer mine"))
        .await;
    assert!(reply.status.is_server_error(), "{}", reply.body);
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
    // an upstream that tells the secret is not heard
    let reply = customer.post("/generate", ask("fetch")).await;
    assert!(!reply.body.to_string().contains(SECRET), "{}", reply.body);
    reply.expect_error(502);
    assert_eq!(
        upstream.seen()[0].headers["authorization"],
        format!("Bearer {SECRET}")
    );

    upstream.act(Act::Say(
        200,
        vec![("set-cookie", "a=b"), ("x-mine", "1"), ("x-told", SECRET)],
        "hello",
    ));
    let told = customer.post("/generate", ask("fetch")).await.expect(200)["response"].to_string();
    assert!(told.contains("hello") && told.contains("x-mine"), "{told}");
    assert!(
        !told.contains("set-cookie") && !told.contains("x-told"),
        "{told}"
    );
    assert!(!host.log().contains(SECRET), "{}", host.log());
}

/// What was built against version 0.1.0 of the contract, and is never built again: it
/// must run for as long as that version is promised.
#[tokio::test]
async fn a_component_of_the_first_version_still_answers() {
    let first = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/fixtures/plugin-0.1.0.wasm"
    );
    let upstream = Upstream::start(Act::Answer(" yes")).await;
    let config = lawgent(upstream.url()).replace(&component("lawgent-thinking"), first);
    let host = Host::builder().config(config).start().await.ready().await;
    let model = shown(&host, 2).await;
    assert_eq!(model["plugin"], "lawgent-thinking 0.1.0");
    assert_eq!(
        model["digest"],
        "87a4861a917ef10ef4b20590d0c8215258a3b67d8abda9e9480a10b6689d5118"
    );
    let customer = host.customer().await;
    let answer = customer.post("/generate", ask("Is it?")).await.expect(200);
    assert_eq!(
        (&answer["response"], &answer["tokens_used"]),
        (&json!(" yes"), &json!(10))
    );
}

#[tokio::test]
async fn what_a_component_makes_the_host_keep_is_bounded() {
    let (host, customer, _upstream) = with_misbehave(Act::Answer("yes"), "").await;
    let kept = customer
        .post("/generate", ask("hoard 10"))
        .await
        .expect(200)["response"]
        .clone();
    let kept: usize = kept.as_str().expect("text").parse().expect("bytes");
    assert!(kept > 0 && kept <= 10 * (640 << 10), "{kept} bytes");
    let reply = customer.post("/generate", ask("hoard 250")).await;
    assert_eq!(reply.expect_error(502), "plugin_failed");
    eventually("the log says why", async || {
        host.log().contains("resource table has no free keys")
    })
    .await;
    customer.post("/generate", ask("well")).await.expect(200);
}

#[tokio::test]
async fn what_a_component_hands_over_in_one_call_is_bounded() {
    let (host, customer, _upstream) = with_misbehave(Act::Answer("yes"), "").await;
    customer
        .post("/generate", ask("log huge"))
        .await
        .expect(200);
    eventually("the line is there", async || {
        host.log().contains("\"line\":\"aaaa")
    })
    .await;
    let longest = host.log().lines().map(str::len).max();
    assert!(longest < Some(4000), "{longest:?}");

    let limits = "[models.limits]\nrequest_bytes = 1048576\nresponse_bytes = 1048576";
    let (_host, customer, _upstream) = with_misbehave(Act::Answer("yes"), limits).await;
    let reply = customer.post("/generate", ask("log huge")).await;
    assert_eq!(reply.expect_error(502), "plugin_failed");
}
