//! Keys on the dashboard: what is shown of them, rotating one, and the log of
//! what was done.

use serde_json::json;

use super::browser::Browser;
use super::{page, signed_in, submit};
use crate::harness::{ADMIN_KEY, Host};

#[tokio::test]
async fn an_operator_rotates_a_key_in_a_browser() {
    let host = Host::start().await;
    let terms = json!({
        "scopes": ["generate", "usage:read"],
        "expires_at": "2999-01-02T03:04:05Z",
        "allowed_networks": ["127.0.0.0/8"],
    });
    let first = host.customer_with(terms).await;
    first.get("/usage").await.expect(200);

    let browser = Browser::start().await;
    browser.open(&format!("{}/dashboard/1", host.url())).await;
    browser.fill("#key", ADMIN_KEY).await;
    browser.click("main button").await;
    let row = browser.text("#keys tbody").await;
    for shown in [
        "generate, usage:read",
        "2999-01-02 03:04:05 UTC",
        "from 127.0.0.0/8",
        "active",
    ] {
        assert!(row.contains(shown), "{row}");
    }

    browser.click("a[aria-label='Rotate Key']").await;
    browser.click("#grace_seconds option[value='3600']").await;
    browser.click("main form button").await;
    let text = browser.text("#new-key").await;
    let second = host.anyone().with_header("x-api-key", text.clone());
    second.get("/usage").await.expect(200);
    first.get("/usage").await.expect(200);

    browser.click("main a.button").await;
    browser.find("#keys").await;
    let row = browser.text("#keys tbody").await;
    let (old, new) = (&first.key()[..12], &text[..12]);
    assert!(row.contains(old) && row.contains(new), "{row}");
    assert!(row.contains("works until"), "{row}");

    browser.click("header a[href='/dashboard/audit']").await;
    browser.find_text("#acts td", "key.rotated").await;
    browser.find_text("#acts td", "dashboard.signed_in").await;
}

#[tokio::test]
async fn acts_by_forms_are_on_record() {
    let host = Host::start().await;
    host.customer().await;
    let admin = signed_in(&host, ADMIN_KEY).await;
    let new = "name=New&rate_limit=60&scopes=generate&allowed_models=1";
    page(submit(&admin, "/dashboard/1/keys", new, &[]).await, 201);
    let grace = "grace_seconds=0";
    let rotate = "/dashboard/1/keys/2/rotate";
    page(submit(&admin, rotate, grace, &[]).await, 200);
    for (path, form) in [
        ("/dashboard/1/keys/2/active", "active=false"),
        ("/dashboard/1/keys/2/delete", ""),
    ] {
        assert_eq!(submit(&admin, path, form, &[]).await.status, 303);
    }
    let log = host.admin().get("/admin/audit?after=3").await.expect(200);
    let acts = log["acts"].as_array().expect("a list");
    let actions: Vec<_> = acts.iter().map(|act| act["action"].clone()).collect();
    assert_eq!(
        actions,
        [
            "dashboard.signed_in",
            "key.created",
            "key.rotated",
            "key.toggled",
            "key.deleted",
        ]
    );
    for act in acts {
        assert_eq!(act["actor"], "admin_key");
        assert_eq!(act["client"], "127.0.0.1");
        assert!(
            act["request_id"]
                .as_str()
                .is_some_and(|id| id.starts_with("req_"))
        );
    }
    // mistakes, and what only an operator may
    page(submit(&admin, rotate, grace, &[]).await, 404);
    let rotate = "/dashboard/1/keys/1/rotate";
    let long = "grace_seconds=9999999";
    page(submit(&admin, rotate, long, &[]).await, 422);
    let customer = host.customer().await;
    let viewer = signed_in(&host, customer.key()).await;
    page(
        submit(&viewer, "/dashboard/2/keys/3/rotate", grace, &[]).await,
        403,
    );
    page(viewer.get("/dashboard/audit").await, 403);
    let log = page(admin.get("/dashboard/audit").await, 200);
    assert!(
        log.contains("key.rotated") && log.contains("from 127.0.0.1"),
        "{log}"
    );
}
