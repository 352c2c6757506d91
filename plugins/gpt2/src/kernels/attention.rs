//! Keys and values in pages, and attention over them.

use std::sync::Arc;

use half::f16;

use super::Level;
use super::element::{Element, LANES, Lanes};
use super::level::for_each_level;
use super::vector::{exp, sum};

/// Positions of a page.
pub(crate) const PAGE: usize = LANES;

/// How one page is laid out: for each layer and head the keys, a row for each
/// of a key's numbers with the 16 positions side by side, then the values, a
/// row for each position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) layers: usize,
    pub(crate) heads: usize,
    /// Width of a head.
    pub(crate) width: usize,
    /// Whether numbers are held in 16 bits.
    pub(crate) is_half: bool,
}

impl Layout {
    /// Width of a value's row: whole lanes.
    fn padded(self) -> usize {
        self.width.next_multiple_of(LANES)
    }

    fn of_head(self) -> usize {
        PAGE * (self.width + self.padded())
    }

    fn start(self, layer: usize, head: usize) -> usize {
        (layer * self.heads + head) * self.of_head()
    }
}

/// Keys and values of 16 positions, in all layers and heads.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    layout: Layout,
    numbers: Numbers,
}

#[derive(Clone, Debug)]
enum Numbers {
    F32(Box<[f32]>),
    F16(Box<[f16]>),
}

impl Page {
    /// A page with nothing in it.
    pub(crate) fn new(layout: Layout) -> Self {
        let len = layout.start(layout.layers, 0);
        let numbers = if layout.is_half {
            Numbers::F16(vec![f16::ZERO; len].into())
        } else {
            Numbers::F32(vec![0.0; len].into())
        };
        Self { layout, numbers }
    }

    /// Sets a layer's keys and values at `position` of this page, each of all
    /// heads side by side.
    pub(crate) fn write(
        &mut self,
        level: Level,
        layer: usize,
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let layout = self.layout;
        let numbers = layout.start(layer, 0)..layout.start(layer + 1, 0);
        match &mut self.numbers {
            Numbers::F32(all) => write(level, &mut all[numbers], layout, position, keys, values),
            Numbers::F16(all) => write(level, &mut all[numbers], layout, position, keys, values),
        }
    }
}

for_each_level! {
    fn write<E: Element>(
        numbers: &mut [E],
        layout: Layout,
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let heads = keys.chunks_exact(layout.width).zip(values.chunks_exact(layout.width));
        for ((key, value), numbers) in heads.zip(numbers.chunks_exact_mut(layout.of_head())) {
            let (keys, values) = numbers.split_at_mut(PAGE * layout.width);
            for (row, &number) in keys.as_chunks_mut::<PAGE>().0.iter_mut().zip(key) {
                row[position] = E::narrow(number);
            }
            let row = &mut values[position * layout.padded()..];
            for (to, &number) in row.iter_mut().zip(value) {
                *to = E::narrow(number);
            }
        }
    }
}

/// Which keys and values a query sees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) pages: &'a [Arc<Page>],
    pub(crate) layer: usize,
    pub(crate) head: usize,
    /// The first so many positions; at least 1.
    pub(crate) positions: usize,
}

for_each_level! {
    /// One head's attention: the values, weighted by how well their keys fit
    /// `query`, which is scaled already. The sums run over the positions in
    /// their order, so it does not matter which of them came in one step.
    pub(crate) fn attend(query: &[f32], seen: Seen<'_>, scratch: &mut Vec<Lanes>, out: &mut [f32]) {
        let pages = &seen.pages[..seen.positions.div_ceil(PAGE)];
        scratch.clear();
        for page in pages {
            let layout = page.layout;
            let start = layout.start(seen.layer, seen.head);
            scratch.push(match &page.numbers {
                Numbers::F32(numbers) => scores(query, &numbers[start..][..PAGE * layout.width]),
                Numbers::F16(numbers) => scores(query, &numbers[start..][..PAGE * layout.width]),
            });
        }
        let in_last = seen.positions - (pages.len() - 1) * PAGE;
        if let Some(last) = scratch.last_mut() {
            last[in_last..].fill(f32::NEG_INFINITY);
        }
        let mut best = [f32::NEG_INFINITY; LANES];
        for scores in scratch.iter() {
            for (best, score) in best.iter_mut().zip(scores) {
                *best = best.max(*score);
            }
        }
        let best = best.into_iter().fold(f32::NEG_INFINITY, f32::max);
        for scores in scratch.iter_mut() {
            for score in scores {
                *score = exp(*score - best);
            }
        }
        if let Some(last) = scratch.last_mut() {
            last[in_last..].fill(0.0);
        }
        let mut total = Lanes::default();
        for scores in scratch.iter() {
            for (total, score) in total.iter_mut().zip(scores) {
                *total += score;
            }
        }
        let total = sum(total);

        for (chunk, out) in out.chunks_mut(LANES).enumerate() {
            let mut sums = Lanes::default();
            for (index, (page, scores)) in pages.iter().zip(scratch.iter()).enumerate() {
                let layout = page.layout;
                let start = layout.start(seen.layer, seen.head) + PAGE * layout.width;
                let scores = if index + 1 == pages.len() { &scores[..in_last] } else { scores };
                let (at, row) = (start + chunk * LANES, layout.padded());
                match &page.numbers {
                    Numbers::F32(numbers) => add_values(&mut sums, scores, &numbers[at..], row),
                    Numbers::F16(numbers) => add_values(&mut sums, scores, &numbers[at..], row),
                }
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = sum / total;
            }
        }
    }
}

/// How well each of 16 keys fits.
#[inline(always)]
fn scores<E: Element>(query: &[f32], keys: &[E]) -> Lanes {
    // four sums, so that an addition need not wait for the one before
    let mut sums = [Lanes::default(); 4];
    let (keys, _) = keys.as_chunks::<PAGE>();
    let (keys, rest) = keys.as_chunks::<4>();
    let (query, query_rest) = query.as_chunks::<4>();
    for (query, keys) in query.iter().zip(keys) {
        for ((sums, query), keys) in sums.iter_mut().zip(query).zip(keys) {
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum += query * key.widen();
            }
        }
    }
    for ((sums, query), keys) in sums.iter_mut().zip(query_rest).zip(rest) {
        for (sum, key) in sums.iter_mut().zip(keys) {
            *sum += query * key.widen();
        }
    }
    let [a, b, c, d] = sums;
    std::array::from_fn(|lane| (a[lane] + b[lane]) + (c[lane] + d[lane]))
}

/// Adds 16 columns of the values, each row times its score.
#[inline(always)]
fn add_values<E: Element>(sums: &mut Lanes, scores: &[f32], values: &[E], row: usize) {
    for (score, values) in scores.iter().zip(values.chunks(row)) {
        for (sum, value) in sums.iter_mut().zip(&values[..LANES]) {
            *sum += score * value.widen();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::tests::Random;

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
        for (width, positions, is_half) in [
            (8, 1_usize, false),
            (56, 16, false),
            (64, 40, true),
            (10, 33, true),
            (64, 250, false),
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
            let mut pages = vec![Page::new(layout); positions.div_ceil(PAGE) + 1];
            for (position, (keys, values)) in keys.iter().zip(&values).enumerate() {
                pages[position / PAGE].write(Level::best(), layer, position % PAGE, keys, values);
            }
            // what comes after is not seen
            let noise = random.row(width * 3);
            pages[positions / PAGE].write(Level::best(), layer, positions % PAGE, &noise, &noise);

            let pages: Vec<_> = pages.into_iter().map(Arc::new).collect();
            let query = random.row(width);
            let part = |rows: &[Vec<f32>]| -> Vec<Vec<f32>> {
                rows.iter()
                    .map(|row| row[head * width..][..width].to_vec())
                    .collect()
            };
            let expected = plain(&query, &part(&keys), &part(&values));
            let of = |level| {
                let mut out = vec![0.0; width];
                let seen = Seen {
                    pages: &pages,
                    layer,
                    head,
                    positions,
                };
                attend(level, &query, seen, &mut Vec::new(), &mut out);
                out
            };
            let portable = of(Level::all()[0]);
            let tolerance = if is_half { 2e-3 } else { 1e-5 };
            for (ours, expected) in portable.iter().zip(&expected) {
                assert!(
                    (ours - expected).abs() < tolerance,
                    "{width} {positions}: {ours} {expected}"
                );
            }
            for level in Level::all() {
                assert_eq!(of(level), portable, "{level:?} {width} {positions}");
            }
        }
    }
}
