//! Several queries in one go.

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Either, Executor};

use super::query::{Done, query};
use super::{Query, Row, Transaction};
use crate::store::Error;

/// Queries to be run in order. For a file they are one trip to the thread that has it.
#[derive(Default)]
pub struct Script<'q> {
    steps: Vec<Step<'q>>,
}

struct Step<'q> {
    query: Query<'q>,
    /// How many rows it must change, if it must.
    changes: Option<u64>,
}

/// Where a query is in its script.
#[derive(Clone, Copy, Debug)]
pub struct Place(usize);

/// What the queries of a script gave.
pub struct Ran(Vec<Outcome>);

#[derive(Default)]
struct Outcome {
    rows: Vec<Row>,
    changed: u64,
}

impl<'q> Script<'q> {
    /// Adds the next query.
    pub fn add(&mut self, query: Query<'q>) -> Place {
        self.push(query, None)
    }

    /// Adds a query that changes so many rows, or else the script fails.
    pub fn add_change_of(&mut self, rows: usize, query: Query<'q>) {
        self.push(query, Some(rows as u64));
    }

    fn push(&mut self, query: Query<'q>, changes: Option<u64>) -> Place {
        self.steps.push(Step { query, changes });
        Place(self.steps.len() - 1)
    }

    /// Runs them all.
    ///
    /// # Errors
    /// When the database fails or a query has not changed what it must. Then the
    /// transaction is to be undone.
    pub async fn run(self, transaction: &mut Transaction<'_>) -> Result<Ran, Error> {
        let changes: Vec<_> = self.steps.iter().map(|step| step.changes).collect();
        let queries = self.steps.into_iter().map(|step| step.query);
        let mut outcomes = Vec::with_capacity(changes.len());
        match transaction {
            Transaction::Sqlite(on) => {
                if !changes.is_empty() {
                    let query = joined(queries).sqlite()?;
                    collect(on.fetch_many(query), &mut outcomes).await?;
                }
            }
            Transaction::Postgres(on) => {
                for query in queries {
                    collect(on.fetch_many(query.postgres()?), &mut outcomes).await?;
                }
            }
        }
        for (outcome, changes) in outcomes.iter().zip(changes) {
            if changes.is_some_and(|changes| changes != outcome.changed) {
                let why = format!("{} rows were changed, not {changes:?}", outcome.changed);
                return Err(Error::Database(why));
            }
        }
        Ok(Ran(outcomes))
    }
}

impl Ran {
    /// The rows that a query gave; none where there was no such query.
    pub fn rows(&self, of: Option<Place>) -> &[Row] {
        of.and_then(|place| self.0.get(place.0))
            .map_or(&[], |outcome| &outcome.rows)
    }
}

/// One query of several statements, as SQLite takes it: `$2` is the second value of all.
fn joined<'q>(queries: impl Iterator<Item = Query<'q>>) -> Query<'q> {
    let (mut sql, mut values) = (String::new(), Vec::new());
    for query in queries {
        if !sql.is_empty() {
            sql.push_str("; ");
        }
        let mut pieces = query.sql.as_str().split('$');
        sql.push_str(pieces.next().unwrap_or_default());
        for piece in pieces {
            let end = piece
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(piece.len());
            let (number, rest) = piece.split_at(end);
            sql.push('$');
            match number.parse::<usize>() {
                Ok(number) => sql.push_str(&(number + values.len()).to_string()),
                Err(_) => sql.push_str(number),
            }
            sql.push_str(rest);
        }
        values.extend(query.values);
    }
    let mut all = query(AssertSqlSafe(sql));
    all.values = values;
    all
}

/// Adds an outcome for each statement that was run.
async fn collect<D: Into<Done>, R: Into<Row>>(
    mut results: impl TryStreamExt<Ok = Either<D, R>, Error = sqlx::Error> + Unpin,
    outcomes: &mut Vec<Outcome>,
) -> Result<(), sqlx::Error> {
    let mut rows = Vec::new();
    while let Some(result) = results.try_next().await? {
        match result {
            Either::Right(row) => rows.push(row.into()),
            Either::Left(done) => outcomes.push(Outcome {
                rows: std::mem::take(&mut rows),
                changed: done.into().0,
            }),
        }
    }
    Ok(())
}
