//! The audit: every sum that the ledger keeps, made again from what it is of.

use std::fmt;

use time::{Duration, OffsetDateTime};

use super::Period;
use crate::money::NanoDollars;
use crate::store::db::{Transaction, query};
use crate::store::usage::deleted_before;
use crate::store::{Error, Store, from_millis, millis};

/// By how much the clocks of servers may differ, which each say by their own when a
/// hold must be over.
const CLOCKS: Duration = Duration::minutes(15);

/// What an audit has looked at, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Audit {
    /// Accounts, the house's included.
    pub accounts: i64,
    /// Transfers.
    pub transfers: i64,
    /// Requests at work that something is held for.
    pub holds: i64,
    /// Requests on record in a file's journal that are yet to be posted, so in no sum: of
    /// the server that writes the file, or of one that died and whose next posts them.
    pub unposted: i64,
    /// What does not agree; nothing if all is well.
    pub problems: Vec<Problem>,
}

/// Something that does not agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// All balances together are not 0 but this.
    Unbalanced(NanoDollars),
    /// An account's balance is not the sum of its transfers.
    Posted {
        /// Number of the account.
        account: i64,
        /// As kept.
        kept: NanoDollars,
        /// As summed up.
        summed: NanoDollars,
    },
    /// What an account holds is not the sum of the holds.
    Held {
        /// Number of the account.
        account: i64,
        /// As kept.
        kept: NanoDollars,
        /// As summed up.
        summed: NanoDollars,
    },
    /// A usage row and its transfer are not the same.
    Usage {
        /// The request's id.
        request_id: String,
    },
    /// What a customer used in an hour, or of all time, is not the sum that is kept.
    Sum {
        /// Number of the customer.
        customer_id: i64,
        /// When the hour began, in milliseconds since 1970; 0 for all time.
        start: i64,
    },
    /// What was spent or is held of a budget is not what its requests come to.
    Budget {
        /// Number of the budget.
        budget: i64,
        /// When the period began, in milliseconds since 1970.
        start: i64,
    },
    /// A hold whose request must be over.
    Expired {
        /// The request's id.
        request_id: String,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unbalanced(sum) => write!(f, "all balances together are {sum}, not 0"),
            Self::Posted {
                account,
                kept,
                summed,
            } => write!(
                f,
                "account {account}: the balance is {kept}, its transfers come to {summed}"
            ),
            Self::Held {
                account,
                kept,
                summed,
            } => {
                write!(
                    f,
                    "account {account}: {kept} is held, its holds come to {summed}"
                )
            }
            Self::Usage { request_id } => {
                write!(
                    f,
                    "request {request_id}: its usage and its transfer do not agree"
                )
            }
            Self::Sum { customer_id, start } => write!(
                f,
                "customer {customer_id}: the sum of usage from {start} is not that of its requests"
            ),
            Self::Budget { budget, start } => write!(
                f,
                "budget {budget}, period from {start}: it is not what its requests come to"
            ),
            Self::Expired { request_id } => {
                write!(f, "request {request_id}: it is over, and its hold is not")
            }
        }
    }
}

impl Store {
    /// Makes all sums again, at one moment of the database.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn audit(&self, now: OffsetDateTime) -> Result<Audit, Error> {
        let mut moment = self.up_to_date().await?.moment().await?;
        moment.take_long().await?;
        let row = query(
            "SELECT (SELECT count(*) FROM accounts) AS accounts, \
             (SELECT count(*) FROM transfers) AS transfers, \
             (SELECT count(*) FROM holds) AS holds, (SELECT CAST(sum(posted) AS BIGINT) FROM accounts) AS posted",
        )
        .fetch_one(&mut moment)
        .await?;
        let unposted = unposted(&mut moment).await?;
        let mut audit = Audit {
            accounts: row.try_get("accounts")?,
            transfers: row.try_get("transfers")?,
            holds: row.try_get::<i64>("holds")?
                + i64::try_from(self.books.lock().open()).unwrap_or(i64::MAX),
            unposted,
            problems: Vec::new(),
        };
        let sum: i64 = row.try_get("posted")?;
        if sum != 0 {
            audit.problems.push(Problem::Unbalanced(NanoDollars(sum)));
        }
        audit.problems.extend(accounts(&mut moment).await?);
        let whole_from = deleted_before(&mut moment).await?;
        audit.problems.extend(usage(&mut moment, whole_from).await?);
        audit.problems.extend(sums(&mut moment, whole_from).await?);
        audit.problems.extend(budgets(&mut moment).await?);
        audit.problems.extend(expired(&mut moment, now).await?);
        Ok(audit)
    }
}

async fn unposted(moment: &mut Transaction<'_>) -> Result<i64, Error> {
    if moment.is_shared() {
        return Ok(0);
    }
    let row = query("SELECT count(*) AS unposted FROM journal").fetch_one(moment);
    Ok(row.await?.try_get("unposted")?)
}

async fn accounts(moment: &mut Transaction<'_>) -> Result<Vec<Problem>, Error> {
    let rows = query(
        "WITH sides AS (SELECT credit AS account, amount FROM transfers \
         UNION ALL SELECT debit, -amount FROM transfers), \
         sums AS (SELECT account, CAST(sum(amount) AS BIGINT) AS posted FROM sides GROUP BY account), \
         holding AS (SELECT customer_id, CAST(sum(amount) AS BIGINT) AS held FROM holds GROUP BY customer_id) \
         SELECT accounts.id, accounts.posted, accounts.held, \
         coalesce(sums.posted, 0) AS sum_posted, coalesce(holding.held, 0) AS sum_held \
         FROM accounts LEFT JOIN sums ON sums.account = accounts.id \
         LEFT JOIN holding ON holding.customer_id = accounts.customer_id",
    )
    .fetch_all(moment)
    .await?;
    let mut problems = Vec::new();
    for row in rows {
        let account = row.try_get("id")?;
        let amount = |name| Ok::<_, Error>(NanoDollars(row.try_get(name)?));
        let (kept, summed) = (amount("posted")?, amount("sum_posted")?);
        if kept != summed {
            problems.push(Problem::Posted {
                account,
                kept,
                summed,
            });
        }
        let (kept, summed) = (amount("held")?, amount("sum_held")?);
        if kept != summed {
            problems.push(Problem::Held {
                account,
                kept,
                summed,
            });
        }
    }
    Ok(problems)
}

async fn usage(moment: &mut Transaction<'_>, whole_from: i64) -> Result<Vec<Problem>, Error> {
    // each usage row with a cost has its transfer, and no transfer has none, but for
    // those of rows that may have been deleted. Grouped rather than joined: SQLite
    // makes no index for a full join
    let rows = query(
        "SELECT DISTINCT request_id FROM (SELECT request_id, customer_id, cost FROM usage \
             WHERE cost <> 0 AND created_at >= $1 \
             UNION ALL SELECT reference, customer_id, -amount FROM transfers \
             JOIN accounts ON accounts.id = debit WHERE reason = 'usage' AND created_at >= $1) AS sides \
         GROUP BY request_id, customer_id HAVING count(*) <> 2 OR sum(cost) <> 0",
    )
    .bind(whole_from)
    .fetch_all(moment)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Problem::Usage {
                request_id: row.try_get("request_id")?,
            })
        })
        .collect()
}

/// Sums of usage that are not what they are of, since the time from which on all
/// rows are there: hours are sums of rows, totals of hours.
async fn sums(moment: &mut Transaction<'_>, whole_from: i64) -> Result<Vec<Problem>, Error> {
    let rows = query(
        "SELECT DISTINCT customer_id, start FROM \
         (SELECT 'hour' AS period, customer_id, created_at / 3600000 * 3600000 AS start, \
             api_key_id, model_id, count(*) AS requests, sum(prompt_tokens) AS prompt_tokens, \
             sum(completion_tokens) AS completion_tokens, sum(cost) AS cost \
             FROM usage WHERE created_at >= $1 GROUP BY 2, 3, 4, 5 \
         UNION ALL SELECT 'total', customer_id, 0, api_key_id, model_id, sum(requests), \
             sum(prompt_tokens), sum(completion_tokens), sum(cost) \
             FROM usage_sums WHERE period = 'hour' GROUP BY customer_id, api_key_id, model_id \
         UNION ALL SELECT period, customer_id, start, api_key_id, model_id, -requests, \
             -prompt_tokens, -completion_tokens, -cost \
             FROM usage_sums WHERE period = 'total' OR start >= $1) AS sides \
         GROUP BY period, customer_id, start, api_key_id, model_id \
         HAVING count(*) <> 2 OR sum(requests) <> 0 OR sum(prompt_tokens) <> 0 \
             OR sum(completion_tokens) <> 0 OR sum(cost) <> 0",
    )
    .bind(whole_from)
    .fetch_all(moment)
    .await?;
    rows.iter()
        .map(|row| {
            Ok(Problem::Sum {
                customer_id: row.try_get("customer_id")?,
                start: row.try_get("start")?,
            })
        })
        .collect()
}

async fn budgets(moment: &mut Transaction<'_>) -> Result<Vec<Problem>, Error> {
    let rows = query("SELECT * FROM spending JOIN budgets ON budgets.id = budget_id")
        .fetch_all(&mut *moment)
        .await?;
    let mut problems = Vec::new();
    for row in rows {
        let (budget, start): (i64, i64) = (row.try_get("budget_id")?, row.try_get("start")?);
        let period: Period = row.try_get::<&str>("period")?.parse()?;
        let sums = query(
            "SELECT (SELECT CAST(coalesce(sum(cost), 0) AS BIGINT) FROM usage_sums \
             WHERE period = 'hour' AND customer_id = $1 \
             AND ($2 IS NULL OR api_key_id = $2) AND start >= $3 AND start < $4) AS spent, \
             (SELECT CAST(coalesce(sum(amount), 0) AS BIGINT) FROM holds WHERE customer_id = $1 \
             AND ($2 IS NULL OR api_key_id = $2) AND created_at >= $3 AND created_at < $4) AS held",
        )
        .bind(row.try_get::<i64>("customer_id")?)
        .bind(row.try_get::<Option<i64>>("api_key_id")?)
        .bind(start)
        .bind(period.end(from_millis(start)).map_or(i64::MAX, millis))
        .fetch_one(&mut *moment)
        .await?;
        for name in ["spent", "held"] {
            if row.try_get::<i64>(name)? != sums.try_get::<i64>(name)? {
                problems.push(Problem::Budget { budget, start });
            }
        }
    }
    Ok(problems)
}

async fn expired(moment: &mut Transaction<'_>, now: OffsetDateTime) -> Result<Vec<Problem>, Error> {
    let rows = query("SELECT request_id FROM holds WHERE expires_at < $1")
        .bind(millis(now - CLOCKS))
        .fetch_all(moment)
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Problem::Expired {
                request_id: row.try_get("request_id")?,
            })
        })
        .collect()
}
