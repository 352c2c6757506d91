//! Keys and values in pages, and attention over them.

use std::ops::Range;
use std::sync::Arc;

use half::f16;

use super::Level;
use super::element::{Element, LANES, Lanes};
use super::level::{Tier, for_each_level};
use super::vector::{exp, sum};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512};

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
    /// Bytes of a page.
    pub(crate) fn bytes(self) -> usize {
        self.start(self.layers, 0) * if self.is_half { 2 } else { 4 }
    }

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

    /// Where the keys of a head are.
    fn keys(&self, layer: usize, head: usize) -> Range<usize> {
        let start = self.layout.start(layer, head);
        start..start + PAGE * self.layout.width
    }

    /// Where the values of a head are.
    fn values(&self, layer: usize, head: usize) -> Range<usize> {
        let start = self.layout.start(layer, head);
        start + PAGE * self.layout.width..start + self.layout.of_head()
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
        for head in 0..layout.heads {
            let numbers = &mut numbers[head * layout.of_head()..][..layout.of_head()];
            let (to_keys, to_values) = numbers.split_at_mut(PAGE * layout.width);
            let key = &keys[head * layout.width..][..layout.width];
            let value = &values[head * layout.width..][..layout.width];
            for k in 0..layout.width {
                to_keys[k * PAGE + position] = E::narrow(key[k]);
            }
            let to_value = &mut to_values[position * layout.padded()..][..layout.width];
            for k in 0..layout.width {
                to_value[k] = E::narrow(value[k]);
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
    /// The first position that is seen.
    pub(crate) first: usize,
    /// The position after the last.
    pub(crate) positions: usize,
}

/// One head's attention: the values, weighted by how well their keys fit
/// `query`, which is scaled already. The sums run over the positions in their
/// order, so it does not matter which of them came in one step.
pub(crate) fn attend(
    level: Level,
    query: &[f32],
    seen: Seen<'_>,
    scratch: &mut Vec<Lanes>,
    out: &mut [f32],
) {
    let skipped = seen.first / PAGE;
    let before = seen.first % PAGE;
    let pages = &seen.pages[skipped..seen.positions.div_ceil(PAGE)];
    let in_last = seen.positions - (skipped + pages.len() - 1) * PAGE;
    scratch.clear();
    for page in pages {
        let keys = page.keys(seen.layer, seen.head);
        scratch.push(match &page.numbers {
            Numbers::F32(numbers) => scores(level, query, &numbers[keys]),
            Numbers::F16(numbers) => scores(level, query, &numbers[keys]),
        });
    }
    let mut total = 0.0;
    softmax(level, scratch, before, in_last, &mut total);

    let mut sums = vec![Lanes::default(); query.len().div_ceil(LANES)];
    for (index, (page, scores)) in pages.iter().zip(scratch.iter()).enumerate() {
        let values = page.values(seen.layer, seen.head);
        let scores = if index + 1 == pages.len() {
            &scores[..in_last]
        } else {
            scores
        };
        match &page.numbers {
            Numbers::F32(numbers) => add_values(level, &mut sums, scores, &numbers[values]),
            Numbers::F16(numbers) => add_values(level, &mut sums, scores, &numbers[values]),
        }
    }
    for (out, sum) in out.iter_mut().zip(sums.as_flattened()) {
        *out = sum / total;
    }
}

for_each_level! {
    /// e to the power of each score, above the largest of them; `total` is their
    /// sum. Up to `before` in the first lanes and beyond `in_last` in the last ones
    /// there are none.
    fn softmax(scores: &mut [Lanes], before: usize, in_last: usize, total: &mut f32) {
        if let Some(first) = scores.first_mut() {
            first[..before].fill(f32::NEG_INFINITY);
        }
        if let Some(last) = scores.last_mut() {
            last[in_last..].fill(f32::NEG_INFINITY);
        }
        let mut best = [f32::NEG_INFINITY; LANES];
        for page in 0..scores.len() {
            for lane in 0..LANES {
                best[lane] = best[lane].max(scores[page][lane]);
            }
        }
        let best = best.into_iter().fold(f32::NEG_INFINITY, f32::max);
        for page in 0..scores.len() {
            for lane in 0..LANES {
                scores[page][lane] = exp(scores[page][lane] - best);
            }
        }
        if let Some(first) = scores.first_mut() {
            first[..before].fill(0.0);
        }
        if let Some(last) = scores.last_mut() {
            last[in_last..].fill(0.0);
        }
        let mut totals = Lanes::default();
        for page in 0..scores.len() {
            for lane in 0..LANES {
                totals[lane] += scores[page][lane];
            }
        }
        *total = sum(totals);
    }
}

/// How well each of a page's keys fits: four sums over the query's numbers, each
/// taking every fourth, added up in the end.
fn scores<E: Element>(level: Level, query: &[f32], keys: &[E]) -> Lanes {
    let (keys, _) = keys.as_chunks();
    match level.tier() {
        Tier::Portable => {
            let mut sums = [Lanes::default(); 4];
            for (k, (query, keys)) in query.iter().zip(keys).enumerate() {
                for (sum, key) in sums[k % 4].iter_mut().zip(keys) {
                    *sum += query * key.widen();
                }
            }
            let [a, b, c, d] = sums;
            std::array::from_fn(|lane| (a[lane] + b[lane]) + (c[lane] + d[lane]))
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level exists only where these instructions do
        Tier::Avx2 => unsafe { avx2::scores(query, keys) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above
        Tier::Avx512 | Tier::Amx => unsafe { avx512::scores(query, keys) },
    }
}

/// Adds a page's first values, each times its score.
fn add_values<E: Element>(level: Level, sums: &mut [Lanes], scores: &[f32], values: &[E]) {
    let (values, _) = values.as_chunks();
    match level.tier() {
        Tier::Portable => {
            for (score, values) in scores.iter().zip(values.chunks(sums.len())) {
                for (sums, values) in sums.iter_mut().zip(values) {
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum += score * value.widen();
                    }
                }
            }
        }
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level exists only where these instructions do
        Tier::Avx2 => unsafe { avx2::add_values(sums, scores, values) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above
        Tier::Avx512 | Tier::Amx => unsafe { avx512::add_values(sums, scores, values) },
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
                rows[first..]
                    .iter()
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
                    first,
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
            for &level in Level::all() {
                assert_eq!(of(level), portable, "{level:?} {width} {positions}");
            }
        }
    }
}
