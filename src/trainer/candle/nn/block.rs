//! One decoder block, forward and backward, on the rows of a micro-batch.
//!
//! Backward starts from the block's input alone: it makes the intermediates again, walks the MLP in
//! chunks of rows, and lets go of each tensor as soon as it is used up. With `keep`, the forward pass
//! leaves a `Tape` and backward starts from that.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::checkpoint::adapter::AdapterGrad;
use crate::ops::dropout::DropoutKey;
use crate::ops::{Backend, NormWeights, RopeTables, attention};
use crate::spec::model::Mlp;
use crate::spec::model::tensors::Role;
use crate::trainer::candle::nn::linear::{Linear, Use};
use crate::trainer::candle::nn::tape::{AttentionTape, Projected, Rows, Tape};

/// A block with its weights.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// What computes.
    pub backend: Backend,
    /// Before attention.
    pub input_norm: NormWeights,
    /// After attention, inside the residual.
    pub post_attention_norm: Option<NormWeights>,
    /// Before the MLP.
    pub mlp_norm: NormWeights,
    /// After the MLP, inside the residual.
    pub post_mlp_norm: Option<NormWeights>,
    /// Over each head of q and k.
    pub qk_norm: Option<(NormWeights, NormWeights)>,
    /// The projections, in running order.
    pub linears: Vec<(Role, Linear)>,
    /// Rotation of q and k.
    pub rope: Option<Arc<RopeTables>>,
    /// Attention's shape.
    pub attention: attention::Shape,
    /// The MLP's form.
    pub mlp: Mlp,
    /// Rows of the MLP worked on at a time.
    pub mlp_chunk: usize,
    /// Index of the block's first projection, counted over the model.
    pub first_site: u64,
}

/// Adapter gradients gathered so far, one place per projection of the model, in running order.
pub type Grads = Vec<Option<AdapterGrad>>;

impl Block {
    pub(super) fn find(&self, role: Role) -> Option<usize> {
        self.linears.iter().position(|(r, _)| *r == role)
    }

    pub(super) fn run(&self, role: Role, x: &Tensor, rows: &Rows, first_row: usize) -> Result<Tensor> {
        let i = self.find(role).ok_or_else(|| candle_core::Error::Msg(format!("block has no {role:?}")))?;
        self.linears[i].1.forward(x, self.site(i, rows, first_row))
    }

    pub(super) fn site(&self, i: usize, rows: &Rows, first_row: usize) -> Use {
        let key = |(seed, micro_step)| DropoutKey { seed, micro_step, site: self.first_site + i as u64 };
        Use { dropout: rows.dropout.map(key), first_row }
    }

    pub(super) fn back(&self, role: Role, x: &Tensor, g: &Tensor, to: &mut Back<'_>) -> Result<Option<Tensor>> {
        let i = self.find(role).ok_or_else(|| candle_core::Error::Msg(format!("block has no {role:?}")))?;
        let at = self.site(i, to.rows, to.first_row);
        self.linears[i].1.backward(x, g, at, (to.need_dx, to.grads[i].as_ref()))
    }

    /// The block's output, in `out` where that is given.
    pub(crate) fn forward(&self, x: &Tensor, rows: &Rows, out: Option<Tensor>) -> Result<Tensor> {
        let mid = self.attend(x, rows)?.1;
        self.mlp_forward(mid, rows, out)
    }

    /// The block's output, and everything backward needs.
    pub(crate) fn forward_keep(&self, x: &Tensor, rows: &Rows) -> Result<(Tensor, Tape)> {
        let (attention, mid) = self.attend(x, rows)?;
        let (gate_up, hidden) = self.mlp_hidden(&self.mlp_norm.forward(&mid)?, rows, 0)?;
        let y = self.backend.add(self.mlp_out(&hidden, rows, 0)?, &mid)?;
        Ok((y, Tape { x: x.clone(), attention, mid, mlp: Some(gate_up) }))
    }

    /// Makes the tape again from the block's input, without the MLP's part, which backward makes chunk by chunk.
    pub(crate) fn recompute(&self, x: &Tensor, rows: &Rows) -> Result<Tape> {
        let (attention, mid) = self.attend(x, rows)?;
        Ok(Tape { x: x.clone(), attention, mid, mlp: None })
    }

    /// Gradient with respect to the block's input (`None` unless `need_dx`); those of its adapters are added to
    /// `grads`, the places of this block's projections.
    pub(crate) fn backward(
        &self,
        tape: Tape,
        g: Tensor,
        rows: &Rows,
        (need_dx, grads): (bool, &[Option<AdapterGrad>]),
    ) -> Result<Option<Tensor>> {
        let Tape { x, attention, mid, mlp } = tape;
        let mut to = Back { rows, grads, need_dx: true, first_row: 0 };
        let g = self.mlp_backward(&mid, mlp, g, &mut to)?;
        drop(mid);
        to.need_dx = need_dx;
        self.attention_backward(&x, attention, g, &mut to)
    }

    /// The attention's tape, and `x` plus its output.
    fn attend(&self, x: &Tensor, rows: &Rows) -> Result<(AttentionTape, Tensor)> {
        let normed = self.input_norm.forward(x)?;
        let Projected { raw, q, k, v } = self.qkv(&normed, rows)?;
        let out = self.attention.forward(&q, &k, &v, &rows.examples)?;
        let mid = self.after_attention(&out, x, rows)?;
        Ok((AttentionTape { normed, raw, q, k, v, out }, mid))
    }

    /// `x` plus what the heads' output `out` becomes.
    pub(super) fn after_attention(&self, out: &Tensor, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let mut y = self.run(Role::O, out, rows, 0)?;
        if let Some(norm) = &self.post_attention_norm {
            y = norm.forward(&y)?;
        }
        self.backend.add(y, x)
    }

    pub(super) fn qkv(&self, normed: &Tensor, rows: &Rows) -> Result<Projected> {
        let (mut q, mut k, v) = if self.find(Role::Qkv).is_some() {
            let all = self.run(Role::Qkv, normed, rows, 0)?;
            let (qw, kw) = self.widths();
            let part = |from, width| self.backend.columns(&all, from, width);
            (part(0, qw)?, part(qw, kw)?, part(qw + kw, kw)?)
        } else {
            let run = |role| self.run(role, normed, rows, 0);
            (run(Role::Q)?, run(Role::K)?, run(Role::V)?)
        };
        let mut raw = None;
        if let Some((q_norm, k_norm)) = &self.qk_norm {
            let (qn, kn) = (self.per_head(&q, |x| q_norm.forward(x))?, self.per_head(&k, |x| k_norm.forward(x))?);
            raw = Some((std::mem::replace(&mut q, qn), std::mem::replace(&mut k, kn)));
        }
        if let Some(rope) = &self.rope {
            q = rope.apply(q, self.attention.head_dim, &rows.positions, false)?;
            k = rope.apply(k, self.attention.head_dim, &rows.positions, false)?;
        }
        Ok(Projected { raw, q, k, v })
    }

    fn widths(&self) -> (usize, usize) {
        let a = &self.attention;
        (a.heads * a.head_dim, a.kv_heads * a.head_dim)
    }

    /// Applies `f` to `[rows * heads, head_dim]`.
    fn per_head(&self, x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let d = self.attention.head_dim;
        f(&x.reshape((x.elem_count() / d, d))?)?.reshape(x.shape())
    }

    fn attention_backward(
        &self,
        x: &Tensor,
        tape: AttentionTape,
        g: Tensor,
        to: &mut Back<'_>,
    ) -> Result<Option<Tensor>> {
        let need_dx = std::mem::replace(&mut to.need_dx, true);
        let g_out = match &self.post_attention_norm {
            Some(norm) => norm.backward(&self.run(Role::O, &tape.out, to.rows, 0)?, &g)?,
            None => g.clone(),
        };
        let d_out = must(self.back(Role::O, &tape.out, &g_out, to)?)?;
        drop(g_out);
        let AttentionTape { normed, raw, q, k, v, out } = tape;
        drop(out);
        let (mut dq, mut dk, dv) = self.attention.backward((&q, &k, &v), &d_out, &to.rows.examples)?;
        drop((q, k, v, d_out));
        if let Some(rope) = &self.rope {
            dq = rope.apply(dq, self.attention.head_dim, &to.rows.positions, true)?;
            dk = rope.apply(dk, self.attention.head_dim, &to.rows.positions, true)?;
        }
        if let (Some((q_norm, k_norm)), Some((q_raw, k_raw))) = (&self.qk_norm, &raw) {
            dq = self.per_head_back(q_norm, q_raw, &dq)?;
            dk = self.per_head_back(k_norm, k_raw, &dk)?;
        }
        drop(raw);
        to.need_dx = need_dx;
        let d_normed = self.qkv_backward(&normed, (dq, dk, dv), to)?;
        match d_normed {
            Some(d) if need_dx => Ok(Some(self.backend.add(self.input_norm.backward(x, &d)?, &g)?)),
            _ => Ok(None),
        }
    }

    fn per_head_back(&self, norm: &NormWeights, x: &Tensor, g: &Tensor) -> Result<Tensor> {
        let d = self.attention.head_dim;
        let flat = (x.elem_count() / d, d);
        norm.backward(&x.reshape(flat)?, &g.reshape(flat)?)?.reshape(x.shape())
    }

    fn qkv_backward(
        &self,
        normed: &Tensor,
        (dq, dk, dv): (Tensor, Tensor, Tensor),
        to: &mut Back<'_>,
    ) -> Result<Option<Tensor>> {
        if self.find(Role::Qkv).is_some() {
            let all = self.backend.beside(&[&dq, &dk, &dv])?;
            drop((dq, dk, dv));
            return self.back(Role::Qkv, normed, &all, to);
        }
        let mut sum = None;
        for (role, d) in [(Role::Q, dq), (Role::K, dk), (Role::V, dv)] {
            let part = self.back(role, normed, &d, to)?;
            sum = match (sum, part) {
                (Some(sum), Some(part)) => Some(self.backend.add(sum, &part)?),
                (_, part) => part,
            };
        }
        Ok(sum)
    }
}

/// What backward carries along.
pub(super) struct Back<'a> {
    /// Rows of the micro-batch.
    pub rows: &'a Rows,
    /// Places for the gradients of the block's adapters.
    pub grads: &'a [Option<AdapterGrad>],
    /// The gradient with respect to the input is wanted.
    pub need_dx: bool,
    /// Row of the micro-batch that the input starts at.
    pub first_row: usize,
}

pub(super) fn must(dx: Option<Tensor>) -> Result<Tensor> {
    dx.ok_or_else(|| candle_core::Error::Msg("a gradient that was asked for is absent".into()))
}
