//! What Llama and its kind do to rows, beside what GPT-2 does.

use super::level::for_each_level;
use super::vector::{exp, sum_of};

for_each_level! {
    /// Divides `row` by the root of its squares' mean, in place.
    pub(crate) fn normalize_rms(row: &mut [f32], gain: &[f32], epsilon: f32) {
        let width = row.len();
        let gain = &gain[..width];
        let scale = 1.0 / (sum_of(row, |value| value * value) / width as f32 + epsilon).sqrt();
        for k in 0..width {
            row[k] = row[k] * scale * gain[k];
        }
    }
}

for_each_level! {
    /// Turns each pair of a head's numbers, `k` and `k` after the middle, by an
    /// angle of which these are the cosine and the sine.
    pub(crate) fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
        let (low, high) = head.split_at_mut(head.len() / 2);
        let pairs = low.len();
        let (high, cosines, sines) = (&mut high[..pairs], &cosines[..pairs], &sines[..pairs]);
        for k in 0..pairs {
            let (x, y) = (low[k], high[k]);
            low[k] = x * cosines[k] - y * sines[k];
            high[k] = y * cosines[k] + x * sines[k];
        }
    }
}

for_each_level! {
    /// SiLU of each number, `x · sigmoid(x)`, times the one in `gated`.
    pub(crate) fn silu_gate(row: &mut [f32], gated: &[f32]) {
        let gated = &gated[..row.len()];
        for k in 0..row.len() {
            row[k] = row[k] / (1.0 + exp(-row[k])) * gated[k];
        }
    }
}

for_each_level! {
    /// GELU by tanh of each number, times the one in `gated`.
    pub(crate) fn gelu_tanh_gate(row: &mut [f32], gated: &[f32]) {
        let gated = &gated[..row.len()];
        for k in 0..row.len() {
            let x = row[k];
            let inner = x * (1.595_769 + 0.071_354_814 * x * x);
            row[k] = x / (1.0 + exp(-inner)) * gated[k];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Level;
    use crate::kernels::tests::Random;

    #[test]
    fn rows_are_those_of_their_formulas_and_the_same_bits_on_every_level() {
        let mut random = Random(3);
        for width in [2, 16, 34, 250] {
            let (row, other, third) = (random.row(width), random.row(width), random.row(width));
            let of = |level| {
                let mut rows = [row.clone(), row.clone(), row.clone(), row.clone()];
                normalize_rms(level, &mut rows[0], &other, 1e-6);
                rotate(level, &mut rows[1], &other, &third);
                silu_gate(level, &mut rows[2], &other);
                gelu_tanh_gate(level, &mut rows[3], &other);
                rows
            };
            let portable = of(Level::all()[0]);
            for &level in Level::all() {
                assert_eq!(of(level), portable, "{level:?} {width}");
            }
            let squares: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
            let root = (squares / width as f64 + 1e-6).sqrt();
            for k in 0..width {
                let (x, gain) = (f64::from(row[k]), f64::from(other[k]));
                let tanh = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
                let half = width / 2;
                let (pair, mate) = (k % half, f64::from(row[(k + half) % width]));
                let (cosine, sine) = (f64::from(other[pair]), f64::from(third[pair]));
                let exact = [
                    x / root * gain,
                    x * cosine + if k < half { -mate * sine } else { mate * sine },
                    x / (1.0 + (-x).exp()) * gain,
                    0.5 * x * (1.0 + tanh.tanh()) * gain,
                ];
                for (ours, exact) in portable.iter().zip(exact) {
                    assert!((f64::from(ours[k]) - exact).abs() < 1e-5, "{width} {k}");
                }
            }
        }
    }
}
