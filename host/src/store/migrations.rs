//! The migrations, compiled in. A merged file is never edited: its checksum is
//! in every database that ran it.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};

use super::Error;
use super::db::Pool;

/// Version, name and text.
type Script = (i64, &'static str, &'static str);

const SQLITE: [Script; 7] = [
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
];

const POSTGRES: [Script; 2] = [
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
];

/// Runs what the database has not run yet. Servers that start together on one
/// database wait for each other.
pub async fn run(pool: &Pool) -> Result<(), Error> {
    apply(
        pool,
        match pool {
            Pool::Sqlite(_) => &SQLITE,
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
        Pool::Postgres(pool) => migrator.run(pool).await,
    };
    done.map_err(|error| Error::Database(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::{SQLITE, apply};
    use crate::money::NanoDollars;
    use crate::store::db::{self, query};
    use crate::store::keys::{KeyLimits, Scope};
    use crate::store::{Outbox, Place, Store};
    use time::OffsetDateTime;

    /// A database as the first version left it: two customers, one of whom used
    /// something.
    const FIRST: [&str; 3] = [
        "INSERT INTO customers (name, email, company, created_at) \
        VALUES ('A', 'a@example.com', '', 1), ('B', 'b@example.com', '', 1)",
        "INSERT INTO api_keys (customer_id, name, public_id, hash, rate_limit, allowed_models, created_at) \
        VALUES (1, 'K', 'k', x'00', 60, '[1]', 1)",
        "INSERT INTO usage (request_id, customer_id, api_key_id, model_id, model_name, prompt_tokens, \
        completion_tokens, tokens_estimated, prompt_price, completion_price, cost, status, latency_ms, \
        created_at) VALUES ('req_1', 1, 1, 1, 'm', 1, 1, 0, 1, 1, 30, 'ok', 1, 5), \
        ('req_2', 1, 1, 1, 'm', 1, 1, 0, 1, 1, 0, 'failed', 1, 6), \
        ('req_3', 1, 1, 1, 'm', 1, 1, 0, 1, 1, 12, 'cancelled', 1, 7)",
    ];

    #[tokio::test]
    async fn what_the_first_version_kept_is_taken_over() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let place = Place::File(folder.path().join("db"));
        let pool = db::writers(&place).await.expect("a database");
        apply(&pool, &SQLITE[..1]).await.expect("the first version");
        for statement in FIRST {
            query(statement).execute(&pool).await.expect("its data");
        }
        pool.close().await;

        // what was used is booked in the ledger
        let store = Store::open(&place, Outbox::Off).await.expect("migrated");
        let audit = store
            .audit(OffsetDateTime::UNIX_EPOCH)
            .await
            .expect("an audit");
        assert_eq!((audit.accounts, audit.transfers), (4, 2));
        assert_eq!(audit.problems, []);
        for (id, balance) in [(1, -42), (2, 0)] {
            let customer = store.customer(id).await.expect("a customer");
            assert_eq!(customer.balance, NanoDollars(balance));
            assert_eq!(customer.credit_limit, None);
        }
        // and a key may do what it could
        let found = store.key_by_public_id("k").await.expect("a key");
        assert_eq!((found.hash, found.until), (vec![0], None));
        let key = found.key;
        assert_eq!((key.rate_limit, &key.allowed_models[..]), (60, &[1][..]));
        assert_eq!(key.limits, KeyLimits::default());
        assert_eq!(key.scopes, Scope::ALL);
        assert!(key.is_active && key.allowed_networks.is_none() && key.expires_at.is_none());
    }
}
