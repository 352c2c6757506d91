//! Products, on every level, against sums in the plainest way.

use std::num::NonZeroUsize;

use super::element::LANES;
use super::{Base, Dtype, GROUP, Input, Level, Matrix, Memory, Order, Panel, Team};

/// Numbers in -1 to 1 out of a seed.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn row(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.number()).collect()
    }

    fn number(&mut self) -> f32 {
        // Knuth's constants
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// More than two of the largest blocks.
const MOST_ROWS: usize = 34;

/// Rows times the matrix, added to ones.
fn multiply(
    level: Level,
    threads: usize,
    matrix: &Matrix,
    rows: &[Vec<f32>],
    outputs: usize,
) -> Vec<Vec<f32>> {
    let mut team = Team::new(NonZeroUsize::new(threads).unwrap()).unwrap();
    let mut input = Input::default();
    matrix.fill(level, &mut team, rows.len(), &mut input, |row, to| {
        to.copy_from_slice(&rows[row]);
    });
    let mut out = Panel::default();
    out.resize(rows.len(), matrix.tiles());
    let ones = vec![[1.0; LANES]; matrix.tiles()];
    // nothing is in a new panel
    let base = Base {
        bias: &ones,
        is_sum: threads > 1,
    };
    matrix.multiply(level, &mut team, &input, base, &mut out, |_| ());
    let read = |row| {
        let mut values = vec![0.0; outputs];
        out.read(row, 0, &mut values);
        values
    };
    (0..rows.len()).map(read).collect()
}

#[test]
fn products_are_right_on_every_level_and_rows_do_not_depend_on_each_other() {
    let mut random = Random(7);
    for (inputs, outputs) in [(1, 1), (48, 144), (64, 16), (65, 33), (224, 100), (300, 90)] {
        let weights = random.row(inputs * outputs);
        let rows: Vec<_> = (0..MOST_ROWS).map(|_| random.row(inputs)).collect();
        let weight = |input: usize, output: usize| weights[input * outputs + output];
        for dtype in Dtype::ALL {
            let matrix = Matrix::pack(dtype, inputs, outputs, weight);
            let alone: Vec<_> = Level::all()
                .iter()
                .map(|&level| {
                    let alone = |row: &Vec<f32>| {
                        multiply(level, 1, &matrix, std::slice::from_ref(row), outputs).remove(0)
                    };
                    rows.iter().map(alone).collect::<Vec<_>>()
                })
                .collect();
            // against sums of the numbers that the matrix holds
            let is_whole = matches!(dtype, Dtype::Q8 | Dtype::W8A16 | Dtype::Q4);
            let tolerance = if is_whole { 0.01 } else { 1e-5 };
            let held: Vec<_> = (0..outputs)
                .map(|output| {
                    let mut weights = vec![0.0; inputs];
                    matrix.output(output, &mut weights);
                    weights
                })
                .collect();
            for (row, ours) in rows.iter().zip(&alone[0]) {
                for (output, weights) in held.iter().enumerate() {
                    let products = row
                        .iter()
                        .zip(weights)
                        .map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let exact = 1.0 + products.sum::<f64>();
                    let off = (f64::from(ours[output]) - exact).abs();
                    assert!(
                        off < tolerance * (inputs as f64).sqrt(),
                        "{dtype:?} {inputs} {outputs}: {off}"
                    );
                }
            }
            for (&level, alone_here) in Level::all().iter().zip(&alone) {
                for count in (1..=13).chain([16, 17, 31, MOST_ROWS]) {
                    for threads in [1, 3] {
                        let together = multiply(level, threads, &matrix, &rows[..count], outputs);
                        assert_eq!(
                            together,
                            alone_here[..count],
                            "{dtype:?} {level:?} {count} {threads}"
                        );
                    }
                }
                for (ours, portable) in alone_here.iter().flatten().zip(alone[0].iter().flatten()) {
                    // only fused multiplications differ
                    let allowed = if is_whole { 0.0 } else { 1e-5 };
                    assert!((ours - portable).abs() <= allowed, "{dtype:?} {level:?}");
                }
            }
        }
    }
}

#[test]
fn products_of_the_largest_numbers_fit_on_every_level() {
    const INPUTS: usize = 128;
    // signs alike everywhere, alike in each sum, and changing within it
    let signs = [
        |_, _| 1.0,
        |_, o| [1.0, -1.0][o % 2],
        |k, o| [1.0, -1.0][(k / 3 + o) % 2],
    ];
    for sign in signs {
        let rows: Vec<Vec<f32>> = (0..5)
            .map(|row| (0..INPUTS).map(|k| sign(k, row)).collect())
            .collect();
        for dtype in [Dtype::Q8, Dtype::W8A16, Dtype::Q4] {
            let matrix = Matrix::pack(dtype, INPUTS, 32, sign);
            let portable = multiply(Level::all()[0], 1, &matrix, &rows, 32);
            for (row, products) in rows.iter().zip(&portable) {
                for (output, product) in products.iter().enumerate() {
                    let exact = (0..INPUTS).map(|k| row[k] * sign(k, output)).sum::<f32>();
                    assert!(
                        (product - 1.0 - exact).abs() < 0.1,
                        "{dtype:?}: {product} {exact}"
                    );
                }
            }
            for &level in Level::all() {
                let ours = multiply(level, 1, &matrix, &rows, 32);
                assert_eq!(ours, portable, "{dtype:?} {level:?}");
            }
        }
    }
}

#[test]
fn weights_are_held_to_the_precision_of_their_type() {
    let mut random = Random(9);
    let weights = random.row(100 * 40);
    for dtype in Dtype::ALL {
        let matrix = Matrix::pack(dtype, 100, 40, |input, output| {
            weights[output * 100 + input]
        });
        assert_eq!(matrix.len(), 4000);
        let step = match dtype {
            Dtype::F32 => 0.0,
            Dtype::F16 => 1.0 / 2048.0,
            Dtype::Bf16 => 1.0 / 256.0,
            Dtype::Q8 | Dtype::W8A16 => 1.0 / 253.0,
            // what is cut off at an end of the range
            Dtype::Q4 => 0.2,
        };
        for output in 0..40 {
            let mut held = vec![0.0; 100];
            matrix.output(output, &mut held);
            for (held, weight) in held.iter().zip(&weights[output * 100..]) {
                assert!((held - weight).abs() <= step, "{dtype:?}: {held} {weight}");
            }
        }
    }
}

#[test]
fn a_matrix_is_the_same_however_its_file_has_it() {
    let mut random = Random(9);
    let (inputs, outputs) = (300, 90);
    let by_input = random.row(inputs * outputs);
    let by_output: Vec<_> = (0..inputs * outputs)
        .map(|n| by_input[n % inputs * outputs + n / inputs])
        .collect();
    for dtype in Dtype::ALL {
        let empty = || Matrix::empty(dtype, inputs, outputs, &Memory::default());
        let (mut whole, mut bands, mut rows) = (empty(), empty(), empty());
        whole.set(0..inputs, 0..outputs, Order::ByInput, &by_input);
        for band in [0..GROUP, GROUP..inputs] {
            let numbers = &by_input[band.start * outputs..band.end * outputs];
            bands.set(band, 0..outputs, Order::ByInput, numbers);
        }
        for part in [0..32, 32..outputs] {
            let numbers = &by_output[part.start * inputs..part.end * inputs];
            rows.set(0..inputs, part, Order::ByOutput, numbers);
        }
        let weights = |matrix: &Matrix| -> Vec<f32> {
            let mut weights = vec![0.0; inputs * outputs];
            for (output, weights) in weights.chunks_exact_mut(inputs).enumerate() {
                matrix.output(output, weights);
            }
            weights
        };
        assert_eq!(weights(&bands), weights(&whole), "{dtype:?}");
        assert_eq!(weights(&rows), weights(&whole), "{dtype:?}");
        if dtype == Dtype::F32 {
            assert_eq!(weights(&whole), by_output);
        }
    }
}
