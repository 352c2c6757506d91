//! How much may be asked: requests and tokens a minute, and requests at once, of
//! a key at a model and of a customer. A request takes what it needs of all its
//! limits or of none.

mod bucket;
mod local;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bucket::Bucket;
use local::Local;

/// When a place among the requests at work may be free, which nobody can know.
const CONCURRENT_RETRY: Duration = Duration::from_secs(1);

/// Whom a limit is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A key at a model, by their numbers.
    Key {
        /// The key's.
        key: i64,
        /// The model's.
        model: i64,
    },
    /// All keys of a customer at all models, by its number.
    Customer(i64),
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// Requests, a minute.
    Requests,
    /// Tokens of prompts and answers, a minute.
    Tokens,
    /// Requests at work at once.
    Concurrent,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Whom it is for.
    pub subject: Subject,
    /// What it counts.
    pub unit: Unit,
    /// The most.
    pub most: NonZeroU32,
}

impl Limit {
    /// Its name in headers and errors.
    pub fn name(&self) -> &'static str {
        match (self.subject, self.unit) {
            (Subject::Key { .. }, Unit::Requests) => "key-requests",
            (Subject::Key { .. }, Unit::Tokens) => "key-tokens",
            (Subject::Key { .. }, Unit::Concurrent) => "key-concurrent",
            (Subject::Customer(_), Unit::Requests) => "customer-requests",
            (Subject::Customer(_), Unit::Tokens) => "customer-tokens",
            (Subject::Customer(_), Unit::Concurrent) => "customer-concurrent",
        }
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let unit = match self.unit {
            Unit::Requests => "requests a minute",
            Unit::Tokens => "tokens a minute",
            Unit::Concurrent => "requests at once",
        };
        let subject = match self.subject {
            Subject::Key { .. } => "each key and model",
            Subject::Customer(_) => "all keys of a customer together",
        };
        write!(f, "{} {unit} for {subject}", self.most)
    }
}

/// What a request needs of limits.
#[derive(Clone, Debug)]
pub struct Demand {
    /// The limits that hold for it.
    pub limits: Vec<Limit>,
    /// The tokens that it may come to use.
    pub tokens: u32,
}

impl Demand {
    fn units(&self, unit: Unit) -> u32 {
        match unit {
            Unit::Requests | Unit::Concurrent => 1,
            Unit::Tokens => self.tokens,
        }
    }

    fn limits_of(&self, unit: Unit) -> impl Iterator<Item = &Limit> {
        self.limits.iter().filter(move |limit| limit.unit == unit)
    }
}

/// How a limit stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The limit.
    pub limit: Limit,
    /// What is left at once.
    pub remaining: u32,
    /// Until one more is left; zero for requests at work.
    pub next: Duration,
    /// Until all of it is left again; zero for requests at work.
    pub reset: Duration,
    /// What is in use: units × microseconds, or requests at work.
    level: u64,
}

impl Standing {
    fn of_bucket(limit: Limit, bucket: Bucket) -> Self {
        let most = limit.most.get();
        let remaining = bucket.remaining(most);
        Self {
            limit,
            remaining,
            next: bucket.wait(remaining.saturating_add(1).min(most), most),
            reset: bucket.reset(most),
            level: bucket.level(),
        }
    }

    fn of_running(limit: Limit, running: u32) -> Self {
        Self {
            limit,
            remaining: limit.most.get().saturating_sub(running),
            next: Duration::ZERO,
            reset: Duration::ZERO,
            level: running.into(),
        }
    }

    /// After what is demanded was taken.
    fn taken(self, demand: &Demand) -> Self {
        let units = demand.units(self.limit.unit);
        match self.limit.unit {
            Unit::Concurrent => Self {
                remaining: self.remaining.saturating_sub(units),
                level: self.level + u64::from(units),
                ..self
            },
            _ => Self::of_bucket(self.limit, Bucket::with_level(self.level).take(units)),
        }
    }

    /// Until so many units are left at once.
    fn wait(&self, units: u32) -> Duration {
        match self.limit.unit {
            Unit::Concurrent if self.remaining < units => CONCURRENT_RETRY,
            Unit::Concurrent => Duration::ZERO,
            _ => Bucket::with_level(self.level).wait(units, self.limit.most.get()),
        }
    }
}

/// Why a request is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The limit that it has to wait for longest.
    pub by: Limit,
    /// Until it would be admitted, if nothing else were.
    pub retry_after: Duration,
    /// How its limits stand; nothing was taken.
    pub standings: Vec<Standing>,
}

impl Refusal {
    /// The refusal of what is demanded, if the limits do not leave it.
    fn of(demand: &Demand, standings: &[Standing]) -> Option<Self> {
        let waits = standings
            .iter()
            .map(|standing| (standing, standing.wait(demand.units(standing.limit.unit))));
        let (standing, retry_after) = waits.max_by_key(|(_, wait)| *wait)?;
        (!retry_after.is_zero()).then(|| Self {
            by: standing.limit,
            retry_after,
            standings: standings.to_vec(),
        })
    }
}

/// All limits; clones share what is in use.
#[derive(Clone, Debug)]
pub struct Limits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    local: Local,
    started: Instant,
}

impl Limits {
    /// Limits of which nothing is in use.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            local: Local::default(),
            started: Instant::now(),
        }))
    }

    /// Takes what is demanded. Of requests at work it is free again when the
    /// permit is gone.
    ///
    /// # Errors
    /// When a limit does not leave it; nothing is taken then.
    pub fn admit(&self, demand: Demand) -> Result<(Vec<Standing>, Permit), Refusal> {
        let standings = self.0.local.admit(&demand, self.now())?;
        let permit = Permit {
            limits: self.clone(),
            demand,
        };
        Ok((standings, permit))
    }

    fn now(&self) -> Duration {
        self.0.started.elapsed()
    }
}

/// A place among the requests at work, free again when this is dropped.
#[derive(Debug)]
pub struct Permit {
    limits: Limits,
    demand: Demand,
}

impl Permit {
    /// Ends the request, which used so many tokens. Where this is not told, as
    /// after a panic, what was reserved counts as used.
    pub fn settle(self, tokens: u32) {
        let inner = &self.limits.0;
        inner.local.correct(&self.demand, tokens, self.limits.now());
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.limits.0.local.release(&self.demand);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_free_again_however_a_request_ends() {
        let limits = Limits::new();
        let admit = || {
            limits.admit(Demand {
                limits: vec![Limit {
                    subject: Subject::Customer(1),
                    unit: Unit::Concurrent,
                    most: NonZeroU32::MIN,
                }],
                tokens: 0,
            })
        };
        let (_, permit) = admit().unwrap();
        admit().unwrap_err();
        permit.settle(0);

        let (_, permit) = admit().unwrap();
        let panicking = tokio::spawn(async move {
            let _held = permit;
            panic!("a bug");
        });
        panicking.await.unwrap_err();

        let (_, permit) = admit().unwrap();
        let left = tokio::spawn(async move {
            let _held = permit;
            std::future::pending::<()>().await;
        });
        admit().unwrap_err();
        left.abort();
        left.await.unwrap_err();
        admit().unwrap();
    }
}
