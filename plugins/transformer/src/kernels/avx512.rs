//! Products with AVX-512 and its dot product of bytes (VNNI).

use std::arch::x86_64::{
    __m512, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512,
    _mm512_cvtepi32_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mul_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_setzero_si512, _mm512_slli_epi32, _mm512_srli_epi16, _mm512_storeu_ps, _mm512_xor_si512,
};

use super::element::{Element, LANES, Lanes};
use super::nibbles::{HIGH, Nibbles};
use super::product::{Product, Share, alike, in_blocks};
use super::quantized::{GROUP, Group, Mark, ShortGroup, Tile, Wide};

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
pub(super) fn nibbles(product: Product<'_, Nibbles, ShortGroup>, out: &mut [Lanes]) {
    in_blocks!(product, out, 2, nibbles_block);
}

#[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn dense_block<E: Element, const T: usize, const R: usize>(
    mut weights: [&[[E; 16]]; T],
    mut inputs: [&[f32]; R],
    _: [&[Mark]; R],
    _: Share,
) -> [[__m512; R]; T] {
    /// Inputs of which the weights are brought near ahead.
    const AHEAD: usize = 96;
    let depth = inputs[0].len();
    alike(&mut weights, depth);
    alike(&mut inputs, depth);
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    for k in 0..depth {
        // as `fetch` does, a few lines ahead and into the next tiles in the end
        let next = if k + AHEAD < depth {
            AHEAD
        } else {
            AHEAD + (T - 1) * depth
        };
        let mut tiles = [_mm512_setzero_ps(); T];
        for t in 0..T {
            // for many rows it counts little
            if R < 6 {
                fetch_line(&weights[t][k], next);
            }
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
    mut weights: [&[Tile]; T],
    mut inputs: [&[Group]; R],
    mut marks: [&[Mark]; R],
    share: Share,
) -> [[__m512; R]; T] {
    let depth = inputs[0].len();
    alike(&mut weights, depth);
    alike(&mut inputs, depth);
    alike(&mut marks, depth);
    let sign = _mm512_set1_epi8(-128);
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    for g in 0..depth {
        let next = next(weights, g, share);
        let mut whole = [[_mm512_setzero_si512(); R]; T];
        for r in 0..R {
            let offset = _mm512_set1_epi32(marks[r][g].offset);
            for t in 0..T {
                whole[t][r] = offset;
            }
        }
        for quad in 0..GROUP / 4 {
            let mut tiles = [_mm512_setzero_si512(); T];
            for t in 0..T {
                if let Some(next) = next {
                    fetch_line(&weights[t][g].weights[quad], next);
                }
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
            if let Some(next) = next {
                fetch_line(&weights[t][g].scales, next);
            }
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
    mut weights: [&[Tile]; T],
    mut inputs: [&[Wide]; R],
    mut marks: [&[Mark]; R],
    share: Share,
) -> [[__m512; R]; T] {
    let depth = inputs[0].len();
    alike(&mut weights, depth);
    alike(&mut inputs, depth);
    alike(&mut marks, depth);
    let sign = _mm512_set1_epi8(-128);
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    for g in 0..depth {
        let next = next(weights, g, share);
        let mut high = [[_mm512_setzero_si512(); R]; T];
        let mut low = [[_mm512_setzero_si512(); R]; T];
        for r in 0..R {
            let offset = _mm512_set1_epi32(marks[r][g].offset);
            for t in 0..T {
                low[t][r] = offset;
            }
        }
        for quad in 0..GROUP / 4 {
            let mut tiles = [_mm512_setzero_si512(); T];
            for t in 0..T {
                if let Some(next) = next {
                    fetch_line(&weights[t][g].weights[quad], next);
                }
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
            if let Some(next) = next {
                fetch_line(&weights[t][g].scales, next);
            }
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
    mut weights: [&[Nibbles]; T],
    mut inputs: [&[ShortGroup]; R],
    mut marks: [&[Mark]; R],
    share: Share,
) -> [[__m512; R]; T] {
    let depth = inputs[0].len();
    alike(&mut weights, depth);
    alike(&mut inputs, depth);
    alike(&mut marks, depth);
    let mask = _mm512_set1_epi8(15);
    let mut sums = [[_mm512_setzero_ps(); R]; T];
    for g in 0..depth {
        let next = next(weights, g, share);
        let mut whole = [[_mm512_setzero_si512(); R]; T];
        for quad in 0..HIGH / 4 {
            let mut low = [mask; T];
            let mut high = [mask; T];
            for t in 0..T {
                if let Some(next) = next {
                    fetch_line(&weights[t][g].weights[quad], next);
                }
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
            if let Some(next) = next {
                // half a line each, with the lowest weights
                fetch_line(&weights[t][g].scales, 2 * next);
            }
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

/// Brings near what is so much further on.
#[inline(always)]
pub(super) fn fetch_line<T>(at: &T, further: usize) {
    let at = std::ptr::from_ref(at).wrapping_add(further).cast();
    // SAFETY: it is a hint, and no access
    unsafe { _mm_prefetch::<_MM_HINT_T1>(at) };
}

/// Brings near what is multiplied soon: the processor by itself does not look beyond a
/// page. A block that has all rows does so line by line, for memory to have always as much
/// to do: so many lines further on in its tiles, or in the next ones. Another one fetches
/// its share of the next tiles here, while rows are multiplied with what is there already.
/// Only as far as the second cache, which can wait for more lines at once than the first.
#[inline(always)]
fn next<W, const T: usize>(
    weights: [&[W]; T],
    g: usize,
    Share { from, to, of }: Share,
) -> Option<usize> {
    const AHEAD: usize = 48;
    let (depth, lines) = (weights[0].len(), size_of::<W>() / 64);
    if to - from == of {
        let is_there = (g + 1) * lines + AHEAD <= depth * lines;
        return Some(if is_there {
            AHEAD
        } else {
            AHEAD + (T - 1) * depth * lines
        });
    }
    let next = weights[0].as_ptr().wrapping_add(T * (depth + g));
    for line in T * lines * from / of..T * lines * to / of {
        let at = next.cast::<i8>().wrapping_add(line * 64);
        // SAFETY: it is a hint, and no access
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at) };
    }
    None
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn add(out: &mut Lanes, (bias, is_sum): (&Lanes, bool), sums: __m512) {
    let bias = load(bias);
    let base = if is_sum {
        _mm512_add_ps(load(out), bias)
    } else {
        bias
    };
    store(out, _mm512_add_ps(base, sums));
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn store(out: &mut Lanes, numbers: __m512) {
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
