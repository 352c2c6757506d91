//! The GPT-2 forward pass on candle.
//!
//! After Radford et al., "Language Models are Unsupervised Multitask Learners"
//! (2019), and number by number after transformers' `GPT2LMHeadModel`: blocks of
//! layer norm, attention, layer norm and feed-forward, each pair added to the
//! residual stream; a last layer norm; and an output layer, as a rule the token
//! embedding again.
//!
//! One sequence at a time: activations are `[t, n_embd]`, without a batch.

mod block;
mod cache;
mod weights;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::LayerNorm;
use candle_nn::Module as _;

pub use cache::Cache;
pub use weights::Weights;

use crate::checkpoint::Refusal;
use crate::config::Config;
use block::Block;

/// The weights of a model. It holds no state of a sequence, so any number of
/// threads can use one at a time, each with a [`Cache`] of its own.
#[derive(Debug)]
pub struct Model {
    config: Config,
    /// `[vocab_size, n_embd]`
    tokens: Tensor,
    /// `[n_positions, n_embd]`
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
    /// `[n_embd, vocab_size]`
    head: Tensor,
}

impl Model {
    /// Takes the tensors the configuration asks for. What else the file holds,
    /// such as the masks that old checkpoints have (`attn.bias`), is ignored.
    pub(crate) fn load(
        config: &Config,
        weights: &Weights<'_>,
    ) -> std::result::Result<Self, Refusal> {
        let (vocab, width) = (config.vocab(), config.width());
        let tokens = weights.get("wte.weight", &[vocab, width])?;
        let head = if config.tie_word_embeddings {
            tokens.clone()
        } else {
            weights.get("lm_head.weight", &[vocab, width])?
        };
        let blocks = (0..config.layers()).map(|layer| Block::load(config, weights, layer));
        Ok(Self {
            positions: weights.get("wpe.weight", &[config.positions(), width])?,
            blocks: blocks.collect::<std::result::Result<_, _>>()?,
            norm: block::norm(config, weights, "ln_f")?,
            // a view: the product reads the embedding's rows as columns
            head: head
                .t()
                .map_err(|error| Refusal::file(crate::checkpoint::WEIGHTS, error))?,
            tokens,
            config: config.clone(),
        })
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Numbers the model learned, those of a tied output layer once.
    pub fn parameters(&self) -> usize {
        let blocks: usize = self.blocks.iter().map(Block::parameters).sum();
        let own_head = !self.config.tie_word_embeddings;
        self.tokens.elem_count() * (1 + usize::from(own_head))
            + self.positions.elem_count()
            + blocks
            + 2 * self.config.width()
    }

    /// Logits `[vocab_size]`, f32, of the token after these, which come after
    /// the positions in the cache.
    ///
    /// # Errors
    /// When there are no tokens, more than the cache has room for, or one that
    /// is not in the vocabulary.
    pub fn next_logits(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let last = self.run(tokens, cache)?;
        let last = last.narrow(0, tokens.len() - 1, 1)?;
        self.logits(&last)?.squeeze(0)
    }

    /// Logits `[t, vocab_size]`, f32, after each of these `t` tokens, which come
    /// after the positions in the cache.
    ///
    /// # Errors
    /// As [`Model::next_logits`].
    #[cfg(test)]
    pub fn all_logits(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        self.logits(&self.run(tokens, cache)?)
    }

    /// The residual stream `[t, n_embd]` after all blocks.
    fn run(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let (len, past) = (tokens.len(), cache.len());
        if len == 0 || len > cache.room() {
            candle_core::bail!("{len} tokens do not fit after {past}");
        }
        let ids = Tensor::new(tokens, &Device::Cpu)?;
        let tokens = self.tokens.index_select(&ids, 0)?;
        let mut x = tokens.add(&self.positions.narrow(0, past, len)?)?;
        let mask = mask(len, past, x.dtype())?;
        for (layer, block) in self.blocks.iter().enumerate() {
            x = block.forward(&x, mask.as_ref(), layer, cache)?;
        }
        Ok(x)
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor> {
        self.norm
            .forward(x)?
            .matmul(&self.head)?
            .to_dtype(DType::F32)
    }
}

/// What is added to attention scores `[t, past + t]` so that no position sees a
/// later one. One position alone sees all.
fn mask(len: usize, past: usize, dtype: DType) -> Result<Option<Tensor>> {
    if len == 1 {
        return Ok(None);
    }
    let all = past + len;
    let rows = (0..len).flat_map(|row| {
        (0..all).map(move |column| {
            if column <= past + row {
                0.0
            } else {
                f32::NEG_INFINITY
            }
        })
    });
    let mask = Tensor::from_iter(rows, &Device::Cpu)?;
    mask.reshape((len, all))?.to_dtype(dtype).map(Some)
}
