//! Limits that all replicas share, in Redis. A request takes part in all of its
//! limits by one call of a script, which Redis runs as one step.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, RedisError, RedisResult, Script, ScriptInvocation};

use super::bucket::Bucket;
use super::{Demand, Limit, Refusal, Standing, Subject, Unit};

/// How long Redis may take to connect or to answer. A healthy one takes less than
/// a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nobody asks a Redis that did not answer, but for one request each time
/// that finds out whether it is back.
const PAUSE: Duration = Duration::from_secs(1);

/// Redis did not answer.
#[derive(Clone, Copy, Debug)]
pub struct Away;

/// Limits in Redis.
#[derive(Debug)]
pub struct Shared {
    connection: ConnectionManager,
    admit: Script,
    settle: Script,
    /// While it is away: when to ask it again.
    away_until: Mutex<Option<Instant>>,
}

impl Shared {
    /// Limits in the Redis at this URL, which need not be there yet.
    ///
    /// # Errors
    /// When the URL is none of Redis.
    pub fn open(url: &str) -> Result<Self, RedisError> {
        let config = ConnectionManagerConfig::new()
            .set_number_of_retries(0)
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        let client = Client::open(url)?;
        Ok(Self {
            connection: ConnectionManager::new_lazy_with_config(client, config)?,
            admit: Script::new(concat!(
                include_str!("bucket.lua"),
                include_str!("admit.lua")
            )),
            settle: Script::new(concat!(
                include_str!("bucket.lua"),
                include_str!("settle.lua")
            )),
            away_until: Mutex::default(),
        })
    }

    /// Takes what is demanded, of every limit or of none.
    ///
    /// # Errors
    /// When Redis does not answer. It may have taken it all the same.
    pub async fn admit(&self, demand: &Demand) -> Result<Result<Vec<Standing>, Refusal>, Away> {
        let mut call = self.admit.arg(&demand.request_id);
        call.arg(u64::try_from(demand.lease.as_millis()).unwrap_or(u64::MAX));
        for limit in &demand.limits {
            call.key(name(demand, limit))
                .arg(kind(limit.unit))
                .arg(limit.most.get())
                .arg(demand.units(limit.unit));
        }
        let answer: Vec<u64> = self.call(&call).await?;
        let (is_taken, levels) = answer.split_first().ok_or(Away)?;
        let before = demand.limits.iter().zip(levels);
        let before = before.map(|(limit, level)| standing(*limit, *level));
        Ok(if *is_taken == 1 {
            Ok(before.map(|standing| standing.taken(demand)).collect())
        } else {
            Err(Refusal::of(demand, &before.collect::<Vec<_>>()).ok_or(Away)?)
        })
    }

    /// Ends a request: it is not at work any more and, where that is known, used so
    /// many tokens. If Redis does not answer, its places end by themselves.
    pub async fn settle(&self, demand: &Demand, used: Option<u32>) {
        let mut call = self.settle.arg(&demand.request_id);
        let mut is_needed = false;
        for limit in &demand.limits {
            let more = match (limit.unit, used) {
                (Unit::Concurrent, _) => 0,
                (Unit::Tokens, Some(used)) => i64::from(used) - i64::from(demand.tokens),
                _ => continue,
            };
            is_needed = true;
            call.key(name(demand, limit))
                .arg(kind(limit.unit))
                .arg(limit.most.get())
                .arg(more);
        }
        if is_needed {
            // what is away has said so
            let _: Result<(), Away> = self.call(&call).await;
        }
    }

    async fn call<T: redis::FromRedisValue>(&self, call: &ScriptInvocation<'_>) -> Result<T, Away> {
        if !self.may_ask() {
            return Err(Away);
        }
        let mut connection = self.connection.clone();
        let answer = tokio::time::timeout(PATIENCE, call.invoke_async(&mut connection)).await;
        self.heard(
            answer
                .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into())),
        )
    }

    /// Whether it is there, as far as is known, or this one is to find out.
    fn may_ask(&self) -> bool {
        let mut away_until = self.away_until();
        match *away_until {
            Some(until) if Instant::now() < until => false,
            Some(_) => {
                *away_until = Some(Instant::now() + PAUSE);
                true
            }
            None => true,
        }
    }

    fn heard<T>(&self, answer: RedisResult<T>) -> Result<T, Away> {
        let mut away_until = self.away_until();
        match answer {
            Ok(answer) => {
                if away_until.take().is_some() {
                    tracing::info!("Redis is back: limits are shared again");
                }
                Ok(answer)
            }
            Err(error) => {
                if away_until.replace(Instant::now() + PAUSE).is_none() {
                    tracing::warn!(%error, "Redis does not answer: limits are not shared");
                }
                Err(Away)
            }
        }
    }

    fn away_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.away_until
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The key of a limit; all of a customer are at one place of a cluster.
fn name(demand: &Demand, limit: &Limit) -> String {
    let (customer, name) = (demand.customer_id, limit.name());
    match limit.subject {
        Subject::Key { key, model } => format!("model-host:{{{customer}}}:{name}:{key}:{model}"),
        Subject::Customer(_) => format!("model-host:{{{customer}}}:{name}"),
    }
}

fn kind(unit: Unit) -> &'static str {
    match unit {
        Unit::Requests | Unit::Tokens => "bucket",
        Unit::Concurrent => "running",
    }
}

fn standing(limit: Limit, level: u64) -> Standing {
    match limit.unit {
        Unit::Concurrent => Standing::of_running(limit, u32::try_from(level).unwrap_or(u32::MAX)),
        _ => Standing::of_bucket(limit, Bucket::with_level(level)),
    }
}
