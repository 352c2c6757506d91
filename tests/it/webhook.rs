//! The operator's webhook: signed, once for each budget and period, and sent until
//! it is taken.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::json;
use sha2::Sha256;

use crate::harness::{
    Act, Client, GPT2, Host, Purse, Upstream, before_the_hour, eventually, nanos, text,
};

const KEY: [u8; 32] = [7; 32];

fn with(webhook: &Upstream) -> String {
    format!(
        "[webhook]\nurl = \"{}\"\nsecret = \"${{WEBHOOK_SECRET}}\"\n{GPT2}",
        webhook.base()
    )
}

async fn start(webhook: &Upstream) -> Host {
    let secret = format!("whsec_{}", STANDARD.encode(KEY));
    let host = Host::builder()
        .config(with(webhook))
        .env("WEBHOOK_SECRET", secret);
    host.start().await.ready().await
}

async fn ask(customer: &Client) {
    let body = json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": 20, "temperature": 0 });
    customer.post("/generate", body).await.expect(200);
}

/// What a signature of this notice must be.
fn signature(id: &str, timestamp: &str, body: &str) -> String {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&KEY).expect("a key");
    mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
}

#[tokio::test]
async fn a_budget_that_is_nearly_spent_is_told_once_and_until_it_is_taken() {
    let webhook = Upstream::start(Act::Say(500, vec![], "not now")).await;
    before_the_hour().await;
    let host = start(&webhook).await;
    let customer = host.customer().await;
    let budgets = json!({ "budgets": [
        { "period": "month", "amount": "0.01", "near_percent": 1 },
        { "period": "total", "amount": 10 },
    ] });
    host.admin()
        .put("/api/keys/1/budgets", budgets)
        .await
        .expect(200);
    ask(&customer).await;
    eventually("it is tried again", async || webhook.seen().len() >= 2).await;

    // a server that is started anew goes on
    webhook.act(Act::Say(204, vec![], ""));
    let host = host.restart().await.ready().await;
    eventually("it is taken", async || {
        host.log().contains("told the webhook")
    })
    .await;
    let customer = customer.at(host.url());
    let before = webhook.seen();
    ask(&customer).await;

    let last = before.last().expect("a notice");
    let header = |name: &str| last.headers[name].to_str().expect("text");
    let (id, timestamp) = (header("webhook-id"), header("webhook-timestamp"));
    let expected = signature(id, timestamp, &last.body.to_string());
    assert_eq!(header("webhook-signature"), expected);
    assert_eq!(header("content-type"), "application/json");
    assert!(before.iter().all(|seen| seen.headers["webhook-id"] == id));
    assert!(before.iter().all(|seen| seen.body == last.body));
    let (body, data) = (&last.body, &last.body["data"]);
    assert_eq!(body["type"], "budget.near");
    assert!(
        body["timestamp"]
            .as_str()
            .is_some_and(|time| time.ends_with('Z'))
    );
    assert_eq!(
        (&data["customer_id"], &data["api_key_id"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(
        (&data["period"], &data["near_percent"]),
        (&json!("month"), &json!(1))
    );
    assert_eq!(data["amount"], 0.01);
    assert!(
        (100_000..10_000_000).contains(&nanos(&data["spent"])),
        "{data}"
    );
    assert!(
        data["period_start"]
            .as_str()
            .is_some_and(|start| start.ends_with("-01T00:00:00Z"))
    );

    // another budget is another notice, and comes after all there was of the first
    let budgets = json!({ "budgets": [{ "period": "day", "amount": "0.5", "near_percent": 1 }] });
    host.admin()
        .put("/customers/1/budgets", budgets)
        .await
        .expect(200);
    for _ in 0..30 {
        ask(&customer).await;
    }
    eventually("the other is told", async || {
        webhook.seen().len() > before.len()
    })
    .await;
    let seen = webhook.seen();
    assert_eq!(seen.len(), before.len() + 1);
    let data = &seen.last().expect("a notice").body["data"];
    assert_eq!(
        (&data["period"], &data["api_key_id"]),
        (&json!("day"), &json!(null))
    );

    // one that is nearly spent when it is set, by what was used before
    let budgets = json!({ "budgets": [{ "period": "total", "amount": "0.5", "near_percent": 1 }] });
    let told = seen.len();
    for _ in 0..2 {
        let admin = host.admin();
        let set = admin.put("/customers/1/budgets", budgets.clone()).await;
        set.expect(200);
    }
    eventually("it is told", async || webhook.seen().len() > told).await;
    let seen = webhook.seen();
    assert_eq!(seen.len(), told + 1);
    assert_eq!(seen[told].body["data"]["period"], "total");
    assert!(!host.log().contains("whsec_"));
}

#[tokio::test]
async fn a_budget_that_is_raised_is_told_of_again_when_that_is_nearly_spent() {
    let webhook = Upstream::start(Act::Say(200, vec![], "")).await;
    let host = start(&webhook).await;
    let purse = Purse::postpaid(&host).await;
    // 24 tokens are 240,000: each of them is nearly spent by one more
    for (told, amount) in [250_000, 550_000].into_iter().enumerate() {
        let total = json!({ "budgets": [{ "period": "total", "amount": text(amount) }] });
        for is_spent in [false, true] {
            let admin = host.admin();
            let set = admin.put(&purse.path("/budgets"), total.clone()).await;
            set.expect(200);
            if !is_spent {
                ask(&purse.customer).await;
                eventually("it is told", async || webhook.seen().len() > told).await;
            }
        }
        let seen = webhook.seen();
        assert_eq!(seen.len(), told + 1);
        assert_eq!(nanos(&seen[told].body["data"]["amount"]), amount);
    }
}

#[tokio::test]
async fn credit_that_is_nearly_used_is_told_and_again_after_the_next_payment() {
    let webhook = Upstream::start(Act::Say(200, vec![], "")).await;
    let host = start(&webhook).await;
    // 24 tokens are 0.00024: the second request leaves less than a fifth
    let purse = Purse::prepaid(&host, 600_000).await;
    let is_near = async || host.admin().get(&purse.path("")).await.expect(200)["is_near"].clone();
    for payment in 1..=2 {
        ask(&purse.customer).await;
        assert_eq!(is_near().await, false);
        ask(&purse.customer).await;
        eventually("it is told", async || webhook.seen().len() == payment).await;
        assert_eq!(is_near().await, true);
        let notice = &webhook.seen()[payment - 1].body;
        assert_eq!(notice["type"], "credit.near");
        let (balance, _) = purse.balance().await;
        assert_eq!(nanos(&notice["data"]["balance"]), balance);
        assert_eq!(notice["data"]["credit_limit"], 0.0);
        let more =
            json!({ "amount": text(600_000 - balance), "reference": format!("more-{payment}") });
        host.admin()
            .post(&purse.path("/credit"), more)
            .await
            .expect(201);
    }
    let seen = webhook.seen();
    assert_ne!(seen[0].headers["webhook-id"], seen[1].headers["webhook-id"]);
}

#[tokio::test]
async fn a_webhook_without_a_good_secret_is_refused() {
    let webhook = Upstream::start(Act::Stall).await;
    for secret in ["whsec_c2hvcnQ=", "a-password"] {
        let setup = Host::builder()
            .config(with(&webhook))
            .env("WEBHOOK_SECRET", secret);
        let (status, said) = setup.refused();
        assert!(!status.success());
        assert!(
            said.contains("webhook.secret") && !said.contains(secret),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_budget_that_is_raised_and_lowered_again_is_told_of_again() {
    let webhook = Upstream::start(Act::Say(200, vec![], "")).await;
    let host = start(&webhook).await;
    let purse = Purse::postpaid(&host).await;
    let set = async |amount| {
        let total = json!({ "budgets": [{ "period": "total", "amount": text(amount) }] });
        let set = host.admin().put(&purse.path("/budgets"), total).await;
        set.expect(200);
    };
    // 24 tokens are 240,000
    set(250_000).await;
    ask(&purse.customer).await;
    for told in 1..=3 {
        eventually("it is told", async || webhook.seen().len() == told).await;
        set(1_000_000_000).await;
        set(250_000).await;
    }
    eventually("it is told", async || webhook.seen().len() == 4).await;
    let ids: HashSet<_> = webhook
        .seen()
        .iter()
        .map(|seen| seen.headers["webhook-id"].clone())
        .collect();
    assert_eq!(ids.len(), 4);
}
