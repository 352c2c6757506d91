//! The migrations, compiled in. A merged file is never edited: its checksum is
//! in every database that ran it.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::SqlitePool;

use super::Error;

const MIGRATIONS: [(i64, &str, &str); 3] = [
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
        4,
        "keys",
        include_str!("../../../migrations/sqlite/0004_keys.sql"),
    ),
];

/// Runs what the database has not run yet.
pub async fn run(pool: &SqlitePool) -> Result<(), Error> {
    apply(pool, &MIGRATIONS).await
}

async fn apply(
    pool: &SqlitePool,
    migrations: &[(i64, &'static str, &'static str)],
) -> Result<(), Error> {
    let migrations = migrations
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
    migrator
        .run(pool)
        .await
        .map_err(|e| Error::Database(e.to_string()))
}

#[cfg(test)]
mod tests {
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;
    use crate::store::keys::Scope;
    use crate::store::{Outbox, Store};

    #[tokio::test]
    async fn a_key_from_the_first_version_may_do_what_it_could() {
        let folder = tempfile::TempDir::new().unwrap();
        let file = folder.path().join("db");
        let options = SqliteConnectOptions::new()
            .filename(&file)
            .create_if_missing(true);
        let old = SqlitePool::connect_with(options).await.unwrap();
        apply(&old, &MIGRATIONS[..1]).await.unwrap();
        for sql in [
            "INSERT INTO customers (name, email, company, created_at) VALUES ('A', 'a', '', 0)",
            "INSERT INTO api_keys (customer_id, name, public_id, hash, rate_limit, \
             allowed_models, created_at) VALUES (1, 'K', 'k', x'00', 7, '[1,2]', 0)",
        ] {
            sqlx::query(sql).execute(&old).await.unwrap();
        }
        old.close().await;

        let store = Store::open(&file, Outbox::Off).await.unwrap();
        let found = store.key_by_public_id("k").await.unwrap();
        assert_eq!((found.hash, found.until), (vec![0], None));
        let key = found.key;
        assert_eq!((key.rate_limit, &key.allowed_models[..]), (7, &[1, 2][..]));
        assert_eq!(key.scopes, Scope::ALL);
        assert!(key.is_active && key.allowed_networks.is_none() && key.expires_at.is_none());
    }
}
