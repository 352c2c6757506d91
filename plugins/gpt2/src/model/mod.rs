//! The GPT-2 forward pass.
//!
//! After Radford et al., "Language Models are Unsupervised Multitask Learners"
//! (2019), and number by number after transformers' `GPT2LMHeadModel`: blocks of
//! layer norm, attention, layer norm and feed-forward, each pair added to the
//! residual stream; a last layer norm; and an output layer, as a rule the token
//! embedding again.
//!
//! - `weights`, `block`: what is loaded
//! - `cache`: what a sequence leaves behind
//! - `step`: what is computed

mod block;
mod cache;
mod step;
mod weights;

pub(crate) use cache::Cache;
pub(crate) use step::{Predict, Run, Workspace};
pub(crate) use weights::Weights;

use crate::checkpoint::Refusal;
use crate::config::Config;
use crate::kernels::{Dtype, Layout, Matrix};
use block::{Block, Norm};

/// Tokens whose embeddings are in memory as they are read: whole tiles.
const TOKENS_AT_ONCE: usize = 256;

/// The weights of a model. It holds no state of a sequence.
#[derive(Debug)]
pub(crate) struct Model {
    config: Config,
    dtype: Dtype,
    /// `n_embd` inputs, `vocab_size` outputs.
    head: Matrix,
    /// The same shape, where the head does not serve as the embedding too.
    embedding: Option<Matrix>,
    /// `[n_positions, n_embd]`
    positions: Vec<f32>,
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
        let (vocab, width) = (config.vocab(), config.width());
        let by_token = |name: &str, dtype: Dtype| -> Result<Matrix, Refusal> {
            let tensor = weights.find(name, &[vocab, width])?;
            let mut matrix = Matrix::empty(dtype, width, vocab);
            let mut rows = vec![0.0; TOKENS_AT_ONCE * width];
            for first in (0..vocab).step_by(TOKENS_AT_ONCE) {
                let count = TOKENS_AT_ONCE.min(vocab - first);
                let rows = &mut rows[..count * width];
                tensor.read(first * width, rows)?;
                matrix.push(count, |input, token| rows[token * width + input]);
            }
            Ok(matrix)
        };
        let (head, embedding) = if config.tie_word_embeddings {
            (by_token("wte.weight", dtype.of_output())?, None)
        } else {
            let embedding = by_token("wte.weight", dtype)?;
            (
                by_token("lm_head.weight", dtype.of_output())?,
                Some(embedding),
            )
        };
        let blocks = (0..config.layers()).map(|layer| Block::load(config, weights, layer, dtype));
        Ok(Self {
            head,
            embedding,
            positions: weights.get("wpe.weight", &[config.positions(), width])?,
            blocks: blocks.collect::<Result<_, _>>()?,
            norm: Norm::load(config, weights, "ln_f")?,
            config: config.clone(),
            dtype,
        })
    }

    /// The model's shape.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// A sequence of which nothing was seen yet. Its keys and values are held
    /// in 32 bits where the weights are, otherwise in 16.
    pub(crate) fn cache(&self) -> Cache {
        Cache::new(self.layout())
    }

    /// Bytes of the keys and values of 16 positions.
    pub(crate) fn page_bytes(&self) -> usize {
        self.layout().bytes()
    }

    fn layout(&self) -> Layout {
        let heads = self.config.heads();
        Layout {
            layers: self.config.layers(),
            heads,
            width: self.config.width() / heads,
            is_half: self.dtype != Dtype::F32,
        }
    }

    /// Numbers the model learned, those of a tied output layer once.
    pub(crate) fn parameters(&self) -> usize {
        let blocks = self
            .blocks
            .iter()
            .map(|block| block.parameters(&self.config));
        self.head.len()
            + self.embedding.as_ref().map_or(0, Matrix::len)
            + self.positions.len()
            + blocks.sum::<usize>()
            + 2 * self.config.width()
    }

    /// Embeddings of the tokens, by output.
    fn tokens(&self) -> &Matrix {
        self.embedding.as_ref().unwrap_or(&self.head)
    }
}
