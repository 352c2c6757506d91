//! Products with AMX: a tile of it holds 16 rows of 64 bytes, and one
//! instruction multiplies 16 rows of 64 inputs with the weights of 16 outputs: of
//! half a group, or of a whole one where weights are in 4 bits. Whole numbers have
//! no order to keep, so the bits are those of the other levels.

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_mul_ps, _mm512_set1_epi8,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_si512,
};

use super::amx_tiles::{
    ROW, ROWS, Sums, Tiles, load_inputs, load_lower_inputs, load_short_inputs, load_short_weights,
    load_weights, multiply, multiply_lower, multiply_unsigned, store, store_lower,
};
use super::avx512::{add, load, load_bytes, widen};
use super::element::{LANES, Lanes};
use super::nibbles::{HIGH, Nibbles};
use super::product::Product;
use super::quantized::{Group, Mark, SHORT, ShortGroup, Tile, Wide};

/// Weights of 4 bits, a byte each.
#[derive(Clone)]
#[repr(C, align(64))]
struct Unpacked([[u8; ROW]; SHORT / 4]);

/// Some rows of a product, with one of its tiles: 16, or all if it has fewer.
struct Block<'a, W, X> {
    weights: &'a [W],
    /// The first row's inputs, and what goes with them.
    inputs: *const X,
    marks: *const Mark,
    depth: usize,
    rows: usize,
    /// Weights of 4 bits by group, where many blocks share the work of unpacking them.
    unpacked: &'a [Unpacked],
    /// Of what comes next, what this block is to fetch, and how many lines with
    /// each group.
    next: *const i8,
    lines: usize,
}

impl<W, X> Block<'_, W, X> {
    /// Goes through the groups: `load` has the tiles loaded, `multiply` has them
    /// multiplied, `store` gives what came out, and `add` works on that. The
    /// products of a group are under way while the sums of the one before are
    /// added, and, of 16 rows, what comes after is loaded meanwhile.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn run<const ALL: bool, S>(
        &self,
        out: &mut [S; 2],
        mut load: impl FnMut(usize),
        multiply: impl Fn(),
        store: impl Fn(&mut S),
        mut add: impl FnMut(usize, &S),
    ) {
        load(0);
        multiply();
        store(&mut out[0]);
        if ALL && self.depth > 1 {
            load(1);
        }
        for g in 0..self.depth {
            self.fetch(g);
            if g + 1 < self.depth {
                // few rows wait for their weights rather than for each other
                if !ALL {
                    load(g + 1);
                }
                multiply();
                if !ALL {
                    store(&mut out[(g + 1) % 2]);
                }
            }
            if ALL && g + 2 < self.depth {
                load(g + 2);
            }
            add(g, &out[g % 2]);
            if ALL && g + 1 < self.depth {
                store(&mut out[(g + 1) % 2]);
            }
        }
    }

    /// Brings some of the next weights near.
    #[inline(always)]
    fn fetch(&self, g: usize) {
        for line in g * self.lines..(g + 1) * self.lines {
            // SAFETY: it is a hint, and no access
            unsafe { _mm_prefetch::<_MM_HINT_T1>(self.next.wrapping_add(line * ROW)) };
        }
    }

    /// Calls `work` for `R` rows with what goes with the group `g` of each; what
    /// stands for rows beyond the last, if not `ALL` are there, is of no use.
    #[inline(always)]
    fn each_row<const R: usize, const ALL: bool>(
        &self,
        g: usize,
        mut work: impl FnMut(usize, &Mark),
    ) {
        let mut mark = self.marks.wrapping_add(g);
        for r in 0..R {
            // SAFETY: it belongs to one of the block's rows
            work(r, unsafe { &*mark });
            if ALL || r + 1 < self.rows {
                mark = mark.wrapping_add(self.depth);
            }
        }
    }

    #[inline(always)]
    fn input(&self, g: usize) -> *const X {
        self.inputs.wrapping_add(g)
    }

    /// Bytes from a row's inputs to the next one's.
    #[inline(always)]
    fn stride(&self) -> usize {
        size_of::<X>() * self.depth
    }
}

/// Calls `$block::<ROWS, whether all are there>` for each block of `$product`, of
/// a number of rows that is a multiple of 4. The last block begins sooner where
/// rows are left over, and what was added already is not added again. `$unpack` readies
/// the weights of a tile that several blocks share.
macro_rules! in_blocks {
    ($product:expr, $out:expr, $block:ident, $unpack:expr) => {{
        let (product, out): (_, &mut [Lanes]) = ($product, $out);
        let rows = product.row_count();
        // SAFETY: the level exists only where there is AMX
        let _tiles = unsafe { Tiles::cut(rows.min(ROWS)) };
        let (tiles, depth) = (product.weights.len() / product.depth, product.depth);
        // all blocks of a tile together fetch the next one
        let lines = size_of_val(&product.weights[0]).div_ceil(ROW * rows.div_ceil(ROWS));
        let mut unpacked = Vec::new();
        for tile in 0..tiles {
            let base = product.base.of(tile);
            if rows > ROWS {
                $unpack(product.tile(tile), &mut unpacked);
            }
            let next = product.weights.as_ptr().wrapping_add((tile + 1) * depth);
            for begin in (0..rows).step_by(ROWS) {
                let row = begin.min(rows.saturating_sub(ROWS));
                let block = Block {
                    weights: product.tile(tile),
                    inputs: product.rows[row * product.depth..].as_ptr(),
                    marks: product.marks[row * product.depth..].as_ptr(),
                    depth: product.depth,
                    rows: rows.min(ROWS),
                    unpacked: &unpacked,
                    next: next
                        .cast::<i8>()
                        .wrapping_add(begin / ROWS * depth * lines * ROW),
                    lines,
                };
                macro_rules! block {
                    ($r:literal, $all:literal) => {{
                        let sums = $block::<$r, $all>(&block);
                        for (r, &sums) in sums[..block.rows].iter().enumerate().skip(begin - row) {
                            add(&mut out[tile * rows + row + r], base, sums);
                        }
                    }};
                }
                match block.rows {
                    ..=4 => block!(4, false),
                    ..=8 => block!(8, false),
                    ..=12 => block!(12, false),
                    ..ROWS => block!(16, false),
                    _ => block!(16, true),
                }
            }
        }
    }};
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn quantized(product: Product<'_, Tile, Group>, out: &mut [Lanes]) {
    in_blocks!(product, out, quantized_block, as_they_are);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn wide(product: Product<'_, Tile, Wide>, out: &mut [Lanes]) {
    in_blocks!(product, out, wide_block, as_they_are);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn nibbles(product: Product<'_, Nibbles, ShortGroup>, out: &mut [Lanes]) {
    in_blocks!(product, out, nibbles_block, unpack_all);
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn quantized_block<const R: usize, const ALL: bool>(block: &Block<'_, Tile, Group>) -> [__m512; R] {
    let mut held = [_mm512_setzero_ps(); R];
    block.run::<ALL, _>(
        &mut [const { Sums([[0; LANES]; ROWS]) }; 2],
        // SAFETY: the tiles are cut, and the rows of the block are there; as below
        |g| unsafe {
            load_weights(block.weights[g].weights.as_ptr(), ROW);
            load_inputs(block.input(g).cast(), block.stride());
        },
        // SAFETY: they are loaded before
        || unsafe { multiply() },
        // SAFETY: there are 16 rows
        |whole| unsafe { store(whole.0.as_mut_ptr(), ROW) },
        |g, whole| {
            let scales = load(&block.weights[g].scales);
            block.each_row::<R, ALL>(g, |r, mark| {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(mark.scale));
                let whole = _mm512_cvtepi32_ps(load_sums(&whole.0[r]));
                held[r] = _mm512_fmadd_ps(whole, scale, held[r]);
            });
        },
    );
    held
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn wide_block<const R: usize, const ALL: bool>(block: &Block<'_, Tile, Wide>) -> [__m512; R] {
    let mut held = [_mm512_setzero_ps(); R];
    block.run::<ALL, _>(
        &mut [const { [const { Sums([[0; LANES]; ROWS]) }; 2] }; 2],
        // SAFETY: the tiles are cut, and the rows of the block are there
        |g| unsafe {
            load_weights(block.weights[g].weights.as_ptr(), ROW);
            load_inputs(&raw const (*block.input(g)).high, block.stride());
            load_lower_inputs(&raw const (*block.input(g)).low, block.stride());
        },
        // SAFETY: they are loaded before
        || unsafe {
            multiply();
            multiply_lower();
        },
        // SAFETY: there are 16 rows in each
        |[high, low]| unsafe {
            store(high.0.as_mut_ptr(), ROW);
            store_lower(low.0.as_mut_ptr(), ROW);
        },
        |g, [high, low]| {
            let scales = load(&block.weights[g].scales);
            block.each_row::<R, ALL>(g, |r, mark| {
                let high = _mm512_slli_epi32::<8>(load_sums(&high.0[r]));
                let whole = _mm512_add_epi32(high, load_sums(&low.0[r]));
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(mark.scale));
                held[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, held[r]);
            });
        },
    );
    held
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn nibbles_block<const R: usize, const ALL: bool>(
    block: &Block<'_, Nibbles, ShortGroup>,
) -> [__m512; R] {
    let mut bytes = [const { Unpacked([[0; ROW]; SHORT / 4]) }; 2];
    let mut held = [_mm512_setzero_ps(); R];
    let is_unpacked = !block.unpacked.is_empty();
    if !is_unpacked {
        unpack(&block.weights[0], &mut bytes[0]);
    }
    block.run::<ALL, _>(
        &mut [const { Sums([[0; LANES]; ROWS]) }; 2],
        |g| {
            let weights = match is_unpacked {
                true => &block.unpacked[g],
                false => &bytes[g % 2],
            };
            // SAFETY: the tiles are cut, and the rows of the block are there
            unsafe {
                load_short_weights(weights.0.as_ptr(), ROW);
                load_short_inputs(block.input(g).cast(), block.stride());
            }
            // those of the next group, so that nobody waits for them
            if !is_unpacked && g + 1 < block.depth {
                unpack(&block.weights[g + 1], &mut bytes[(g + 1) % 2]);
            }
        },
        // SAFETY: they are loaded before
        || unsafe { multiply_unsigned() },
        // SAFETY: there are 16 rows
        |whole| unsafe { store(whole.0.as_mut_ptr(), ROW) },
        |g, whole| {
            let tile = &block.weights[g];
            let (scales, lowest) = (widen(&tile.scales), widen(&tile.lowest));
            block.each_row::<R, ALL>(g, |r, mark| {
                let moved = _mm512_mul_ps(lowest, _mm512_set1_ps(mark.sum));
                let whole = _mm512_cvtepi32_ps(load_sums(&whole.0[r]));
                let sum = _mm512_fmadd_ps(scales, whole, moved);
                held[r] = _mm512_fmadd_ps(sum, _mm512_set1_ps(mark.scale), held[r]);
            });
        },
    );
    held
}

/// Weights of 8 bits are multiplied as they are.
fn as_they_are<W>(_: &[W], _: &mut Vec<Unpacked>) {}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn unpack_all(tile: &[Nibbles], unpacked: &mut Vec<Unpacked>) {
    unpacked.resize(tile.len(), const { Unpacked([[0; ROW]; SHORT / 4]) });
    for (nibbles, bytes) in tile.iter().zip(unpacked) {
        unpack(nibbles, bytes);
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn unpack(nibbles: &Nibbles, bytes: &mut Unpacked) {
    let mask = _mm512_set1_epi8(15);
    for quad in 0..HIGH / 4 {
        let both = load_bytes(&nibbles.weights[quad]);
        let high = _mm512_srli_epi16::<4>(both);
        for (quad, nibble) in [(quad, both), (quad + HIGH / 4, high)] {
            let to = bytes.0[quad].as_mut_ptr().cast();
            // SAFETY: there are 64 bytes
            unsafe { _mm512_storeu_si512(to, _mm512_and_si512(nibble, mask)) };
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_sums(sums: &[i32; LANES]) -> __m512i {
    // SAFETY: there are 16 numbers
    unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) }
}
