//! The same numbers and the same tokens as transformers, for every family.

use std::collections::HashMap;

use candle_core::{Device, Tensor};

use super::{Runner, fixture};
use crate::checkpoint::Checkpoint;
use crate::kernels::Dtype;
use crate::model::Predict;
use crate::sampling::likeliest;

const PROMPTS: usize = 4;
const NEW_TOKENS: usize = 64;
const NAMES: [&str; 7] = [
    "plain", "odd", "llama", "mistral", "qwen2", "qwen3", "gemma3",
];

/// What transformers says of a checkpoint.
pub(super) struct Expected(HashMap<String, Tensor>);

impl Expected {
    pub(super) fn of(name: &str) -> Self {
        let path = fixture(name).join("expected.safetensors");
        Self(candle_core::safetensors::load(path, &Device::Cpu).unwrap())
    }

    pub(super) fn ids(&self, name: &str) -> Vec<u32> {
        let ids = self.0[name].to_vec1::<i64>().unwrap();
        ids.into_iter()
            .map(|id| u32::try_from(id).unwrap())
            .collect()
    }

    pub(super) fn logits(&self, prompt: usize) -> Vec<Vec<f32>> {
        self.0[&format!("{prompt}.logits")].to_vec2().unwrap()
    }
}

fn load(name: &str, dtype: Dtype) -> (Runner, Expected) {
    let folder = fixture(name);
    let checkpoint = Checkpoint::read(|file| folder.join(file).into()).unwrap();
    let loaded = checkpoint.load(Some(dtype)).unwrap();
    (Runner::new(loaded.model), Expected::of(name))
}

/// The largest difference, relative to the largest logit.
pub(super) fn difference(ours: &[Vec<f32>], theirs: &[Vec<f32>]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    let (ours, theirs) = (ours.iter().flatten(), theirs.iter().flatten());
    let largest = theirs
        .clone()
        .fold(0.0, |largest: f32, x| largest.max(x.abs()));
    let off = ours
        .zip(theirs)
        .fold(0.0, |off: f32, (x, y)| off.max((x - y).abs()));
    off / largest
}

#[test]
fn logits_are_those_of_transformers_at_every_position() {
    for name in NAMES {
        let (mut runner, expected) = load(name, Dtype::F32);
        for prompt in 0..PROMPTS {
            let tokens = expected.ids(&format!("{prompt}.tokens"));
            let theirs = expected.logits(prompt);
            let whole = runner.logits(&tokens, &mut runner.model.cache(), Predict::All);
            assert!(difference(&whole, &theirs) < 1e-4, "{name} {prompt}");
            // the same, a token at a time out of the cache
            let mut cache = runner.model.cache();
            for (position, token) in tokens.iter().enumerate() {
                let ours = runner.logits(&[*token], &mut cache, Predict::Last);
                let difference = difference(&ours, &theirs[position..=position]);
                assert!(
                    difference < 1e-4,
                    "{name} {prompt} at {position}: {difference}"
                );
                assert_eq!(ours[0], whole[position], "to the bit");
            }
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers_with_the_cache_and_without() {
    for name in NAMES {
        let (mut runner, expected) = load(name, Dtype::F32);
        for prompt in 0..PROMPTS {
            let tokens = expected.ids(&format!("{prompt}.tokens"));
            let theirs = expected.ids(&format!("{prompt}.greedy"));
            assert_eq!(theirs.len(), NEW_TOKENS);
            let room = tokens.len() + NEW_TOKENS;

            let (mut cached, mut unseen) = (Vec::new(), tokens.clone());
            let mut cache = runner.model.cache();
            while cached.len() < NEW_TOKENS {
                let token = likeliest(&runner.logits(&unseen, &mut cache, Predict::Last)[0]);
                cached.push(token);
                unseen = vec![token];
            }
            assert_eq!(cached, theirs, "{name} {prompt} with the cache");

            let mut all = tokens.clone();
            while all.len() < room {
                let mut fresh = runner.model.cache();
                all.push(likeliest(
                    &runner.logits(&all, &mut fresh, Predict::Last)[0],
                ));
            }
            assert_eq!(
                all[tokens.len()..],
                theirs,
                "{name} {prompt} without the cache"
            );
        }
    }
}

#[test]
fn narrower_weights_are_off_by_little() {
    // random weights are about the worst there is for few bits, and of no use at all
    // for 4: see the test of scores
    let tolerances = [
        (Dtype::F16, 5e-3),
        (Dtype::Bf16, 2.5e-2),
        (Dtype::Q8, 0.12),
        (Dtype::W8A16, 0.12),
    ];
    for name in NAMES {
        for (dtype, tolerance) in tolerances {
            let (mut runner, expected) = load(name, dtype);
            for prompt in 0..PROMPTS {
                let tokens = expected.ids(&format!("{prompt}.tokens"));
                let ours = runner.logits(&tokens, &mut runner.model.cache(), Predict::All);
                let difference = difference(&ours, &expected.logits(prompt));
                assert!(
                    difference < tolerance,
                    "{name} {dtype:?} {prompt}: {difference}"
                );
            }
        }
    }
}
