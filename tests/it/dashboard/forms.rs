//! Forms: who may send them, and what comes back of a wrong one.

use futures_util::future::join_all;

use super::{page, signed_in, submit};
use crate::harness::{ADMIN_KEY, Host};

#[tokio::test]
async fn forms_of_other_sites_are_refused() {
    let host = Host::start().await;
    host.customer().await;
    let admin = signed_in(&host, ADMIN_KEY).await;
    let new = "name=Stolen&rate_limit=60&scopes=generate&allowed_models=1";
    for foreign in [
        ("origin", "http://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        page(
            submit(&admin, "/dashboard/1/keys", new, &[foreign]).await,
            403,
        );
        let key = format!("key={ADMIN_KEY}");
        page(
            submit(&host.anyone(), "/login", &key, &[foreign]).await,
            403,
        );
    }
    let keys = host.admin().get("/api/keys").await.expect(200);
    assert_eq!(keys["keys"].as_array().map(Vec::len), Some(1));
    for own in [("origin", host.url()), ("sec-fetch-site", "same-origin")] {
        page(submit(&admin, "/dashboard/1/keys", new, &[own]).await, 201);
    }
}

#[tokio::test]
async fn a_form_with_a_mistake_comes_back_as_it_was() {
    let host = Host::start().await;
    host.customer().await;
    host.customer().await;
    let admin = signed_in(&host, ADMIN_KEY).await;
    let create = async |form: &str| page(submit(&admin, "/dashboard/1/keys", form, &[]).await, 422);
    let text = create("name=Kept&rate_limit=0&allowed_models=1").await;
    assert!(
        text.contains("rate limit: must be from 1 to 1000000"),
        "{text}"
    );
    assert!(
        text.contains("value=\"Kept\"") && text.contains("value=\"0\""),
        "{text}"
    );
    let text = create("name=%20&rate_limit=60").await;
    assert!(
        text.contains("name: must not be empty") && !text.contains(" checked"),
        "{text}"
    );
    let text =
        create("name=A&rate_limit=60&scopes=generate&allowed_models=1&allowed_models=9").await;
    assert!(text.contains("there is no model 9"), "{text}");

    let text = create("name=A&rate_limit=60&allowed_models=1").await;
    assert!(text.contains("scopes: must name at least one"), "{text}");
    for (field, value) in [
        ("allowed_networks", "10.0.0.0/8, nowhere"),
        ("expires_at", "2001-01-01T00:00"),
        ("token_limit", "0"),
    ] {
        let form = format!("name=A&rate_limit=60&scopes=generate&{field}={value}");
        let text = create(&form.replace(' ', "%20").replace('/', "%2F")).await;
        let shown = format!("{}: ", field.replace('_', " "));
        assert!(
            text.contains(&shown) && text.contains(&format!("value=\"{value}\"")),
            "{text}"
        );
    }

    // one customer's key is not found at another's
    page(
        submit(&admin, "/dashboard/1/keys/2/active", "active=false", &[]).await,
        404,
    );
    page(
        submit(&admin, "/dashboard/1/keys/2/delete", "", &[]).await,
        404,
    );
    page(
        submit(
            &admin,
            "/dashboard/3/keys",
            "name=A&rate_limit=60&scopes=generate",
            &[],
        )
        .await,
        404,
    );
}

#[tokio::test]
async fn a_key_that_several_turn_off_at_once_is_off() {
    let host = Host::start().await;
    host.customer().await;
    let admin = signed_in(&host, ADMIN_KEY).await;
    for is_active in [false, true] {
        let form = format!("active={is_active}");
        let submit = || submit(&admin, "/dashboard/1/keys/1/active", &form, &[]);
        for reply in join_all((0..9).map(|_| submit())).await {
            assert_eq!(reply.status, 303, "{}", reply.body);
        }
        let key = host.admin().get("/api/keys/1").await.expect(200);
        assert_eq!(key["is_active"], is_active);
    }
}
