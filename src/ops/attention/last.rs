//! Attention of the last rows of a text alone, whose earlier keys and values are known.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::ops::attention::{Chunk, Qkv, Shape};
use crate::ops::backend::Backend;
use crate::ops::matmul::{Into, Shared, View, gemm};
use crate::ops::with_slice;

impl Shape {
    /// The last rows of [`Shape::forward`] of one text: `o [rows, heads * head_dim]` from `q` of that shape and all `k`, `v`
    /// of `[length, kv_heads * head_dim]`, with `rows <= length`.
    pub(crate) fn forward_last(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (rows, length) = (q.dim(0)?, k.dim(0)?);
        if rows == length {
            return self.forward(q, k, v, std::slice::from_ref(&(0..length)));
        }
        match self.backend {
            Backend::Fused => {}
            Backend::Metal(queue) => {
                return self.forward_last_metal(queue, (q, k, v), self.last_chunks(rows, length));
            }
            Backend::Composed => return self.forward_last_composed(q, k, v),
        }
        let mut out = vec![0f32; q.elem_count()];
        with_slice(q, |q| {
            with_slice(k, |k| with_slice(v, |v| self.forward_last_cpu(&Qkv { q, k, v }, rows, &mut out)))
        })???;
        Tensor::from_vec(out, q.shape(), q.device())
    }

    /// Chunks of the last `rows` of `length` rows.
    fn last_chunks(&self, rows: usize, length: usize) -> impl Iterator<Item = Chunk> + use<> {
        let (step, window) = (self.chunk, self.window.unwrap_or(usize::MAX));
        (length - rows..length).step_by(step).map(move |start| {
            let end = (start + step).min(length);
            Chunk { rows: start..end, keys: (start + 1).saturating_sub(window)..end }
        })
    }

    fn forward_last_cpu(&self, x: &Qkv<'_>, rows: usize, out: &mut [f32]) {
        let length = x.k.len() / self.kv_width();
        let past = length - rows;
        let out = Shared::new(out, self.q_width());
        (0..self.heads).into_par_iter().for_each(|head| {
            for chunk in self.last_chunks(rows, length) {
                let (c, n) = (chunk.rows.len(), chunk.keys.len());
                let own = chunk.rows.start - past..chunk.rows.end - past;
                let q = self.head(x.q, self.q_width(), head, 0, &own);
                let of_keys = |data| self.head(data, self.kv_width(), head / self.group(), 0, &chunk.keys);
                let mut p = vec![0f32; c * n];
                gemm(&mut p, q, of_keys(x.k).t(), self.scale as f32, Into::Overwrite, false);
                self.probabilities(&mut p, &chunk, None);
                let to = (own.start, head * self.head_dim);
                // SAFETY: every head has columns of its own.
                unsafe { out.gemm(to, View::new(&p, c, n, n), of_keys(x.v), 1.0, Into::Overwrite) };
            }
        });
    }

    fn forward_last_composed(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (rows, length) = (q.dim(0)?, k.dim(0)?);
        let mut parts = Vec::new();
        for chunk in self.last_chunks(rows, length) {
            let own = q.narrow(0, chunk.rows.start + rows - length, chunk.rows.len())?;
            let keys = |x: &Tensor| self.split(&x.narrow(0, chunk.keys.start, chunk.keys.len())?, self.kv_heads);
            let (p, _) = self.probabilities_composed(&self.split(&own, self.heads)?, &keys(k)?, &chunk)?;
            parts.push(self.join(&p.matmul(&keys(v)?)?, self.heads, chunk.rows.len())?);
        }
        Tensor::cat(&parts, 0)
    }
}
