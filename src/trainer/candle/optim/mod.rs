//! Update rules: what each remembers of a tensor, and one step of all adapters.

pub(crate) mod adafactor;
pub(crate) mod adam;
pub(crate) mod adamw_8bit;
pub mod schedule;

use candle_core::{Result, Tensor, bail};

use crate::checkpoint::adapter::AdapterGrad;
use crate::spec::run::{self, Recipe};
use crate::trainer::candle::nn::block::Grads;
use crate::trainer::candle::nn::decoder::Decoder;
use crate::trainer::candle::optim::adam::{BETA1, BETA2, EPS};
use crate::trainer::candle::optim::adamw_8bit::Blockwise;

/// Added to the norm when clipping, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

/// Optimizer state of one tensor.
#[derive(Clone, Debug)]
pub enum State {
    /// AdamW: moments in f32, in the tensor's shape.
    Adamw {
        /// Running mean of the gradients.
        m: Tensor,
        /// Running mean of their squares.
        v: Tensor,
    },
    /// AdamW with moments in eight bits a number.
    Adamw8bit {
        /// Running mean of the gradients.
        m: Blockwise,
        /// Running mean of their squares.
        v: Blockwise,
    },
    /// Adafactor: means of the squared gradients over columns and over rows.
    Adafactor {
        /// Mean of each row's squared gradients, `[rows]`.
        row: Tensor,
        /// Mean of each column's squared gradients, `[columns]`.
        column: Tensor,
    },
    /// Adafactor of a vector, whose second moment is not factored.
    AdafactorVector {
        /// Running mean of the squared gradients.
        v: Tensor,
    },
}

impl State {
    /// State of a tensor that has seen no gradient.
    fn new(p: &Tensor, rule: run::Optimizer) -> Result<Self> {
        let zeros = |n: usize| Tensor::zeros(n, p.dtype(), p.device());
        Ok(match (rule, p.dims()) {
            (run::Optimizer::Adamw8bit, dims) if rule.quantises(dims) => {
                let n = p.elem_count();
                Self::Adamw8bit { m: Blockwise::zeros(n, true)?, v: Blockwise::zeros(n, false)? }
            }
            (run::Optimizer::Adafactor, &[rows, columns]) => {
                Self::Adafactor { row: zeros(rows)?, column: zeros(columns)? }
            }
            (run::Optimizer::Adafactor, _) => Self::AdafactorVector { v: p.zeros_like()? },
            _ => Self::Adamw { m: p.zeros_like()?, v: p.zeros_like()? },
        })
    }

    /// Tensors of the state with their names in a checkpoint.
    pub(crate) fn tensors(&self) -> Vec<(&'static str, &Tensor)> {
        match self {
            Self::Adamw { m, v } => vec![("m", m), ("v", v)],
            Self::Adamw8bit { m, v } => {
                vec![("m", &m.codes), ("m.absmax", &m.absmax), ("v", &v.codes), ("v.absmax", &v.absmax)]
            }
            Self::Adafactor { row, column } => vec![("row", row), ("column", column)],
            Self::AdafactorVector { v } => vec![("v", v)],
        }
    }

    /// The same with other numbers: what `get` has in the place of each tensor of this name.
    pub(crate) fn restored<E>(
        &self,
        get: impl Fn(&str, &Tensor) -> std::result::Result<Tensor, E>,
    ) -> std::result::Result<Self, E> {
        Ok(match self {
            Self::Adamw { m, v } => Self::Adamw { m: get("m", m)?, v: get("v", v)? },
            Self::Adamw8bit { m, v } => Self::Adamw8bit {
                m: Blockwise { codes: get("m", &m.codes)?, absmax: get("m.absmax", &m.absmax)? },
                v: Blockwise { codes: get("v", &v.codes)?, absmax: get("v.absmax", &v.absmax)? },
            },
            Self::Adafactor { row, column } => {
                Self::Adafactor { row: get("row", row)?, column: get("column", column)? }
            }
            Self::AdafactorVector { v } => Self::AdafactorVector { v: get("v", v)? },
        })
    }
}

/// The optimizer: a rule, and its state for each tensor of each adapter.
pub struct Optimizer {
    /// Number of updates done.
    pub steps: usize,
    /// States of each adapter, by site, in the order of [`crate::checkpoint::adapter::Adapter::tensors`].
    pub states: Vec<Vec<State>>,
    weight_decay: f64,
}

impl Optimizer {
    /// The recipe's optimizer, for every adapter of the decoder.
    pub fn new(decoder: &Decoder, recipe: &Recipe) -> Result<Self> {
        let adapters = (0..decoder.sites.len()).filter_map(|i| decoder.adapter(i));
        let states = adapters.map(|a| a.tensors().map(|p| State::new(p, recipe.optimizer)).collect());
        Ok(Self { steps: 0, states: states.collect::<Result<_>>()?, weight_decay: recipe.weight_decay })
    }

    /// One update of every adapter that has a gradient.
    pub fn step(&mut self, decoder: &mut Decoder, mut grads: Grads, learning_rate: f64) -> crate::error::Result<()> {
        self.steps += 1;
        for site in 0..decoder.sites.len() {
            let grad = grads[decoder.place(site)].take();
            let (Some(grad), Some(old)) = (grad, decoder.adapter(site).cloned()) else { continue };
            let (mut parts, mut next) = (grad.tensors().zip(&self.states[site]), Vec::new());
            let new = old.map(|p| -> Result<Tensor> {
                let Some((g, state)) = parts.next() else { bail!("an adapter lost a part") };
                let (p, state) = self.update(p, g, state, learning_rate)?;
                next.push(state);
                Ok(p)
            })?;
            self.states[site] = next;
            decoder.set_adapter(site, new)?;
        }
        Ok(())
    }

    fn update(&self, p: &Tensor, g: &Tensor, state: &State, learning_rate: f64) -> Result<(Tensor, State)> {
        // Decoupled weight decay, of the weights before the update, in every rule.
        let decay = 1.0 - learning_rate * self.weight_decay;
        match state {
            State::Adamw { m, v } => self.adamw(p, g, (m, v), (learning_rate, decay)),
            State::Adamw8bit { m, v } => {
                let (p, m, v) = adamw_8bit::update(p, g, (m, v), (self.adamw_step(learning_rate), decay))?;
                Ok((p, State::Adamw8bit { m, v }))
            }
            State::Adafactor { row, column } => {
                let (u, row, column) = adafactor::factored(g, (row, column), self.steps)?;
                Ok((((p * decay)? - (u * learning_rate)?)?, State::Adafactor { row, column }))
            }
            State::AdafactorVector { v } => {
                let (u, v) = adafactor::whole(g, v, self.steps)?;
                Ok((((p * decay)? - (u * learning_rate)?)?, State::AdafactorVector { v }))
            }
        }
    }

    /// AdamW's step length and the root of its second bias correction.
    fn adamw_step(&self, learning_rate: f64) -> (f64, f64) {
        let bias1 = 1.0 - BETA1.powi(self.steps as i32);
        let bias2 = 1.0 - BETA2.powi(self.steps as i32);
        (learning_rate / bias1, bias2.sqrt())
    }

    /// AdamW's update of one tensor, as `torch.optim.AdamW` computes it.
    fn adamw(
        &self,
        p: &Tensor,
        g: &Tensor,
        (m, v): (&Tensor, &Tensor),
        (learning_rate, decay): (f64, f64),
    ) -> Result<(Tensor, State)> {
        let m = ((m * BETA1)? + (g * (1.0 - BETA1))?)?;
        let v = ((v * BETA2)? + (g.sqr()? * (1.0 - BETA2))?)?;
        let (step, root_bias2) = self.adamw_step(learning_rate);
        let denominator = ((v.sqrt()? / root_bias2)? + EPS)?;
        let p = ((p * decay)? - ((&m / denominator)? * step)?)?;
        Ok((p, State::Adamw { m, v }))
    }
}

/// Global norm of all gradients together.
pub fn grad_norm(grads: &Grads) -> Result<f64> {
    let mut sum = 0.0;
    for t in grads.iter().flatten().flat_map(AdapterGrad::tensors) {
        sum += f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(sum.sqrt())
}

/// Scales gradients down to the global norm `max_norm` if theirs, `norm`, is larger; 0 leaves them alone.
pub fn clip(grads: Grads, norm: f64, max_norm: f64) -> Result<Grads> {
    let factor = max_norm / (norm + CLIP_EPS);
    if max_norm == 0.0 || factor >= 1.0 {
        return Ok(grads);
    }
    let scale = |g: AdapterGrad| g.map(|t| t * factor);
    grads.into_iter().map(|g| g.map(scale).transpose()).collect()
}

#[cfg(test)]
mod twin_tests;
