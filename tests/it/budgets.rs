//! Budgets of customers and of their keys.

use serde_json::{Value, json};

use crate::harness::{Host, Purse, before_the_hour, eventually, nanos, text};

const TOKEN: i64 = 10_000;

/// A server on a day that is long enough for a test.
async fn start() -> Host {
    before_the_hour().await;
    Host::start().await.ready().await
}

fn ask(max_new_tokens: u32) -> Value {
    json!({
        "text": "Once upon a time", "model_id": 1, "max_new_tokens": max_new_tokens, "temperature": 0
    })
}

/// Nano-dollars of a request for so many tokens.
async fn cost(host: &Host, tokens: i64) -> i64 {
    let answer = host
        .customer()
        .await
        .post("/generate", ask(1))
        .await
        .expect(200);
    (answer["prompt_tokens"].as_i64().expect("a number") + tokens) * TOKEN
}

fn budgets(period: &str, amount: i64) -> Value {
    json!({ "budgets": [{ "period": period, "amount": text(amount) }] })
}

/// The path of the budgets of a customer's one key.
async fn of_key(purse: &Purse) -> String {
    let keys = purse.customer.get("/api/keys").await.expect(200);
    format!("/api/keys/{}/budgets", keys["keys"][0]["id"])
}

#[tokio::test]
async fn of_a_hundred_calls_at_once_on_a_budget_for_ten_ten_are_answered() {
    let host = start().await;
    let cost = cost(&host, 3).await;
    for (is_of_key, period) in [(false, "month"), (true, "day"), (true, "total")] {
        let purse = Purse::postpaid(&host).await;
        let path = if is_of_key {
            of_key(&purse).await
        } else {
            purse.path("/budgets")
        };
        host.admin()
            .put(&path, budgets(period, 10 * cost))
            .await
            .expect(200);
        let (answers, refusals) = purse.ask_at_once(100, &ask(3)).await;
        assert_eq!((answers.len(), refusals.len()), (10, 90), "{period}");
        assert!(refusals.iter().all(|code| code == "budget_exceeded"));
        let shown = purse.customer.get(&path).await.expect(200);
        let budget = &shown["budgets"][0];
        assert_eq!(
            (nanos(&budget["spent"]), nanos(&budget["held"])),
            (10 * cost, 0)
        );
        assert_eq!(purse.balance().await, (-10 * cost, 0));
    }
    host.run(&["db", "audit"]);
}

#[tokio::test]
async fn a_keys_budget_is_its_own_and_a_customers_is_for_all_keys() {
    let host = start().await;
    let cost = cost(&host, 1).await;
    let purse = Purse::postpaid(&host).await;
    let keys = purse.customer.get("/api/keys").await.expect(200);
    let order = json!({ "customer_id": keys["keys"][0]["customer_id"], "name": "Other", "rate_limit": 1000 });
    let second = host.admin().post("/api/keys", order).await.expect(201);
    let second = purse
        .customer
        .with_header("x-api-key", second["key"].as_str().expect("text").into());
    host.admin()
        .put(&of_key(&purse).await, budgets("day", 2 * cost))
        .await
        .expect(200);
    host.admin()
        .put(&purse.path("/budgets"), budgets("day", 5 * cost))
        .await
        .expect(200);
    for (caller, answered) in [(&purse.customer, 2), (&second, 3)] {
        for _ in 0..answered {
            caller.post("/generate", ask(1)).await.expect(200);
        }
        let refused = caller.post("/generate", ask(1)).await;
        assert_eq!(refused.expect_error(402), "budget_exceeded");
    }
    host.run(&["db", "audit"]);
}

#[tokio::test]
async fn an_answer_is_as_long_as_the_budget_and_says_so() {
    let host = start().await;
    let cost = cost(&host, 4).await;
    let purse = Purse::prepaid(&host, 1_000_000_000).await;
    host.admin()
        .put(&purse.path("/budgets"), budgets("day", cost))
        .await
        .expect(200);
    let mut body = ask(50);
    body["stream"] = json!(true);
    let events = purse.customer.stream("/generate", body).await.rest().await;
    let last = &events[events.len() - 2];
    assert_eq!(
        (&last["finish_reason"], &last["limited_by"]),
        (&json!("length"), &json!("budget"))
    );
    assert_eq!(last["completion_tokens"], 4);
    let refused = purse.customer.post("/generate", ask(1)).await;
    let message = refused.body["error"]["message"].clone();
    assert_eq!(refused.expect_error(402), "budget_exceeded");
    assert!(
        message
            .as_str()
            .is_some_and(|text| text.contains("the customer's budget for the day")),
        "{message}"
    );
}

#[tokio::test]
async fn a_budget_is_near_its_end_from_its_threshold_on() {
    let host = start().await;
    let cost = cost(&host, 1).await;
    let purse = Purse::postpaid(&host).await;
    let path = purse.path("/budgets");
    let wanted =
        json!({ "budgets": [{ "period": "month", "amount": text(4 * cost), "near_percent": 50 }] });
    host.admin().put(&path, wanted).await.expect(200);
    for is_near in [false, true, true] {
        purse.customer.post("/generate", ask(1)).await.expect(200);
        let shown = purse.customer.get(&path).await.expect(200);
        assert_eq!(shown["budgets"][0]["is_near"], is_near);
    }
    eventually("the log says it", async || {
        host.log().contains("a budget is nearly spent")
    })
    .await;
    assert_eq!(host.log().matches("a budget is nearly spent").count(), 1);
    let page = host
        .admin()
        .get(&purse.path("").replace("customers", "dashboard"))
        .await
        .expect(200);
    let page = page.as_str().expect("a page");
    assert!(
        page.contains("nearly spent") && page.contains("id=\"balance\""),
        "{page}"
    );
}

#[tokio::test]
async fn budgets_are_replaced_as_a_whole_and_keep_what_was_spent() {
    let host = start().await;
    let cost = cost(&host, 1).await;
    let purse = Purse::postpaid(&host).await;
    let path = purse.path("/budgets");
    let put =
        async |body: Value| host.admin().put(&path, body).await.expect(200)["budgets"].clone();
    purse.customer.post("/generate", ask(1)).await.expect(200);
    // what was used before counts
    let both = json!({ "budgets": [{ "period": "day", "amount": 1 }, { "period": "total", "amount": 2.5 }] });
    let shown = put(both).await;
    let spent: Vec<_> = shown
        .as_array()
        .expect("a list")
        .iter()
        .map(|budget| nanos(&budget["spent"]))
        .collect();
    assert_eq!(spent, [cost, cost]);
    assert_eq!(
        (&shown[0]["near_percent"], &shown[1]["amount"]),
        (&json!(80), &json!(2.5))
    );
    assert!(
        shown[0]["period_end"].is_string() && shown[1]["period_end"].is_null(),
        "{shown}"
    );

    let shown = put(budgets("day", 2 * cost)).await;
    assert_eq!(
        (shown.as_array().map(Vec::len), nanos(&shown[0]["spent"])),
        (Some(1), cost)
    );
    purse.customer.post("/generate", ask(1)).await.expect(200);
    let refused = purse.customer.post("/generate", ask(1)).await;
    assert_eq!(refused.expect_error(402), "budget_exceeded");
    assert_eq!(put(json!({ "budgets": [] })).await, json!([]));
    purse.customer.post("/generate", ask(1)).await.expect(200);
    host.run(&["db", "audit"]);
}

#[tokio::test]
async fn what_is_no_budget_is_refused_by_field() {
    let host = Host::start().await;
    let (purse, other) = (Purse::postpaid(&host).await, Purse::postpaid(&host).await);
    let (path, key_path) = (purse.path("/budgets"), of_key(&purse).await);
    for (budgets, param) in [
        (
            json!([{ "period": "week", "amount": 1 }]),
            "budgets[0].period",
        ),
        (json!([{ "amount": 1 }]), "budgets[0].period"),
        (json!([{ "period": "day" }]), "budgets[0].amount"),
        (
            json!([{ "period": "day", "amount": -1 }]),
            "budgets[0].amount",
        ),
        (
            json!([{ "period": "day", "amount": 9e9 }]),
            "budgets[0].amount",
        ),
        (
            json!([{ "period": "day", "amount": 1, "near_percent": 0 }]),
            "budgets[0].near_percent",
        ),
        (
            json!([{ "period": "day", "amount": 1, "near_percent": 101 }]),
            "budgets[0].near_percent",
        ),
        (
            json!([{ "period": "day", "amount": 1 }, { "period": "day", "amount": 2 }]),
            "budgets[1].period",
        ),
        (
            json!([{ "period": "day", "amount": 1, "hard": true }]),
            "budgets[0].hard",
        ),
        (Value::Null, "budgets"),
    ] {
        for path in [&path, &key_path] {
            let reply = host.admin().put(path, json!({ "budgets": budgets })).await;
            assert_eq!(reply.body["error"]["param"], param, "{budgets}");
            assert_eq!(reply.expect_error(422), "invalid_request");
        }
    }
    let nothing = json!({ "budgets": [] });
    for (path, code) in [(&path, "customer_not_found"), (&key_path, "key_not_found")] {
        assert_eq!(purse.customer.get(path).await.expect(200), nothing);
        let own = purse.customer.put(path, nothing.clone()).await;
        assert_eq!(own.expect_error(403), "wrong_kind_of_key");
        assert_eq!(other.customer.get(path).await.expect_error(404), code);
    }
    for (path, code) in [
        ("/customers/99/budgets", "customer_not_found"),
        ("/api/keys/99/budgets", "key_not_found"),
    ] {
        assert_eq!(host.admin().get(path).await.expect_error(404), code);
        assert_eq!(
            host.admin()
                .put(path, nothing.clone())
                .await
                .expect_error(404),
            code
        );
    }
}
