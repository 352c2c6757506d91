//! Several queries in one go.

use futures_util::TryStreamExt;
use sqlx::{AssertSqlSafe, Either, Executor, SqliteConnection};

use super::query::{Done, query};
use super::{Query, Row, Transaction, Turn, answer};
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
pub struct StepId(usize);

/// What the queries of a script gave.
pub struct Ran(Vec<Outcome>);

#[derive(Default)]
struct Outcome {
    rows: Vec<Row>,
    changed: u64,
}

impl<'q> Script<'q> {
    /// Adds the next query.
    pub fn add(&mut self, query: Query<'q>) -> StepId {
        self.push(query, None)
    }

    /// Adds a query that changes so many rows, or else the script fails, before anything
    /// of it is committed.
    pub fn add_change_of(&mut self, rows: usize, query: Query<'q>) {
        self.push(query, Some(rows as u64));
    }

    fn push(&mut self, query: Query<'q>, changes: Option<u64>) -> StepId {
        self.steps.push(Step { query, changes });
        StepId(self.steps.len() - 1)
    }

    /// Runs them all.
    ///
    /// # Errors
    /// When the database fails or a query has not changed what it must. Then the
    /// transaction is to be undone.
    pub async fn run(self, transaction: &mut Transaction<'_>) -> Result<Ran, Error> {
        if self.steps.is_empty() {
            return Ok(Ran(Vec::new()));
        }
        match transaction {
            Transaction::Sqlite(on) => self.run_on_file(None, &mut *on, None).await,
            Transaction::Writer(turn) => {
                let begin = turn.begin();
                self.run_on_file(begin, turn.connection()?, None).await
            }
            Transaction::Postgres(on, within) => {
                let mut outcomes = Vec::with_capacity(self.steps.len());
                for Step { query, changes } in self.steps {
                    let results = on.connection()?.fetch_many(query.postgres()?);
                    let asking = collect(results, &mut outcomes);
                    answer(*within, asking).await?;
                    let changed = outcomes.last().map_or(0, |outcome| outcome.changed);
                    if let Some(changes) = changes.filter(|&changes| changes != changed) {
                        let why = format!("{changed} rows were changed, not {changes}");
                        return Err(Error::Database(why));
                    }
                }
                Ok(Ran(outcomes))
            }
        }
    }

    /// Runs them all and commits what is theirs of a turn, which goes on.
    ///
    /// # Errors
    /// Those of [`Self::run`]; whether it was committed is unknown where the database fails.
    pub async fn commit_in(mut self, turn: &mut Turn) -> Result<(), Error> {
        if let (false, [Step { changes: None, .. }]) = (turn.is_open(), &self.steps[..])
            && let Some(Step { query, .. }) = self.steps.pop()
        {
            // by itself it is a transaction, and wakes who waits for it once instead of thrice
            query.sqlite()?.execute(turn.connection()?).await?;
            return Ok(());
        }
        let begin = turn.begin();
        self.run_on_file(begin, turn.connection()?, Some("COMMIT"))
            .await?;
        turn.committed();
        Ok(())
    }

    /// Runs them as one, with something before and after them.
    async fn run_on_file(
        self,
        before: Option<&'static str>,
        on: &mut SqliteConnection,
        after: Option<&'static str>,
    ) -> Result<Ran, Error> {
        let mut queries = Vec::with_capacity(self.steps.len() + 2);
        queries.extend(before.map(|sql| (query(sql), false)));
        for Step {
            query: step,
            changes,
        } in self.steps
        {
            queries.push((step, true));
            if let Some(changes) = changes {
                // within the script, since it may be committed at its end
                let check = "INSERT INTO temp.changed SELECT changes() WHERE changes() <> $1";
                let changes = i64::try_from(changes).unwrap_or(i64::MAX);
                queries.push((query(check).bind(changes), false));
            }
        }
        queries.extend(after.map(|sql| (query(sql), false)));
        let is_step: Vec<_> = queries.iter().map(|(_, is_step)| *is_step).collect();
        let query = joined(queries.into_iter().map(|(query, _)| query)).sqlite()?;
        let mut outcomes = Vec::with_capacity(is_step.len());
        collect(on.fetch_many(query), &mut outcomes).await?;
        let steps = outcomes.into_iter().zip(is_step);
        let steps = steps.filter(|(_, is_step)| *is_step);
        Ok(Ran(steps.map(|(outcome, _)| outcome).collect()))
    }
}

impl Ran {
    /// The rows that a query gave; none where there was no such query.
    pub fn rows(&self, of: Option<StepId>) -> &[Row] {
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
