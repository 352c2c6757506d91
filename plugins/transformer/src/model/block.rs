//! The weights of one block: attention and feed-forward.

use super::Weights;
use crate::checkpoint::Refusal;
use crate::config::{Activation, Config, Norm as Kind};
use crate::kernels::{
    Base, Dtype, Input, Lanes, Level, Matrix, Memory, Panel, Team, gelu, gelu_tanh, normalize,
    normalize_rms, relu,
};

/// The weights of one block.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    /// Queries, keys and values, side by side.
    pub(super) qkv: Affine,
    pub(super) query_norm: Option<Norm>,
    pub(super) key_norm: Option<Norm>,
    pub(super) attention_out: Affine,
    pub(super) attention_post: Option<Norm>,
    pub(super) inner_norm: Norm,
    /// The inner layer; where it is a gate, what it gates beside it.
    pub(super) inner: Affine,
    pub(super) inner_out: Affine,
    pub(super) inner_post: Option<Norm>,
}

/// Makes rows alike in size.
#[derive(Debug)]
pub(super) struct Norm {
    gain: Vec<f32>,
    /// Of a layer norm; the other kind has none.
    bias: Option<Vec<f32>>,
    epsilon: f32,
}

/// `x · weight + bias`.
#[derive(Debug)]
pub(super) struct Affine {
    pub(super) weight: Matrix,
    /// Filled up to the matrix's last tile; 0 where there is none.
    bias: Vec<Lanes>,
    biases: usize,
}

impl Norm {
    pub(super) fn load(
        config: &Config,
        weights: &Weights<'_>,
        name: &str,
        width: usize,
    ) -> Result<Self, Refusal> {
        let mut gain = weights.get(&format!("{name}.weight"), &[width])?;
        let bias = match config.norm {
            Kind::Layer => Some(weights.get(&format!("{name}.bias"), &[width])?),
            Kind::RootMeanSquare { offset } => {
                gain.iter_mut().for_each(|gain| *gain += offset);
                None
            }
        };
        Ok(Self {
            gain,
            bias,
            epsilon: config.epsilon,
        })
    }

    pub(super) fn apply(&self, level: Level, row: &mut [f32]) {
        match &self.bias {
            Some(bias) => normalize(level, row, &self.gain, bias, self.epsilon),
            None => normalize_rms(level, row, &self.gain, self.epsilon),
        }
    }

    pub(super) fn parameters(&self) -> usize {
        self.gain.len() + self.bias.as_ref().map_or(0, Vec::len)
    }
}

impl Affine {
    /// Reads tensors of `inputs` and so many outputs each, and puts them side by
    /// side.
    fn load(
        weights: &Weights<'_>,
        parts: &[(String, usize)],
        inputs: usize,
        (has_bias, is_input_major): (bool, bool),
        (dtype, memory): (Dtype, &Memory),
    ) -> Result<Self, Refusal> {
        let outputs: usize = parts.iter().map(|(_, outputs)| outputs).sum();
        let mut weight = Matrix::empty(dtype, inputs, outputs, memory);
        let mut biases = Vec::new();
        if is_input_major {
            let (name, _) = &parts[0];
            weights.turn(&format!("{name}.weight"), inputs, &mut weight)?;
        } else {
            let name = |name: &String| format!("{name}.weight");
            let parts: Vec<_> = parts.iter().map(|(part, of)| (name(part), *of)).collect();
            weights.stack(&parts, inputs, &mut weight)?;
        }
        if has_bias {
            for (name, outputs) in parts {
                biases.extend(weights.get(&format!("{name}.bias"), &[*outputs])?);
            }
        }
        let tiles = weight.tiles();
        let mut bias = vec![Lanes::default(); tiles];
        bias.as_flattened_mut()[..biases.len()].copy_from_slice(&biases);
        Ok(Self {
            weight,
            bias,
            biases: biases.len(),
        })
    }

    fn parameters(&self) -> usize {
        self.weight.len() + self.biases
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
        let activate = |lanes: &mut [Lanes]| match activation {
            // SiLU is always a gate
            None | Some(Activation::Silu) => {}
            Some(Activation::GeluTanh) => gelu_tanh(level, lanes),
            Some(Activation::Gelu) => gelu(lanes),
            Some(Activation::Relu) => relu(level, lanes),
        };
        let base = self.base(false);
        self.weight
            .multiply(level, team, input, base, out, activate);
    }

    /// Adds the product of the rows in `input` to `out`.
    pub(super) fn add_to(&self, level: Level, team: &mut Team, input: &Input, out: &mut Panel) {
        let base = self.base(true);
        self.weight.multiply(level, team, input, base, out, |_| ());
    }

    fn base(&self, is_sum: bool) -> Base<'_> {
        let bias = &self.bias;
        Base { bias, is_sum }
    }
}

impl Block {
    pub(super) fn load(
        config: &Config,
        weights: &Weights<'_>,
        layer: usize,
        held: (Dtype, &Memory),
    ) -> Result<Self, Refusal> {
        let (names, biases) = (config.names, config.biases);
        let (width, inner) = (config.width, config.inner);
        let (queries, keys) = (config.queries(), config.keys());
        let name = |part: &str| format!("{}{layer}.{part}", names.layer);
        let norm = |part: &str, width| Norm::load(config, weights, &name(part), width);
        let norm_if = |is_there: bool, part: &str, width| -> Result<Option<Norm>, Refusal> {
            is_there.then(|| norm(part, width)).transpose()
        };
        let affine = |parts: &[(&str, usize)], inputs, has_bias| {
            let parts: Vec<_> = parts.iter().map(|(part, of)| (name(part), *of)).collect();
            Affine::load(
                weights,
                &parts,
                inputs,
                (has_bias, names.is_input_major),
                held,
            )
        };
        let qkv: Vec<_> = match names.qkv {
            [one] => vec![(*one, queries + 2 * keys)],
            parts => parts.iter().copied().zip([queries, keys, keys]).collect(),
        };
        let inners: Vec<_> = names.inner.iter().map(|part| (*part, inner)).collect();
        let (head, has_head_norms) = (config.head_width, config.has_head_norms);
        Ok(Self {
            attention_norm: norm(names.attention_norm, width)?,
            qkv: affine(&qkv, width, biases.qkv)?,
            query_norm: norm_if(has_head_norms, names.query_norm, head)?,
            key_norm: norm_if(has_head_norms, names.key_norm, head)?,
            attention_out: affine(
                &[(names.attention_out, width)],
                queries,
                biases.attention_out,
            )?,
            attention_post: norm_if(config.has_post_norms, names.attention_post, width)?,
            inner_norm: norm(names.inner_norm, width)?,
            inner: affine(&inners, width, biases.inner)?,
            inner_out: affine(&[(names.inner_out, width)], inner, biases.inner)?,
            inner_post: norm_if(config.has_post_norms, names.inner_post, width)?,
        })
    }

    pub(super) fn parameters(&self) -> usize {
        let affines = [&self.qkv, &self.attention_out, &self.inner, &self.inner_out];
        let norms = [
            Some(&self.attention_norm),
            self.query_norm.as_ref(),
            self.key_norm.as_ref(),
            self.attention_post.as_ref(),
            Some(&self.inner_norm),
            self.inner_post.as_ref(),
        ];
        affines.map(Affine::parameters).iter().sum::<usize>()
            + norms
                .into_iter()
                .flatten()
                .map(Norm::parameters)
                .sum::<usize>()
    }
}
