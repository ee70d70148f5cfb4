//! The MLP of a block, forward and backward, a few rows at a time.

use std::ops::Range;

use candle_core::{Result, Tensor};

use crate::spec::model::tensors::Role;
use crate::trainer::candle::nn::block::{Back, Block, must};
use crate::trainer::candle::nn::tape::Rows;

impl Block {
    /// Gate (or the plain projection) and up, and what the down projection takes.
    pub(super) fn mlp_hidden(
        &self,
        n: &Tensor,
        rows: &Rows,
        first: usize,
    ) -> Result<((Tensor, Option<Tensor>), Tensor)> {
        let act = self.mlp.activation;
        if !self.mlp.gated {
            let up = self.run(Role::Up, n, rows, first)?;
            let hidden = self.backend.act(act, &up)?;
            return Ok(((up, None), hidden));
        }
        let (gate, up) = if self.mlp.fused {
            let both = self.run(Role::GateUp, n, rows, first)?;
            let width = both.dim(1)? / 2;
            // Backward writes over them, so they have memory of their own.
            (self.backend.columns(&both, 0, width)?, self.backend.columns(&both, width, width)?)
        } else {
            (self.run(Role::Gate, n, rows, first)?, self.run(Role::Up, n, rows, first)?)
        };
        let hidden = self.backend.gated(act, &gate, &up)?;
        Ok(((gate, Some(up)), hidden))
    }

    pub(super) fn mlp_out(&self, hidden: &Tensor, rows: &Rows, first: usize) -> Result<Tensor> {
        let y = self.run(Role::Down, hidden, rows, first)?;
        match &self.post_mlp_norm {
            Some(norm) => norm.forward(&y),
            None => Ok(y),
        }
    }

    fn spans(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let step = self.mlp_chunk;
        (0..rows).step_by(step).map(move |start| start..(start + step).min(rows))
    }

    /// `mid + mlp(mid)`, a chunk of rows at a time, in `out` where that is given.
    pub(super) fn mlp_forward(&self, mid: Tensor, rows: &Rows, out: Option<Tensor>) -> Result<Tensor> {
        let out = match out {
            Some(out) => out,
            None => self.backend.empty(mid.dims2()?, mid.device())?,
        };
        for span in self.spans(mid.dim(0)?) {
            let part = mid.narrow(0, span.start, span.len())?;
            let (gate_up, hidden) = self.mlp_hidden(&self.mlp_norm.forward(&part)?, rows, span.start)?;
            drop(gate_up);
            self.backend.place_sum(&out, span.start, self.mlp_out(&hidden, rows, span.start)?, &part)?;
        }
        Ok(out)
    }

    pub(super) fn mlp_backward(
        &self,
        mid: &Tensor,
        kept: Option<(Tensor, Option<Tensor>)>,
        g: Tensor,
        to: &mut Back<'_>,
    ) -> Result<Tensor> {
        let out = self.backend.empty(mid.dims2()?, mid.device())?;
        for span in self.spans(mid.dim(0)?) {
            to.first_row = span.start;
            let cut = |t: &Tensor| t.narrow(0, span.start, span.len());
            let (mid, g) = (cut(mid)?, cut(&g)?);
            let n = self.mlp_norm.forward(&mid)?;
            let ((gate, up), hidden) = match &kept {
                Some((gate, Some(up))) => {
                    let (gate, up) = (cut(gate)?, cut(up)?);
                    let hidden = self.backend.gated(self.mlp.activation, &gate, &up)?;
                    ((gate, Some(up)), hidden)
                }
                Some((up, None)) => {
                    let up = cut(up)?;
                    let hidden = self.backend.act(self.mlp.activation, &up)?;
                    ((up, None), hidden)
                }
                None => self.mlp_hidden(&n, to.rows, span.start)?,
            };
            let dn = self.mlp_chunk_backward(&n, (gate, up), hidden, &g, to)?;
            self.backend.place_sum(&out, span.start, self.mlp_norm.backward(&mid, &dn)?, &g)?;
        }
        to.first_row = 0;
        Ok(out)
    }

    /// Gradient with respect to the normed input of one chunk.
    fn mlp_chunk_backward(
        &self,
        n: &Tensor,
        (gate, up): (Tensor, Option<Tensor>),
        hidden: Tensor,
        g: &Tensor,
        to: &mut Back<'_>,
    ) -> Result<Tensor> {
        let g_out = match &self.post_mlp_norm {
            Some(norm) => norm.backward(&self.run(Role::Down, &hidden, to.rows, to.first_row)?, g)?,
            None => g.clone(),
        };
        let d_hidden = must(self.back(Role::Down, &hidden, &g_out, to)?)?;
        drop((g_out, hidden));
        let act = self.mlp.activation;
        let Some(up) = up else {
            let d = self.backend.act_bwd(act, &gate, d_hidden)?;
            drop(gate);
            return must(self.back(Role::Up, n, &d, to)?);
        };
        let (dgate, dup) = self.backend.gated_bwd(act, &gate, up, d_hidden)?;
        drop(gate);
        if self.mlp.fused {
            let both = self.backend.beside(&[&dgate, &dup])?;
            drop((dgate, dup));
            return must(self.back(Role::GateUp, n, &both, to)?);
        }
        let through_gate = must(self.back(Role::Gate, n, &dgate, to)?)?;
        drop(dgate);
        let through_up = must(self.back(Role::Up, n, &dup, to)?)?;
        self.backend.add(through_gate, &through_up)
    }
}
