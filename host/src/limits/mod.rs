//! How much may be asked: requests and tokens a minute, and requests at once, of
//! a key at a model and of a customer. A request takes what it needs of all its
//! limits or of none.

mod bucket;
mod local;
mod shared;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;

use crate::config::WithoutRedis;

use bucket::Bucket;
use local::Local;
use shared::{Away, Shared};

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
    /// The request's id.
    pub request_id: String,
    /// Number of the customer it is for.
    pub customer_id: i64,
    /// The limits that hold for it.
    pub limits: Vec<Limit>,
    /// The tokens that it may come to use.
    pub tokens: u32,
    /// How long it can be at work, at the most.
    pub lease: Duration,
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

/// Why a request may not go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// A limit does not leave what the request needs.
    #[error("the limit is {}", .0.by)]
    Refused(Box<Refusal>),
    /// Redis is away, and limits that are not shared are not wanted.
    #[error("Redis is away")]
    Away,
}

/// What should name a Redis does not.
#[derive(Debug, thiserror::Error)]
#[error("not the URL of a Redis: {0}")]
pub struct BadUrl(String);

/// All limits; clones share what is in use.
#[derive(Clone, Debug)]
pub struct Limits(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    local: Local,
    started: Instant,
    shared: Option<Arc<Shared>>,
    without_redis: WithoutRedis,
}

impl Limits {
    /// Limits of which nothing is in use: of this process or, with the URL of a
    /// Redis, of all that use it.
    ///
    /// # Errors
    /// When the URL is none of Redis.
    pub fn new(redis: Option<&SecretString>, without_redis: WithoutRedis) -> Result<Self, BadUrl> {
        let open = |url: &SecretString| {
            let opened = Shared::open(url.expose_secret());
            opened
                .map(Arc::new)
                .map_err(|error| BadUrl(error.to_string()))
        };
        Ok(Self(Arc::new(Inner {
            local: Local::default(),
            started: Instant::now(),
            shared: redis.map(open).transpose()?,
            without_redis,
        })))
    }

    /// Takes what is demanded. A place among the requests at work is free again
    /// when the permit is gone.
    ///
    /// # Errors
    /// When a limit does not leave it, and nothing is taken; or Redis is away.
    pub async fn admit(&self, demand: Demand) -> Result<(Vec<Standing>, Permit), Error> {
        let mut permit = Permit {
            limits: self.clone(),
            demand,
            held: Held::Nowhere,
        };
        if let Some(shared) = &self.0.shared {
            // before it is asked: who gives up meanwhile leaves nothing behind
            permit.held = Held::InRedis;
            match shared.admit(&permit.demand).await {
                Ok(Ok(standings)) => return Ok((standings, permit)),
                Ok(Err(refusal)) => {
                    permit.held = Held::Nowhere;
                    return Err(Error::Refused(Box::new(refusal)));
                }
                Err(Away) => permit.held = Held::Nowhere,
            }
            if self.0.without_redis == WithoutRedis::Refuse {
                return Err(Error::Away);
            }
        }
        let admitted = self.0.local.admit(&permit.demand, self.now());
        let standings = admitted.map_err(|refusal| Error::Refused(Box::new(refusal)))?;
        permit.held = Held::Here;
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
    held: Held,
}

/// Where a request has its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Nowhere,
    Here,
    InRedis,
}

impl Permit {
    /// Ends the request, which used so many tokens. Where this is not told, as
    /// after a panic, what was reserved counts as used.
    pub async fn settle(mut self, tokens: u32) {
        let inner = &self.limits.0;
        match (self.held, &inner.shared) {
            (Held::InRedis, Some(shared)) => {
                shared.settle(&self.demand, Some(tokens)).await;
                self.held = Held::Nowhere;
            }
            (Held::Here, _) => {
                let now = self.limits.now();
                inner.local.correct(&self.demand, tokens, now);
            }
            _ => {}
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        match self.held {
            Held::Nowhere => {}
            Held::Here => self.limits.0.local.release(&self.demand),
            Held::InRedis => {
                let (limits, demand) = (self.limits.clone(), self.demand.clone());
                let release = async move {
                    if let Some(shared) = &limits.0.shared {
                        shared.settle(&demand, None).await;
                    }
                };
                // without a runtime the server is at its end, and so is the lease soon
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(release);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_place_is_free_again_however_a_request_ends() {
        let limits = Limits::new(None, WithoutRedis::Refuse).unwrap();
        let admit = || {
            limits.admit(Demand {
                request_id: "r".to_owned(),
                customer_id: 1,
                limits: vec![Limit {
                    subject: Subject::Customer(1),
                    unit: Unit::Concurrent,
                    most: NonZeroU32::MIN,
                }],
                tokens: 0,
                lease: Duration::ZERO,
            })
        };
        let (_, permit) = admit().await.unwrap();
        admit().await.unwrap_err();
        permit.settle(0).await;

        let (_, permit) = admit().await.unwrap();
        let panicking = tokio::spawn(async move {
            let _held = permit;
            panic!("a bug");
        });
        panicking.await.unwrap_err();

        let (_, permit) = admit().await.unwrap();
        let left = tokio::spawn(async move {
            let _held = permit;
            std::future::pending::<()>().await;
        });
        admit().await.unwrap_err();
        left.abort();
        left.await.unwrap_err();
        admit().await.unwrap();
    }
}
