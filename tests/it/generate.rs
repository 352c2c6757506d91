//! `/generate`: one list of what any model must do, run against the native
//! plugin and against the component; then what only a local model can.

use serde_json::{Value, json};

use crate::harness::{Act, GPT2, Host, Upstream, eventually, lawgent};

/// A server with both models, and the upstream of the second.
async fn both() -> (Host, Upstream) {
    let upstream = Upstream::start(Act::Answer(" and so it was.")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    (
        Host::builder().config(config).start().await.ready().await,
        upstream,
    )
}

async fn answers_with_every_field_of_the_contract(host: &Host, model_id: i64) {
    let customer = host.customer().await;
    let body = json!({ "text": "Once upon a time", "model_id": model_id, "max_length": 40 });
    let reply = customer.post("/generate", body).await;
    let id = reply.header("x-request-id").to_owned();
    let answer = reply.expect(200);
    let text = answer["response"].as_str().expect("a text");
    assert!(
        !text.is_empty() && !text.contains("Once upon a time"),
        "{answer}"
    );
    let tokens = answer["tokens_used"].as_i64().expect("an integer");
    assert_eq!(
        tokens,
        answer["prompt_tokens"].as_i64().unwrap_or(-1)
            + answer["completion_tokens"].as_i64().unwrap_or(-1)
    );
    // 0.001 dollars for 100 tokens
    let cost = answer["cost"].as_f64().expect("a number");
    assert!((cost - tokens as f64 * 0.00001).abs() < 1e-12, "{answer}");

    let rows = customer.get("/usage/requests").await.expect(200);
    let row = &rows["requests"][0];
    assert_eq!(row["request_id"], id.as_str());
    assert_eq!(
        (&row["model_id"], &row["status"]),
        (&json!(model_id), &json!("ok"))
    );
    assert_eq!(
        (&row["tokens_used"], &row["cost"]),
        (&answer["tokens_used"], &answer["cost"])
    );
    assert!(
        row["latency_ms"].is_i64() && row["created_at"].is_string(),
        "{row}"
    );

    let usage = customer.get("/usage").await.expect(200);
    assert_eq!(usage["totals"]["requests"], 1);
    assert_eq!(usage["totals"]["cost"], answer["cost"]);
    assert_eq!(usage["totals"]["prompt_tokens"], answer["prompt_tokens"]);
    assert_eq!(usage["by_model"][0]["model_id"], model_id);
    assert_eq!(
        usage["by_model"][0]["completion_tokens"],
        answer["completion_tokens"]
    );
}

async fn refuses_what_makes_no_sense(host: &Host, model_id: i64) {
    let customer = host.customer().await;
    for (field, value) in [
        ("text", json!("")),
        ("text", json!(1)),
        ("text", Value::Null),
        ("max_length", json!(0)),
        ("max_length", json!(-5)),
        ("max_length", json!(1.5)),
        ("max_new_tokens", json!(0)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(0)),
        ("seed", json!(-1)),
        ("stop", json!([""])),
        ("stop", json!(vec!["x"; 17])),
        ("stop", json!(["x".repeat(257)])),
        ("max_lenght", json!(5)),
    ] {
        let mut body = json!({ "text": "Once", "model_id": model_id });
        body[field] = value.clone();
        let reply = customer.post("/generate", body).await;
        assert_eq!(
            reply.body["error"]["param"], field,
            "{field} = {value}: {}",
            reply.body
        );
        assert_eq!(reply.expect_error(422), "invalid_request");
    }
    let optional = [
        "max_length",
        "max_new_tokens",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "stop",
        "stream",
    ];
    let mut body = json!({ "text": "Once", "model_id": model_id });
    for field in optional {
        body[field] = Value::Null;
    }
    customer.post("/generate", body).await.expect(200);
    let too_long = json!({ "text": "x".repeat(300_000), "model_id": model_id });
    let reply = customer.post("/generate", too_long).await;
    assert!(
        reply.body["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("262144"))
    );
    assert_eq!(reply.expect_error(400), "prompt_too_long");
    let no_room =
        json!({ "text": "Once upon a time there was", "model_id": model_id, "max_length": 2 });
    let reply = customer.post("/generate", no_room).await;
    assert_eq!(reply.body["error"]["param"], "text");
    assert_eq!(reply.expect_error(400), "context_length_exceeded");
}

/// The same list for both kinds of plugin.
macro_rules! for_both {
    ($($test:ident),+) => {
        mod native {
            $(#[tokio::test]
            async fn $test() {
                let (host, _upstream) = super::both().await;
                super::$test(&host, 1).await;
            })+
        }
        mod component {
            $(#[tokio::test]
            async fn $test() {
                let (host, _upstream) = super::both().await;
                super::$test(&host, 2).await;
            })+
        }
    };
}

for_both!(
    answers_with_every_field_of_the_contract,
    refuses_what_makes_no_sense
);

#[tokio::test]
async fn greedy_and_seeded_answers_repeat() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let text = async |more: Value| {
        let mut body = json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": 24 });
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().expect("an object"));
        customer.post("/generate", body).await.expect(200)["response"].clone()
    };
    assert_eq!(
        text(json!({ "temperature": 0 })).await,
        text(json!({ "temperature": 0, "seed": 9 })).await
    );
    let seeded = text(json!({ "seed": 7, "top_k": 40, "top_p": 0.95 })).await;
    assert_eq!(
        seeded,
        text(json!({ "seed": 7, "top_k": 40, "top_p": 0.95 })).await
    );
    assert_ne!(
        seeded,
        text(json!({ "seed": 8, "top_k": 40, "top_p": 0.95 })).await
    );
    assert_eq!(
        text(json!({ "temperature": 0 })).await,
        text(json!({ "top_k": 1 })).await
    );
}

#[tokio::test]
async fn lengths_bound_the_answer() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let ask = async |more: Value| {
        let mut body = json!({ "text": "Once upon a time", "model_id": 1, "temperature": 0 });
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().expect("an object"));
        customer.post("/generate", body).await.expect(200)
    };
    let bounded = ask(json!({ "max_length": 30 })).await;
    assert!(
        bounded["tokens_used"]
            .as_i64()
            .is_some_and(|tokens| tokens <= 30),
        "{bounded}"
    );
    let bounded = ask(json!({ "max_new_tokens": 3 })).await;
    assert_eq!(
        (&bounded["completion_tokens"], &bounded["finish_reason"]),
        (&json!(3), &json!("length"))
    );
    let bounded = ask(json!({ "max_new_tokens": 50, "max_length": bounded["prompt_tokens"].as_i64().unwrap_or(0) + 2 })).await;
    assert_eq!(bounded["completion_tokens"], 2);
}

#[tokio::test]
async fn an_answer_ends_before_a_stop_string() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let body = json!({ "text": "Once upon a time", "model_id": 1, "temperature": 0, "max_new_tokens": 40 });
    let whole = customer.post("/generate", body.clone()).await.expect(200);
    let whole = whole["response"].as_str().expect("a text");
    // a text from the middle, which need not be where a token ends
    let chars: Vec<char> = whole.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 3].iter().collect();
    let expected = whole.split(&stop).next();
    for stop in [json!(stop), json!(["never in it", stop])] {
        let mut body = body.clone();
        body["stop"] = stop;
        let answer = customer.post("/generate", body).await.expect(200);
        assert_eq!(answer["response"].as_str(), expected);
        assert_eq!(answer["finish_reason"], "stop");
    }
}

#[tokio::test]
async fn a_prompt_longer_than_the_context_is_refused_with_both_numbers() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let models = customer.get("/models").await.expect(200);
    let window = models["models"][0]["context_window"]
        .as_u64()
        .expect("a number");
    let body = json!({ "text": "word ".repeat(2000), "model_id": 1 });
    let reply = customer.post("/generate", body).await;
    assert!(
        reply.body["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains(&window.to_string()))
    );
    assert_eq!(reply.expect_error(400), "context_length_exceeded");
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_work_and_leaves_a_row() {
    let upstream = Upstream::start(Act::Stall).await;
    let host = Host::builder()
        .config(lawgent(upstream.url()))
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer().await;
    let body = json!({ "text": "Once", "model_id": 2 });
    let asking = tokio::spawn({
        let customer = customer.clone();
        async move { customer.post("/generate", body).await }
    });
    eventually("the upstream is asked", async || upstream.seen().len() == 1).await;
    asking.abort();
    eventually("the request is on record", async || {
        let rows = customer.get("/usage/requests").await.expect(200);
        rows["requests"][0]["status"] == "cancelled"
    })
    .await;
    eventually("the upstream request is given up", async || {
        upstream.open() == 0
    })
    .await;
    let row = customer.get("/usage/requests").await.expect(200)["requests"][0].clone();
    assert_eq!(
        (&row["cost"], &row["error_code"]),
        (&json!(0.0), &json!("cancelled"))
    );
}
