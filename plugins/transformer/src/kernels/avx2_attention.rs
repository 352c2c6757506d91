//! Looking up keys and values with AVX2 and FMA.

use std::arch::x86_64::{
    __m256, _MM_HINT_T0, _mm_prefetch, _mm256_fmadd_ps, _mm256_set1_ps, _mm256_setzero_ps,
};

use super::attention::{Keys, Values, in_shapes};
use super::avx2::{Pair, load, store, widen};
use super::element::{Element, LANES, Lanes};

/// See `attention`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn find<E: Element>(keys: Keys<'_, E>, scores: &mut [Lanes]) {
    in_shapes!(
        keys.grid(),
        [(6, 1), (4, 1), (1, 4), (1, 2), (1, 1)],
        find_block,
        keys,
        scores
    );
}

/// See `attention`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn add_values<E: Element>(
    grid: (usize, usize),
    values: Values<'_, E>,
    sums: &mut [Lanes],
) {
    in_shapes!(
        grid,
        [(6, 1), (4, 1), (1, 4), (1, 1)],
        add_values_block,
        values,
        sums
    );
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn find_block<E: Element, const Q: usize, const P: usize>(
    keys: Keys<'_, E>,
    scores: &mut [Lanes],
    query: usize,
    page: usize,
) {
    let (width, count) = (keys.width, keys.pages.len());
    let (mut queries, mut pages) = ([keys.queries; Q], [keys.pages[page]; P]);
    for q in 0..Q {
        queries[q] = &keys.queries[(query + q) * width..][..width];
    }
    for p in 0..P {
        pages[p] = &keys.pages[page + p][..width];
    }
    let mut next = pages;
    if page + 2 * P <= count {
        next.copy_from_slice(&keys.pages[page + P..page + 2 * P]);
    }
    let mut sums = [[[_mm256_setzero_ps(); 2]; P]; Q];
    for k in 0..width {
        let mut numbers = [[_mm256_setzero_ps(); 2]; P];
        for p in 0..P {
            if Q == 1 {
                fetch(&next[p][k]);
            }
            numbers[p] = widen(&pages[p][k]);
        }
        for q in 0..Q {
            let query = _mm256_set1_ps(queries[q][k]);
            for p in 0..P {
                sums[q][p] = add_product(query, numbers[p], sums[q][p]);
            }
        }
    }
    for q in 0..Q {
        for p in 0..P {
            store(&mut scores[(query + q) * count + page + p], sums[q][p]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn add_values_block<E: Element, const Q: usize, const C: usize>(
    values: Values<'_, E>,
    sums: &mut [Lanes],
    query: usize,
    column: usize,
) {
    let columns = values.columns;
    let mut held = [[[_mm256_setzero_ps(); 2]; C]; Q];
    for q in 0..Q {
        for c in 0..C {
            held[q][c] = load(&sums[(query + q) * columns + column + c]);
        }
    }
    for (page, numbers) in values.pages.iter().enumerate() {
        let mut scores = [&values.scores[query * values.stride + page]; Q];
        for q in 1..Q {
            scores[q] = &values.scores[(query + q) * values.stride + page];
        }
        let next = values.pages.get(page + 1).unwrap_or(numbers);
        let positions = LANES.min(values.positions - page * LANES);
        for position in 0..positions {
            let from = position * columns + column;
            let row = &numbers[from..][..C];
            let mut wide = [[_mm256_setzero_ps(); 2]; C];
            for c in 0..C {
                if Q == 1 {
                    fetch(&next[from + c]);
                }
                wide[c] = widen(&row[c]);
            }
            for q in 0..Q {
                let score = _mm256_set1_ps(scores[q][position]);
                for c in 0..C {
                    held[q][c] = add_product(score, wide[c], held[q][c]);
                }
            }
        }
    }
    for q in 0..Q {
        for c in 0..C {
            store(&mut sums[(query + q) * columns + column + c], held[q][c]);
        }
    }
}

/// Brings near what is soon looked up: it lies in another place for each page.
#[inline(always)]
fn fetch<T>(at: &T) {
    // SAFETY: it is a hint, and no access
    unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()) };
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn add_product(factor: __m256, numbers: Pair, sums: Pair) -> Pair {
    [
        _mm256_fmadd_ps(factor, numbers[0], sums[0]),
        _mm256_fmadd_ps(factor, numbers[1], sums[1]),
    ]
}
