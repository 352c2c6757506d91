//! Named tensors of `model.safetensors`.

use candle_core::safetensors::SliceSafetensors;
use candle_core::{DType, Device};

use crate::checkpoint::{Refusal, WEIGHTS};

/// Before the names when a whole `GPT2LMHeadModel` was saved; the original
/// checkpoints were saved from the part inside.
const PREFIX: &str = "transformer.";

/// A parsed safetensors file.
pub(crate) struct Weights<'a> {
    file: SliceSafetensors<'a>,
}

impl<'a> Weights<'a> {
    /// Parses the header and checks that it fits the bytes.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Refusal> {
        let file = SliceSafetensors::new(bytes)
            .map_err(|error| Refusal::file(WEIGHTS, format!("damaged or cut off: {error}")))?;
        Ok(Self { file })
    }

    /// The numbers of the tensor called `name`, with or without [`PREFIX`], the
    /// last dimension running fastest.
    ///
    /// Fails when there is none, or when it is not of this shape or not of
    /// finite floating-point numbers.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Refusal> {
        let prefixed = format!("{PREFIX}{name}");
        let (name, view) = match self.file.get(name) {
            Ok(view) => (name, view),
            Err(_) => match self.file.get(&prefixed) {
                Ok(view) => (prefixed.as_str(), view),
                Err(_) => return Err(Refusal::file(WEIGHTS, format!("there is no tensor {name}"))),
            },
        };
        if view.shape() != shape {
            return Err(Refusal::file(
                WEIGHTS,
                format!(
                    "{name} has the shape {:?}, and by config.json it should have {shape:?}",
                    view.shape()
                ),
            ));
        }
        let refuse = |error: candle_core::Error| Refusal::file(WEIGHTS, format!("{name}: {error}"));
        let tensor = self.file.load(name, &Device::Cpu).map_err(refuse)?;
        if !tensor.dtype().is_float() {
            return Err(Refusal::file(
                WEIGHTS,
                format!("{name} is of {}, not of floats", tensor.dtype().as_str()),
            ));
        }
        let numbers = tensor
            .to_dtype(DType::F32)
            .and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>())
            .map_err(refuse)?;
        if numbers.iter().all(|number| number.is_finite()) {
            Ok(numbers)
        } else {
            Err(Refusal::file(
                WEIGHTS,
                format!("{name} has numbers that are not finite"),
            ))
        }
    }
}
