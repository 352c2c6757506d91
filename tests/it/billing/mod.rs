//! Stripe: told of every customer and all usage, once, whatever happens.

mod customers;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Client, FakeStripe, GPT2, Host, LocalStripe, Mood, STRIPE_KEY, Setup, eventually, free_port,
};

/// Nano-dollars of a cent.
const CENT: i64 = 10_000_000;

/// A server that reports at once, with prices of which every request costs
/// some cents and an odd rest.
fn setup(stripe: &str) -> Setup {
    let price = "price_per_million = { prompt = 1234.567891, completion = 7777.777777777 }";
    let config = format!("[stripe]\nreport_seconds = 0\n{GPT2}{price}\n");
    Host::builder()
        .config(config)
        .env("STRIPE_SECRET_KEY", STRIPE_KEY)
        .env("STRIPE_API_BASE", stripe)
}

async fn ask(customer: &Client) {
    let body = json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": 4 });
    let answer = customer.post("/generate", body).await.expect(200);
    assert!(
        answer["cost"].as_f64().is_some_and(|cost| cost > 0.01),
        "{answer}"
    );
}

/// A number from the server's database.
async fn number(host: &Host, sql: &str) -> i64 {
    host.database().number(sql).await
}

/// Has all that is on record posted, as everybody does who asks for a balance.
async fn posted(host: &Host) {
    host.admin().get("/customers").await.expect(200);
}

/// Waits until no message is on its way and no whole cent is left to report.
async fn all_reported(host: &Host) {
    posted(host).await;
    let open = "SELECT count(*) FROM outbox WHERE delivered_at IS NULL \
        AND (sealed_at IS NOT NULL OR amount >= 10000000)";
    eventually("everything is reported", async || {
        number(host, open).await == 0
    })
    .await;
}

/// What a customer used, and of that what is not reported yet, in nano-dollars.
async fn used_and_left(host: &Host, customer: i64) -> (i64, i64) {
    let used =
        format!("SELECT CAST(sum(cost) AS BIGINT) FROM usage WHERE customer_id = {customer}");
    let left =
        format!("SELECT amount FROM outbox WHERE customer_id = {customer} AND sealed_at IS NULL");
    (number(host, &used).await, number(host, &left).await)
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

/// What invoice items come to, in nano-dollars. Each must be of another message.
fn sum(items: &[Value]) -> i64 {
    let messages: HashSet<_> = items
        .iter()
        .map(|item| text(&item["metadata"]["model_host_message"]))
        .collect();
    assert_eq!(messages.len(), items.len(), "{items:?}");
    let cents = items.iter().map(|item| match &item["amount"] {
        Value::String(cents) => cents.parse().expect("a number"),
        cents => cents.as_i64().expect("a number"),
    });
    cents.sum::<i64>() * CENT
}

/// Everything is at localstripe, once, and to the nano-dollar.
async fn assert_all_there(host: &Host, stripe: &LocalStripe, customers: usize) {
    all_reported(host).await;
    let mut known = stripe.customers().await;
    assert_eq!(known.len(), customers, "{known:?}");
    known.sort_by_key(|customer| {
        let id = text(&customer["metadata"]["model_host_customer_id"]);
        id.parse::<i64>().expect("a number")
    });
    for (id, customer) in (1..).zip(known) {
        assert_eq!(
            customer["metadata"]["model_host_customer_id"],
            id.to_string()
        );
        let ours = host.admin().get(&format!("/customers/{id}")).await;
        let ours = ours.expect(200);
        assert_eq!(customer["name"], ours["name"]);
        assert_eq!(customer["email"], ours["email"]);
        assert_eq!(customer["description"], ours["company"]);
        let items = stripe.invoice_items(text(&customer["id"])).await;
        let (used, left) = used_and_left(host, id).await;
        assert_eq!(sum(&items) + left, used, "{items:?}");
        assert!(!items.is_empty() && (0..CENT).contains(&left), "{left}");
        for item in items {
            assert_eq!(item["currency"], "usd");
            assert!(
                text(&item["description"]).starts_with("API usage from 20"),
                "{item}"
            );
        }
    }
    assert!(!host.log().contains(STRIPE_KEY) && !host.out().contains(STRIPE_KEY));
}

#[tokio::test]
async fn customers_and_usage_arrive_to_the_nano_dollar() {
    let stripe = LocalStripe::start(free_port()).await;
    let host = setup(stripe.url()).start().await.ready().await;
    let (one, two) = (host.customer().await, host.customer().await);
    for _ in 0..7 {
        ask(&one).await;
    }
    all_reported(&host).await;
    tokio::join!(ask(&one), ask(&two), ask(&one), ask(&two));
    assert_all_there(&host, &stripe, 2).await;
}

#[tokio::test]
async fn small_costs_add_up_until_they_come_to_a_cent() {
    let stripe = LocalStripe::start(free_port()).await;
    // some 2.5 cents for each hundred requests
    let price = "price_per_million = { prompt = 20.000000001, completion = 30.000000001 }";
    let config = format!("[stripe]\nreport_seconds = 0\n{GPT2}{price}\n");
    let host = setup(stripe.url()).config(config);
    let host = host.start().await.ready().await;
    let customer = host.customer().await;
    let body = json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": 4 });
    let mut asked = 0;
    while used(&customer).await < 0.021 {
        customer.post("/generate", body.clone()).await.expect(200);
        asked += 1;
    }
    assert!(asked > 20, "{asked}");
    assert_all_there(&host, &stripe, 1).await;
    let id = text(&stripe.customers().await[0]["id"]).to_owned();
    assert_eq!(sum(&stripe.invoice_items(&id).await), 2 * CENT);
}

/// What a customer used, in dollars.
async fn used(customer: &Client) -> f64 {
    let usage = customer.get("/usage").await.expect(200);
    usage["totals"]["cost"].as_f64().expect("a number")
}

#[tokio::test]
async fn usage_is_reported_in_periods() {
    let stripe = FakeStripe::start().await;
    let config = format!("[stripe]\nreport_seconds = 3600\n{GPT2}price_per_million = 9000\n");
    let config = config.replace("9000", "{ prompt = 9000, completion = 9000 }");
    let host = setup(stripe.url()).config(config);
    let host = host.start().await.ready().await;
    let (one, two) = (host.customer().await, host.customer().await);
    ask(&one).await;
    ask(&two).await;
    posted(&host).await;
    // the round that tells of a third has sealed first what is due
    host.customer().await;
    eventually("all three are there", async || {
        stripe.made("customers").len() == 3
    })
    .await;
    let waiting = "SELECT count(*) FROM outbox WHERE sealed_at IS NULL AND amount >= 10000000";
    assert_eq!(number(&host, waiting).await, 2);
    assert!(stripe.asked("invoiceitems").is_empty());
}

#[tokio::test]
async fn a_stripe_that_is_down_costs_nothing_but_time() {
    let port = free_port();
    let host = setup(&format!("http://127.0.0.1:{port}"));
    let host = host.start().await.ready().await;
    let (one, two) = (host.customer().await, host.customer().await);
    ask(&one).await;
    ask(&two).await;
    eventually("an attempt has failed", async || {
        number(
            &host,
            "SELECT count(*) FROM outbox WHERE last_error IS NOT NULL",
        )
        .await
            > 0
    })
    .await;
    ask(&one).await;
    let stripe = LocalStripe::start(port).await;
    assert_all_there(&host, &stripe, 2).await;
}

#[tokio::test]
async fn a_stripe_that_does_not_answer_delays_nobody() {
    let stripe = FakeStripe::start().await;
    stripe.mood(Mood::Stall);
    let mut host = setup(stripe.url()).start().await.ready().await;
    let customer = host.customer().await;
    eventually("Stripe is asked", async || {
        !stripe.asked("customers").is_empty()
    })
    .await;
    // the call hangs for ten seconds
    let started = Instant::now();
    host.customer().await;
    ask(&customer).await;
    assert_eq!(stripe.asked("customers").len(), 1);
    assert!(started.elapsed() < Duration::from_secs(9));
    host.signal("TERM");
    assert!(host.wait_exit().await.success());
}

#[tokio::test]
async fn what_failed_is_asked_for_again_with_the_same_key() {
    let stripe = FakeStripe::start().await;
    stripe.mood(Mood::Fail);
    let host = setup(stripe.url()).start().await.ready().await;
    let customer = host.customer().await;
    for path in ["customers", "invoiceitems"] {
        stripe.mood(Mood::Fail);
        if path == "invoiceitems" {
            ask(&customer).await;
        }
        eventually("Stripe fails twice", async || stripe.asked(path).len() >= 2).await;
        stripe.mood(Mood::Work);
        all_reported(&host).await;
        let asked = stripe.asked(path);
        assert!(asked.iter().all(|again| *again == asked[0]), "{asked:?}");
        assert_eq!(asked[0].key.len(), 64);
        assert_eq!(stripe.made(path).len(), 1);
    }
    let (used, left) = used_and_left(&host, 1).await;
    assert_eq!(sum(&stripe.made("invoiceitems")) + left, used);
}

#[tokio::test]
async fn a_lost_answer_doubles_nothing() {
    for is_blind in [false, true] {
        let stripe = FakeStripe::start().await;
        let host = setup(stripe.url()).start().await.ready().await;
        let customer = host.customer().await;
        all_reported(&host).await;
        if is_blind {
            stripe.blind();
        }
        stripe.mood(Mood::MakeAndCut);
        ask(&customer).await;
        eventually("an answer is lost", async || {
            !stripe.made("invoiceitems").is_empty()
        })
        .await;
        stripe.mood(Mood::Work);
        all_reported(&host).await;
        // found, or asked for again with the same key, which makes it no second time
        let asked = stripe.asked("invoiceitems");
        assert!(asked.iter().all(|again| *again == asked[0]), "{asked:?}");
        assert_eq!(asked.len() > 1, is_blind);
        let items = stripe.made("invoiceitems");
        assert_eq!(items.len(), 1);
        let (used, left) = used_and_left(&host, 1).await;
        assert_eq!(sum(&items) + left, used);
    }
}

#[tokio::test]
async fn a_kill_between_asking_and_the_answer_doubles_nothing() {
    for (mood, times) in [(Mood::Stall, 2), (Mood::MakeAndStall, 1)] {
        let stripe = FakeStripe::start().await;
        let host = setup(stripe.url()).start().await.ready().await;
        let customer = host.customer().await;
        all_reported(&host).await;
        stripe.mood(mood);
        ask(&customer).await;
        eventually("Stripe is asked", async || {
            !stripe.asked("invoiceitems").is_empty()
        })
        .await;
        // more, that the message on its way must not take in
        ask(&customer).await;
        // for what is asked from now on
        stripe.mood(Mood::Work);
        let host = host.restart().await;
        all_reported(&host).await;

        let asked = stripe.asked("invoiceitems");
        let first: Vec<_> = asked
            .iter()
            .filter(|asked_too| asked_too.key == asked[0].key)
            .collect();
        assert!(first.iter().all(|again| **again == asked[0]), "{asked:?}");
        assert_eq!(first.len(), times, "{mood:?}");
        let items = stripe.made("invoiceitems");
        assert_eq!(items.len(), 2);
        let (used, left) = used_and_left(&host, 1).await;
        assert_eq!(sum(&items) + left, used);
    }
}

#[tokio::test]
async fn what_stripe_refuses_is_kept_and_holds_up_nobody_else() {
    let stripe = FakeStripe::start().await;
    let host = setup(stripe.url()).start().await.ready().await;
    let new = json!({ "name": "Unwanted", "email": "unwanted@example.com" });
    host.admin().post("/customers", new).await.expect(201);
    let key = json!({ "customer_email": "unwanted@example.com", "name": "Key" });
    let key = host.admin().post("/api/keys", key).await.expect(201);
    let unwanted = Client::new(
        host.url(),
        Some(("x-api-key", text(&key["key"]).to_owned())),
    );
    let wanted = host.customer().await;
    all_reported(&host).await;

    stripe.mood(Mood::Refuse("Unwanted"));
    ask(&unwanted).await;
    eventually("Stripe refuses", async || {
        host.log().contains("refused by Stripe")
    })
    .await;
    ask(&unwanted).await;
    ask(&wanted).await;
    eventually("the other is served", async || {
        stripe.made("invoiceitems").len() == 1
    })
    .await;
    assert_eq!(stripe.asked("invoiceitems").len(), 2);
    let refused = "SELECT count(*) FROM outbox WHERE customer_id = 1 AND delivered_at IS NULL \
        AND next_attempt_at > sealed_at + 3000000 \
        AND last_error = 'status 400: as the test wants it'";
    assert_eq!(number(&host, refused).await, 1);
    let (used, left) = used_and_left(&host, 1).await;
    let kept = "SELECT CAST(sum(amount) AS BIGINT) FROM outbox WHERE customer_id = 1 AND sealed_at IS NOT NULL";
    assert_eq!(number(&host, kept).await + left, used);
}

#[tokio::test]
async fn without_a_key_nothing_is_written_and_with_one_those_before_are_told_of() {
    let stripe = FakeStripe::start().await;
    let host = Host::builder().config(
        "[stripe]\nreport_seconds = 0\n".to_owned()
            + GPT2
            + "price_per_million = { prompt = 9000, completion = 9000 }\n",
    );
    let host = host.env("STRIPE_API_BASE", stripe.url()).start().await;
    let host = host.ready().await;
    let customer = host.customer().await;
    ask(&customer).await;
    posted(&host).await;
    assert_eq!(number(&host, "SELECT count(*) FROM outbox").await, 0);
    assert!(stripe.asked("customers").is_empty());

    // as the README says: a line in .env, and a restart
    let line = format!("STRIPE_SECRET_KEY={STRIPE_KEY}\n");
    std::fs::write(host.dir().join(".env"), line).expect("a file");
    let host = host.restart().await.ready().await;
    all_reported(&host).await;
    assert_eq!(stripe.made("customers").len(), 1);
    // what was used before is not charged
    assert!(stripe.asked("invoiceitems").is_empty());
}

#[tokio::test]
async fn a_base_that_is_no_url_is_refused_at_the_start() {
    let (status, output) = setup("not a url").refused();
    assert!(!status.success());
    assert!(output.contains("stripe.api_base"), "{output}");
    assert!(!output.contains(STRIPE_KEY));
}

#[tokio::test]
async fn stripe_is_told_no_faster_than_it_takes() {
    let stripe = FakeStripe::start().await;
    let host = setup(stripe.url()).start().await;
    let begun = Instant::now();
    for number in 0..36 {
        let new = json!({ "name": "N", "email": format!("{number}@x.example"), "company": "C" });
        host.admin().post("/customers", new).await.expect(201);
    }
    all_reported(&host).await;
    assert_eq!(stripe.made("customers").len(), 36);
    // twelve at once, and then twelve a second
    assert!(
        begun.elapsed() >= Duration::from_millis(1900),
        "{:?}",
        begun.elapsed()
    );
}
