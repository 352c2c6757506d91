//! Limits that several servers share through a Redis. Each has a database of its
//! own here, with the same customer and key in it.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{Act, Client, GPT2, Host, Redis, Reply, Upstream, eventually, lawgent};

/// Three servers at one Redis and the upstream, with a key at each.
async fn three(
    redis: &Redis,
    upstream: &Upstream,
    requests: &str,
    timeout_ms: u32,
    key: Value,
) -> [(Host, Client); 3] {
    let config = format!(
        "[requests]\n{requests}\n{GPT2}{}\n[models.limits]\ntimeout_ms = {timeout_ms}\n",
        lawgent(upstream.url())
    );
    let start = async || {
        let host = Host::builder()
            .config(&config)
            .env("REDIS_URL", redis.url());
        let host = host.start().await.ready().await;
        let customer = host.customer_with(key.clone()).await;
        (host, customer)
    };
    [start().await, start().await, start().await]
}

fn ask() -> Value {
    json!({ "text": "Once", "model_id": 2, "max_new_tokens": 9 })
}

/// Asks each server so often, all at once; how often it was answered so.
async fn at_once(hosts: &[(Host, Client); 3], times: usize, body: &Value) -> Vec<u16> {
    let all: Vec<_> = (0..3 * times)
        .map(|number| {
            let (customer, body) = (hosts[number % 3].1.clone(), body.clone());
            tokio::spawn(async move { customer.post("/generate", body).await.status.as_u16() })
        })
        .collect();
    let mut statuses = Vec::new();
    for one in all {
        statuses.push(one.await.expect("no panic"));
    }
    statuses
}

/// Waits until the server has found Redis again, which it does when it is asked.
async fn back(host: &Host, customer: &Client) {
    eventually("Redis is back", async || {
        customer.post("/generate", ask()).await;
        host.log().contains("Redis is back")
    })
    .await;
}

fn count(statuses: &[u16], status: u16) -> u64 {
    statuses.iter().filter(|is| **is == status).count() as u64
}

#[tokio::test]
async fn three_servers_admit_together_what_one_would() {
    let (redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Answer("yes")).await,
    );
    let hosts = three(&redis, &upstream, "", 30_000, json!({ "rate_limit": 6 })).await;
    let started = Instant::now();
    let statuses = at_once(&hosts, 10, &ask()).await;
    // one more comes back every ten seconds
    let most = 6 + started.elapsed().as_secs() / 10;
    let admitted = count(&statuses, 200);
    assert!((6..=most).contains(&admitted), "{statuses:?}");
    assert_eq!(admitted + count(&statuses, 429), 30, "{statuses:?}");
    assert_eq!(upstream.seen().len() as u64, admitted);
    for (_, customer) in &hosts {
        let refused = customer.post("/generate", ask()).await;
        assert_eq!(refused.header("x-ratelimit-limit-requests"), "6");
        assert_eq!(refused.header("x-ratelimit-remaining-requests"), "0");
        let reset = refused.header("x-ratelimit-reset-requests");
        assert!(reset == "1m0s" || reset.starts_with('5'), "{reset}");
        assert!(
            (1..=10).contains(
                &refused
                    .header("retry-after")
                    .parse::<u32>()
                    .expect("seconds")
            )
        );
        assert_eq!(refused.expect_error(429), "rate_limit_exceeded");
    }
}

#[tokio::test]
async fn tokens_are_reserved_and_corrected_for_all_of_them() {
    let (redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Hold("yes")).await,
    );
    let hosts = three(
        &redis,
        &upstream,
        "",
        30_000,
        json!({ "token_limit": 1000 }),
    )
    .await;
    let [(_, one), (_, two), (_, three)] = &hosts;
    let most = json!({ "text": "Once", "model_id": 2, "max_new_tokens": 900 });
    let first = {
        let (one, most) = (one.clone(), most.clone());
        tokio::spawn(async move { one.post("/generate", most).await.status })
    };
    eventually("the upstream has it", async || upstream.open() == 1).await;
    let refused = two.post("/generate", most.clone()).await;
    assert_eq!(refused.body["error"]["limit"]["policy"], "key-tokens");
    refused.expect_error(429);
    upstream.release(2);
    assert_eq!(first.await.expect("no panic"), 200);
    // seven and three were used, and 901 are reserved
    let third = three.post("/generate", most).await;
    let left = third.header("x-ratelimit-remaining-tokens").parse::<u32>();
    assert!((89..=99).contains(&left.expect("a number")));
    third.expect(200);
}

#[tokio::test]
async fn a_change_of_a_limit_holds_from_the_next_request_on() {
    let (redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Hold("yes")).await,
    );
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let setup = Host::builder().config(config).env("REDIS_URL", redis.url());
    let host = setup.start().await.ready().await;
    let customer = host.customer_with(json!({ "token_limit": 2000 })).await;
    let limit = async |most: u32| {
        let change = json!({ "token_limit": most });
        let changed = host.admin().patch("/api/keys/1", change).await;
        changed.expect(200);
    };
    let ask = async |tokens: u32| {
        let body = json!({ "text": "Once", "model_id": 2, "max_new_tokens": tokens });
        customer.post("/generate", body).await
    };
    let asking = |tokens: u32| {
        let body = json!({ "text": "Once", "model_id": 2, "max_new_tokens": tokens });
        let customer = customer.clone();
        tokio::spawn(async move { customer.post("/generate", body).await.status })
    };
    let wait = |reply: &Reply| reply.header("retry-after").parse().expect("seconds");
    let pass = async |time| {
        let since = Instant::now();
        eventually("it is time", async || since.elapsed() >= time).await;
    };

    let first = asking(1800);
    eventually("one is at work", async || upstream.open() == 1).await;
    limit(4000).await;
    let _second = asking(2000);
    eventually("two are at work", async || upstream.open() == 2).await;
    // one that was admitted under the old limit ends
    upstream.release(1);
    assert_eq!(first.await.expect("no panic"), 200);
    upstream.act(Act::Answer("yes"));
    let refused = ask(2400).await;
    pass(Duration::from_secs(wait(&refused))).await;
    refused.expect_error(429);
    ask(2400).await.expect(200);

    // one that is refused is all that there is under the new limit
    limit(60).await;
    let (refused, since) = (ask(50).await, Instant::now());
    pass(Duration::from_secs(2)).await;
    let again = ask(50).await;
    let passed = since.elapsed().as_secs() + 2;
    assert!(wait(&again) + passed >= wait(&refused), "{again:?}");
    assert!(wait(&refused) > 60);
    again.expect_error(429);
}

#[tokio::test]
async fn places_are_shared_and_those_of_a_dead_server_come_back() {
    let (redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Hold("yes")).await,
    );
    let hosts = three(
        &redis,
        &upstream,
        "customer = { concurrent = 4 }",
        8000,
        json!({}),
    )
    .await;
    let waiting: Vec<_> = (0..9)
        .map(|number| {
            let customer = hosts[number % 3].1.clone();
            tokio::spawn(async move { customer.post("/generate", ask()).await.status.as_u16() })
        })
        .collect();
    eventually("all that may are at work", async || {
        let refused = waiting.iter().filter(|one| one.is_finished()).count();
        upstream.open() == 4 && refused == 5
    })
    .await;
    upstream.release(4);
    let mut statuses = Vec::new();
    for one in waiting {
        statuses.push(one.await.expect("no panic"));
    }
    assert_eq!((count(&statuses, 200), count(&statuses, 429)), (4, 5));

    // one takes all places, and dies
    let [(dying, customer), (_other, survivor), _] = hosts;
    let lost: Vec<_> = (0..4)
        .map(|_| {
            let request = customer
                .request(reqwest::Method::POST, "/generate")
                .json(&ask());
            tokio::spawn(request.send())
        })
        .collect();
    eventually("all places are taken", async || upstream.open() == 4).await;
    survivor.post("/generate", ask()).await.expect_error(429);
    drop(dying);
    for one in lost {
        assert!(one.await.expect("no panic").is_err());
    }
    upstream.act(Act::Answer("yes"));
    eventually("the places of the dead are free", async || {
        survivor.post("/generate", ask()).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn without_redis_each_server_limits_by_itself_until_it_is_back() {
    let (mut redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Answer("yes")).await,
    );
    let hosts = three(&redis, &upstream, "", 30_000, json!({ "rate_limit": 2 })).await;
    let [(one_host, one), (_, two), _] = &hosts;
    one.post("/generate", ask()).await.expect(200);
    one.post("/generate", ask()).await.expect(200);
    two.post("/generate", ask()).await.expect_error(429);

    redis.stop();
    for (_, customer) in &hosts {
        customer.post("/generate", ask()).await.expect(200);
        customer.post("/generate", ask()).await.expect(200);
        customer.post("/generate", ask()).await.expect_error(429);
    }
    let says_so = async || one_host.log().contains("Redis does not answer");
    eventually("the log says so", says_so).await;

    // it comes back empty, with a minute's worth for all of them
    redis.start_again().await;
    for (host, customer) in &hosts {
        back(host, customer).await;
    }
    let statuses = at_once(&hosts, 1, &ask()).await;
    assert_eq!(count(&statuses, 429), 3, "{statuses:?}");
}

#[tokio::test]
async fn a_redis_that_hangs_holds_up_one_request_a_second() {
    let (redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Answer("yes")).await,
    );
    let [(host, customer), ..] = three(&redis, &upstream, "", 30_000, json!({})).await;
    customer.post("/generate", ask()).await.expect(200);
    redis.hang(true);
    customer.post("/generate", ask()).await.expect(200);
    let says_so = async || host.log().contains("Redis does not answer");
    eventually("the log says so", says_so).await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        customer.post("/generate", ask()).await.expect(200);
        took.push(started.elapsed());
    }
    // those that do not ask wait for nothing; the others a second each
    took.sort();
    assert!(took[10] < Duration::from_millis(900), "{took:?}");
    redis.hang(false);
    back(&host, &customer).await;
}

#[tokio::test]
async fn a_redis_that_hung_does_not_keep_the_places_of_requests_that_ended_meanwhile() {
    let (redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Hold("yes")).await,
    );
    // places end by themselves too, but only after two minutes
    let config = format!(
        "[requests]\ncustomer = {{ concurrent = 3 }}\n{GPT2}{}",
        lawgent(upstream.url())
    );
    let setup = Host::builder().config(config).env("REDIS_URL", redis.url());
    let host = setup.start().await.ready().await;
    let customer = host.customer().await;
    let asking = || {
        let customer = customer.clone();
        tokio::spawn(async move { customer.post("/generate", ask()).await.status })
    };
    // one has its place before, two ask for one that they get too late
    let before = asking();
    eventually("it is at work", async || upstream.open() == 1).await;
    redis.hang(true);
    let meanwhile = [asking(), asking()];
    eventually("all are at work", async || upstream.open() == 3).await;
    upstream.release(3);
    for one in [before].into_iter().chain(meanwhile) {
        assert_eq!(one.await.expect("no panic"), 200);
    }

    redis.hang(false);
    upstream.act(Act::Answer("yes"));
    back(&host, &customer).await;
    eventually("all places are free", async || {
        let reply = customer.post("/generate", ask()).await;
        // but for its own
        let places = "\"customer-concurrent\";r=2";
        reply.status == 200 && reply.header("ratelimit").contains(places)
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_refuses_the_password_is_asked_again() {
    let (redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Answer("yes")).await,
    );
    let url = redis.url().replace("redis://", "redis://:a-secret@");
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let setup = Host::builder().config(config).env("REDIS_URL", url);
    let host = setup.start().await.ready().await;
    let customer = host.customer().await;
    eventually("it is refused", async || {
        customer.post("/generate", ask()).await.expect(200);
        host.log().contains("Redis does not answer")
    })
    .await;
    redis.set_password("a-secret").await;
    eventually("it is let in", async || {
        customer.post("/generate", ask()).await.expect(200);
        host.log().contains("Redis is back")
    })
    .await;
    assert!(!host.log().contains("a-secret"), "{}", host.log());
}

#[tokio::test]
async fn without_redis_nothing_is_admitted_where_that_is_wanted() {
    let (mut redis, upstream) = (
        Redis::start().await,
        Upstream::start(Act::Answer("yes")).await,
    );
    let config = format!(
        "[requests]\nwithout_redis = \"refuse\"\n{GPT2}{}",
        lawgent(upstream.url())
    );
    let url = redis.url();
    redis.stop();
    // nor is it needed for a start
    let host = Host::builder().config(config).env("REDIS_URL", url);
    let host = host.start().await.ready().await;
    let customer = host.customer().await;
    let refused = customer.post("/generate", ask()).await;
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(refused.expect_error(503), "limits_unavailable");
    assert_eq!(upstream.seen().len(), 0);
    redis.start_again().await;
    eventually("Redis is back", async || {
        customer.post("/generate", ask()).await.status == 200
    })
    .await;
}

#[tokio::test]
async fn what_is_no_redis_is_refused_at_the_start() {
    let setup = Host::builder().env("REDIS_URL", "redis://user:a-secret@:x");
    let (status, said) = setup.refused();
    assert!(!status.success());
    assert!(said.contains("REDIS_URL"), "{said}");
    assert!(!said.contains("a-secret"), "{said}");
}
