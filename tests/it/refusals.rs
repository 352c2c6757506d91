//! What is refused, by its documented code and its field.

use serde_json::json;

use crate::dashboard::submit;
use crate::harness::{ADMIN_KEY, Host};
use crate::loading::Silent;

/// A small random Llama, whose template is yet to be written.
const LLAMA: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../plugins/transformer/tests/fixtures/llama"
);

#[tokio::test]
async fn a_query_that_asks_for_something_else_is_refused() {
    let host = Host::start().await;
    let (customer, admin) = (host.customer().await, host.admin());
    for (path, param) in [
        ("/usage?customer=999", "customer"),
        ("/usage?customer_id=1&since=2027-01-31T00:00:00Z", "since"),
        ("/usage?after=1", "after"),
        ("/usage?limit=1", "limit"),
        ("/usage?customer_id=one", "customer_id"),
        ("/usage?customer_id=1&customer_id=2", "customer_id"),
        ("/usage/requests?customer=1", "customer"),
        ("/usage/requests?limits=1", "limits"),
        ("/api/keys?customer=1", "customer"),
        ("/customers?customer_id=1", "customer_id"),
        ("/customers/1/transfers?since=2027-01-31T00:00:00Z", "since"),
        ("/admin/audit?key=1", "key"),
    ] {
        let reply = admin.get(path).await;
        assert_eq!(
            reply.body["error"]["param"], param,
            "{path}: {}",
            reply.body
        );
        assert_eq!(reply.expect_error(422), "invalid_request", "{path}");
    }
    let reply = customer.get("/usage/requests?since=2027-01-31").await;
    assert_eq!(reply.expect_error(422), "invalid_request");
}

#[tokio::test]
async fn codes_are_as_documented() {
    let silent = Silent::start().await;
    let refusing = tempfile::TempDir::new().expect("a folder");
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        let to = refusing.path().join(file);
        std::fs::copy(format!("{LLAMA}/{file}"), to).expect("a copy");
    }
    let template = "{{ raise_exception('Not today') }}";
    std::fs::write(refusing.path().join("chat_template.jinja"), template).expect("a file");
    let config = format!(
        "[[models]]\nid = 1\nname = \"slow\"\nplugin = \"{}\"\n\
         [[models]]\nid = 2\nname = \"refusing\"\nplugin = \"transformer\"\nmodel_path = {:?}\n",
        silent.reference(),
        refusing.path(),
    );
    let host = Host::builder().config(config).start().await;
    let customer = host.customer().await;
    let chat = |model: &str| json!({ "model": model, "max_tokens": 1, "messages": [{ "role": "user", "content": "Hi" }] });
    for (path, body, status, code) in [
        ("/v1/embeddings", json!({}), 404, "endpoint_not_found"),
        ("/v1/responses", json!({}), 404, "endpoint_not_found"),
        ("/v1/moderations", json!({}), 404, "endpoint_not_found"),
        (
            "/v1/chat/completions",
            chat("refusing"),
            400,
            "chat_template",
        ),
        ("/v1/chat/completions", chat("slow"), 503, "model_loading"),
    ] {
        let reply = customer.post(path, body).await;
        assert_eq!(reply.expect_error(status), code, "{path}");
    }
    // people get a page, and the operator the code
    let key = format!("key={ADMIN_KEY}");
    let foreign = ("sec-fetch-site", "cross-site");
    let reply = submit(&host.anyone(), "/login", &key, &[foreign]).await;
    assert_eq!(reply.status, 403);
    let log = host.log();
    assert!(log.contains("\"code\":\"cross_site_request\""), "{log}");
}
