//! Billing: tells Stripe of customers and usage, and the operator's webhook of
//! budgets.
//!
//! What there is to tell is in the store's outbox; one task sends it, message by
//! message, and goes on trying for as long as it takes. A message is delivered
//! once although an answer may be lost and the process may end at any moment: an
//! attempt is written down before it is made, each sends the same request with
//! the same idempotency key, and each but the first looks for what an earlier
//! one may have made. The key alone would not do: Stripe forgets it after a day.
//!
//! A customer may be no more at Stripe: it was deleted there, or the secret key is now
//! of another account, or no longer of a sandbox. It is then made there anew, and what
//! is on its way goes to the new one.

mod stripe;
pub mod webhook;

use std::num::NonZeroU32;
use std::time::Duration;

use anyhow::Context;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use self::stripe::{Failure, Kind, Stripe};
use crate::clock::Clock;
use crate::config;
use crate::store::outbox::{Content, Message};
use crate::store::{self, Store};

/// Messages a second. Stripe takes 25 requests from a sandbox and 100 otherwise, and a
/// message is one or, after a lost answer, two:
/// <https://docs.stripe.com/rate-limits>.
const PACE: NonZeroU32 = NonZeroU32::new(12).unwrap();
/// Until the second attempt; each one after that waits twice as long.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Longest wait for a failure that may pass: an outage costs at most this more. But a
/// 500 of a request that Stripe had begun is its answer to that idempotency key for as
/// long as it keeps one, a day; what such a request did is not known, so there is no
/// other key for it: <https://docs.stripe.com/error-low-level#server-errors>.
const LONGEST_DELAY: Duration = Duration::from_secs(10 * 60);
/// Between attempts at what Stripe refuses; somebody has to do something about it.
const REFUSED_DELAY: Duration = Duration::from_secs(60 * 60);
/// Between two times that a customer is made anew for the same usage.
const RENEWAL_DELAY: Duration = Duration::from_secs(24 * 60 * 60);
/// Longest sleep, so that a clock that is set does not put off a report by much.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Starts to report to Stripe, if a key for it is configured.
///
/// The task ends, after the message it is sending, when `stop` is cancelled.
///
/// # Errors
/// When the configuration cannot be used.
pub fn start(
    config: &config::Stripe,
    store: Store,
    clock: Clock,
    stop: CancellationToken,
) -> anyhow::Result<Option<JoinHandle<()>>> {
    let Some(key) = &config.secret_key else {
        return Ok(None);
    };
    let stripe = Stripe::new(key, config.api_base.as_deref())
        .context("STRIPE_SECRET_KEY or [stripe] api_base cannot be used")?;
    let reporter = Reporter {
        stripe,
        store,
        clock,
        period: Duration::from_secs(config.report_seconds.into()),
        pace: RateLimiter::direct(Quota::per_second(PACE)),
    };
    Ok(Some(tokio::spawn(reporter.run(stop))))
}

struct Reporter {
    stripe: Stripe,
    store: Store,
    clock: Clock,
    /// Between two reports of a customer's usage.
    period: Duration,
    pace: DefaultDirectRateLimiter,
}

impl Reporter {
    async fn run(self, stop: CancellationToken) {
        let mut is_announced = false;
        while !stop.is_cancelled() {
            let sleep = match self.step(&mut is_announced).await {
                Ok(sleep) => sleep,
                Err(error) => {
                    tracing::error!(%error, "cannot read or write what Stripe is to be told");
                    LONGEST_SLEEP
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.store.outbox_changed() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Sends the next message, if one is due. Returns how long to sleep.
    async fn step(&self, is_announced: &mut bool) -> Result<Duration, store::Error> {
        let Some(mut sole) = self.store.sole("outbox").await? else {
            return Ok(FIRST_DELAY);
        };
        let now = self.clock.now();
        if !*is_announced {
            self.store.announce_customers(now).await?;
            *is_announced = true;
        }
        self.store.seal_usage(now - self.period, now).await?;
        // there may have been many customers
        sole.keep().await?;
        if let Some(message) = self.store.due_message(now).await? {
            self.pace.until_ready().await;
            self.attempt(&message).await?;
            return Ok(Duration::ZERO);
        }
        let due = self.store.outbox_due_at(self.period).await?;
        Ok(due.map_or(LONGEST_SLEEP, |due| until(due, now)))
    }

    /// Tries once to deliver a message, and writes down what came of it.
    async fn attempt(&self, message: &Message) -> Result<(), store::Error> {
        let attempt = message.attempts.saturating_add(1);
        let (id, delay) = (message.id, delay(attempt));
        self.store
            .begin_attempt(id, self.clock.now() + delay)
            .await?;
        let outcome = self.deliver(message).await;
        let now = self.clock.now();
        match outcome {
            Ok(stripe_id) => {
                self.store
                    .message_delivered(message, &stripe_id, now)
                    .await?;
                tracing::info!(
                    customer = message.customer_id,
                    stripe_id,
                    attempt,
                    "told Stripe"
                );
            }
            Err(Failure { reason, kind }) => {
                let customer = message.customer_id;
                if kind == Kind::NoCustomer
                    && self
                        .store
                        .renew_customer(message, now - RENEWAL_DELAY, now)
                        .await?
                {
                    tracing::warn!(customer, outbox_id = id, %reason, "Stripe has this customer no more: it is made there anew, and its usage goes to the new one");
                    return Ok(());
                }
                let is_refused = kind != Kind::Passing;
                let delay = if is_refused { REFUSED_DELAY } else { delay };
                if is_refused {
                    tracing::error!(customer, outbox_id = id, attempt, %reason, "refused by Stripe: nothing is lost, but somebody must see to it");
                } else {
                    tracing::warn!(customer, outbox_id = id, attempt, %reason, "cannot tell Stripe yet");
                }
                self.store.attempt_failed(id, &reason, now + delay).await?;
            }
        }
        Ok(())
    }

    /// Sends a message, unless an earlier attempt turns out to have arrived.
    /// Returns what Stripe calls what was made.
    async fn deliver(&self, message: &Message) -> Result<String, Failure> {
        if message.attempts > 0 {
            match self.stripe.find(message).await {
                // nothing was made with an address that is none
                Ok(None)
                | Err(Failure {
                    kind: Kind::NoAddress,
                    ..
                }) => {}
                Ok(Some(found)) => return Ok(found),
                Err(failure) => return Err(failure),
            }
        }
        match self.stripe.create(message).await {
            Err(Failure {
                reason,
                kind: Kind::NoAddress,
            }) => {
                tracing::warn!(customer = message.customer_id, %reason, "Stripe refuses the customer's address: it is made there without one, which somebody must set there");
                self.stripe.create(&without_address(message)).await
            }
            made => made,
        }
    }
}

/// The same message of a customer that Stripe is told no address of.
fn without_address(message: &Message) -> Message {
    let mut message = message.clone();
    if let Content::Customer { email, .. } = &mut message.content {
        email.clear();
    }
    message
}

/// How long to wait after this attempt, counted from one.
fn delay(attempt: u32) -> Duration {
    let doubled = attempt.saturating_sub(1).min(16);
    (FIRST_DELAY * 2_u32.pow(doubled)).min(LONGEST_DELAY)
}

fn until(due: OffsetDateTime, now: OffsetDateTime) -> Duration {
    Duration::try_from(due - now)
        .unwrap_or_default()
        .min(LONGEST_SLEEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_ten_minutes() {
        let seconds: Vec<_> = [1, 2, 3, 10, 11, u32::MAX]
            .map(|attempt| delay(attempt).as_secs())
            .into();
        assert_eq!(seconds, [1, 2, 4, 512, 600, 600]);
    }

    #[test]
    fn a_time_past_is_not_slept_for() {
        let now = OffsetDateTime::UNIX_EPOCH;
        assert_eq!(until(now - Duration::from_secs(5), now), Duration::ZERO);
        assert_eq!(until(now + Duration::from_secs(5), now).as_secs(), 5);
        assert_eq!(until(now + Duration::from_secs(5_000), now), LONGEST_SLEEP);
    }
}
