//! The same numbers and the same tokens as transformers' `GPT2LMHeadModel`.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};

use super::fixture;
use crate::checkpoint::{Checkpoint, Loaded};
use crate::model::Cache;

const PROMPTS: usize = 4;
const NEW_TOKENS: usize = 64;

fn load(name: &str) -> (Loaded, HashMap<String, Tensor>) {
    let folder = fixture(name);
    let checkpoint = Checkpoint::read(|file| folder.join(file).into()).unwrap();
    let expected =
        candle_core::safetensors::load(folder.join("expected.safetensors"), &Device::Cpu);
    (checkpoint.load(DType::F32).unwrap(), expected.unwrap())
}

fn ids(tensor: &Tensor) -> Vec<u32> {
    let ids = tensor.to_vec1::<i64>().unwrap();
    ids.into_iter()
        .map(|id| u32::try_from(id).unwrap())
        .collect()
}

fn best(logits: &Tensor) -> u32 {
    logits.argmax(0).unwrap().to_scalar::<u32>().unwrap()
}

/// The largest difference, relative to the largest logit.
fn difference(ours: &Tensor, theirs: &Tensor) -> f32 {
    let largest = |tensor: &Tensor| {
        tensor
            .abs()
            .unwrap()
            .flatten_all()
            .unwrap()
            .max(0)
            .unwrap()
            .to_scalar::<f32>()
            .unwrap()
    };
    largest(&ours.sub(theirs).unwrap()) / largest(theirs)
}

#[test]
fn logits_are_those_of_transformers_at_every_position() {
    for name in ["plain", "odd"] {
        let (Loaded { model, .. }, expected) = load(name);
        for prompt in 0..PROMPTS {
            let tokens = ids(&expected[&format!("{prompt}.tokens")]);
            let theirs = &expected[&format!("{prompt}.logits")];
            let whole = model
                .all_logits(&tokens, &mut Cache::new(model.config(), tokens.len()))
                .unwrap();
            assert!(difference(&whole, theirs) < 1e-4, "{name} {prompt}");
            // the same, a token at a time out of the cache
            let mut cache = Cache::new(model.config(), tokens.len());
            for (position, token) in tokens.iter().enumerate() {
                let ours = model.next_logits(&[*token], &mut cache).unwrap();
                let difference = difference(&ours, &theirs.get(position).unwrap());
                assert!(
                    difference < 1e-4,
                    "{name} {prompt} at {position}: {difference}"
                );
            }
        }
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers_with_the_cache_and_without() {
    for name in ["plain", "odd"] {
        let (Loaded { model, .. }, expected) = load(name);
        for prompt in 0..PROMPTS {
            let tokens = ids(&expected[&format!("{prompt}.tokens")]);
            let theirs = ids(&expected[&format!("{prompt}.greedy")]);
            assert_eq!(theirs.len(), NEW_TOKENS);
            let room = tokens.len() + NEW_TOKENS;

            let (mut cached, mut unseen) = (Vec::new(), tokens.clone());
            let mut cache = Cache::new(model.config(), room);
            while cached.len() < NEW_TOKENS {
                let token = best(&model.next_logits(&unseen, &mut cache).unwrap());
                cached.push(token);
                unseen = vec![token];
            }
            assert_eq!(cached, theirs, "{name} {prompt} with the cache");

            let mut all = tokens.clone();
            while all.len() < room {
                let mut fresh = Cache::new(model.config(), room);
                all.push(best(&model.next_logits(&all, &mut fresh).unwrap()));
            }
            assert_eq!(
                all[tokens.len()..],
                theirs,
                "{name} {prompt} without the cache"
            );
        }
    }
}
