//! The audit log: every act of the operator is on it, and stays.

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{ADMIN_KEY, GPT2, Host, Reply, eventually};

/// The acts, by a query of theirs.
async fn acts(host: &Host, query: &str) -> Vec<Value> {
    let path = format!("/admin/audit{query}");
    let body = host.admin().get(&path).await.expect(200);
    body["acts"].as_array().expect("a list").clone()
}

/// What was done to what.
fn named(acts: &[Value]) -> Vec<(&str, &str)> {
    let mut all = Vec::new();
    for act in acts {
        let (action, object) = (act["action"].as_str(), act["object"].as_str());
        all.push(action.zip(object).expect("texts"));
    }
    all
}

#[tokio::test]
async fn every_act_is_on_record() {
    let host = Host::start().await.ready().await;
    let admin = host.admin();
    let mut ids = Vec::new();
    let mut done = |reply: Reply, status| {
        ids.push(reply.header("x-request-id").to_owned());
        reply.expect(status)
    };
    let new = json!({ "name": "A", "email": "a@b.c", "company": "Inc" });
    done(admin.post("/customers", new).await, 201);
    let new = json!({ "customer_id": 1, "name": "K" });
    let first = done(admin.post("/api/keys", new).await, 201);
    let change = json!({ "name": "Other", "rate_limit": 7 });
    done(admin.patch("/api/keys/1", change).await, 200);
    done(admin.post("/api/keys/1/toggle", Value::Null).await, 200);
    let second = done(admin.post("/api/keys/1/rotate", json!({})).await, 200);
    done(admin.delete("/api/keys/1").await, 204);
    done(admin.post("/admin/reload", Value::Null).await, 200);

    let acts = acts(&host, "").await;
    // the preset admin key, at the start
    assert_eq!(acts[0]["actor"], "server");
    assert_eq!(acts[0]["request_id"], Value::Null);
    assert_eq!(
        named(&acts),
        [
            ("admin_key.reset", "admin_key"),
            ("customer.created", "customer/1"),
            ("key.created", "key/1"),
            ("key.changed", "key/1"),
            ("key.toggled", "key/1"),
            ("key.rotated", "key/1"),
            ("key.deleted", "key/1"),
            ("configuration.reloaded", "configuration"),
        ]
    );
    for (act, id) in acts[1..].iter().zip(&ids) {
        assert_eq!(act["actor"], "admin_key", "{act}");
        assert_eq!(act["request_id"], id.as_str(), "{act}");
        assert_eq!(act["client"], "127.0.0.1", "{act}");
    }
    let [
        _,
        customer,
        created,
        changed,
        toggled,
        rotated,
        deleted,
        reloaded,
    ] = &acts[..]
    else {
        panic!("{acts:?}");
    };
    assert_eq!(customer["before"], Value::Null);
    assert_eq!(
        customer["after"],
        json!({
            "name": "A", "email": "a@b.c", "company": "Inc", "credit_limit": null,
            "rate_limit": null, "token_limit": null, "concurrent_limit": null,
        })
    );
    assert_eq!(created["after"]["name"], "K");
    assert_eq!(changed["before"], created["after"]);
    assert_eq!(changed["after"]["name"], "Other");
    assert_eq!(changed["after"]["rate_limit"], 7);
    assert_eq!(toggled["before"]["is_active"], true);
    assert_eq!(toggled["after"]["is_active"], false);
    let public = |key: &Value| key["key_prefix"].as_str().map(|text| text[4..].to_owned());
    assert_eq!(
        rotated["before"]["public_id"].as_str(),
        public(&first).as_deref()
    );
    assert_eq!(
        rotated["after"]["public_id"].as_str(),
        public(&second).as_deref()
    );
    assert_eq!(
        rotated["after"]["replaced"]["public_id"],
        rotated["before"]["public_id"]
    );
    assert_eq!(deleted["before"], rotated["after"]);
    assert_eq!(deleted["after"], Value::Null);
    assert_eq!(reloaded["after"]["added"], json!([]));

    let all = json!(acts).to_string();
    for key in [&first, &second] {
        let text = key["key"].as_str().expect("a key");
        assert!(!all.contains(&text["mhk_12345678_".len()..]));
    }
    assert!(!all.contains(ADMIN_KEY));
}

#[tokio::test]
async fn budgets_are_on_record_as_they_were_and_as_they_are() {
    let host = Host::start().await;
    host.customer().await;
    let admin = host.admin();
    let put = async |path: &str, budgets: &Value| {
        let budgets = json!({ "budgets": budgets });
        admin.put(path, budgets).await.expect(200);
    };
    let of = |period, amount: f64, near_percent| json!({ "period": period, "amount": amount, "near_percent": near_percent });
    // those of the customer are not the key's
    let first = json!([of("day", 1.5, 80), of("total", 9.0, 70)]);
    let second = json!([of("total", 8.0, 60), of("month", 3.0, 80)]);
    put("/customers/1/budgets", &json!([of("month", 7.0, 90)])).await;
    put("/api/keys/1/budgets", &first).await;
    put("/api/keys/1/budgets", &second).await;
    put("/api/keys/1/budgets", &json!([])).await;
    let acts = acts(&host, "?object=key/1").await;
    let [_created, acts @ ..] = &acts[..] else {
        panic!("{acts:?}");
    };
    let states = [json!([]), first, second, json!([])];
    assert_eq!(acts.len(), 3);
    for (act, states) in acts.iter().zip(states.windows(2)) {
        assert_eq!(act["action"], "budgets.set");
        assert_eq!([&act["before"], &act["after"]], [&states[0], &states[1]]);
    }
}

#[tokio::test]
async fn money_is_on_record_with_its_amounts() {
    let host = Host::start().await;
    host.customer().await;
    host.customer().await;
    let admin = host.admin();
    let paid = json!({ "amount": 5.25, "reference": "invoice-1" });
    let back = json!({ "amount": -1.5, "reference": "refund-1" });
    // the second time it is booked already
    for credit in [&paid, &paid, &back] {
        let booked = admin.post("/customers/2/credit", credit.clone()).await;
        booked.expect(201);
    }
    let limited = json!({ "credit_limit": 2.5, "name": "Other" });
    for change in [limited, json!({ "credit_limit": null })] {
        admin.patch("/customers/2", change).await.expect(200);
    }
    let acts = acts(&host, "?object=customer/2").await;
    let of_two = |action| (action, "customer/2");
    assert_eq!(
        named(&acts),
        [
            of_two("customer.created"),
            of_two("credit.booked"),
            of_two("credit.booked"),
            of_two("customer.changed"),
            of_two("customer.changed"),
        ]
    );
    for (act, credit) in acts[1..3].iter().zip([paid, back]) {
        assert_eq!((&act["before"], &act["after"]), (&Value::Null, &credit));
    }
    let [created, .., limited, lifted] = &acts[..] else {
        panic!("{acts:?}");
    };
    assert_eq!(limited["before"], created["after"]);
    let mut after = created["after"].clone();
    after["credit_limit"] = json!(2.5);
    after["name"] = json!("Other");
    assert_eq!([&limited["after"], &lifted["before"]], [&after, &after]);
    after["credit_limit"] = Value::Null;
    assert_eq!(lifted["after"], after);
}

#[tokio::test]
async fn a_deleted_customer_takes_its_keys_along_on_record_too() {
    let host = Host::start().await;
    host.customer().await;
    let new = json!({ "customer_id": 1, "name": "Second" });
    host.admin().post("/api/keys", new).await.expect(201);
    let reply = host.admin().delete("/customers/1").await;
    let id = reply.header("x-request-id").to_owned();
    reply.expect(204);
    let acts = acts(&host, "").await;
    let last = &acts[acts.len() - 3..];
    assert_eq!(
        named(last),
        [
            ("customer.deleted", "customer/1"),
            ("key.deleted", "key/1"),
            ("key.deleted", "key/2"),
        ]
    );
    assert!(last.iter().all(|act| act["request_id"] == id.as_str()));
    assert!(
        last.iter()
            .all(|act| act["after"].is_null() && act["before"].is_object())
    );
}

#[tokio::test]
async fn what_is_refused_is_not_on_record() {
    let host = Host::start().await;
    host.customer().await;
    let before = acts(&host, "").await.len();
    let admin = host.admin();
    let taken = admin.get("/customers/1").await.expect(200)["email"].take();
    let again = json!({ "name": "B", "email": taken });
    admin.post("/customers", again).await.expect_error(409);
    admin.delete("/customers/9").await.expect_error(404);
    admin.delete("/api/keys/9").await.expect_error(404);
    let toggle = admin.post("/api/keys/9/toggle", Value::Null).await;
    toggle.expect_error(404);
    admin
        .post("/api/keys/9/rotate", json!({}))
        .await
        .expect_error(404);
    let change = json!({ "name": "K" });
    admin.patch("/api/keys/9", change).await.expect_error(404);
    assert_eq!(acts(&host, "").await.len(), before);
}

#[tokio::test]
async fn what_is_done_without_a_request_is_on_record() {
    let host = Host::builder().without_admin_key().start().await;
    host.run(&["admin", "reset-key"]);
    let key = host.run(&["admin", "reset-key"]).trim().to_owned();
    let admin = host.anyone().with_header("x-admin-key", key);
    let log = admin.get("/admin/audit").await.expect(200);
    let actors = log["acts"].as_array().expect("a list").iter();
    let actors: Vec<_> = actors.map(|act| act["actor"].clone()).collect();
    assert_eq!(actors, ["server", "command_line", "command_line"]);

    host.write_config(&format!("{GPT2}preload = false\n"));
    eventually("the changed file is on record", async || {
        let log = admin.get("/admin/audit?object=configuration").await;
        let act = &log.expect(200)["acts"][0];
        act["actor"] == "server" && act["action"] == "configuration.reloaded"
    })
    .await;
    host.write_config("[server");
    eventually("the refused file is on record", async || {
        let log = admin.get("/admin/audit?object=configuration").await;
        let log = log.expect(200);
        let acts = log["acts"].as_array().expect("a list");
        acts.iter().any(|act| {
            act["action"] == "configuration.refused" && act["after"]["error"].is_string()
        })
    })
    .await;
}

#[tokio::test]
async fn the_log_is_read_by_object_time_and_page() {
    let host = Host::start().await;
    let customer = host.customer().await;
    host.customer().await;
    let all = acts(&host, "").await;
    assert_eq!(all.len(), 5, "{all:?}");
    let of_key = acts(&host, "?object=key/2").await;
    assert_eq!(of_key, [all[4].clone()]);
    assert_eq!(acts(&host, "?object=key/3").await, Vec::<Value>::new());
    let since = all[3]["at"].as_str().expect("a time");
    let later = acts(&host, &format!("?since={since}")).await;
    assert!(later.len() >= 2 && later.contains(&all[3]) && later.contains(&all[4]));
    assert_eq!(acts(&host, "?since=2999-01-01T00:00:00Z").await.len(), 0);
    assert_eq!(acts(&host, "?limit=2").await, all[..2]);
    let after = all[1]["id"].as_i64().expect("a number");
    let page = acts(&host, &format!("?after={after}&limit=2")).await;
    assert_eq!(page, all[2..4]);

    for (query, param) in [
        ("?object=key%00", "object"),
        ("?since=yesterday", "since"),
        ("?since=9999-12-31T23:59:59-05:00", "since"),
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?after=x", "after"),
    ] {
        let reply = host.admin().get(&format!("/admin/audit{query}")).await;
        assert_eq!(reply.body["error"]["param"], param, "{query}");
        reply.expect_error(422);
    }
    let read = customer.get("/admin/audit").await;
    assert_eq!(read.expect_error(403), "wrong_kind_of_key");
    host.anyone().get("/admin/audit").await.expect_error(401);
}

#[tokio::test]
async fn an_act_that_cannot_be_put_on_record_is_not_done() {
    let host = Host::start().await;
    let customer = host.customer().await;
    host.database().refuse_rows("audit").await;
    let admin = host.admin();
    let before = admin.get("/api/keys").await.expect(200);
    let new = json!({ "name": "B", "email": "b@c.d" });
    let key = json!({ "customer_id": 1, "name": "K" });
    let paid = json!({ "amount": 5, "reference": "invoice-1" });
    let budgets = json!({ "budgets": [{ "period": "total", "amount": 1 }] });
    let mut money = Vec::new();
    for path in [
        "/customers/1",
        "/customers/1/transfers",
        "/customers/1/budgets",
        "/api/keys/1/budgets",
    ] {
        money.push((path, admin.get(path).await.expect(200)));
    }
    for reply in [
        admin.post("/customers", new).await,
        admin.post("/api/keys", key).await,
        admin.patch("/api/keys/1", json!({ "rate_limit": 1 })).await,
        admin.post("/api/keys/1/toggle", Value::Null).await,
        admin.post("/api/keys/1/rotate", json!({})).await,
        admin.delete("/api/keys/1").await,
        admin.delete("/customers/1").await,
        admin.post("/customers/1/credit", paid).await,
        admin
            .patch("/customers/1", json!({ "credit_limit": 0 }))
            .await,
        admin.put("/customers/1/budgets", budgets.clone()).await,
        admin.put("/api/keys/1/budgets", budgets).await,
    ] {
        assert_eq!(reply.expect_error(503), "storage_failed");
    }
    for (path, before) in money {
        assert_eq!(admin.get(path).await.expect(200), before, "{path}");
    }
    assert_eq!(admin.get("/api/keys").await.expect(200), before);
    let customers = admin.get("/customers").await.expect(200);
    assert_eq!(customers["customers"].as_array().map(Vec::len), Some(1));
    customer.get("/usage").await.expect(200);
}

#[tokio::test]
async fn nothing_changes_what_is_on_record() {
    let host = Host::start().await;
    host.customer().await;
    let before = acts(&host, "").await;
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        let request = host.admin().request(method, "/admin/audit");
        let reply = Reply::of(request.send().await.expect("an answer")).await;
        assert_eq!(reply.expect_error(405), "method_not_allowed");
    }
    // nor does the database let anybody
    let database = host.database();
    let own = match database.is_on_server() {
        true => "TRUNCATE audit",
        false => "REPLACE INTO audit (id, at, actor, action, object) VALUES (1, 0, 'x', 'x', 'x')",
    };
    for sql in [
        own,
        "UPDATE audit SET actor = 'nobody'",
        "DELETE FROM audit",
        "DELETE FROM audit WHERE id = 1",
        "INSERT INTO audit (id, at, actor, action, object) VALUES (1, 0, 'x', 'x', 'x') \
         ON CONFLICT (id) DO UPDATE SET actor = 'x'",
    ] {
        let refused = database.execute(sql).await;
        let error = refused.expect_err(sql).to_string();
        assert!(
            error.contains("the audit log is not changed"),
            "{sql}: {error}"
        );
    }
    assert_eq!(acts(&host, "").await, before);
}
