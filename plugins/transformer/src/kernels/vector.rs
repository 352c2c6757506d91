//! What is done to one row of numbers, or to each number of many.

use super::element::{LANES, Lanes};
use super::level::for_each_level;

/// What `f` makes of all lanes, halves onto halves.
#[inline(always)]
pub(super) fn in_halves(mut lanes: Lanes, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = f(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The sum of the lanes.
#[inline(always)]
pub(super) fn sum(lanes: Lanes) -> f32 {
    in_halves(lanes, |one, other| one + other)
}

/// The sum over a row of what `f` makes of each number.
#[inline(always)]
pub(super) fn sum_of(row: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            sums[lane] += f(chunk[lane]);
        }
    }
    for lane in 0..rest.len() {
        sums[lane] += f(rest[lane]);
    }
    sum(sums)
}

/// e to the power of `x`, to within two units in the last place, for `x` in
/// ±87; beyond that what the bound gives. After `expf` of Moshier's Cephes.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it leaves a whole number in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    let x = x - whole * 0.693_359_4;
    let x = x + whole * 2.121_944_4e-4;
    let y = 1.987_569_1e-4 * x + 1.398_2e-3;
    let y = y * x + 8.333_452e-3;
    let y = y * x + 4.166_579_6e-2;
    let y = y * x + 0.166_666_66;
    let y = y * x + 0.5;
    let y = y * x * x + x + 1.0;
    let exponent = shifted
        .to_bits()
        .wrapping_sub(ROUND.to_bits())
        .wrapping_add(127);
    y * f32::from_bits(exponent << 23)
}

for_each_level! {
    /// Layer norm of `row`, in place.
    pub(crate) fn normalize(row: &mut [f32], gain: &[f32], bias: &[f32], epsilon: f32) {
        let width = row.len();
        let (gain, bias) = (&gain[..width], &bias[..width]);
        let mean = sum_of(row, |value| value) / width as f32;
        let variance = sum_of(row, |value| (value - mean) * (value - mean)) / width as f32;
        let scale = 1.0 / (variance + epsilon).sqrt();
        for k in 0..width {
            row[k] = (row[k] - mean) * scale * gain[k] + bias[k];
        }
    }
}

for_each_level! {
    /// GELU by tanh, of each number: `x · sigmoid(2 √(2/π) (x + 0.044715 x³))`.
    pub(crate) fn gelu_tanh(values: &mut [Lanes]) {
        for lanes in values {
            for lane in 0..LANES {
                let x = lanes[lane];
                let inner = x * (1.595_769 + 0.071_354_814 * x * x);
                lanes[lane] = x / (1.0 + exp(-inner));
            }
        }
    }
}

/// GELU by the error function, of each number.
pub(crate) fn gelu(values: &mut [Lanes]) {
    for value in values.as_flattened_mut() {
        *value *= 0.5 * (1.0 + libm::erff(*value * std::f32::consts::FRAC_1_SQRT_2));
    }
}

for_each_level! {
    /// What is below 0 becomes 0.
    pub(crate) fn relu(values: &mut [Lanes]) {
        for lanes in values {
            for lane in 0..LANES {
                lanes[lane] = lanes[lane].max(0.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;
    use crate::kernels::tests::Random;

    #[test]
    fn exp_is_as_exact_as_f32_can_be() {
        for step in -8700..8700_i16 {
            let x = f32::from(step) / 100.0;
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                ((ours - exact) / exact).abs() < 2.4e-7,
                "{x}: {ours} {exact}"
            );
        }
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn activations_are_those_of_their_formulas() {
        for step in -800..800_i16 {
            let x = f32::from(step) / 100.0;
            let mut tanh = [[x; LANES]; 1];
            gelu_tanh(Level::best(), &mut tanh);
            let wide = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let exact = 0.5 * wide * (1.0 + inner.tanh());
            assert!((f64::from(tanh[0][0]) - exact).abs() < 1e-6, "{x}");

            let mut erf = [[x; LANES]; 1];
            gelu(&mut erf);
            assert!((erf[0][3] - tanh[0][3]).abs() < 1e-3, "{x}");
        }
    }

    #[test]
    fn every_level_gives_the_same_bits() {
        let mut random = Random(1);
        for width in [1, 15, 48, 224, 250] {
            let (row, gain, bias) = (random.row(width), random.row(width), random.row(width));
            let lanes: Vec<Lanes> = (0..9)
                .map(|_| random.row(LANES).try_into().unwrap())
                .collect();
            let of = |level| {
                let (mut row, mut lanes) = (row.clone(), lanes.clone());
                normalize(level, &mut row, &gain, &bias, 1e-5);
                gelu_tanh(level, &mut lanes);
                (row, lanes)
            };
            let portable = of(Level::all()[0]);
            for &level in Level::all() {
                assert_eq!(of(level), portable, "{level:?} {width}");
            }
        }
    }
}
