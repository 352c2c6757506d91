//! Clients, and the times that their requests take.

use std::fmt;
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::harness::Client;

/// Times of requests to one model.
#[derive(Debug, Default)]
pub struct Times {
    sorted: Vec<Duration>,
    asked_for: Duration,
}

impl Times {
    /// Adds what clients measured in this time.
    pub fn add(&mut self, mut taken: Vec<Duration>, time: Duration) {
        self.sorted.append(&mut taken);
        self.sorted.sort_unstable();
        self.asked_for += time;
    }

    /// A percentile, in microseconds.
    pub fn at(&self, percent: usize) -> f64 {
        self.sorted[(self.sorted.len() - 1) * percent / 100].as_secs_f64() * 1e6
    }

    /// How many requests.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.sorted.len() as f64 / self.asked_for.as_secs_f64()
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, p50, p99, rate) = (self.count(), self.at(50), self.at(99), self.rate());
        write!(f, "{count:>11} {p50:>7.0} {p99:>7.0} {rate:>11.0}")
    }
}

/// Each client asks one request after the other.
pub async fn saturating(
    customer: &Client,
    model: i64,
    clients: usize,
    time: Duration,
) -> Vec<Duration> {
    let end = Instant::now() + time;
    let mut asking = JoinSet::new();
    for _ in 0..clients {
        let customer = customer.clone();
        asking.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                times.push(ask(&customer, model).await);
            }
            times
        });
    }
    asking.join_all().await.concat()
}

/// The clients ask at even distances, `rate` times a second together.
pub async fn paced(
    customer: &Client,
    model: i64,
    clients: usize,
    rate: u32,
    time: Duration,
) -> Vec<Duration> {
    let start = Instant::now();
    let mut asking = JoinSet::new();
    for number in 0..clients {
        let customer = customer.clone();
        let between = Duration::from_secs(1) / rate;
        let every = between * u32::try_from(clients).expect("not many");
        let first = start + between * u32::try_from(number).expect("not many");
        asking.spawn(async move {
            let mut turn = interval_at(first, every);
            turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut times = Vec::new();
            while turn.tick().await < start + time {
                times.push(ask(&customer, model).await);
            }
            times
        });
    }
    asking.join_all().await.concat()
}

async fn ask(customer: &Client, model: i64) -> Duration {
    let body = json!({ "text": "Once upon a time", "model_id": model, "max_new_tokens": 8 });
    let sent = Instant::now();
    customer.post("/generate", body).await.expect(200);
    sent.elapsed()
}
