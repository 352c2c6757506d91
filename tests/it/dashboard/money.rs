//! The money of a customer, as its page and the operator's show it.

use serde_json::json;

use super::page;
use crate::harness::{Act, GPT2, Host, Purse, Upstream, eventually, lawgent, nanos, text};

const NEAR: &str = "nearly used";

/// An amount as pages show it.
pub fn shown(nanos: i64) -> String {
    let text = text(nanos);
    let (whole, decimals) = text.split_once('.').expect("decimals");
    let kept = decimals.trim_end_matches('0').len().max(2);
    format!("${whole}.{}", &decimals[..kept])
}

/// The text of a piece of a page, with a space for each tag.
pub fn words(html: &str) -> String {
    let texts = html.split('<').map(|part| match part.split_once('>') {
        Some((_, text)) => text,
        None => part,
    });
    let texts: Vec<_> = texts.flat_map(str::split_whitespace).collect();
    texts.join(" ")
}

#[tokio::test]
async fn a_balance_what_is_held_of_it_and_budgets_are_shown_as_they_are() {
    let upstream = Upstream::start(Act::Hold("yes")).await;
    // ten tokens cost 100 nano-dollars
    let price = "price_per_million = { prompt = 0.01, completion = 0.01 }\n";
    let config = format!("{GPT2}{}{price}", lawgent(upstream.url()));
    let host = Host::builder().config(config).start().await.ready().await;
    let ask = |model_id: i64| json!({ "text": "Once", "model_id": model_id, "max_new_tokens": 4 });
    let answer = host.customer().await.post("/generate", ask(1)).await;
    let cost = nanos(&answer.expect(200)["cost"]);
    let paid = 5 * cost + 100;
    let purse = Purse::prepaid(&host, paid).await;
    let budgets = json!({ "budgets": [{ "period": "total", "amount": text(paid) }] });
    let admin = host.admin();
    let set = admin.put(&purse.path("/budgets"), budgets).await;
    set.expect(200);
    let own = purse.path("").replace("customers", "dashboard");
    let see = async |path: &str| words(&page(admin.get(path).await, 200));
    let assert_shows = async |spent: i64, held: i64, state: &str| {
        let near = if state == "ok" { "" } else { "nearly used " };
        let note = "held for requests at work; credit limit $0.00";
        let [balance, spent, held, paid] = [paid - spent, spent, held, paid].map(shown);
        let text = see(&own).await;
        for part in [
            format!("Balance {balance} {near}{held} {note}"),
            format!("all keys total {paid} {spent} {held} {state}"),
        ] {
            assert!(text.contains(&part), "{part:?} is not in {text}");
        }
        assert_eq!(text.contains(NEAR), !near.is_empty(), "{text}");
        let all = see("/dashboard").await;
        let sums = format!("{spent} {balance}");
        assert!(all.contains(&sums), "{sums:?} is not in {all}");
    };

    assert_shows(0, 0, "ok").await;
    let customer = purse.customer.clone();
    let asking = tokio::spawn(async move { customer.post("/generate", ask(2)).await });
    eventually("the upstream has it", async || upstream.open() == 1).await;
    let (_, held) = purse.balance().await;
    assert!(held > 100);
    assert_shows(0, held, "ok").await;
    upstream.release(1);
    asking.await.expect("no panic").expect(200);
    for (answers, state) in [
        (0, "ok"),
        (1, "ok"),
        (2, "ok"),
        (3, "ok"),
        (4, "nearly spent"),
        (5, "spent"),
    ] {
        if answers > 0 {
            purse.customer.post("/generate", ask(1)).await.expect(200);
        }
        assert_shows(100 + answers * cost, 0, state).await;
    }
}
