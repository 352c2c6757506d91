//! The product of a few rows with some tiles of a matrix.
//!
//! A tile is the weights of 16 outputs, side by side. A kernel keeps the sums
//! of a block of rows and tiles in registers. Each sum runs along the inputs
//! in their order, whatever the block, so a row's result depends on no other.

use super::element::{Element, LANES, Lanes};
use super::level::{Level, Tier};
use super::nibbles::{Nibbles, block as nibbles_block};
use super::quantized::{GROUP, Group, Mark, ShortGroup, Tile, Wide};
#[cfg(target_arch = "x86_64")]
use super::{amx, avx2, avx512};

/// From so many rows on AMX is faster than AVX-512.
#[cfg(target_arch = "x86_64")]
const AMX_ROWS: usize = 4;

/// Rows of `X` times tiles of `W`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product<'a, W, X> {
    /// Tile after tile, each of `depth` entries.
    pub(super) weights: &'a [W],
    /// Entries of a tile, and of a row.
    pub(super) depth: usize,
    /// Row after row.
    pub(super) rows: &'a [X],
    /// What goes with `rows`, if anything does.
    pub(super) marks: &'a [Mark],
    /// What it is added to.
    pub(super) base: Base<'a>,
}

/// What a product is added to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Base<'a> {
    /// By tile; where there is none it is 0.
    pub(crate) bias: &'a [Lanes],
    /// Whether what the output was before counts too.
    pub(crate) is_sum: bool,
}

/// So many tiles' weights, so many rows' inputs, and their marks.
pub(super) type Block<'a, W, X, const T: usize, const R: usize> =
    ([&'a [W]; T], [&'a [X]; R], [&'a [Mark]; R]);

/// The rows that a block has, and how many there are: while those are multiplied, it
/// fetches as much of what comes next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) of: usize,
}

/// A block of a product: its first tile and how many, its first row and how many.
pub(super) type Shape = ((usize, usize), (usize, usize));

impl<'a, W, X> Product<'a, W, X> {
    pub(super) fn row_count(&self) -> usize {
        self.rows.len() / self.depth
    }

    #[inline(always)]
    pub(super) fn tile(&self, tile: usize) -> &'a [W] {
        &self.weights[tile * self.depth..][..self.depth]
    }

    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [X] {
        &self.rows[row * self.depth..][..self.depth]
    }

    #[inline(always)]
    pub(super) fn marks(&self, row: usize) -> &'a [Mark] {
        let marks = self.marks.get(row * self.depth..(row + 1) * self.depth);
        marks.unwrap_or_default()
    }

    /// So many tiles and rows from these on, and the rows' marks.
    #[inline(always)]
    pub(super) fn block<const T: usize, const R: usize>(
        &self,
        tile: usize,
        row: usize,
    ) -> Block<'a, W, X, T, R> {
        let mut weights = [self.tile(tile); T];
        for t in 1..T {
            weights[t] = self.tile(tile + t);
        }
        let (mut inputs, mut marks) = ([self.row(row); R], [self.marks(row); R]);
        for r in 1..R {
            (inputs[r], marks[r]) = (self.row(row + r), self.marks(row + r));
        }
        (weights, inputs, marks)
    }

    /// The blocks that make up the whole: of 4 tiles and 1 row where there is
    /// but one, otherwise of at most `tiles` tiles and 6, 4, 2 or 1 rows.
    pub(super) fn blocks(&self, tiles: usize) -> impl Iterator<Item = Shape> + use<W, X> {
        let all_tiles = self.weights.len() / self.depth;
        let all_rows = self.row_count();
        let widest = if all_rows == 1 { tiles * 2 } else { tiles };
        cut(all_tiles, move |left| match left {
            _ if left >= widest => widest,
            _ => 1,
        })
        .flat_map(move |tile| {
            let rows = cut(all_rows, |left| match left {
                8 => 4,
                6.. => 6,
                4.. => 4,
                2.. => 2,
                _ => 1,
            });
            rows.map(move |row| (tile, row))
        })
    }
}

/// Starts and lengths of the pieces of `all`; `take` says how long the next is.
fn cut(all: usize, take: impl Fn(usize) -> usize) -> impl Iterator<Item = (usize, usize)> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let len = (start < all).then(|| take(all - start))?;
        start += len;
        Some((start - len, len))
    })
}

/// Calls `$block::<TILES, ROWS>` for each block of `$product`.
macro_rules! in_blocks {
    ($product:expr, $out:expr, $tiles:expr, $block:ident) => {{
        let product = $product;
        let out: &mut [$crate::kernels::Lanes] = $out;
        let rows = product.row_count();
        for ((tile, tiles), (row, len)) in product.blocks($tiles) {
            macro_rules! block {
                ($t:literal, $r:literal) => {{
                    let (weights, inputs, marks) = product.block::<$t, $r>(tile, row);
                    let share = $crate::kernels::product::Share {
                        from: row,
                        to: row + len,
                        of: rows,
                    };
                    let sums: [[_; $r]; $t] = $block(weights, inputs, marks, share);
                    for (t, sums) in sums.iter().enumerate() {
                        let base = product.base.of(tile + t);
                        for (r, &sums) in sums.iter().enumerate() {
                            add(&mut out[(tile + t) * rows + row + r], base, sums);
                        }
                    }
                }};
            }
            match (tiles, len) {
                (4, _) => block!(4, 1),
                (2, 6) => block!(2, 6),
                (2, 4) => block!(2, 4),
                (2, 2) => block!(2, 2),
                (2, _) => block!(2, 1),
                (_, 6) => block!(1, 6),
                (_, 4) => block!(1, 4),
                (_, 2) => block!(1, 2),
                _ => block!(1, 1),
            }
        }
    }};
}
pub(super) use in_blocks;

impl<E: Element> Product<'_, [E; 16], f32> {
    /// Sets `out`, which holds all rows of the first tile, then of the next, to the
    /// product added to its base.
    pub(super) fn add_to(self, level: Level, out: &mut [Lanes]) {
        match level.tier() {
            Tier::Portable => in_blocks!(self, out, 1, dense),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level exists only where these instructions do
            Tier::Avx2 => unsafe { avx2::dense(self, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above
            Tier::Avx512 | Tier::Amx => unsafe { avx512::dense(self, out) },
        }
    }
}

impl Product<'_, Tile, Group> {
    /// As for the others. All levels give the same bits: sums within a group
    /// are whole numbers, and those of groups are added in one order.
    pub(super) fn add_to(self, level: Level, out: &mut [Lanes]) {
        match level.tier() {
            Tier::Portable => in_blocks!(self, out, 1, quantized),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level exists only where these instructions do
            Tier::Avx2 => unsafe { avx2::quantized(self, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above
            Tier::Amx if self.row_count() >= AMX_ROWS => unsafe { amx::quantized(self, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above
            Tier::Avx512 | Tier::Amx => unsafe { avx512::quantized(self, out) },
        }
    }
}

impl Product<'_, Tile, Wide> {
    /// As for the other 8 bits, to the bit.
    pub(super) fn add_to(self, level: Level, out: &mut [Lanes]) {
        match level.tier() {
            Tier::Portable => in_blocks!(self, out, 1, wide),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level exists only where these instructions do
            Tier::Avx2 => unsafe { avx2::wide(self, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above
            Tier::Amx if self.row_count() >= AMX_ROWS => unsafe { amx::wide(self, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above
            Tier::Avx512 | Tier::Amx => unsafe { avx512::wide(self, out) },
        }
    }
}

impl Product<'_, Nibbles, ShortGroup> {
    /// As for 8 bits, to the bit.
    pub(super) fn add_to(self, level: Level, out: &mut [Lanes]) {
        match level.tier() {
            Tier::Portable => in_blocks!(self, out, 1, nibbles_block),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the level exists only where these instructions do
            Tier::Avx2 => unsafe { avx2::nibbles(self, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above
            Tier::Amx if self.row_count() >= AMX_ROWS => unsafe { amx::nibbles(self, out) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above
            Tier::Avx512 | Tier::Amx => unsafe { avx512::nibbles(self, out) },
        }
    }
}

/// Cuts all to a length, which the compiler then sees they have. No closures: those
/// would have vector instructions, and what calls them has not, so nothing would be
/// inlined.
#[inline(always)]
pub(super) fn alike<T, const N: usize>(slices: &mut [&[T]; N], len: usize) {
    for n in 0..N {
        slices[n] = &slices[n][..len];
    }
}

impl Base<'_> {
    /// Of a tile the bias, and whether what is there counts.
    #[inline(always)]
    pub(super) fn of(&self, tile: usize) -> (&Lanes, bool) {
        const NONE: &Lanes = &[0.0; LANES];
        (self.bias.get(tile).unwrap_or(NONE), self.is_sum)
    }
}

#[inline(always)]
fn add(out: &mut Lanes, (bias, is_sum): (&Lanes, bool), sums: Lanes) {
    for lane in 0..LANES {
        let base = if is_sum {
            out[lane] + bias[lane]
        } else {
            bias[lane]
        };
        out[lane] = base + sums[lane];
    }
}

#[inline(always)]
fn dense<E: Element, const T: usize, const R: usize>(
    weights: [&[[E; 16]]; T],
    inputs: [&[f32]; R],
    _: [&[Mark]; R],
    _: Share,
) -> [[Lanes; R]; T] {
    let mut sums = [[Lanes::default(); R]; T];
    for k in 0..inputs[0].len() {
        for t in 0..T {
            for r in 0..R {
                for (sum, weight) in sums[t][r].iter_mut().zip(weights[t][k]) {
                    *sum += inputs[r][k] * weight.widen();
                }
            }
        }
    }
    sums
}

/// Four weights times four inputs.
#[inline(always)]
fn dot(weights: [i8; 4], inputs: i32) -> i32 {
    let inputs = inputs.to_le_bytes();
    let mut sum = 0;
    for k in 0..4 {
        sum += i32::from(weights[k]) * i32::from(inputs[k].cast_signed());
    }
    sum
}

#[inline(always)]
fn quantized<const T: usize, const R: usize>(
    weights: [&[Tile]; T],
    inputs: [&[Group]; R],
    marks: [&[Mark]; R],
    _: Share,
) -> [[Lanes; R]; T] {
    let mut sums = [[Lanes::default(); R]; T];
    for g in 0..inputs[0].len() {
        for t in 0..T {
            for r in 0..R {
                let (tile, group) = (&weights[t][g], &inputs[r][g]);
                let mut whole = [0; 16];
                for quad in 0..GROUP / 4 {
                    for (sum, weights) in whole.iter_mut().zip(tile.weights[quad].as_chunks().0) {
                        *sum += dot(*weights, group.0[quad]);
                    }
                }
                add_scaled(&mut sums[t][r], &whole, &tile.scales, marks[r][g].scale);
            }
        }
    }
    sums
}

#[inline(always)]
fn wide<const T: usize, const R: usize>(
    weights: [&[Tile]; T],
    inputs: [&[Wide]; R],
    marks: [&[Mark]; R],
    _: Share,
) -> [[Lanes; R]; T] {
    let mut sums = [[Lanes::default(); R]; T];
    for g in 0..inputs[0].len() {
        for t in 0..T {
            for r in 0..R {
                let (tile, group) = (&weights[t][g], &inputs[r][g]);
                let mut whole = [0; 16];
                for quad in 0..GROUP / 4 {
                    for (sum, weights) in whole.iter_mut().zip(tile.weights[quad].as_chunks().0) {
                        *sum += dot(*weights, group.high[quad]) * 256;
                        *sum += dot(*weights, group.low[quad]);
                    }
                }
                add_scaled(&mut sums[t][r], &whole, &tile.scales, marks[r][g].scale);
            }
        }
    }
    sums
}

/// Adds whole numbers, scaled by their output and by the row.
#[inline(always)]
fn add_scaled(sums: &mut Lanes, whole: &[i32; 16], scales: &Lanes, scale: f32) {
    for lane in 0..16 {
        sums[lane] = (whole[lane] as f32).mul_add(scales[lane] * scale, sums[lane]);
    }
}
