//! Keys and values in pages.

use std::ops::Range;

use half::f16;

use super::Level;
use super::element::{Element, LANES};
use super::level::for_each_level;
use super::memory::{Memory, Piece};

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
    pub(super) numbers: Numbers,
}

#[derive(Clone, Debug)]
pub(super) enum Numbers {
    F32(Piece<f32>),
    F16(Piece<f16>),
}

impl Page {
    /// A page in which no position is set: what it holds is left from another, or 0.
    pub(crate) fn new(layout: Layout, memory: &Memory) -> Self {
        let len = layout.start(layout.layers, 0);
        let numbers = if layout.is_half {
            Numbers::F16(Piece::new(memory, len))
        } else {
            Numbers::F32(Piece::new(memory, len))
        };
        Self { layout, numbers }
    }

    /// Where the keys of a head are.
    pub(super) fn keys(&self, layer: usize, head: usize) -> Range<usize> {
        let start = self.layout.start(layer, head);
        start..start + PAGE * self.layout.width
    }

    /// Where the values of a head are.
    pub(super) fn values(&self, layer: usize, head: usize) -> Range<usize> {
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
