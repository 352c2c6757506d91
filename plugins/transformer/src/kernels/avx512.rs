//! Products with AVX-512 and its dot product of bytes (VNNI).

use std::arch::x86_64::{
    __m512, __m512i, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_cvtepi32_ps, _mm512_cvtps_epi32,
    _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512,
    _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_xor_si512,
};

use super::element::{Element, LANES, Lanes};
use super::nibbles::{HIGH, Nibbles};
use super::product::{Product, in_blocks};
use super::quantized::{GROUP, Group, Mark, Tile, Wide};

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn dense<E: Element>(product: Product<'_, [E; 16], f32>, out: &mut [Lanes]) {
    in_blocks!(product, out, 2, dense_block);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn quantized(product: Product<'_, Tile, Group>, out: &mut [Lanes]) {
    in_blocks!(product, out, 2, quantized_block);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn wide(product: Product<'_, Tile, Wide>, out: &mut [Lanes]) {
    in_blocks!(product, out, 2, wide_block);
}

/// See [`Product::add_to`].
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn nibbles(product: Product<'_, Nibbles, Group>, out: &mut [Lanes]) {
    in_blocks!(product, out, 2, nibbles_block);
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn dense_block<E: Element, const T: usize, const R: usize>(
    weights: [&[[E; 16]]; T],
    inputs: [&[f32]; R],
    _: [&[Mark]; R],
) -> [[__m512; R]; T] {
    let depth = inputs[0].len();
    let (weights, inputs) = (weights.map(|w| &w[..depth]), inputs.map(|x| &x[..depth]));
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    for k in 0..depth {
        let mut tiles = [_mm512_setzero_ps(); T];
        for t in 0..T {
            tiles[t] = widen(&weights[t][k]);
        }
        for r in 0..R {
            let input = _mm512_set1_ps(inputs[r][k]);
            for t in 0..T {
                sums[t][r] = _mm512_fmadd_ps(input, tiles[t], sums[t][r]);
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn quantized_block<const T: usize, const R: usize>(
    weights: [&[Tile]; T],
    inputs: [&[Group]; R],
    marks: [&[Mark]; R],
) -> [[__m512; R]; T] {
    let depth = inputs[0].len();
    let (weights, inputs) = (weights.map(|w| &w[..depth]), inputs.map(|x| &x[..depth]));
    let marks = marks.map(|marks| &marks[..depth]);
    let sign = _mm512_set1_epi8(-128);
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    for g in 0..depth {
        let mut whole = [[_mm512_setzero_si512(); R]; T];
        for r in 0..R {
            let correction = correction(&marks[r][g]);
            for t in 0..T {
                whole[t][r] = correction;
            }
        }
        for quad in 0..GROUP / 4 {
            let mut tiles = [_mm512_setzero_si512(); T];
            for t in 0..T {
                let signed = load_bytes(&weights[t][g].weights[quad]);
                tiles[t] = _mm512_xor_si512(signed, sign);
            }
            for r in 0..R {
                let input = _mm512_set1_epi32(inputs[r][g].0[quad]);
                for t in 0..T {
                    whole[t][r] = _mm512_dpbusd_epi32(whole[t][r], tiles[t], input);
                }
            }
        }
        for t in 0..T {
            let scales = load(&weights[t][g].scales);
            for r in 0..R {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(marks[r][g].scale));
                let whole = _mm512_cvtepi32_ps(whole[t][r]);
                sums[t][r] = _mm512_fmadd_ps(whole, scale, sums[t][r]);
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn wide_block<const T: usize, const R: usize>(
    weights: [&[Tile]; T],
    inputs: [&[Wide]; R],
    marks: [&[Mark]; R],
) -> [[__m512; R]; T] {
    let depth = inputs[0].len();
    let (weights, inputs) = (weights.map(|w| &w[..depth]), inputs.map(|x| &x[..depth]));
    let marks = marks.map(|marks| &marks[..depth]);
    let sign = _mm512_set1_epi8(-128);
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    for g in 0..depth {
        let mut high = [[_mm512_setzero_si512(); R]; T];
        let mut low = [[_mm512_setzero_si512(); R]; T];
        for r in 0..R {
            let correction = correction(&marks[r][g]);
            for t in 0..T {
                low[t][r] = correction;
            }
        }
        for quad in 0..GROUP / 4 {
            let mut tiles = [_mm512_setzero_si512(); T];
            for t in 0..T {
                let signed = load_bytes(&weights[t][g].weights[quad]);
                tiles[t] = _mm512_xor_si512(signed, sign);
            }
            for r in 0..R {
                let first = _mm512_set1_epi32(inputs[r][g].high[quad]);
                let second = _mm512_set1_epi32(inputs[r][g].low[quad]);
                for t in 0..T {
                    high[t][r] = _mm512_dpbusd_epi32(high[t][r], tiles[t], first);
                    low[t][r] = _mm512_dpbusd_epi32(low[t][r], tiles[t], second);
                }
            }
        }
        for t in 0..T {
            let scales = load(&weights[t][g].scales);
            for r in 0..R {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(marks[r][g].scale));
                let whole = _mm512_add_epi32(_mm512_slli_epi32::<8>(high[t][r]), low[t][r]);
                sums[t][r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(whole), scale, sums[t][r]);
            }
        }
    }
    sums
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn nibbles_block<const T: usize, const R: usize>(
    weights: [&[Nibbles]; T],
    inputs: [&[Group]; R],
    marks: [&[Mark]; R],
) -> [[__m512; R]; T] {
    let depth = inputs[0].len();
    let (weights, inputs) = (weights.map(|w| &w[..depth]), inputs.map(|x| &x[..depth]));
    let marks = marks.map(|marks| &marks[..depth]);
    let mask = _mm512_set1_epi8(15);
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    for g in 0..depth {
        let mut whole = [[_mm512_setzero_si512(); R]; T];
        for quad in 0..HIGH / 4 {
            let mut low = [mask; T];
            let mut high = [mask; T];
            for t in 0..T {
                let bytes = load_bytes(&weights[t][g].weights[quad]);
                low[t] = _mm512_and_si512(bytes, mask);
                high[t] = _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask);
            }
            for r in 0..R {
                let first = _mm512_set1_epi32(inputs[r][g].0[quad]);
                let second = _mm512_set1_epi32(inputs[r][g].0[quad + HIGH / 4]);
                for t in 0..T {
                    whole[t][r] = _mm512_dpbusd_epi32(whole[t][r], low[t], first);
                    whole[t][r] = _mm512_dpbusd_epi32(whole[t][r], high[t], second);
                }
            }
        }
        for t in 0..T {
            let (scales, lowest) = (widen(&weights[t][g].scales), widen(&weights[t][g].lowest));
            for r in 0..R {
                let moved = _mm512_mul_ps(lowest, _mm512_set1_ps(marks[r][g].sum));
                let sum = _mm512_fmadd_ps(scales, _mm512_cvtepi32_ps(whole[t][r]), moved);
                let scale = _mm512_set1_ps(marks[r][g].scale);
                sums[t][r] = _mm512_fmadd_ps(sum, scale, sums[t][r]);
            }
        }
    }
    sums
}

/// How well each of 16 keys fits; see `attention`.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn scores<E: Element>(query: &[f32], keys: &[[E; LANES]]) -> Lanes {
    let keys = &keys[..query.len()];
    let mut sums = [_mm512_setzero_ps(); 4];
    let mut k = 0;
    while k + 4 <= query.len() {
        for part in 0..4 {
            let key = widen(&keys[k + part]);
            let product = _mm512_mul_ps(_mm512_set1_ps(query[k + part]), key);
            sums[part] = _mm512_add_ps(sums[part], product);
        }
        k += 4;
    }
    for part in 0..query.len() - k {
        let key = widen(&keys[k + part]);
        let product = _mm512_mul_ps(_mm512_set1_ps(query[k + part]), key);
        sums[part] = _mm512_add_ps(sums[part], product);
    }
    let [a, b, c, d] = sums;
    let mut scores = Lanes::default();
    store(
        &mut scores,
        _mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)),
    );
    scores
}

/// Adds rows of values, each times its score; see `attention`.
#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn add_values<E: Element>(sums: &mut [Lanes], scores: &[f32], values: &[[E; LANES]]) {
    let columns = sums.len();
    let values = &values[..scores.len() * columns];
    let mut column = 0;
    while column < columns {
        macro_rules! add {
            ($n:literal) => {{
                let mut held = [_mm512_setzero_ps(); $n];
                for part in 0..$n {
                    held[part] = load(&sums[column + part]);
                }
                for position in 0..scores.len() {
                    let score = _mm512_set1_ps(scores[position]);
                    for part in 0..$n {
                        let value = widen(&values[position * columns + column + part]);
                        held[part] = _mm512_add_ps(held[part], _mm512_mul_ps(score, value));
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

/// What weights without a sign add to a sum, with the sign changed.
#[target_feature(enable = "avx512f")]
#[inline]
fn correction(mark: &Mark) -> __m512i {
    let sum = _mm512_set1_ps(mark.sum);
    _mm512_cvtps_epi32(_mm512_mul_ps(sum, _mm512_set1_ps(-128.0)))
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn add(out: &mut Lanes, sums: __m512) {
    store(out, _mm512_add_ps(load(out), sums));
}

#[target_feature(enable = "avx512f")]
#[inline]
fn store(out: &mut Lanes, numbers: __m512) {
    // SAFETY: there are 16 numbers at `out`
    unsafe { _mm512_storeu_ps(out.as_mut_ptr(), numbers) };
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load(lanes: &Lanes) -> __m512 {
    // SAFETY: there are 16 numbers
    unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_bytes<B>(bytes: &[B; 64]) -> __m512i {
    // SAFETY: there are 64 bytes
    unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn widen<E: Element>(numbers: &[E; LANES]) -> __m512 {
    // SAFETY: the processor has what this function is compiled for
    unsafe { E::load_512(numbers) }
}
