//! Limits that this process holds by itself.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::bucket::Bucket;
use super::{Demand, Limit, Refusal, Standing, Subject, Unit};

/// Buckets to hold before those that are empty are dropped.
const SWEEP_AT: usize = 10_000;

/// What is in use of all limits. Times are since any moment, and only go on.
#[derive(Debug, Default)]
pub struct Local(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    buckets: HashMap<(Subject, Unit), Held>,
    /// Requests at work.
    running: HashMap<Subject, u32>,
    /// Buckets at which to look for empty ones; 0 until there are some.
    sweep_at: usize,
}

/// A bucket with the limit it drains by.
#[derive(Clone, Copy, Debug)]
struct Held {
    bucket: Bucket,
    limit: u32,
}

impl Held {
    /// Takes off what has drained since.
    fn drain(&mut self, now: Duration) {
        self.bucket = self.bucket.drained(self.limit, now);
    }
}

impl Local {
    /// Takes what is demanded, of every limit or of none.
    ///
    /// # Errors
    /// When a limit does not leave it.
    pub fn admit(&self, demand: &Demand, now: Duration) -> Result<Vec<Standing>, Refusal> {
        let mut state = self.0.lock();
        let before: Vec<_> = demand
            .limits
            .iter()
            .map(|limit| state.standing(limit, now))
            .collect();
        if let Some(refusal) = Refusal::of(demand, &before) {
            return Err(refusal);
        }
        state.sweep(now);
        for limit in &demand.limits {
            let units = demand.units(limit.unit);
            match limit.unit {
                Unit::Concurrent => *state.running.entry(limit.subject).or_default() += units,
                _ => state.change(limit, now, |bucket| bucket.take(units)),
            }
        }
        let after = before.into_iter();
        Ok(after.map(|standing| standing.taken(demand)).collect())
    }

    /// Ends a request that was admitted: it is not at work any more.
    pub fn release(&self, demand: &Demand) {
        let mut state = self.0.lock();
        for limit in demand.limits_of(Unit::Concurrent) {
            if let Some(running) = state.running.get_mut(&limit.subject) {
                *running = running.saturating_sub(1);
                if *running == 0 {
                    state.running.remove(&limit.subject);
                }
            }
        }
    }

    /// Puts the tokens that a request used in the place of those it reserved.
    pub fn correct(&self, demand: &Demand, used: u32, now: Duration) {
        let mut state = self.0.lock();
        for limit in demand.limits_of(Unit::Tokens) {
            state.change(limit, now, |bucket| {
                bucket.take(used).give_back(demand.tokens)
            });
        }
    }
}

impl State {
    /// How a limit stands, which is in force from now on.
    fn standing(&mut self, limit: &Limit, now: Duration) -> Standing {
        if limit.unit == Unit::Concurrent {
            let running = self.running.get(&limit.subject);
            return Standing::of_running(*limit, running.copied().unwrap_or_default());
        }
        let held = self.buckets.get_mut(&(limit.subject, limit.unit));
        let bucket = held.map_or_else(Bucket::default, |held| {
            held.drain(now);
            held.limit = limit.most.get();
            held.bucket
        });
        Standing::of_bucket(*limit, bucket)
    }

    /// Changes a bucket, not the limit in force: one may end that was admitted by another.
    fn change(&mut self, limit: &Limit, now: Duration, change: impl FnOnce(Bucket) -> Bucket) {
        let held = self.buckets.entry((limit.subject, limit.unit));
        let held = held.or_insert_with(|| Held {
            bucket: Bucket::default(),
            limit: limit.most.get(),
        });
        held.drain(now);
        held.bucket = change(held.bucket);
    }

    /// Drops empty buckets, which say nothing that new ones would not.
    fn sweep(&mut self, now: Duration) {
        if self.buckets.len() < self.sweep_at.max(SWEEP_AT) {
            return;
        }
        self.buckets
            .retain(|_, held| !held.bucket.drained(held.limit, now).is_empty());
        // where they are all in use, not again until there are twice as many
        self.sweep_at = self.buckets.len() * 2;
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const KEY: Subject = Subject::Key { key: 1, model: 1 };
    const CUSTOMER: Subject = Subject::Customer(1);
    const NOW: Duration = Duration::from_secs(1000);

    fn limit(subject: Subject, unit: Unit, most: u32) -> Limit {
        let most = NonZeroU32::new(most).unwrap();
        Limit {
            subject,
            unit,
            most,
        }
    }

    fn demand(tokens: u32, limits: &[Limit]) -> Demand {
        Demand {
            request_id: "r".to_owned(),
            customer_id: 1,
            limits: limits.to_vec(),
            tokens,
            lease: Duration::ZERO,
        }
    }

    #[test]
    fn a_request_takes_of_all_its_limits_or_of_none() {
        let local = Local::default();
        let limits = [
            limit(KEY, Unit::Requests, 10),
            limit(CUSTOMER, Unit::Requests, 2),
        ];
        let ask = demand(0, &limits);
        for left in [1, 0] {
            let standings = local.admit(&ask, NOW).unwrap();
            assert_eq!(standings[1].remaining, left);
        }
        let refusal = local.admit(&ask, NOW).unwrap_err();
        assert_eq!(refusal.by, limits[1]);
        assert_eq!(refusal.retry_after, Duration::from_secs(30));
        assert_eq!(refusal.standings[0].remaining, 8);
        assert_eq!(refusal.standings[1].reset, Duration::from_secs(60));
        let soon = NOW + Duration::from_millis(29_999);
        local.admit(&ask, soon).unwrap_err();
        local.admit(&ask, NOW + Duration::from_secs(30)).unwrap();
    }

    #[test]
    fn tokens_are_reserved_and_then_corrected() {
        let local = Local::default();
        let limits = [limit(KEY, Unit::Tokens, 100)];
        let ask = demand(60, &limits);
        assert_eq!(local.admit(&ask, NOW).unwrap()[0].remaining, 40);
        let refusal = local.admit(&ask, NOW).unwrap_err();
        assert_eq!(refusal.retry_after, Duration::from_secs(12));
        assert_eq!(refusal.standings[0].remaining, 40);
        local.correct(&ask, 5, NOW);
        assert_eq!(local.admit(&ask, NOW).unwrap()[0].remaining, 35);
        // more than was reserved is owed
        local.correct(&ask, 105, NOW);
        let refusal = local.admit(&demand(1, &limits), NOW).unwrap_err();
        assert_eq!(refusal.retry_after, Duration::from_millis(6600));
    }

    #[test]
    fn as_many_run_at_once_as_may() {
        let local = Local::default();
        let ask = demand(0, &[limit(KEY, Unit::Concurrent, 2)]);
        assert_eq!(local.admit(&ask, NOW).unwrap()[0].remaining, 1);
        assert_eq!(local.admit(&ask, NOW).unwrap()[0].remaining, 0);
        // no time frees a place, only an end does
        let later = NOW + Duration::from_secs(3600);
        assert_eq!(
            local.admit(&ask, later).unwrap_err().by.unit,
            Unit::Concurrent
        );
        local.release(&ask);
        local.admit(&ask, later).unwrap();
        for _ in 0..2 {
            local.release(&ask);
        }
        assert!(local.0.lock().running.is_empty());
    }

    #[test]
    fn another_limit_holds_for_what_was_taken_before() {
        let local = Local::default();
        let ask = |most| demand(0, &[limit(KEY, Unit::Requests, most)]);
        for _ in 0..3 {
            local.admit(&ask(10), NOW).unwrap();
        }
        assert_eq!(local.admit(&ask(5), NOW).unwrap()[0].remaining, 1);
        assert_eq!(local.admit(&ask(20), NOW).unwrap()[0].remaining, 15);
    }

    #[test]
    fn another_limit_holds_from_the_next_request_on() {
        let ask = |tokens, most| demand(tokens, &[limit(KEY, Unit::Tokens, most)]);
        // what was admitted before and ends after it changes nothing of that
        let local = Local::default();
        local.admit(&ask(900, 1000), NOW).unwrap();
        local.admit(&ask(1000, 2000), NOW).unwrap();
        local.correct(&ask(900, 1000), 0, NOW);
        let refusal = local.admit(&ask(1500, 2000), NOW).unwrap_err();
        assert_eq!(refusal.retry_after, Duration::from_secs(15));
        let then = NOW + refusal.retry_after;
        local.admit(&ask(1500, 2000), then).unwrap();

        // nor need anything be admitted for it
        let local = Local::default();
        local.admit(&ask(1000, 1000), NOW).unwrap();
        for passed in 0..2 {
            let now = NOW + Duration::from_secs(passed);
            let refusal = local.admit(&ask(60, 60), now).unwrap_err();
            let wait = Duration::from_secs(1000 - passed);
            assert_eq!(refusal.retry_after, wait);
        }
    }

    #[test]
    fn what_is_idle_is_forgotten() {
        let local = Local::default();
        let ask = |model| {
            let key = Subject::Key { key: 1, model };
            demand(0, &[limit(key, Unit::Requests, 60)])
        };
        for model in 0..SWEEP_AT as i64 {
            local.admit(&ask(model), NOW).unwrap();
        }
        local
            .admit(&ask(0), NOW + Duration::from_millis(500))
            .unwrap();
        assert_eq!(local.0.lock().buckets.len(), SWEEP_AT);
        let later = NOW + Duration::from_millis(1200);
        local.0.lock().sweep_at = 0;
        local.admit(&ask(-1), later).unwrap();
        // the one that was asked twice, and the new one
        assert_eq!(local.0.lock().buckets.len(), 2);
    }
}
