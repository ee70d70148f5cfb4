//! Update rules: what each remembers of a tensor, and one step of all adapters.

pub(crate) mod adafactor;
pub(crate) mod adam;
pub(crate) mod adamw_8bit;
pub mod schedule;

use candle_core::{Result, Shape, Tensor};

use crate::checkpoint::adapter::AdapterGrad;
use crate::ops::Backend;
use crate::ops::metal::{AdamStep, FactorStep};
use crate::spec::run::engine::NORM_PARTS as PARTS;
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
    /// State of a tensor that has seen no gradient, in memory that stays.
    pub(crate) fn new(p: &Tensor, rule: run::Optimizer, backend: Backend) -> Result<Self> {
        let zeros = |shape: &Shape| backend.lasting_zeros(shape, p.device());
        Ok(match (rule, p.dims()) {
            (run::Optimizer::Adamw8bit, dims) if rule.quantises(dims) => {
                let (n, place) = (p.elem_count(), (p.device(), backend));
                Self::Adamw8bit { m: Blockwise::zeros(n, true, place)?, v: Blockwise::zeros(n, false, place)? }
            }
            (run::Optimizer::Adafactor, &[rows, columns]) => {
                Self::Adafactor { row: zeros(&rows.into())?, column: zeros(&columns.into())? }
            }
            (run::Optimizer::Adafactor, _) => Self::AdafactorVector { v: zeros(p.shape())? },
            _ => Self::Adamw { m: zeros(p.shape())?, v: zeros(p.shape())? },
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
}

/// The optimizer: a rule, and its state for each tensor of each adapter.
pub struct Optimizer {
    /// Number of updates done.
    pub steps: usize,
    /// States of each adapter, by site, in the order of [`crate::checkpoint::adapter::Adapter::tensors`].
    pub states: Vec<Vec<State>>,
    /// Weight decay of the recipe.
    pub(crate) weight_decay: f64,
    /// What computes.
    pub(crate) backend: Backend,
    /// The books of eight bits, where the device needs them.
    pub(crate) books: Option<Tensor>,
}

impl Optimizer {
    /// The recipe's optimizer, for every adapter of the decoder.
    pub fn new(decoder: &Decoder, recipe: &Recipe) -> Result<Self> {
        let backend = decoder.backend();
        let adapters = (0..decoder.sites.len()).filter_map(|i| decoder.adapter(i));
        let states = adapters.map(|a| a.tensors().map(|p| State::new(p, recipe.optimizer, backend)).collect());
        let books = match (backend, recipe.optimizer) {
            (Backend::Metal(queue), run::Optimizer::Adamw8bit) => Some(adamw_8bit::books(queue, decoder.device())?),
            _ => None,
        };
        Ok(Self { steps: 0, states: states.collect::<Result<_>>()?, weight_decay: recipe.weight_decay, backend, books })
    }

    /// One update of every adapter, in its place, by `factor` times its gradient.
    pub fn step(
        &mut self,
        decoder: &mut Decoder,
        grads: &Grads,
        factor: f64,
        learning_rate: f64,
    ) -> crate::error::Result<()> {
        self.steps += 1;
        for site in 0..decoder.sites.len() {
            let (Some(grad), Some(adapter)) = (&grads[decoder.place(site)], decoder.adapter(site)) else { continue };
            for ((p, g), state) in adapter.tensors().zip(grad.tensors()).zip(&self.states[site]) {
                self.update(p, g, state, (factor, learning_rate))?;
            }
            decoder.adapter_changed(site)?;
        }
        Ok(())
    }

    pub(crate) fn update(
        &self,
        p: &Tensor,
        g: &Tensor,
        state: &State,
        (factor, learning_rate): (f64, f64),
    ) -> Result<()> {
        // Decoupled weight decay, of the weights before the update, in every rule.
        let decay = 1.0 - learning_rate * self.weight_decay;
        let adam = AdamStep {
            factor,
            betas: (BETA1, BETA2),
            rate: learning_rate / (1.0 - BETA1.powi(self.steps as i32)),
            root_bias2: (1.0 - BETA2.powi(self.steps as i32)).sqrt(),
            eps: EPS,
            decay,
        };
        let share = adafactor::share(self.steps);
        let adafactor = FactorStep { factor, share, rate: learning_rate, decay };
        match (state, self.backend) {
            (State::Adamw { m, v }, Backend::Metal(queue)) => queue.adamw(p, g, (m, v), &adam),
            (State::Adamw8bit { m, v }, Backend::Metal(queue)) => {
                let Some(books) = &self.books else { candle_core::bail!("the books of eight bits are missing") };
                queue.adamw_8bit(p, g, ((&m.codes, &m.absmax), (&v.codes, &v.absmax)), books, &adam)
            }
            (State::Adafactor { row, column }, Backend::Metal(queue)) => {
                queue.adafactor(p, g, (row, column), &adafactor)
            }
            (State::AdafactorVector { v }, Backend::Metal(queue)) => queue.adafactor_vector(p, g, v, &adafactor),
            (State::Adamw { m, v }, Backend::Fused) => adam::update_in_place(p, g, (m, v), &adam),
            (State::Adamw { m, v }, _) => adam::update(p, &clipped(g, factor)?, (m, v), &adam),
            (State::Adamw8bit { m, v }, _) => adamw_8bit::update(p, &clipped(g, factor)?, (m, v), &adam),
            (State::Adafactor { row, column }, _) => {
                let update = adafactor::factored(&clipped(g, factor)?, (row, column), share)?;
                adafactor::descend(p, update, &adafactor)
            }
            (State::AdafactorVector { v }, _) => {
                let update = adafactor::whole(&clipped(g, factor)?, v, share)?;
                adafactor::descend(p, update, &adafactor)
            }
        }
    }
}

/// `factor * g`, which is `g` itself where nothing was clipped.
fn clipped(g: &Tensor, factor: f64) -> Result<Tensor> {
    if factor == 1.0 { Ok(g.clone()) } else { g * factor }
}

/// Sets all gradients to zero.
pub fn clear(decoder: &Decoder, grads: &Grads) -> Result<()> {
    grads.iter().flatten().flat_map(AdapterGrad::tensors).try_for_each(|t| decoder.backend().clear(t))
}

/// Global norm of all gradients together.
pub fn grad_norm(decoder: &Decoder, grads: &Grads) -> Result<f64> {
    let tensors: Vec<&Tensor> = grads.iter().flatten().flat_map(AdapterGrad::tensors).collect();
    if let Backend::Metal(queue) = decoder.backend() {
        // All at once: the device is waited for a single time.
        let parts = queue.empty(tensors.len() * PARTS, decoder.device())?;
        for (i, t) in tensors.iter().enumerate() {
            queue.squares(t, &parts.narrow(0, i * PARTS, PARTS)?)?;
        }
        return Ok(queue.read(&parts)?.iter().map(|x| f64::from(*x)).sum::<f64>().sqrt());
    }
    let mut sum = 0.0;
    for t in tensors {
        sum += f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(sum.sqrt())
}

/// What gradients are multiplied by so that their global norm is at most `max_norm`, if theirs, `norm`, is larger; 0
/// leaves them alone.
#[must_use]
pub fn clip(norm: f64, max_norm: f64) -> f64 {
    let factor = max_norm / (norm + CLIP_EPS);
    if max_norm == 0.0 || factor >= 1.0 { 1.0 } else { factor }
}

#[cfg(test)]
mod twin_tests;
