//! What the clients saw, and whether the server's books agree.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;

use crate::ask::{ASKS, Answer, Ask};

/// The status of a request that got no answer.
const NO_ANSWER: u16 = 0;
/// What a token costs with every model here, the price that is not configured, in nano-dollars.
const PRICE: i64 = 10_000;

/// What clients saw.
#[derive(Debug, Default)]
pub struct Report {
    /// Times of all requests, by what was asked and the status.
    times: BTreeMap<(Ask, u16), Vec<Duration>>,
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
    /// The sums that the server shows.
    fn of(totals: &Value) -> Self {
        let count = |field: &str| totals[field].as_i64().unwrap_or(-1);
        Self {
            requests: count("requests"),
            prompt_tokens: count("prompt_tokens"),
            completion_tokens: count("completion_tokens"),
            nano_dollars: totals["cost"]
                .as_f64()
                .map_or(-1, |cost| (cost * 1e9).round() as i64),
        }
    }

    /// What an answer with so many tokens of prompt and its own must leave.
    fn of_answer((prompt_tokens, completion_tokens): (i64, i64)) -> Self {
        Self {
            requests: 1,
            prompt_tokens,
            completion_tokens,
            nano_dollars: (prompt_tokens + completion_tokens) * PRICE,
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
    pub fn note(&mut self, ask: &Ask, time: Duration, answer: reqwest::Result<Answer>) -> Duration {
        let status = answer.as_ref().map_or(NO_ANSWER, |answer| answer.status);
        self.times.entry((*ask, status)).or_default().push(time);
        match answer {
            Ok(Answer {
                status: 200,
                tokens: Some(tokens),
                ..
            }) => self.answered.add(Books::of_answer(tokens)),
            Ok(Answer {
                status: 429,
                retry_after,
                ..
            }) => return Duration::from_secs(retry_after),
            other => {
                let said = match other {
                    Ok(answer) => format!("{status} {}", answer.said),
                    Err(error) => format!("{error:?}"),
                };
                self.unexpected.get_or_insert(format!("{ask}: {said}"));
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

    /// A line for each way to ask and status.
    pub fn table(&self, elapsed: Duration) -> String {
        let mut table = format!(
            "{:<50} status  requests  per second   p50 ms   p95 ms   p99 ms\n",
            "asked"
        );
        for ((ask, status), times) in &self.times {
            let mut times = times.clone();
            times.sort_unstable();
            let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1000.0;
            let rate = times.len() as f64 / elapsed.as_secs_f64();
            let count = times.len();
            writeln!(
                table,
                "{:<50} {status:>6}  {count:>8}  {rate:>10.1}  {:>7.1}  {:>7.1}  {:>7.1}",
                ask.to_string(),
                at(50),
                at(95),
                at(99)
            )
            .expect("a text takes it");
        }
        table
    }

    /// What is wrong, by what was seen and by the server's own totals.
    pub fn problems(&self, usage: &Value) -> Vec<String> {
        let mut found: Vec<_> = self.unexpected.iter().cloned().collect();
        for ask in ASKS {
            if !self.times.contains_key(&(ask, 200)) {
                found.push(format!("{ask}: nothing was answered"));
            }
        }
        let kept = Books::of(&usage["totals"]);
        if kept != self.answered {
            let answered = self.answered;
            found.push(format!("on record: {kept:?}; answered: {answered:?}"));
        }
        found
    }
}
