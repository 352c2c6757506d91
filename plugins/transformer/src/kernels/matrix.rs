//! A matrix of weights, packed for the kernels.

use std::ops::Range;

use half::{bf16, f16};

use super::element::{Element, LANES, Lanes};
use super::level::for_each_level;
use super::memory::{Memory, Piece};
use super::nibbles::{Nibbles, pack};
use super::product::{Base, Product};
use super::quantized::{
    GROUP, Group, Mark, SHORT, ShortGroup, Tile, Wide, quantize, quantize_short, quantize_tile,
    quantize_wide,
};
use super::{Level, Panel, Team};

/// What weights are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dtype {
    /// 32 bits, as they were trained.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// 8 bits, with a scale for every 128 inputs of an output.
    Q8,
    /// 8 bits as for `Q8`, times inputs in 16 bits; the last layer in half precision.
    W8A16,
    /// 4 bits, with a scale and a lowest weight for every 64 inputs of an output;
    /// the last layer as for `Q8`.
    Q4,
}

impl Dtype {
    pub(crate) const ALL: [Self; 6] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q8,
        Self::W8A16,
        Self::Q4,
    ];

    /// Its name in a configuration.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8 => "q8",
            Self::W8A16 => "w8a16",
            Self::Q4 => "q4",
        }
    }

    /// What the output layer is held in: the tokens' order by likelihood shows
    /// its errors at once.
    pub(crate) fn of_output(self) -> Self {
        match self {
            Self::W8A16 => Self::F16,
            Self::Q4 => Self::Q8,
            other => other,
        }
    }
}

/// How numbers of a matrix lie in a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Order {
    /// Of the first input those of all outputs, then of the next.
    ByInput,
    /// Of the first output those of all inputs, then of the next.
    ByOutput,
}

/// Weights of every output over the inputs.
#[derive(Debug)]
pub(crate) struct Matrix {
    inputs: usize,
    outputs: usize,
    tiles: Tiles,
}

/// Tile after tile, inputs in order within each; the outputs that fill up the
/// last tile have weights of 0.
#[derive(Debug)]
enum Tiles {
    F32(Piece<[f32; LANES]>),
    F16(Piece<[f16; LANES]>),
    Bf16(Piece<[bf16; LANES]>),
    Q8(Piece<Tile>),
    W8A16(Piece<Tile>),
    Q4(Piece<Nibbles>),
}

/// Rows that go into a product, in the form that the matrix needs; room for the
/// other forms is kept, and for as many rows as there ever were.
#[derive(Debug, Default)]
pub(crate) struct Input {
    rows: usize,
    /// As they are.
    dense: Vec<f32>,
    /// In groups, in 8 bits.
    groups: Vec<Group>,
    /// In groups for weights in 4 bits, in 8 bits.
    short: Vec<ShortGroup>,
    /// In groups, in 16 bits.
    wide: Vec<Wide>,
    /// What goes with each group.
    marks: Vec<Mark>,
}

impl Matrix {
    /// Packs a matrix of `inputs` by `outputs`; `weight(input, output)` gives
    /// each number.
    #[cfg(test)]
    pub(crate) fn pack(
        dtype: Dtype,
        inputs: usize,
        outputs: usize,
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let mut matrix = Self::empty(dtype, inputs, outputs, &Memory::default());
        let numbers: Vec<_> = (0..inputs * outputs)
            .map(|n| weight(n / outputs, n % outputs))
            .collect();
        matrix.set(0..inputs, 0..outputs, Order::ByInput, &numbers);
        matrix
    }

    /// A matrix of `inputs` by `outputs`, whose weights are to be [set](Self::set).
    pub(crate) fn empty(dtype: Dtype, inputs: usize, outputs: usize, memory: &Memory) -> Self {
        let tiles = outputs.div_ceil(LANES);
        let (numbers, groups) = (inputs * tiles, inputs.div_ceil(GROUP) * tiles);
        let short = inputs.div_ceil(SHORT) * tiles;
        let tiles = match dtype {
            Dtype::F32 => Tiles::F32(Piece::new(memory, numbers)),
            Dtype::F16 => Tiles::F16(Piece::new(memory, numbers)),
            Dtype::Bf16 => Tiles::Bf16(Piece::new(memory, numbers)),
            Dtype::Q8 => Tiles::Q8(Piece::new(memory, groups)),
            Dtype::W8A16 => Tiles::W8A16(Piece::new(memory, groups)),
            Dtype::Q4 => Tiles::Q4(Piece::new(memory, short)),
        };
        Self {
            inputs,
            outputs,
            tiles,
        }
    }

    /// Packs the weights between some inputs and some outputs. They begin at
    /// multiples of [`GROUP`] and of [`LANES`], and end at such or at the last.
    pub(crate) fn set(
        &mut self,
        inputs: Range<usize>,
        outputs: Range<usize>,
        order: Order,
        numbers: &[f32],
    ) {
        assert!(inputs.start.is_multiple_of(GROUP) && outputs.start.is_multiple_of(LANES));
        let level = Level::best();
        let (all, short) = (self.inputs.div_ceil(GROUP), self.inputs.div_ceil(SHORT));
        for output in outputs.clone().step_by(LANES) {
            for input in inputs.clone().step_by(GROUP) {
                // what fills up the last group and the last tile stays 0
                let mut lanes = [Lanes::default(); GROUP];
                let len = GROUP.min(inputs.end - input);
                let width = LANES.min(outputs.end - output);
                let (input_there, output_there) = (input - inputs.start, output - outputs.start);
                match order {
                    Order::ByInput => {
                        let rows = numbers.chunks_exact(outputs.len()).skip(input_there);
                        for (lanes, row) in lanes[..len].iter_mut().zip(rows) {
                            lanes[..width].copy_from_slice(&row[output_there..][..width]);
                        }
                    }
                    Order::ByOutput => {
                        let rows = numbers.chunks_exact(inputs.len()).skip(output_there);
                        for (lane, row) in rows.take(width).enumerate() {
                            for (lanes, number) in lanes.iter_mut().zip(&row[input_there..]) {
                                lanes[lane] = *number;
                            }
                        }
                    }
                }
                let tile = output / LANES;
                let first = tile * self.inputs + input;
                match &mut self.tiles {
                    Tiles::F32(tiles) => narrow(level, &lanes[..len], &mut tiles[first..]),
                    Tiles::F16(tiles) => narrow(level, &lanes[..len], &mut tiles[first..]),
                    Tiles::Bf16(tiles) => narrow(level, &lanes[..len], &mut tiles[first..]),
                    Tiles::Q8(tiles) | Tiles::W8A16(tiles) => {
                        quantize_tile(level, &lanes, &mut tiles[tile * all + input / GROUP]);
                    }
                    Tiles::Q4(tiles) => {
                        let tiles = &mut tiles[tile * short..][..short][input / SHORT..];
                        for (lanes, tile) in lanes.as_chunks().0.iter().zip(tiles) {
                            pack(level, lanes, tile);
                        }
                    }
                }
            }
        }
    }

    /// Weights, those of the fill not counted.
    pub(crate) fn len(&self) -> usize {
        self.inputs * self.outputs
    }

    /// How many outputs there are.
    pub(crate) fn outputs(&self) -> usize {
        self.outputs
    }

    /// Tiles of 16 outputs.
    pub(crate) fn tiles(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Writes the weights of one output.
    pub(crate) fn output(&self, output: usize, weights: &mut [f32]) {
        let (tile, lane) = (output / LANES, output % LANES);
        let (groups, short) = (self.inputs.div_ceil(GROUP), self.inputs.div_ceil(SHORT));
        for (k, weight) in weights[..self.inputs].iter_mut().enumerate() {
            let at = tile * self.inputs + k;
            *weight = match &self.tiles {
                Tiles::F32(tiles) => tiles[at][lane],
                Tiles::F16(tiles) => tiles[at][lane].widen(),
                Tiles::Bf16(tiles) => tiles[at][lane].widen(),
                Tiles::Q8(tiles) | Tiles::W8A16(tiles) => {
                    tiles[tile * groups + k / GROUP].weight(k % GROUP, lane)
                }
                Tiles::Q4(tiles) => tiles[tile * short + k / SHORT].weight(k % SHORT, lane),
            };
        }
    }

    /// Makes `input` hold `rows` rows for this matrix; `write(row, numbers)`
    /// fills each in.
    pub(crate) fn fill(
        &self,
        level: Level,
        team: &mut Team,
        rows: usize,
        input: &mut Input,
        write: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let width = self.inputs;
        input.rows = rows;
        macro_rules! quantized {
            ($groups:expr, $group:expr, $quantize:ident) => {{
                let in_row = width.div_ceil($group);
                let groups = (first($groups, rows * in_row), in_row);
                let marks = (first(&mut input.marks, rows * in_row), in_row);
                team.each_pair(groups, marks, |first, groups, marks| {
                    let mut numbers = vec![0.0; width];
                    let groups = groups.chunks_exact_mut(in_row);
                    let marks = marks.chunks_exact_mut(in_row);
                    for (row, (groups, marks)) in (first..).zip(groups.zip(marks)) {
                        write(row, &mut numbers);
                        $quantize(level, &numbers, groups, marks);
                    }
                });
            }};
        }
        match &self.tiles {
            Tiles::Q8(_) => quantized!(&mut input.groups, GROUP, quantize),
            Tiles::W8A16(_) => quantized!(&mut input.wide, GROUP, quantize_wide),
            Tiles::Q4(_) => quantized!(&mut input.short, SHORT, quantize_short),
            Tiles::F32(_) | Tiles::F16(_) | Tiles::Bf16(_) => {
                let numbers = first(&mut input.dense, rows * width);
                team.each(numbers, width, |first, numbers| {
                    for (row, numbers) in numbers.chunks_exact_mut(width).enumerate() {
                        write(first + row, numbers);
                    }
                });
            }
        }
    }

    /// Sets `out` to the product of the rows of `input` with this matrix, added to `base`.
    /// `after` ends it; it gets some tiles' lanes.
    pub(crate) fn multiply(
        &self,
        level: Level,
        team: &mut Team,
        input: &Input,
        base: Base<'_>,
        out: &mut Panel,
        after: impl Fn(&mut [Lanes]) + Sync,
    ) {
        let rows = out.rows();
        team.each(out.lanes_mut(), rows, |first, out| {
            let bias = base.bias.get(first..).unwrap_or_default();
            let base = Base { bias, ..base };
            self.add_product(level, first, input, base, out);
            after(out);
        });
    }

    fn add_product(
        &self,
        level: Level,
        first: usize,
        input: &Input,
        base: Base<'_>,
        out: &mut [Lanes],
    ) {
        let rows = input.rows;
        macro_rules! product {
            ($tiles:expr, $rows:expr, $depth:expr, $marks:expr) => {
                Product {
                    weights: &$tiles[first * $depth..][..out.len() / rows * $depth],
                    depth: $depth,
                    rows: &$rows[..rows * $depth],
                    marks: $marks,
                    base,
                }
                .add_to(level, out)
            };
        }
        let (groups, short) = (self.inputs.div_ceil(GROUP), self.inputs.div_ceil(SHORT));
        let marks = &input.marks;
        match &self.tiles {
            Tiles::F32(tiles) => product!(tiles, input.dense, self.inputs, &[]),
            Tiles::F16(tiles) => product!(tiles, input.dense, self.inputs, &[]),
            Tiles::Bf16(tiles) => product!(tiles, input.dense, self.inputs, &[]),
            Tiles::Q8(tiles) => product!(tiles, input.groups, groups, marks),
            Tiles::W8A16(tiles) => product!(tiles, input.wide, groups, marks),
            Tiles::Q4(tiles) => product!(tiles, input.short, short, marks),
        }
    }
}

/// The first `len` items; there will be as many.
fn first<T: Clone + Default>(items: &mut Vec<T>, len: usize) -> &mut [T] {
    if items.len() < len {
        items.resize(len, T::default());
    }
    &mut items[..len]
}

for_each_level! {
    fn narrow<E: Element>(lanes: &[Lanes], to: &mut [[E; LANES]]) {
        for k in 0..lanes.len() {
            for lane in 0..LANES {
                to[k][lane] = E::narrow(lanes[k][lane]);
            }
        }
    }
}
