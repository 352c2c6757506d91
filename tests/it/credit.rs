//! Credit: what a customer has paid, what is held of it, and that no request
//! spends more than there is.

use reqwest::Method;
use serde_json::{Value, json};

use crate::adapters;
use crate::harness::{Act, GPT2, Host, Purse, Reply, Upstream, lawgent, nanos, text};

const PROMPT: &str = "Once upon a time";

/// Nano-dollars of a token at the default price.
const TOKEN: i64 = 10_000;
const DOLLAR: i64 = 1_000_000_000;

fn ask(max_new_tokens: u32) -> Value {
    json!({ "text": PROMPT, "model_id": 1, "max_new_tokens": max_new_tokens, "temperature": 0 })
}

/// Tokens of the prompt, as the model counts them.
async fn prompt_tokens(host: &Host) -> i64 {
    let answer = host.customer().await.post("/generate", ask(1)).await;
    answer.expect(200)["prompt_tokens"]
        .as_i64()
        .expect("a number")
}

/// Every sum of money is as kept.
fn audit(host: &Host) {
    host.run(&["db", "audit"]);
}

#[tokio::test]
async fn of_a_hundred_calls_at_once_on_credit_for_ten_ten_are_answered() {
    let host = Host::start().await.ready().await;
    let cost = (prompt_tokens(&host).await + 3) * TOKEN;
    let purse = Purse::prepaid(&host, 10 * cost).await;
    let (answers, refusals) = purse.ask_at_once(100, &ask(3)).await;
    assert_eq!((answers.len(), refusals.len()), (10, 90));
    assert!(answers.iter().all(|answer| nanos(&answer["cost"]) == cost));
    assert!(refusals.iter().all(|code| code == "insufficient_credit"));
    assert_eq!(purse.balance().await, (0, 0));
    // a refusal is not on record
    let usage = purse.customer.get("/usage").await.expect(200);
    assert_eq!(usage["totals"]["requests"], 10);
    audit(&host);
}

#[tokio::test]
async fn an_answer_is_as_long_as_the_credit_and_says_so() {
    let host = Host::start().await.ready().await;
    let prompt = prompt_tokens(&host).await;
    let completion =
        json!({ "model": "gpt2", "prompt": PROMPT, "max_tokens": 50, "temperature": 0 });
    for (path, body, reason, limit, tokens) in [
        (
            "/generate",
            ask(50),
            "/finish_reason",
            "/limited_by",
            "/completion_tokens",
        ),
        (
            "/v1/completions",
            completion,
            "/choices/0/finish_reason",
            "/limited_by",
            "/usage/completion_tokens",
        ),
    ] {
        // half a token is left over
        let paid = (prompt + 5) * TOKEN + TOKEN / 2;
        let purse = Purse::prepaid(&host, paid).await;
        let answer = purse.customer.post(path, body.clone()).await.expect(200);
        assert_eq!(answer.pointer(reason), Some(&json!("length")), "{answer}");
        assert_eq!(answer.pointer(limit), Some(&json!("credit")), "{answer}");
        assert_eq!(answer.pointer(tokens), Some(&json!(5)), "{answer}");
        assert_eq!(purse.balance().await, (TOKEN / 2, 0));

        let purse = Purse::prepaid(&host, paid).await;
        let mut streamed = body;
        streamed["stream"] = json!(true);
        let events = purse.customer.stream(path, streamed).await.rest().await;
        let [.., last, done] = &events[..] else {
            panic!("{events:?}");
        };
        assert_eq!(done, "[DONE]");
        assert_eq!(last.pointer(reason), Some(&json!("length")), "{last}");
        assert_eq!(last.pointer(limit), Some(&json!("credit")), "{last}");
        assert_eq!(purse.balance().await, (TOKEN / 2, 0));
    }
    // what ends by itself or where it was asked to is not marked
    let purse = Purse::prepaid(&host, DOLLAR).await;
    let answer = purse.customer.post("/generate", ask(5)).await.expect(200);
    assert_eq!(
        (&answer["finish_reason"], &answer["limited_by"]),
        (&json!("length"), &Value::Null)
    );
    audit(&host);
}

#[tokio::test]
async fn a_chat_says_too_that_the_credit_made_it_short() {
    const WHOLE: &str = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"Hi"},
      "finish_reason":"length"}],"usage":{"prompt_tokens":8,"completion_tokens":5,"total_tokens":13}}"#;
    const STREAM: &[&str] = &[concat!(
        r#"data: {"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"length"}]}"#,
        "\n\n",
        r#"data: {"choices":[],"usage":{"prompt_tokens":8,"completion_tokens":5,"total_tokens":13}}"#,
        "\n\ndata: [DONE]\n\n",
    )];
    let price = "price_per_million = { prompt = 0.00, completion = 10.00 }";
    let (host, _, upstream) = adapters::with("openai", Act::Json(WHOLE), price).await;
    let mut chat = json!({ "model": "it", "messages": [{ "role": "user", "content": "Hello" }] });
    let path = "/v1/chat/completions";
    let purse = Purse::prepaid(&host, 5 * TOKEN).await;
    let answer = purse.customer.post(path, chat.clone()).await.expect(200);
    assert_eq!(answer["limited_by"], "credit", "{answer}");
    assert_eq!(upstream.seen()[0].body["max_tokens"], 5);

    upstream.act(Act::Stream(STREAM));
    chat["stream"] = json!(true);
    let purse = Purse::prepaid(&host, 5 * TOKEN).await;
    let events = purse.customer.stream(path, chat).await.rest().await;
    let [.., last, done] = &events[..] else {
        panic!("{events:?}");
    };
    assert_eq!(done, "[DONE]");
    assert_eq!(last["choices"][0]["finish_reason"], "length", "{last}");
    assert_eq!(last["limited_by"], "credit", "{last}");
    audit(&host);
}

#[tokio::test]
async fn a_request_that_cannot_be_paid_is_refused_for_good() {
    // neither model has a price of its own
    let upstream = Upstream::start(Act::Answer("yes")).await;
    let config = format!("{GPT2}{}", lawgent(upstream.url()));
    let host = Host::builder().config(config).start().await.ready().await;
    let prompt = prompt_tokens(&host).await;
    let purse = Purse::prepaid(&host, (prompt + 1) * TOKEN - 1).await;
    for body in [ask(1), ask(50), json!({ "text": PROMPT, "model_id": 2 })] {
        let reply = purse.customer.post("/generate", body).await;
        assert_eq!(reply.body["error"]["type"], "insufficient_quota");
        assert_eq!(reply.header("retry-after"), "");
        assert_eq!(reply.expect_error(402), "insufficient_credit");
    }
    assert!(upstream.seen().is_empty());
    let credit = json!({ "amount": text(1), "reference": "a nano-dollar" });
    host.admin()
        .post(&purse.path("/credit"), credit)
        .await
        .expect(201);
    purse.customer.post("/generate", ask(1)).await.expect(200);
    assert_eq!(purse.balance().await, (0, 0));
}

#[tokio::test]
async fn a_repeat_costs_nothing_and_holds_nothing() {
    let host = Host::start().await.ready().await;
    let cost = (prompt_tokens(&host).await + 3) * TOKEN;
    let purse = Purse::prepaid(&host, cost).await;
    let send = async |key: &str| {
        let request = purse
            .customer
            .request(Method::POST, "/generate")
            .json(&ask(50));
        let sent = request.header("idempotency-key", key).send().await;
        Reply::of(sent.expect("an answer")).await
    };
    let first = send("one").await.expect(200);
    assert_eq!(first["limited_by"], "credit");
    let again = send("one").await;
    assert_eq!(again.header("idempotent-replayed"), "true");
    let again = again.expect(200);
    for field in ["response", "cost", "finish_reason", "limited_by"] {
        assert_eq!(again[field], first[field], "{field}");
    }
    assert_eq!(purse.balance().await, (0, 0));
    assert_eq!(send("two").await.expect_error(402), "insufficient_credit");
    // nothing was kept of the refusal
    let credit = json!({ "amount": text(cost), "reference": "more" });
    host.admin()
        .post(&purse.path("/credit"), credit)
        .await
        .expect(201);
    send("two").await.expect(200);
    audit(&host);
}

#[tokio::test]
async fn a_payment_is_booked_once_for_its_reference() {
    let host = Host::start().await;
    let (one, two) = (Purse::postpaid(&host).await, Purse::postpaid(&host).await);
    let admin = host.admin();
    let credit = async |purse: &Purse, amount: &str, reference: &str| {
        let body = json!({ "amount": amount, "reference": reference });
        admin.post(&purse.path("/credit"), body).await
    };
    let paid = credit(&one, "12.000000001", "inv-1").await.expect(201);
    assert_eq!(
        (&paid["reason"], nanos(&paid["amount"])),
        (&json!("top_up"), 12 * DOLLAR + 1)
    );
    assert_eq!(
        credit(&one, "12.000000001", "inv-1").await.expect(201),
        paid
    );
    for (purse, amount) in [
        (&one, "12"),
        (&one, "-12.000000001"),
        (&two, "12.000000001"),
    ] {
        let reply = credit(purse, amount, "inv-1").await;
        assert_eq!(reply.body["error"]["param"], "reference");
        assert_eq!(reply.expect_error(409), "reference_taken");
    }
    let taken = credit(&one, "-2.5", "refund-1").await.expect(201);
    assert_eq!(
        (&taken["reason"], &taken["amount"]),
        (&json!("correction"), &json!(-2.5))
    );
    assert_eq!(one.balance().await, (9 * DOLLAR + DOLLAR / 2 + 1, 0));
    assert_eq!(two.balance().await, (0, 0));

    let page = async |query: &str| {
        let page = one
            .customer
            .get(&one.path(&format!("/transfers{query}")))
            .await;
        page.expect(200)["transfers"].clone()
    };
    assert_eq!(page("").await, json!([paid, taken]));
    assert_eq!(page("?limit=1").await, json!([paid]));
    assert_eq!(
        page(&format!("?after={}", paid["id"])).await,
        json!([taken])
    );
    audit(&host);
}

#[tokio::test]
async fn what_is_no_amount_is_refused_by_field() {
    let host = Host::start().await;
    let purse = Purse::postpaid(&host).await;
    let admin = host.admin();
    for (body, param) in [
        (json!({ "reference": "r" }), "amount"),
        (json!({ "amount": 1 }), "reference"),
        (json!({ "amount": 1, "reference": " " }), "reference"),
        (json!({ "amount": 0, "reference": "r" }), "amount"),
        (json!({ "amount": "-0", "reference": "r" }), "amount"),
        (json!({ "amount": 1e300, "reference": "r" }), "amount"),
        (json!({ "amount": 9_000_001, "reference": "r" }), "amount"),
        (
            json!({ "amount": "-9000000.000000001", "reference": "r" }),
            "amount",
        ),
        (
            json!({ "amount": "0.0000000001", "reference": "r" }),
            "amount",
        ),
        (json!({ "amount": "1e3", "reference": "r" }), "amount"),
        (json!({ "amount": null, "reference": "r" }), "amount"),
        (
            json!({ "amount": 1, "reference": "r", "currency": "EUR" }),
            "currency",
        ),
    ] {
        let reply = admin.post(&purse.path("/credit"), body.clone()).await;
        assert_eq!(reply.body["error"]["param"], param, "{body}");
        assert_eq!(reply.expect_error(422), "invalid_request");
    }
    for (body, param) in [
        (json!({ "credit_limit": -1 }), "credit_limit"),
        (json!({ "credit_limit": "much" }), "credit_limit"),
        (json!({ "name": "" }), "name"),
        (json!({ "email": "a@b.c" }), "email"),
    ] {
        let reply = admin.patch(&purse.path(""), body.clone()).await;
        assert_eq!(reply.body["error"]["param"], param, "{body}");
        assert_eq!(reply.expect_error(422), "invalid_request");
    }
    assert_eq!(purse.balance().await, (0, 0));
}

#[tokio::test]
async fn a_limit_is_set_moved_and_lifted() {
    let host = Host::start().await.ready().await;
    let cost = (prompt_tokens(&host).await + 1) * TOKEN;
    let purse = Purse::postpaid(&host).await;
    let change = async |change: Value| {
        host.admin()
            .patch(&purse.path(""), change)
            .await
            .expect(200)
    };
    // without a limit it goes below 0
    purse.customer.post("/generate", ask(1)).await.expect(200);
    assert_eq!(purse.balance().await, (-cost, 0));
    // a limit that is passed already stops it at once
    let changed = change(json!({ "credit_limit": 0, "company": "Other Inc" })).await;
    assert_eq!(
        (&changed["credit_limit"], &changed["company"]),
        (&json!(0.0), &json!("Other Inc"))
    );
    let refused = purse.customer.post("/generate", ask(1)).await;
    assert_eq!(refused.expect_error(402), "insufficient_credit");
    change(json!({ "credit_limit": text(2 * cost) })).await;
    purse.customer.post("/generate", ask(1)).await.expect(200);
    let refused = purse.customer.post("/generate", ask(1)).await;
    assert_eq!(refused.expect_error(402), "insufficient_credit");
    // what is not named stays
    let renamed = change(json!({ "name": "Renamed" })).await;
    assert_eq!(
        (&renamed["name"], nanos(&renamed["credit_limit"])),
        (&json!("Renamed"), 2 * cost)
    );
    let lifted = change(json!({ "credit_limit": null })).await;
    assert_eq!(lifted["credit_limit"], Value::Null);
    purse.customer.post("/generate", ask(1)).await.expect(200);
    assert_eq!(purse.balance().await, (-3 * cost, 0));
    audit(&host);
}

#[tokio::test]
async fn money_is_the_operators_to_change_and_the_customers_to_see() {
    let host = Host::start().await;
    let (mine, other) = (Purse::postpaid(&host).await, Purse::postpaid(&host).await);
    let credit = json!({ "amount": 1, "reference": "r" });
    let path = mine.path("/credit");
    let reply = mine.customer.post(&path, credit.clone()).await;
    assert_eq!(reply.expect_error(403), "wrong_kind_of_key");
    let reply = mine.customer.patch(&mine.path(""), json!({})).await;
    assert_eq!(reply.expect_error(403), "wrong_kind_of_key");
    mine.customer
        .get(&mine.path("/transfers"))
        .await
        .expect(200);
    let reply = mine.customer.get(&other.path("/transfers")).await;
    assert_eq!(reply.expect_error(404), "customer_not_found");
    for reply in [
        host.admin().post("/customers/99/credit", credit).await,
        host.admin().get("/customers/99/transfers").await,
        host.admin()
            .patch("/customers/99", json!({ "credit_limit": 1 }))
            .await,
    ] {
        assert_eq!(reply.expect_error(404), "customer_not_found");
    }
    assert_eq!(mine.balance().await, (0, 0));
}

#[tokio::test]
async fn an_audit_that_finds_something_says_what_and_fails() {
    let host = Host::start().await.ready().await;
    let purse = Purse::prepaid(&host, 1_000_000_000).await;
    let wrong = "UPDATE accounts SET posted = posted + 1 WHERE customer_id = 1";
    assert_eq!(purse.balance().await.0, 1_000_000_000);
    let (status, said) = host.try_run(&["db", "audit"]);
    assert!(status.success(), "{said}");
    host.database().execute(wrong).await.expect("done by hand");
    let (status, said) = host.try_run(&["db", "audit"]);
    assert!(!status.success(), "{said}");
    for part in ["the balance is", "are not as kept"] {
        assert!(said.contains(part), "{said}");
    }
}
