//! `/customers`, as the seed's users call it.

use serde_json::json;

use crate::harness::Host;

#[tokio::test]
async fn a_customer_is_created_as_the_contract_says() {
    let host = Host::start().await;
    let reply = host
        .admin()
        .post(
            "/customers",
            json!({ "name": "Your Company", "email": "contact@company.com", "company": "Your Company Inc" }),
        )
        .await;
    assert!(!reply.header("x-request-id").is_empty());
    let customer = reply.expect(201);
    assert_eq!(customer["id"], 1);
    assert_eq!(customer["name"], "Your Company");
    assert_eq!(customer["email"], "contact@company.com");
    assert_eq!(customer["company"], "Your Company Inc");
    let created = customer["created_at"].as_str().expect("a text");
    assert_eq!(created.len(), "2024-01-01T00:00:00Z".len(), "{created}");

    assert_eq!(host.admin().get("/customers/1").await.expect(200), customer);
    assert_eq!(
        host.admin().get("/customers").await.expect(200),
        json!({ "customers": [customer] })
    );
}

#[tokio::test]
async fn an_address_belongs_to_one_customer_until_that_is_deleted() {
    let host = Host::start().await;
    let new = json!({ "name": "A", "email": "a@b.c" });
    host.admin()
        .post("/customers", new.clone())
        .await
        .expect(201);
    let again = json!({ "name": "B", "email": "A@B.C" });
    assert_eq!(
        host.admin()
            .post("/customers", again)
            .await
            .expect_error(409),
        "email_taken"
    );
    host.admin().delete("/customers/1").await.expect(204);
    assert_eq!(
        host.admin().delete("/customers/1").await.expect_error(404),
        "customer_not_found"
    );
    let next = host.admin().post("/customers", new).await.expect(201);
    assert!(next["id"].as_i64() > Some(1), "{next}");
}

#[tokio::test]
async fn what_is_not_a_customer_is_refused_by_field() {
    let host = Host::start().await;
    let long = "x".repeat(201);
    for (body, param) in [
        (json!({ "email": "a@b.c" }), "name"),
        (json!({ "name": "", "email": "a@b.c" }), "name"),
        (json!({ "name": "  ", "email": "a@b.c" }), "name"),
        (json!({ "name": "a\u{0}b", "email": "a@b.c" }), "name"),
        (json!({ "name": long, "email": "a@b.c" }), "name"),
        (json!({ "name": 1, "email": "a@b.c" }), "name"),
        (json!({ "name": "A", "email": "nobody" }), "email"),
        (json!({ "name": "A", "email": "a@b@c" }), "email"),
        (json!({ "name": "A", "email": "a b@c" }), "email"),
        (json!({ "name": "A", "email": "a@b.c", "vip": true }), "vip"),
    ] {
        let reply = host.admin().post("/customers", body.clone()).await;
        let found = reply.body["error"]["param"].clone();
        assert_eq!(reply.expect_error(422), "invalid_request");
        assert_eq!(found, param, "{body}");
    }
    assert_eq!(
        host.admin().get("/customers").await.expect(200),
        json!({ "customers": [] })
    );
}

#[tokio::test]
async fn only_the_operator_manages_customers() {
    let host = Host::start().await;
    let customer = host.customer().await;
    let new = json!({ "name": "A", "email": "a@b.c" });
    for (caller, status, code) in [
        (host.anyone(), 401, "missing_api_key"),
        (
            host.anyone().with_header("x-admin-key", "wrong".into()),
            401,
            "invalid_api_key",
        ),
        (customer.clone(), 403, "wrong_kind_of_key"),
    ] {
        assert_eq!(
            caller
                .post("/customers", new.clone())
                .await
                .expect_error(status),
            code
        );
        assert_eq!(caller.get("/customers").await.expect_error(status), code);
        assert_eq!(
            caller.delete("/customers/1").await.expect_error(status),
            code
        );
    }
    customer.get("/customers/1").await.expect(200);
}

#[tokio::test]
async fn another_customer_is_a_missing_one() {
    let host = Host::start().await;
    let (mine, _) = (host.customer().await, host.customer().await);
    let foreign = mine.get("/customers/2").await;
    let missing = mine.get("/customers/99").await;
    assert_eq!(
        foreign.body["error"]["message"],
        missing.body["error"]["message"]
    );
    assert_eq!(foreign.expect_error(404), "customer_not_found");
    assert_eq!(missing.expect_error(404), "customer_not_found");
    assert_eq!(
        mine.get("/usage?customer_id=2").await.expect_error(404),
        "customer_not_found"
    );
    assert_eq!(
        mine.get("/usage/requests?customer_id=2")
            .await
            .expect_error(404),
        "customer_not_found"
    );
    assert_eq!(
        mine.get("/api/keys/2").await.expect_error(404),
        "key_not_found"
    );
    assert_eq!(
        mine.get("/api/keys").await.expect(200)["keys"]
            .as_array()
            .map(Vec::len),
        Some(1)
    );
}
