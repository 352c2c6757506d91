//! The operator's webhook, by Standard Webhooks 1.0: each notice is signed, sent
//! until it is taken, and has the same `webhook-id` each time.

use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use reqwest::{Client, redirect};
use secrecy::SecretString;
use sha2::Sha256;
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{FIRST_DELAY, LONGEST_SLEEP, delay, until};
use crate::clock::Clock;
use crate::config;
use crate::store::notices::Notice;
use crate::store::{self, Store};

/// How long the webhook may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Starts to send notices, if a webhook is configured.
///
/// The task ends, after the notice it is sending, when `stop` is cancelled.
///
/// # Errors
/// When the configuration cannot be used.
pub fn start(
    config: &config::Webhook,
    store: Store,
    clock: Clock,
    stop: CancellationToken,
) -> anyhow::Result<Option<JoinHandle<()>>> {
    let (Some(url), Some(secret)) = (&config.url, &config.secret) else {
        return Ok(None);
    };
    let client = Client::builder()
        .timeout(TIMEOUT)
        .redirect(redirect::Policy::none())
        .build()
        .context("the client of the webhook cannot be made")?;
    let sender = Sender {
        client,
        url: url.clone(),
        key: key(secret).context("the secret of the webhook is not one")?,
        store,
        clock,
    };
    Ok(Some(tokio::spawn(sender.run(stop))))
}

struct Sender {
    client: Client,
    url: String,
    key: Hmac<Sha256>,
    store: Store,
    clock: Clock,
}

impl Sender {
    async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let sleep = self.step().await.unwrap_or_else(|error| {
                tracing::error!(%error, "cannot read or write what the webhook is to be told");
                LONGEST_SLEEP
            });
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.store.notices_changed() => {}
                () = tokio::time::sleep(sleep) => {}
            }
        }
    }

    /// Sends the next notice, if one is due. Returns how long to sleep.
    async fn step(&self) -> Result<Duration, store::Error> {
        let Some(_sole) = self.store.sole("notices").await? else {
            return Ok(FIRST_DELAY);
        };
        let now = self.clock.now();
        let Some(notice) = self.store.due_notice(now).await? else {
            let due = self.store.notice_due_at().await?;
            return Ok(due.map_or(LONGEST_SLEEP, |due| until(due, now)));
        };
        let (id, attempt) = (notice.id, notice.attempts.saturating_add(1));
        self.store.begin_notice(id, now + delay(attempt)).await?;
        let problem = self.send(&notice, now).await.err();
        let now = self.clock.now();
        self.store.end_notice(id, problem.as_deref(), now).await?;
        match problem {
            None => tracing::info!(notice = notice.key, attempt, "told the webhook"),
            Some(reason) => {
                tracing::warn!(
                    notice = notice.key,
                    attempt,
                    reason,
                    "cannot tell the webhook yet"
                );
            }
        }
        Ok(Duration::ZERO)
    }

    /// Sends a notice; with the reason, without secrets, where it is not taken.
    async fn send(&self, notice: &Notice, now: OffsetDateTime) -> Result<(), String> {
        let Notice { key, body, .. } = notice;
        let timestamp = now.unix_timestamp();
        let signature = sign(self.key.clone(), &format!("{key}.{timestamp}.{body}"));
        let request = self
            .client
            .post(&self.url)
            .header("content-type", "application/json")
            .header("webhook-id", key)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", format!("v1,{signature}"))
            .body(body.clone());
        let answer = request.send().await;
        // the URL may hold a secret
        let answer = answer.map_err(|error| error.without_url().to_string())?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("it answered {status}")),
        }
    }
}

/// What signs under this secret.
fn key(secret: &SecretString) -> Option<Hmac<Sha256>> {
    let key = config::Webhook::key(secret)?;
    <Hmac<Sha256> as KeyInit>::new_from_slice(&key).ok()
}

/// The signature of a text.
fn sign(mut key: Hmac<Sha256>, text: &str) -> String {
    key.update(text.as_bytes());
    STANDARD.encode(key.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_the_specification() {
        // the example of the specification's reference libraries
        let secret = SecretString::from("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let text = "msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{\"test\": 2432232314}";
        assert_eq!(
            sign(key(&secret).expect("a key"), text),
            "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        );
    }
}
