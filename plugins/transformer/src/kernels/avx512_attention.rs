//! Looking up keys and values with AVX-512.

use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_set1_ps, _mm512_setzero_ps};

use super::attention::{Keys, Values, in_shapes};
use super::avx512::{fetch_line, load, store, widen};
use super::element::{Element, LANES, Lanes};

/// See `attention`.
#[target_feature(enable = "avx512f")]
pub(super) fn find<E: Element>(keys: Keys<'_, E>, scores: &mut [Lanes]) {
    in_shapes!(
        keys.grid(),
        [(8, 2), (8, 1), (1, 8), (1, 4), (1, 2), (1, 1)],
        find_block,
        keys,
        scores
    );
}

/// See `attention`.
#[target_feature(enable = "avx512f")]
pub(super) fn add_values<E: Element>(
    grid: (usize, usize),
    values: Values<'_, E>,
    sums: &mut [Lanes],
) {
    in_shapes!(
        grid,
        [(8, 2), (8, 1), (1, 4), (1, 1)],
        add_values_block,
        values,
        sums
    );
}

#[target_feature(enable = "avx512f")]
#[inline]
fn find_block<E: Element, const Q: usize, const P: usize>(
    keys: Keys<'_, E>,
    scores: &mut [Lanes],
    query: usize,
    page: usize,
) {
    let width = keys.width;
    let mut queries = [&keys.queries[query * width..][..width]; Q];
    for q in 1..Q {
        queries[q] = &keys.queries[(query + q) * width..][..width];
    }
    let mut pages = [&keys.pages[page][..width]; P];
    for p in 1..P {
        pages[p] = &keys.pages[page + p][..width];
    }
    let mut next = pages;
    if page + 2 * P <= keys.pages.len() {
        for p in 0..P {
            next[p] = keys.pages[page + P + p];
        }
    }
    let mut sums = [[_mm512_setzero_ps(); P]; Q];
    for k in 0..width {
        let mut numbers = [_mm512_setzero_ps(); P];
        for p in 0..P {
            if Q == 1 {
                // a page lies in another place than the one before, and its values behind the keys
                fetch_line(&next[p][k], 0);
                fetch_line(&pages[p][k], width);
            }
            numbers[p] = widen(&pages[p][k]);
        }
        for q in 0..Q {
            let query = _mm512_set1_ps(queries[q][k]);
            for p in 0..P {
                sums[q][p] = _mm512_fmadd_ps(query, numbers[p], sums[q][p]);
            }
        }
    }
    for q in 0..Q {
        for p in 0..P {
            let at = (query + q) * keys.pages.len() + page + p;
            store(&mut scores[at], sums[q][p]);
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn add_values_block<E: Element, const Q: usize, const C: usize>(
    values: Values<'_, E>,
    sums: &mut [Lanes],
    query: usize,
    column: usize,
) {
    let columns = values.columns;
    let mut held = [[_mm512_setzero_ps(); C]; Q];
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
        let positions = LANES.min(values.positions - page * LANES);
        for (position, numbers) in numbers.chunks_exact(columns).take(positions).enumerate() {
            let numbers = &numbers[column..][..C];
            for q in 0..Q {
                let score = _mm512_set1_ps(scores[q][position]);
                for c in 0..C {
                    held[q][c] = _mm512_fmadd_ps(score, widen(&numbers[c]), held[q][c]);
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
