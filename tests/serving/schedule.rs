//! Which requests come when.

use std::time::Duration;

use plugin_sdk::{Backend, Params, Prompt, Request};
use transformer::Transformer;

/// Tokens of a prompt, the logarithm evenly spread: most are short.
const PROMPT: (f64, f64) = (8.0, 512.0);
/// Tokens of an answer, evenly spread.
const NEW: (u32, u32) = (16, 128);
const WORDS: [&str; 16] = [
    "the", "river", "was", "old", "and", "they", "who", "came", "to", "see", "it", "in", "spring",
    "knew", "nothing", "of",
];

/// A request to come.
#[derive(Clone, Debug)]
pub struct Ask {
    /// When it comes, from the beginning on.
    pub at: Duration,
    pub prompt: String,
    pub new_tokens: u32,
}

/// Numbers that a seed makes.
pub struct Random(pub u64);

impl Random {
    /// From 0 to 1, without 1.
    fn part(&mut self) -> f64 {
        // Knuth's constants
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn below(&mut self, end: usize) -> usize {
        (self.part() * end as f64) as usize
    }
}

/// So many requests, `rate` a second in the mean, at the times of a Poisson process.
pub fn schedule(model: &Transformer, count: usize, rate: f64, random: &mut Random) -> Vec<Ask> {
    let info = model.describe().expect("it is loaded");
    let window = info.models[0].context_window.expect("it is known");
    let longest = f64::from(window - NEW.1 - 1).min(PROMPT.1);
    let mut at = Duration::ZERO;
    let mut ask = || {
        // what is between two of them is spread exponentially
        at += Duration::from_secs_f64(-(1.0 - random.part()).ln() / rate);
        let tokens = PROMPT.0 * (longest / PROMPT.0).powf(random.part());
        Ask {
            at,
            prompt: prompt(model, tokens as u32, random),
            new_tokens: NEW.0 + random.below((NEW.1 - NEW.0) as usize + 1) as u32,
        }
    };
    (0..count).map(|_| ask()).collect()
}

/// The most words that are no more than so many tokens; one at least.
fn prompt(model: &Transformer, tokens: u32, random: &mut Random) -> String {
    let words: Vec<_> = (0..tokens)
        .map(|_| WORDS[random.below(WORDS.len())])
        .collect();
    let is_longer = |count: usize| {
        let prompt = Prompt::Text(words[..count].join(" "));
        let request = request(prompt, Params::default());
        model.estimate(&request).expect("a text").prompt_tokens > tokens
    };
    // the most words that fit, found by halving: a word is a token or more
    let (mut fit, mut end) = (1, words.len() + 1);
    while end - fit > 1 {
        let middle = fit.midpoint(end);
        if is_longer(middle) {
            end = middle;
        } else {
            fit = middle;
        }
    }
    words[..fit].join(" ")
}

/// What a model is asked without a host.
pub fn request(prompt: Prompt, params: Params) -> Request {
    Request {
        request_id: String::new(),
        model: String::new(),
        prompt,
        params,
        tools: Vec::new(),
        deadline_ms: u32::MAX,
        ext: Vec::new(),
    }
}
