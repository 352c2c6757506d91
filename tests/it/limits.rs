//! Requests a minute, for each key and model.

use serde_json::json;

use crate::harness::{GPT2, Host};

const ASK: &str = "Once";

#[tokio::test]
async fn sixty_requests_a_minute_by_default_and_then_429() {
    let host = Host::start().await.ready().await;
    let customer = host.customer_with(json!({})).await;
    let ask = json!({ "text": ASK, "model_id": 1, "max_new_tokens": 1 });
    let first = customer.post("/generate", ask.clone()).await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), "60");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "59");
    first.expect(200);
    // one comes back each second, so that a slow machine gets a few more
    let mut answered = 1;
    let refused = loop {
        let reply = customer.post("/generate", ask.clone()).await;
        if reply.status == 429 {
            break reply;
        }
        reply.expect(200);
        answered += 1;
        assert!(answered < 500, "no limit");
    };
    assert!(answered >= 60, "only {answered} answered");
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
    assert_eq!(refused.expect_error(429), "rate_limit_exceeded");
    // what the limit refuses leaves no row
    let usage = customer.get("/usage").await.expect(200);
    assert_eq!(usage["totals"]["requests"], answered);
}

#[tokio::test]
async fn each_key_and_each_model_has_a_limit_of_its_own() {
    let other = GPT2
        .replace("id = 1", "id = 2")
        .replace("\"gpt2\"\nplugin", "\"other\"\nplugin");
    let host = Host::builder()
        .config(format!("{GPT2}{other}"))
        .start()
        .await
        .ready()
        .await;
    let (one, two) = (
        host.customer_with(json!({ "rate_limit": 1 })).await,
        host.customer_with(json!({ "rate_limit": 1 })).await,
    );
    let ask = |id: i64| json!({ "text": ASK, "model_id": id, "max_new_tokens": 1 });
    one.post("/generate", ask(1)).await.expect(200);
    one.post("/generate", ask(1)).await.expect_error(429);
    one.post("/generate", ask(2)).await.expect(200);
    two.post("/generate", ask(1)).await.expect(200);
    two.post("/generate", ask(1)).await.expect_error(429);
    let completion = json!({ "model": "other", "prompt": ASK, "max_tokens": 1 });
    let refused = one.post("/v1/completions", completion).await;
    assert!(
        refused
            .header("retry-after")
            .parse::<u32>()
            .is_ok_and(|seconds| (1..=60).contains(&seconds))
    );
    refused.expect_error(429);
}

#[tokio::test]
async fn a_model_may_have_a_lower_limit_than_its_keys() {
    let config = format!("{GPT2}\n[models.limits]\nrequests_per_minute = 2\n");
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let ask = json!({ "text": ASK, "model_id": 1, "max_new_tokens": 1 });
    let first = customer.post("/generate", ask.clone()).await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), "2");
    customer.post("/generate", ask.clone()).await.expect(200);
    customer.post("/generate", ask).await.expect_error(429);
}
