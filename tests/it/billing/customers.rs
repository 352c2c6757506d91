//! What customers are at Stripe: made there anew when they are no more, by the name
//! they have now, and with an address or without.

use serde_json::json;

use super::{all_reported, ask, setup, sum, text, used_and_left};
use crate::harness::{Client, FakeStripe, Mood, eventually};

#[tokio::test]
async fn a_customer_that_stripe_has_no_more_is_made_anew_and_billed() {
    for is_second_attempt in [false, true] {
        let stripe = FakeStripe::start().await;
        let host = setup(stripe.url()).start().await.ready().await;
        let customer = host.customer().await;
        ask(&customer).await;
        all_reported(&host).await;
        assert_eq!(stripe.made("invoiceitems").len(), 1);

        if is_second_attempt {
            stripe.mood(Mood::Fail);
            ask(&customer).await;
            eventually("an attempt has failed", async || {
                stripe.asked("invoiceitems").len() > 1
            })
            .await;
        }
        stripe.forget();
        stripe.mood(Mood::Work);
        if !is_second_attempt {
            ask(&customer).await;
        }
        all_reported(&host).await;
        let customers = stripe.made("customers");
        assert_eq!(customers.len(), 2, "{customers:?}");
        assert_ne!(customers[0]["id"], customers[1]["id"]);
        assert_eq!(customers[0]["email"], customers[1]["email"]);
        let items = stripe.made("invoiceitems");
        assert_eq!(items.len(), 2, "{items:?}");
        assert_eq!(items[1]["customer"], customers[1]["id"]);
        let (used, left) = used_and_left(&host, 1).await;
        assert_eq!(sum(&items) + left, used);
        let log = host.log();
        assert_eq!(log.matches("has this customer no more").count(), 1);
        assert!(!log.contains("refused by Stripe"), "{log}");
    }
}

#[tokio::test]
async fn customers_that_stripe_never_has_are_not_made_one_after_the_other() {
    let stripe = FakeStripe::start().await;
    let host = setup(stripe.url()).start().await.ready().await;
    let customer = host.customer().await;
    all_reported(&host).await;
    stripe.mood(Mood::Disown);
    ask(&customer).await;
    eventually("Stripe refuses the second one's too", async || {
        host.log().contains("refused by Stripe")
    })
    .await;
    assert_eq!(stripe.made("customers").len(), 2);
    let (used, left) = used_and_left(&host, 1).await;
    let (database, late) = (host.database(), "next_attempt_at > sealed_at + 3000000");
    let failed = format!("SELECT count(*) FROM outbox WHERE delivered_at IS NULL AND {late}");
    eventually("the next attempt is late", async || {
        database.number(&failed).await == 1
    })
    .await;
    let kept = format!(
        "SELECT CAST(sum(amount) AS BIGINT) FROM outbox WHERE sealed_at IS NOT NULL \
        AND delivered_at IS NULL AND {late}"
    );
    assert_eq!(database.number(&kept).await + left, used);
}

#[tokio::test]
async fn what_is_owed_is_not_told_to_a_sandbox() {
    let stripe = FakeStripe::start().await;
    let host = setup(stripe.url()).start().await.ready().await;
    let customer = host.customer().await;
    all_reported(&host).await;
    stripe.mood(Mood::Sandbox);
    ask(&customer).await;
    eventually("the test key is refused", async || {
        host.log().contains("refused by Stripe")
    })
    .await;
    assert_eq!(stripe.made("customers").len(), 1);
    let kept = "SELECT CAST(sum(amount) AS BIGINT) FROM outbox WHERE delivered_at IS NULL";
    let (used, _) = used_and_left(&host, 1).await;
    assert_eq!(host.database().number(kept).await, used);
}

#[tokio::test]
async fn a_customer_that_is_renamed_between_two_attempts_is_made_by_its_new_name() {
    let stripe = FakeStripe::start().await;
    stripe.mood(Mood::Fail);
    let host = setup(stripe.url()).start().await;
    let new = json!({ "name": "Before", "email": "a@b.c" });
    host.admin().post("/customers", new).await.expect(201);
    eventually("an attempt has failed", async || {
        !stripe.asked("customers").is_empty()
    })
    .await;
    let change = json!({ "name": "After" });
    host.admin().patch("/customers/1", change).await.expect(200);
    stripe.mood(Mood::Work);
    all_reported(&host).await;
    let customers = stripe.made("customers");
    assert_eq!(customers.len(), 1);
    assert_eq!(customers[0]["name"], "After");
}

#[tokio::test]
async fn a_customer_whose_address_stripe_refuses_is_billed_all_the_same() {
    let stripe = FakeStripe::start().await;
    let host = setup(stripe.url()).start().await.ready().await;
    let new = json!({ "name": "A", "email": "a@b" });
    host.admin().post("/customers", new).await.expect(201);
    let key = json!({ "customer_id": 1, "name": "Key" });
    let key = host.admin().post("/api/keys", key).await.expect(201);
    let key = text(&key["key"]).to_owned();
    ask(&Client::new(host.url(), Some(("x-api-key", key)))).await;
    all_reported(&host).await;
    let customers = stripe.made("customers");
    assert_eq!(customers.len(), 1);
    assert_eq!(customers[0]["name"], "A");
    assert!(customers[0].get("email").is_none(), "{customers:?}");
    let (used, left) = used_and_left(&host, 1).await;
    assert_eq!(sum(&stripe.made("invoiceitems")) + left, used);
    assert!(host.log().contains("refuses the customer's address"));
}
