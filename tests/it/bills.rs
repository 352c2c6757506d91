//! What an operator needs for a bill: what a customer used in a month.

use serde_json::{Value, json};

use crate::harness::{Client, Host, Purse, nanos};

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
async fn usage_of_a_month_has_its_first_hour_and_not_the_next_months() {
    let host = Host::start().await.ready().await;
    let admin = host.admin();
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
