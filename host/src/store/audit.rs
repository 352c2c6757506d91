//! The audit log: what was done with the operator's authority. An act and its
//! row are one transaction. Rows are only added: triggers refuse all else.

use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;
use sqlx::AssertSqlSafe;
use time::OffsetDateTime;

use super::db::{Row, Transaction, query};
use super::lists::{self, List};
use super::{Error, Store, from_millis, millis};

/// By whose authority something is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actor {
    /// Whoever has the admin key.
    AdminKey {
        /// Id of the request that it came with.
        request_id: String,
        /// Where the request came from.
        client: IpAddr,
    },
    /// Whoever may run commands on the server's machine.
    CommandLine,
    /// The server by itself: at its start, or because its files changed.
    Server,
}

impl Actor {
    fn as_str(&self) -> &'static str {
        match self {
            Self::AdminKey { .. } => "admin_key",
            Self::CommandLine => "command_line",
            Self::Server => "server",
        }
    }
}

/// What something was done to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Object {
    /// The customer of this number.
    Customer(i64),
    /// The API key of this number.
    Key(i64),
    /// The admin key.
    AdminKey,
    /// The configuration.
    Configuration,
    /// The dashboard.
    Dashboard,
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Customer(id) => write!(f, "customer/{id}"),
            Self::Key(id) => write!(f, "key/{id}"),
            Self::AdminKey => f.write_str("admin_key"),
            Self::Configuration => f.write_str("configuration"),
            Self::Dashboard => f.write_str("dashboard"),
        }
    }
}

/// Something that is done.
#[derive(Clone, Debug)]
pub struct Act {
    /// What, such as `key.rotated`.
    pub action: &'static str,
    /// To what.
    pub object: Object,
    /// The object as it was, without secrets; `None` when it was not there.
    pub before: Option<Value>,
    /// The object as it is now, without secrets; `None` when it is gone.
    pub after: Option<Value>,
}

/// A row of the log.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Its number; later acts have higher ones.
    pub id: i64,
    /// When it was done.
    pub at: OffsetDateTime,
    /// By whose authority: `admin_key`, `command_line` or `server`.
    pub actor: String,
    /// What was done.
    pub action: String,
    /// To what.
    pub object: String,
    /// The object as it was.
    pub before: Option<Value>,
    /// The object as it was then.
    pub after: Option<Value>,
    /// Id of the request that asked for it.
    pub request_id: Option<String>,
    /// Where that came from.
    pub client: Option<String>,
}

/// A row as it is stored.
#[derive(Serialize)]
struct Stored<'a> {
    at: i64,
    actor: &'static str,
    action: &'static str,
    object: String,
    before: Option<String>,
    after: Option<String>,
    request_id: Option<&'a str>,
    client: Option<String>,
}

const STORED: &str = "at BIGINT, actor TEXT, action TEXT, object TEXT, before TEXT, after TEXT, \
    request_id TEXT, client TEXT";

/// Writes the act down, in the transaction that does it.
pub(super) async fn record(
    transaction: &mut Transaction<'_>,
    by: &Actor,
    act: Act,
    at: OffsetDateTime,
) -> Result<(), Error> {
    record_all(transaction, by, vec![act], at).await
}

/// Writes acts down, in order, in the transaction that does them.
pub(super) async fn record_all(
    transaction: &mut Transaction<'_>,
    by: &Actor,
    acts: Vec<Act>,
    at: OffsetDateTime,
) -> Result<(), Error> {
    let (request_id, client) = match by {
        Actor::AdminKey { request_id, client } => (Some(&**request_id), Some(client)),
        Actor::CommandLine | Actor::Server => (None, None),
    };
    let stored = acts.into_iter().map(|act| Stored {
        at: millis(at),
        actor: by.as_str(),
        action: act.action,
        object: act.object.to_string(),
        before: act.before.map(|value| value.to_string()),
        after: act.after.map(|value| value.to_string()),
        request_id,
        client: client.map(IpAddr::to_string),
    });
    let stored: Vec<_> = stored.collect();
    if let Some(show) = lists::show_rows(transaction, List::Audit) {
        show.execute(&mut *transaction).await?;
    }
    let added = transaction.insert_rows("audit", STORED, &stored, "");
    added.execute(transaction).await?;
    Ok(())
}

fn recorded(row: &Row) -> Result<Recorded, Error> {
    let json = |column: &str| -> Result<Option<Value>, Error> {
        let text: Option<String> = row.try_get(column)?;
        text.map(|text| serde_json::from_str(&text))
            .transpose()
            .map_err(|error| Error::Database(error.to_string()))
    };
    Ok(Recorded {
        id: row.try_get("id")?,
        at: from_millis(row.try_get("at")?),
        actor: row.try_get("actor")?,
        action: row.try_get("action")?,
        object: row.try_get("object")?,
        before: json("before")?,
        after: json("after")?,
        request_id: row.try_get("request_id")?,
        client: row.try_get("client")?,
    })
}

impl Store {
    /// Writes down an act that changes nothing in the database.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn record(&self, by: &Actor, act: Act, at: OffsetDateTime) -> Result<(), Error> {
        let mut transaction = self.write.begin().await?;
        record(&mut transaction, by, act, at).await?;
        Ok(transaction.commit().await?)
    }

    /// At most `limit` acts with numbers above `after`, in order; of one object
    /// (`key/7`) or of all, since a time or from the beginning. No act ever comes before
    /// one that was returned.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn acts(
        &self,
        object: Option<&str>,
        since: Option<OffsetDateTime>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Recorded>, Error> {
        // only what is asked for, so that an index of it is used
        let filter = match (object, since) {
            (None, None) => "",
            (Some(_), None) => "AND object = $4",
            (None, Some(_)) => "AND at >= $4",
            (Some(_), Some(_)) => "AND object = $4 AND at >= $5",
        };
        let before = lists::whole_before(&self.read, List::Audit).await?;
        let sql =
            format!("SELECT * FROM audit WHERE id > $1 AND id < $2 {filter} ORDER BY id LIMIT $3");
        let mut acts = query(AssertSqlSafe(sql)).bind(after).bind(before);
        acts = acts.bind(limit);
        if let Some(object) = object {
            acts = acts.bind(object);
        }
        if let Some(since) = since {
            acts = acts.bind(millis(since));
        }
        let rows = acts.fetch_all(&self.read).await?;
        rows.iter().map(recorded).collect()
    }

    /// At most `limit` acts, the latest first; those with numbers below `before`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn latest_acts(&self, before: i64, limit: u32) -> Result<Vec<Recorded>, Error> {
        let sql = "SELECT * FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2";
        let query = query(sql).bind(before).bind(limit);
        let rows = query.fetch_all(&self.read).await?;
        rows.iter().map(recorded).collect()
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::store::Audience;
    use crate::store::scratch::Scratch;

    #[tokio::test]
    async fn no_act_comes_before_one_that_was_read() {
        let Some(scratch) = Scratch::server() else {
            return;
        };
        let store = scratch.open(Audience::default()).await;
        let now = datetime!(2026-01-31 23:00 UTC);
        let act = |action| Act {
            action,
            object: Object::Dashboard,
            before: None,
            after: None,
        };
        let read = async || -> Vec<_> {
            let acts = store.acts(None, None, 0, 9).await.expect("a list");
            acts.into_iter().map(|act| act.action).collect()
        };
        let mut slow = store.write.begin().await.expect("a transaction");
        let recorded = record(&mut slow, &Actor::Server, act("first"), now).await;
        recorded.expect("recorded");
        let recorded = store.record(&Actor::Server, act("second"), now).await;
        recorded.expect("recorded");
        // who read the second now would go on after it
        assert!(read().await.is_empty());
        slow.commit().await.expect("committed");
        assert_eq!(read().await, ["first", "second"]);
    }
}
