//! What answers come to.

use std::fmt;
use std::time::Duration;

use crate::clients::Answer;

/// Of all rounds of one way.
#[derive(Debug, Default)]
pub struct Figures {
    /// New tokens a second, of each round.
    rates: Vec<f64>,
    /// Prompts' tokens a second, of each round.
    read: Vec<f64>,
    /// Between two pieces of an answer, and from a request to its first; ms.
    gaps: Vec<f64>,
    firsts: Vec<f64>,
}

impl Figures {
    /// Adds a round's.
    pub fn add(&mut self, answers: &[Answer]) {
        let begun = answers.iter().map(|answer| answer.sent).min();
        let ended = answers.iter().map(|answer| answer.ended).max();
        let seconds = (ended.unwrap_or_default() - begun.unwrap_or_default()).as_secs_f64();
        let sum = |tokens: fn(&Answer) -> u64| answers.iter().map(tokens).sum::<u64>() as f64;
        self.rates.push(sum(|answer| answer.new_tokens) / seconds);
        self.read.push(sum(|answer| answer.prompt_tokens) / seconds);
        for answer in answers {
            let pairs = answer.pieces.windows(2);
            self.gaps.extend(pairs.map(|pair| ms(pair[1] - pair[0])));
            let first = answer.pieces.first().unwrap_or(&answer.ended);
            self.firsts.push(ms(*first - answer.sent));
        }
    }

    /// The median of the rounds' shares that this way's rate has of another's.
    pub fn share_of(&self, other: &Self) -> f64 {
        let pairs = self.rates.iter().zip(&other.rates);
        at(
            &pairs
                .map(|(ours, theirs)| ours / theirs)
                .collect::<Vec<_>>(),
            0.5,
        )
    }

    /// How many times the median the time between two pieces is at most, but for 1 %.
    pub fn spread(&self) -> f64 {
        at(&self.gaps, 0.99) / at(&self.gaps, 0.5)
    }
}

/// The head of the table.
pub const HEAD: &str = "             new tokens/s  prompts' tokens/s  between tokens ms: p50     p99   most  to the first ms: p50     p99    most";

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            rates,
            read,
            gaps,
            firsts,
        } = self;
        write!(
            f,
            "{:>12.0} {:>18.0} {:>23.1} {:>7.1} {:>6.0} {:>21.0} {:>7.0} {:>7.0}",
            at(rates, 0.5),
            at(read, 0.5),
            at(gaps, 0.5),
            at(gaps, 0.99),
            at(gaps, 1.0),
            at(firsts, 0.5),
            at(firsts, 0.99),
            at(firsts, 1.0),
        )
    }
}

/// What such a part of the numbers is not above; 0 of none.
fn at(numbers: &[f64], part: f64) -> f64 {
    let mut numbers = numbers.to_vec();
    numbers.sort_by(f64::total_cmp);
    let index = (numbers.len().saturating_sub(1) as f64 * part).round();
    numbers.get(index as usize).copied().unwrap_or_default()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
