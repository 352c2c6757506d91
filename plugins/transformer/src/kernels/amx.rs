//! Products with AMX: a tile of it holds 16 rows of 64 bytes, and one
//! instruction multiplies 16 rows of a group of inputs with the weights of 16
//! outputs. Whole numbers have no order to keep, so the bits are those of the
//! other levels.
//!
//! Stable Rust has no names for these instructions yet: they are written out.

use std::arch::asm;
use std::arch::x86_64::{
    __cpuid, __cpuid_count, __m512, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_add_epi32,
    _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_slli_epi32,
    _mm512_srli_epi16, _mm512_storeu_si512,
};

use super::avx512::{add, load, load_bytes, widen};
use super::element::{LANES, Lanes};
use super::nibbles::{HIGH, Nibbles};
use super::product::Product;
use super::quantized::{GROUP, Group, Tile, Wide};

/// Rows of a tile.
const ROWS: usize = 16;
/// Bytes of a tile's row, and from one to the next where they lie side by side.
const ROW: usize = 64;

/// Groups of weights that are fetched ahead: the tiles' own loads hardly wait in
/// parallel.
const AHEAD: usize = 12;

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
/// weights that are not negative: 16 rows, or the rest that the tiles were cut
/// for.
///
/// # Safety
/// The tiles are cut, and `inputs` has so many rows of 64 bytes.
#[inline]
unsafe fn multiply(
    is_whole: bool,
    weights: &[[u8; ROW]; 16],
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
                concat!("tdpbsud ", $sums, ", ", $inputs, ", tmm3"),
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
    // SAFETY: tiles of at most 16 rows of 64 bytes: those of the weights and
    // sums are there, those of the inputs are the caller's promise
    unsafe {
        if is_whole {
            multiply!("tmm0", "tmm2");
        } else {
            multiply!("tmm4", "tmm6");
        }
    }
}

/// As [`multiply`], of inputs in two parts with sums of their own.
///
/// # Safety
/// As for [`multiply`], for both.
#[inline]
unsafe fn multiply_both(
    is_whole: bool,
    weights: &[[u8; ROW]; 16],
    inputs: [*const [i32; 16]; 2],
    stride: usize,
    sums: &mut [Sums; 2],
) {
    macro_rules! multiply {
        ($first:tt, $second:tt, $inputs:tt) => {
            asm!(
                "tileloadd tmm3, [{weights} + {row}*1]",
                concat!("tileloadd ", $inputs, ", [{high} + {stride}*1]"),
                concat!("tilezero ", $first),
                concat!("tdpbsud ", $first, ", ", $inputs, ", tmm3"),
                concat!("tileloadd ", $inputs, ", [{low} + {stride}*1]"),
                concat!("tilestored [{sums} + {row}*1], ", $first),
                concat!("tilezero ", $second),
                concat!("tdpbsud ", $second, ", ", $inputs, ", tmm3"),
                concat!("tilestored [{sums} + {row}*1 + 1024], ", $second),
                weights = in(reg) weights.as_ptr(),
                high = in(reg) inputs[0],
                low = in(reg) inputs[1],
                stride = in(reg) stride,
                row = in(reg) ROW,
                sums = in(reg) sums.as_mut_ptr(),
                out("tmm3") _, out($first) _, out($second) _, out($inputs) _,
                options(nostack),
            )
        };
    }
    // SAFETY: as above; the second sums begin 1024 bytes after the first
    unsafe {
        if is_whole {
            multiply!("tmm0", "tmm1", "tmm2");
        } else {
            multiply!("tmm4", "tmm5", "tmm6");
        }
    }
}

/// Calls `$block::<ROWS>(tile, rows, first row, how many)` for each block of
/// `$product`, of a number of rows that is a multiple of 4; what stands for rows
/// beyond the last is left out.
macro_rules! in_blocks {
    ($product:expr, $out:expr, $block:ident) => {{
        let (product, out): (_, &mut [Lanes]) = ($product, $out);
        let rows = product.row_count();
        // SAFETY: the level exists only where there is AMX
        let _tiles = unsafe { Tiles::cut(rows) };
        for tile in 0..product.weights.len() / product.depth {
            for row in (0..rows).step_by(ROWS) {
                let len = ROWS.min(rows - row);
                macro_rules! block {
                    ($r:literal) => {
                        for (r, &sums) in $block::<$r>(&product, tile, row, len)[..len]
                            .iter()
                            .enumerate()
                        {
                            add(&mut out[tile * rows + row + r], sums);
                        }
                    };
                }
                match len {
                    ..=4 => block!(4),
                    ..=8 => block!(8),
                    ..=12 => block!(12),
                    _ => block!(16),
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
fn quantized_block<const R: usize>(
    product: &Product<'_, Tile, Group>,
    tile: usize,
    row: usize,
    len: usize,
) -> [__m512; R] {
    let weights = product.tile(tile);
    let inputs = product.rows[row * product.depth..].as_ptr();
    let mut whole = Sums([[0; LANES]; ROWS]);
    let mut sums = [_mm512_setzero_ps(); R];
    for g in 0..product.depth {
        let first = inputs.wrapping_add(g);
        if row == 0 {
            fetch(product.weights, tile * product.depth + g + AHEAD);
        }
        // SAFETY: the rows of the product from `row` on are there, `len` of them
        unsafe {
            let stride = size_of::<Group>() * product.depth;
            let values = &raw const (*first).values;
            multiply(len == ROWS, &weights[g].weights, values, stride, &mut whole);
        }
        let scales = load(&weights[g].scales);
        let mut input = first;
        for r in 0..R {
            // SAFETY: it is in a row of the product
            let group = unsafe { &*input };
            let correction = _mm512_set1_epi32(group.correction);
            let whole = _mm512_add_epi32(load_sums(&whole.0[r]), correction);
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(group.scale));
            let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale);
            sums[r] = _mm512_add_ps(sums[r], sum);
            if r + 1 < len {
                // SAFETY: there is one more row
                input = unsafe { input.add(product.depth) };
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn wide_block<const R: usize>(
    product: &Product<'_, Tile, Wide>,
    tile: usize,
    row: usize,
    len: usize,
) -> [__m512; R] {
    let weights = product.tile(tile);
    let inputs = product.rows[row * product.depth..].as_ptr();
    let mut whole = [const { Sums([[0; LANES]; ROWS]) }; 2];
    let mut sums = [_mm512_setzero_ps(); R];
    for g in 0..product.depth {
        let first = inputs.wrapping_add(g);
        if row == 0 {
            fetch(product.weights, tile * product.depth + g + AHEAD);
        }
        // SAFETY: the rows of the product from `row` on are there, `len` of them
        unsafe {
            let stride = size_of::<Wide>() * product.depth;
            let parts = [&raw const (*first).high, &raw const (*first).low];
            multiply_both(len == ROWS, &weights[g].weights, parts, stride, &mut whole);
        }
        let scales = load(&weights[g].scales);
        let mut input = first;
        for r in 0..R {
            // SAFETY: it is in a row of the product
            let group = unsafe { &*input };
            let correction = _mm512_set1_epi32(group.correction);
            let high = _mm512_slli_epi32::<8>(load_sums(&whole[0].0[r]));
            let low = _mm512_add_epi32(load_sums(&whole[1].0[r]), correction);
            let scale = _mm512_mul_ps(scales, _mm512_set1_ps(group.scale));
            let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(high, low)), scale);
            sums[r] = _mm512_add_ps(sums[r], sum);
            if r + 1 < len {
                // SAFETY: there is one more row
                input = unsafe { input.add(product.depth) };
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn nibbles_block<const R: usize>(
    product: &Product<'_, Nibbles, Group>,
    tile: usize,
    row: usize,
    len: usize,
) -> [__m512; R] {
    let weights = product.tile(tile);
    let inputs = product.rows[row * product.depth..].as_ptr();
    let mut whole = Sums([[0; LANES]; ROWS]);
    let mut bytes = Unpacked([[0; ROW]; GROUP / 4]);
    let mut sums = [_mm512_setzero_ps(); R];
    for g in 0..product.depth {
        let first = inputs.wrapping_add(g);
        unpack(&weights[g], &mut bytes);
        if row == 0 {
            fetch(product.weights, tile * product.depth + g + AHEAD);
        }
        // SAFETY: the rows of the product from `row` on are there, `len` of them
        unsafe {
            let stride = size_of::<Group>() * product.depth;
            let values = &raw const (*first).values;
            multiply(len == ROWS, &bytes.0, values, stride, &mut whole);
        }
        let (scales, lowest) = (widen(&weights[g].scales), widen(&weights[g].lowest));
        let mut input = first;
        for r in 0..R {
            // SAFETY: it is in a row of the product
            let group = unsafe { &*input };
            let whole = _mm512_cvtepi32_ps(load_sums(&whole.0[r]));
            let scaled = _mm512_mul_ps(scales, whole);
            let moved = _mm512_mul_ps(lowest, _mm512_set1_ps(group.sum()));
            let sum = _mm512_add_ps(scaled, moved);
            let sum = _mm512_mul_ps(sum, _mm512_set1_ps(group.scale));
            sums[r] = _mm512_add_ps(sums[r], sum);
            if r + 1 < len {
                // SAFETY: there is one more row
                input = unsafe { input.add(product.depth) };
            }
        }
    }
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

/// Brings some weights near.
#[inline]
fn fetch<W>(weights: &[W], index: usize) {
    if let Some(weights) = weights.get(index) {
        for line in (0..size_of::<W>()).step_by(ROW) {
            let at = (&raw const *weights).cast::<i8>();
            // SAFETY: it is a hint, and inside of the weights
            unsafe { _mm_prefetch::<_MM_HINT_T0>(at.add(line)) };
        }
    }
}
