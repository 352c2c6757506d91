//! Numbers in 8 bits with a scale for each group along the inputs.
//!
//! A weight or an input is `scale · byte`, the byte in ±127. Where a processor's
//! dot product wants one side without a sign, that side has its zero at 128;
//! what this adds to a product is 128 times the sum of the inputs.

use super::element::{LANES, Lanes};
use super::level::{Level, Tier, for_each_level};
use super::memory::Plain;

/// The largest input in 16 bits: its two bytes are in ±127 and -128 to 127.
const LARGEST_WIDE: f32 = 32_512.0;

/// Inputs that share a scale.
pub(crate) const GROUP: usize = 128;
/// Inputs that share a scale where weights are in 4 bits.
pub(super) const SHORT: usize = 64;
/// The largest byte.
const LARGEST: f32 = 127.0;

/// Weights of 16 outputs over a group of inputs.
#[derive(Clone, Debug)]
#[repr(C, align(64))]
pub(crate) struct Tile {
    /// For each four inputs: those of the first output, then of the next.
    pub(super) weights: [[i8; 64]; GROUP / 4],
    /// Of each output.
    pub(super) scales: Lanes,
}

/// A group of inputs of one row: four signed bytes in each number, the first
/// one lowest.
#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Group<const QUADS: usize = { GROUP / 4 }>(pub(super) [i32; QUADS]);

/// A group of inputs for weights in 4 bits.
pub(crate) type ShortGroup = Group<{ SHORT / 4 }>;

/// A group of inputs of one row in 16 bits, for the kernels of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C, align(64))]
pub(crate) struct Wide {
    /// The inputs' upper bytes, as in [`Group`]: an input is `256 · high + low`. For
    /// AVX2, which multiplies 16 bits as they are, the first and the third of each four.
    pub(super) high: [i32; GROUP / 4],
    /// The lower bytes, signed as well. For AVX2 the second and the fourth.
    pub(super) low: [i32; GROUP / 4],
}

/// What goes with a group of inputs. It lies apart from them, so that their
/// bytes fill whole lines of the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Mark {
    /// The sum of the inputs, a whole number.
    pub(super) sum: f32,
    /// What takes away again what weights with their zero at 128 add.
    pub(super) offset: i32,
    pub(super) scale: f32,
}

impl<const QUADS: usize> Default for Group<QUADS> {
    fn default() -> Self {
        Self([0; QUADS])
    }
}

impl Mark {
    #[inline(always)]
    fn new(sum: i32, scale: f32) -> Self {
        Self {
            sum: sum as f32,
            offset: -128 * sum,
            scale,
        }
    }
}

// SAFETY: arrays of numbers
unsafe impl Plain for Tile {}

impl Tile {
    /// What stands for the weight of output `lane` and input `k`.
    pub(super) fn weight(&self, k: usize, lane: usize) -> f32 {
        let byte = self.weights[k / 4][lane * 4 + k % 4];
        self.scales[lane] * f32::from(byte)
    }
}

for_each_level! {
    /// Fills a tile, of weights `[input][output]`.
    pub(super) fn quantize_tile(weights: &[Lanes; GROUP], tile: &mut Tile) {
        let mut largest = Lanes::default();
        for k in 0..GROUP {
            for lane in 0..LANES {
                largest[lane] = largest[lane].max(weights[k][lane].abs());
            }
        }
        let mut steps = Lanes::default();
        for lane in 0..LANES {
            tile.scales[lane] = largest[lane] / LARGEST;
            steps[lane] = if largest[lane] > 0.0 {
                LARGEST / largest[lane]
            } else {
                0.0
            };
        }
        let (fours, _) = weights.as_chunks::<4>();
        for quad in 0..GROUP / 4 {
            // the first input's byte is the lowest one
            let mut bytes = [0; LANES];
            for k in 0..4 {
                for lane in 0..LANES {
                    let byte = nearest(fours[quad][k][lane] * steps[lane]) & 0xFF;
                    bytes[lane] |= byte << (8 * k);
                }
            }
            let (to, _) = tile.weights[quad].as_chunks_mut::<4>();
            for lane in 0..LANES {
                let [a, b, c, d] = bytes[lane].to_le_bytes();
                to[lane] = [a as i8, b as i8, c as i8, d as i8];
            }
        }
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
fn largest_of<const N: usize>(values: &[f32; N]) -> f32 {
    // without their signs numbers are in the order of their bits, and whole
    // numbers become vector code
    let mut largest = 0;
    for k in 0..N {
        largest = largest.max(values[k].to_bits() & 0x7FFF_FFFF);
    }
    f32::from_bits(largest)
}

/// Calls `$quantize` with each group of a row, where it lies, and what it is to fill; what
/// the row ends with is filled up with zeros.
macro_rules! each_group {
    ($quantize:ident, $len:expr, $row:expr, $groups:expr, $marks:expr) => {{
        let (whole, rest) = $row.as_chunks::<{ $len }>();
        for g in 0..whole.len() {
            $quantize(&whole[g], &mut $groups[g], &mut $marks[g]);
        }
        if !rest.is_empty() {
            let (mut last, g) = ([0.0; $len], whole.len());
            last[..rest.len()].copy_from_slice(rest);
            $quantize(&last, &mut $groups[g], &mut $marks[g]);
        }
    }};
}

/// Bytes in fours, the first one lowest.
#[inline(always)]
fn quads<const QUADS: usize>(bytes: &[u8], quads: &mut [i32; QUADS]) {
    let (fours, _) = bytes.as_chunks();
    for quad in 0..QUADS {
        quads[quad] = i32::from_le_bytes(fours[quad]);
    }
}

/// Quantizes a row in 16 bits; the last group is filled up with zeros.
pub(crate) fn quantize_wide(level: Level, row: &[f32], groups: &mut [Wide], marks: &mut [Mark]) {
    match level.tier() {
        #[cfg(target_arch = "x86_64")]
        Tier::Avx2 => quantize_pairs(level, row, groups, marks),
        _ => quantize_bytes(level, row, groups, marks),
    }
}

/// A group's numbers in 16 bits.
#[inline(always)]
fn wide_of(values: &[f32; GROUP], mark: &mut Mark) -> [i32; GROUP] {
    let largest = largest_of(values);
    let step = if largest > 0.0 {
        LARGEST_WIDE / largest
    } else {
        0.0
    };
    let mut wide = [0; GROUP];
    let mut sum = 0;
    for k in 0..GROUP {
        wide[k] = nearest(values[k] * step);
        sum += wide[k];
    }
    *mark = Mark::new(sum, largest / LARGEST_WIDE);
    wide
}

#[inline(always)]
fn in_bytes(values: &[f32; GROUP], group: &mut Wide, mark: &mut Mark) {
    let wide = wide_of(values, mark);
    let (mut high, mut low) = ([0_u8; GROUP], [0_u8; GROUP]);
    for k in 0..GROUP {
        high[k] = ((wide[k] + 128) >> 8) as u8;
        low[k] = wide[k] as u8;
    }
    quads(&high, &mut group.high);
    quads(&low, &mut group.low);
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn in_pairs(values: &[f32; GROUP], group: &mut Wide, mark: &mut Mark) {
    let wide = wide_of(values, mark);
    for quad in 0..GROUP / 4 {
        let k = quad * 4;
        group.high[quad] = wide[k] & 0xFFFF | wide[k + 2] << 16;
        group.low[quad] = wide[k + 1] & 0xFFFF | wide[k + 3] << 16;
    }
}

#[inline(always)]
fn in_8_bits<const N: usize, const QUADS: usize>(
    values: &[f32; N],
    group: &mut Group<QUADS>,
    mark: &mut Mark,
) {
    let largest = largest_of(values);
    let step = if largest > 0.0 {
        LARGEST / largest
    } else {
        0.0
    };
    let mut bytes = [0_u8; N];
    let mut sum = 0;
    for k in 0..N {
        let whole = nearest(values[k] * step);
        sum += whole;
        bytes[k] = whole as u8;
    }
    *mark = Mark::new(sum, largest / LARGEST);
    quads(&bytes, &mut group.0);
}

for_each_level! {
    fn quantize_bytes(row: &[f32], groups: &mut [Wide], marks: &mut [Mark]) {
        each_group!(in_bytes, GROUP, row, groups, marks);
    }
}

#[cfg(target_arch = "x86_64")]
for_each_level! {
    fn quantize_pairs(row: &[f32], groups: &mut [Wide], marks: &mut [Mark]) {
        each_group!(in_pairs, GROUP, row, groups, marks);
    }
}

for_each_level! {
    /// Quantizes a row; the last group is filled up with zeros.
    pub(crate) fn quantize(row: &[f32], groups: &mut [Group], marks: &mut [Mark]) {
        each_group!(in_8_bits, GROUP, row, groups, marks);
    }
}

for_each_level! {
    /// As [`quantize`], for weights in 4 bits.
    pub(crate) fn quantize_short(row: &[f32], groups: &mut [ShortGroup], marks: &mut [Mark]) {
        each_group!(in_8_bits, SHORT, row, groups, marks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::Random;

    impl Wide {
        fn input(&self, level: Level, k: usize) -> f32 {
            let (high, low) = (self.high[k / 4], self.low[k / 4]);
            let byte = |quad: i32| f32::from(quad.to_le_bytes()[k % 4].cast_signed());
            match level.tier() {
                #[cfg(target_arch = "x86_64")]
                Tier::Avx2 => f32::from(([high, low][k % 2] >> (k % 4 / 2 * 16)) as i16),
                _ => 256.0 * byte(high) + byte(low),
            }
        }
    }

    #[test]
    fn a_number_is_off_by_half_a_step_at_most() {
        let mut random = Random(3);
        for len in [1, 63, 64, 65, 200] {
            let row = random.row(len);
            let mut groups = vec![Group::default(); len.div_ceil(GROUP)];
            let mut marks = vec![Mark::default(); len.div_ceil(GROUP)];
            for &level in Level::all() {
                quantize(level, &row, &mut groups, &mut marks);
                for (k, value) in row.iter().enumerate() {
                    let bytes = groups[k / GROUP].0[k % GROUP / 4].to_le_bytes();
                    let scale = marks[k / GROUP].scale;
                    let ours = f32::from(bytes[k % 4].cast_signed()) * scale;
                    assert!((ours - value).abs() <= scale * 0.501, "{level:?} {k}");
                }
            }
        }
        let weights: [Lanes; GROUP] =
            std::array::from_fn(|_| random.row(LANES).try_into().unwrap());
        let mut tiles: Vec<Tile> = Vec::new();
        for &level in Level::all() {
            let mut tile = Tile {
                weights: [[0; 64]; GROUP / 4],
                scales: Lanes::default(),
            };
            quantize_tile(level, &weights, &mut tile);
            tiles.push(tile);
        }
        let tile = &tiles[0];
        for other in &tiles {
            assert_eq!((other.weights, other.scales), (tile.weights, tile.scales));
        }
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
            let mut marks = vec![Mark::default(); len.div_ceil(GROUP)];
            for &level in Level::all() {
                quantize_wide(level, &row, &mut groups, &mut marks);
                for (k, value) in row.iter().enumerate() {
                    let (group, scale) = (&groups[k / GROUP], marks[k / GROUP].scale);
                    let ours = group.input(level, k % GROUP) * scale;
                    assert!((ours - value).abs() <= scale * 0.51, "{level:?} {k}");
                }
            }
        }
    }

    #[test]
    fn zeros_stay_zeros_and_extremes_are_kept() {
        let (mut groups, mut marks) = ([Group([1; GROUP / 4])], [Mark::default()]);
        marks[0].scale = 1.0;
        quantize(Level::best(), &[0.0; 5], &mut groups, &mut marks);
        assert_eq!((groups[0], marks[0]), Default::default());
        quantize(Level::best(), &[-3.0, 3.0], &mut groups, &mut marks);
        assert_eq!(groups[0].0[0].to_le_bytes(), [129, 127, 0, 0]);
        assert_eq!(marks[0].sum, 0.0);
    }
}
