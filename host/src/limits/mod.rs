//! How often a key may ask a model: GCRA, by governor, in this process.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::middleware::StateInformationMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};

/// Limiters to hold before those that are idle are dropped.
const SWEEP_AT: usize = 10_000;

type Limiter = RateLimiter<NotKeyed, InMemoryState, DefaultClock, StateInformationMiddleware>;

/// The numbers of a key and a model.
type KeyAndModel = (i64, i64);

/// What is left of a rate; for the `x-ratelimit-*` headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Requests a minute.
    pub limit: u32,
    /// Requests left at once.
    pub remaining: u32,
    /// Until `remaining` is `limit` again.
    pub reset: Duration,
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The rate, with nothing remaining.
    pub rate: Rate,
    /// Until the next request would pass.
    pub retry_after: Duration,
}

/// The limiters of all keys and models.
#[derive(Debug, Default)]
pub struct Limits {
    limiters: Mutex<HashMap<KeyAndModel, (NonZeroU32, Arc<Limiter>)>>,
    clock: DefaultClock,
}

impl Limits {
    /// Counts one request of the key to the model.
    ///
    /// # Errors
    /// When the key has none left.
    pub fn admit(
        &self,
        key_id: i64,
        model_id: i64,
        per_minute: NonZeroU32,
    ) -> Result<Rate, Exceeded> {
        let limiter = self.limiter(key_id, model_id, per_minute);
        // a request comes back every `period`
        let period = Duration::from_secs(60) / per_minute.get();
        let rate = |remaining: u32| Rate {
            limit: per_minute.get(),
            remaining,
            reset: period * (per_minute.get().saturating_sub(remaining)),
        };
        match limiter.check() {
            Ok(state) => Ok(rate(state.remaining_burst_capacity())),
            Err(refusal) => Err(Exceeded {
                rate: rate(0),
                retry_after: refusal.wait_time_from(self.clock.now()),
            }),
        }
    }

    fn limiter(&self, key_id: i64, model_id: i64, per_minute: NonZeroU32) -> Arc<Limiter> {
        let mut limiters = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        if limiters.len() >= SWEEP_AT {
            // one that has its whole burst again says nothing that a new one would not
            limiters.retain(|_, (_, limiter)| Arc::strong_count(limiter) > 1 || !is_idle(limiter));
        }
        let entry = limiters
            .entry((key_id, model_id))
            .or_insert_with(|| (per_minute, new(per_minute)));
        if entry.0 != per_minute {
            *entry = (per_minute, new(per_minute));
        }
        Arc::clone(&entry.1)
    }
}

fn new(per_minute: NonZeroU32) -> Arc<Limiter> {
    let quota = Quota::per_minute(per_minute);
    Arc::new(RateLimiter::direct(quota).with_middleware())
}

/// Whether the limiter's burst is whole; takes one request of it to find out.
fn is_idle(limiter: &Limiter) -> bool {
    limiter
        .check()
        .is_ok_and(|state| state.remaining_burst_capacity() + 1 >= state.quota().burst_size().get())
}
