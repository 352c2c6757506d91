//! A matrix of weights, packed for the kernels.

use half::{bf16, f16};

use super::element::{Element, LANES, Lanes};
use super::product::Product;
use super::quantized::{GROUP, Group, Tile, quantize};
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
    /// 8 bits, with a scale for every 64 inputs of an output.
    Q8,
}

impl Dtype {
    /// All of them, with the names they have in a configuration.
    pub(crate) const ALL: [(Self, &str); 4] = [
        (Self::F32, "f32"),
        (Self::F16, "f16"),
        (Self::Bf16, "bf16"),
        (Self::Q8, "q8"),
    ];
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
    F32(Vec<[f32; LANES]>),
    F16(Vec<[f16; LANES]>),
    Bf16(Vec<[bf16; LANES]>),
    Q8(Vec<Tile>),
}

/// Rows that go into a product, as the matrix needs them.
#[derive(Debug)]
pub(crate) enum Input {
    /// As they are.
    Dense(Vec<f32>),
    /// In groups.
    Quantized(Vec<Group>),
}

impl Matrix {
    /// Packs a matrix of `inputs` by `outputs`; `weight(input, output)` gives
    /// each number.
    pub(crate) fn pack(
        dtype: Dtype,
        inputs: usize,
        outputs: usize,
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let mut matrix = Self::empty(dtype, inputs, outputs);
        matrix.push(outputs, weight);
        matrix
    }

    /// A matrix of `inputs` with room for `outputs`, and none of them yet.
    pub(crate) fn empty(dtype: Dtype, inputs: usize, outputs: usize) -> Self {
        let tiles = outputs.div_ceil(LANES);
        let tiles = match dtype {
            Dtype::F32 => Tiles::F32(Vec::with_capacity(inputs * tiles)),
            Dtype::F16 => Tiles::F16(Vec::with_capacity(inputs * tiles)),
            Dtype::Bf16 => Tiles::Bf16(Vec::with_capacity(inputs * tiles)),
            Dtype::Q8 => Tiles::Q8(Vec::with_capacity(inputs.div_ceil(GROUP) * tiles)),
        };
        Self {
            inputs,
            outputs: 0,
            tiles,
        }
    }

    /// Packs the next `outputs`, numbered from 0 in `weight(input, output)`. All
    /// but the last call bring whole tiles, multiples of 16.
    pub(crate) fn push(&mut self, outputs: usize, weight: impl Fn(usize, usize) -> f32) {
        assert!(self.outputs.is_multiple_of(LANES), "a tile is not whole");
        self.outputs += outputs;
        let inputs = self.inputs;
        let lanes = |input: usize, tile: usize| -> Lanes {
            std::array::from_fn(|lane| {
                let output = tile * LANES + lane;
                if input < inputs && output < outputs {
                    weight(input, output)
                } else {
                    0.0
                }
            })
        };
        for tile in 0..outputs.div_ceil(LANES) {
            match &mut self.tiles {
                Tiles::F32(tiles) => extend(tiles, inputs, |input| lanes(input, tile)),
                Tiles::F16(tiles) => extend(tiles, inputs, |input| lanes(input, tile)),
                Tiles::Bf16(tiles) => extend(tiles, inputs, |input| lanes(input, tile)),
                Tiles::Q8(tiles) => {
                    let groups = 0..inputs.div_ceil(GROUP);
                    tiles.extend(groups.map(|group| {
                        Tile::quantize(&std::array::from_fn(|k| lanes(group * GROUP + k, tile)))
                    }));
                }
            }
        }
    }

    /// Weights, those of the fill not counted.
    pub(crate) fn len(&self) -> usize {
        self.inputs * self.outputs
    }

    /// Tiles of 16 outputs.
    pub(crate) fn tiles(&self) -> usize {
        self.outputs.div_ceil(LANES)
    }

    /// Writes the weights of one output.
    pub(crate) fn output(&self, output: usize, weights: &mut [f32]) {
        let (tile, lane) = (output / LANES, output % LANES);
        for (k, weight) in weights[..self.inputs].iter_mut().enumerate() {
            let at = tile * self.inputs + k;
            *weight = match &self.tiles {
                Tiles::F32(tiles) => tiles[at][lane],
                Tiles::F16(tiles) => tiles[at][lane].widen(),
                Tiles::Bf16(tiles) => tiles[at][lane].widen(),
                Tiles::Q8(tiles) => {
                    let groups = self.inputs.div_ceil(GROUP);
                    tiles[tile * groups + k / GROUP].weight(k % GROUP, lane)
                }
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
        match (&self.tiles, input) {
            (Tiles::Q8(_), Input::Quantized(groups)) => {
                let in_row = width.div_ceil(GROUP);
                groups.resize(rows * in_row, Group::default());
                team.each(groups, in_row, |first, groups| {
                    let mut numbers = vec![0.0; width];
                    for (row, groups) in groups.chunks_exact_mut(in_row).enumerate() {
                        write(first + row, &mut numbers);
                        quantize(level, &numbers, groups);
                    }
                });
            }
            (Tiles::Q8(_), input) => {
                *input = Input::Quantized(Vec::new());
                self.fill(level, team, rows, input, write);
            }
            (_, Input::Dense(numbers)) => {
                numbers.resize(rows * width, 0.0);
                team.each(numbers, width, |first, numbers| {
                    for (row, numbers) in numbers.chunks_exact_mut(width).enumerate() {
                        write(first + row, numbers);
                    }
                });
            }
            (_, input) => {
                *input = Input::Dense(Vec::new());
                self.fill(level, team, rows, input, write);
            }
        }
    }

    /// Multiplies the rows of `input` with this matrix into `out`. `before`
    /// prepares what the product is added to, `after` ends it; both get some
    /// tiles' lanes, the first by tile.
    pub(crate) fn multiply(
        &self,
        level: Level,
        team: &mut Team,
        input: &Input,
        out: &mut Panel,
        before: impl Fn(usize, &mut [Lanes]) + Sync,
        after: impl Fn(&mut [Lanes]) + Sync,
    ) {
        let rows = out.rows();
        team.each(out.lanes_mut(), rows, |first, out| {
            for (tile, out) in out.chunks_exact_mut(rows).enumerate() {
                before(first + tile, out);
            }
            self.add_product(level, first, input, out);
            after(out);
        });
    }

    fn add_product(&self, level: Level, first: usize, input: &Input, out: &mut [Lanes]) {
        macro_rules! product {
            ($tiles:expr, $rows:expr, $depth:expr) => {
                Product {
                    weights: &$tiles[first * $depth..]
                        [..out.len() / ($rows.len() / $depth) * $depth],
                    depth: $depth,
                    rows: $rows,
                }
                .add_to(level, out)
            };
        }
        match (&self.tiles, input) {
            (Tiles::F32(tiles), Input::Dense(rows)) => product!(tiles, rows, self.inputs),
            (Tiles::F16(tiles), Input::Dense(rows)) => product!(tiles, rows, self.inputs),
            (Tiles::Bf16(tiles), Input::Dense(rows)) => product!(tiles, rows, self.inputs),
            (Tiles::Q8(tiles), Input::Quantized(rows)) => {
                product!(tiles, rows, self.inputs.div_ceil(GROUP));
            }
            _ => unreachable!("`fill` made the input for this matrix"),
        }
    }
}

fn extend<E: Element>(tiles: &mut Vec<[E; LANES]>, inputs: usize, lanes: impl Fn(usize) -> Lanes) {
    tiles.extend((0..inputs).map(|input| lanes(input).map(E::narrow)));
}
