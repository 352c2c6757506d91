//! `/usage` and `/usage/requests`: what is on record, and whose it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::{
    Act, Client, GPT2, Host, Purse, Scratch, Upstream, component, eventually, lawgent, nanos,
};

const PRICE: &str = "price_per_million = { prompt = 2.5, completion = 10 }\n";

/// A server with both models; the second counts 7 and 3 tokens, at `PRICE`.
async fn both() -> (Host, Upstream) {
    let upstream = Upstream::start(Act::Answer(" and so it was.")).await;
    let config = format!("{GPT2}{}{PRICE}", lawgent(upstream.url()));
    (
        Host::builder().config(config).start().await.ready().await,
        upstream,
    )
}

async fn ask(customer: &Client, model_id: i64) -> Value {
    let body = json!({ "text": "Once upon a time", "model_id": model_id, "max_new_tokens": 4 });
    customer.post("/generate", body).await.expect(200)
}

#[tokio::test]
async fn totals_are_the_sums_of_what_was_answered() {
    let (host, _upstream) = both().await;
    let (one, two) = (host.customer().await, host.customer().await);
    let local = [ask(&one, 1).await, ask(&one, 1).await];
    let remote = ask(&one, 2).await;
    ask(&two, 2).await;

    let usage = one.get("/usage").await.expect(200);
    let sum = |field: &str| {
        local
            .iter()
            .map(|answer| answer[field].as_i64().expect("an integer"))
            .sum::<i64>()
    };
    let by_model = usage["by_model"].as_array().expect("a list");
    assert_eq!(by_model.len(), 2);
    assert_eq!(
        (&by_model[0]["model_id"], &by_model[0]["model"]),
        (&json!(1), &json!("gpt2"))
    );
    assert_eq!(by_model[0]["requests"], 2);
    assert_eq!(by_model[0]["prompt_tokens"], sum("prompt_tokens"));
    assert_eq!(by_model[0]["completion_tokens"], sum("completion_tokens"));
    // 7 tokens at 2.50 and 3 at 10.00 dollars a million, to the nano-dollar
    assert_eq!(remote["cost"], json!(0.0000475));
    assert_eq!(by_model[1]["cost"], json!(0.0000475));
    assert_eq!(
        (
            &by_model[1]["prompt_tokens"],
            &by_model[1]["completion_tokens"]
        ),
        (&json!(7), &json!(3))
    );
    assert_eq!(usage["totals"]["requests"], 3);
    assert_eq!(usage["totals"]["prompt_tokens"], sum("prompt_tokens") + 7);
    let tokens = sum("prompt_tokens") + sum("completion_tokens");
    let cost = usage["totals"]["cost"].as_f64().expect("a number");
    assert!(
        (cost - (tokens as f64 * 0.00001 + 0.0000475)).abs() < 1e-12,
        "{usage}"
    );

    let admin = host.admin();
    assert_eq!(admin.get("/usage?customer_id=1").await.expect(200), usage);
    assert_eq!(
        admin.get("/usage").await.expect(200)["totals"]["requests"],
        4
    );
    assert_eq!(
        two.get("/usage?customer_id=2").await.expect(200)["totals"]["requests"],
        1
    );
}

#[tokio::test]
async fn nothing_used_is_zero_of_everything() {
    let host = Host::start().await;
    let customer = host.customer().await;
    let nothing = json!({ "requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "cost": 0.0 });
    let usage = customer.get("/usage").await.expect(200);
    assert_eq!(usage, json!({ "totals": nothing, "by_model": [] }));
    assert_eq!(
        customer.get("/usage/requests").await.expect(200),
        json!({ "requests": [] })
    );
}

#[tokio::test]
async fn rows_have_every_field_and_come_in_pages() {
    let (host, _upstream) = both().await;
    let (customer, other) = (host.customer().await, host.customer().await);
    let mut asked = Vec::new();
    for _ in 0..5 {
        asked.push(ask(&customer, 2).await["request_id"].clone());
        ask(&other, 2).await;
    }
    let (mut found, mut after) = (Vec::new(), 0);
    loop {
        let page = customer
            .get(&format!("/usage/requests?limit=2&after={after}"))
            .await
            .expect(200);
        let rows = page["requests"].as_array().expect("a list").clone();
        let Some(last) = rows.last() else { break };
        assert!(rows.len() <= 2);
        after = last["id"].as_i64().expect("an integer");
        found.extend(rows);
    }
    let ids: Vec<_> = found.iter().map(|row| row["request_id"].clone()).collect();
    assert_eq!(ids, asked);
    let row = &found[0];
    for (field, value) in [
        ("model_id", json!(2)),
        ("prompt_tokens", json!(7)),
        ("completion_tokens", json!(3)),
        ("tokens_used", json!(10)),
        ("cost", json!(0.0000475)),
        ("status", json!("ok")),
        ("error_code", Value::Null),
        ("customer_id", json!(1)),
        ("api_key_id", json!(1)),
        ("tokens_estimated", json!(false)),
    ] {
        assert_eq!(row[field], value, "{field} of {row}");
    }
    assert!(
        row["latency_ms"]
            .as_i64()
            .is_some_and(|latency| latency >= 0),
        "{row}"
    );
    assert!(
        row["created_at"]
            .as_str()
            .is_some_and(|time| time.contains('T') && time.ends_with('Z')),
        "{row}"
    );
    assert_eq!(
        host.admin()
            .get("/usage/requests?limit=1000")
            .await
            .expect(200)["requests"]
            .as_array()
            .map(Vec::len),
        Some(10)
    );
}

#[tokio::test]
async fn what_failed_is_on_record_and_costs_nothing() {
    let (host, upstream) = both().await;
    upstream.act(Act::Say(500, vec![], "broken"));
    let customer = host.customer().await;
    let body = json!({ "text": "Once", "model_id": 2 });
    customer.post("/generate", body).await.expect_error(502);
    let row = customer.get("/usage/requests").await.expect(200)["requests"][0].clone();
    assert_eq!(
        (&row["status"], &row["cost"]),
        (&json!("failed"), &json!(0.0))
    );
    assert!(row["error_code"].is_string(), "{row}");
    let totals = customer.get("/usage").await.expect(200)["totals"].clone();
    assert_eq!(
        (&totals["requests"], &totals["cost"]),
        (&json!(1), &json!(0.0))
    );
}

#[tokio::test]
async fn tokens_that_nobody_counted_are_estimated_and_marked() {
    let (host, upstream) = both().await;
    upstream.act(Act::AnswerWithoutUsage("12345678"));
    let customer = host.customer().await;
    let answer = ask(&customer, 2).await;
    assert_eq!(
        (&answer["prompt_tokens"], &answer["completion_tokens"]),
        (&json!(4), &json!(2))
    );
    let row = customer.get("/usage/requests").await.expect(200)["requests"][0].clone();
    assert_eq!(row["tokens_estimated"], true);
}

#[tokio::test]
async fn a_page_that_makes_no_sense_is_refused_by_field() {
    let host = Host::start().await;
    let customer = host.customer().await;
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=many", "limit"),
        ("after=x", "after"),
        ("customer_id=me", "customer_id"),
        ("customer_id=99999999999999999999", "customer_id"),
    ] {
        for path in ["/usage/requests", "/api/keys"] {
            let reply = customer.get(&format!("{path}?{query}")).await;
            let found = reply.body["error"]["param"].clone();
            assert_eq!(reply.expect_error(422), "invalid_request", "{path}?{query}");
            assert_eq!(found, param, "{path}?{query}");
        }
    }
}

#[tokio::test]
async fn an_answer_survives_a_kill_right_after_it() {
    let (host, _upstream) = both().await;
    let customer = host.customer().await;
    let mut asked = Vec::new();
    for _ in 0..20 {
        asked.push(ask(&customer, 2).await["request_id"].clone());
    }
    host.signal("KILL");
    let key = customer.key().to_owned();
    let host = host.restart().await;
    let customer = host.anyone().with_header("x-api-key", key);
    let rows = customer.get("/usage/requests").await.expect(200);
    let kept: Vec<_> = rows["requests"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|row| row["request_id"].clone())
        .collect();
    assert_eq!(kept, asked);
}

#[tokio::test]
async fn old_rows_are_deleted_and_their_sums_stay() {
    let config = format!("[database]\nkeep_usage_days = 30\n{GPT2}{PRICE}");
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    ask(&customer, 1).await;
    ask(&customer, 1).await;
    // posted, since somebody asks
    customer.get("/usage").await.expect(200);
    let database = host.database();
    let age = 40 * 24 * 60 * 60 * 1000_i64;
    for (table, time) in [
        ("usage", "created_at"),
        ("transfers", "created_at"),
        ("usage_sums", "start"),
    ] {
        let hours = match table {
            "usage_sums" => "WHERE period = 'hour'",
            _ => "",
        };
        let sql = format!("UPDATE {table} SET {time} = {time} - {age} {hours}");
        database.execute(&sql).await.expect("aged");
    }
    host.run(&["db", "audit"]);
    let kept = ask(&customer, 1).await;
    let (used, money) = (
        customer.get("/usage").await.expect(200),
        customer.get("/customers/1/transfers").await.expect(200),
    );
    assert_eq!(used["totals"]["requests"], 3);

    let host = host.restart().await.ready().await;
    let customer = customer.at(host.url());
    eventually("the old ones are gone", async || {
        database.number("SELECT count(*) FROM usage").await == 1
    })
    .await;
    let rows = customer.get("/usage/requests").await.expect(200);
    assert_eq!(rows["requests"][0]["cost"], kept["cost"]);
    assert_eq!(customer.get("/usage").await.expect(200), used);
    let path = "/customers/1/transfers";
    assert_eq!(customer.get(path).await.expect(200), money);
    host.run(&["db", "audit"]);
}

#[tokio::test]
async fn a_long_schema_of_the_answer_is_counted_as_what_it_is() {
    const COUNTED: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"{}"},
        "finish_reason":"stop"}],"usage":{"prompt_tokens":5000,"completion_tokens":2}}"#;
    let upstream = Upstream::start(Act::Json(COUNTED)).await;
    let (plugin, url) = (component("openai"), upstream.base());
    let config = format!(
        "{GPT2}[[models]]\nid = 2\nname = \"chatty\"\n\
         plugin = \"{plugin}\"\napi_url = \"{url}\"\nmodel_name = \"upstream\"\n{PRICE}\
         [models.limits]\nmax_prompt_bytes = 30000\n"
    );
    let host = Host::builder().config(config).start().await.ready().await;
    let customer = host.customer().await;
    let ask = |length: usize| {
        let schema = json!({ "name": "a", "description": "long ".repeat(length / 5) });
        let format = json!({ "type": "json_schema", "json_schema": schema });
        let messages = json!([{ "role": "user", "content": "Hi" }]);
        let body = json!({ "model": "chatty", "messages": messages, "response_format": format });
        customer.post("/v1/chat/completions", body)
    };
    let answer = ask(20_000).await.expect(200);
    assert_eq!(answer["usage"]["prompt_tokens"], 5000);
    let used = customer.get("/usage").await.expect(200);
    assert_eq!(used["totals"]["prompt_tokens"], 5000);
    // nor is it a way around the limit of what may be sent
    let refused = ask(40_000).await;
    assert_eq!(refused.expect_error(400), "prompt_too_long");
}

/// The prices on the row of a request, in nano-dollars of a million tokens.
async fn prices_on_row(host: &Host, answer: &Value) -> (i64, i64) {
    let id = answer["request_id"].as_str().expect("an id");
    let database = host.database();
    let of = async |column: &str| {
        let sql = format!("SELECT {column} FROM usage WHERE request_id = '{id}'");
        database.number(&sql).await
    };
    (of("prompt_price").await, of("completion_price").await)
}

#[tokio::test]
async fn a_request_costs_by_the_price_that_it_began_with_which_is_on_its_row() {
    const DOLLAR: i64 = 1_000_000_000;
    for setup in [
        Host::builder().in_file(),
        Host::builder().on(Arc::new(Scratch::new())),
    ] {
        let upstream = Upstream::start(Act::Hold("yes")).await;
        let config = |prompt: i64, completion: i64| {
            let price = json!({ "prompt": prompt, "completion": completion });
            let price = price.to_string().replace(':', " = ");
            let model = lawgent(upstream.url());
            format!("{model}price_per_million = {price}\n")
        };
        let host = setup.config(config(1, 3)).start().await.ready().await;
        let purse = Purse::prepaid(&host, DOLLAR).await;
        let customer = purse.customer.clone();
        let asking = tokio::spawn(async move { ask(&customer, 2).await });
        eventually("the upstream has it", async || upstream.open() == 1).await;
        host.write_config(&config(5, 7));
        eventually("the price is another", async || {
            let models = host.admin().get("/models").await.expect(200);
            let price = &models["models"][0]["price_per_million"];
            nanos(&price["prompt"]) == 5 * DOLLAR
        })
        .await;
        upstream.release(1);
        let first = asking.await.expect("no panic");
        upstream.act(Act::Answer("yes"));
        let second = ask(&purse.customer, 2).await;

        // it counts 7 and 3 tokens
        let rows = purse.customer.get("/usage/requests").await.expect(200);
        for (row, answer, cost, prices) in [
            (0, &first, 16_000, (DOLLAR, 3 * DOLLAR)),
            (1, &second, 56_000, (5 * DOLLAR, 7 * DOLLAR)),
        ] {
            assert_eq!(nanos(&answer["cost"]), cost);
            assert_eq!(nanos(&rows["requests"][row]["cost"]), cost);
            assert_eq!(prices_on_row(&host, answer).await, prices);
        }
        assert_eq!(purse.balance().await, (DOLLAR - 72_000, 0));
    }
}

#[tokio::test]
async fn the_latency_on_a_row_is_what_the_request_took() {
    let (host, upstream) = both().await;
    upstream.act(Act::Hold("yes"));
    let customer = host.customer().await;
    let started = Instant::now();
    let asking = tokio::spawn({
        let customer = customer.clone();
        async move { ask(&customer, 2).await }
    });
    eventually("the upstream has it", async || upstream.open() == 1).await;
    let held = Instant::now();
    let passes = async || held.elapsed() > Duration::from_millis(50);
    eventually("time passes", passes).await;
    let least = held.elapsed().as_millis();
    upstream.release(1);
    asking.await.expect("no panic");
    let most = started.elapsed().as_millis();
    let rows = customer.get("/usage/requests").await.expect(200);
    let latency = rows["requests"][0]["latency_ms"].as_u64();
    let latency = u128::from(latency.expect("a number"));
    assert!(
        (least..=most).contains(&latency),
        "{latency}: {least} to {most}"
    );
}
