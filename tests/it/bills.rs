//! What an operator needs for a bill: what a customer used in a month and at what price,
//! and what one owes who was deleted.

use serde_json::{Value, json};

use crate::harness::{Client, Host, Purse, before_the_hour, nanos};

/// Nano-dollars of a token at the default price.
const TOKEN: i64 = 10_000;

async fn ask(customer: &Client) -> Value {
    let body = json!({ "text": "Once upon a time", "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", body).await.expect(200)
}

/// Sets when everything on record of a customer was used, in the sums by hour.
async fn used_at(host: &Host, purse: &Purse, hour: i64) {
    // posted, since somebody asks
    purse.customer.get("/usage").await.expect(200);
    let start = hour * 60 * 60 * 1000;
    let sql = format!(
        "UPDATE usage_sums SET start = {start} WHERE period = 'hour' AND customer_id = {}",
        purse.id
    );
    host.database().execute(&sql).await.expect("moved");
}

#[tokio::test]
async fn a_deleted_customer_can_be_billed() {
    let host = Host::start().await.ready().await;
    let admin = host.admin();
    let (gone, living) = (Purse::postpaid(&host).await, Purse::postpaid(&host).await);
    let budgets = json!({ "budgets": [{ "period": "total", "amount": 1.0 }] });
    let set = admin.put(&gone.path("/budgets"), budgets.clone()).await;
    set.expect(200);
    let cost = nanos(&ask(&gone.customer).await["cost"]);
    ask(&living.customer).await;
    let before = admin.get(&gone.path("")).await.expect(200);
    assert_eq!(before["deleted_at"], Value::Null);
    admin.delete(&gone.path("")).await.expect(204);

    // as it was, and marked
    let mut found = admin.get(&gone.path("")).await.expect(200);
    let deleted_at = found["deleted_at"].take();
    let deleted_at = deleted_at.as_str().expect("a time");
    assert!(deleted_at >= before["created_at"].as_str().expect("a time"));
    assert_eq!(found, before);
    assert_eq!(nanos(&found["balance"]), -cost);
    let transfers = admin.get(&gone.path("/transfers")).await.expect(200);
    assert_eq!(nanos(&transfers["transfers"][0]["amount"]), -cost);
    let spent = admin.get(&gone.path("/budgets")).await.expect(200);
    assert_eq!(nanos(&spent["budgets"][0]["spent"]), cost);

    // it pays, and more than it owes, which is given back
    let credit = async |amount: i64, reference: &str| {
        let amount = format!("{:.9}", amount as f64 / 1e9);
        let body = json!({ "amount": amount, "reference": reference });
        let booked = admin.post(&gone.path("/credit"), body).await;
        booked.expect(201)
    };
    let paid = credit(cost + 7, "last-bill").await;
    assert_eq!(credit(cost + 7, "last-bill").await, paid);
    credit(-7, "refund").await;
    let found = admin.get(&gone.path("")).await.expect(200);
    assert_eq!(nanos(&found["balance"]), 0);
    host.run(&["db", "audit"]);

    // nothing else is to be done with it, and its keys open nothing
    let email = found["email"].as_str().expect("an address");
    let key = |whose: Value| {
        let mut body = json!({ "name": "K" });
        body.as_object_mut()
            .expect("an object")
            .extend(whose.as_object().cloned().expect("one"));
        body
    };
    for reply in [
        admin.patch(&gone.path(""), json!({ "name": "B" })).await,
        admin.delete(&gone.path("")).await,
        admin.put(&gone.path("/budgets"), budgets).await,
        admin
            .post("/api/keys", key(json!({ "customer_id": gone.id })))
            .await,
        admin
            .post("/api/keys", key(json!({ "customer_email": email })))
            .await,
    ] {
        assert_eq!(reply.expect_error(404), "customer_not_found");
    }
    for end in ["", "/transfers", "/budgets"] {
        let reply = gone.customer.get(&gone.path(end)).await;
        assert_eq!(reply.expect_error(401), "invalid_api_key");
        let reply = living.customer.get(&gone.path(end)).await;
        assert_eq!(reply.expect_error(404), "customer_not_found");
    }

    // lists are of the living, unless the others are asked for
    for (query, id) in [
        ("", living.id),
        ("?deleted=false", living.id),
        ("?deleted=true", gone.id),
    ] {
        let list = admin.get(&format!("/customers{query}")).await.expect(200);
        let list = list["customers"].as_array().expect("a list").clone();
        let ids: Vec<_> = list.iter().map(|customer| customer["id"].clone()).collect();
        assert_eq!(ids, [json!(id)], "{query}");
    }
}

#[tokio::test]
async fn usage_of_a_month_has_its_first_hour_and_not_the_next_months() {
    let host = Host::start().await.ready().await;
    let admin = host.admin();
    before_the_hour().await;
    let (one, two) = (Purse::postpaid(&host).await, Purse::postpaid(&host).await);
    for purse in [&one, &one, &two] {
        ask(&purse.customer).await;
    }
    // 2026-02-01T00:00:00Z and 2026-02-28T23:00:00Z
    let (first, last) = (491_640, 491_640 + 28 * 24 - 1);
    used_at(&host, &one, first).await;
    used_at(&host, &two, last).await;
    let all = admin.get("/usage").await.expect(200);
    assert_eq!(all["totals"]["requests"], 3);

    let of = async |client: &Client, query: &str| {
        let usage = client.get(&format!("/usage?{query}")).await.expect(200);
        let (totals, by_model) = (&usage["totals"], &usage["by_model"]);
        let count = totals["requests"].as_i64().expect("a number");
        match count {
            0 => assert_eq!(*by_model, json!([])),
            _ => assert_eq!(by_model[0]["requests"], count),
        }
        let tokens = totals["prompt_tokens"]
            .as_i64()
            .zip(totals["completion_tokens"].as_i64());
        let tokens = tokens.map(|(prompt, completion)| prompt + completion);
        assert_eq!(nanos(&totals["cost"]), tokens.expect("numbers") * TOKEN);
        count
    };
    let mine = format!("customer_id={}&", one.id);
    for (query, of_one, of_all) in [
        ("from=2026-02-01T00:00:00Z&to=2026-03-01T00:00:00Z", 2, 3),
        (
            "from=2026-02-01T01:00:00%2B01:00&to=2026-02-28T18:00:00-05:00",
            2,
            2,
        ),
        ("from=2026-02-01T01:00:00Z", 0, 1),
        ("to=2026-02-28T23:00:00Z", 2, 2),
        ("to=2026-02-01T00:00:00Z", 0, 0),
        ("", 2, 3),
    ] {
        assert_eq!(of(&admin, query).await, of_all, "{query}");
        let asked = format!("{mine}{query}");
        assert_eq!(of(&admin, &asked).await, of_one, "{query}");
        assert_eq!(of(&one.customer, query).await, of_one, "{query}");
        assert_eq!(of(&two.customer, query).await, of_all - of_one, "{query}");
    }
    let foreign = two.customer.get(&format!("/usage?{mine}")).await;
    assert_eq!(foreign.expect_error(404), "customer_not_found");

    for (query, param) in [
        ("from=2026-02-01T00:30:00Z", "from"),
        ("from=2026-02-01T00:00:01Z", "from"),
        ("from=2026-02-01T00:00:00.001Z", "from"),
        // half an hour from UTC
        ("from=2026-02-01T00:00:00%2B05:30", "from"),
        ("from=2026-02-01", "from"),
        ("from=", "from"),
        ("to=yesterday", "to"),
        ("to=2026-02-01T00:59:00Z", "to"),
        ("from=2026-02-01T00:00:00Z&to=2026-02-01T00:00:00Z", "to"),
        ("from=2026-03-01T00:00:00Z&to=2026-02-01T00:00:00Z", "to"),
    ] {
        for client in [&admin, &one.customer] {
            let reply = client.get(&format!("/usage?{query}")).await;
            assert_eq!(reply.body["error"]["param"], param, "{query}");
            assert_eq!(reply.expect_error(422), "invalid_request", "{query}");
        }
    }
    // or it would be all time that is billed
    let misspelt = admin.get("/usage?form=2026-02-01T00:00:00Z").await;
    assert_eq!(misspelt.expect_error(422), "invalid_request");
}

#[tokio::test]
async fn a_row_has_the_price_of_its_request() {
    let price = "price_per_million = { prompt = 2.5, completion = 10 }\n";
    let config = format!("{}{price}", crate::harness::GPT2);
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    ask(&customer).await;
    let rows = customer.get("/usage/requests").await.expect(200);
    let expected = json!({ "prompt": 2.5, "completion": 10.0 });
    assert_eq!(rows["requests"][0]["price_per_million"], expected);
    let models = customer.get("/models").await.expect(200);
    assert_eq!(models["models"][0]["price_per_million"], expected);
}
