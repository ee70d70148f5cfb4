//! AdamW as `torch.optim.AdamW` computes it: decoupled weight decay first, then the moments' step.

use candle_core::{Result, Tensor};

use super::block::Grads;
use super::linear::{Adapter, AdapterGrad};
use super::model::Decoder;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;
/// Added to the norm when clipping, as `torch.nn.utils.clip_grad_norm_` does.
const CLIP_EPS: f64 = 1e-6;

/// First and second moment of one tensor.
#[derive(Clone, Debug)]
pub struct Moments {
    /// Mean of the gradients.
    pub m: Tensor,
    /// Mean of their squares.
    pub v: Tensor,
}

/// The optimizer's state: a pair of moments for A and for B of each site.
pub struct AdamW {
    /// Updates done.
    pub steps: usize,
    /// (A, B) by site.
    pub moments: Vec<(Moments, Moments)>,
    weight_decay: f64,
}

impl AdamW {
    /// Zero moments for every adapter of the decoder.
    pub fn new(decoder: &Decoder, weight_decay: f64) -> Result<Self> {
        let zero = |t: &Tensor| Ok::<_, candle_core::Error>(Moments { m: t.zeros_like()?, v: t.zeros_like()? });
        let adapters = (0..decoder.sites.len()).filter_map(|i| decoder.adapter(i));
        let moments = adapters.map(|a| Ok((zero(&a.a)?, zero(&a.b)?))).collect::<Result<_>>()?;
        Ok(Self { steps: 0, moments, weight_decay })
    }

    /// One update of every adapter that has a gradient.
    pub fn step(&mut self, decoder: &mut Decoder, mut grads: Grads, learning_rate: f64) -> Result<()> {
        self.steps += 1;
        for site in 0..decoder.sites.len() {
            let grad = grads[decoder.place(site)].take();
            let (Some(AdapterGrad { a: ga, b: gb }), Some(old)) = (grad, decoder.adapter(site).cloned()) else {
                continue;
            };
            let (ma, mb) = &self.moments[site];
            let (a, ma) = self.update(&old.a, &ga, ma, learning_rate)?;
            let (b, mb) = self.update(&old.b, &gb, mb, learning_rate)?;
            self.moments[site] = (ma, mb);
            decoder.set_adapter(site, Adapter { a, b });
        }
        Ok(())
    }

    fn update(&self, p: &Tensor, g: &Tensor, old: &Moments, learning_rate: f64) -> Result<(Tensor, Moments)> {
        let m = ((&old.m * BETA1)? + (g * (1.0 - BETA1))?)?;
        let v = ((&old.v * BETA2)? + (g.sqr()? * (1.0 - BETA2))?)?;
        let bias1 = 1.0 - BETA1.powi(self.steps as i32);
        let bias2 = 1.0 - BETA2.powi(self.steps as i32);
        let denominator = ((v.sqrt()? / bias2.sqrt())? + EPS)?;
        let decayed = (p * (1.0 - learning_rate * self.weight_decay))?;
        let p = (decayed - ((&m / denominator)? * (learning_rate / bias1))?)?;
        Ok((p, Moments { m, v }))
    }
}

/// Global norm of the gradients.
pub fn grad_norm(grads: &Grads) -> Result<f64> {
    let mut sum = 0.0;
    for grad in grads.iter().flatten() {
        for t in [&grad.a, &grad.b] {
            sum += f64::from(t.sqr()?.sum_all()?.to_scalar::<f32>()?);
        }
    }
    Ok(sum.sqrt())
}

/// Scales the gradients down to `max_norm` if they are longer; 0 leaves them alone.
pub fn clip(grads: Grads, norm: f64, max_norm: f64) -> Result<Grads> {
    let factor = max_norm / (norm + CLIP_EPS);
    if max_norm == 0.0 || factor >= 1.0 {
        return Ok(grads);
    }
    let scale = |g: AdapterGrad| Ok(AdapterGrad { a: (g.a * factor)?, b: (g.b * factor)? });
    grads.into_iter().map(|g| g.map(scale).transpose()).collect()
}
