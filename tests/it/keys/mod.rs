//! Keys: issued, shown once, recognised, turned off and deleted.

mod life;
mod rights;

use serde_json::{Value, json};

use crate::harness::{ADMIN_KEY, Database, GPT2, Host};

const TWO_MODELS: &str = r#"
[[models]]
id = 1
name = "gpt2"
plugin = "gpt2"
model_path = "embedded"

[[models]]
id = 2
name = "other"
plugin = "gpt2"
model_path = "embedded"
preload = false
"#;

async fn create_customer(host: &Host) {
    let new = json!({ "name": "A", "email": "contact@company.com" });
    host.admin().post("/customers", new).await.expect(201);
}

#[tokio::test]
async fn a_key_is_created_as_the_contract_says() {
    let host = Host::builder().config(TWO_MODELS).start().await;
    create_customer(&host).await;
    let new = json!({
        "customer_email": "contact@company.com", "name": "Production Key", "allowed_models": [1, 2],
    });
    let key = host.admin().post("/api/keys", new).await.expect(201);
    assert_eq!(key["id"], 1);
    assert_eq!(key["name"], "Production Key");
    assert_eq!(key["rate_limit"], 60);
    assert_eq!(key["allowed_models"], json!([1, 2]));
    let text = key["key"].as_str().expect("a key");
    assert!(
        text.starts_with("mhk_") && text.len() == 4 + 8 + 1 + 32 + 6,
        "{text}"
    );
}

/// Whether any table on a server has this text, as a text or as bytes.
async fn is_in_tables(database: &Database, text: &str) -> bool {
    let sql = format!(
        "DO $$ DECLARE name TEXT; is_there BOOLEAN; BEGIN \
         FOR name IN SELECT table_name FROM information_schema.tables \
         WHERE table_schema = current_schema LOOP \
         EXECUTE format('SELECT EXISTS (SELECT FROM %I AS of_table \
         WHERE strpos(of_table::TEXT, ''{text}'') > 0 \
         OR strpos(of_table::TEXT, encode(''{text}''::BYTEA, ''hex'')) > 0)', name) \
         INTO is_there; IF is_there THEN RAISE 'found in %', name; END IF; \
         END LOOP; END $$"
    );
    match database.execute(&sql).await {
        Ok(()) => false,
        Err(error) => {
            let said = error.to_string();
            assert!(said.contains("found in"), "{said}");
            true
        }
    }
}

#[tokio::test]
async fn a_key_is_shown_once_and_kept_as_a_hash() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let text = customer.key().to_owned();
    let secret = &text["mhk_12345678_".len()..];
    customer
        .post(
            "/generate",
            json!({ "text": "a", "model_id": 1, "max_new_tokens": 1 }),
        )
        .await
        .expect(200);
    customer
        .with_header("x-api-key", text.replace('_', "-"))
        .get("/usage")
        .await
        .expect_error(401);
    for reply in [
        host.admin().get("/api/keys").await,
        host.admin().get("/api/keys/1").await,
    ] {
        let shown = reply.expect(200).to_string();
        assert!(!shown.contains(secret), "{shown}");
    }
    for kept in [host.log(), host.out()] {
        assert!(!kept.contains(secret) && !kept.contains(ADMIN_KEY));
    }
    for entry in std::fs::read_dir(host.dir().join("data")).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let bytes = std::fs::read(&path).expect("a file");
            for text in [secret, ADMIN_KEY] {
                let found = bytes
                    .windows(text.len())
                    .any(|window| window == text.as_bytes());
                assert!(!found, "{} holds a key", path.display());
            }
        }
    }
    let database = host.database();
    if database.is_on_server() {
        for text in [secret, ADMIN_KEY] {
            assert!(!is_in_tables(&database, text).await, "a table holds a key");
        }
        // its public part is there
        let public = &text["mhk_".len().."mhk_12345678".len()];
        assert!(is_in_tables(&database, public).await);
    }
}

#[tokio::test]
async fn what_is_kept_of_a_key_opens_nothing_under_another_secret() {
    let host = Host::start().await;
    let customer = host.customer().await;
    customer.get("/usage").await.expect(200);
    let host = host.restart().await;
    customer.at(host.url()).get("/usage").await.expect(200);

    // another is made where there is none
    std::fs::remove_file(host.dir().join("data/secret")).expect("a file");
    let database = host.database();
    if database.is_on_server() {
        // it would not start beside others with the first
        let forgotten = database.execute("DELETE FROM secret").await;
        forgotten.expect("no secret");
    }
    let host = host.restart().await;
    let refused = customer.at(host.url()).get("/usage").await;
    assert_eq!(refused.expect_error(401), "invalid_api_key");
    // and those that it issues work
    host.customer().await.get("/usage").await.expect(200);
}

#[tokio::test]
async fn a_key_opens_its_customers_things_by_either_header() {
    let host = Host::start().await;
    let customer = host.customer().await;
    let key = customer.key().to_owned();
    customer.get("/usage").await.expect(200);
    customer
        .with_header("authorization", format!("Bearer {key}"))
        .get("/usage")
        .await
        .expect(200);
    let admin = host
        .anyone()
        .with_header("authorization", format!("Bearer {ADMIN_KEY}"));
    admin.get("/customers").await.expect(200);

    let mut typed = key.clone();
    typed.replace_range(20..21, if &key[20..21] == "x" { "y" } else { "x" });
    for wrong in [
        typed,
        format!("{key}x"),
        "mhk_".into(),
        "é".into(),
        String::new(),
    ] {
        let caller = customer.with_header("x-api-key", wrong);
        assert_eq!(
            caller.get("/usage").await.expect_error(401),
            "invalid_api_key"
        );
    }
    let reply = host.anyone().get("/usage").await;
    assert_eq!(reply.header("www-authenticate"), "Bearer");
    assert_eq!(reply.expect_error(401), "missing_api_key");
}

#[tokio::test]
async fn a_key_is_turned_off_and_on_and_deleted() {
    let host = Host::start().await.ready().await;
    let customer = host.customer().await;
    let ask = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", ask.clone()).await.expect(200);
    let off = host
        .admin()
        .post("/api/keys/1/toggle", Value::Null)
        .await
        .expect(200);
    assert_eq!(off["is_active"], false);
    assert_eq!(
        customer
            .post("/generate", ask.clone())
            .await
            .expect_error(403),
        "key_disabled"
    );
    let on = host
        .admin()
        .post("/api/keys/1/toggle", Value::Null)
        .await
        .expect(200);
    assert_eq!(on["is_active"], true);
    customer.post("/generate", ask.clone()).await.expect(200);
    host.admin().delete("/api/keys/1").await.expect(204);
    assert_eq!(
        customer.post("/generate", ask).await.expect_error(401),
        "invalid_api_key"
    );
    assert_eq!(
        host.admin()
            .post("/api/keys/1/toggle", Value::Null)
            .await
            .expect_error(404),
        "key_not_found"
    );
    assert_eq!(
        host.admin().get("/usage?customer_id=1").await.expect(200)["totals"]["requests"],
        2
    );
}

#[tokio::test]
async fn the_keys_of_a_deleted_customer_open_nothing() {
    let host = Host::start().await;
    let customer = host.customer().await;
    host.admin().delete("/customers/1").await.expect(204);
    assert_eq!(
        customer.get("/usage").await.expect_error(401),
        "invalid_api_key"
    );
}

#[tokio::test]
async fn a_key_may_use_the_models_it_was_given() {
    let host = Host::builder()
        .config(TWO_MODELS)
        .start()
        .await
        .ready()
        .await;
    let customer = host.customer_with(json!({ "allowed_models": [2] })).await;
    let ask = |id: i64| json!({ "text": "Once", "model_id": id, "max_new_tokens": 1 });
    let refused = customer.post("/generate", ask(1)).await;
    assert_eq!(refused.body["error"]["param"], "model_id");
    assert_eq!(refused.expect_error(403), "model_not_allowed");
    customer.post("/generate", ask(2)).await.expect(200);
    assert_eq!(
        customer.post("/generate", ask(3)).await.expect_error(404),
        "model_not_found"
    );
    let models = customer.get("/models").await.expect(200);
    assert_eq!(models["models"].as_array().map(Vec::len), Some(1));

    let change = json!({ "allowed_models": [1], "rate_limit": 5, "name": "Other" });
    let changed = host.admin().patch("/api/keys/1", change).await.expect(200);
    assert_eq!(changed["allowed_models"], json!([1]));
    assert_eq!(
        (&changed["rate_limit"], &changed["name"]),
        (&json!(5), &json!("Other"))
    );
    customer.post("/generate", ask(1)).await.expect(200);
    assert_eq!(
        customer.post("/generate", ask(2)).await.expect_error(403),
        "model_not_allowed"
    );
}

#[tokio::test]
async fn what_is_not_a_key_is_refused_by_field() {
    let host = Host::start().await;
    create_customer(&host).await;
    let email = "contact@company.com";
    for (body, status, param) in [
        (json!({ "customer_email": email, "name": "" }), 422, "name"),
        (
            json!({ "customer_email": email, "name": "K", "rate_limit": 0 }),
            422,
            "rate_limit",
        ),
        (
            json!({ "customer_email": email, "name": "K", "rate_limit": -1 }),
            422,
            "rate_limit",
        ),
        (
            json!({ "customer_email": email, "name": "K", "allowed_models": [7] }),
            422,
            "allowed_models",
        ),
        (
            json!({ "customer_email": email, "name": "K", "allowed_models": "all" }),
            422,
            "allowed_models",
        ),
        (json!({ "name": "K" }), 422, "customer_email"),
        (
            json!({ "customer_email": "a\u{0}@example.com", "name": "K" }),
            422,
            "customer_email",
        ),
    ] {
        let reply = host.admin().post("/api/keys", body.clone()).await;
        assert_eq!(reply.body["error"]["param"], param, "{body}");
        assert_eq!(reply.expect_error(status), "invalid_request");
    }
    let nobody = json!({ "customer_email": "no@body.com", "name": "K" });
    assert_eq!(
        host.admin()
            .post("/api/keys", nobody)
            .await
            .expect_error(404),
        "customer_not_found"
    );
}

#[tokio::test]
async fn the_admin_key_is_printed_once_and_can_be_reset() {
    let host = Host::builder().without_admin_key().start().await;
    let printed = host.out();
    let first = printed.split(": ").nth(1).expect("a key").trim().to_owned();
    assert!(first.starts_with("mha_"), "{printed}");
    assert!(!host.log().contains(&first));
    let with = |host: &Host, key: &str| host.anyone().with_header("x-admin-key", key.to_owned());
    with(&host, &first).get("/customers").await.expect(200);

    let host = host.restart().await;
    assert_eq!(host.out(), "");
    with(&host, &first).get("/customers").await.expect(200);

    let second = host.run(&["admin", "reset-key"]).trim().to_owned();
    with(&host, &second).get("/customers").await.expect(200);
    assert_eq!(
        with(&host, &first)
            .get("/customers")
            .await
            .expect_error(401),
        "invalid_api_key"
    );
}

#[tokio::test]
async fn a_key_lives_through_a_restart() {
    let host = Host::builder().config(GPT2).start().await;
    let key = host.customer().await.key().to_owned();
    let host = host.restart().await;
    host.anyone()
        .with_header("x-api-key", key)
        .get("/usage")
        .await
        .expect(200);
}
