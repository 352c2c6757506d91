//! Fills a database with what years of requests leave in it: everything that the
//! server keeps of them, so that its own audit agrees.

use crate::harness::Database;

/// Keys of a customer.
pub const KEYS: i64 = 3;
/// Models that were asked.
const MODELS: i64 = 8;
/// Payments of a customer.
const PAYMENTS: i64 = 24;

/// How much there is to be.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Requests.
    pub rows: i64,
    /// Customers. The first has about a seventh of the requests if there are 2,000,
    /// the last ones a few each.
    pub customers: i64,
    /// Days over which the requests are spread, up to now.
    pub days: i64,
}

/// Writes all of it, a statement for each table. There must be one customer, the
/// first, with one key and without a request; and no server at work.
pub async fn fill(database: &Database, size: Size) -> Result<(), sqlx::Error> {
    let is_on_server = database.is_on_server();
    for sql in statements(size, is_on_server, now(database).await) {
        let quickly = match is_on_server {
            // no check of each reference
            true => "SET session_replication_role = replica;",
            // neither a second copy of what is written, nor a wait for the disk
            false => {
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -1000000;"
            }
        };
        database.execute(&format!("{quickly} {sql}")).await?;
    }
    if is_on_server {
        // as the server does by itself in time
        database.execute("VACUUM ANALYZE").await?;
        database.execute("CHECKPOINT").await?;
    }
    Ok(())
}

/// The time, in milliseconds since 1970.
async fn now(database: &Database) -> i64 {
    let seconds = match database.is_on_server() {
        true => "SELECT CAST(extract(epoch FROM now()) AS BIGINT)",
        false => "SELECT CAST(strftime('%s', 'now') AS INTEGER)",
    };
    database.number(seconds).await * 1000
}

fn statements(size: Size, is_on_server: bool, now: i64) -> Vec<String> {
    let Size {
        rows,
        customers,
        days,
    } = size;
    // the numbers from 1 to this
    let numbers = |last: i64| match is_on_server {
        true => format!("WITH numbers AS (SELECT generate_series(1, {last}::BIGINT) AS n)"),
        false => format!(
            "WITH RECURSIVE numbers (n) AS \
             (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {last})"
        ),
    };
    let milliseconds = days * 24 * 60 * 60 * 1000;
    let since = now - milliseconds;
    vec![
        format!(
            "INSERT INTO customers (name, email, company, created_at) {} \
             SELECT 'Customer', n || '@example.org', 'Company', {since} FROM numbers \
             WHERE n > 1 ORDER BY n",
            numbers(customers)
        ),
        // the keys of customer 2 of 10 are 2, 12 and 22
        format!(
            "INSERT INTO api_keys (customer_id, name, public_id, hash, rate_limit, allowed_models, \
             scopes, created_at) {} \
             SELECT 1 + (n - 1) % {customers}, 'Key', 'k' || n, hash, rate_limit, allowed_models, \
             scopes, {since} FROM numbers JOIN api_keys ON id = 1 WHERE n > 1 ORDER BY n",
            numbers(customers * KEYS)
        ),
        "INSERT INTO accounts (customer_id) SELECT id FROM customers WHERE id > 1 ORDER BY id"
            .to_owned(),
        format!(
            "INSERT INTO budgets (customer_id, period, amount, near_percent) \
             SELECT id, 'month', 9000000000000000, 80 FROM customers WHERE id > 1"
        ),
        format!(
            "INSERT INTO transfers (debit, credit, amount, reason, reference, created_at) {} \
             SELECT 1, accounts.id, 1000000000, 'top_up', 'payment-' || n, {since} \
             FROM numbers JOIN accounts ON customer_id = 1 + n % {customers} ORDER BY n",
            numbers(customers * PAYMENTS)
        ),
        format!(
            "INSERT INTO audit (at, actor, action, object, after) {} \
             SELECT {since} + n * {step}, 'admin_key', 'key.changed', 'key/' || (1 + n % 100), \
             '{{\"name\":\"Key\"}}' FROM numbers",
            numbers((rows / 100).max(1)),
            step = milliseconds / (rows / 100).max(1),
        ),
        usage(&numbers(rows), size, since),
        "INSERT INTO transfers (debit, credit, amount, reason, reference, created_at) \
         SELECT accounts.id, 2, cost, 'usage', request_id, created_at \
         FROM usage JOIN accounts USING (customer_id) WHERE cost > 0 ORDER BY usage.id"
            .to_owned(),
        "UPDATE accounts SET posted = sums.amount FROM (SELECT account, sum(amount) AS amount \
         FROM (SELECT credit AS account, amount FROM transfers \
         UNION ALL SELECT debit, -amount FROM transfers) AS sides GROUP BY account) AS sums \
         WHERE id = account"
            .to_owned(),
        sums(),
    ]
}

/// The rows of usage: of the customer of number x there are less the higher x is,
/// by the fourth power of what a multiplicative hash draws.
fn usage(numbers: &str, size: Size, since: i64) -> String {
    let Size {
        rows,
        customers,
        days,
    } = size;
    let milliseconds = days * 24 * 60 * 60 * 1000;
    format!(
        "INSERT INTO usage (request_id, customer_id, api_key_id, model_id, model_name, \
             plugin_digest, prompt_tokens, completion_tokens, tokens_estimated, prompt_price, \
             completion_price, cost, status, error_code, latency_ms, created_at) {numbers}, \
         drawn AS (SELECT n, n * 2654435761 % 4294967296 AS h FROM numbers), \
         squares AS (SELECT n, h, (h / 65536) * (h / 65536) / 65536 AS s FROM drawn), \
         requests AS (SELECT n, h % 50 = 0 AS fails, h % 3 AS key, 1 + h / 7 % {MODELS} AS model, \
             1 + s * s / 65536 * {customers} / 65536 AS customer, \
             20 + h / 11 % 2000 AS prompt, CASE WHEN h % 50 = 0 THEN 0 ELSE 1 + h / 13 % 500 END AS completion \
             FROM squares) \
         SELECT 'req_019a00000000000000000' || (10000000000 + n), customer, \
             customer + key * {customers}, model, 'model-' || model, \
             CASE WHEN model > 4 THEN '9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08' END, \
             prompt, completion, model > 6, 2500000000, 10000000000, \
             CASE WHEN fails THEN 0 ELSE prompt * 2500 + completion * 10000 END, \
             CASE WHEN fails THEN 'failed' ELSE 'ok' END, \
             CASE WHEN fails THEN 'upstream_error' END, 300 + n % 2000, \
             {since} + n * {step} / 1000 \
         FROM requests ORDER BY n",
        step = milliseconds * 1000 / rows,
    )
}

/// The sums of usage, each where its first request would have put it.
fn sums() -> String {
    let sums = "count(*) AS requests, sum(prompt_tokens) AS prompt_tokens, \
        sum(completion_tokens) AS completion_tokens, sum(cost) AS cost, \
        max(model_name) AS model_name, max(created_at) AS latest, min(id) AS first";
    format!(
        "INSERT INTO usage_sums (period, customer_id, start, api_key_id, model_id, requests, \
             prompt_tokens, completion_tokens, cost, model_name, latest) \
         SELECT period, customer_id, start, api_key_id, model_id, requests, prompt_tokens, \
             completion_tokens, cost, model_name, latest FROM \
         (SELECT 'hour' AS period, customer_id, created_at / 3600000 * 3600000 AS start, \
             api_key_id, model_id, {sums} FROM usage GROUP BY 1, 2, 3, 4, 5 \
         UNION ALL SELECT 'total', customer_id, 0, api_key_id, model_id, {sums} FROM usage \
             GROUP BY 1, 2, 3, 4, 5) AS sums ORDER BY first"
    )
}
