//! `model-host db copy`: from a file to a PostgreSQL server, all or nothing.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{Connection as _, Executor as _};

use crate::harness::{Database, Host, Reply, Scratch, before_the_hour, nanos, text};

/// What the operator sees of everything.
async fn everything(host: &Host) -> Vec<Value> {
    let mut all = Vec::new();
    for path in [
        "/customers",
        "/api/keys",
        "/usage",
        "/usage/requests",
        "/customers/1/transfers",
        "/customers/1/budgets",
    ] {
        let mut shown = host.admin().get(path).await.expect(200);
        // is written when the server stops, at the latest
        if let Some(key) = shown["keys"].get_mut(0) {
            key["last_used_at"].take();
        }
        all.push(shown);
    }
    all
}

#[tokio::test]
async fn a_copy_is_the_same_and_goes_on_from_there() {
    before_the_hour().await;
    let file = Host::builder().env("DATABASE_URL", "sqlite:own.db");
    let mut file = file.start().await.ready().await;
    let customer = file.customer().await;
    let admin = file.admin();
    let name = json!({ "name": "Tab\\ and N\\N, \u{e9}\u{1f980}" });
    admin.patch("/customers/1", name).await.expect(200);
    let credit = json!({ "amount": text(1_000_000_000), "reference": "one" });
    admin.post("/customers/1/credit", credit).await.expect(201);
    let budgets = json!({ "budgets": [{ "period": "day", "amount": "2.5" }] });
    admin.put("/customers/1/budgets", budgets).await.expect(200);
    let ask = json!({ "text": "Once upon a\ttime\r\n", "model_id": 1, "max_new_tokens": 3 });
    let repeatable = customer.request(reqwest::Method::POST, "/generate");
    let repeatable = repeatable.header("idempotency-key", "once").json(&ask);
    let answer = Reply::of(repeatable.send().await.expect("an answer")).await;
    let answer = answer.expect(200);
    customer.post("/generate", ask.clone()).await.expect(200);
    // numbers that are gone are not given again
    file.customer().await;
    admin.delete("/customers/2").await.expect(204);

    let target = Arc::new(Scratch::new());
    let url = target.url();
    let copy = ["db", "copy", "--to", url.as_str()];
    let (status, said) = file.try_run(&copy);
    assert!(
        !status.success() && said.contains("another server"),
        "{said}"
    );
    let before = everything(&file).await;
    file.signal("TERM");
    assert!(file.wait_exit().await.success());
    let said = file.run(&copy);
    assert!(said.contains("usage 2\n"), "{said}");
    let (status, said) = file.try_run(&copy);
    assert!(!status.success() && said.contains("not empty"), "{said}");

    let secret = std::fs::read(file.dir().join("data/secret")).expect("a secret");
    let host = Host::builder().on(target).file("data/secret", secret);
    let host = host.start().await.ready().await;
    assert_eq!(everything(&host).await, before);
    host.run(&["db", "audit"]);
    // from there it is not copied, nor does that touch what is held
    let held = "INSERT INTO holds (request_id, customer_id, api_key_id, amount, created_at, \
        expires_at, process) VALUES ('req_held', 1, 1, 0, 1, 1, 'another')";
    let database = host.database();
    database.execute(held).await.expect("a hold");
    let elsewhere = Scratch::new().url();
    let (status, said) = host.try_run(&["db", "copy", "--to", elsewhere.as_str()]);
    assert!(!status.success() && said.contains("only a file"), "{said}");
    assert_eq!(database.number("SELECT count(*) FROM holds").await, 1);
    let gone = "DELETE FROM holds";
    database.execute(gone).await.expect("gone");
    // keys work, answers are kept, money goes on
    let customer = customer.at(host.url());
    let again = customer.request(reqwest::Method::POST, "/generate");
    let again = again.header("idempotency-key", "once").json(&ask);
    let again = Reply::of(again.send().await.expect("an answer")).await;
    assert_eq!(again.expect(200)["response"], answer["response"]);
    let used = customer.get("/usage").await.expect(200);
    assert_eq!(used["totals"]["requests"], 2);
    customer.post("/generate", ask).await.expect(200);
    let new = json!({ "name": "B", "email": "b@b.b", "company": "" });
    let new = host.admin().post("/customers", new).await.expect(201);
    assert_eq!(new["id"], 3);
    host.run(&["db", "audit"]);
}

#[tokio::test]
async fn a_copy_that_is_not_the_same_says_where_and_leaves_nothing() {
    let mut file = Host::builder().in_file().start().await.ready().await;
    let customer = file.customer().await;
    let credit = json!({ "amount": 1, "reference": "one" });
    let paid = file.admin().post("/customers/1/credit", credit).await;
    paid.expect(201);
    let ask = json!({ "text": "Once", "model_id": 1, "max_new_tokens": 1 });
    customer.post("/generate", ask).await.expect(200);
    file.signal("TERM");
    assert!(file.wait_exit().await.success());

    let target = Scratch::new();
    let url = target.url();
    let migrations = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/postgres");
    let migrator = Migrator::new(Path::new(migrations)).await;
    let mut empty = PgConnection::connect(&url).await.expect("a connection");
    let migrated = migrator.expect("migrations").run(&mut empty).await;
    migrated.expect("migrated");
    let other = "CREATE FUNCTION other() RETURNS trigger LANGUAGE plpgsql AS \
        $$ BEGIN NEW.amount := NEW.amount + 1; RETURN NEW; END $$; \
        CREATE TRIGGER other BEFORE INSERT ON transfers FOR EACH ROW EXECUTE FUNCTION other()";
    empty.execute(other).await.expect("a trigger");

    let copy = ["db", "copy", "--to", url.as_str()];
    let (status, said) = file.try_run(&copy);
    assert!(!status.success(), "{said}");
    assert!(said.contains("transfers: row 1 is not as it was"), "{said}");
    let database = Database::Server(url.clone());
    for table in ["customers", "api_keys", "usage", "transfers", "audit"] {
        let rows = format!("SELECT count(*) FROM {table}");
        assert_eq!(database.number(&rows).await, 0, "{table}");
    }
    let same = empty.execute("DROP TRIGGER other ON transfers").await;
    same.expect("no trigger");
    file.run(&copy);
    let kept = database.number("SELECT max(amount) FROM transfers").await;
    assert_eq!(kept, 1_000_000_000);
}

/// A file of this version of the schema, with what the first one kept in it.
async fn older(file: &Path, version: usize) {
    let data = "INSERT INTO customers (name, email, company, created_at) \
        VALUES ('A', 'a@example.com', '', 1); \
        INSERT INTO api_keys (customer_id, name, public_id, hash, rate_limit, allowed_models, \
        created_at) VALUES (1, 'K', 'k', x'00', 60, '[1]', 1); \
        INSERT INTO usage (request_id, customer_id, api_key_id, model_id, model_name, \
        prompt_tokens, completion_tokens, tokens_estimated, prompt_price, completion_price, \
        cost, status, latency_ms, created_at) \
        VALUES ('req_1', 1, 1, 1, 'm', 3, 4, 0, 1, 1, 42, 'ok', 1, 5)";
    let migrations = concat!(env!("CARGO_MANIFEST_DIR"), "/../migrations/sqlite");
    let migrations = Path::new(migrations);
    let options = SqliteConnectOptions::new().filename(file);
    let options = options.create_if_missing(true);
    let old = SqliteConnection::connect_with(&options).await;
    let mut old = old.expect("a file");
    for (version, data) in [(1, data), (version, "SELECT 1")] {
        let mut migrator = Migrator::new(migrations).await.expect("migrations");
        migrator.migrations.to_mut().truncate(version);
        migrator.run(&mut old).await.expect("migrated");
        old.execute(data).await.expect("its data");
    }
    old.close().await.expect("closed");
}

#[tokio::test]
async fn a_file_of_an_older_version_is_migrated_and_copied_and_a_newer_one_refused() {
    let mut host = Host::builder().in_file().start().await.ready().await;
    host.signal("TERM");
    host.wait_exit().await;
    let file = host.dir().join("data/model-host.db");
    for version in [1, 4, 7] {
        std::fs::remove_file(&file).expect("a file");
        older(&file, version).await;
        let target = Arc::new(Scratch::new());
        let url = target.url();
        let said = host.run(&["db", "copy", "--to", url.as_str()]);
        assert!(said.contains("usage 1\n"), "{said}");
        assert!(said.contains("usage_sums 2\n"), "{said}");
        let secret = std::fs::read(host.dir().join("data/secret")).expect("a secret");
        let copy = Host::builder().on(target).file("data/secret", secret);
        let copy = copy.start().await.ready().await;
        let used = copy.admin().get("/usage").await.expect(200);
        assert_eq!(nanos(&used["totals"]["cost"]), 42);
        copy.run(&["db", "audit"]);
    }

    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'of tomorrow', TRUE, x'00', 0)";
    host.database()
        .execute(newer)
        .await
        .expect("a newer version");
    let target = Scratch::new();
    let url = target.url();
    let (status, said) = host.try_run(&["db", "copy", "--to", url.as_str()]);
    assert!(
        !status.success() && said.contains("newer version"),
        "{said}"
    );
}
