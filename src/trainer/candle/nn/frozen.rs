//! A frozen weight and the products with it.

use candle_core::{Result, Tensor};

use crate::checkpoint::stored::Stored;
use crate::ops::metal::Queue;
use crate::ops::{Backend, Index};
use crate::trainer::candle::nn::panels::{Panels, product_by_panels, sum_over_panels};

/// A frozen weight in its storage format.
#[derive(Clone, Debug)]
pub(crate) struct Frozen {
    /// What computes.
    pub(super) backend: Backend,
    weight: Stored,
    bias: Option<Tensor>,
    /// Stored `[in, out]` (GPT-2) and not `[out, in]`.
    transposed: bool,
}

impl Frozen {
    /// `weight [out, in]`, or `[in, out]` if `transposed`; `bias [out]`, in f32.
    pub(crate) fn new(backend: Backend, weight: Stored, bias: Option<Tensor>, transposed: bool) -> Result<Self> {
        Ok(Self { backend, weight, bias, transposed })
    }

    /// `x W' + b`, `[rows, out]`
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.add_bias(self.product(x)?)
    }

    /// `x W'`, `[rows, out]`
    pub(crate) fn product(&self, x: &Tensor) -> Result<Tensor> {
        match (self.weight.f32(), self.transposed) {
            (Some(w), false) => self.backend.product(x, &w.t()?, 1.0),
            (Some(w), true) => self.backend.product(x, w, 1.0),
            (None, false) => product_by_panels(self.backend, x, self.panels()?),
            (None, true) => sum_over_panels(self.backend, x, self.panels()?),
        }
    }

    fn panels(&self) -> Result<Panels<'_>> {
        Panels::new(self.backend, &self.weight)
    }

    /// `y + b`
    pub(crate) fn add_bias(&self, y: Tensor) -> Result<Tensor> {
        match &self.bias {
            Some(bias) => self.backend.add(y, bias),
            None => Ok(y),
        }
    }

    /// `g W`, the gradient with respect to `x`.
    pub(crate) fn backward(&self, g: &Tensor) -> Result<Tensor> {
        match (self.weight.f32(), self.transposed) {
            (Some(w), false) => self.backend.product(g, w, 1.0),
            (Some(w), true) => self.backend.product(g, &w.t()?, 1.0),
            (None, false) => sum_over_panels(self.backend, g, self.panels()?),
            (None, true) => product_by_panels(self.backend, g, self.panels()?),
        }
    }

    /// Squared norm of the weights of each output, `[out]`.
    pub(crate) fn squares(&self) -> Result<Tensor> {
        if let Backend::Metal(queue) = self.backend {
            return self.squares_metal(queue);
        }
        let along = usize::from(!self.transposed);
        let parts = self.panels()?.map(|panel| panel?.1.sqr()?.sum(along));
        match self.transposed {
            false => Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0),
            true => Tensor::stack(&parts.collect::<Result<Vec<_>>>()?, 0)?.sum(0),
        }
    }

    fn squares_metal(&self, queue: Queue) -> Result<Tensor> {
        let panels = self.panels()?;
        let (rows, width) = (panels.columns, panels.width);
        let device = self.weight.device();
        let out = queue.fixed_zeros(if self.transposed { width } else { rows }, &device)?;
        for panel in panels {
            let (first, panel) = panel?;
            match self.transposed {
                false => queue.row_dots(&panel, &panel, &out.narrow(0, first, panel.dim(0)?)?)?,
                true => queue.accumulate(&out, &queue.column_dots(&panel, &panel)?, 1.0)?,
            }
        }
        Ok(out)
    }

    /// Selected rows of `[out, in]`, in f32: the embedding's lookup.
    pub(crate) fn rows(&self, ids: &Index) -> Result<Tensor> {
        self.weight.rows(self.backend, ids.tensor())
    }
}
