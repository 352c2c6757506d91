//! Products with AVX2 and FMA.

use std::arch::x86_64::{
    __m256, __m256i, _mm256_abs_epi8, _mm256_add_epi16, _mm256_add_epi32, _mm256_add_ps,
    _mm256_and_si256, _mm256_cvtepi32_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_loadu_si256,
    _mm256_madd_epi16, _mm256_maddubs_epi16, _mm256_mul_ps, _mm256_set1_epi8, _mm256_set1_epi16,
    _mm256_set1_epi32, _mm256_set1_ps, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_sign_epi8,
    _mm256_slli_epi32, _mm256_srli_epi16, _mm256_storeu_ps,
};

use super::element::{Element, LANES, Lanes};
use super::nibbles::{HIGH, Nibbles};
use super::product::{Product, in_blocks};
use super::quantized::{GROUP, Group, Mark, Tile, Wide};

/// Sixteen numbers: the lower eight and the upper.
type Pair = [__m256; 2];

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
pub(super) fn nibbles(product: Product<'_, Nibbles, Group>, out: &mut [Lanes]) {
    in_blocks!(product, out, 1, nibbles_block);
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn dense_block<E: Element, const T: usize, const R: usize>(
    weights: [&[[E; 16]]; T],
    inputs: [&[f32]; R],
    _: [&[Mark]; R],
) -> [[Pair; R]; T] {
    let depth = inputs[0].len();
    let (weights, inputs) = (weights.map(|w| &w[..depth]), inputs.map(|x| &x[..depth]));
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
    weights: [&[Tile]; T],
    inputs: [&[Group]; R],
    marks: [&[Mark]; R],
) -> [[Pair; R]; T] {
    let depth = inputs[0].len();
    let (weights, inputs) = (weights.map(|w| &w[..depth]), inputs.map(|x| &x[..depth]));
    let mut sums = [[[_mm256_setzero_ps(); 2]; R]; T];
    for g in 0..depth {
        let mut whole = [[[_mm256_setzero_si256(); 2]; R]; T];
        for quad in 0..GROUP / 4 {
            for t in 0..T {
                let tile = load_bytes(&weights[t][g].weights[quad]);
                for r in 0..R {
                    let input = _mm256_set1_epi32(inputs[r][g].0[quad]);
                    for half in 0..2 {
                        let sum = dot(tile[half], input);
                        whole[t][r][half] = _mm256_add_epi32(whole[t][r][half], sum);
                    }
                }
            }
        }
        add_scaled(
            &mut sums,
            &whole,
            weights.map(|w| &w[g].scales),
            marks.map(|marks| marks[g].scale),
        );
    }
    sums
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn wide_block<const T: usize, const R: usize>(
    weights: [&[Tile]; T],
    inputs: [&[Wide]; R],
    marks: [&[Mark]; R],
) -> [[Pair; R]; T] {
    let depth = inputs[0].len();
    let (weights, inputs) = (weights.map(|w| &w[..depth]), inputs.map(|x| &x[..depth]));
    let mut sums = [[[_mm256_setzero_ps(); 2]; R]; T];
    for g in 0..depth {
        let mut whole = [[[_mm256_setzero_si256(); 2]; R]; T];
        for quad in 0..GROUP / 4 {
            for t in 0..T {
                let tile = load_bytes(&weights[t][g].weights[quad]);
                for r in 0..R {
                    let first = _mm256_set1_epi32(inputs[r][g].high[quad]);
                    let second = _mm256_set1_epi32(inputs[r][g].low[quad]);
                    for half in 0..2 {
                        let high = _mm256_slli_epi32::<8>(dot(tile[half], first));
                        let sum = _mm256_add_epi32(high, dot(tile[half], second));
                        whole[t][r][half] = _mm256_add_epi32(whole[t][r][half], sum);
                    }
                }
            }
        }
        add_scaled(
            &mut sums,
            &whole,
            weights.map(|w| &w[g].scales),
            marks.map(|marks| marks[g].scale),
        );
    }
    sums
}

/// Each four signed bytes of `tile` times those of `input`, summed up. No byte of
/// `tile` is -128, and at most one of a product's factors has that size, so two
/// products fit 16 bits.
#[target_feature(enable = "avx2")]
#[inline]
fn dot(tile: __m256i, input: __m256i) -> __m256i {
    let signed = _mm256_sign_epi8(tile, input);
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(input), signed);
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// Adds whole numbers, scaled by their outputs and by their rows.
#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_scaled<const T: usize, const R: usize>(
    sums: &mut [[Pair; R]; T],
    whole: &[[[__m256i; 2]; R]; T],
    scales: [&Lanes; T],
    inputs: [f32; R],
) {
    for t in 0..T {
        let scales = load(scales[t]);
        for r in 0..R {
            for half in 0..2 {
                let scale = _mm256_mul_ps(scales[half], _mm256_set1_ps(inputs[r]));
                let whole = _mm256_cvtepi32_ps(whole[t][r][half]);
                sums[t][r][half] = _mm256_fmadd_ps(whole, scale, sums[t][r][half]);
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn nibbles_block<const T: usize, const R: usize>(
    weights: [&[Nibbles]; T],
    inputs: [&[Group]; R],
    marks: [&[Mark]; R],
) -> [[Pair; R]; T] {
    let depth = inputs[0].len();
    let (weights, inputs) = (weights.map(|w| &w[..depth]), inputs.map(|x| &x[..depth]));
    let (ones, mask) = (_mm256_set1_epi16(1), _mm256_set1_epi8(15));
    let mut sums = [[[_mm256_setzero_ps(); 2]; R]; T];
    for g in 0..depth {
        let mut whole = [[[_mm256_setzero_si256(); 2]; R]; T];
        for quad in 0..HIGH / 4 {
            for t in 0..T {
                let tile = load_bytes(&weights[t][g].weights[quad]);
                for r in 0..R {
                    let first = _mm256_set1_epi32(inputs[r][g].0[quad]);
                    let second = _mm256_set1_epi32(inputs[r][g].0[quad + HIGH / 4]);
                    for half in 0..2 {
                        let low = _mm256_and_si256(tile[half], mask);
                        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(tile[half]), mask);
                        // four products of 15 and 127 at most fit 16 bits
                        let pairs = _mm256_add_epi16(
                            _mm256_maddubs_epi16(low, first),
                            _mm256_maddubs_epi16(high, second),
                        );
                        let quads = _mm256_madd_epi16(pairs, ones);
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

/// How well each of 16 keys fits; see `attention`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn scores<E: Element>(query: &[f32], keys: &[[E; LANES]]) -> Lanes {
    let keys = &keys[..query.len()];
    let mut sums = [[_mm256_setzero_ps(); 2]; 4];
    let mut k = 0;
    while k + 4 <= query.len() {
        for part in 0..4 {
            let key = widen(&keys[k + part]);
            sums[part] = add_product(sums[part], _mm256_set1_ps(query[k + part]), key);
        }
        k += 4;
    }
    for part in 0..query.len() - k {
        let key = widen(&keys[k + part]);
        sums[part] = add_product(sums[part], _mm256_set1_ps(query[k + part]), key);
    }
    let [a, b, c, d] = sums;
    let mut scores = Lanes::default();
    let low = _mm256_add_ps(_mm256_add_ps(a[0], b[0]), _mm256_add_ps(c[0], d[0]));
    let high = _mm256_add_ps(_mm256_add_ps(a[1], b[1]), _mm256_add_ps(c[1], d[1]));
    store(&mut scores, [low, high]);
    scores
}

/// Adds rows of values, each times its score; see `attention`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_values<E: Element>(sums: &mut [Lanes], scores: &[f32], values: &[[E; LANES]]) {
    let columns = sums.len();
    let values = &values[..scores.len() * columns];
    let mut column = 0;
    while column < columns {
        macro_rules! add {
            ($n:literal) => {{
                let mut held = [[_mm256_setzero_ps(); 2]; $n];
                for part in 0..$n {
                    held[part] = load(&sums[column + part]);
                }
                for position in 0..scores.len() {
                    let score = _mm256_set1_ps(scores[position]);
                    for part in 0..$n {
                        let value = widen(&values[position * columns + column + part]);
                        held[part] = add_product(held[part], score, value);
                    }
                }
                for part in 0..$n {
                    store(&mut sums[column + part], held[part]);
                }
                column += $n;
            }};
        }
        if columns - column >= 4 {
            add!(4);
        } else {
            add!(1);
        }
    }
}

/// Not fused: the portable sums are not either.
#[target_feature(enable = "avx2")]
#[inline]
fn add_product(sums: Pair, factor: __m256, numbers: Pair) -> Pair {
    [
        _mm256_add_ps(sums[0], _mm256_mul_ps(factor, numbers[0])),
        _mm256_add_ps(sums[1], _mm256_mul_ps(factor, numbers[1])),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn add(out: &mut Lanes, sums: Pair) {
    let [low, high] = load(out);
    store(
        out,
        [_mm256_add_ps(low, sums[0]), _mm256_add_ps(high, sums[1])],
    );
}

#[target_feature(enable = "avx2")]
#[inline]
fn store(out: &mut Lanes, numbers: Pair) {
    let (low, high) = out.split_at_mut(8);
    // SAFETY: there are 8 numbers at each
    unsafe {
        _mm256_storeu_ps(low.as_mut_ptr(), numbers[0]);
        _mm256_storeu_ps(high.as_mut_ptr(), numbers[1]);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load(lanes: &Lanes) -> Pair {
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
fn widen<E: Element>(numbers: &[E; LANES]) -> Pair {
    // SAFETY: the processor has what this function is compiled for
    unsafe { E::load_256(numbers) }
}
