//! Fused, threaded CPU kernels on contiguous `f32` rows: the work that candle would do one
//! elementwise op and one thread at a time. [`crate::ops`] chooses between these and the same
//! formulas composed of candle's ops, and its tests hold the two together.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use crate::ops::vector::{exp, max, sigmoid, sum_by, wide};
use crate::spec::model::Activation;

/// A number that is about to be written.
type Blank = MaybeUninit<f32>;

/// `n` numbers, all of which `fill` writes: clearing fresh memory first would cost as much as a small kernel.
fn filled(n: usize, fill: impl FnOnce(&mut [Blank])) -> Vec<f32> {
    let mut data = Vec::with_capacity(n);
    fill(&mut data.spare_capacity_mut()[..n]);
    // SAFETY: the capacity is there, and every caller in this file writes each of the `n` numbers.
    unsafe { data.set_len(n) };
    data
}

/// Elements a thread takes at a time.
const SPAN: usize = 8192;

/// Rows a thread takes at a time; enough work to be worth handing over.
fn rows_per_task(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// What `f(input row, output row)` makes of all rows, threaded; `f` writes its whole output row.
fn map_rows(x: &[f32], width: usize, f: impl Fn(&[f32], &mut [Blank]) + Sync) -> Vec<f32> {
    let step = width * rows_per_task(width);
    filled(x.len(), |out| {
        out.par_chunks_mut(step).zip(x.par_chunks(step)).for_each(|(o, x)| {
            wide(|| o.chunks_mut(width).zip(x.chunks(width)).for_each(|(o, x)| f(x, o)));
        });
    })
}

/// [`map_rows`] of two inputs.
fn map2_rows(x: &[f32], g: &[f32], width: usize, f: impl Fn(&[f32], &[f32], &mut [Blank]) + Sync) -> Vec<f32> {
    let step = width * rows_per_task(width);
    filled(x.len(), |out| {
        out.par_chunks_mut(step).zip(x.par_chunks(step)).zip(g.par_chunks(step)).for_each(|((o, x), g)| {
            wide(|| o.chunks_mut(width).zip(x.chunks(width)).zip(g.chunks(width)).for_each(|((o, x), g)| f(x, g, o)));
        });
    })
}

/// `f` of each number, which may be in another format, threaded.
pub(crate) fn map_each<X: Copy + Sync>(x: &[X], f: impl Fn(X) -> f32 + Sync) -> Vec<f32> {
    filled(x.len(), |out| {
        out.par_chunks_mut(SPAN).zip(x.par_chunks(SPAN)).for_each(|(o, x)| {
            wide(|| o.iter_mut().zip(x).for_each(|(o, &x)| _ = o.write(f(x))));
        });
    })
}

/// `a[i] = f(a[i], b[i])`, threaded.
pub(crate) fn update_each(a: &mut [f32], b: &[f32], f: impl Fn(f32, f32) -> f32 + Sync) {
    a.par_chunks_mut(SPAN).zip(b.par_chunks(SPAN)).for_each(|(a, b)| {
        wide(|| a.iter_mut().zip(b).for_each(|(a, &b)| *a = f(*a, b)));
    });
}

/// `a[i] = f(a[i], b[i], c[i])`, threaded.
pub(crate) fn update_each2(a: &mut [f32], b: &[f32], c: &[f32], f: impl Fn(f32, f32, f32) -> f32 + Sync) {
    a.par_chunks_mut(SPAN).zip(b.par_chunks(SPAN).zip(c.par_chunks(SPAN))).for_each(|(a, (b, c))| {
        wide(|| a.iter_mut().zip(b.iter().zip(c)).for_each(|(a, (&b, &c))| *a = f(*a, b, c)));
    });
}

/// `y = x / rms(x) * w`
pub(crate) fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let width = w.len();
    map_rows(x, width, |x, o| {
        let inv = (sum_by(width, |i| x[i] * x[i]) / width as f32 + eps).sqrt().recip();
        for ((o, x), w) in o.iter_mut().zip(x).zip(w) {
            o.write(x * inv * w);
        }
    })
}

/// Gradient of [`rms_norm`] with respect to `x`:
/// `dx = (g w - x_hat mean(g w x_hat)) / rms`, with `x_hat = x / rms`.
pub(crate) fn rms_norm_bwd(x: &[f32], w: &[f32], eps: f32, g: &[f32]) -> Vec<f32> {
    let width = w.len();
    map2_rows(x, g, width, |x, g, o| {
        let inv = (sum_by(width, |i| x[i] * x[i]) / width as f32 + eps).sqrt().recip();
        let dot = sum_by(width, |i| g[i] * w[i] * x[i]) * inv * inv / width as f32;
        for (((o, x), w), g) in o.iter_mut().zip(x).zip(w).zip(g) {
            o.write((g * w - x * dot) * inv);
        }
    })
}

#[inline(always)]
fn mean_inv_std(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len();
    let mean = sum_by(n, |i| x[i]) / n as f32;
    let var = sum_by(n, |i| (x[i] - mean) * (x[i] - mean)) / n as f32;
    (mean, (var + eps).sqrt().recip())
}

/// `y = (x - mean) / std * w + b`
pub(crate) fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32) -> Vec<f32> {
    map_rows(x, w.len(), |x, o| {
        let (mean, inv) = mean_inv_std(x, eps);
        for (((o, x), w), b) in o.iter_mut().zip(x).zip(w).zip(b) {
            o.write((x - mean) * inv * w + b);
        }
    })
}

/// Gradient of [`layer_norm`] with respect to `x`:
/// `dx = (gw - mean(gw) - x_hat mean(gw x_hat)) / std`, with `gw = g w`.
pub(crate) fn layer_norm_bwd(x: &[f32], w: &[f32], eps: f32, g: &[f32]) -> Vec<f32> {
    let width = w.len();
    map2_rows(x, g, width, |x, g, o| {
        let (mean, inv) = mean_inv_std(x, eps);
        let n = width as f32;
        let m1 = sum_by(width, |i| g[i] * w[i]) / n;
        let m2 = sum_by(width, |i| g[i] * w[i] * (x[i] - mean)) * inv / n;
        for (((o, x), w), g) in o.iter_mut().zip(x).zip(w).zip(g) {
            o.write((g * w - m1 - (x - mean) * inv * m2) * inv);
        }
    })
}

/// sqrt(2 / pi), of the tanh approximation of GELU.
const GELU_C: f32 = 0.797_884_6;
/// Its cubic coefficient (Hendrycks and Gimpel 2016, arXiv:1606.08415).
const GELU_A: f32 = 0.044_715;

/// Value and derivative of each activation.
#[inline(always)]
fn silu(x: f32) -> (f32, f32) {
    let s = sigmoid(x);
    (x * s, s * (1.0 + x * (1.0 - s)))
}

/// `(1 + tanh(u)) / 2` is `sigmoid(2 u)`.
#[inline(always)]
fn gelu_tanh(x: f32) -> (f32, f32) {
    let s = sigmoid(2.0 * GELU_C * (x + GELU_A * x * x * x));
    (x * s, s * (1.0 + 2.0 * x * (1.0 - s) * GELU_C * (1.0 + 3.0 * GELU_A * x * x)))
}

fn gelu(x: f32) -> (f32, f32) {
    let cdf = 0.5 * (1.0 + statrs::function::erf::erf(f64::from(x) / std::f64::consts::SQRT_2)) as f32;
    let pdf = exp(-0.5 * x * x) * 0.398_942_3; // 1 / sqrt(2 pi)
    (x * cdf, cdf + x * pdf)
}

/// The body once for each activation, so that no loop asks which one it is at every number.
macro_rules! for_activation {
    ($act:expr, $f:ident => $body:expr) => {
        match $act {
            Activation::Silu => {
                let $f = silu;
                $body
            }
            Activation::GeluTanh => {
                let $f = gelu_tanh;
                $body
            }
            Activation::Gelu => {
                let $f = gelu;
                $body
            }
        }
    };
}

/// `act(x)`
pub(crate) fn act(act: Activation, x: &[f32]) -> Vec<f32> {
    for_activation!(act, f => map_each(x, |x| f(x).0))
}

/// `act'(x) g` in the place of `g`.
pub(crate) fn act_bwd(act: Activation, x: &[f32], g: &mut [f32]) {
    let parts = g.par_chunks_mut(SPAN).zip(x.par_chunks(SPAN));
    for_activation!(act, f => parts.for_each(|(g, x)| {
        wide(|| g.iter_mut().zip(x).for_each(|(g, &x)| *g *= f(x).1));
    }));
}

/// `act(gate) * up`
pub(crate) fn gated(act: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    filled(up.len(), |out| {
        let parts = out.par_chunks_mut(SPAN).zip(gate.par_chunks(SPAN)).zip(up.par_chunks(SPAN));
        for_activation!(act, f => parts.for_each(|((o, a), b)| {
            wide(|| o.iter_mut().zip(a).zip(b).for_each(|((o, &a), &b)| _ = o.write(f(a).0 * b)));
        }));
    })
}

/// Gradients of [`gated`]: that of up in the place of `up`, and that of gate.
pub(crate) fn gated_bwd(act: Activation, gate: &[f32], up: &mut [f32], g: &[f32]) -> Vec<f32> {
    filled(gate.len(), |out| {
        let outs = out.par_chunks_mut(SPAN).zip(up.par_chunks_mut(SPAN));
        let parts = outs.zip(gate.par_chunks(SPAN).zip(g.par_chunks(SPAN)));
        for_activation!(act, f => parts.for_each(|((dgate, up), (gate, g))| {
            wide(|| {
                dgate.iter_mut().zip(up).zip(gate.iter().zip(g)).for_each(|((dgate, up), (gate, g))| {
                    let (value, slope) = f(*gate);
                    dgate.write(g * *up * slope);
                    *up = g * value;
                });
            });
        }));
    })
}

/// `a += b`; a shorter `b` is a row that is added to every row.
pub(crate) fn add_into(a: &mut [f32], b: &[f32]) {
    let add = |a: &mut [f32], b: &[f32]| a.iter_mut().zip(b).for_each(|(a, &b)| *a += b);
    if b.len() < a.len() {
        let rows = a.par_chunks_mut(b.len() * rows_per_task(b.len()));
        rows.for_each(|rows| wide(|| rows.chunks_mut(b.len()).for_each(|row| add(row, b))));
    } else {
        a.par_chunks_mut(SPAN).zip(b.par_chunks(SPAN)).for_each(|(a, b)| wide(|| add(a, b)));
    }
}

/// Column j of rows as wide as `factor` times `factor[j]`, in place.
pub(crate) fn scale_columns(y: &mut [f32], factor: &[f32]) {
    let rows = y.par_chunks_mut(factor.len());
    rows.for_each(|row| row.iter_mut().zip(factor).for_each(|(y, f)| *y *= f));
}

/// `sum over rows of g y`, a number a column.
pub(crate) fn column_dots(g: &[f32], y: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0f64; width];
    for (g, y) in g.chunks(width).zip(y.chunks(width)) {
        sums.iter_mut().zip(g.iter().zip(y)).for_each(|(s, (g, y))| *s += f64::from(g * y));
    }
    sums.into_iter().map(|s| s as f32).collect()
}

/// Rotates the first `2 half` of each head (Hugging Face's half-split form): row `r` stands at `positions[r]`.
/// `cos` and `sin` hold `half` values a position; `sign` is -1 for the backward rotation. In place.
pub(crate) fn rope(x: &mut [f32], head_dim: usize, table: &RopeTable<'_>, positions: &[u32], sign: f32) {
    let width = x.len() / positions.len().max(1);
    let half = table.half;
    x.par_chunks_mut(width.max(1)).zip(positions.par_iter()).for_each(|(x, &p)| {
        let (cos, sin) = (&table.cos[p as usize * half..][..half], &table.sin[p as usize * half..][..half]);
        for x in x.chunks_mut(head_dim) {
            for i in 0..half {
                let (a, b) = (x[i], x[half + i]);
                x[i] = a * cos[i] - b * sin[i] * sign;
                x[half + i] = b * cos[i] + a * sin[i] * sign;
            }
        }
    });
}

/// Cosines and sines of a rope, `half` a position.
pub(crate) struct RopeTable<'a> {
    /// `[positions, half]`
    pub cos: &'a [f32],
    /// `[positions, half]`
    pub sin: &'a [f32],
    /// Rotated pairs.
    pub half: usize,
}

/// Turns logits into the gradient of their scaled cross-entropy, in place; returns the sum of the losses.
/// `softcap` is undone in the gradient: the logits come in uncapped.
pub(crate) fn cross_entropy(logits: &mut [f32], targets: &[u32], softcap: Option<f32>, scale: f32) -> f64 {
    let vocab = logits.len() / targets.len().max(1);
    let losses: Vec<f64> = logits
        .par_chunks_mut(vocab)
        .zip(targets.par_iter())
        .map(|(row, &target)| wide(|| cross_entropy_row(row, target as usize, softcap, scale)))
        .collect();
    losses.iter().sum()
}

#[inline(always)]
fn cross_entropy_row(row: &mut [f32], target: usize, softcap: Option<f32>, scale: f32) -> f64 {
    if let Some(cap) = softcap {
        row.iter_mut().for_each(|z| *z = cap * (*z / cap).tanh());
    }
    let max = max(row);
    let sum = sum_by(row.len(), |i| exp(row[i] - max));
    let loss = f64::from(sum.ln() + max - row[target]);
    let by = sum.recip() * scale;
    let slope = |z: f32| softcap.map_or(1.0, |cap| 1.0 - (z / cap) * (z / cap));
    let at_target = scale * slope(row[target]);
    match softcap {
        Some(_) => row.iter_mut().for_each(|z| *z = exp(*z - max) * by * slope(*z)),
        None => row.iter_mut().for_each(|z| *z = exp(*z - max) * by),
    }
    row[target] -= at_target;
    loss
}

/// Softmax of a row of scores, in place; `cap` is put on the scores first, and its derivative left in `slope`.
pub(crate) fn softmax(row: &mut [f32], cap: Option<f32>, slope: Option<&mut [f32]>) {
    if let Some(cap) = cap {
        row.iter_mut().for_each(|s| *s = cap * (*s / cap).tanh());
        if let Some(slope) = slope {
            slope.iter_mut().zip(&*row).for_each(|(d, s)| *d = 1.0 - (s / cap) * (s / cap));
        }
    }
    wide(|| {
        let max = max(row);
        row.iter_mut().for_each(|s| *s = exp(*s - max));
        let inv = sum_by(row.len(), |i| row[i]).recip();
        row.iter_mut().for_each(|s| *s *= inv);
    });
}

/// Gradient of [`softmax`] with respect to the scores, in the place of `g`: `p (g - sum(g p))`.
pub(crate) fn softmax_bwd(p: &[f32], g: &mut [f32]) {
    wide(|| {
        let along = sum_by(p.len(), |i| g[i] * p[i]);
        g.iter_mut().zip(p).for_each(|(g, p)| *g = p * (*g - along));
    });
}
