//! The migrations, compiled in. A merged file is never edited: its checksum is
//! in every database that ran it.

use std::borrow::Cow;

use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use sqlx::{Connection as _, Executor as _};

use super::Error;
use super::db::Pool;

/// Version, name and text.
type Script = (i64, &'static str, &'static str);

const SQLITE: [Script; 9] = [
    (
        1,
        "start",
        include_str!("../../../migrations/sqlite/0001_start.sql"),
    ),
    (
        2,
        "answers",
        include_str!("../../../migrations/sqlite/0002_answers.sql"),
    ),
    (
        3,
        "ledger",
        include_str!("../../../migrations/sqlite/0003_ledger.sql"),
    ),
    (
        4,
        "keys",
        include_str!("../../../migrations/sqlite/0004_keys.sql"),
    ),
    (
        5,
        "limits",
        include_str!("../../../migrations/sqlite/0005_limits.sql"),
    ),
    (
        6,
        "notices",
        include_str!("../../../migrations/sqlite/0006_notices.sql"),
    ),
    (
        7,
        "customer limits",
        include_str!("../../../migrations/sqlite/0007_customer_limits.sql"),
    ),
    (
        8,
        "usage sums",
        include_str!("../../../migrations/sqlite/0008_usage_sums.sql"),
    ),
    (
        9,
        "journal",
        include_str!("../../../migrations/sqlite/0009_journal.sql"),
    ),
];

const POSTGRES: [Script; 4] = [
    (
        1,
        "start",
        include_str!("../../../migrations/postgres/0001_start.sql"),
    ),
    (
        2,
        "customer limits",
        include_str!("../../../migrations/postgres/0002_customer_limits.sql"),
    ),
    (
        3,
        "usage sums",
        include_str!("../../../migrations/postgres/0003_usage_sums.sql"),
    ),
    (
        4,
        "usage sums' hours",
        include_str!("../../../migrations/postgres/0004_usage_sums_hours.sql"),
    ),
];

/// Runs what the database has not run yet. Servers that start together on one
/// database wait for each other.
pub async fn run(pool: &Pool) -> Result<(), Error> {
    apply(
        pool,
        match pool {
            Pool::Sqlite(_) | Pool::Writer(_) => &SQLITE,
            Pool::Postgres(_) => &POSTGRES,
        },
    )
    .await
}

async fn apply(pool: &Pool, scripts: &[Script]) -> Result<(), Error> {
    let migrations = scripts
        .iter()
        .map(|&(version, description, sql)| {
            Migration::new(
                version,
                Cow::Borrowed(description),
                MigrationType::Simple,
                sqlx::SqlStr::from_static(sql),
                false,
            )
        })
        .collect::<Vec<_>>();
    let migrator = Migrator {
        migrations: Cow::Owned(migrations),
        ..Migrator::DEFAULT
    };
    let done = match pool {
        Pool::Sqlite(pool) => migrator.run(pool).await,
        Pool::Writer(writer) => migrator.run(writer.turn().await?.connection()?).await,
        Pool::Postgres(pool) => {
            // of its own: one over millions of rows, or the wait for another server's,
            // takes longer than any query may
            let mut connection = pool.acquire().await?.detach();
            connection.execute("SET statement_timeout = 0").await?;
            let done = migrator.run(&mut connection).await;
            connection.close().await.ok();
            done
        }
    };
    done.map_err(|error| match error {
        MigrateError::VersionMissing(version) => Error::Database(format!(
            "it is of a newer version of this program, which made its schema {version}"
        )),
        error => Error::Database(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::{POSTGRES, SQLITE, Script, apply};
    use crate::money::NanoDollars;
    use crate::store::db::{self, query};
    use crate::store::keys::{KeyLimits, Scope};
    use crate::store::scratch::Scratch;
    use crate::store::usage::{Span, Totals};
    use crate::store::{Audience, Store};
    use time::OffsetDateTime;
    use time::macros::datetime;

    /// What the first version of either database kept: two customers, one of whom
    /// used something, in two hours.
    const FIRST: [&str; 2] = [
        "INSERT INTO customers (name, email, company, created_at) \
        VALUES ('A', 'a@example.com', '', 1), ('B', 'b@example.com', '', 1)",
        "INSERT INTO usage (request_id, customer_id, api_key_id, model_id, model_name, prompt_tokens, \
        completion_tokens, tokens_estimated, prompt_price, completion_price, cost, status, latency_ms, \
        created_at) VALUES ('req_1', 1, 1, 1, 'old', 1, 1, '0', 1, 1, 30, 'ok', 1, 5), \
        ('req_2', 1, 1, 1, 'm', 2, 0, '0', 1, 1, 0, 'failed', 1, 6), \
        ('req_3', 1, 1, 1, 'm', 3, 1, '0', 1, 1, 12, 'cancelled', 1, 3600000)",
    ];
    /// And a key, between the two, as a file's had it.
    const SQLITE_KEY: [&str; 1] = ["INSERT INTO api_keys \
        (customer_id, name, public_id, hash, rate_limit, allowed_models, created_at) \
        VALUES (1, 'K', 'k', x'00', 60, '[1]', 1)"];
    /// The same of a server, whose first version had a ledger.
    const POSTGRES_KEY: [&str; 3] = [
        "INSERT INTO api_keys \
        (customer_id, name, public_id, hash, rate_limit, allowed_models, created_at, scopes) \
        VALUES (1, 'K', 'k', '\\x00', 60, '[1]', 1, \
        '[\"generate\",\"models:read\",\"usage:read\",\"keys:read\",\"customer:read\"]')",
        "INSERT INTO accounts (customer_id, posted) VALUES (1, -42), (2, 0)",
        "WITH earned AS (UPDATE accounts SET posted = 42 WHERE id = 2) \
        INSERT INTO transfers (debit, credit, amount, reason, reference, created_at) \
        VALUES (3, 2, 30, 'usage', 'req_1', 5), (3, 2, 12, 'usage', 'req_3', 3600000)",
    ];

    #[tokio::test]
    async fn what_the_first_version_kept_is_taken_over() {
        take_over(&Scratch::file(), &SQLITE[..1], &SQLITE_KEY).await;
        if let Some(server) = Scratch::server() {
            take_over(&server, &POSTGRES[..1], &POSTGRES_KEY).await;
        }
    }

    async fn take_over(scratch: &Scratch, first: &[Script], key: &[&'static str]) {
        let pool = db::writers(&scratch.place()).await.expect("a database");
        apply(&pool, first).await.expect("the first version");
        for statement in FIRST[..1].iter().chain(key).chain(&FIRST[1..]) {
            query(*statement).execute(&pool).await.expect("its data");
        }
        pool.close().await;

        // what was used is booked in the ledger
        let store = scratch.open(Audience::default()).await;
        let audit = store.audit(OffsetDateTime::UNIX_EPOCH).await;
        let audit = audit.expect("an audit");
        assert_eq!((audit.accounts, audit.transfers), (4, 2));
        assert_eq!(audit.problems, []);
        for (id, balance) in [(1, -42), (2, 0)] {
            let customer = store.customer(id).await.expect("a customer");
            assert_eq!(customer.balance, NanoDollars(balance));
            assert_eq!(customer.credit_limit, None);
        }
        // and a key may do what it could
        let found = store.key_by_public_id("k").await.expect("a key");
        assert_eq!((found.hash, found.is_replaced), (vec![0], false));
        let key = found.key;
        assert_eq!((key.rate_limit, &key.allowed_models[..]), (60, &[1][..]));
        assert_eq!(key.limits, KeyLimits::default());
        assert_eq!(key.scopes, Scope::ALL);
        assert!(key.is_active && key.allowed_networks.is_none() && key.expires_at.is_none());
        sums(&store).await;
        store.close().await;
    }

    /// That what was used is added up.
    async fn sums(store: &Store) {
        let shown = |sum: &Totals| (sum.requests, sum.prompt_tokens, sum.cost);
        let by_model = store
            .usage_by_model(None, Span::default())
            .await
            .expect("sums");
        assert_eq!(by_model.len(), 1);
        assert_eq!(by_model[0].model_name, "m");
        assert_eq!(shown(&by_model[0].totals), (3, 6, NanoDollars(42)));
        let hour = 60 * 60 * 1000;
        let hours = store.usage_over_time(1, OffsetDateTime::UNIX_EPOCH, hour);
        let hours = hours.await.expect("sums");
        let found: Vec<_> = hours.iter().map(|h| (h.start, shown(&h.totals))).collect();
        let expected = [
            (OffsetDateTime::UNIX_EPOCH, (2, 3, NanoDollars(30))),
            (datetime!(1970-01-01 1:00 UTC), (1, 3, NanoDollars(12))),
        ];
        assert_eq!(found, expected);
    }
}
