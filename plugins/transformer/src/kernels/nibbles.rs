//! Weights in 4 bits, with a scale and a lowest weight for each group along the
//! inputs: `lowest + scale · nibble`. Inputs are those of the 8-bit products.
//!
//! A sum over a group is the inputs' scale times `scale · Σ nibble · input +
//! lowest · Σ input`, both sums being whole numbers.

use half::f16;

use super::element::{Element, LANES, Lanes};
use super::level::for_each_level;
use super::memory::Plain;
use super::product::Share;
use super::quantized::{Mark, SHORT, ShortGroup};

/// Bytes for each output of a tile hold two nibbles: an input's and that of the
/// input this much further on.
pub(super) const HIGH: usize = SHORT / 2;
/// The largest nibble.
const LARGEST: f32 = 15.0;
/// How much narrower than all weights the range of a group may be, as a part
/// of it at either end: most weights come closer, the outermost are cut off.
const NARROWED: [f32; 4] = [0.0, 0.03, 0.06, 0.09];

/// Weights of 16 outputs over a group of inputs.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Nibbles {
    /// For each four inputs of the group's first half: those of the first output,
    /// then of the next. Of the second half in the upper four bits.
    pub(super) weights: [[u8; 64]; HIGH / 4],
    /// Of each output.
    pub(super) scales: [f16; LANES],
    /// Of each output.
    pub(super) lowest: [f16; LANES],
}

// SAFETY: arrays of numbers
unsafe impl Plain for Nibbles {}

impl Nibbles {
    /// What stands for the weight of output `lane` and input `k`.
    pub(super) fn weight(&self, k: usize, lane: usize) -> f32 {
        let byte = self.weights[k % HIGH / 4][lane * 4 + k % 4];
        let nibble = if k < HIGH { byte & 15 } else { byte >> 4 };
        Element::widen(self.lowest[lane]) + Element::widen(self.scales[lane]) * f32::from(nibble)
    }
}

/// The nibble for a weight, as a number.
#[inline(always)]
fn nearest(weight: f32, lowest: f32, step: f32) -> f32 {
    ((weight - lowest) * step + 0.5)
        .clamp(0.0, LARGEST + 0.5)
        .floor()
}

/// One over each number, and 0 for 0.
#[inline(always)]
fn steps(scales: &Lanes) -> Lanes {
    let mut steps = Lanes::default();
    for lane in 0..LANES {
        steps[lane] = if scales[lane] > 0.0 {
            1.0 / scales[lane]
        } else {
            0.0
        };
    }
    steps
}

for_each_level! {
    /// Fills a tile, of weights `[input][output]`: the best of a few ranges, moved to the least squares of what
    /// its nibbles leave over.
    pub(super) fn pack(weights: &[Lanes; SHORT], tile: &mut Nibbles) {
        let (mut low, mut high) = (weights[0], weights[0]);
        for k in 1..SHORT {
            for lane in 0..LANES {
                low[lane] = low[lane].min(weights[k][lane]);
                high[lane] = high[lane].max(weights[k][lane]);
            }
        }
        let (mut lowest, mut scales) = (low, Lanes::default());
        let mut least = [f32::INFINITY; LANES];
        for part in NARROWED {
            let (mut from, mut scale) = (low, Lanes::default());
            for lane in 0..LANES {
                let range = high[lane] - low[lane];
                from[lane] = low[lane] + range * part;
                scale[lane] = range * (1.0 - 2.0 * part) / LARGEST;
            }
            let step = steps(&scale);
            let mut off = Lanes::default();
            for k in 0..SHORT {
                for lane in 0..LANES {
                    let nibble = nearest(weights[k][lane], from[lane], step[lane]);
                    let left = from[lane] + scale[lane] * nibble - weights[k][lane];
                    off[lane] += left * left;
                }
            }
            for lane in 0..LANES {
                let is_better = off[lane] < least[lane];
                least[lane] = if is_better { off[lane] } else { least[lane] };
                lowest[lane] = if is_better { from[lane] } else { lowest[lane] };
                scales[lane] = if is_better { scale[lane] } else { scales[lane] };
            }
        }
        // least squares of a line through (nibble, weight)
        let step = steps(&scales);
        let (mut q, mut qq) = (Lanes::default(), Lanes::default());
        let (mut w, mut qw) = (Lanes::default(), Lanes::default());
        for k in 0..SHORT {
            for lane in 0..LANES {
                let nibble = nearest(weights[k][lane], lowest[lane], step[lane]);
                q[lane] += nibble;
                qq[lane] += nibble * nibble;
                w[lane] += weights[k][lane];
                qw[lane] += nibble * weights[k][lane];
            }
        }
        for lane in 0..LANES {
            let n = SHORT as f32;
            let spread = n * qq[lane] - q[lane] * q[lane];
            let slope = (n * qw[lane] - q[lane] * w[lane]) / spread;
            // all weights alike have no line through them
            if spread > 0.0 && slope > 0.0 {
                scales[lane] = slope;
                lowest[lane] = (w[lane] - slope * q[lane]) / n;
            }
        }
        // nibbles go by what is held
        for lane in 0..LANES {
            tile.scales[lane] = Element::narrow(scales[lane]);
            tile.lowest[lane] = Element::narrow(lowest[lane]);
            scales[lane] = Element::widen(tile.scales[lane]);
            lowest[lane] = Element::widen(tile.lowest[lane]);
        }
        let step = steps(&scales);
        for k in 0..HIGH {
            for lane in 0..LANES {
                let low = nearest(weights[k][lane], lowest[lane], step[lane]) as u8;
                let high = nearest(weights[k + HIGH][lane], lowest[lane], step[lane]) as u8;
                tile.weights[k / 4][lane * 4 + k % 4] = low | high << 4;
            }
        }
    }
}

/// See `product`; the portable form.
#[inline(always)]
pub(super) fn block<const T: usize, const R: usize>(
    weights: [&[Nibbles]; T],
    inputs: [&[ShortGroup]; R],
    marks: [&[Mark]; R],
    _: Share,
) -> [[Lanes; R]; T] {
    let mut sums = [[Lanes::default(); R]; T];
    for g in 0..inputs[0].len() {
        for t in 0..T {
            for r in 0..R {
                let (tile, group, mark) = (&weights[t][g], &inputs[r][g].0, &marks[r][g]);
                let mut whole = [0_i32; LANES];
                for quad in 0..HIGH / 4 {
                    let low = group[quad].to_le_bytes();
                    let high = group[quad + HIGH / 4].to_le_bytes();
                    for (whole, bytes) in
                        whole.iter_mut().zip(tile.weights[quad].as_chunks::<4>().0)
                    {
                        for k in 0..4 {
                            *whole += i32::from(bytes[k] & 15) * i32::from(low[k].cast_signed())
                                + i32::from(bytes[k] >> 4) * i32::from(high[k].cast_signed());
                        }
                    }
                }
                for lane in 0..LANES {
                    let moved = Element::widen(tile.lowest[lane]) * mark.sum;
                    let scale = Element::widen(tile.scales[lane]);
                    let sum = scale.mul_add(whole[lane] as f32, moved);
                    sums[t][r][lane] = sum.mul_add(mark.scale, sums[t][r][lane]);
                }
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;
    use crate::kernels::tests::Random;

    fn packed(level: Level, weights: &[Lanes; SHORT]) -> Nibbles {
        let mut tile = Nibbles {
            weights: [[0; 64]; HIGH / 4],
            scales: [f16::ZERO; LANES],
            lowest: [f16::ZERO; LANES],
        };
        pack(level, weights, &mut tile);
        tile
    }

    #[test]
    fn a_weight_is_off_by_little_more_than_half_a_step_unless_it_is_cut_off() {
        let mut random = Random(8);
        for _ in 0..20 {
            let weights: [Lanes; SHORT] =
                std::array::from_fn(|_| random.row(LANES).try_into().unwrap());
            let tile = packed(Level::best(), &weights);
            for lane in 0..LANES {
                // 16 even steps over -1 to 1: the error of a uniform number
                let squares = (0..SHORT).map(|k| (tile.weight(k, lane) - weights[k][lane]).powi(2));
                let off = (squares.sum::<f32>() / SHORT as f32).sqrt();
                let even = 2.0 / 15.0 / 12_f32.sqrt();
                assert!(off < even * 1.1, "{off} {even}");
            }
        }
    }

    #[test]
    fn weights_that_are_alike_are_kept() {
        for weight in [0.0, 0.25, -3.0] {
            let tile = packed(Level::best(), &[[weight; LANES]; SHORT]);
            for k in 0..SHORT {
                assert_eq!(tile.weight(k, k % LANES), weight);
            }
        }
    }

    #[test]
    fn every_level_packs_the_same() {
        let mut random = Random(5);
        let weights: [Lanes; SHORT] =
            std::array::from_fn(|_| random.row(LANES).try_into().unwrap());
        let best = packed(Level::best(), &weights);
        for &level in Level::all() {
            let tile = packed(level, &weights);
            assert_eq!(tile.weights, best.weights, "{level:?}");
            assert_eq!(tile.scales, best.scales, "{level:?}");
        }
    }
}
