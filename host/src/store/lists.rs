//! Lists that somebody reads on from where he was: their numbers are given before their rows
//! can be seen, and several servers write them, so a later row may be seen first.

use sqlx::AssertSqlSafe;

use super::Error;
use super::db::{Pool, Query, Transaction, query};

/// The number of the next row, in the sequence of a table's numbers.
const NEXT_ROW: &str = "last_value + is_called::INT";

/// Tables of which somebody reads the rows that came after those he has.
#[derive(Clone, Copy, Debug)]
pub(super) enum List {
    Usage,
    Audit,
}

impl List {
    /// Where the numbers of its rows come from.
    fn sequence(self) -> &'static str {
        match self {
            Self::Usage => "usage_id_seq",
            Self::Audit => "audit_id_seq",
        }
    }

    /// To which the number of a row is added to make that of a lock; there are fewer
    /// than 2^48 rows.
    fn locks(self) -> i64 {
        match self {
            Self::Usage => 0x6d68 << 48,
            Self::Audit => 0x6d69 << 48,
        }
    }
}

/// Shows the others from which number on this transaction may write rows of a list,
/// until it ends: their numbers are given before they can be seen, and transactions
/// end in any order. To be called before the first of them.
pub(super) fn show_rows(transaction: &Transaction<'_>, list: List) -> Option<Query<'static>> {
    if !transaction.is_shared() {
        return None;
    }
    // a lock that nobody waits for is a note that is gone with the transaction
    let sequence = list.sequence();
    let sql = format!("SELECT pg_advisory_xact_lock_shared($1 + {NEXT_ROW}) FROM {sequence}");
    Some(query(AssertSqlSafe(sql)).bind(list.locks()))
}

/// The number before which no row of a list is still to come.
pub(super) async fn whole_before(pool: &Pool, list: List) -> Result<i64, Error> {
    if !pool.is_shared() {
        return Ok(i64::MAX);
    }
    // in this order: a transaction that is too late for the second shows numbers
    // that are past the first
    let sql = format!("SELECT {NEXT_ROW} AS next FROM {}", list.sequence());
    let next = query(AssertSqlSafe(sql)).fetch_one(pool).await?;
    let shown = query(
        "SELECT min((classid::BIGINT << 32 | objid::BIGINT) - $1) AS first FROM pg_locks \
         WHERE locktype = 'advisory' AND objsubid = 1 AND classid::BIGINT >> 16 = $1 >> 48 \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .bind(list.locks())
    .fetch_one(pool)
    .await?;
    let (next, first) = (next.try_get("next")?, shown.try_get("first")?);
    Ok(Option::<i64>::map_or(first, next, |first| next.min(first)))
}
