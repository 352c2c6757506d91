//! What the clients saw, and whether the server's books agree.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;

use crate::harness::Reply;

/// The status of a request that got no answer.
const NO_ANSWER: u16 = 0;

/// What clients saw.
#[derive(Debug, Default)]
pub struct Report {
    /// Times of all requests, by model and status.
    times: BTreeMap<(i64, u16), Vec<Duration>>,
    /// What the answers add up to.
    answered: Books,
    /// The first answer that should not have come.
    unexpected: Option<String>,
}

/// Sums of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Books {
    requests: i64,
    prompt_tokens: i64,
    completion_tokens: i64,
    nano_dollars: i64,
}

impl Books {
    /// The sums that an object of the server's holds.
    fn of(sums: &Value, requests: i64) -> Self {
        let count = |field: &str| sums[field].as_i64().unwrap_or(-1);
        Self {
            requests,
            prompt_tokens: count("prompt_tokens"),
            completion_tokens: count("completion_tokens"),
            nano_dollars: sums["cost"]
                .as_f64()
                .map_or(-1, |cost| (cost * 1e9).round() as i64),
        }
    }

    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
        self.nano_dollars += other.nano_dollars;
    }
}

impl Report {
    /// Counts one request; returns how long the server asks to wait.
    pub fn note(&mut self, model: i64, time: Duration, answer: reqwest::Result<Reply>) -> Duration {
        let (status, said) = match &answer {
            Ok(reply) => (reply.status.as_u16(), reply.body.to_string()),
            Err(error) => (NO_ANSWER, format!("{error:?}")),
        };
        self.times.entry((model, status)).or_default().push(time);
        match (status, answer) {
            (200, Ok(reply)) => self.answered.add(Books::of(&reply.body, 1)),
            (429, Ok(reply)) => {
                let seconds = reply.header("retry-after").parse().unwrap_or(1);
                return Duration::from_secs(seconds);
            }
            _ => {
                self.unexpected
                    .get_or_insert(format!("model {model} answered {status}: {said}"));
            }
        }
        Duration::ZERO
    }

    /// Adds another client's.
    pub fn add(&mut self, other: Self) {
        for (key, times) in other.times {
            self.times.entry(key).or_default().extend(times);
        }
        self.answered.add(other.answered);
        self.unexpected = self.unexpected.take().or(other.unexpected);
    }

    /// A line for each model and status.
    pub fn table(&self, elapsed: Duration) -> String {
        let mut table =
            String::from("model  status  requests  per second   p50 ms   p95 ms   p99 ms\n");
        for ((model, status), times) in &self.times {
            let mut times = times.clone();
            times.sort_unstable();
            let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
            let rate = times.len() as f64 / elapsed.as_secs_f64();
            let count = times.len();
            writeln!(
                table,
                "{model:>5}  {status:>6}  {count:>8}  {rate:>10.1}  {:>7.1}  {:>7.1}  {:>7.1}",
                at(50),
                at(95),
                at(99)
            )
            .expect("a text takes it");
        }
        table
    }

    /// What is wrong, by what was seen and by the server's own totals.
    pub fn problems(&self, models: &[i64], usage: &Value) -> Vec<String> {
        let mut found: Vec<_> = self.unexpected.iter().cloned().collect();
        for model in models {
            if !self.times.contains_key(&(*model, 200)) {
                found.push(format!("model {model} answered nothing"));
            }
        }
        let totals = &usage["totals"];
        let kept = Books::of(totals, totals["requests"].as_i64().unwrap_or(-1));
        if kept != self.answered {
            found.push(format!(
                "on record: {kept:?}; answered: {:?}",
                self.answered
            ));
        }
        found
    }
}
