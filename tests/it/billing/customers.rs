//! What customers are at Stripe.

use serde_json::json;

use super::{all_reported, setup};
use crate::harness::{FakeStripe, Mood, eventually};

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
