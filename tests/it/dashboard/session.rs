//! Signing in: what a session is, and what ends it.

use std::sync::Arc;

use super::{assert_asks_to_sign_in, page, set_cookie, signed_in, submit, with_cookie};
use crate::harness::{ADMIN_KEY, Host, Scratch};

#[tokio::test]
async fn a_session_ends_with_the_key_it_began_with() {
    let host = Host::start().await;
    let customer = host.customer().await;
    let viewer = signed_in(&host, customer.key()).await;
    let admin = signed_in(&host, ADMIN_KEY).await;
    page(viewer.get("/dashboard/1").await, 200);
    // said twice, meant once
    for _ in 0..2 {
        let off = submit(&admin, "/dashboard/1/keys/1/active", "active=false", &[]).await;
        assert_eq!(off.header("location"), "/dashboard/1#keys");
        assert_asks_to_sign_in(&viewer.get("/dashboard/1").await);
    }
    page(
        submit(
            &host.anyone(),
            "/login",
            &format!("key={}", customer.key()),
            &[],
        )
        .await,
        401,
    );
    submit(&admin, "/dashboard/1/keys/1/active", "active=true", &[]).await;
    page(viewer.get("/dashboard/1").await, 200);
    // signed in with a text that was rotated away
    submit(&admin, "/dashboard/1/keys/1/rotate", "grace_seconds=0", &[]).await;
    assert_asks_to_sign_in(&viewer.get("/dashboard/1").await);
    let other = host.customer().await;
    let viewer = signed_in(&host, other.key()).await;
    submit(&admin, "/dashboard/2/keys/2/delete", "", &[]).await;
    assert_asks_to_sign_in(&viewer.get("/dashboard/1").await);

    page(admin.get("/dashboard").await, 200);
    host.run(&["admin", "reset-key"]);
    assert_asks_to_sign_in(&admin.get("/dashboard").await);
}

#[tokio::test]
async fn a_cookie_is_what_the_server_signed_or_nothing() {
    let host = Host::start().await;
    let customer = host.customer().await;
    let set = set_cookie(&host, customer.key(), &[]).await;
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"] {
        assert!(set.contains(attribute), "{set}");
    }
    assert!(!set.contains("Secure"), "{set}");
    let by_https = [("x-forwarded-proto", "https")];
    assert!(
        set_cookie(&host, customer.key(), &by_https)
            .await
            .contains("Secure")
    );

    let cookie = set.split(';').next().expect("a cookie");
    let (name, value) = cookie.split_once('=').expect("a cookie");
    page(with_cookie(&host, cookie).get("/dashboard/1").await, 200);
    let (signature, session) = value.split_at(value.len() - "1234567890.key.12345678".len());
    let who = format!(".key.{}", &customer.key()["mhk_".len()..][..8]);
    assert!(session.ends_with(&who), "{value}");
    for forged in [
        value.replace(&who, ".admin"),
        value.replace(&who, ".key.12345678"),
        format!("{signature}9999999999{who}"),
        session.to_owned(),
        "9999999999.admin".to_owned(),
        String::new(),
    ] {
        assert_ne!(forged, value);
        let somebody = with_cookie(&host, &format!("{name}={forged}"));
        assert_asks_to_sign_in(&somebody.get("/dashboard/1").await);
    }
}

#[tokio::test]
async fn a_wrong_key_is_refused_and_not_repeated() {
    let host = Host::start().await;
    let anyone = host.anyone();
    for wrong in ["not-the-admin-key", "mhk_12345678_0", ""] {
        let text = page(
            submit(&anyone, "/login", &format!("key={wrong}"), &[]).await,
            401,
        );
        assert!(text.contains("the key is not valid"), "{text}");
        assert!(wrong.is_empty() || !text.contains(wrong), "{text}");
        assert!(wrong.is_empty() || !host.log().contains(wrong));
    }
    for away in ["https://evil.example/", "//evil.example", "/login"] {
        let form = format!("key={ADMIN_KEY}&next={away}");
        assert_eq!(
            submit(&anyone, "/login", &form, &[])
                .await
                .header("location"),
            "/dashboard"
        );
    }
    page(submit(&anyone, "/login", "next=/dashboard", &[]).await, 422);
    page(
        submit(
            &anyone,
            "/login",
            &format!("key={}", "a".repeat(1 << 17)),
            &[],
        )
        .await,
        413,
    );
}

#[tokio::test]
async fn a_sign_in_leads_back_to_the_page_over_http_2_too() {
    let host = Host::start().await.ready().await;
    let client = reqwest::Client::builder()
        .no_proxy()
        .http2_prior_knowledge()
        .redirect(reqwest::redirect::Policy::none());
    let page = format!("{}/dashboard/1?range=day", host.url());
    let asked = client.build().expect("a client").get(page).send().await;
    let asked = asked.expect("an answer");
    assert_eq!(
        asked.headers()["location"],
        "/login?next=%2Fdashboard%2F1%3Frange%3Dday"
    );
}

#[tokio::test]
async fn so_is_one_that_a_server_of_databases_would_not_take() {
    let database = Arc::new(Scratch::new());
    let host = Host::builder().on(database).start().await;
    // its checksum is right
    let key = format!("mhk_{}_{}1IlQjs", "%00".repeat(8), "0".repeat(32));
    let reply = submit(&host.anyone(), "/login", &format!("key={key}"), &[]).await;
    page(reply, 401);
    assert!(!host.log().contains("the database failed"));
}
