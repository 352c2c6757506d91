//! Named tensors of `model.safetensors`, read one at a time.

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::checkpoint::{Bytes, Refusal, WEIGHTS};

/// Before the names when a whole `GPT2LMHeadModel` was saved; the original
/// checkpoints were saved from the part inside.
const PREFIX: &str = "transformer.";
/// The longest header that is read, in bytes: safetensors' own bound.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes read at once.
const PIECE: usize = 1 << 18;

/// A safetensors file whose header was read.
pub(crate) struct Weights<'a> {
    bytes: &'a Bytes,
    header: Metadata,
    /// Where the first tensor begins.
    start: u64,
}

/// A tensor that was found, of a shape that fits and of floats.
pub(crate) struct Tensor<'a> {
    bytes: &'a Bytes,
    name: String,
    dtype: Dtype,
    start: u64,
    len: usize,
}

impl<'a> Weights<'a> {
    /// Reads the header and checks that it fits the file.
    pub(crate) fn open(bytes: &'a Bytes) -> Result<Self, Refusal> {
        let damaged =
            |reason: String| Refusal::file(WEIGHTS, format!("damaged or cut off: {reason}"));
        let len = bytes.len().map_err(|error| damaged(error.to_string()))?;
        let read = |from: u64, to: &mut [u8]| {
            bytes
                .read(from, to)
                .map_err(|error| damaged(error.to_string()))
        };
        // the format: the header's length, the header in JSON, the tensors
        let mut length = [0; 8];
        read(0, &mut length)?;
        let length = u64::from_le_bytes(length);
        if length > LONGEST_HEADER.min(len) {
            return Err(damaged(format!("its header has {length} bytes")));
        }
        let mut header = vec![0; length as usize];
        read(8, &mut header)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
        let start = 8 + length;
        let end = start + header.data_len() as u64;
        if end != len {
            return Err(damaged(format!(
                "it has {len} bytes and by its header {end}"
            )));
        }
        Ok(Self {
            bytes,
            header,
            start,
        })
    }

    /// The tensor called `name`, with or without [`PREFIX`].
    ///
    /// Fails when there is none, or when it is not of this shape or not of
    /// floating-point numbers of 16 or 32 bits.
    pub(crate) fn find(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, Refusal> {
        let refuse = |reason: String| Err(Refusal::file(WEIGHTS, reason));
        let prefixed = format!("{PREFIX}{name}");
        let found = [name, &prefixed]
            .into_iter()
            .find_map(|name| Some((name, self.header.info(name)?)));
        let Some((name, info)) = found else {
            return refuse(format!("there is no tensor {name}"));
        };
        let TensorInfo {
            dtype,
            shape: found,
            data_offsets: (start, _),
        } = info;
        if found != shape {
            return refuse(format!(
                "{name} has the shape {found:?}, and by config.json it should have {shape:?}"
            ));
        }
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return refuse(format!("{name} is of {dtype}, not of F32, F16 or BF16"));
        }
        Ok(Tensor {
            bytes: self.bytes,
            name: name.to_owned(),
            dtype: *dtype,
            start: self.start + *start as u64,
            len: shape.iter().product(),
        })
    }

    /// All numbers of a tensor; see [`Weights::find`] and [`Tensor::read`].
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Refusal> {
        let tensor = self.find(name, shape)?;
        let mut numbers = vec![0.0; tensor.len];
        tensor.read(0, &mut numbers)?;
        Ok(numbers)
    }
}

impl Tensor<'_> {
    /// Reads numbers from the one with this index on, the last dimension running
    /// fastest.
    ///
    /// Fails when the file cannot be read or a number is not finite.
    pub(crate) fn read(&self, from: usize, numbers: &mut [f32]) -> Result<(), Refusal> {
        let refuse = |reason: String| Refusal::file(WEIGHTS, format!("{}: {reason}", self.name));
        let width = if self.dtype == Dtype::F32 { 4 } else { 2 };
        let mut piece = [0; PIECE];
        let mut at = self.start + (from * width) as u64;
        for numbers in numbers.chunks_mut(PIECE / width) {
            let piece = &mut piece[..numbers.len() * width];
            self.bytes
                .read(at, piece)
                .map_err(|error| refuse(error.to_string()))?;
            at += piece.len() as u64;
            match self.dtype {
                Dtype::F32 => widen(piece, numbers, f32::from_le_bytes),
                Dtype::F16 => widen(piece, numbers, |bytes| f16::from_le_bytes(bytes).to_f32()),
                _ => widen(piece, numbers, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            }
            if !numbers.iter().all(|number| number.is_finite()) {
                return Err(refuse("it has numbers that are not finite".to_owned()));
            }
        }
        Ok(())
    }
}

fn widen<const N: usize>(bytes: &[u8], numbers: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    for (to, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
        *to = number(*bytes);
    }
}
