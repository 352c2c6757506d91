//! Limits that all replicas share, in Redis. A request takes part in all of its
//! limits by one call of a script, which Redis runs as one step.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, RedisError, RedisResult, Script, ScriptInvocation};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::bucket::Bucket;
use super::{Demand, Limit, Refusal, Standing, Subject, Unit};

/// How long Redis may take to connect or to answer. A healthy one takes less than
/// a millisecond.
const PATIENCE: Duration = Duration::from_secs(1);
/// How long nobody asks a Redis that did not answer, but for one request each time
/// that finds out whether it is back.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a connection may have said nothing and be taken for whole: the least after
/// which a Redis closes one that is idle (`timeout`) is a second.
const QUIET: Duration = Duration::from_millis(500);
/// Most requests of whose end it is told late.
const UNHEARD: usize = 10_000;

/// Redis did not answer.
#[derive(Clone, Copy, Debug)]
pub struct Away;

type Connection = Arc<OnceCell<MultiplexedConnection>>;

/// Limits in Redis.
#[derive(Debug)]
pub struct Shared {
    client: Client,
    /// Made by the first that needs it, and no more used once anything failed on it:
    /// it may be one that fails for ever.
    connection: Mutex<Connection>,
    /// When it answered last.
    answered: Mutex<Option<Instant>>,
    admit: Script,
    settle: Script,
    /// While it is away: when to ask it again.
    away_until: Mutex<Option<Instant>>,
    /// Requests that have a place in Redis, or may come to have one, and need none.
    unheard: Mutex<VecDeque<Demand>>,
}

impl Shared {
    /// Limits in the Redis at this URL, which need not be there yet.
    ///
    /// # Errors
    /// When the URL is none of Redis.
    pub fn open(url: &str) -> Result<Self, RedisError> {
        Ok(Self {
            client: Client::open(url)?,
            connection: Mutex::default(),
            answered: Mutex::default(),
            admit: Script::new(concat!(
                include_str!("bucket.lua"),
                include_str!("admit.lua")
            )),
            settle: Script::new(concat!(
                include_str!("bucket.lua"),
                include_str!("settle.lua")
            )),
            away_until: Mutex::default(),
            unheard: Mutex::default(),
        })
    }

    /// Takes what is demanded, of every limit or of none.
    ///
    /// # Errors
    /// When Redis does not answer. Places that it may have taken all the same are free
    /// once it does.
    pub async fn admit(
        self: &Arc<Self>,
        demand: &Demand,
    ) -> Result<Result<Vec<Standing>, Refusal>, Away> {
        if !self.may_ask() {
            return Err(Away);
        }
        let mut call = self.admit.arg(&demand.request_id);
        call.arg(u64::try_from(demand.lease.as_millis()).unwrap_or(u64::MAX));
        for limit in &demand.limits {
            call.key(name(demand, limit))
                .arg(kind(limit.unit))
                .arg(limit.most.get())
                .arg(demand.units(limit.unit));
        }
        let answer: Result<Vec<u64>, Away> = self.call(&call).await;
        let answer = answer.inspect_err(|Away| self.tell_later(demand))?;
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
    /// many tokens. If Redis does not answer, its places are free once it does.
    pub async fn settle(self: &Arc<Self>, demand: &Demand, used: Option<u32>) {
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
        if is_needed && !(self.may_ask() && self.call::<()>(&call).await.is_ok()) {
            self.tell_later(demand);
        }
    }

    async fn call<T: redis::FromRedisValue>(
        self: &Arc<Self>,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, Away> {
        let mut connection = Arc::clone(&self.connection.lock());
        let asked = timeout(PATIENCE, async {
            if self.was_closed(&connection).await {
                connection = self.without(&connection);
            }
            let connection = connection.get_or_try_init(|| self.connect()).await?;
            call.invoke_async(&mut connection.clone()).await
        });
        let timed_out = |_| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        let answer = asked.await.unwrap_or_else(timed_out);
        match &answer {
            Ok(_) => *self.answered.lock() = Some(Instant::now()),
            Err(_) => drop(self.without(&connection)),
        }
        self.heard(answer)
    }

    /// Whether a connection that said nothing for a while was closed meanwhile, as Redis
    /// and what is between do with those that are idle. It is found out by a call that
    /// changes nothing: of a script the error does not tell whether it was run, and run
    /// twice it would take twice.
    async fn was_closed(&self, connection: &Connection) -> bool {
        let is_quiet = self.answered.lock().is_none_or(|at| at.elapsed() >= QUIET);
        match connection.get().filter(|_| is_quiet) {
            Some(connection) => {
                let answer: RedisResult<()> = redis::cmd("PING")
                    .query_async(&mut connection.clone())
                    .await;
                answer.is_err_and(|error| error.is_connection_dropped())
            }
            None => false,
        }
    }

    /// The connection to use instead of one that is of no more use.
    fn without(&self, connection: &Connection) -> Connection {
        let mut current = self.connection.lock();
        if Arc::ptr_eq(&current, connection) {
            *current = Arc::default();
        }
        Arc::clone(&current)
    }

    async fn connect(&self) -> RedisResult<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(PATIENCE))
            .set_response_timeout(Some(PATIENCE));
        self.client
            .get_multiplexed_async_connection_with_config(&config)
            .await
    }

    /// Whether it is there, as far as is known, or this one is to find out.
    fn may_ask(&self) -> bool {
        let mut away_until = self.away_until.lock();
        match *away_until {
            Some(until) if Instant::now() < until => false,
            Some(_) => {
                *away_until = Some(Instant::now() + PAUSE);
                true
            }
            None => true,
        }
    }

    fn heard<T>(self: &Arc<Self>, answer: RedisResult<T>) -> Result<T, Away> {
        let mut away_until = self.away_until.lock();
        match answer {
            Ok(answer) => {
                if away_until.take().is_some() {
                    tracing::info!("Redis is back: limits are shared again");
                    tokio::spawn(Arc::clone(self).tell_now());
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

    /// Keeps a request whose places Redis has, or may come to have, to free them later.
    fn tell_later(&self, demand: &Demand) {
        if demand.limits_of(Unit::Concurrent).next().is_none() {
            return;
        }
        let mut unheard = self.unheard.lock();
        if unheard.len() == UNHEARD {
            // its places end by themselves, if they have not
            unheard.pop_front();
        }
        unheard.push_back(demand.clone());
    }

    /// Frees the places of requests of which Redis has not heard that they ended. Not
    /// what they used: it may have heard that, and would count it twice.
    async fn tell_now(self: Arc<Self>) {
        // what it was asked before it was away it may do only now
        tokio::time::sleep(PAUSE).await;
        let unheard = mem::take(&mut *self.unheard.lock());
        for demand in unheard {
            self.settle(&demand, None).await;
        }
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
