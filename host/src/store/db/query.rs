//! A query in the SQL that both databases speak, with `$1` and so on for values.

use std::borrow::Cow;

use sqlx::postgres::PgArguments;
use sqlx::sqlite::SqliteArguments;
use sqlx::{Arguments, SqlSafeStr, SqlStr};

use super::{ANSWER, Pool, Row, Transaction, answer};

/// A query to be run once.
pub struct Query<'q> {
    pub(super) sql: SqlStr,
    pub(super) values: Vec<Value<'q>>,
}

/// A value of a query; what is not there has a type all the same, which
/// PostgreSQL wants to know.
pub enum Value<'q> {
    /// A number, a time or an amount.
    Int(Option<i64>),
    /// Yes or no.
    Bool(Option<bool>),
    /// A text.
    Text(Option<Cow<'q, str>>),
    /// Bytes.
    Blob(Cow<'q, [u8]>),
}

/// What a query is run on.
pub enum On<'a, 'c> {
    /// Any connection of a pool.
    Pool(&'a Pool),
    /// A transaction.
    Transaction(&'a mut Transaction<'c>),
}

/// A query with this text.
pub fn query<'q>(sql: impl SqlSafeStr) -> Query<'q> {
    Query {
        sql: sql.into_sql_str(),
        values: Vec::new(),
    }
}

/// Runs a query on whichever database it is for.
macro_rules! run {
    ($query:expr, $on:expr, $method:ident) => {
        match $on.into() {
            On::Pool(Pool::Sqlite(pool)) => $query.sqlite()?.$method(pool).await.map(From::from),
            On::Pool(Pool::Writer(writer)) => {
                let mut turn = writer.turn().await?;
                let query = $query.sqlite()?;
                query.$method(turn.connection()?).await.map(From::from)
            }
            On::Pool(Pool::Postgres(pool)) => {
                let asking = $query.postgres()?.$method(pool);
                answer(ANSWER, asking).await.map(From::from)
            }
            On::Transaction(Transaction::Sqlite(on)) => {
                $query.sqlite()?.$method(&mut **on).await.map(From::from)
            }
            On::Transaction(Transaction::Writer(turn)) => {
                let query = $query.sqlite()?;
                query.$method(turn.begun().await?).await.map(From::from)
            }
            On::Transaction(Transaction::Postgres(on, within)) => {
                let asking = $query.postgres()?.$method(on.connection()?);
                answer(*within, asking).await.map(From::from)
            }
        }
    };
}

impl<'q> Query<'q> {
    /// Adds the next value.
    pub fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    /// Runs it; returns how many rows it changed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn execute<'a, 'c: 'a>(self, on: impl Into<On<'a, 'c>>) -> Result<u64, sqlx::Error> {
        let done: Done = run!(self, on, execute)?;
        Ok(done.0)
    }

    /// All rows it gives.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_all<'a, 'c: 'a>(
        self,
        on: impl Into<On<'a, 'c>>,
    ) -> Result<Vec<Row>, sqlx::Error> {
        let rows: Rows = run!(self, on, fetch_all)?;
        Ok(rows.0)
    }

    /// The first row, if there is one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fetch_optional<'a, 'c: 'a>(
        self,
        on: impl Into<On<'a, 'c>>,
    ) -> Result<Option<Row>, sqlx::Error> {
        let row: MaybeRow = run!(self, on, fetch_optional)?;
        Ok(row.0)
    }

    /// The first row.
    ///
    /// # Errors
    /// [`sqlx::Error::RowNotFound`] when there is none.
    pub async fn fetch_one<'a, 'c: 'a>(
        self,
        on: impl Into<On<'a, 'c>>,
    ) -> Result<Row, sqlx::Error> {
        run!(self, on, fetch_one)
    }

    pub(super) fn sqlite<'a>(
        self,
    ) -> Result<sqlx::query::Query<'a, sqlx::Sqlite, SqliteArguments>, sqlx::Error> {
        let arguments = self.arguments::<SqliteArguments>(|arguments, value| match value {
            Value::Int(value) => arguments.add(value),
            Value::Bool(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value.as_deref()),
            Value::Blob(value) => arguments.add(&**value),
        })?;
        Ok(sqlx::query_with(self.sql, arguments))
    }

    pub(super) fn postgres<'a>(
        self,
    ) -> Result<sqlx::query::Query<'a, sqlx::Postgres, PgArguments>, sqlx::Error> {
        let arguments = self.arguments::<PgArguments>(|arguments, value| match value {
            Value::Int(value) => arguments.add(value),
            Value::Bool(value) => arguments.add(value),
            Value::Text(value) => arguments.add(value.as_deref()),
            Value::Blob(value) => arguments.add(&**value),
        })?;
        Ok(sqlx::query_with(self.sql, arguments))
    }

    fn arguments<A: Arguments>(
        &self,
        add: impl Fn(&mut A, &Value<'q>) -> Result<(), sqlx::error::BoxDynError>,
    ) -> Result<A, sqlx::Error> {
        let mut arguments = A::default();
        for value in &self.values {
            add(&mut arguments, value).map_err(sqlx::Error::Encode)?;
        }
        Ok(arguments)
    }
}

/// Rows that a query changed.
pub(super) struct Done(pub u64);

struct Rows(Vec<Row>);

struct MaybeRow(Option<Row>);

macro_rules! results {
    ($database:ident, $done:ty, $row:ty) => {
        impl From<$done> for Done {
            fn from(done: $done) -> Self {
                Self(done.rows_affected())
            }
        }
        impl From<$row> for Row {
            fn from(row: $row) -> Self {
                Self::$database(row)
            }
        }
        impl From<Vec<$row>> for Rows {
            fn from(rows: Vec<$row>) -> Self {
                Self(rows.into_iter().map(Row::from).collect())
            }
        }
        impl From<Option<$row>> for MaybeRow {
            fn from(row: Option<$row>) -> Self {
                Self(row.map(Row::from))
            }
        }
    };
}

results!(
    Sqlite,
    sqlx::sqlite::SqliteQueryResult,
    sqlx::sqlite::SqliteRow
);
results!(
    Postgres,
    sqlx::postgres::PgQueryResult,
    sqlx::postgres::PgRow
);

impl<'a> From<&'a Pool> for On<'a, 'a> {
    fn from(pool: &'a Pool) -> Self {
        Self::Pool(pool)
    }
}

impl<'a, 'c> From<&'a mut Transaction<'c>> for On<'a, 'c> {
    fn from(transaction: &'a mut Transaction<'c>) -> Self {
        Self::Transaction(transaction)
    }
}

macro_rules! values {
    ($($type:ty: $value:ident => $made:expr,)*) => {
        $(impl<'q> From<$type> for Value<'q> {
            fn from($value: $type) -> Self {
                $made
            }
        })*
    };
}

values! {
    i64: value => Value::Int(Some(value)),
    &i64: value => Value::Int(Some(*value)),
    u32: value => Value::Int(Some(value.into())),
    u8: value => Value::Int(Some(value.into())),
    Option<i64>: value => Value::Int(value),
    Option<u32>: value => Value::Int(value.map(i64::from)),
    bool: value => Value::Bool(Some(value)),
    Option<bool>: value => Value::Bool(value),
    &'q str: value => Value::Text(Some(Cow::Borrowed(value))),
    Option<&'q str>: value => Value::Text(value.map(Cow::Borrowed)),
    &'q String: value => Value::Text(Some(Cow::Borrowed(value))),
    String: value => Value::Text(Some(Cow::Owned(value))),
    &'q Option<String>: value => Value::Text(value.as_deref().map(Cow::Borrowed)),
    Option<&'q String>: value => Value::Text(value.map(|text| Cow::Borrowed(text.as_str()))),
    Option<String>: value => Value::Text(value.map(Cow::Owned)),
    &'q [u8]: value => Value::Blob(Cow::Borrowed(value)),
    Vec<u8>: value => Value::Blob(Cow::Owned(value)),
}
