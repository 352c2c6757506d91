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
        3,
        "ledger",
        include_str!("../../../migrations/sqlite/0003_ledger.sql"),
    ),
];

/// Runs what the database has not run yet.
pub async fn run(pool: &SqlitePool) -> Result<(), Error> {
    let migrations = MIGRATIONS
        .into_iter()
        .map(|(version, description, sql)| {
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
