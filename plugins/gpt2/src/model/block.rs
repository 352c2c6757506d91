//! The weights of one block: attention and feed-forward.

use super::Weights;
use crate::checkpoint::Refusal;
use crate::config::{Activation, Config};
use crate::kernels::{
    Dtype, Input, Lanes, Level, Matrix, Panel, Team, gelu, gelu_tanh, normalize, relu,
};

/// The weights of one block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    pub(super) qkv: Affine,
    pub(super) attention_out: Affine,
    pub(super) inner_norm: Norm,
    pub(super) inner: Affine,
    pub(super) inner_out: Affine,
}

/// A layer norm.
#[derive(Debug)]
pub(super) struct Norm {
    gain: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
}

/// `x · weight + bias`. OpenAI's checkpoints hold the weight as `[in, out]`,
/// which transformers calls a `Conv1D`.
#[derive(Debug)]
pub(super) struct Affine {
    pub(super) weight: Matrix,
    /// Filled up to the matrix's last tile.
    bias: Vec<Lanes>,
}

impl Norm {
    pub(super) fn load(
        config: &Config,
        weights: &Weights<'_>,
        name: &str,
    ) -> Result<Self, Refusal> {
        let shape = [config.width()];
        Ok(Self {
            gain: weights.get(&format!("{name}.weight"), &shape)?,
            bias: weights.get(&format!("{name}.bias"), &shape)?,
            epsilon: config.layer_norm_epsilon as f32,
        })
    }

    pub(super) fn apply(&self, level: Level, row: &mut [f32]) {
        normalize(level, row, &self.gain, &self.bias, self.epsilon);
    }
}

impl Affine {
    fn load(
        weights: &Weights<'_>,
        name: &str,
        from: usize,
        to: usize,
        dtype: Dtype,
    ) -> Result<Self, Refusal> {
        let weight = weights.get(&format!("{name}.weight"), &[from, to])?;
        let bias = weights.get(&format!("{name}.bias"), &[to])?;
        let bias = bias.chunks(Lanes::default().len()).map(|chunk| {
            let mut lanes = Lanes::default();
            lanes[..chunk.len()].copy_from_slice(chunk);
            lanes
        });
        Ok(Self {
            weight: Matrix::pack(dtype, from, to, |input, output| weight[input * to + output]),
            bias: bias.collect(),
        })
    }

    fn parameters(&self, outputs: usize) -> usize {
        self.weight.len() + outputs
    }

    /// Sets `out` to the product of the rows in `input`, through `activation`.
    pub(super) fn multiply(
        &self,
        level: Level,
        team: &mut Team,
        input: &Input,
        out: &mut Panel,
        activation: Option<Activation>,
    ) {
        let bias = |tile: usize, lanes: &mut [Lanes]| lanes.fill(self.bias[tile]);
        let activate = |lanes: &mut [Lanes]| match activation {
            None => {}
            Some(Activation::GeluTanh) => gelu_tanh(level, lanes),
            Some(Activation::Gelu) => gelu(lanes),
            Some(Activation::Relu) => relu(level, lanes),
        };
        self.weight
            .multiply(level, team, input, out, bias, activate);
    }

    /// Adds the product of the rows in `input` to `out`.
    pub(super) fn add_to(&self, level: Level, team: &mut Team, input: &Input, out: &mut Panel) {
        let bias = |tile: usize, lanes: &mut [Lanes]| {
            for number in lanes {
                for (number, bias) in number.iter_mut().zip(self.bias[tile]) {
                    *number += bias;
                }
            }
        };
        self.weight.multiply(level, team, input, out, bias, |_| ());
    }
}

impl Block {
    pub(super) fn load(
        config: &Config,
        weights: &Weights<'_>,
        layer: usize,
        dtype: Dtype,
    ) -> Result<Self, Refusal> {
        let (width, inner) = (config.width(), config.inner());
        let affine = |name: &str, from, to| {
            Affine::load(weights, &format!("h.{layer}.{name}"), from, to, dtype)
        };
        let norm = |name: &str| Norm::load(config, weights, &format!("h.{layer}.{name}"));
        Ok(Self {
            attention_norm: norm("ln_1")?,
            qkv: affine("attn.c_attn", width, 3 * width)?,
            attention_out: affine("attn.c_proj", width, width)?,
            inner_norm: norm("ln_2")?,
            inner: affine("mlp.c_fc", width, inner)?,
            inner_out: affine("mlp.c_proj", inner, width)?,
        })
    }

    pub(super) fn parameters(&self, config: &Config) -> usize {
        let (width, inner) = (config.width(), config.inner());
        self.qkv.parameters(3 * width)
            + self.attention_out.parameters(width)
            + self.inner.parameters(inner)
            + self.inner_out.parameters(width)
            + 4 * width
    }
}
