//! From a file of SQLite's to a PostgreSQL server: every row, in one transaction,
//! and compared before it is committed. Rows travel in the text format of
//! PostgreSQL's `COPY`, which is also what they are compared in.

use std::fmt::Write as _;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row as _, TypeInfo as _, ValueRef as _};

use super::db::Transaction;
use super::{Error, Store};

/// All tables, those first that others refer to, and what orders their rows.
const TABLES: [(&str, &str); 15] = [
    ("customers", "id"),
    ("api_keys", "id"),
    ("admin_key", "id"),
    ("usage", "id"),
    (
        "usage_sums",
        "period COLLATE \"C\", customer_id, start, api_key_id, model_id",
    ),
    ("usage_deleted", "id"),
    ("outbox", "id"),
    ("answers", "created_at, request_id COLLATE \"C\""),
    ("accounts", "id"),
    ("transfers", "id"),
    ("holds", "request_id COLLATE \"C\""),
    ("budgets", "id"),
    ("spending", "budget_id, start"),
    ("audit", "id"),
    ("notices", "id"),
];
/// What is sent at once, in bytes.
const CHUNK: usize = 64 * 1024;

/// A table that was copied.
#[derive(Clone, Copy, Debug)]
pub struct Copied {
    /// Its name.
    pub table: &'static str,
    /// Its rows.
    pub rows: u64,
}

/// A table as both databases have it.
struct Table {
    name: &'static str,
    order: &'static str,
    columns: Vec<String>,
}

impl Store {
    /// Copies everything from this file to a server that has nothing yet, or
    /// nothing at all.
    ///
    /// # Errors
    /// When a server runs on the other or it has rows, when a row is not the same
    /// there, or when a database fails.
    pub async fn copy_to(&self, other: &Self) -> Result<Vec<Copied>, Error> {
        let (Transaction::Sqlite(mut from), Transaction::Postgres(mut to, _)) = (
            self.up_to_date().await?.moment().await?,
            other.write.begin().await?,
        ) else {
            return Err(refused("only a file can be copied, and only to a server"));
        };
        let server = to.connection()?;
        prepare(server).await?;
        let mut all = Vec::new();
        for (name, order) in TABLES {
            let table = Table {
                name,
                order,
                columns: columns(&mut from, name).await?,
            };
            let rows = table.copy(&mut from, server).await?;
            table.compare(&mut from, server).await?;
            all.push(Copied { table: name, rows });
        }
        all_are_known(&mut from).await?;
        number_on(&mut from, server).await?;
        to.commit(Duration::MAX).await?;
        Ok(all)
    }
}

fn refused(reason: impl Into<String>) -> Error {
    Error::Database(reason.into())
}

/// Takes an empty database for the copy alone.
async fn prepare(to: &mut PgConnection) -> Result<(), Error> {
    // however long it takes
    for sql in [
        "SET LOCAL statement_timeout = 0",
        "SET LOCAL idle_in_transaction_session_timeout = 0",
    ] {
        sqlx::query(sql).execute(&mut *to).await?;
    }
    let names = TABLES.map(|(name, _)| name).join(", ");
    let lock = format!("LOCK TABLE servers, {names} IN EXCLUSIVE MODE");
    sqlx::query(AssertSqlSafe(lock)).execute(&mut *to).await?;
    let sql = "SELECT EXISTS (SELECT FROM servers WHERE lease_ends > clock_timestamp())";
    if sqlx::query_scalar(sql).fetch_one(&mut *to).await? {
        return Err(refused("a server runs on the database to copy to"));
    }
    for (name, _) in TABLES {
        // the accounts of the house are made with the table
        let own = if name == "accounts" {
            "WHERE customer_id IS NOT NULL OR posted <> 0"
        } else {
            ""
        };
        let sql = format!("SELECT EXISTS (SELECT FROM {name} {own})");
        if sqlx::query_scalar(AssertSqlSafe(sql))
            .fetch_one(&mut *to)
            .await?
        {
            return Err(refused(format!(
                "the database to copy to is not empty: its table {name} has rows"
            )));
        }
    }
    sqlx::query("DELETE FROM accounts").execute(to).await?;
    Ok(())
}

async fn columns(from: &mut SqliteConnection, table: &'static str) -> Result<Vec<String>, Error> {
    let sql = "SELECT name FROM pragma_table_info($1)";
    Ok(sqlx::query_scalar(sql).bind(table).fetch_all(from).await?)
}

/// That no table of the file was left out, but for the journal, of which all is posted.
async fn all_are_known(from: &mut SqliteConnection) -> Result<(), Error> {
    let sql = "SELECT name FROM sqlite_schema WHERE type = 'table' \
               AND name NOT LIKE 'sqlite_%' AND name NOT LIKE '\\_sqlx%' ESCAPE '\\' \
               AND (name <> 'journal' OR EXISTS (SELECT 1 FROM journal))";
    let names: Vec<String> = sqlx::query_scalar(sql).fetch_all(from).await?;
    let unknown = names
        .iter()
        .find(|name| TABLES.iter().all(|(known, _)| known != name));
    match unknown {
        Some(name) => Err(refused(format!("the table {name} would not be copied"))),
        None => Ok(()),
    }
}

/// Has the server give numbers to new rows that the file never gave.
async fn number_on(from: &mut SqliteConnection, to: &mut PgConnection) -> Result<(), Error> {
    let given = sqlx::query("SELECT name, seq FROM sqlite_sequence WHERE seq > 0")
        .fetch_all(from)
        .await?;
    for row in given {
        sqlx::query("SELECT setval(pg_get_serial_sequence($1, 'id'), $2)")
            .bind(row.try_get::<String, _>("name")?)
            .bind(row.try_get::<i64, _>("seq")?)
            .execute(&mut *to)
            .await?;
    }
    Ok(())
}

impl Table {
    /// The rows of the file, in order.
    fn in_file(&self) -> AssertSqlSafe<String> {
        let (columns, order) = (self.columns.join(", "), self.order);
        // a file compares texts by their bytes as it is
        let order = order.replace(" COLLATE \"C\"", "");
        AssertSqlSafe(format!(
            "SELECT {columns} FROM {} ORDER BY {order}",
            self.name
        ))
    }

    /// Copies all rows; returns how many they are.
    async fn copy(&self, from: &mut SqliteConnection, to: &mut PgConnection) -> Result<u64, Error> {
        let columns = self.columns.join(", ");
        let into = format!("COPY {} ({columns}) FROM STDIN", self.name);
        let mut sink = to.copy_in_raw(&into).await?;
        let mut chunk = String::with_capacity(CHUNK);
        let mut rows = sqlx::query(self.in_file()).fetch(from);
        while let Some(row) = rows.try_next().await? {
            write_line(&mut chunk, &row)?;
            if chunk.len() >= CHUNK {
                sink.send(chunk.as_bytes()).await?;
                chunk.clear();
            }
        }
        sink.send(chunk.as_bytes()).await?;
        Ok(sink.finish().await?)
    }

    /// Compares all rows.
    async fn compare(
        &self,
        from: &mut SqliteConnection,
        to: &mut PgConnection,
    ) -> Result<(), Error> {
        let columns = self.on_server(to).await?;
        let out = format!(
            "COPY (SELECT {columns} FROM {} ORDER BY {}) TO STDOUT",
            self.name, self.order
        );
        let mut there = to.copy_out_raw(&out).await?;
        let mut here = sqlx::query(self.in_file()).fetch(from);
        let mut line = String::new();
        for number in 1_u64.. {
            line.clear();
            if let Some(row) = here.try_next().await? {
                write_line(&mut line, &row)?;
            }
            // each of them is a whole line
            let copied = there.try_next().await?;
            if line.as_bytes() != copied.as_deref().unwrap_or_default() {
                let name = self.name;
                return Err(refused(format!("{name}: row {number} is not as it was")));
            }
            if copied.is_none() {
                break;
            }
        }
        Ok(())
    }

    /// The columns, as the file has them: it keeps booleans as numbers.
    async fn on_server(&self, to: &mut PgConnection) -> Result<String, Error> {
        let sql = "SELECT column_name::TEXT FROM information_schema.columns \
                   WHERE table_schema = current_schema AND table_name = $1 \
                   AND data_type = 'boolean'";
        let booleans: Vec<String> = sqlx::query_scalar(sql)
            .bind(self.name)
            .fetch_all(to)
            .await?;
        let columns = self.columns.iter().map(|name| {
            if booleans.contains(name) {
                format!("{name}::INTEGER")
            } else {
                name.clone()
            }
        });
        Ok(columns.collect::<Vec<_>>().join(", "))
    }
}

/// Writes a row as `COPY` does.
fn write_line(line: &mut String, row: &SqliteRow) -> Result<(), Error> {
    for column in 0..row.len() {
        if column > 0 {
            line.push('\t');
        }
        let value = row.try_get_raw(column)?;
        let kind = value.type_info().name().to_owned();
        if value.is_null() {
            line.push_str("\\N");
        } else if kind == "TEXT" {
            escape(line, row.try_get(column)?);
        } else if kind == "BLOB" {
            line.push_str("\\\\x");
            for byte in row.try_get::<&[u8], _>(column)? {
                write!(line, "{byte:02x}").ok();
            }
        } else {
            write!(line, "{}", row.try_get::<i64, _>(column)?).ok();
        }
    }
    line.push('\n');
    Ok(())
}

/// Writes a text so that it stays one field of one line.
fn escape(line: &mut String, text: &str) {
    for character in text.chars() {
        match character {
            '\\' => line.push_str("\\\\"),
            '\u{8}' => line.push_str("\\b"),
            '\u{c}' => line.push_str("\\f"),
            '\n' => line.push_str("\\n"),
            '\r' => line.push_str("\\r"),
            '\t' => line.push_str("\\t"),
            '\u{b}' => line.push_str("\\v"),
            other => line.push(other),
        }
    }
}
