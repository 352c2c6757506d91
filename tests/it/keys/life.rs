//! A key's life: how it ends, how it is renewed, and what is seen of its use.

use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

use crate::harness::{Client, Host, eventually};

/// The time that a field of an answer gives.
#[track_caller]
fn time(value: &Value) -> OffsetDateTime {
    let text = value.as_str().unwrap_or_else(|| panic!("no time: {value}"));
    OffsetDateTime::parse(text, &Rfc3339).expect("a time")
}

/// The time now, by the server's clock.
async fn now(host: &Host) -> OffsetDateTime {
    let new = json!({ "customer_id": 1, "name": "Clock" });
    let key = host.admin().post("/api/keys", new).await.expect(201);
    time(&key["created_at"])
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).expect("a time")
}

/// Rotates the first key; whoever has its new text.
async fn rotate(host: &Host, body: Value) -> (Client, Value) {
    let key = host.admin().post("/api/keys/1/rotate", body).await;
    let key = key.expect(200);
    let text = key["key"].as_str().expect("a key").to_owned();
    (host.anyone().with_header("x-api-key", text), key)
}

#[tokio::test]
async fn a_key_works_until_it_expires() {
    let host = Host::start().await;
    let customer = host
        .customer_with(json!({ "expires_at": "2999-12-31T23:00:00+01:00" }))
        .await;
    let shown = host.admin().get("/api/keys/1").await.expect(200);
    assert_eq!(shown["expires_at"], "2999-12-31T22:00:00Z");
    customer.get("/usage").await.expect(200);

    let soon = rfc3339(now(&host).await + Duration::seconds(8));
    let change = json!({ "expires_at": soon });
    host.admin().patch("/api/keys/1", change).await.expect(200);
    eventually("the key has expired", async || {
        let reply = customer.get("/usage").await;
        reply.status == 401 && reply.expect_error(401) == "key_expired"
    })
    .await;

    // an end that is in no year which can be written
    let late = json!({ "expires_at": "9999-12-31T23:59:59-05:00" });
    let refused = host.admin().patch("/api/keys/1", late).await;
    assert_eq!(refused.body["error"]["param"], "expires_at");
    refused.expect_error(422);
    let last = json!({ "expires_at": "9999-12-31T23:59:59Z" });
    let changed = host.admin().patch("/api/keys/1", last.clone()).await;
    assert_eq!(changed.expect(200)["expires_at"], last["expires_at"]);
    customer.get("/usage").await.expect(200);

    let change = json!({ "expires_at": null });
    let changed = host.admin().patch("/api/keys/1", change).await.expect(200);
    assert_eq!(changed["expires_at"], Value::Null);
    customer.get("/usage").await.expect(200);
}

#[tokio::test]
async fn a_rotated_key_is_the_same_key_with_another_text() {
    let host = Host::start().await.ready().await;
    let terms = json!({ "rate_limit": 2, "name": "Mine", "scopes": ["generate", "usage:read"] });
    let first = host.customer_with(terms).await;
    let before = host.admin().get("/api/keys/1").await.expect(200);
    // an empty body takes the defaults
    let request = host
        .admin()
        .request(reqwest::Method::POST, "/api/keys/1/rotate");
    let reply = request.send().await.expect("an answer");
    assert_eq!(reply.status(), 200);
    let after: Value = serde_json::from_str(&reply.text().await.expect("text")).expect("JSON");
    for same in [
        "id",
        "customer_id",
        "name",
        "rate_limit",
        "scopes",
        "created_at",
    ] {
        assert_eq!(after[same], before[same], "{same}");
    }
    assert_eq!(after["replaced_key"]["key_prefix"], before["key_prefix"]);
    let until = time(&after["replaced_key"]["works_until"]);
    assert!((until - now(&host).await - Duration::DAY).abs() < Duration::MINUTE);

    // one rate and one usage, whichever text is used
    let text = after["key"].as_str().expect("a key");
    let second = first.with_header("x-api-key", text.to_owned());
    let ask = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 1 });
    first.post("/generate", ask.clone()).await.expect(200);
    second.post("/generate", ask.clone()).await.expect(200);
    second.post("/generate", ask).await.expect_error(429);
    let rows = first.get("/usage/requests").await.expect(200);
    let rows = rows["requests"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["api_key_id"] == 1), "{rows:?}");

    // shown once
    let listed = host.admin().get("/api/keys").await.expect(200).to_string();
    assert!(!listed.contains(&text["mhk_12345678_".len()..]), "{listed}");
}

#[tokio::test]
async fn at_most_two_texts_of_a_key_work() {
    let host = Host::start().await;
    let first = host.customer().await;
    let (second, _) = rotate(&host, json!({ "grace_seconds": 3600 })).await;
    first.get("/usage").await.expect(200);
    second.get("/usage").await.expect(200);

    // during the grace: the oldest stops at once, the one before goes on
    let (third, shown) = rotate(&host, json!({})).await;
    let prefix = shown["replaced_key"]["key_prefix"].as_str();
    assert!(second.key().starts_with(prefix.expect("text")));
    assert_eq!(
        first.get("/usage").await.expect_error(401),
        "invalid_api_key"
    );
    second.get("/usage").await.expect(200);
    third.get("/usage").await.expect(200);

    // without a grace the old one stops at once
    let (fourth, shown) = rotate(&host, json!({ "grace_seconds": 0 })).await;
    let prefix = shown["replaced_key"]["key_prefix"].as_str();
    assert!(third.key().starts_with(prefix.expect("text")));
    assert_eq!(shown["replaced_key"]["works_until"], Value::Null);
    assert_eq!(third.get("/usage").await.expect_error(401), "key_expired");
    assert_eq!(
        second.get("/usage").await.expect_error(401),
        "invalid_api_key"
    );
    fourth.get("/usage").await.expect(200);

    let (fifth, _) = rotate(&host, json!({ "grace_seconds": 1 })).await;
    eventually("the grace is over", async || {
        let reply = fourth.get("/usage").await;
        reply.status == 401 && reply.expect_error(401) == "key_expired"
    })
    .await;
    fifth.get("/usage").await.expect(200);
    // turned off, none of them works
    let off = host.admin().post("/api/keys/1/toggle", Value::Null).await;
    off.expect(200);
    assert_eq!(fifth.get("/usage").await.expect_error(403), "key_disabled");
}

#[tokio::test]
async fn a_rotation_that_cannot_be_is_refused() {
    let host = Host::start().await;
    let customer = host.customer().await;
    for (body, param) in [
        (json!({ "grace_seconds": 2_592_001 }), "grace_seconds"),
        (json!({ "grace_seconds": -1 }), "grace_seconds"),
        (json!({ "grace_seconds": "day" }), "grace_seconds"),
        (json!({ "grace": 1 }), "grace"),
    ] {
        let reply = host.admin().post("/api/keys/1/rotate", body.clone()).await;
        assert_eq!(reply.body["error"]["param"], param, "{body}");
        assert_eq!(reply.expect_error(422), "invalid_request");
    }
    let rotate = async |caller: &Client, path| caller.post(path, json!({})).await;
    let missing = rotate(&host.admin(), "/api/keys/9/rotate").await;
    assert_eq!(missing.expect_error(404), "key_not_found");
    let own = rotate(&customer, "/api/keys/1/rotate").await;
    assert_eq!(own.expect_error(403), "wrong_kind_of_key");
    customer.get("/usage").await.expect(200);
}

#[tokio::test]
async fn the_last_use_of_a_key_is_seen() {
    let host = Host::start().await;
    let customer = host.customer().await;
    let last_used = async |host: &Host| {
        let key = host.admin().get("/api/keys/1").await.expect(200);
        key["last_used_at"].clone()
    };
    assert_eq!(last_used(&host).await, Value::Null);
    let before = now(&host).await;
    customer.get("/usage").await.expect(200);
    eventually("the use is written", async || {
        !last_used(&host).await.is_null()
    })
    .await;
    assert!(time(&last_used(&host).await) >= before);

    // what is not written yet is written at the end
    let before = now(&host).await;
    customer.get("/usage").await.expect(200);
    host.signal("TERM");
    let mut host = host;
    assert!(host.wait_exit().await.success());
    let host = host.restart().await;
    assert!(time(&last_used(&host).await) >= before);
}

#[tokio::test]
async fn a_change_of_a_key_reaches_its_users_at_once() {
    let host = Host::start().await;
    let customer = host.customer().await;
    // many who use it all the time, so that it is always being read
    let users: Vec<_> = (0..8)
        .map(|_| {
            let customer = customer.clone();
            tokio::spawn(async move {
                loop {
                    let status = customer.get("/models").await.status;
                    assert!([200, 403].contains(&status.as_u16()), "{status}");
                }
            })
        })
        .collect();
    let admin = host.admin();
    for _ in 0..25 {
        for (is_active, status) in [(false, 403), (true, 200)] {
            let key = admin.post("/api/keys/1/toggle", Value::Null).await;
            assert_eq!(key.expect(200)["is_active"], is_active);
            customer.get("/models").await.expect(status);
        }
    }
    for user in users {
        assert!(!user.is_finished());
        user.abort();
    }
    // a text that nobody has yet, and then somebody has
    let (second, _) = rotate(&host, json!({ "grace_seconds": 0 })).await;
    customer.get("/models").await.expect_error(401);
    second.get("/models").await.expect(200);
    host.admin().delete("/customers/1").await.expect(204);
    second.get("/models").await.expect_error(401);
}
