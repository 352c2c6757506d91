//! The forward pass of a decoder.
//!
//! Number by number after transformers: GPT-2's as in Radford et al., "Language
//! Models are Unsupervised Multitask Learners" (2019), and those of Llama's kind.
//! Blocks of a norm, attention, a norm and feed-forward, each pair added to the
//! residual stream; a last norm; and an output layer, often the token embedding
//! again. What differs between families is in [`Config`].
//!
//! - `weights`, `block`: what is loaded
//! - `rotary`: how positions turn queries and keys
//! - `cache`: what a sequence leaves behind
//! - `step`: what is computed

mod block;
mod cache;
mod rotary;
mod step;
mod weights;

pub(crate) use cache::Cache;
pub(crate) use step::{Predict, Run, Workspace};
pub(crate) use weights::Weights;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use crate::checkpoint::Refusal;
use crate::config::Config;
use crate::kernels::{Dtype, Layout, Matrix, Memory};
use block::{Block, Norm};
use rotary::Turns;

/// The weights of a model. It holds no state of a sequence.
#[derive(Debug)]
pub(crate) struct Model {
    config: Config,
    dtype: Dtype,
    /// Of all that steps read.
    memory: Memory,
    /// The stream's width in inputs, the vocabulary in outputs.
    head: Matrix,
    /// The same shape, where the head does not serve as the embedding too.
    embedding: Option<Matrix>,
    /// A row for each position, where positions have embeddings.
    positions: Vec<f32>,
    turns: Vec<Turns>,
    blocks: Vec<Block>,
    norm: Norm,
}

impl Model {
    /// Takes the tensors the configuration asks for. What else the file holds,
    /// such as the masks that old checkpoints have (`attn.bias`), is ignored.
    pub(crate) fn load(
        config: &Config,
        weights: &Weights<'_>,
        dtype: Dtype,
    ) -> Result<Self, Refusal> {
        let (names, width) = (config.names, config.width);
        let memory = Memory::default();
        let by_token = |name: &str, dtype: Dtype| -> Result<Matrix, Refusal> {
            let mut matrix = Matrix::empty(dtype, width, config.vocab, &memory);
            let part = (format!("{name}.weight"), config.vocab);
            weights.stack(&[part], width, &mut matrix)?;
            Ok(matrix)
        };
        let outer = || -> Result<_, Refusal> {
            Ok(if config.is_tied {
                (by_token(names.tokens, dtype.of_output())?, None)
            } else {
                let embedding = by_token(names.tokens, dtype)?;
                (by_token(names.head, dtype.of_output())?, Some(embedding))
            })
        };
        let blocks = || {
            let layers = (0..config.layers.len()).into_par_iter();
            let blocks = layers.map(|layer| Block::load(config, weights, layer, (dtype, &memory)));
            blocks.collect::<Result<Vec<_>, _>>()
        };
        // all processors pack
        let (outer, blocks) = rayon::join(outer, blocks);
        let (head, embedding) = outer?;
        let positions = if config.has_positions {
            let name = format!("{}.weight", names.positions);
            weights.get(&name, &[config.positions, width])?
        } else {
            Vec::new()
        };
        let turns = config.rotaries.iter();
        Ok(Self {
            head,
            embedding,
            positions,
            turns: turns
                .map(|rotary| Turns::new(rotary, config.context))
                .collect(),
            blocks: blocks?,
            norm: Norm::load(config, weights, names.norm, width)?,
            config: config.clone(),
            dtype,
            memory,
        })
    }

    /// The model's shape.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// What its weights are held in.
    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// A sequence of which nothing was seen yet. Its keys and values are held
    /// in 32 bits where the weights are, otherwise in 16.
    pub(crate) fn cache(&self) -> Cache {
        Cache::new(self.layout(), self.memory.clone())
    }

    /// Bytes of the keys and values of 16 positions.
    pub(crate) fn page_bytes(&self) -> usize {
        self.layout().bytes()
    }

    fn layout(&self) -> Layout {
        Layout {
            layers: self.config.layers.len(),
            heads: self.config.kv_heads,
            width: self.config.head_width,
            is_half: self.dtype != Dtype::F32,
        }
    }

    /// Numbers the model learned, those of a tied output layer once.
    pub(crate) fn parameters(&self) -> usize {
        self.head.len()
            + self.embedding.as_ref().map_or(0, Matrix::len)
            + self.positions.len()
            + self.blocks.iter().map(Block::parameters).sum::<usize>()
            + self.norm.parameters()
    }

    /// Embeddings of the tokens, by output.
    fn tokens(&self) -> &Matrix {
        self.embedding.as_ref().unwrap_or(&self.head)
    }
}
