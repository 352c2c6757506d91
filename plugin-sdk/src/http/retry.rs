//! When to try again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::thread;
use std::time::{Duration, Instant};

use super::upstream::retry_after_ms;
use super::{Failure, Incoming, Post};
use crate::log;

/// The pause before the second try, unless the upstream says otherwise.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// When a request is sent again. It is when nothing of it has reached the
/// upstream, because there was no connection, and when the upstream asks for it by
/// 429, 503 or 529. The body of an answer that was begun is never asked for twice.
///
/// The pause is what `Retry-After` says, and there is no other try if that is
/// longer than `longest_pause`. Without that header the pause doubles, from half a
/// second to `longest_pause`, of which a random half is waited at most. A pause
/// that would end past the request's `timeout` is not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Tries after the first one. Each counts as a request to the upstream, of
    /// which the host allows a few.
    pub retries: u32,
    /// The longest pause between two tries.
    pub longest_pause: Duration,
}

/// What came of a try that may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Again {
    /// The upstream left open when.
    Whenever,
    After(Duration),
}

impl Retry {
    /// [`Post::open`], again and again. The request's `timeout` is for all tries
    /// together.
    ///
    /// # Errors
    /// As [`Post::open`], of the last try that the host allows.
    pub fn open(&self, post: &Post<'_>) -> Result<Incoming, Failure> {
        if self.retries == 0 {
            // the clock is the host's, and each look at it a call
            return post.open();
        }
        let start = Instant::now();
        let left = || post.timeout.saturating_sub(start.elapsed());
        let (mut tried, mut last) = (0, None);
        loop {
            let timeout = left();
            let outcome = Post { timeout, ..*post }.open();
            if let (Err(Failure::Denied), Some(last)) = (&outcome, last.take()) {
                // no more requests are allowed
                return last;
            }
            let again = match &outcome {
                Err(failure) => Again::of_failure(failure),
                Ok(answer) => Again::of_answer(answer.status, |name| answer.header(name)),
            };
            let pause = again.and_then(|again| self.pause(tried, again, left(), random()));
            let Some(pause) = pause else {
                return outcome;
            };
            last = Some(outcome);
            log::debug(format_args!("trying again in {} ms", pause.as_millis()));
            thread::sleep(pause);
            tried += 1;
        }
    }

    /// How long to wait before another try, if there is one. `chance` is any number.
    fn pause(&self, tried: u32, again: Again, left: Duration, chance: u64) -> Option<Duration> {
        if tried >= self.retries {
            return None;
        }
        let pause = match again {
            Again::After(pause) if pause > self.longest_pause => return None,
            Again::After(pause) => pause,
            Again::Whenever => {
                let doubled = FIRST_PAUSE.saturating_mul(1 << tried.min(16));
                let half = doubled.min(self.longest_pause) / 2;
                half + half.mul_f64((chance % 1000) as f64 / 1000.0)
            }
        };
        (pause < left).then_some(pause)
    }
}

impl Again {
    fn of_failure(failure: &Failure) -> Option<Self> {
        matches!(failure, Failure::Unreachable(_)).then_some(Self::Whenever)
    }

    fn of_answer<'a>(status: u16, header: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        if !matches!(status, 429 | 503 | 529) {
            return None;
        }
        if let Some(ms) = retry_after_ms(&header) {
            return Some(Self::After(Duration::from_millis(ms.into())));
        }
        // a date may be any time away
        header("retry-after").is_none().then_some(Self::Whenever)
    }
}

/// Enough chance for a pause: the keys of the standard library's hash maps.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::{Again, Retry};
    use crate::http::{Failure, Post};
    use std::time::Duration;

    const MS: Duration = Duration::from_millis(1);
    const RETRY: Retry = Retry {
        retries: 3,
        longest_pause: Duration::from_millis(1500),
    };

    #[test]
    fn only_what_was_not_begun_is_tried_again() {
        let answer = |status, after: Option<&'static str>| {
            Again::of_answer(status, |name| after.filter(|_| name == "retry-after"))
        };
        for status in [200, 400, 401, 404, 500, 502, 504] {
            assert_eq!(answer(status, Some("1")), None, "{status}");
        }
        for status in [429, 503, 529] {
            assert_eq!(answer(status, None), Some(Again::Whenever), "{status}");
            let after = Some(Again::After(2000 * MS));
            assert_eq!(answer(status, Some("2")), after, "{status}");
            let date = "Wed, 21 Oct 2026 07:28:00 GMT";
            assert_eq!(answer(status, Some(date)), None, "{status}");
        }
        let unreachable = Failure::Unreachable(String::new());
        assert_eq!(Again::of_failure(&unreachable), Some(Again::Whenever));
        for failure in [
            Failure::Denied,
            Failure::Timeout,
            Failure::TooLarge,
            Failure::Broken(String::new()),
            Failure::Invalid(String::new()),
        ] {
            assert_eq!(Again::of_failure(&failure), None, "{failure:?}");
        }
    }

    #[test]
    fn pauses_double_by_chance_up_to_the_longest() {
        let long = 60_000 * MS;
        let pause = |tried, chance| RETRY.pause(tried, Again::Whenever, long, chance);
        assert_eq!(pause(0, 0), Some(250 * MS));
        assert_eq!(pause(0, 500), Some(375 * MS));
        assert_eq!(pause(1, 0), Some(500 * MS));
        assert_eq!(pause(2, 0), Some(750 * MS), "half of the longest");
        assert!(pause(2, 999).unwrap() < RETRY.longest_pause);
        assert_eq!(pause(3, 0), None, "no more tries");
    }

    #[test]
    fn a_pause_ends_within_what_is_allowed() {
        let after = |ms: u32, left: Duration| RETRY.pause(0, Again::After(ms * MS), left, 0);
        assert_eq!(after(1500, 2000 * MS), Some(1500 * MS));
        assert_eq!(after(1501, 2000 * MS), None, "longer than the longest");
        assert_eq!(after(1500, 1500 * MS), None, "past the deadline");
        assert_eq!(RETRY.pause(0, Again::Whenever, 250 * MS, 0), None);
    }

    #[test]
    fn what_is_no_matter_of_time_is_reported_at_once() {
        let post = Post {
            url: "https://api.example/",
            headers: &[],
            json: b"{}",
            timeout: 1000 * MS,
            response_limit: 1,
        };
        assert_eq!(RETRY.open(&post).unwrap_err(), Failure::Denied);
    }
}
