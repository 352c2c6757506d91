//! Rotary embeddings: positions as angles by which pairs of a head's numbers
//! are turned. After Su et al., "RoFormer" (2021); the kinds of scaling as in
//! transformers' `modeling_rope_utils.py`.

use std::f64::consts::TAU;

use serde::Deserialize;

use super::refuse;
use crate::checkpoint::Refusal;

/// The angle that each pair of numbers is turned by from one position to the
/// next, in radians; pair `i` is the numbers `i` and `i + pairs`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rotary {
    pub(crate) angles: Vec<f32>,
}

/// `rope_scaling` or `rope_parameters` of a `config.json`.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Parameters {
    rope_type: Option<String>,
    /// The older name of `rope_type`; files may have both.
    #[serde(rename = "type")]
    older_type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
    partial_rotary_factor: Option<f64>,
    /// What each pair's angle is divided by, where a GGUF says so.
    pub(super) factors: Option<Vec<f64>>,
}

impl Rotary {
    /// For heads of `width`, an even number.
    pub(super) fn new(width: usize, theta: f64, scaling: &Parameters) -> Result<Self, Refusal> {
        let needed = |value: Option<f64>, name: &str| {
            value
                .filter(|value| value.is_finite() && *value > 0.0)
                .ok_or_else(|| refuse(format!("{name} of the rotary scaling must be above 0")))
        };
        if scaling
            .partial_rotary_factor
            .is_some_and(|part| part != 1.0)
        {
            return Err(refuse("partial_rotary_factor is not supported".to_owned()));
        }
        needed(Some(theta), "rope_theta")?;
        let plain = (0..width / 2).map(|pair| theta.powf(-2.0 * pair as f64 / width as f64));
        let mut angles: Vec<f64> = plain.collect();
        let kind = scaling.rope_type.as_ref().or(scaling.older_type.as_ref());
        match kind.map(String::as_str) {
            None | Some("default") => {}
            Some("linear") => {
                let factor = needed(scaling.factor, "factor")?;
                angles.iter_mut().for_each(|angle| *angle /= factor);
            }
            Some("llama3") => {
                let factor = needed(scaling.factor, "factor")?;
                let low = needed(scaling.low_freq_factor, "low_freq_factor")?;
                let high = needed(scaling.high_freq_factor, "high_freq_factor")?;
                let trained = needed(
                    scaling.original_max_position_embeddings,
                    "original_max_position_embeddings",
                )?;
                for angle in &mut angles {
                    // turns within the length that the model was trained on
                    let turns = trained * *angle / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    *angle = (1.0 - kept) * *angle / factor + kept * *angle;
                }
            }
            Some(other) => {
                return Err(refuse(format!(
                    "rotary scaling {other:?} is not supported, only \"linear\" and \"llama3\""
                )));
            }
        }
        if let Some(factors) = &scaling.factors {
            if factors.len() != angles.len() {
                return Err(refuse(format!(
                    "there are {} rotary factors for {} angles",
                    factors.len(),
                    angles.len()
                )));
            }
            for (angle, factor) in angles.iter_mut().zip(factors) {
                *angle /= factor;
            }
        }
        let angles = angles.into_iter().map(|angle| angle as f32).collect();
        Ok(Self { angles })
    }
}
