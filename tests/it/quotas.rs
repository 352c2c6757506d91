//! Limits: whose they are, and what is kept of them in a Redis.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::json;

use crate::harness::{Act, Host, Redis, Upstream, eventually};
use crate::limits::{ask, begin, second_key, upstream, upstream_by};

const ASK: &str = "Once";

#[tokio::test]
async fn tokens_of_all_keys_and_models_of_a_customer_are_counted_together() {
    let limits = "customer = { tokens_per_minute = 1000 }";
    let redis = Redis::start().await;
    for setup in [
        Host::builder(),
        Host::builder().env("REDIS_URL", redis.url()),
    ] {
        let (host, upstream) = upstream_by(setup, Act::Hold(" yes"), limits, "").await;
        let (one, stranger) = (host.customer().await, host.customer().await);
        let two = second_key(&host, &one).await;
        let first = begin(&one, ask(900));
        eventually("the upstream has it", async || upstream.open() == 1).await;
        upstream.act(Act::Answer(" yes"));
        let of_other_model = json!({ "text": ASK, "model_id": 1, "max_new_tokens": 900 });
        for caller in [&one, &two] {
            for body in [ask(900), of_other_model.clone()] {
                let refused = caller.post("/generate", body).await;
                let limit = json!({ "policy": "customer-tokens", "of": "customer",
                    "unit": "tokens", "most": 1000 });
                assert_eq!(refused.body["error"]["limit"], limit);
                assert_eq!(refused.expect_error(429), "rate_limit_exceeded");
            }
        }
        stranger.post("/generate", ask(900)).await.expect(200);
        // what the one did not use the other may
        upstream.release(1);
        assert_eq!(first.await.expect("no panic"), 200);
        two.post("/generate", ask(900)).await.expect(200);
    }
}

#[tokio::test]
async fn a_key_has_the_limits_of_the_configuration_and_no_more_tokens_than_its_model() {
    let (of_all, of_model) = ("concurrent = 1", "tokens_per_minute = 300");
    let (host, upstream) = upstream(Act::Hold(" yes"), of_all, of_model).await;
    for (own, most) in [
        (json!({}), 300),
        (json!({ "token_limit": 1000 }), 300),
        (json!({ "token_limit": 200 }), 200),
    ] {
        let customer = host.customer_with(own).await;
        // the prompt is one more
        let refused = customer.post("/generate", ask(most)).await;
        let limit = json!({ "policy": "key-tokens", "of": "key", "unit": "tokens", "most": most });
        assert_eq!(refused.body["error"]["limit"], limit);
        assert_eq!(refused.expect_error(400), "exceeds_token_limit");
    }
    // of requests at work a key may have more than others
    for (own, most) in [(json!({}), 1), (json!({ "concurrent_limit": 2 }), 2)] {
        let customer = host.customer_with(own).await;
        let running: Vec<_> = (0..most).map(|_| begin(&customer, ask(5))).collect();
        eventually("they are at work", async || upstream.open() == most).await;
        let refused = customer.post("/generate", ask(5)).await;
        let limit = json!({ "policy": "key-concurrent", "of": "key",
            "unit": "concurrent_requests", "most": most });
        assert_eq!(refused.body["error"]["limit"], limit);
        assert_eq!(refused.expect_error(429), "rate_limit_exceeded");
        upstream.release(most);
        for one in running {
            assert_eq!(one.await.expect("no panic"), 200);
        }
    }
}

/// The one key that a Redis has of a limit.
async fn key_of(redis: &Redis, limit: &str) -> String {
    let pattern = format!("model-host:*{limit}*");
    let keys: Vec<String> = redis.answer(&["KEYS", &pattern]).await;
    let [key] = &keys[..] else {
        panic!("{keys:?}");
    };
    key.clone()
}

/// The time by a Redis, in microseconds.
async fn time(redis: &Redis) -> u64 {
    let (seconds, micros): (u64, u64) = redis.answer(&["TIME"]).await;
    seconds * 1_000_000 + micros
}

/// How often a Redis ran a script.
async fn scripts(redis: &Redis) -> u64 {
    let stats: String = redis.answer(&["INFO", "commandstats"]).await;
    let calls = |line: &str| {
        let of_script = line.strip_prefix("cmdstat_eval")?;
        let (_, calls) = of_script.split_once(":calls=")?;
        calls.split(',').next()?.parse::<u64>().ok()
    };
    stats.lines().filter_map(calls).sum()
}

/// A server whose limits are in a Redis, and its upstream, whose model has 30 s.
async fn with_redis(act: Act) -> (Redis, Host, Upstream) {
    let redis = Redis::start().await;
    let setup = Host::builder().env("REDIS_URL", redis.url());
    let (host, upstream) = upstream_by(setup, act, "", "timeout_ms = 30000").await;
    (redis, host, upstream)
}

#[tokio::test]
async fn redis_keeps_what_was_taken_until_all_of_it_is_back() {
    let (redis, host, _upstream) = with_redis(Act::Answer(" yes")).await;
    let limits = json!({ "rate_limit": 6, "token_limit": 60 });
    let customer = host.customer_with(limits).await;
    let started = Instant::now();
    for _ in 0..6 {
        customer.post("/generate", ask(9)).await.expect(200);
    }
    let refused = customer.post("/generate", ask(9)).await;
    assert_eq!(refused.expect_error(429), "rate_limit_exceeded");
    // of both all is used: ten tokens each time
    for limit in ["key-requests", "key-tokens"] {
        let key = key_of(&redis, limit).await;
        let left: u128 = redis.answer(&["PTTL", &key]).await;
        let passed = started.elapsed().as_millis();
        assert!(left <= 60_001 && left + passed >= 60_000, "{limit}: {left}");
    }
}

#[tokio::test]
async fn redis_keeps_a_place_for_as_long_as_its_request_may_take() {
    let (redis, host, upstream) = with_redis(Act::Hold(" yes")).await;
    let customer = host.customer_with(json!({ "concurrent_limit": 1 })).await;
    let before = time(&redis).await;
    let asking = begin(&customer, ask(5));
    eventually("it is at work", async || upstream.open() == 1).await;
    let after = time(&redis).await;
    let key = key_of(&redis, "key-concurrent").await;
    let places: HashMap<String, f64> = redis
        .answer(&["ZRANGE", &key, "0", "-1", "WITHSCORES"])
        .await;
    // its 30 seconds, and five to be settled
    let lease = 35_000_000;
    let ends: Vec<_> = places.values().map(|ends| *ends as u64).collect();
    assert!(
        ends.len() == 1 && (before + lease..=after + lease).contains(&ends[0]),
        "{ends:?} from {before}"
    );
    let left: u64 = redis.answer(&["PTTL", &key]).await;
    let passed = time(&redis).await - before;
    assert!(left * 1000 + passed >= lease - 1000, "{left}");

    upstream.release(1);
    assert_eq!(asking.await.expect("no panic"), 200);
    let is_kept: bool = redis.answer(&["EXISTS", &key]).await;
    assert!(!is_kept, "its place is free");
}

#[tokio::test]
async fn a_request_asks_redis_once_or_twice_if_its_end_changes_what_is_left() {
    let (redis, host, _upstream) = with_redis(Act::Answer(" yes")).await;
    let plain = host.customer_with(json!({ "rate_limit": 100 })).await;
    let tokens = host.customer_with(json!({ "token_limit": 6000 })).await;
    // the first brings the scripts along
    tokens.post("/generate", ask(5)).await.expect(200);
    for (customer, each) in [(plain, 1), (tokens, 2)] {
        let before = scripts(&redis).await;
        for _ in 0..5 {
            let reply = customer.post("/generate", ask(5)).await;
            // what the answer says of the limits comes with it
            assert_ne!(reply.header("x-ratelimit-reset-requests"), "");
            let reset = reply.header("x-ratelimit-reset-tokens").to_owned();
            assert_eq!(reset.is_empty(), each == 1, "{reset}");
            reply.expect(200);
        }
        assert_eq!(scripts(&redis).await - before, 5 * each);
    }
}
