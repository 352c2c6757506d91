//! Attention: looking up keys and values in pages.

use std::ops::Range;
use std::sync::Arc;

use super::Level;
use super::element::{Element, LANES, Lanes};
use super::level::{Tier, for_each_level};
use super::page::{Numbers, PAGE, Page};
use super::vector::{exp, in_halves, sum};
#[cfg(target_arch = "x86_64")]
use super::{avx2_attention, avx512_attention};

/// The keys and values that some queries look up: those of one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) pages: &'a [Arc<Page>],
    pub(crate) layer: usize,
    pub(crate) head: usize,
}

/// Room for numbers between, used again and again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// Of each query, for each page.
    scores: Vec<Lanes>,
    /// Of each query.
    sums: Vec<Lanes>,
}

/// Some queries, and keys to compare them with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys<'a, E> {
    /// Side by side.
    pub(super) queries: &'a [f32],
    /// Of a query.
    pub(super) width: usize,
    /// Of each page, the keys' first numbers, then the second ones.
    pub(super) pages: &'a [&'a [[E; LANES]]],
}

/// Values, and what each of them counts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a, E> {
    /// By page, of the first query, then of the next, `stride` further on.
    pub(super) scores: &'a [Lanes],
    pub(super) stride: usize,
    /// Lanes of a value.
    pub(super) columns: usize,
    /// Of each page, the first position's value, then the next.
    pub(super) pages: &'a [&'a [[E; LANES]]],
    pub(super) positions: usize,
}

/// One head's attention: for each of `queries`, which lie side by side and are
/// scaled already, the values weighted by how well their keys fit. Of each
/// query `positions` has those that it sees, the last ones in one page.
///
/// Each sum is of one query and runs over a key's numbers, or over positions, in
/// their order: it does not matter which queries go together, or which positions
/// came in one step.
pub(crate) fn attend(
    level: Level,
    queries: &[f32],
    positions: &[Range<usize>],
    seen: Seen<'_>,
    scratch: &mut Scratch,
    out: &mut [f32],
) {
    let skipped = positions.iter().map(|seen| seen.start).min().unwrap_or(0) / PAGE;
    let end = positions.iter().map(|seen| seen.end).max().unwrap_or(0);
    let pages = &seen.pages[skipped..end.div_ceil(PAGE)];
    macro_rules! attend {
        ($numbers:path) => {{
            let mut keys = Vec::with_capacity(pages.len());
            let mut values = Vec::with_capacity(pages.len());
            for page in pages {
                if let $numbers(numbers) = &page.numbers {
                    keys.push(numbers[page.keys(seen.layer, seen.head)].as_chunks().0);
                    values.push(numbers[page.values(seen.layer, seen.head)].as_chunks().0);
                }
            }
            let keys = Keys {
                queries,
                width: queries.len() / positions.len(),
                pages: &keys,
            };
            attend_pages(
                level,
                keys,
                positions,
                skipped * PAGE,
                &values,
                scratch,
                out,
            );
        }};
    }
    match pages.first().map(|page| &page.numbers) {
        Some(Numbers::F32(_)) => attend!(Numbers::F32),
        Some(Numbers::F16(_)) => attend!(Numbers::F16),
        None => {}
    }
}

/// As [`attend`], of pages that begin with the position `first`.
fn attend_pages<E: Element>(
    level: Level,
    keys: Keys<'_, E>,
    positions: &[Range<usize>],
    first: usize,
    values: &[&[[E; LANES]]],
    Scratch { scores, sums }: &mut Scratch,
    out: &mut [f32],
) {
    let (count, pages) = (positions.len(), keys.pages.len());
    let columns = keys.width.div_ceil(LANES);
    scores.resize(count * pages, Lanes::default());
    sums.clear();
    sums.resize(count * columns, Lanes::default());

    find(level, keys, scores);
    let mut totals = vec![0.0; count];
    for (query, seen) in positions.iter().enumerate() {
        let scores = &mut scores[query * pages..][..pages];
        softmax(
            level,
            scores,
            seen.start - first,
            seen.end - first,
            &mut totals[query],
        );
    }

    // each query has its own share of the last page
    let shared = pages - 1;
    if count > 1 {
        let values = Values {
            scores,
            stride: pages,
            columns,
            pages: &values[..shared],
            positions: shared * PAGE,
        };
        add_values(level, values, sums);
    }
    let begun = if count > 1 { shared } else { 0 };
    for (query, seen) in positions.iter().enumerate() {
        let sums = &mut sums[query * columns..][..columns];
        let values = Values {
            scores: &scores[query * pages + begun..],
            stride: pages,
            columns,
            pages: &values[begun..],
            positions: seen.end - first - begun * PAGE,
        };
        add_values(level, values, sums);
        let out = &mut out[query * keys.width..][..keys.width];
        divide(level, sums, totals[query], out);
    }
}

/// As [`f32::max`] of what are numbers, which is one instruction then.
#[inline(always)]
fn larger(one: f32, other: f32) -> f32 {
    if one > other { one } else { other }
}

for_each_level! {
    /// e to the power of each score, above the largest of them; `total` is their
    /// sum. Before the lane `start` and from `end` on there are none.
    fn softmax(scores: &mut [Lanes], start: usize, end: usize, total: &mut f32) {
        let count = scores.len();
        let all = scores.as_flattened_mut();
        all[..start].fill(f32::NEG_INFINITY);
        all[end..].fill(f32::NEG_INFINITY);
        let mut best = [f32::NEG_INFINITY; LANES];
        for page in 0..count {
            for lane in 0..LANES {
                best[lane] = larger(best[lane], scores[page][lane]);
            }
        }
        let best = in_halves(best, larger);
        for page in 0..count {
            for lane in 0..LANES {
                scores[page][lane] = exp(scores[page][lane] - best);
            }
        }
        let all = scores.as_flattened_mut();
        all[..start].fill(0.0);
        all[end..].fill(0.0);
        let mut totals = Lanes::default();
        for page in 0..count {
            for lane in 0..LANES {
                totals[lane] += scores[page][lane];
            }
        }
        *total = sum(totals);
    }
}

for_each_level! {
    fn divide(sums: &[Lanes], total: f32, out: &mut [f32]) {
        let (whole, rest) = out.as_chunks_mut::<LANES>();
        for column in 0..whole.len() {
            for lane in 0..LANES {
                whole[column][lane] = sums[column][lane] / total;
            }
        }
        for lane in 0..rest.len() {
            rest[lane] = sums[whole.len()][lane] / total;
        }
    }
}

/// Calls `$block::<_, ROWS, COLUMNS>($job, $out, row, column)` for each block of
/// a grid, the blocks being the first of `$shapes` that fits.
macro_rules! in_shapes {
    ($grid:expr, [$(($r:literal, $c:literal)),+], $block:ident, $job:expr, $out:expr) => {{
        let (rows, columns) = $grid;
        let (mut row, mut column) = (0, 0);
        while row < rows && columns > 0 {
            let shape = $(if rows - row >= $r && columns - column >= $c {
                $block::<_, $r, $c>($job, $out, row, column);
                ($r, $c)
            } else)+ {
                unreachable!("one by one fits all")
            };
            column += shape.1;
            if column == columns {
                (row, column) = (row + shape.0, 0);
            }
        }
    }};
}
pub(super) use in_shapes;

impl<E> Keys<'_, E> {
    /// How many queries there are, and pages.
    pub(super) fn grid(&self) -> (usize, usize) {
        (self.queries.len() / self.width, self.pages.len())
    }
}

/// How well each query fits each page's keys: the sum of the products of their
/// numbers.
fn find<E: Element>(level: Level, keys: Keys<'_, E>, scores: &mut [Lanes]) {
    match level.tier() {
        Tier::Portable => {
            in_shapes!(keys.grid(), [(1, 1)], find_block, keys, scores);
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level exists only where these instructions do
        Tier::Avx2 => unsafe { avx2_attention::find(keys, scores) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above
        Tier::Avx512 | Tier::Amx => unsafe { avx512_attention::find(keys, scores) },
    }
}

/// Adds the first positions' values, each times its score, to each query's sums.
fn add_values<E: Element>(level: Level, values: Values<'_, E>, sums: &mut [Lanes]) {
    let grid = (sums.len() / values.columns, values.columns);
    match level.tier() {
        Tier::Portable => in_shapes!(grid, [(1, 1)], add_values_block, values, sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level exists only where these instructions do
        Tier::Avx2 => unsafe { avx2_attention::add_values(grid, values, sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above
        Tier::Avx512 | Tier::Amx => unsafe { avx512_attention::add_values(grid, values, sums) },
    }
}

fn find_block<E: Element, const Q: usize, const P: usize>(
    keys: Keys<'_, E>,
    scores: &mut [Lanes],
    query: usize,
    page: usize,
) {
    let scores = &mut scores[query * keys.pages.len() + page];
    *scores = Lanes::default();
    let query = &keys.queries[query * keys.width..][..keys.width];
    for (query, keys) in query.iter().zip(keys.pages[page]) {
        for (score, key) in scores.iter_mut().zip(keys) {
            *score = query.mul_add(key.widen(), *score);
        }
    }
}

fn add_values_block<E: Element, const Q: usize, const C: usize>(
    values: Values<'_, E>,
    sums: &mut [Lanes],
    query: usize,
    column: usize,
) {
    let sums = &mut sums[query * values.columns + column];
    let scores = values.scores[query * values.stride..].as_flattened();
    for (position, score) in scores[..values.positions].iter().enumerate() {
        let at = position % PAGE * values.columns + column;
        for (sum, value) in sums.iter_mut().zip(values.pages[position / PAGE][at]) {
            *sum = score.mul_add(value.widen(), *sum);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::Random;
    use crate::kernels::{Layout, Memory};

    /// Attention by its formula.
    fn plain(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
        let dot = |key: &Vec<f32>| {
            query
                .iter()
                .zip(key)
                .map(|(q, k)| f64::from(q * k))
                .sum::<f64>()
        };
        let scores: Vec<f64> = keys.iter().map(|key| dot(key).exp()).collect();
        let total: f64 = scores.iter().sum();
        let column = |column: usize| {
            let weighted = scores
                .iter()
                .zip(values)
                .map(|(score, row)| score * f64::from(row[column]));
            (weighted.sum::<f64>() / total) as f32
        };
        (0..query.len()).map(column).collect()
    }

    #[test]
    fn attention_is_that_of_its_formula_on_every_level() {
        let mut random = Random(4);
        for (width, first, positions, is_half) in [
            (8, 0, 1_usize, false),
            (56, 0, 16, false),
            (64, 0, 40, true),
            (10, 0, 33, true),
            (64, 0, 250, false),
            (64, 3, 12, false),
            (10, 32, 33, true),
            (64, 21, 250, false),
        ] {
            let layout = Layout {
                layers: 2,
                heads: 3,
                width,
                is_half,
            };
            let (layer, head) = (1, 2);
            let mut rows = || {
                (0..positions)
                    .map(|_| random.row(width * 3))
                    .collect::<Vec<_>>()
            };
            let (keys, values) = (rows(), rows());
            let mut pages =
                vec![Page::new(layout, &Memory::default()); positions.div_ceil(PAGE) + 1];
            for (position, (keys, values)) in keys.iter().zip(&values).enumerate() {
                pages[position / PAGE].write(Level::best(), layer, position % PAGE, keys, values);
            }
            // what comes after is not seen
            let noise = random.row(width * 3);
            pages[positions / PAGE].write(Level::best(), layer, positions % PAGE, &noise, &noise);

            let pages: Vec<_> = pages.into_iter().map(Arc::new).collect();
            // further queries see a position less each, in the same page
            let count = ((positions - 1) % PAGE).min(positions - first - 1).min(12) + 1;
            let sees: Vec<_> = (0..count)
                .map(|query| first.saturating_sub(query)..positions - query)
                .collect();
            let queries = random.row(width * count);
            let part = |rows: &[Vec<f32>], seen: &Range<usize>| -> Vec<Vec<f32>> {
                rows[seen.clone()]
                    .iter()
                    .map(|row| row[head * width..][..width].to_vec())
                    .collect()
            };
            let expected = queries
                .chunks(width)
                .zip(&sees)
                .flat_map(|(query, seen)| plain(query, &part(&keys, seen), &part(&values, seen)));
            let expected: Vec<_> = expected.collect();
            let of = |level, queries: &[f32], sees: &[Range<usize>]| {
                let mut out = vec![0.0; queries.len()];
                let seen = Seen {
                    pages: &pages,
                    layer,
                    head,
                };
                attend(
                    level,
                    queries,
                    sees,
                    seen,
                    &mut Scratch::default(),
                    &mut out,
                );
                out
            };
            let portable = of(Level::all()[0], &queries, &sees);
            let tolerance = if is_half { 2e-3 } else { 1e-5 };
            for (ours, expected) in portable.iter().zip(&expected) {
                assert!(
                    (ours - expected).abs() < tolerance,
                    "{width} {positions}: {ours} {expected}"
                );
            }
            for &level in Level::all() {
                let together = of(level, &queries, &sees);
                assert_eq!(together, portable, "{level:?} {width} {positions}");
                for (query, seen) in sees.iter().enumerate() {
                    let at = query * width..(query + 1) * width;
                    let alone = of(level, &queries[at.clone()], std::slice::from_ref(seen));
                    assert_eq!(alone, portable[at], "{level:?} {width} {positions}");
                }
            }
        }
    }
}
