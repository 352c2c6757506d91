//! Products with AMX: a tile of it holds 16 rows of 64 bytes, and one
//! instruction multiplies 16 rows of a group of inputs with the weights of 16
//! outputs. Whole numbers have no order to keep, so the bits are those of the
//! other levels.
//!
//! Stable Rust has no names for these instructions yet: they are written out.

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid, __cpuid_count, __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32,
    _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_fmadd_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_srli_epi16,
    _mm512_storeu_si512,
};

use super::avx512::{add, load, load_bytes, widen};
use super::element::{LANES, Lanes};
use super::nibbles::{HIGH, Nibbles};
use super::product::Product;
use super::quantized::{GROUP, Group, Mark, Tile, Wide};

/// Rows of a tile.
const ROWS: usize = 16;
/// Bytes of a tile's row, and from one to the next where they lie side by side.
const ROW: usize = 64;

/// Sums of a group of inputs, a row for each row of inputs.
#[repr(C, align(64))]
struct Sums([[i32; LANES]; ROWS]);

/// Weights of 4 bits, a byte each.
#[repr(C, align(64))]
struct Unpacked([[u8; ROW]; GROUP / 4]);

/// How tiles are cut, as the processor reads it.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row, by tile.
    row_bytes: [u16; 16],
    /// Rows, by tile.
    rows: [u8; 16],
}

/// The thread's tiles are cut while this lives.
///
/// Tiles 0 to 2 have 16 rows: two of sums, one of inputs. Tiles 4 to 6 are as
/// many for the rows that are left over. Tile 3 has the weights.
struct Tiles;

/// Asks the system for the tiles, for the whole process; false when it or the
/// processor has none.
pub(super) fn is_there() -> bool {
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    if __cpuid(0).eax < 7 || __cpuid_count(7, 0).edx & (TILE | INT8) != TILE | INT8 {
        return false;
    }
    #[cfg(target_os = "linux")]
    {
        // arch/x86/include/uapi/asm/prctl.h
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: it takes two numbers and changes no memory of ours
        let refused = unsafe {
            libc::syscall(
                libc::SYS_arch_prctl,
                ARCH_REQ_XCOMP_PERM,
                XFEATURE_XTILEDATA,
            )
        };
        refused == 0
    }
    #[cfg(not(target_os = "linux"))]
    false
}

impl Tiles {
    /// Cuts the tiles for so many rows.
    ///
    /// # Safety
    /// The processor and the system have AMX.
    unsafe fn cut(rows: usize) -> Self {
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..7].fill(ROW as u16);
        config.rows[..4].fill(ROWS as u8);
        // a tile without rows is an error, even one that is not used
        config.rows[4..7].fill((rows % ROWS).max(1) as u8);
        // SAFETY: the configuration is one the processor knows
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: whoever has cut the tiles has the instruction too; left as
        // they are they would be saved at every change of threads
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Multiplies a group of some rows' inputs, `stride` bytes from row to row, with
/// weights: 16 rows, or the rest that the tiles were cut for. `$kind` names the
/// instruction.
macro_rules! multiply {
    ($name:ident, $kind:literal, $weight:ty) => {
        /// # Safety
        /// The tiles are cut, and `inputs` has so many rows of 64 bytes.
        #[inline(always)]
        unsafe fn $name(
            is_whole: bool,
            weights: &[[$weight; ROW]; 16],
            inputs: *const [i32; 16],
            stride: usize,
            sums: &mut Sums,
        ) {
            macro_rules! multiply {
                                ($sums:tt, $inputs:tt) => {
                                    asm!(
                                        "tileloadd tmm3, [{weights} + {row}*1]",
                                        concat!("tileloadd ", $inputs, ", [{inputs} + {stride}*1]"),
                                        concat!("tilezero ", $sums),
                                        concat!($kind, " ", $sums, ", ", $inputs, ", tmm3"),
                                        concat!("tilestored [{sums} + {row}*1], ", $sums),
                                        weights = in(reg) weights.as_ptr(),
                                        inputs = in(reg) inputs,
                                        stride = in(reg) stride,
                                        row = in(reg) ROW,
                                        sums = in(reg) sums.0.as_mut_ptr(),
                                        out("tmm3") _, out($sums) _, out($inputs) _,
                                        options(nostack),
                                    )
                                };
                            }
            // SAFETY: tiles of at most 16 rows of 64 bytes: those of the weights
            // and sums are there, those of the inputs are the caller's promise
            unsafe {
                if is_whole {
                    multiply!("tmm0", "tmm2");
                } else {
                    multiply!("tmm4", "tmm6");
                }
            }
        }
    };
}
multiply!(multiply, "tdpbssd", i8);
multiply!(multiply_unsigned, "tdpbsud", u8);

/// As [`multiply`], of inputs in two parts with sums of their own.
///
/// # Safety
/// As for [`multiply`], for both.
#[inline(always)]
unsafe fn multiply_both(
    is_whole: bool,
    weights: &[[i8; ROW]; 16],
    inputs: *const Wide,
    stride: usize,
    sums: &mut [Sums; 2],
) {
    macro_rules! multiply {
        ($first:tt, $second:tt, $inputs:tt) => {
            asm!(
                "tileloadd tmm3, [{weights} + {row}*1]",
                concat!("tileloadd ", $inputs, ", [{inputs} + {stride}*1]"),
                concat!("tilezero ", $first),
                concat!("tdpbssd ", $first, ", ", $inputs, ", tmm3"),
                concat!("tileloadd ", $inputs, ", [{inputs} + {stride}*1 + 64]"),
                concat!("tilestored [{sums} + {row}*1], ", $first),
                concat!("tilezero ", $second),
                concat!("tdpbssd ", $second, ", ", $inputs, ", tmm3"),
                concat!("tilestored [{sums} + {row}*1 + 1024], ", $second),
                weights = in(reg) weights.as_ptr(),
                inputs = in(reg) inputs,
                stride = in(reg) stride,
                row = in(reg) ROW,
                sums = in(reg) sums.as_mut_ptr(),
                out("tmm3") _, out($first) _, out($second) _, out($inputs) _,
                options(nostack),
            )
        };
    }
    // SAFETY: as above; the lower parts begin 64 bytes after the upper, the
    // second sums 1024 bytes after the first
    unsafe {
        if is_whole {
            multiply!("tmm0", "tmm1", "tmm2");
        } else {
            multiply!("tmm4", "tmm5", "tmm6");
        }
    }
}

/// Some rows of a product, with one of its tiles.
struct Block<'a, W, X> {
    weights: &'a [W],
    /// The first row's inputs, and what goes with them.
    inputs: *const X,
    marks: *const Mark,
    depth: usize,
    /// How many rows there are.
    len: usize,
    /// The number of the block, and how many have the same tile.
    share: (usize, usize),
    /// The tile that comes next, of which each block fetches a share.
    next: Option<&'a [W]>,
}

impl<W, X> Block<'_, W, X> {
    /// Does the multiplications of each group with `multiply`, a group before
    /// `add` gets to work on what came out: the two run side by side.
    #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn run<S>(
        &self,
        out: &mut [S; 2],
        mut multiply: impl FnMut(usize, &mut S),
        mut add: impl FnMut(usize, &S),
    ) {
        multiply(0, &mut out[0]);
        for g in 0..self.depth {
            self.fetch(g);
            if g + 1 < self.depth {
                multiply(g + 1, &mut out[(g + 1) % 2]);
            }
            add(g, &out[g % 2]);
        }
    }

    /// Brings some of the next weights near.
    #[inline(always)]
    fn fetch(&self, g: usize) {
        let Some(next) = self.next.and_then(|next| next.get(g)) else {
            return;
        };
        let (first, step) = self.share;
        for line in (first * ROW..size_of::<W>()).step_by(step * ROW) {
            let at = (&raw const *next).cast::<i8>();
            // SAFETY: it is a hint, and inside of the weights
            unsafe { _mm_prefetch::<_MM_HINT_T1>(at.add(line)) };
        }
    }

    /// Calls `work` for `R` rows with what goes with the group `g` of each; what
    /// stands for rows beyond the last, if not all are there, is of no use.
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
            if ALL || r + 1 < self.len {
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
/// a number of rows that is a multiple of 4.
macro_rules! in_blocks {
    ($product:expr, $out:expr, $block:ident) => {{
        let (product, out): (_, &mut [Lanes]) = ($product, $out);
        let rows = product.row_count();
        // SAFETY: the level exists only where there is AMX
        let _tiles = unsafe { Tiles::cut(rows) };
        let tiles = product.weights.len() / product.depth;
        for tile in 0..tiles {
            for row in (0..rows).step_by(ROWS) {
                let block = Block {
                    weights: product.tile(tile),
                    inputs: product.rows[row * product.depth..].as_ptr(),
                    marks: product.marks[row * product.depth..].as_ptr(),
                    depth: product.depth,
                    len: ROWS.min(rows - row),
                    share: (row / ROWS, rows.div_ceil(ROWS)),
                    next: (tile + 1 < tiles).then(|| product.tile(tile + 1)),
                };
                macro_rules! block {
                    ($r:literal, $all:literal) => {{
                        let sums = $block::<$r, $all>(&block);
                        for (r, &sums) in sums[..block.len].iter().enumerate() {
                            add(&mut out[tile * rows + row + r], sums);
                        }
                    }};
                }
                match block.len {
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
    in_blocks!(product, out, quantized_block);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn wide(product: Product<'_, Tile, Wide>, out: &mut [Lanes]) {
    in_blocks!(product, out, wide_block);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn nibbles(product: Product<'_, Nibbles, Group>, out: &mut [Lanes]) {
    in_blocks!(product, out, nibbles_block);
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn quantized_block<const R: usize, const ALL: bool>(block: &Block<'_, Tile, Group>) -> [__m512; R] {
    let mut sums = [_mm512_setzero_ps(); R];
    block.run(
        &mut [const { Sums([[0; LANES]; ROWS]) }; 2],
        |g, whole| {
            let (weights, inputs) = (&block.weights[g].weights, block.input(g).cast());
            // SAFETY: the tiles are cut, and the rows of the block are there
            unsafe { multiply(block.len == ROWS, weights, inputs, block.stride(), whole) };
        },
        |g, whole| {
            let scales = load(&block.weights[g].scales);
            block.each_row::<R, ALL>(g, |r, mark| {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(mark.scale));
                let whole = _mm512_cvtepi32_ps(load_sums(&whole.0[r]));
                sums[r] = _mm512_fmadd_ps(whole, scale, sums[r]);
            });
        },
    );
    sums
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn wide_block<const R: usize, const ALL: bool>(block: &Block<'_, Tile, Wide>) -> [__m512; R] {
    let mut sums = [_mm512_setzero_ps(); R];
    block.run(
        &mut [const { [const { Sums([[0; LANES]; ROWS]) }; 2] }; 2],
        |g, whole| {
            let (weights, inputs) = (&block.weights[g].weights, block.input(g));
            // SAFETY: the tiles are cut, and the rows of the block are there
            unsafe { multiply_both(block.len == ROWS, weights, inputs, block.stride(), whole) };
        },
        |g, [high, low]| {
            let scales = load(&block.weights[g].scales);
            block.each_row::<R, ALL>(g, |r, mark| {
                let high = _mm512_slli_epi32::<8>(load_sums(&high.0[r]));
                let whole = _mm512_add_epi32(high, load_sums(&low.0[r]));
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(mark.scale));
                sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, sums[r]);
            });
        },
    );
    sums
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn nibbles_block<const R: usize, const ALL: bool>(
    block: &Block<'_, Nibbles, Group>,
) -> [__m512; R] {
    let mut bytes = Unpacked([[0; ROW]; GROUP / 4]);
    let mut sums = [_mm512_setzero_ps(); R];
    block.run(
        &mut [const { Sums([[0; LANES]; ROWS]) }; 2],
        |g, whole| {
            unpack(&block.weights[g], &mut bytes);
            let (inputs, stride) = (block.input(g).cast(), block.stride());
            // SAFETY: the tiles are cut, and the rows of the block are there
            unsafe { multiply_unsigned(block.len == ROWS, &bytes.0, inputs, stride, whole) };
        },
        |g, whole| {
            let tile = &block.weights[g];
            let (scales, lowest) = (widen(&tile.scales), widen(&tile.lowest));
            block.each_row::<R, ALL>(g, |r, mark| {
                let moved = _mm512_mul_ps(lowest, _mm512_set1_ps(mark.sum));
                let whole = _mm512_cvtepi32_ps(load_sums(&whole.0[r]));
                let sum = _mm512_fmadd_ps(scales, whole, moved);
                sums[r] = _mm512_fmadd_ps(sum, _mm512_set1_ps(mark.scale), sums[r]);
            });
        },
    );
    sums
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
