//! Named tensors of `model.safetensors`.

use candle_core::safetensors::SliceSafetensors;
use candle_core::{DType, Device, Tensor};

use crate::checkpoint::{Refusal, WEIGHTS};

/// Before the names when a whole `GPT2LMHeadModel` was saved; the original
/// checkpoints were saved from the part inside.
const PREFIX: &str = "transformer.";

/// A parsed safetensors file.
pub struct Weights<'a> {
    file: SliceSafetensors<'a>,
    dtype: DType,
}

impl<'a> Weights<'a> {
    /// Parses the header and checks that it fits the bytes; tensors are to be
    /// had as `dtype`.
    pub(crate) fn parse(bytes: &'a [u8], dtype: DType) -> Result<Self, Refusal> {
        let file = SliceSafetensors::new(bytes)
            .map_err(|error| Refusal::file(WEIGHTS, format!("damaged or cut off: {error}")))?;
        Ok(Self { file, dtype })
    }

    /// The tensor called `name`, with or without [`PREFIX`].
    ///
    /// Fails when there is none, or when it is not of this shape or not of
    /// floating-point numbers.
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor, Refusal> {
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
        tensor.to_dtype(self.dtype).map_err(refuse)
    }
}
