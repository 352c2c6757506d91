//! Numbers in 8 bits with a scale for each group along the inputs.
//!
//! A weight is `scale · (byte - 128)`, an input `scale · byte`; the bytes are
//! in ±127 around their zero. Weights have their zero at 128 because the
//! processors' dot product wants one side without a sign. What that adds to a
//! sum is 128 times the sum of the inputs, taken away by the group's correction.

use super::element::{LANES, Lanes};
use super::level::for_each_level;

/// The largest input in 16 bits: its two bytes are in ±127 and -128 to 127.
const LARGEST_WIDE: f32 = 32_512.0;

/// Inputs that share a scale.
pub(crate) const GROUP: usize = 64;
/// The byte that stands for a weight of 0.
const ZERO: u8 = 128;
/// The largest byte, counted from the zero.
const LARGEST: f32 = 127.0;

/// Weights of 16 outputs over a group of inputs.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Tile {
    /// For each four inputs: those of the first output, then of the next.
    pub(super) weights: [[u8; 64]; GROUP / 4],
    /// Of each output.
    pub(super) scales: Lanes,
}

/// A group of inputs of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Group {
    /// Four signed bytes in each, the first one lowest.
    pub(super) values: [i32; GROUP / 4],
    /// -128 times the sum of the bytes.
    pub(super) correction: i32,
    pub(super) scale: f32,
}

/// A group of inputs of one row in 16 bits: `scale · (256 · high + low)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Wide {
    /// Four signed bytes in each, the first one lowest.
    pub(super) high: [i32; GROUP / 4],
    /// The same inputs' lower bytes, signed as well.
    pub(super) low: [i32; GROUP / 4],
    /// -128 times the sum of the inputs.
    pub(super) correction: i32,
    pub(super) scale: f32,
}

impl Group {
    /// The sum of the bytes.
    #[inline(always)]
    pub(super) fn sum(&self) -> f32 {
        // a power of two: exact
        self.correction as f32 * (-1.0 / 128.0)
    }
}

impl Tile {
    /// Of weights `[input][output]`.
    pub(super) fn quantize(weights: &[Lanes; GROUP]) -> Self {
        let mut largest = Lanes::default();
        for weights in weights {
            for (largest, weight) in largest.iter_mut().zip(weights) {
                *largest = largest.max(weight.abs());
            }
        }
        let scales = largest.map(|largest| largest / LARGEST);
        let steps = largest.map(|largest| {
            if largest > 0.0 {
                LARGEST / largest
            } else {
                0.0
            }
        });
        let mut tile = Self {
            weights: [[ZERO; 64]; GROUP / 4],
            scales,
        };
        for (k, weights) in weights.iter().enumerate() {
            for lane in 0..LANES {
                let byte = nearest(weights[lane] * steps[lane]) + i32::from(ZERO);
                tile.weights[k / 4][lane * 4 + k % 4] = byte as u8;
            }
        }
        tile
    }

    /// What stands for the weight of output `lane` and input `k`.
    pub(super) fn weight(&self, k: usize, lane: usize) -> f32 {
        let byte = self.weights[k / 4][lane * 4 + k % 4];
        self.scales[lane] * f32::from(i16::from(byte) - i16::from(ZERO))
    }
}

/// The nearest whole number, for numbers of at most 2²²; ties go to the even one.
#[inline(always)]
fn nearest(value: f32) -> i32 {
    /// Adding it leaves a whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let bits = (value + ROUND).to_bits().wrapping_sub(ROUND.to_bits());
    bits.cast_signed()
}

/// The largest of a group's numbers, signs aside.
#[inline(always)]
fn largest_of(values: &[f32; GROUP]) -> f32 {
    let mut largest = Lanes::default();
    for k in 0..GROUP {
        largest[k % LANES] = largest[k % LANES].max(values[k].abs());
    }
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            largest[lane] = largest[lane].max(largest[lane + half]);
        }
        half /= 2;
    }
    largest[0]
}

/// Bytes in fours, the first one lowest.
#[inline(always)]
fn quads(bytes: &[u8; GROUP], quads: &mut [i32; GROUP / 4]) {
    for quad in 0..GROUP / 4 {
        let at = quad * 4;
        quads[quad] = i32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    }
}

for_each_level! {
    /// Quantizes a row in 16 bits; the last group is filled up with zeros.
    pub(crate) fn quantize_wide(row: &[f32], groups: &mut [Wide]) {
        for g in 0..groups.len() {
            let chunk = &row[g * GROUP..row.len().min((g + 1) * GROUP)];
            let mut values = [0.0; GROUP];
            values[..chunk.len()].copy_from_slice(chunk);
            let largest = largest_of(&values);
            let step = if largest > 0.0 { LARGEST_WIDE / largest } else { 0.0 };
            let (mut high, mut low) = ([0_u8; GROUP], [0_u8; GROUP]);
            let mut sum = 0;
            for k in 0..GROUP {
                let whole = nearest(values[k] * step);
                sum += whole;
                high[k] = ((whole + 128) >> 8) as u8;
                low[k] = whole as u8;
            }
            let group = &mut groups[g];
            group.correction = sum * -i32::from(ZERO);
            group.scale = largest / LARGEST_WIDE;
            quads(&high, &mut group.high);
            quads(&low, &mut group.low);
        }
    }
}

for_each_level! {
    /// Quantizes a row; the last group is filled up with zeros.
    pub(crate) fn quantize(row: &[f32], groups: &mut [Group]) {
        for g in 0..groups.len() {
            let chunk = &row[g * GROUP..row.len().min((g + 1) * GROUP)];
            let mut values = [0.0; GROUP];
            values[..chunk.len()].copy_from_slice(chunk);
            let largest = largest_of(&values);
            let step = if largest > 0.0 { LARGEST / largest } else { 0.0 };
            let mut bytes = [0_u8; GROUP];
            let mut sum = 0;
            for k in 0..GROUP {
                let whole = nearest(values[k] * step);
                sum += whole;
                bytes[k] = whole as u8;
            }
            let group = &mut groups[g];
            group.correction = sum * -i32::from(ZERO);
            group.scale = largest / LARGEST;
            quads(&bytes, &mut group.values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;
    use crate::kernels::tests::Random;

    #[test]
    fn a_number_is_off_by_half_a_step_at_most() {
        let mut random = Random(3);
        for len in [1, 63, 64, 65, 200] {
            let row = random.row(len);
            let mut groups = vec![Group::default(); len.div_ceil(GROUP)];
            for &level in Level::all() {
                quantize(level, &row, &mut groups);
                for (k, value) in row.iter().enumerate() {
                    let group = &groups[k / GROUP];
                    let bytes = group.values[k % GROUP / 4].to_le_bytes();
                    let ours = f32::from(bytes[k % 4].cast_signed()) * group.scale;
                    assert!((ours - value).abs() <= group.scale * 0.501, "{level:?} {k}");
                }
            }
        }
        let weights: [Lanes; GROUP] =
            std::array::from_fn(|_| random.row(LANES).try_into().unwrap());
        let tile = Tile::quantize(&weights);
        for (k, weights) in weights.iter().enumerate() {
            for (lane, weight) in weights.iter().enumerate() {
                let off = (tile.weight(k, lane) - weight).abs();
                assert!(off <= tile.scales[lane] * 0.501, "{k} {lane}");
            }
        }
    }

    #[test]
    fn an_input_in_16_bits_is_off_by_half_a_step_at_most() {
        let mut random = Random(6);
        for len in [1, 64, 100] {
            let row = random.row(len);
            let mut groups = vec![Wide::default(); len.div_ceil(GROUP)];
            for &level in Level::all() {
                quantize_wide(level, &row, &mut groups);
                for (k, value) in row.iter().enumerate() {
                    let group = &groups[k / GROUP];
                    let byte = |quads: &[i32]| {
                        let bytes = quads[k % GROUP / 4].to_le_bytes();
                        f32::from(bytes[k % 4].cast_signed())
                    };
                    let ours = (256.0 * byte(&group.high) + byte(&group.low)) * group.scale;
                    assert!((ours - value).abs() <= group.scale * 0.51, "{level:?} {k}");
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_extremes_are_kept() {
        let mut groups = [Group {
            scale: 1.0,
            ..Group::default()
        }];
        quantize(Level::best(), &[0.0; 5], &mut groups);
        assert_eq!(groups, [Group::default()]);
        quantize(Level::best(), &[-3.0, 3.0], &mut groups);
        assert_eq!(groups[0].values[0].to_le_bytes(), [129, 127, 0, 0]);
        assert_eq!(groups[0].correction, 0);
    }
}
