//! Rows of either database.

use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;

/// A row that a query gave.
pub enum Row {
    /// From a file.
    Sqlite(SqliteRow),
    /// From a server.
    Postgres(PgRow),
}

impl Row {
    /// The value of a column.
    ///
    /// # Errors
    /// When there is no such column, or it holds something else.
    pub fn try_get<'r, T: Column<'r>>(&'r self, name: &str) -> Result<T, sqlx::Error> {
        T::read(self, name)
    }
}

/// What a column may hold.
pub trait Column<'r>: Sized {
    /// The value of the column with this name.
    ///
    /// # Errors
    /// When there is no such column, or it holds something else.
    fn read(row: &'r Row, name: &str) -> Result<Self, sqlx::Error>;
}

macro_rules! columns {
    ($($type:ty),*) => {
        $(impl<'r> Column<'r> for $type {
            fn read(row: &'r Row, name: &str) -> Result<Self, sqlx::Error> {
                match row {
                    Row::Sqlite(row) => sqlx::Row::try_get(row, name),
                    Row::Postgres(row) => sqlx::Row::try_get(row, name),
                }
            }
        })*
    };
}

columns!(
    i64,
    Option<i64>,
    bool,
    String,
    &'r str,
    Option<String>,
    Vec<u8>
);

// both databases keep every number in 64 bits
macro_rules! narrow {
    ($($type:ty),*) => {
        $(impl<'r> Column<'r> for $type {
            fn read(row: &'r Row, name: &str) -> Result<Self, sqlx::Error> {
                narrowed(i64::read(row, name)?, name)
            }
        }
        impl<'r> Column<'r> for Option<$type> {
            fn read(row: &'r Row, name: &str) -> Result<Self, sqlx::Error> {
                let wide = Option::<i64>::read(row, name)?;
                wide.map(|wide| narrowed(wide, name)).transpose()
            }
        })*
    };
}

narrow!(u32, u8);

fn narrowed<T>(wide: i64, name: &str) -> Result<T, sqlx::Error>
where
    T: TryFrom<i64, Error = std::num::TryFromIntError>,
{
    T::try_from(wide).map_err(|error| sqlx::Error::ColumnDecode {
        index: name.to_owned(),
        source: error.into(),
    })
}
