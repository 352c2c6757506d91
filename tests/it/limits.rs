//! Requests and tokens a minute and requests at once, for each key and model and
//! for each customer.

use serde_json::{Value, json};

use crate::harness::{Act, Client, GPT2, Host, Redis, Setup, Upstream, eventually, lawgent};

const ASK: &str = "Once";

#[tokio::test]
async fn sixty_requests_a_minute_by_default_and_then_429() {
    let host = Host::start().await.ready().await;
    let customer = host.customer_with(json!({})).await;
    let ask = json!({ "text": ASK, "model_id": 1, "max_new_tokens": 1 });
    let first = customer.post("/generate", ask.clone()).await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), "60");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "59");
    assert_eq!(first.header("x-ratelimit-reset-requests"), "1s");
    assert_eq!(
        first.header("ratelimit-policy"),
        "\"key-requests\";q=60;w=60"
    );
    assert_eq!(first.header("ratelimit"), "\"key-requests\";r=59;t=1");
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "");
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
    assert_eq!(refused.header("ratelimit"), "\"key-requests\";r=0;t=1");
    let limit = json!({ "policy": "key-requests", "of": "key", "unit": "requests", "most": 60 });
    assert_eq!(refused.body["error"]["limit"], limit);
    assert_eq!(refused.body["error"]["type"], "rate_limit_error");
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
async fn a_customer_may_have_limits_of_its_own() {
    let config = format!("[requests]\ncustomer = {{ per_minute = 1 }}\n{GPT2}");
    let host = Host::builder().config(config).start().await.ready().await;
    let (one, other) = (host.customer().await, host.customer().await);
    let ask = || json!({ "text": ASK, "model_id": 1, "max_new_tokens": 1 });
    one.post("/generate", ask()).await.expect(200);
    one.post("/generate", ask()).await.expect_error(429);

    // from the next request on: what its key's checks have in memory is read again
    let change = json!({ "rate_limit": 5, "concurrent_limit": 7 });
    let changed = host.admin().patch("/customers/1", change).await.expect(200);
    assert_eq!(changed["rate_limit"], 5);
    assert_eq!(changed["token_limit"], Value::Null);
    let reply = one.post("/generate", ask()).await;
    let policies = reply.header("ratelimit-policy").to_owned();
    assert!(
        policies.contains("\"customer-requests\";q=5;w=60"),
        "{policies}"
    );
    assert!(
        policies.contains("\"customer-concurrent\";q=7;"),
        "{policies}"
    );
    reply.expect(200);
    // nobody else's
    other.post("/generate", ask()).await.expect(200);
    other.post("/generate", ask()).await.expect_error(429);

    let back = json!({ "rate_limit": null });
    let back = host.admin().patch("/customers/1", back).await.expect(200);
    assert_eq!(back["rate_limit"], Value::Null);
    assert_eq!(back["concurrent_limit"], 7);
    let none = json!({ "token_limit": 0 });
    let refused = host.admin().patch("/customers/1", none).await;
    assert_eq!(refused.body["error"]["param"], "token_limit");
    refused.expect_error(422);
    let acts = host
        .admin()
        .get("/admin/audit?object=customer/1")
        .await
        .expect(200);
    let last = acts["acts"]
        .as_array()
        .and_then(|acts| acts.last().cloned());
    let last = last.expect("an act");
    assert_eq!(last["before"]["rate_limit"], 5);
    assert_eq!(last["after"]["rate_limit"], Value::Null);
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

/// A server with an upstream that does this, as model 2, and these limits.
pub async fn upstream(act: Act, requests: &str, of_model: &str) -> (Host, Upstream) {
    upstream_by(Host::builder(), act, requests, of_model).await
}

pub async fn upstream_by(
    setup: Setup,
    act: Act,
    requests: &str,
    of_model: &str,
) -> (Host, Upstream) {
    let upstream = Upstream::start(act).await;
    let config = format!(
        "[requests]\n{requests}\n{GPT2}{}\n[models.limits]\n{of_model}\n",
        lawgent(upstream.url())
    );
    let host = setup.config(config).start().await.ready().await;
    (host, upstream)
}

/// Another key of the first customer's.
pub async fn second_key(host: &Host, first: &Client) -> Client {
    let second = json!({ "customer_id": 1, "name": "Second" });
    let second = host.admin().post("/api/keys", second).await.expect(201);
    let text = second["key"].as_str().expect("a key").to_owned();
    first.with_header("x-api-key", text)
}

pub fn ask(max_new_tokens: u32) -> Value {
    json!({ "text": ASK, "model_id": 2, "max_new_tokens": max_new_tokens })
}

fn left(header: &str) -> u32 {
    header.parse().expect("a number")
}

/// Asks without waiting for the answer.
pub fn begin(customer: &Client, body: Value) -> tokio::task::JoinHandle<u16> {
    let customer = customer.clone();
    tokio::spawn(async move { customer.post("/generate", body).await.status.as_u16() })
}

#[tokio::test]
async fn tokens_are_reserved_and_corrected_when_they_are_counted() {
    let (host, upstream) = upstream(Act::Hold(" yes"), "", "").await;
    let customer = host.customer_with(json!({ "token_limit": 1000 })).await;
    // the prompt is taken for one token, so that only one of these fits
    let first = begin(&customer, ask(900));
    eventually("the upstream has it", async || upstream.open() == 1).await;
    let refused = customer.post("/generate", ask(900)).await;
    assert_eq!(refused.header("x-ratelimit-limit-tokens"), "1000");
    assert!((99..200).contains(&left(refused.header("x-ratelimit-remaining-tokens"))));
    // 802 tokens come back in 48.1 seconds; a slow machine asks later
    assert!((20..=49).contains(&left(refused.header("retry-after"))));
    let policy = "\"key-requests\";q=60;w=60, \"key-tokens\";q=1000;qu=\"tokens\";w=60";
    assert_eq!(refused.header("ratelimit-policy"), policy);
    let limit = json!({ "policy": "key-tokens", "of": "key", "unit": "tokens", "most": 1000 });
    assert_eq!(refused.body["error"]["limit"], limit);
    assert_eq!(refused.expect_error(429), "rate_limit_exceeded");

    // once the first is known to have used no more than 10, there is room
    upstream.release(2);
    assert_eq!(first.await.expect("no panic"), 200);
    let second = customer.post("/generate", ask(900)).await;
    assert!((89..=99).contains(&left(second.header("x-ratelimit-remaining-tokens"))));
    second.expect(200);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn what_can_never_fit_is_refused_for_good() {
    let (host, upstream) = upstream(Act::Answer(" yes"), "tokens_per_minute = 50", "").await;
    let customer = host.customer_with(json!({})).await;
    let reply = customer.post("/generate", ask(50)).await;
    assert_eq!(reply.header("retry-after"), "");
    assert_eq!(reply.body["error"]["param"], "max_new_tokens");
    assert_eq!(reply.body["error"]["limit"]["policy"], "key-tokens");
    assert_eq!(reply.expect_error(400), "exceeds_token_limit");
    customer.post("/generate", ask(49)).await.expect(200);
    assert_eq!(upstream.seen().len(), 1);
    // a key of its own limit is held to that, and a bad one is no limit
    let other = host.customer_with(json!({ "token_limit": 60 })).await;
    other.post("/generate", ask(50)).await.expect(200);
    for (field, limit) in [("token_limit", 0), ("concurrent_limit", 100_000_001)] {
        let reply = host
            .admin()
            .patch("/api/keys/1", json!({ field: limit }))
            .await;
        assert_eq!(reply.body["error"]["param"], field);
        assert_eq!(reply.expect_error(422), "invalid_request");
    }
    let change = json!({ "token_limit": 70, "concurrent_limit": 3 });
    let changed = host.admin().patch("/api/keys/1", change).await.expect(200);
    assert_eq!(
        (&changed["token_limit"], &changed["concurrent_limit"]),
        (&json!(70), &json!(3))
    );
    let reply = customer.post("/generate", ask(50)).await;
    assert!(
        reply
            .header("ratelimit-policy")
            .contains("\"key-concurrent\";q=3;qu=\"concurrent-requests\"")
    );
    let change = json!({ "token_limit": null });
    let changed = host.admin().patch("/api/keys/1", change).await.expect(200);
    assert_eq!(changed["token_limit"], Value::Null);
    customer.post("/generate", ask(50)).await.expect_error(400);
}

#[tokio::test]
async fn so_many_run_at_once_and_a_place_is_free_when_one_ends_or_its_client_leaves() {
    let (host, upstream) = upstream(Act::Hold(" yes"), "", "concurrent = 2").await;
    let customer = host.customer_with(json!({ "concurrent_limit": 5 })).await;
    let running = [begin(&customer, ask(5)), begin(&customer, ask(5))];
    eventually("both are at work", async || upstream.open() == 2).await;
    let refused = customer.post("/generate", ask(5)).await;
    assert_eq!(refused.header("retry-after"), "1");
    assert!(
        refused
            .header("ratelimit")
            .ends_with(", \"key-concurrent\";r=0")
    );
    assert_eq!(
        refused.body["error"]["limit"]["unit"],
        "concurrent_requests"
    );
    assert_eq!(refused.expect_error(429), "rate_limit_exceeded");
    // another model, and another key, have places of their own
    let other = json!({ "text": ASK, "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", other).await.expect(200);

    let [first, second] = running;
    upstream.release(1);
    eventually("one has ended", async || upstream.open() == 1).await;
    second.abort();
    first.abort();
    eventually("nobody is there", async || upstream.open() == 0).await;
    upstream.act(Act::Say(500, vec![], "{}"));
    // as soon as an answer is known to have ended its place is free, failed or not
    for _ in 0..4 {
        eventually("there is a place", async || {
            let reply = customer.post("/generate", ask(5)).await;
            assert!(
                !reply.header("ratelimit").is_empty(),
                "a failure says it too"
            );
            reply.status == 502
        })
        .await;
    }
    eventually("there are both", async || {
        let reply = customer.post("/generate", ask(5)).await;
        reply
            .header("ratelimit")
            .ends_with("\"key-concurrent\";r=1")
    })
    .await;
    let running = [begin(&customer, ask(5)), begin(&customer, ask(5))];
    for one in running {
        assert_eq!(one.await.expect("no panic"), 502);
    }
}

#[tokio::test]
async fn all_keys_of_a_customer_have_limits_together() {
    let limits = "per_minute = 4\n\
        customer = { per_minute = 3, tokens_per_minute = 5000, concurrent = 9 }";
    let (host, _upstream) = upstream(Act::Answer(" yes"), limits, "").await;
    let one = host.customer_with(json!({})).await;
    let stranger = host.customer_with(json!({})).await;
    let two = second_key(&host, &one).await;

    let gpt2 = json!({ "text": ASK, "model_id": 1, "max_new_tokens": 1 });
    let first = one.post("/generate", ask(5)).await;
    // the nearest of both limits is told
    assert_eq!(first.header("x-ratelimit-limit-requests"), "3");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "2");
    assert_eq!(first.header("x-ratelimit-reset-requests"), "20s");
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "5000");
    // six tokens, of 5000 in a minute
    assert_eq!(first.header("x-ratelimit-reset-tokens"), "72ms");
    first.expect(200);
    one.post("/generate", gpt2).await.expect(200);
    let completion = json!({ "model": "lawgent-thinking", "prompt": ASK, "max_tokens": 1 });
    two.post("/v1/completions", completion.clone())
        .await
        .expect(200);
    for customer in [&one, &two] {
        let refused = customer.post("/v1/completions", completion.clone()).await;
        assert!((10..=20).contains(&left(refused.header("retry-after"))));
        let limit = json!({ "policy": "customer-requests", "of": "customer", "unit": "requests", "most": 3 });
        assert_eq!(refused.body["error"]["limit"], limit);
        refused.expect_error(429);
    }
    // what is refused takes nothing of the key's own limit
    let chat = json!({ "model": "lawgent-thinking", "max_tokens": 1,
        "messages": [{ "role": "user", "content": ASK }] });
    let refused = two.post("/v1/chat/completions", chat).await;
    assert!(
        refused
            .header("ratelimit")
            .starts_with("\"key-requests\";r=3;")
    );
    refused.expect_error(429);
    stranger.post("/generate", ask(5)).await.expect(200);
}

#[tokio::test]
async fn a_redis_that_ends_idle_connections_is_not_away() {
    let redis = Redis::start().await;
    let config = format!("[requests]\nwithout_redis = \"refuse\"\n{GPT2}");
    let setup = Host::builder().config(config).env("REDIS_URL", redis.url());
    let host = setup.start().await.ready().await;
    let customer = host.customer().await;
    let ask = json!({ "text": ASK, "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", ask.clone()).await.expect(200);
    redis.end_idle().await;
    customer.post("/generate", ask).await.expect(200);
    let log = host.log();
    assert!(!log.contains("Redis does not answer"), "{log}");
}
