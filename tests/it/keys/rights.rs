//! What a key may be used for, and from where.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Client, GPT2, Host, Reply};

/// Everything that a customer's key opens, with the scope that it takes.
const ENDPOINTS: [(&str, &str, &str); 14] = [
    ("POST", "/generate", "generate"),
    ("POST", "/v1/completions", "generate"),
    ("POST", "/v1/chat/completions", "generate"),
    ("GET", "/models", "models:read"),
    ("GET", "/v1/models", "models:read"),
    ("GET", "/v1/models/gpt2", "models:read"),
    ("GET", "/usage", "usage:read"),
    ("GET", "/usage/requests", "usage:read"),
    ("GET", "/api/keys", "keys:read"),
    ("GET", "/api/keys/1", "keys:read"),
    ("GET", "/api/keys/1/budgets", "keys:read"),
    ("GET", "/customers/1", "customer:read"),
    ("GET", "/customers/1/transfers", "customer:read"),
    ("GET", "/customers/1/budgets", "customer:read"),
];
const SCOPES: [&str; 5] = [
    "generate",
    "models:read",
    "usage:read",
    "keys:read",
    "customer:read",
];

async fn call(caller: &Client, method: &str, path: &str) -> Reply {
    match method {
        // a body without its fields: what is told apart is whether it is looked at
        "POST" => caller.post(path, json!({})).await,
        _ => caller.get(path).await,
    }
}

/// Asks for the models by way of a proxy that says who asks.
async fn forwarded(caller: &Client, from: &str) -> Reply {
    let request = caller.request(Method::GET, "/models");
    let request = request.header("x-forwarded-for", from);
    Reply::of(request.send().await.expect("an answer")).await
}

#[tokio::test]
async fn a_key_does_what_its_scopes_say() {
    let host = Host::start().await;
    let customer = host.customer().await;
    let all = host.admin().get("/api/keys/1").await.expect(200);
    assert_eq!(all["scopes"], json!(SCOPES));
    for (method, path, _) in ENDPOINTS {
        let status = call(&customer, method, path).await.status.as_u16();
        assert!([200, 422].contains(&status), "{path}: {status}");
    }
    for scope in SCOPES {
        let new = json!({ "customer_id": 1, "name": scope, "scopes": [scope] });
        let key = host.admin().post("/api/keys", new).await.expect(201);
        assert_eq!(key["scopes"], json!([scope]));
        let text = key["key"].as_str().expect("a key").to_owned();
        let caller = customer.with_header("x-api-key", text);
        for (method, path, needed) in ENDPOINTS {
            let reply = call(&caller, method, path).await;
            if scope == needed {
                let status = reply.status.as_u16();
                assert!([200, 422].contains(&status), "{path}: {status}");
            } else {
                let message = reply.body["error"]["message"].to_string();
                assert!(message.contains(needed), "{path}: {message}");
                assert_eq!(reply.expect_error(403), "missing_scope", "{path}");
            }
        }
        // the page shows what takes three of them
        assert_eq!(caller.get("/dashboard/1").await.status, 403);
    }
    customer.get("/dashboard/1").await.expect(200);
}

#[tokio::test]
async fn scopes_change_with_the_key() {
    let host = Host::start().await;
    let customer = host.customer().await;
    customer.get("/usage").await.expect(200);
    let change = json!({ "scopes": ["models:read", "generate", "models:read"] });
    let changed = host.admin().patch("/api/keys/1", change).await.expect(200);
    assert_eq!(changed["scopes"], json!(["generate", "models:read"]));
    assert_eq!(
        customer.get("/usage").await.expect_error(403),
        "missing_scope"
    );
    customer.get("/models").await.expect(200);
}

#[tokio::test]
async fn a_key_is_used_from_its_networks_alone() {
    let host = Host::start().await;
    let near = json!({ "allowed_networks": ["198.51.100.0/24", "127.0.0.1"] });
    let customer = host.customer_with(near).await;
    customer.get("/models").await.expect(200);
    let change = json!({ "allowed_networks": ["2001:db8::/32", "203.0.113.77/24"] });
    let changed = host.admin().patch("/api/keys/1", change).await.expect(200);
    assert_eq!(
        changed["allowed_networks"],
        json!(["2001:db8::/32", "203.0.113.0/24"])
    );
    let refused = customer.get("/models").await;
    let message = refused.body["error"]["message"].to_string();
    assert!(message.contains("127.0.0.1"), "{message}");
    assert_eq!(refused.expect_error(403), "network_not_allowed");
    // anybody can say so
    let told = forwarded(&customer, "203.0.113.9").await;
    assert_eq!(told.expect_error(403), "network_not_allowed");
    // and a wrong key is a wrong key first
    let mut wrong = customer.key().to_owned();
    wrong.replace_range(0..3, "mhx");
    let wrong = customer.with_header("x-api-key", wrong);
    assert_eq!(
        wrong.get("/models").await.expect_error(401),
        "invalid_api_key"
    );

    let anywhere = json!({ "allowed_networks": null });
    let changed = host
        .admin()
        .patch("/api/keys/1", anywhere)
        .await
        .expect(200);
    assert_eq!(changed["allowed_networks"], Value::Null);
    customer.get("/models").await.expect(200);
}

#[tokio::test]
async fn a_trusted_proxy_says_where_a_request_comes_from() {
    let trusting = "[server]\ntrusted_proxies = [\"127.0.0.0/8\", \"::ffff:10.0.0.0/104\"]\n";
    let host = Host::builder()
        .config(format!("{trusting}{GPT2}"))
        .start()
        .await;
    let networks = json!({ "allowed_networks": ["203.0.113.0/24", "2001:db8::/32"] });
    let customer = host.customer_with(networks).await;
    for (from, status) in [
        ("203.0.113.9", 200),
        ("::ffff:203.0.113.9", 200),
        ("2001:db8::7", 200),
        ("198.51.100.1, 203.0.113.9, 10.0.0.2", 200),
        ("203.0.113.9, 198.51.100.1", 403),
        ("2001:db9::7", 403),
        ("nobody", 403),
        ("", 403),
    ] {
        let reply = forwarded(&customer, from).await;
        assert_eq!(reply.status.as_u16(), status, "{from:?}: {}", reply.body);
    }
    assert_eq!(
        customer.get("/models").await.expect_error(403),
        "network_not_allowed"
    );
    // the audit log names the client, not the proxy
    let request = host.admin().request(Method::POST, "/api/keys/1/toggle");
    let request = request.header("x-forwarded-for", "192.0.2.1, 198.51.100.7");
    assert_eq!(request.send().await.expect("an answer").status(), 200);
    let acts = host
        .admin()
        .get("/admin/audit?object=key/1")
        .await
        .expect(200);
    assert_eq!(acts["acts"][1]["client"], "198.51.100.7");
}

#[tokio::test]
async fn rights_that_make_no_sense_are_refused_by_field() {
    let host = Host::start().await;
    host.customer().await;
    for (field, value, param) in [
        ("scopes", json!([]), "scopes"),
        ("scopes", json!("generate"), "scopes"),
        ("scopes", json!(["generate", "root"]), "scopes[1]"),
        ("allowed_networks", json!([]), "allowed_networks"),
        ("allowed_networks", json!("10.0.0.0/8"), "allowed_networks"),
        (
            "allowed_networks",
            json!(["10.0.0.0/33"]),
            "allowed_networks",
        ),
        (
            "allowed_networks",
            json!(["example.com"]),
            "allowed_networks",
        ),
        (
            "allowed_networks",
            json!(vec!["10.0.0.1"; 101]),
            "allowed_networks",
        ),
        ("expires_at", json!("tomorrow"), "expires_at"),
        ("expires_at", json!(4_000_000_000_u64), "expires_at"),
        ("expires_at", json!("2001-01-01T00:00:00Z"), "expires_at"),
    ] {
        let change = json!({ field: value });
        let mut new = change.clone();
        new["customer_id"] = json!(1);
        new["name"] = json!("K");
        for reply in [
            host.admin().post("/api/keys", new).await,
            host.admin().patch("/api/keys/1", change.clone()).await,
        ] {
            assert_eq!(reply.body["error"]["param"], param, "{change}");
            assert_eq!(reply.expect_error(422), "invalid_request");
        }
    }
    let bad = Host::builder().config("[server]\ntrusted_proxies = [\"here\"]\n");
    let (status, says) = bad.refused();
    assert!(!status.success());
    assert!(says.contains("server.trusted_proxies"), "{says}");
}
