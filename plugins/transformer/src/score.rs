//! How well a model predicts a text that is there already.

use std::num::NonZeroUsize;

use plugin_sdk::{Error, ErrorKind};

use crate::Transformer;
use crate::kernels::Team;
use crate::model::{Predict, Run, Workspace};
use crate::sampling::likeliest;

/// Tokens of one step: bounds the memory that their logits take.
const ROWS: usize = 64;
/// Tokens of a window at most: what is far back changes little, and costs.
const WINDOW: usize = 1024;

/// What a model says of each token of a text but the first of each window,
/// given those before it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Score {
    /// The token it would have chosen itself.
    pub likeliest: Vec<u32>,
    /// How surprising the token of the text was: -ln of its probability.
    pub nats: Vec<f64>,
}

impl Transformer {
    /// Scores a text in windows of the context's length, or of 1024 tokens where that
    /// is less. It works on one thread and beside the answers in the making.
    ///
    /// # Errors
    /// [`ErrorKind::Internal`] when the text cannot be tokenized.
    pub fn score(&self, text: &str) -> Result<Score, Error> {
        let broken = |detail: String| {
            Error::new(ErrorKind::Internal, "the text cannot be scored").detail(detail)
        };
        let (model, tokenizer) = (&self.loaded.model, &self.loaded.tokenizer);
        let tokens = tokenizer
            .encode(text)
            .map_err(|error| broken(error.to_string()))?;
        let team = Team::new(NonZeroUsize::MIN).map_err(|error| broken(error.to_string()))?;
        let mut workspace = Workspace::new(team);
        let mut score = Score::default();
        for window in tokens.chunks(model.config().context.min(WINDOW)) {
            let mut cache = model.cache();
            // the last token predicts nothing that is in the window
            let given = &window[..window.len() - 1];
            for (rows, next) in given.chunks(ROWS).zip(window[1..].chunks(ROWS)) {
                let mut run = [Run {
                    tokens: rows,
                    cache: &mut cache,
                    predict: Predict::All,
                }];
                model.step(&mut workspace, &mut run);
                let mut said: Vec<_> = next.iter().map(|&token| (token, (0, 0.0))).collect();
                workspace.for_predictions(&mut said, tokenizer.size(), |(token, said), logits| {
                    *said = (likeliest(logits), surprise(logits, *token));
                });
                for (_, (likeliest, nats)) in said {
                    score.likeliest.push(likeliest);
                    score.nats.push(nats);
                }
            }
        }
        Ok(score)
    }
}

/// -ln of a token's probability.
fn surprise(logits: &[f32], token: u32) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits
        .iter()
        .map(|logit| f64::from(logit - largest).exp())
        .sum();
    total.ln() - f64::from(logits[token as usize] - largest)
}

#[cfg(test)]
mod tests {
    use plugin_sdk::Backend;

    use super::*;
    use crate::tests::{open, settings};

    #[test]
    fn a_text_is_scored_and_english_surprises_less_than_noise() {
        let model = open("embedded").unwrap();
        let mean = |text: &str| {
            let score = model.score(text).unwrap();
            assert_eq!(score.nats.len(), score.likeliest.len());
            score.nats.iter().sum::<f64>() / score.nats.len() as f64
        };
        let english = mean("She was the daughter of the king, and lived in a house by the sea.");
        let noise = mean("zqx vbnw qqj xkcd zzzz wqwq ljk fgh dfg tyu qwe rty vbn mjk.");
        // 4096 tokens, all alike, have 8.3 nats
        assert!(english < 5.5 && noise > english + 1.5, "{english} {noise}");
    }

    #[test]
    fn fewer_bits_predict_a_text_about_as_well() {
        let text = include_str!("../model/README.md");
        let of = |dtype: &str| {
            let model = Transformer::open(&settings(&[("dtype", dtype)])).unwrap();
            model.score(text).unwrap()
        };
        let exact = of("f32");
        let mean = |score: &Score| score.nats.iter().sum::<f64>() / score.nats.len() as f64;
        for (dtype, most_off, least_same) in [
            ("f16", 0.001, 0.99),
            ("bf16", 0.001, 0.99),
            ("w8a16", 0.002, 0.98),
            ("q8", 0.003, 0.96),
            ("q4", 0.06, 0.75),
        ] {
            let score = of(dtype);
            let off = (mean(&score) / mean(&exact) - 1.0).abs();
            let pairs = score.likeliest.iter().zip(&exact.likeliest);
            let same = pairs.filter(|(ours, exact)| ours == exact).count() as f64;
            let same = same / exact.likeliest.len() as f64;
            assert!(off < most_off && same > least_same, "{dtype}: {off} {same}");
        }
    }

    #[test]
    fn surprise_is_the_cross_entropy() {
        assert!((surprise(&[0.0; 8], 3) - 8_f64.ln()).abs() < 1e-12);
        assert!(surprise(&[-50.0, 50.0], 1) < 1e-12);
    }
}
