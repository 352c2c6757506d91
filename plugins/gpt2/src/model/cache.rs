//! Keys and values of the positions a sequence has been through.

use candle_core::{Result, Tensor};
use candle_nn::kv_cache::KvCache;

use crate::config::Config;

/// One sequence's keys and values, one [`KvCache`] a layer, with tensors of
/// `[n_head, capacity, n_embd / n_head]` made at the first step.
#[derive(Debug)]
pub struct Cache {
    layers: Vec<KvCache>,
    capacity: usize,
}

impl Cache {
    /// An empty cache for at most `capacity` positions. It will take
    /// `2 * n_layer * n_embd * capacity` numbers of memory.
    pub fn new(config: &Config, capacity: usize) -> Self {
        let capacity = capacity.min(config.positions());
        Self {
            layers: vec![KvCache::new(1, capacity); config.layers()],
            capacity,
        }
    }

    /// Positions held: the one that comes next has this number.
    pub fn len(&self) -> usize {
        self.layers.first().map_or(0, KvCache::current_seq_len)
    }

    /// Positions it can still take.
    pub fn room(&self) -> usize {
        self.capacity - self.len()
    }

    /// Adds keys and values, each `[n_head, t, n_embd / n_head]` and contiguous,
    /// and returns those of all positions, this layer's.
    pub(super) fn append(
        &mut self,
        layer: usize,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        self.layers[layer].append(k, v)
    }
}
