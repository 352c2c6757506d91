//! Whether the database answers. Anybody may ask that, as often as they like, and none of the
//! others is to wait for a connection because of it.

use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use super::Error;

/// How long an answer serves.
const FRESH: Duration = Duration::from_secs(1);

/// What the database said last.
#[derive(Debug, Default)]
pub(super) struct Pulse(Mutex<Option<Felt>>);

#[derive(Debug)]
struct Felt {
    answer: Result<(), Error>,
    at: Instant,
}

impl Pulse {
    /// The answer to `ask`, or the last one: one for all who wait, and for a second after it.
    ///
    /// # Errors
    /// When it is one.
    pub(super) async fn feel(
        &self,
        now: impl Fn() -> Instant,
        ask: impl Future<Output = Result<(), Error>>,
    ) -> Result<(), Error> {
        let mut last = self.0.lock().await;
        match &*last {
            Some(felt) if now().duration_since(felt.at) < FRESH => felt.answer.clone(),
            _ => {
                let answer = ask.await;
                *last = Some(Felt {
                    answer: answer.clone(),
                    at: now(),
                });
                answer
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn one_answer_serves_all_who_ask_within_a_second() {
        let (pulse, asked) = (Pulse::default(), Cell::new(0));
        let (start, passed) = (Instant::now(), Cell::new(Duration::ZERO));
        let feel = async |answer: Result<(), Error>| {
            let ask = async {
                asked.set(asked.get() + 1);
                // it takes a while, and others come meanwhile
                tokio::task::yield_now().await;
                passed.set(passed.get() + 2 * FRESH);
                answer
            };
            let felt = pulse.feel(|| start + passed.get(), ask).await;
            (felt.is_ok(), asked.get())
        };
        let well = tokio::join!(feel(Ok(())), feel(Ok(())), feel(Ok(())));
        assert_eq!(well, ((true, 1), (true, 1), (true, 1)));
        passed.set(passed.get() + FRESH - Duration::from_millis(1));
        assert_eq!(feel(Err(Error::NotFound)).await, (true, 1));
        // what has changed shows after that
        passed.set(passed.get() + Duration::from_millis(1));
        assert_eq!(feel(Err(Error::NotFound)).await, (false, 2));
        assert_eq!(feel(Ok(())).await, (false, 2));
        passed.set(passed.get() + FRESH);
        assert_eq!(feel(Ok(())).await, (true, 3));
    }
}
