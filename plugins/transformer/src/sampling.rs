//! Which token comes next.

use std::fmt;

use candle_core::{Device, Tensor};
use candle_transformers::generation::{LogitsProcessor, Sampling};
use plugin_sdk::{Error, ErrorKind, Params};

/// Below this a temperature counts as 0: dividing logits by less overflows.
const COLDEST: f32 = 1e-7;

/// Chooses the tokens of one sequence.
pub(crate) enum Sampler {
    /// The likeliest; of equal ones the first.
    Greedy,
    /// By chance.
    Random(Box<LogitsProcessor>),
}

impl Sampler {
    /// Chooses a token.
    ///
    /// # Errors
    /// When the logits are not finite.
    pub(crate) fn sample(&mut self, logits: &[f32]) -> candle_core::Result<u32> {
        match self {
            Self::Greedy => Ok(likeliest(logits)),
            Self::Random(processor) => {
                processor.sample(&Tensor::from_slice(logits, logits.len(), &Device::Cpu)?)
            }
        }
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Greedy => "Greedy",
            Self::Random(_) => "Random",
        })
    }
}

/// The token with the largest logit; of equal ones the first.
pub(crate) fn likeliest(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (token, &logit) in (0..).zip(logits) {
        if logit > best.1 {
            best = (token, logit);
        }
    }
    best.0
}

/// The sampler that the parameters ask for, over `vocab` tokens.
///
/// An absent temperature is 1, a temperature of 0 is greedy, `top_k` of 0 or of
/// the whole vocabulary and `top_p` of 1 are the same as absent. With both,
/// `top_p` counts probability before `top_k` took its part, which is candle's way.
///
/// # Errors
/// [`ErrorKind::InvalidRequest`] for a value that makes no sense, with the parameter's name.
/// [`ErrorKind::Internal`] when the system gives no random seed.
pub(crate) fn sampler(params: &Params, vocab: usize) -> Result<Sampler, Error> {
    let sampling = sampling(params, vocab)?;
    if sampling == Sampling::ArgMax {
        return Ok(Sampler::Greedy);
    }
    let seed = match params.seed {
        Some(seed) => seed,
        None => getrandom::u64().map_err(|error| {
            Error::new(ErrorKind::Internal, "the system gives no random seed").detail(error)
        })?,
    };
    Ok(Sampler::Random(Box::new(LogitsProcessor::from_sampling(
        seed, sampling,
    ))))
}

fn sampling(params: &Params, vocab: usize) -> Result<Sampling, Error> {
    let temperature = params.temperature.unwrap_or(1.0);
    if !(temperature.is_finite() && temperature >= 0.0) {
        return Err(invalid("temperature", "temperature must be 0 or more"));
    }
    let top_p = params.top_p.unwrap_or(1.0);
    if !(top_p > 0.0 && top_p <= 1.0) {
        return Err(invalid("top_p", "top_p must be above 0 and at most 1"));
    }
    if temperature < COLDEST {
        return Ok(Sampling::ArgMax);
    }
    let temperature = f64::from(temperature);
    let p = (top_p < 1.0).then_some(f64::from(top_p));
    let k = params
        .top_k
        .map(|k| usize::try_from(k).unwrap_or(usize::MAX))
        .filter(|&k| k > 0 && k < vocab);
    Ok(match (k, p) {
        (None, None) => Sampling::All { temperature },
        (Some(k), None) => Sampling::TopK { k, temperature },
        (None, Some(p)) => Sampling::TopP { p, temperature },
        (Some(k), Some(p)) => Sampling::TopKThenTopP { k, p, temperature },
    })
}

fn invalid(param: &str, message: &str) -> Error {
    Error::new(ErrorKind::InvalidRequest, message).param(param)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOCAB: usize = 300;

    fn of(change: impl FnOnce(&mut Params)) -> Result<Sampling, Error> {
        let mut params = Params::default();
        change(&mut params);
        sampling(&params, VOCAB)
    }

    #[test]
    fn absent_and_neutral_values_sample_from_everything() {
        let all = Sampling::All { temperature: 1.0 };
        assert_eq!(of(|_| ()), Ok(all.clone()));
        assert_eq!(of(|p| p.top_p = Some(1.0)), Ok(all.clone()));
        assert_eq!(of(|p| p.top_k = Some(0)), Ok(all.clone()));
        assert_eq!(of(|p| p.top_k = Some(300)), Ok(all.clone()));
        assert_eq!(of(|p| p.top_k = Some(u32::MAX)), Ok(all));
    }

    #[test]
    fn a_temperature_of_zero_is_greedy() {
        assert_eq!(of(|p| p.temperature = Some(0.0)), Ok(Sampling::ArgMax));
        assert_eq!(of(|p| p.temperature = Some(1e-30)), Ok(Sampling::ArgMax));
    }

    #[test]
    fn top_k_and_top_p_go_together() {
        let both = of(|p| (p.top_k, p.top_p, p.temperature) = (Some(5), Some(0.5), Some(2.0)));
        let (k, p, temperature) = (5, 0.5, 2.0);
        assert_eq!(both, Ok(Sampling::TopKThenTopP { k, p, temperature }));
        let temperature = 1.0;
        assert_eq!(
            of(|p| p.top_k = Some(1)),
            Ok(Sampling::TopK { k: 1, temperature })
        );
        assert_eq!(
            of(|p| p.top_p = Some(0.5)),
            Ok(Sampling::TopP { p, temperature })
        );
    }

    #[test]
    fn values_without_sense_are_refused_by_name() {
        for bad in [f32::NAN, f32::INFINITY, -1.0] {
            let error = of(|p| p.temperature = Some(bad)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("temperature"));
        }
        for bad in [f32::NAN, 0.0, -0.5, 1.5] {
            let error = of(|p| p.top_p = Some(bad)).unwrap_err();
            assert_eq!(error.param.as_deref(), Some("top_p"));
        }
    }
}
