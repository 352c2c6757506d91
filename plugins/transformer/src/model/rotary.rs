//! Cosines and sines of every position's angles.

use crate::config::Rotary;
use crate::kernels::{Level, rotate};

/// One way of turning queries and keys, for every position.
#[derive(Debug)]
pub(super) struct Turns {
    /// Numbers of a position: half of a head's.
    pairs: usize,
    cosines: Vec<f32>,
    sines: Vec<f32>,
}

impl Turns {
    pub(super) fn new(rotary: &Rotary, positions: usize) -> Self {
        let all = (0..positions).flat_map(|position| {
            let angles = rotary.angles.iter();
            // transformers multiplies in 32 bits too
            angles.map(move |angle| f64::from(position as f32 * angle).sin_cos())
        });
        let (sines, cosines) = all
            .map(|(sine, cosine)| (sine as f32, cosine as f32))
            .unzip();
        Self {
            pairs: rotary.angles.len(),
            cosines,
            sines,
        }
    }

    /// Turns one head's numbers as they are at `position`.
    pub(super) fn apply(&self, level: Level, position: usize, head: &mut [f32]) {
        let at = position * self.pairs..(position + 1) * self.pairs;
        rotate(level, head, &self.cosines[at.clone()], &self.sines[at]);
    }
}
