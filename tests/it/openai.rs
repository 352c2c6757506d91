//! `/v1/completions` and `/v1/models`, as OpenAI's SDKs call them.

use serde_json::{Value, json};

use crate::harness::{Act, Client, GPT2, Host, Upstream, lawgent};

/// The server with both models, and a customer who sends its key as SDKs do.
async fn both() -> (Host, Upstream, Client) {
    let upstream = Upstream::start(Act::Answer(" and so it was.")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let bearer = customer.with_header("authorization", format!("Bearer {}", customer.key()));
    (host, upstream, bearer)
}

#[tokio::test]
async fn completions_have_openais_shape_for_either_kind_of_plugin() {
    let (_host, _upstream, customer) = both().await;
    for model in ["gpt2", "lawgent-thinking"] {
        let body = json!({ "model": model, "prompt": "Once upon a time", "max_tokens": 5, "temperature": 0 });
        let reply = customer.post("/v1/completions", body).await;
        assert_eq!(reply.header("x-ratelimit-limit-requests"), "100000");
        let answer = reply.expect(200);
        assert_eq!(
            (&answer["object"], &answer["model"]),
            (&json!("text_completion"), &json!(model))
        );
        assert!(
            answer["id"]
                .as_str()
                .is_some_and(|id| id.starts_with("cmpl-")),
            "{answer}"
        );
        assert!(answer["created"].is_i64(), "{answer}");
        let choice = &answer["choices"][0];
        assert!(
            choice["text"].is_string() && choice["finish_reason"].is_string(),
            "{answer}"
        );
        assert_eq!(
            (&choice["index"], &choice["logprobs"]),
            (&json!(0), &Value::Null)
        );
        let count = |field: &str| answer["usage"][field].as_i64().expect("an integer");
        assert_eq!(
            count("total_tokens"),
            count("prompt_tokens") + count("completion_tokens")
        );
        assert!(count("completion_tokens") <= 5);
    }
}

#[tokio::test]
async fn both_endpoints_give_the_same_continuation() {
    let (_host, _upstream, customer) = both().await;
    let body = json!({ "model": "gpt2", "prompt": ["Once upon a time"], "max_tokens": 9, "temperature": 0 });
    let theirs = customer.post("/v1/completions", body).await.expect(200);
    let body =
        json!({ "model_id": 1, "text": "Once upon a time", "max_new_tokens": 9, "temperature": 0 });
    let ours = customer.post("/generate", body).await.expect(200);
    assert_eq!(theirs["choices"][0]["text"], ours["response"]);
    assert_eq!(theirs["usage"]["total_tokens"], ours["tokens_used"]);
}

#[tokio::test]
async fn sixteen_tokens_are_generated_where_the_request_does_not_say() {
    let (_host, upstream, customer) = both().await;
    let body = json!({ "model": "lawgent-thinking", "prompt": "Once" });
    customer.post("/v1/completions", body).await.expect(200);
    assert_eq!(upstream.seen()[0].body["max_tokens"], 16);
}

#[tokio::test]
async fn fields_at_their_defaults_and_fields_that_change_nothing_are_taken() {
    let (_host, _upstream, customer) = both().await;
    let nothing = json!({
        "model": "gpt2", "max_tokens": 1, "n": 1, "logit_bias": {}, "stream": false, "stop": null,
        "frequency_penalty": 0, "presence_penalty": 0, "stream_options": null,
        "user": "somebody", "safety_identifier": "somebody", "store": true, "metadata": { "a": "b" },
        "service_tier": "flex", "prediction": { "type": "content", "content": "upon" },
        "prompt_cache_key": "a", "prompt_cache_options": { "mode": "implicit" },
        "prompt_cache_retention": "24h", "moderation": null, "min_p": null,
    });
    let with = |more: Value| {
        let mut body = nothing.as_object().cloned().expect("an object");
        body.extend(more.as_object().cloned().expect("an object"));
        Value::Object(body)
    };
    let body = with(json!({ "prompt": "Once", "best_of": 1, "echo": false, "suffix": "" }));
    customer.post("/v1/completions", body).await.expect(200);
    for modalities in [json!(["text"]), json!([])] {
        let body = with(json!({
            "messages": [{ "role": "user", "content": "Once" }], "logprobs": false,
            "top_logprobs": 0, "modalities": modalities, "extra_body": {},
        }));
        // what is refused is that it is a chat
        let reply = customer.post("/v1/chat/completions", body).await;
        assert_eq!(reply.body["error"]["param"], "messages", "{}", reply.body);
        reply.expect_error(501);
    }
}

#[tokio::test]
async fn a_field_that_the_operator_names_is_ignored() {
    let config = format!("[requests]\nignored_fields = [\"enable_thinking\"]\n{GPT2}");
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let ask = async |field: &str| {
        let mut body = json!({ "model": "gpt2", "prompt": "Once", "max_tokens": 1 });
        body[field] = json!(true);
        customer.post("/v1/completions", body).await
    };
    ask("enable_thinking").await.expect(200);
    let refused = ask("enable_thoughts").await;
    assert_eq!(refused.expect_error(422), "unsupported");
}

#[tokio::test]
async fn a_seed_may_have_a_sign_and_top_p_be_nothing() {
    let (_host, upstream, customer) = both().await;
    let text = async |more: Value| {
        let mut body = json!({ "model": "gpt2", "prompt": "Once upon a time", "max_tokens": 24 });
        body.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().expect("an object"));
        let answer = customer.post("/v1/completions", body).await.expect(200);
        answer["choices"][0]["text"].clone()
    };
    let seeded = text(json!({ "seed": -1 })).await;
    assert_eq!(seeded, text(json!({ "seed": u64::MAX })).await);
    assert_ne!(seeded, text(json!({ "seed": 1 })).await);
    assert_eq!(
        text(json!({ "top_p": 0 })).await,
        text(json!({ "temperature": 0 })).await
    );
    // what an API gets is a seed, and a number that it takes
    let body = json!({ "model": "lawgent-thinking", "prompt": "Once", "seed": -2, "top_p": 0.0 });
    customer.post("/v1/completions", body).await.expect(200);
    let seen = &upstream.seen()[0].body;
    assert!(seen["seed"].is_number(), "{seen}");
    assert!(
        seen["top_p"].as_f64().is_some_and(|p| p > 0.0 && p < 1e-30),
        "{seen}"
    );
    for seed in [json!(1.5), json!(-9.3e18), json!("1")] {
        let body = json!({ "model": "gpt2", "prompt": "Once", "seed": seed });
        let reply = customer.post("/v1/completions", body).await;
        assert_eq!(reply.body["error"]["param"], "seed", "{}", reply.body);
        assert_eq!(reply.expect_error(422), "invalid_request");
    }
    // chats read the same fields
    let chat = json!({ "model": "gpt2", "seed": -1, "top_p": 0,
        "messages": [{ "role": "user", "content": "Once" }] });
    let reply = customer.post("/v1/chat/completions", chat).await;
    assert_eq!(reply.body["error"]["param"], "messages", "{}", reply.body);
}

#[tokio::test]
async fn sdks_are_told_what_no_repeat_changes() {
    let (_host, upstream, customer) = both().await;
    let chat = json!({ "model": "gpt2", "messages": [{ "role": "user", "content": "Once" }] });
    let reply = customer.post("/v1/chat/completions", chat).await;
    assert_eq!(reply.header("x-should-retry"), "false");
    assert_eq!(reply.expect_error(501), "unsupported");
    upstream.act(Act::Say(500, vec![], "{}"));
    let body = json!({ "model": "lawgent-thinking", "prompt": "Once" });
    let reply = customer.post("/v1/completions", body).await;
    assert_eq!(reply.header("x-should-retry"), "");
    assert_eq!(reply.expect_error(502), "upstream_failed");
}

#[tokio::test]
async fn what_would_change_the_answer_and_is_not_there_is_refused() {
    let (_host, _upstream, customer) = both().await;
    for (field, value) in [
        ("n", json!(2)),
        ("best_of", json!(3)),
        ("echo", json!(true)),
        ("logprobs", json!(1)),
        ("suffix", json!("end")),
        ("logit_bias", json!({ "50256": -100 })),
        ("prompt", json!(["one", "two"])),
        ("prompt", json!([])),
        ("response_format", json!({ "type": "json_object" })),
        ("min_p", json!(0.1)),
        ("max_completions_tokens", json!(3)),
    ] {
        let mut body = json!({ "model": "gpt2", "prompt": "Once" });
        body[field] = value.clone();
        let reply = customer.post("/v1/completions", body).await;
        assert_eq!(
            reply.body["error"]["param"], field,
            "{field} = {value}: {}",
            reply.body
        );
        assert_eq!(reply.body["error"]["type"], "invalid_request_error");
        assert_eq!(reply.expect_error(422), "unsupported");
    }
    for (field, value) in [
        ("moderation", json!({ "model": "omni-moderation-latest" })),
        ("min_p", json!(0.1)),
        ("max_completions_tokens", json!(3)),
        ("extra_body", json!({ "top_k": 1 })),
    ] {
        let mut body =
            json!({ "model": "gpt2", "messages": [{ "role": "user", "content": "Once" }] });
        body[field] = value;
        let reply = customer.post("/v1/chat/completions", body).await;
        assert_eq!(reply.body["error"]["param"], field, "{}", reply.body);
        assert_eq!(reply.expect_error(422), "unsupported");
    }
}

#[tokio::test]
async fn errors_have_openais_fields_and_names() {
    let (host, _upstream, customer) = both().await;
    for (body, status, kind, param) in [
        (
            json!({ "model": "nothing", "prompt": "Once" }),
            404,
            "not_found_error",
            "model",
        ),
        (
            json!({ "model": "gpt2", "prompt": "" }),
            422,
            "invalid_request_error",
            "prompt",
        ),
        (
            json!({ "model": "gpt2", "prompt": "Once", "max_tokens": 0 }),
            422,
            "invalid_request_error",
            "max_tokens",
        ),
        (
            json!({ "model": "gpt2", "prompt": "Once", "temperature": 3 }),
            422,
            "invalid_request_error",
            "temperature",
        ),
        (
            json!({ "model": "gpt2", "prompt": "x ".repeat(140_000) }),
            400,
            "invalid_request_error",
            "prompt",
        ),
    ] {
        let reply = customer.post("/v1/completions", body).await;
        let error = reply.body["error"].clone();
        reply.expect_error(status);
        assert_eq!(
            (&error["type"], &error["param"]),
            (&json!(kind), &json!(param)),
            "{error}"
        );
    }
    // of what must have its default, the field is named whatever is in it
    for (path, field, value) in [
        ("/v1/completions", "logprobs", json!(true)),
        ("/v1/completions", "echo", json!(1)),
        ("/v1/chat/completions", "logprobs", json!(5)),
        ("/v1/chat/completions", "n", json!("2")),
        ("/v1/chat/completions", "modalities", json!("text")),
    ] {
        let mut body = match path {
            "/v1/completions" => json!({ "model": "gpt2", "prompt": "Once" }),
            _ => json!({ "model": "gpt2", "messages": [{ "role": "user", "content": "Once" }] }),
        };
        body[field] = value;
        let reply = customer.post(path, body).await;
        assert_eq!(reply.body["error"]["param"], field, "{}", reply.body);
        assert_eq!(reply.expect_error(422), "unsupported");
    }
    let wrong = host
        .anyone()
        .with_header("authorization", "Bearer sk-nobody".into());
    let reply = wrong
        .post(
            "/v1/completions",
            json!({ "model": "gpt2", "prompt": "Once" }),
        )
        .await;
    assert_eq!(reply.body["error"]["type"], "authentication_error");
    reply.expect_error(401);
}

#[tokio::test]
async fn models_are_listed_for_those_who_may_use_them() {
    let (host, _upstream, customer) = both().await;
    let names = |list: &Value| {
        let data = list["data"].as_array().expect("a list").iter();
        data.map(|model| model["id"].as_str().expect("a name").to_owned())
            .collect::<Vec<_>>()
    };
    let all = customer.get("/v1/models").await.expect(200);
    assert_eq!(all["object"], "list");
    assert_eq!(names(&all), ["gpt2", "lawgent-thinking"]);
    let one = host.customer_with(json!({ "allowed_models": [1] })).await;
    assert_eq!(names(&one.get("/v1/models").await.expect(200)), ["gpt2"]);
    let model = one.get("/v1/models/gpt2").await.expect(200);
    assert_eq!(
        (&model["id"], &model["object"]),
        (&json!("gpt2"), &json!("model"))
    );
    for name in ["lawgent-thinking", "nothing"] {
        assert_eq!(
            one.get(&format!("/v1/models/{name}"))
                .await
                .expect_error(404),
            "model_not_found"
        );
    }
}

#[tokio::test]
async fn a_models_name_may_have_slashes() {
    let config = GPT2.replace("\"gpt2\"\nplugin", "\"org/gpt2\"\nplugin");
    let host = Host::builder().config(config).start().await;
    for path in ["/v1/models/org/gpt2", "/v1/models/org%2Fgpt2"] {
        let model = host.admin().get(path).await.expect(200);
        assert_eq!(model["id"], "org/gpt2");
    }
    let other = host.admin().get("/v1/models/gpt2").await;
    assert_eq!(other.expect_error(404), "model_not_found");
}
