//! `GET /models`, `/ready`, and models that cannot be loaded.

use serde_json::{Value, json};

use crate::harness::{Act, GPT2, Host, Upstream, component, eventually, lawgent};

/// The model with this number as it is shown.
pub async fn shown(host: &Host, id: i64) -> Value {
    let models = host.admin().get("/models").await.expect(200);
    let all = models["models"].as_array().expect("a list");
    all.iter()
        .find(|model| model["id"] == id)
        .cloned()
        .unwrap_or_default()
}

#[tokio::test]
async fn models_are_shown_with_what_they_are_and_cost() {
    let upstream = Upstream::start(Act::Answer("")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let host = Host::builder().config(config).start().await.ready().await;
    let local = shown(&host, 1).await;
    assert_eq!(
        (&local["name"], &local["status"]),
        (&json!("gpt2"), &json!("ready"))
    );
    assert_eq!(local["source"], "embedded");
    assert!(
        local["context_window"]
            .as_u64()
            .is_some_and(|tokens| tokens >= 64),
        "{local}"
    );
    assert_eq!(
        local["price_per_million"],
        json!({ "prompt": 10.0, "completion": 10.0 })
    );
    let remote = shown(&host, 2).await;
    assert_eq!(
        (&remote["name"], &remote["status"]),
        (&json!("lawgent-thinking"), &json!("ready"))
    );
    assert!(
        remote["plugin"]
            .as_str()
            .is_some_and(|plugin| plugin.starts_with("lawgent-thinking ")),
        "{remote}"
    );
    assert_eq!(remote["digest"].as_str().map(str::len), Some(64));
}

#[tokio::test]
async fn the_upstreams_secret_is_nowhere_to_be_read() {
    let upstream = Upstream::start(Act::Answer("")).await;
    let host = Host::builder()
        .config(lawgent(upstream.url()))
        .start()
        .await
        .ready()
        .await;
    let models = host.admin().get("/models").await.expect(200).to_string();
    assert!(!models.contains("sk-upstream-secret"));
    assert!(!host.log().contains("sk-upstream-secret"));
}

#[tokio::test]
async fn lawgent_without_its_url_is_listed_with_the_reason_and_the_rest_works() {
    let plugin = component("lawgent-thinking");
    let config = format!(
        "{GPT2}[[models]]\nid = 2\nname = \"lawgent-thinking\"\nplugin = \"{plugin}\"\n\
         api_url = \"${{LAWGENT_API_URL}}\"\napi_key = \"${{LAWGENT_API_KEY}}\"\n"
    );
    let host = Host::builder().config(config).start().await.ready().await;
    let model = shown(&host, 2).await;
    assert_eq!(model["status"], "unavailable");
    let reason = model["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("LAWGENT_API_URL") && reason.contains("LAWGENT_API_KEY"),
        "{reason}"
    );

    // a customer learns that it is, and not why: that may name what is behind the model
    let customer = host.customer().await;
    let refused = customer
        .post("/generate", json!({ "text": "Once", "model_id": 2 }))
        .await;
    assert_eq!(refused.body["error"]["message"], "the model is unavailable");
    eventually("the log says why", async || host.log().contains(reason)).await;
    let models = customer.get("/models").await.expect(200);
    assert_eq!(models["models"][1]["status"], "unavailable");
    assert!(models["models"][1]["reason"].is_null(), "{models}");
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(refused.expect_error(503), "model_unavailable");
    let ask = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", ask).await.expect(200);
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_says_why_and_holds_nothing_back() {
    let rubbish = "[[models]]\nid = 3\nname = \"rubbish\"\nplugin = \"rubbish.wasm\"\n";
    let missing = "[[models]]\nid = 4\nname = \"missing\"\nplugin = \"missing.wasm\"\n";
    let unknown = "[[models]]\nid = 5\nname = \"unknown\"\nplugin = \"no-such-plugin\"\n";
    let nowhere = "[[models]]\nid = 6\nname = \"nowhere\"\nplugin = \"gpt2\"\nmodel_path = \"./no/such/folder\"\n";
    let plugin = component("misbehave");
    let offline = format!("[[models]]\nid = 7\nname = \"offline\"\nplugin = \"{plugin}\"\n");
    let config = format!("{GPT2}{rubbish}{missing}{unknown}{nowhere}{offline}");
    let host = Host::builder()
        .config(config)
        .file("rubbish.wasm", b"\0asm rubbish")
        .start()
        .await
        .ready()
        .await;
    assert_eq!(shown(&host, 1).await["status"], "ready");
    for (id, word) in [
        (3, "not a WebAssembly component"),
        (4, "cannot read"),
        (5, "no-such-plugin"),
        (6, "no/such/folder"),
        (7, "api_url"),
    ] {
        let model = shown(&host, id).await;
        assert_eq!(model["status"], "unavailable", "{model}");
        let reason = model["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(word), "{word} in {model}");
        assert!(host.log().contains("model is unavailable"));
        let customer = host.customer().await;
        let ask = json!({ "text": "Once", "model_id": id });
        assert_eq!(
            customer.post("/generate", ask).await.expect_error(503),
            "model_unavailable"
        );
    }
}

#[tokio::test]
async fn sources_are_tried_in_their_order() {
    let config = GPT2.replace("\"embedded\"", "[\"./no/such/folder\", \"embedded\"]");
    let host = Host::builder().config(config).start().await.ready().await;
    let model = shown(&host, 1).await;
    assert_eq!(
        (&model["status"], &model["source"]),
        (&json!("ready"), &json!("embedded"))
    );
    assert!(
        host.log().contains("no/such/folder"),
        "the log says what was passed over"
    );
}

#[tokio::test]
async fn a_model_without_preload_is_loaded_by_its_first_request() {
    let host = Host::builder()
        .config(format!("{GPT2}preload = false\n"))
        .start()
        .await
        .ready()
        .await;
    assert_eq!(shown(&host, 1).await["status"], "on_demand");
    let ask = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 1 });
    host.customer()
        .await
        .post("/generate", ask)
        .await
        .expect(200);
    assert_eq!(shown(&host, 1).await["status"], "ready");
}

#[tokio::test]
async fn models_need_a_key_and_health_does_not() {
    let host = Host::start().await;
    let anyone = host.anyone();
    for path in [
        "/models",
        "/v1/models",
        "/usage",
        "/customers",
        "/api/keys",
        "/api/keys/1",
        "/customers/1",
    ] {
        assert_eq!(
            anyone.get(path).await.expect_error(401),
            "missing_api_key",
            "{path}"
        );
    }
    for path in [
        "/generate",
        "/v1/completions",
        "/customers",
        "/api/keys",
        "/admin/reload",
    ] {
        assert_eq!(
            anyone.post(path, json!({})).await.expect_error(401),
            "missing_api_key",
            "{path}"
        );
    }
    let health = anyone.get("/health").await;
    assert!(health.header("x-request-id").starts_with("req_"));
    assert_eq!(health.expect(200), json!({ "status": "ok" }));
    eventually("ready", async || anyone.get("/ready").await.status == 200).await;
}

#[tokio::test]
async fn each_kind_of_key_has_its_endpoints() {
    let host = Host::start().await;
    let customer = host.customer().await;
    let ask = json!({ "text": "Once", "model_id": 1 });
    assert_eq!(
        host.admin().post("/generate", ask).await.expect_error(403),
        "wrong_kind_of_key"
    );
    let ask = json!({ "model": "gpt2", "prompt": "Once" });
    assert_eq!(
        host.admin()
            .post("/v1/completions", ask)
            .await
            .expect_error(403),
        "wrong_kind_of_key"
    );
    for path in [
        "/customers",
        "/api/keys",
        "/api/keys/1/toggle",
        "/admin/reload",
    ] {
        let reply = customer.post(path, json!({})).await;
        assert_eq!(reply.expect_error(403), "wrong_kind_of_key", "{path}");
    }
    assert_eq!(
        customer
            .patch("/api/keys/1", json!({}))
            .await
            .expect_error(403),
        "wrong_kind_of_key"
    );
    assert_eq!(
        customer.delete("/api/keys/1").await.expect_error(403),
        "wrong_kind_of_key"
    );
    assert!(customer.get("/models").await.expect(200)["configuration_error"].is_null());
}
