//! One block: attention and feed-forward.

use candle_core::{Result, Tensor};
use candle_nn::ops::softmax_last_dim;
use candle_nn::{LayerNorm, Module as _};

use super::{Cache, Weights};
use crate::checkpoint::Refusal;
use crate::config::{Activation, Config};

/// The weights of one block.
#[derive(Debug)]
pub(super) struct Block {
    attention_norm: LayerNorm,
    qkv: Affine,
    attention_out: Affine,
    inner_norm: LayerNorm,
    inner: Affine,
    inner_out: Affine,
    activation: Activation,
    heads: usize,
    scale: f64,
}

/// `x · weight + bias`. OpenAI's checkpoints hold the weight as `[in, out]`,
/// which transformers calls a `Conv1D`.
#[derive(Debug)]
struct Affine {
    /// `[in, out]`
    weight: Tensor,
    /// `[out]`
    bias: Tensor,
}

impl Affine {
    fn load(
        weights: &Weights<'_>,
        name: &str,
        from: usize,
        to: usize,
    ) -> std::result::Result<Self, Refusal> {
        Ok(Self {
            weight: weights.get(&format!("{name}.weight"), &[from, to])?,
            bias: weights.get(&format!("{name}.bias"), &[to])?,
        })
    }

    /// `[t, in]` to `[t, out]`
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.matmul(&self.weight)?.broadcast_add(&self.bias)
    }

    fn parameters(&self) -> usize {
        self.weight.elem_count() + self.bias.elem_count()
    }
}

/// The layer norm called `name`.
pub(super) fn norm(
    config: &Config,
    weights: &Weights<'_>,
    name: &str,
) -> std::result::Result<LayerNorm, Refusal> {
    let shape = [config.width()];
    Ok(LayerNorm::new(
        weights.get(&format!("{name}.weight"), &shape)?,
        weights.get(&format!("{name}.bias"), &shape)?,
        config.layer_norm_epsilon,
    ))
}

impl Block {
    pub(super) fn load(
        config: &Config,
        weights: &Weights<'_>,
        layer: usize,
    ) -> std::result::Result<Self, Refusal> {
        let (width, inner) = (config.width(), config.inner());
        let affine =
            |name: &str, from, to| Affine::load(weights, &format!("h.{layer}.{name}"), from, to);
        let norm = |name: &str| norm(config, weights, &format!("h.{layer}.{name}"));
        Ok(Self {
            attention_norm: norm("ln_1")?,
            qkv: affine("attn.c_attn", width, 3 * width)?,
            attention_out: affine("attn.c_proj", width, width)?,
            inner_norm: norm("ln_2")?,
            inner: affine("mlp.c_fc", width, inner)?,
            inner_out: affine("mlp.c_proj", inner, width)?,
            activation: config.activation,
            heads: config.heads(),
            scale: config.attention_scale(layer),
        })
    }

    pub(super) fn parameters(&self) -> usize {
        let affine = [&self.qkv, &self.attention_out, &self.inner, &self.inner_out];
        let norms = 2 * (self.attention_out.bias.elem_count() + self.inner_out.bias.elem_count());
        affine.map(Affine::parameters).iter().sum::<usize>() + norms
    }

    /// The residual stream `[t, n_embd]` after this block.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        layer: usize,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let attended = self.attend(&self.attention_norm.forward(x)?, mask, layer, cache)?;
        let x = (x + attended)?;
        let inner = self.inner.forward(&self.inner_norm.forward(&x)?)?;
        let inner = match self.activation {
            Activation::GeluTanh => inner.gelu()?,
            Activation::Gelu => inner.gelu_erf()?,
            Activation::Relu => inner.relu()?,
        };
        x + self.inner_out.forward(&inner)?
    }

    fn attend(
        &self,
        x: &Tensor,
        mask: Option<&Tensor>,
        layer: usize,
        cache: &mut Cache,
    ) -> Result<Tensor> {
        let (len, width) = x.dims2()?;
        // [t, 3, heads, width of a head] to three times [heads, t, width of a head]
        let qkv = self
            .qkv
            .forward(x)?
            .reshape((len, 3, self.heads, width / self.heads))?;
        let part = |index| {
            qkv.narrow(1, index, 1)?
                .squeeze(1)?
                .transpose(0, 1)?
                .contiguous()
        };
        let (k, v) = cache.append(layer, &part(1)?, &part(2)?)?;

        // [heads, t, past + t]
        let scores = (part(0)? * self.scale)?.matmul(&k.t()?)?;
        let scores = match mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        let attended = softmax_last_dim(&scores)?.matmul(&v)?;
        let attended = attended.transpose(0, 1)?.reshape((len, width))?;
        self.attention_out.forward(&attended)
    }
}
