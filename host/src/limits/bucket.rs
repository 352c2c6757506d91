//! GCRA, in its form as a leaky bucket (ITU-T I.371, Annex A): what was taken
//! drains at the limit's rate, and what would make it overflow is refused.
//!
//! The level is in units × microseconds, so that draining is a multiplication by
//! the limit: all of it is exact in integers, here and in Redis. A crate's GCRA
//! keeps a theoretical arrival time and has no way to give back what was taken
//! too much, which tokens need once they are counted.

use std::time::Duration;

/// The time in which a limit's amount may be used: a minute, in microseconds.
const WINDOW: u64 = 60_000_000;

/// What was taken and has not drained yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// Units × microseconds.
    level: u64,
    /// When that was the level, in microseconds of any clock that only goes on.
    at: u64,
}

impl Bucket {
    /// A bucket that is this full now.
    pub fn with_level(level: u64) -> Self {
        Self { level, at: 0 }
    }

    /// How full it is: units × microseconds.
    pub fn level(self) -> u64 {
        self.level
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.level == 0
    }

    /// The bucket at `now`, having drained since.
    #[must_use]
    pub fn drained(self, limit: u32, now: Duration) -> Self {
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let since = now.saturating_sub(self.at);
        Self {
            level: self
                .level
                .saturating_sub(since.saturating_mul(limit.into())),
            at: self.at.max(now),
        }
    }

    /// Takes so many units, whether there is room for them or not.
    #[must_use]
    pub fn take(self, units: u32) -> Self {
        Self {
            level: self.level.saturating_add(whole(units)),
            ..self
        }
    }

    /// Gives so many units back.
    #[must_use]
    pub fn give_back(self, units: u32) -> Self {
        Self {
            level: self.level.saturating_sub(whole(units)),
            ..self
        }
    }

    /// Units that may be taken at once.
    pub fn remaining(self, limit: u32) -> u32 {
        let left = whole(limit).saturating_sub(self.level) / WINDOW;
        u32::try_from(left).unwrap_or(u32::MAX)
    }

    /// Until so many units may be taken at once; zero when they may be now.
    pub fn wait(self, units: u32, limit: u32) -> Duration {
        let over = self.take(units).level.saturating_sub(whole(limit));
        Duration::from_micros(over.div_ceil(limit.max(1).into()))
    }

    /// Until the bucket is empty: all of the limit may be taken at once.
    pub fn reset(self, limit: u32) -> Duration {
        Duration::from_micros(self.level.div_ceil(limit.max(1).into()))
    }
}

fn whole(units: u32) -> u64 {
    u64::from(units) * WINDOW
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn second(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn a_limit_is_had_at_once_and_then_comes_back_evenly() {
        let mut bucket = Bucket::default().drained(6, second(0.0));
        for left in (0..6).rev() {
            assert_eq!(bucket.wait(1, 6), Duration::ZERO);
            bucket = bucket.take(1);
            assert_eq!(bucket.remaining(6), left);
        }
        assert_eq!(bucket.wait(1, 6), second(10.0));
        assert_eq!(bucket.reset(6), second(60.0));
        let almost = bucket.drained(6, second(9.999));
        assert_eq!((almost.remaining(6), almost.wait(1, 6)), (0, second(0.001)));
        let bucket = bucket.drained(6, second(10.0));
        assert_eq!(
            (bucket.remaining(6), bucket.wait(1, 6)),
            (1, Duration::ZERO)
        );
        // a clock that goes back drains nothing, and refills nothing
        assert_eq!(bucket.drained(6, second(3.0)), bucket);
        assert_eq!(
            bucket.drained(6, second(60.0)),
            Bucket {
                level: 0,
                at: 60_000_000
            }
        );
    }

    #[test]
    fn what_is_given_back_may_be_taken_again_and_never_more() {
        let bucket = Bucket::default().take(40).give_back(35);
        assert_eq!(bucket.remaining(100), 95);
        assert_eq!(bucket.give_back(90).remaining(100), 100);
        // and what turned out to be more is waited for
        assert_eq!(bucket.take(155).wait(1, 100), second(0.6 * 61.0));
    }

    proptest! {
        /// Whatever is asked for, and however long apart: no more passes than the
        /// limit and what has drained since, and the wait that is told is exact.
        #[test]
        fn no_more_passes_than_the_limit(
            limit in 1_u32..100_000_000,
            steps in prop::collection::vec((0_u64..10_000_000, 1_u32..1000), 1..200),
        ) {
            let (mut bucket, mut now, mut passed) = (Bucket::default(), 0, 0_u64);
            for (pause, units) in steps {
                now += pause;
                bucket = bucket.drained(limit, Duration::from_micros(now));
                let wait = bucket.wait(units, limit);
                prop_assert_eq!(wait.is_zero(), units <= bucket.remaining(limit));
                if wait.is_zero() {
                    bucket = bucket.take(units);
                    passed += u64::from(units);
                } else if units <= limit {
                    let then = Duration::from_micros(now) + wait;
                    prop_assert!(bucket.drained(limit, then).wait(units, limit).is_zero());
                    let before = then - Duration::from_micros(1);
                    prop_assert!(!bucket.drained(limit, before).wait(units, limit).is_zero());
                }
                prop_assert!(passed * WINDOW <= u64::from(limit) * (WINDOW + now));
            }
        }
    }
}
