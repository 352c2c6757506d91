//! Products with AVX2 and FMA.

use std::arch::x86_64::{
    __m256, __m256i, _MM_HINT_T1, _mm_prefetch, _mm256_abs_epi8, _mm256_add_epi16,
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps,
    _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps,
    _mm256_setzero_si256, _mm256_sign_epi8, _mm256_slli_epi16, _mm256_srai_epi16,
    _mm256_srli_epi16, _mm256_storeu_ps,
};
use std::hint::black_box;

use super::element::{Element, LANES, Lanes};
use super::nibbles::{HIGH, Nibbles};
use super::product::{Product, Share, alike, in_blocks};
use super::quantized::{GROUP, Group, Mark, ShortGroup, Tile, Wide};

/// Sixteen numbers: the lower eight and the upper.
pub(super) type Pair = [__m256; 2];

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn dense<E: Element>(product: Product<'_, [E; 16], f32>, out: &mut [Lanes]) {
    in_blocks!(product, out, 1, dense_block);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantized(product: Product<'_, Tile, Group>, out: &mut [Lanes]) {
    in_blocks!(product, out, 1, quantized_block);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn wide(product: Product<'_, Tile, Wide>, out: &mut [Lanes]) {
    in_blocks!(product, out, 1, wide_block);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn nibbles(product: Product<'_, Nibbles, ShortGroup>, out: &mut [Lanes]) {
    in_blocks!(product, out, 1, nibbles_block);
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dense_block<E: Element, const T: usize, const R: usize>(
    mut weights: [&[[E; 16]]; T],
    mut inputs: [&[f32]; R],
    _: [&[Mark]; R],
    _: Share,
) -> [[Pair; R]; T] {
    let depth = inputs[0].len();
    alike(&mut weights, depth);
    alike(&mut inputs, depth);
    let mut sums = [[[_mm256_setzero_ps(); 2]; R]; T];
    for k in 0..depth {
        let mut tiles = [[_mm256_setzero_ps(); 2]; T];
        for t in 0..T {
            tiles[t] = widen(&weights[t][k]);
        }
        for r in 0..R {
            let input = _mm256_set1_ps(inputs[r][k]);
            for t in 0..T {
                for half in 0..2 {
                    sums[t][r][half] = _mm256_fmadd_ps(input, tiles[t][half], sums[t][r][half]);
                }
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn quantized_block<const T: usize, const R: usize>(
    mut weights: [&[Tile]; T],
    mut inputs: [&[Group]; R],
    mut marks: [&[Mark]; R],
    _: Share,
) -> [[Pair; R]; T] {
    let depth = inputs[0].len();
    alike(&mut weights, depth);
    alike(&mut inputs, depth);
    alike(&mut marks, depth);
    let ones = _mm256_set1_epi16(1);
    let mut sums = [[[_mm256_setzero_ps(); 2]; R]; T];
    for g in 0..depth {
        fetch::<_, R>(weights[T - 1], g);
        let mut whole = [[[_mm256_setzero_si256(); 2]; R]; T];
        for quad in 0..GROUP / 4 {
            for t in 0..T {
                let tile = load_bytes(&weights[t][g].weights[quad]);
                let sizes = [_mm256_abs_epi8(tile[0]), _mm256_abs_epi8(tile[1])];
                for r in 0..R {
                    let input = _mm256_set1_epi32(inputs[r][g].0[quad]);
                    for half in 0..2 {
                        // neither side has a -128, so two products fit 16 bits
                        let signed = _mm256_sign_epi8(input, tile[half]);
                        let pairs = _mm256_maddubs_epi16(sizes[half], signed);
                        let quads = _mm256_madd_epi16(pairs, ones);
                        whole[t][r][half] = _mm256_add_epi32(whole[t][r][half], quads);
                    }
                }
            }
        }
        for t in 0..T {
            let scales = load(&weights[t][g].scales);
            for r in 0..R {
                add_scaled(&mut sums[t][r], whole[t][r], scales, marks[r][g].scale);
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn wide_block<const T: usize, const R: usize>(
    mut weights: [&[Tile]; T],
    mut inputs: [&[Wide]; R],
    mut marks: [&[Mark]; R],
    _: Share,
) -> [[Pair; R]; T] {
    let depth = inputs[0].len();
    alike(&mut weights, depth);
    alike(&mut inputs, depth);
    alike(&mut marks, depth);
    let mut sums = [[[_mm256_setzero_ps(); 2]; R]; T];
    for g in 0..depth {
        fetch::<_, R>(weights[T - 1], g);
        let mut whole = [[[_mm256_setzero_si256(); 2]; R]; T];
        for quad in 0..GROUP / 4 {
            for t in 0..T {
                let tile = load_bytes(&weights[t][g].weights[quad]);
                let mut even = [_mm256_setzero_si256(); 2];
                let mut odd = [_mm256_setzero_si256(); 2];
                for half in 0..2 {
                    // each two of four bytes in 16 bits, as inputs are in pairs
                    even[half] = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(tile[half]));
                    odd[half] = _mm256_srai_epi16::<8>(tile[half]);
                }
                for r in 0..R {
                    let first = _mm256_set1_epi32(inputs[r][g].high[quad]);
                    let second = _mm256_set1_epi32(inputs[r][g].low[quad]);
                    for half in 0..2 {
                        let sum = _mm256_add_epi32(
                            _mm256_madd_epi16(even[half], first),
                            _mm256_madd_epi16(odd[half], second),
                        );
                        whole[t][r][half] = _mm256_add_epi32(whole[t][r][half], sum);
                    }
                }
            }
        }
        for t in 0..T {
            let scales = load(&weights[t][g].scales);
            for r in 0..R {
                add_scaled(&mut sums[t][r], whole[t][r], scales, marks[r][g].scale);
            }
        }
    }
    sums
}

/// Adds whole numbers, scaled by their outputs and by their row.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_scaled(sums: &mut Pair, whole: [__m256i; 2], scales: Pair, input: f32) {
    for half in 0..2 {
        let scale = _mm256_mul_ps(scales[half], _mm256_set1_ps(input));
        sums[half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(whole[half]), scale, sums[half]);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn nibbles_block<const T: usize, const R: usize>(
    mut weights: [&[Nibbles]; T],
    mut inputs: [&[ShortGroup]; R],
    mut marks: [&[Mark]; R],
    _: Share,
) -> [[Pair; R]; T] {
    /// So many times four products of 15 and 127 at most fit 16 bits.
    const FIT: usize = 4;
    let depth = inputs[0].len();
    alike(&mut weights, depth);
    alike(&mut inputs, depth);
    alike(&mut marks, depth);
    let (ones, mask) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15));
    // unrolled by a constant, the sums would no longer stay in registers
    let fit = black_box(FIT);
    let mut sums = [[[_mm256_setzero_ps(); 2]; R]; T];
    for g in 0..depth {
        fetch::<_, R>(weights[T - 1], g);
        let mut whole = [[[_mm256_setzero_si256(); 2]; R]; T];
        for part in 0..HIGH / 4 / FIT {
            let mut short = [[[_mm256_setzero_si256(); 2]; R]; T];
            for quad in (part * FIT..(part + 1) * FIT).take(fit) {
                for t in 0..T {
                    let tile = load_bytes(&weights[t][g].weights[quad]);
                    let mut low = [mask; 2];
                    let mut high = [mask; 2];
                    for half in 0..2 {
                        low[half] = _mm256_and_si256(tile[half], mask);
                        high[half] = _mm256_and_si256(_mm256_srli_epi16::<4>(tile[half]), mask);
                    }
                    for r in 0..R {
                        let first = _mm256_set1_epi32(inputs[r][g].0[quad]);
                        let second = _mm256_set1_epi32(inputs[r][g].0[quad + HIGH / 4]);
                        for half in 0..2 {
                            let pairs = _mm256_maddubs_epi16(low[half], first);
                            short[t][r][half] = _mm256_add_epi16(short[t][r][half], pairs);
                            let pairs = _mm256_maddubs_epi16(high[half], second);
                            short[t][r][half] = _mm256_add_epi16(short[t][r][half], pairs);
                        }
                    }
                }
            }
            for t in 0..T {
                for r in 0..R {
                    for half in 0..2 {
                        let quads = _mm256_madd_epi16(short[t][r][half], ones);
                        whole[t][r][half] = _mm256_add_epi32(whole[t][r][half], quads);
                    }
                }
            }
        }
        for t in 0..T {
            let (scales, lowest) = (widen(&weights[t][g].scales), widen(&weights[t][g].lowest));
            for r in 0..R {
                let input = _mm256_set1_ps(marks[r][g].sum);
                for half in 0..2 {
                    let whole = _mm256_cvtepi32_ps(whole[t][r][half]);
                    let moved = _mm256_mul_ps(lowest[half], input);
                    let sum = _mm256_fmadd_ps(scales[half], whole, moved);
                    let scale = _mm256_set1_ps(marks[r][g].scale);
                    sums[t][r][half] = _mm256_fmadd_ps(sum, scale, sums[t][r][half]);
                }
            }
        }
    }
    sums
}

/// Brings near a group of the next tile while the rows are multiplied with this one. For
/// one row, where memory is all that counts, the processor does as well by itself; for
/// many rows it counts little.
#[inline(always)]
fn fetch<W, const R: usize>(tile: &[W], g: usize) {
    if R == 2 || R == 4 {
        let next = tile.as_ptr().wrapping_add(tile.len() + g).cast::<i8>();
        for line in (0..size_of::<W>()).step_by(64) {
            // SAFETY: it is a hint, and no access
            unsafe { _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line)) };
        }
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn add(out: &mut Lanes, (bias, is_sum): (&Lanes, bool), sums: Pair) {
    let mut base = load(bias);
    if is_sum {
        base = plus(load(out), base);
    }
    store(out, plus(base, sums));
}

#[target_feature(enable = "avx2")]
#[inline]
fn plus(one: Pair, other: Pair) -> Pair {
    [
        _mm256_add_ps(one[0], other[0]),
        _mm256_add_ps(one[1], other[1]),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn store(out: &mut Lanes, numbers: Pair) {
    let (low, high) = out.split_at_mut(8);
    // SAFETY: there are 8 numbers at each
    unsafe {
        _mm256_storeu_ps(low.as_mut_ptr(), numbers[0]);
        _mm256_storeu_ps(high.as_mut_ptr(), numbers[1]);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
pub(super) fn load(lanes: &Lanes) -> Pair {
    let (low, high) = lanes.split_at(8);
    // SAFETY: there are 8 numbers at each
    unsafe {
        [
            _mm256_loadu_ps(low.as_ptr()),
            _mm256_loadu_ps(high.as_ptr()),
        ]
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_bytes<B>(bytes: &[B; 64]) -> [__m256i; 2] {
    let (low, high) = bytes.split_at(32);
    // SAFETY: there are 32 bytes at each
    unsafe {
        [
            _mm256_loadu_si256(low.as_ptr().cast()),
            _mm256_loadu_si256(high.as_ptr().cast()),
        ]
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn widen<E: Element>(numbers: &[E; LANES]) -> Pair {
    // SAFETY: the processor has what this function is compiled for
    unsafe { E::load_256(numbers) }
}
