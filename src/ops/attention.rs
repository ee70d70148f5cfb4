//! Causal attention over packed examples, in chunks of query rows, forward and backward.
//!
//! Rows of several examples lie one after the other without padding; a query sees keys of its own
//! example only, up to itself, and within the layer's window. No score matrix larger than
//! `heads x chunk x length` ever exists: backward makes the scores again.

mod last;

use std::ops::Range;

use candle_core::{D, Result, Tensor};
use rayon::prelude::*;

use crate::ops::access::with_slice;
use crate::ops::backend::Backend;
use crate::ops::kernels;
use crate::ops::matmul::{Into, Shared, View, gemm};

/// What attention needs to know of the model and of the run.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// What computes.
    pub backend: Backend,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Scores are multiplied by this.
    pub scale: f64,
    /// `cap * tanh(score / cap)`
    pub softcap: Option<f64>,
    /// A query at `t` sees `t - window < s <= t`.
    pub window: Option<usize>,
    /// Query rows worked on at a time.
    pub chunk: usize,
}

/// One chunk of an example: its query rows and the keys any of them can see, counted within the example.
pub(super) struct Chunk {
    pub(super) rows: Range<usize>,
    pub(super) keys: Range<usize>,
}

impl Shape {
    fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub(super) fn chunks(&self, length: usize) -> impl Iterator<Item = Chunk> + use<> {
        let (step, window) = (self.chunk, self.window.unwrap_or(usize::MAX));
        (0..length).step_by(step).map(move |start| {
            let end = (start + step).min(length);
            Chunk { rows: start..end, keys: (start + 1).saturating_sub(window)..end }
        })
    }

    /// `o [rows, heads * head_dim]` from `q` of that shape and `k`, `v` of `[rows, kv_heads * head_dim]`.
    pub(crate) fn forward(&self, q: &Tensor, k: &Tensor, v: &Tensor, examples: &[Range<usize>]) -> Result<Tensor> {
        match self.backend {
            Backend::Fused => {}
            Backend::Metal(queue) => return self.forward_metal(queue, (q, k, v), examples),
            Backend::Composed => return self.forward_composed(q, k, v, examples),
        }
        let mut out = vec![0f32; q.elem_count()];
        with_slice(q, |q| {
            with_slice(k, |k| with_slice(v, |v| self.forward_cpu(&Qkv { q, k, v }, examples, &mut out)))
        })???;
        Tensor::from_vec(out, q.shape(), q.device())
    }

    /// Gradients with respect to q, k and v, from the output's gradient `g`.
    pub(crate) fn backward(
        &self,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        g: &Tensor,
        examples: &[Range<usize>],
    ) -> Result<(Tensor, Tensor, Tensor)> {
        match self.backend {
            Backend::Fused => {}
            Backend::Metal(queue) => return self.backward_metal(queue, (q, k, v), g, examples),
            Backend::Composed => return self.backward_composed((q, k, v), g, examples),
        }
        let (mut dq, mut dk, mut dv) =
            (vec![0f32; q.elem_count()], vec![0f32; k.elem_count()], vec![0f32; v.elem_count()]);
        with_slice(q, |q| {
            with_slice(k, |k| {
                with_slice(v, |v| {
                    with_slice(g, |g| {
                        self.backward_cpu(&Qkv { q, k, v }, g, examples, [&mut dq, &mut dk, &mut dv]);
                    })
                })
            })
        })????;
        let make = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
        Ok((make(dq, q)?, make(dk, k)?, make(dv, v)?))
    }
}

struct Qkv<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

// On the CPU.
impl Shape {
    fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Rows `rows` of head `head` in a matrix of `width` columns whose example starts at row `start`.
    fn head<'a>(&self, data: &'a [f32], width: usize, head: usize, start: usize, rows: &Range<usize>) -> View<'a> {
        let offset = (start + rows.start) * width + head * self.head_dim;
        View::new(&data[offset..], rows.len(), self.head_dim, width)
    }

    /// Softmax of the chunk's scores, in place; `slope` receives the derivative of the soft-cap.
    fn probabilities(&self, scores: &mut [f32], chunk: &Chunk, mut slope: Option<&mut [f32]>) {
        let n = chunk.keys.len();
        let window = self.window.unwrap_or(usize::MAX);
        for (i, row) in scores.chunks_mut(n).enumerate() {
            let t = chunk.rows.start + i;
            let from = (t + 1).saturating_sub(window).max(chunk.keys.start) - chunk.keys.start;
            let to = t + 1 - chunk.keys.start;
            let seen = &mut row[from..to];
            let slope = slope.as_deref_mut().map(|slope| &mut slope[i * n + from..i * n + to]);
            kernels::softmax(seen, self.softcap.map(|c| c as f32), slope);
            row[..from].fill(0.0);
            row[to..].fill(0.0);
        }
    }

    fn scores(&self, x: &Qkv<'_>, head: usize, start: usize, chunk: &Chunk, out: &mut [f32]) {
        let q = self.head(x.q, self.q_width(), head, start, &chunk.rows);
        let k = self.head(x.k, self.kv_width(), head / self.group(), start, &chunk.keys);
        gemm(out, q, k.t(), self.scale as f32, Into::Overwrite, false);
    }

    fn forward_cpu(&self, x: &Qkv<'_>, examples: &[Range<usize>], out: &mut [f32]) {
        let mut tasks: Vec<(usize, Chunk)> =
            examples.iter().flat_map(|e| self.chunks(e.len()).map(move |chunk| (e.start, chunk))).collect();
        // What takes longest goes first.
        tasks.sort_by_key(|(_, chunk)| std::cmp::Reverse(chunk.rows.len() * chunk.keys.len()));
        let out = Shared::new(out, self.q_width());
        tasks.into_par_iter().with_max_len(1).for_each(|(start, chunk)| {
            let mut p = vec![0f32; chunk.rows.len() * chunk.keys.len()];
            for head in 0..self.heads {
                self.scores(x, head, start, &chunk, &mut p);
                self.probabilities(&mut p, &chunk, None);
                let v = self.head(x.v, self.kv_width(), head / self.group(), start, &chunk.keys);
                let p = View::new(&p, chunk.rows.len(), chunk.keys.len(), chunk.keys.len());
                // SAFETY: every task has rows of its own.
                unsafe { out.gemm((start + chunk.rows.start, head * self.head_dim), p, v, 1.0, Into::Overwrite) };
            }
        });
    }

    fn backward_cpu(&self, x: &Qkv<'_>, g: &[f32], examples: &[Range<usize>], out: [&mut [f32]; 3]) {
        let [dq, dk, dv] = out;
        let out = [Shared::new(dq, self.q_width()), Shared::new(dk, self.kv_width()), Shared::new(dv, self.kv_width())];
        let mut tasks: Vec<(&Range<usize>, usize)> =
            examples.iter().flat_map(|e| (0..self.kv_heads).map(move |kv_head| (e, kv_head))).collect();
        tasks.sort_by_key(|(example, _)| std::cmp::Reverse(example.len()));
        tasks.into_par_iter().with_max_len(1).for_each(|(example, kv_head)| {
            for i in 0..self.group() {
                // SAFETY: every task has an example's columns of a key head, and of its query heads, to itself.
                unsafe { self.backward_head(x, g, (kv_head * self.group() + i, example), &out) };
            }
        });
    }

    /// With P the probabilities: dV += P' dO, dP = dO V', dS = P (dP - sum(dP P)), dQ = dS K, dK += dS' Q.
    ///
    /// # Safety
    /// Nobody else may be at the same head's columns of the same example in `out`.
    unsafe fn backward_head(
        &self,
        x: &Qkv<'_>,
        g: &[f32],
        (head, example): (usize, &Range<usize>),
        [dq, dk, dv]: &[Shared<'_>; 3],
    ) {
        let (start, d, kv_head) = (example.start, self.head_dim, head / self.group());
        for chunk in self.chunks(example.len()) {
            let (c, n) = (chunk.rows.len(), chunk.keys.len());
            let mut p = vec![0f32; c * n];
            let mut slope = self.softcap.map(|_| vec![0f32; c * n]);
            self.scores(x, head, start, &chunk, &mut p);
            self.probabilities(&mut p, &chunk, slope.as_deref_mut());
            let go = self.head(g, self.q_width(), head, start, &chunk.rows);
            let v = self.head(x.v, self.kv_width(), kv_head, start, &chunk.keys);
            let mut ds = vec![0f32; c * n];
            gemm(&mut ds, go, v.t(), 1.0, Into::Overwrite, false);
            let to_keys = (start + chunk.keys.start, kv_head * d);
            // SAFETY: the caller's promise, here and below.
            unsafe { dv.gemm(to_keys, View::new(&p, c, n, n).t(), go, 1.0, Into::Accumulate) };
            ds.chunks_mut(n).zip(p.chunks(n)).for_each(|(ds, p)| kernels::softmax_bwd(p, ds));
            if let Some(slope) = &slope {
                ds.iter_mut().zip(slope).for_each(|(ds, s)| *ds *= s);
            }
            let ds = View::new(&ds, c, n, n);
            let k = self.head(x.k, self.kv_width(), kv_head, start, &chunk.keys);
            let q = self.head(x.q, self.q_width(), head, start, &chunk.rows);
            let (scale, to_queries) = (self.scale as f32, (start + chunk.rows.start, head * d));
            unsafe {
                dq.gemm(to_queries, ds, k, scale, Into::Overwrite);
                dk.gemm(to_keys, ds.t(), q, scale, Into::Accumulate);
            }
        }
    }
}

// On any device, of candle's ops.
impl Shape {
    /// `[rows, heads * d]` to `[kv_heads, group * rows, d]`, contiguous.
    fn split(&self, x: &Tensor, heads: usize) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let x = x.reshape((rows, heads, self.head_dim))?.transpose(0, 1)?.contiguous()?;
        x.reshape((self.kv_heads, heads / self.kv_heads * rows, self.head_dim))
    }

    /// Back from [`Self::split`].
    fn join(&self, x: &Tensor, heads: usize, rows: usize) -> Result<Tensor> {
        let x = x.reshape((heads, rows, self.head_dim))?.transpose(0, 1)?.contiguous()?;
        x.reshape((rows, heads * self.head_dim))
    }

    /// Added to the scores: 0 where the key is seen, minus infinity where not.
    fn mask(&self, chunk: &Chunk, like: &Tensor) -> Result<Tensor> {
        let window = self.window.unwrap_or(usize::MAX);
        let mask: Vec<f32> = chunk
            .rows
            .clone()
            .flat_map(|t| {
                let seen = move |s: usize| s <= t && t - s < window;
                chunk.keys.clone().map(move |s| if seen(s) { 0.0 } else { f32::NEG_INFINITY })
            })
            .collect();
        Tensor::from_vec(mask, (1, 1, chunk.rows.len(), chunk.keys.len()), like.device())
    }

    /// Probabilities of a chunk, `[kv_heads, group * rows, keys]`, and the soft-cap's slope.
    fn probabilities_composed(&self, q: &Tensor, k: &Tensor, chunk: &Chunk) -> Result<(Tensor, Option<Tensor>)> {
        let mut s = (q.matmul(&k.t()?.contiguous()?)? * self.scale)?;
        let mut slope = None;
        if let Some(cap) = self.softcap {
            let t = (s / cap)?.tanh()?;
            slope = Some(t.sqr()?.affine(-1.0, 1.0)?);
            s = (t * cap)?;
        }
        let four = (self.kv_heads, self.group(), chunk.rows.len(), chunk.keys.len());
        let shape = s.shape().clone();
        let s = s.reshape(four)?.broadcast_add(&self.mask(chunk, q)?)?.reshape(shape)?;
        let e = s.broadcast_sub(&s.max_keepdim(D::Minus1)?)?.exp()?;
        Ok((e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?, slope))
    }

    fn forward_composed(&self, q: &Tensor, k: &Tensor, v: &Tensor, examples: &[Range<usize>]) -> Result<Tensor> {
        let mut parts = Vec::new();
        for example in examples {
            for chunk in self.chunks(example.len()) {
                let qc = self.split(&q.narrow(0, example.start + chunk.rows.start, chunk.rows.len())?, self.heads)?;
                let keys = |x: &Tensor| {
                    self.split(&x.narrow(0, example.start + chunk.keys.start, chunk.keys.len())?, self.kv_heads)
                };
                let (p, _) = self.probabilities_composed(&qc, &keys(k)?, &chunk)?;
                parts.push(self.join(&p.matmul(&keys(v)?)?, self.heads, chunk.rows.len())?);
            }
        }
        Tensor::cat(&parts, 0)
    }

    fn backward_composed(
        &self,
        (q, k, v): (&Tensor, &Tensor, &Tensor),
        g: &Tensor,
        examples: &[Range<usize>],
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (dk, dv) = (k.zeros_like()?, v.zeros_like()?);
        let mut dq = Vec::new();
        let accumulate = |sum: &Tensor, part: Tensor, at: usize| -> Result<()> {
            let old = sum.narrow(0, at, part.dim(0)?)?;
            sum.slice_set(&(old + part)?.contiguous()?, 0, at)
        };
        for example in examples {
            for chunk in self.chunks(example.len()) {
                let (row, key) = (example.start + chunk.rows.start, example.start + chunk.keys.start);
                let (c, n) = (chunk.rows.len(), chunk.keys.len());
                let qc = self.split(&q.narrow(0, row, c)?, self.heads)?;
                let gc = self.split(&g.narrow(0, row, c)?, self.heads)?;
                let kc = self.split(&k.narrow(0, key, n)?, self.kv_heads)?;
                let vc = self.split(&v.narrow(0, key, n)?, self.kv_heads)?;
                let (p, slope) = self.probabilities_composed(&qc, &kc, &chunk)?;
                let dp = gc.matmul(&vc.t()?.contiguous()?)?;
                let along = (&dp * &p)?.sum_keepdim(D::Minus1)?;
                let mut ds = ((dp.broadcast_sub(&along)? * &p)? * self.scale)?;
                if let Some(slope) = slope {
                    ds = (ds * slope)?;
                }
                dq.push(self.join(&ds.matmul(&kc)?, self.heads, c)?);
                let dkc = ds.t()?.contiguous()?.matmul(&qc)?;
                let dvc = p.t()?.contiguous()?.matmul(&gc)?;
                accumulate(&dk, self.join(&dkc, self.kv_heads, n)?, key)?;
                accumulate(&dv, self.join(&dvc, self.kv_heads, n)?, key)?;
            }
        }
        Ok((Tensor::cat(&dq, 0)?, dk, dv))
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
