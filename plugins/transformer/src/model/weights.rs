//! Named tensors of safetensors files or of a GGUF, read one at a time.

use std::collections::HashMap;

use candle_core::Device;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::gguf_file::Content;
use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::checkpoint::{Bytes, Refusal, WEIGHTS};
use crate::kernels::{Element, GROUP, Matrix, Order};

/// Rows in memory as they are read: whole tiles.
const ROWS_AT_ONCE: usize = 256;
/// The longest header that is read, in bytes: safetensors' own bound.
const LONGEST_HEADER: u64 = 100_000_000;
/// Bytes read at once.
const PIECE: usize = 1 << 18;

/// The tensors of a checkpoint's files.
pub(crate) struct Weights<'a> {
    /// What the refusals name.
    name: String,
    files: Vec<File<'a>>,
    /// May stand before a name.
    prefix: &'static str,
    /// Width of heads whose rows of queries and keys lie in pairs, the first of
    /// one half and the first of the other, and so on.
    interleaved: Option<usize>,
}

/// A file whose header was read.
struct File<'a> {
    bytes: &'a Bytes,
    tensors: HashMap<String, Entry>,
}

/// Where a tensor is in its file, and what of.
struct Entry {
    held: Held,
    shape: Vec<usize>,
    start: u64,
}

/// What a file holds numbers in.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Floats(Dtype),
    /// In blocks, some of which are a number each.
    Blocks(GgmlDType),
}

/// A tensor that was found, of a shape that fits.
pub(crate) struct Tensor<'a> {
    bytes: &'a Bytes,
    file: String,
    name: String,
    held: Held,
    start: u64,
    len: usize,
    /// Where rows lie in pairs: the width of a head.
    interleaved: Option<usize>,
}

impl<'a> Weights<'a> {
    /// Reads the headers of safetensors files and checks that they fit them.
    pub(crate) fn open(files: &'a [Bytes], prefix: &'static str) -> Result<Self, Refusal> {
        let files = files.iter().map(File::open).collect::<Result<_, _>>()?;
        Ok(Self {
            name: WEIGHTS.to_owned(),
            files,
            prefix,
            interleaved: None,
        })
    }

    /// The tensors of a GGUF called `name`; see the field for `interleaved`.
    pub(crate) fn of_gguf(
        name: &str,
        content: &Content,
        bytes: &'a Bytes,
        interleaved: Option<usize>,
    ) -> Result<Self, Refusal> {
        let refuse = |reason: String| Refusal::file(name, reason);
        let len = bytes.len().map_err(|error| refuse(error.to_string()))?;
        let mut tensors = HashMap::new();
        for (tensor, info) in &content.tensor_infos {
            let shape = info.shape.dims().to_vec();
            let (block, size) = (info.ggml_dtype.block_size(), info.ggml_dtype.type_size());
            // rows are whole blocks
            if !shape.last().unwrap_or(&1).is_multiple_of(block) {
                return Err(refuse(format!(
                    "{tensor} has rows that are no whole blocks"
                )));
            }
            let start = content.tensor_data_offset.checked_add(info.offset);
            let numbers = shape
                .iter()
                .try_fold(1, |all: usize, &n| all.checked_mul(n));
            let end = numbers
                .and_then(|numbers| (numbers / block).checked_mul(size))
                .and_then(|bytes| start?.checked_add(bytes as u64));
            match (start, end) {
                (Some(start), Some(end)) if end <= len => {
                    let held = Held::Blocks(info.ggml_dtype);
                    tensors.insert(tensor.clone(), Entry { held, shape, start });
                }
                _ => {
                    return Err(refuse(format!(
                        "damaged or cut off: it has {len} bytes, and {tensor} is beyond them"
                    )));
                }
            }
        }
        Ok(Self {
            name: name.to_owned(),
            files: vec![File { bytes, tensors }],
            prefix: "",
            interleaved,
        })
    }

    /// The tensor called `name`, with or without the prefix.
    ///
    /// Fails when there is none, or when it is not of this shape.
    pub(crate) fn find(&self, name: &str, shape: &[usize]) -> Result<Tensor<'a>, Refusal> {
        let refuse = |reason: String| Err(Refusal::file(&self.name, reason));
        let prefixed = format!("{}{name}", self.prefix);
        let found = [name, &prefixed].into_iter().find_map(|name| {
            let mut files = self.files.iter();
            files.find_map(|file| Some((name, file.bytes, file.tensors.get(name)?)))
        });
        let Some((found, bytes, entry)) = found else {
            return refuse(format!("there is no tensor {name}"));
        };
        if entry.shape != shape {
            return refuse(format!(
                "{found} has the shape {:?}, and by its configuration it should have {shape:?}",
                entry.shape
            ));
        }
        if let Held::Floats(dtype) = entry.held
            && !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
        {
            return refuse(format!("{found} is of {dtype}, not of F32, F16 or BF16"));
        }
        let is_turned = found.ends_with("attn_q.weight") || found.ends_with("attn_k.weight");
        Ok(Tensor {
            bytes,
            file: self.name.clone(),
            name: found.to_owned(),
            held: entry.held,
            start: entry.start,
            len: shape.iter().product(),
            interleaved: self.interleaved.filter(|_| is_turned),
        })
    }

    /// All numbers of a tensor; see [`Weights::find`] and [`Tensor::read`].
    pub(crate) fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, Refusal> {
        let tensor = self.find(name, shape)?;
        let mut numbers = vec![0.0; tensor.len];
        tensor.read(0, &mut numbers)?;
        Ok(numbers)
    }

    /// Fills `matrix` with tensors of `[outputs, inputs]`, one after the other.
    pub(crate) fn stack(
        &self,
        parts: &[(String, usize)],
        inputs: usize,
        matrix: &mut Matrix,
    ) -> Result<(), Refusal> {
        let mut rows = Vec::with_capacity(ROWS_AT_ONCE * inputs);
        // the output that the first of the rows is of
        let mut begun = 0;
        for (name, outputs) in parts {
            let tensor = self.find(name, &[*outputs, inputs])?;
            let mut first = 0;
            while first < *outputs {
                let held = rows.len() / inputs;
                let count = (ROWS_AT_ONCE - held).min(outputs - first);
                rows.resize((held + count) * inputs, 0.0);
                tensor.rows(first, inputs, &mut rows[held * inputs..])?;
                first += count;
                // whole tiles, but for the last
                let end = begun + held + count;
                if held + count == ROWS_AT_ONCE || end == matrix.outputs() {
                    matrix.set(0..inputs, begun..end, Order::ByOutput, &rows);
                    rows.clear();
                    begun = end;
                }
            }
        }
        Ok(())
    }

    /// Fills `matrix` with a tensor of `[inputs, outputs]`.
    pub(crate) fn turn(
        &self,
        name: &str,
        inputs: usize,
        matrix: &mut Matrix,
    ) -> Result<(), Refusal> {
        let outputs = matrix.outputs();
        let tensor = self.find(name, &[inputs, outputs])?;
        let mut rows = vec![0.0; GROUP.min(inputs) * outputs];
        for first in (0..inputs).step_by(GROUP) {
            let group = first..inputs.min(first + GROUP);
            let rows = &mut rows[..group.len() * outputs];
            tensor.read(first * outputs, rows)?;
            matrix.set(group, 0..outputs, Order::ByInput, rows);
        }
        Ok(())
    }
}

impl<'a> File<'a> {
    fn open(bytes: &'a Bytes) -> Result<Self, Refusal> {
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
        let tensors = header.tensors().into_iter().map(|(name, info)| {
            let entry = Entry {
                held: Held::Floats(info.dtype),
                shape: info.shape.clone(),
                start: start + info.data_offsets.0 as u64,
            };
            (name, entry)
        });
        Ok(Self {
            bytes,
            tensors: tensors.collect(),
        })
    }
}

impl Tensor<'_> {
    /// Reads whole rows of `width` numbers, from the row `first` on, in the order
    /// that transformers has them in.
    fn rows(&self, first: usize, width: usize, numbers: &mut [f32]) -> Result<(), Refusal> {
        let Some(head) = self.interleaved else {
            return self.read(first * width, numbers);
        };
        for (row, numbers) in (first..).zip(numbers.chunks_exact_mut(width)) {
            let (half, pair) = (row % head / (head / 2), row % (head / 2));
            let at = row / head * head + 2 * pair + half;
            self.read(at * width, numbers)?;
        }
        Ok(())
    }

    /// Reads numbers from the one with this index on, the last dimension running
    /// fastest; of blocks, whole ones.
    ///
    /// Fails when the file cannot be read or a number is not finite.
    pub(crate) fn read(&self, from: usize, numbers: &mut [f32]) -> Result<(), Refusal> {
        let refuse = |reason: String| Refusal::file(&self.file, format!("{}: {reason}", self.name));
        // numbers of a block, and its bytes
        let (block, size) = match self.held {
            Held::Floats(Dtype::F32) => (1, 4),
            Held::Floats(_) => (1, 2),
            Held::Blocks(dtype) => (dtype.block_size(), dtype.type_size()),
        };
        let mut piece = vec![0; PIECE.min(numbers.len() / block * size)];
        let mut at = self.start + (from / block * size) as u64;
        for numbers in numbers.chunks_mut(PIECE / size * block) {
            let piece = &mut piece[..numbers.len() / block * size];
            self.bytes
                .read(at, piece)
                .map_err(|error| refuse(error.to_string()))?;
            at += piece.len() as u64;
            let are_finite = match self.held {
                Held::Floats(Dtype::F32) => widen(piece, numbers, |bytes| {
                    let number = f32::from_le_bytes(bytes);
                    (number, number.is_finite())
                }),
                Held::Floats(Dtype::F16) => widen(piece, numbers, |bytes| {
                    let number = f16::from_le_bytes(bytes);
                    (number.widen(), number.is_finite())
                }),
                Held::Floats(_) => widen(piece, numbers, |bytes| {
                    let number = bf16::from_le_bytes(bytes);
                    (number.widen(), number.is_finite())
                }),
                Held::Blocks(dtype) => {
                    let read = unpack(dtype, piece, numbers.len());
                    numbers.copy_from_slice(&read.map_err(|error| refuse(error.to_string()))?);
                    numbers.iter().all(|number| number.is_finite())
                }
            };
            if !are_finite {
                return Err(refuse("it has numbers that are not finite".to_owned()));
            }
        }
        Ok(())
    }
}

/// The numbers of some blocks.
fn unpack(dtype: GgmlDType, blocks: &[u8], numbers: usize) -> candle_core::Result<Vec<f32>> {
    let tensor = qtensor_from_ggml(dtype, blocks, vec![numbers], &Device::Cpu)?;
    tensor.dequantize(&Device::Cpu)?.to_vec1()
}

/// Fills in the numbers that the bytes stand for; `number` gives each, and whether it is
/// finite. Returns whether all are.
#[inline(always)]
fn widen<const N: usize>(
    bytes: &[u8],
    numbers: &mut [f32],
    number: impl Fn([u8; N]) -> (f32, bool),
) -> bool {
    // to the end in any case: a loop without a way out becomes vector code
    let mut are_finite = true;
    for (to, bytes) in numbers.iter_mut().zip(bytes.as_chunks().0) {
        let (number, is_finite) = number(*bytes);
        *to = number;
        are_finite &= is_finite;
    }
    are_finite
}
