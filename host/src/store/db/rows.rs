//! Many rows as one value of a statement, so that a statement for many rows is
//! one, and the same however many they are. They are JSON, which both databases
//! take apart.

use serde::Serialize;
use sqlx::AssertSqlSafe;

use super::{Query, Transaction, query};

impl Transaction<'_> {
    /// A query of which the first value is `rows`: a table with these `columns`,
    /// as `"name TYPE, …"` says. `sql` is given what to write for the table.
    pub fn of_rows<'q>(
        &self,
        columns: &str,
        rows: &[impl Serialize],
        sql: impl FnOnce(&str) -> String,
    ) -> Query<'q> {
        let table = match self {
            Self::Sqlite(_) | Self::Writer(_) => {
                // of `json_each` each value would be a text, to be taken apart once more
                let values: Vec<_> = names(columns)
                    .map(|name| format!("value ->> '{name}' AS {name}"))
                    .collect();
                format!("(SELECT {} FROM jsonb_each($1))", values.join(", "))
            }
            Self::Postgres(..) => {
                format!("(SELECT * FROM json_to_recordset($1::JSON) AS row ({columns}))")
            }
        };
        // numbers, texts and booleans in a list of objects: none of it fails
        let rows = serde_json::to_string(rows).unwrap_or_default();
        query(AssertSqlSafe(sql(&table))).bind(rows)
    }

    /// A query that adds `rows` to a table, in order; `then` goes on after them.
    pub fn insert_rows<'q>(
        &self,
        table: &str,
        columns: &str,
        rows: &[impl Serialize],
        then: &str,
    ) -> Query<'q> {
        let names = names(columns).collect::<Vec<_>>().join(", ");
        self.of_rows(columns, rows, |new| {
            // without a condition SQLite takes ON CONFLICT for one of a join
            format!(
                "INSERT INTO {table} ({names}) SELECT {names} FROM {new} AS new WHERE TRUE {then}"
            )
        })
    }

    /// What a query ends with that has the rows of a table to itself from then on,
    /// where others may write too.
    pub fn lock(&self, table: &str) -> String {
        match self {
            Self::Sqlite(_) | Self::Writer(_) => String::new(),
            // not FOR UPDATE, which would also keep off new rows that refer to them
            Self::Postgres(..) => format!("FOR NO KEY UPDATE OF {table}"),
        }
    }
}

/// A query that adds all rows of one table to another, in the order of their ids; `then`
/// goes on after them.
pub fn insert_from<'q>(from: &str, into: &str, columns: &str, then: &str) -> Query<'q> {
    let names = names(columns).collect::<Vec<_>>().join(", ");
    query(AssertSqlSafe(format!(
        "INSERT INTO {into} ({names}) SELECT {names} FROM {from} WHERE TRUE ORDER BY id {then}"
    )))
}

fn names(columns: &str) -> impl Iterator<Item = &str> {
    columns
        .split(',')
        .filter_map(|column| column.split_whitespace().next())
}
