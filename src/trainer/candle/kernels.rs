//! Fused, threaded CPU kernels on contiguous `f32` rows: the work that candle would do one
//! elementwise op and one thread at a time. [`super::ops`] chooses between these and the same
//! formulas composed of candle's ops, and its tests hold the two together.

use rayon::prelude::*;

use crate::spec::model::Activation;

/// Rows a thread takes at a time; enough work to be worth handing over.
fn rows_per_task(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// Runs `f(input row, output row)` over all rows, threaded.
fn map_rows(x: &[f32], width: usize, out: &mut [f32], f: impl Fn(&[f32], &mut [f32]) + Sync) {
    let rows = rows_per_task(width);
    out.par_chunks_mut(width * rows).zip(x.par_chunks(width * rows)).for_each(|(o, x)| {
        o.chunks_mut(width).zip(x.chunks(width)).for_each(|(o, x)| f(x, o));
    });
}

/// Runs `f(row of x, row of g, output row)` over all rows, threaded.
fn map2_rows(x: &[f32], g: &[f32], width: usize, out: &mut [f32], f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) {
    let step = width * rows_per_task(width);
    out.par_chunks_mut(step).zip(x.par_chunks(step)).zip(g.par_chunks(step)).for_each(|((o, x), g)| {
        o.chunks_mut(width).zip(x.chunks(width)).zip(g.chunks(width)).for_each(|((o, x), g)| f(x, g, o));
    });
}

/// Eight partial sums, so that the compiler may use vector registers; the order is fixed, so results repeat.
fn sum_by(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; 8];
    let full = n - n % 8;
    for i in (0..full).step_by(8) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
    }
    let tail: f32 = (full..n).map(&f).sum();
    lanes.iter().sum::<f32>() + tail
}

/// `y = x / rms(x) * w`
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let width = w.len();
    let mut out = vec![0f32; x.len()];
    map_rows(x, width, &mut out, |x, o| {
        let inv = (sum_by(width, |i| x[i] * x[i]) / width as f32 + eps).sqrt().recip();
        for i in 0..width {
            o[i] = x[i] * inv * w[i];
        }
    });
    out
}

/// Gradient of [`rms_norm`] with respect to `x`:
/// `dx = (g w - x_hat mean(g w x_hat)) / rms`, with `x_hat = x / rms`.
pub fn rms_norm_bwd(x: &[f32], w: &[f32], eps: f32, g: &[f32]) -> Vec<f32> {
    let width = w.len();
    let mut out = vec![0f32; x.len()];
    map2_rows(x, g, width, &mut out, |x, g, o| {
        let inv = (sum_by(width, |i| x[i] * x[i]) / width as f32 + eps).sqrt().recip();
        let dot = sum_by(width, |i| g[i] * w[i] * x[i]) * inv * inv / width as f32;
        for i in 0..width {
            o[i] = (g[i] * w[i] - x[i] * dot) * inv;
        }
    });
    out
}

fn mean_inv_std(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len();
    let mean = sum_by(n, |i| x[i]) / n as f32;
    let var = sum_by(n, |i| (x[i] - mean) * (x[i] - mean)) / n as f32;
    (mean, (var + eps).sqrt().recip())
}

/// `y = (x - mean) / std * w + b`
pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32) -> Vec<f32> {
    let width = w.len();
    let mut out = vec![0f32; x.len()];
    map_rows(x, width, &mut out, |x, o| {
        let (mean, inv) = mean_inv_std(x, eps);
        for i in 0..width {
            o[i] = (x[i] - mean) * inv * w[i] + b[i];
        }
    });
    out
}

/// Gradient of [`layer_norm`] with respect to `x`:
/// `dx = (gw - mean(gw) - x_hat mean(gw x_hat)) / std`, with `gw = g w`.
pub fn layer_norm_bwd(x: &[f32], w: &[f32], eps: f32, g: &[f32]) -> Vec<f32> {
    let width = w.len();
    let mut out = vec![0f32; x.len()];
    map2_rows(x, g, width, &mut out, |x, g, o| {
        let (mean, inv) = mean_inv_std(x, eps);
        let n = width as f32;
        let m1 = sum_by(width, |i| g[i] * w[i]) / n;
        let m2 = sum_by(width, |i| g[i] * w[i] * (x[i] - mean)) * inv / n;
        for i in 0..width {
            o[i] = (g[i] * w[i] - m1 - (x[i] - mean) * inv * m2) * inv;
        }
    });
    out
}

/// sqrt(2 / pi), of the tanh approximation of GELU.
const GELU_C: f32 = 0.797_884_6;
/// Its cubic coefficient (Hendrycks and Gimpel 2016, arXiv:1606.08415).
const GELU_A: f32 = 0.044_715;

/// Value and derivative of the activation.
#[inline]
pub fn activate(act: Activation, x: f32) -> (f32, f32) {
    match act {
        Activation::Silu => {
            let s = 1.0 / (1.0 + (-x).exp());
            (x * s, s * (1.0 + x * (1.0 - s)))
        }
        Activation::GeluTanh => {
            let t = (GELU_C * (x + GELU_A * x * x * x)).tanh();
            let dt = (1.0 - t * t) * GELU_C * (1.0 + 3.0 * GELU_A * x * x);
            (0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * dt)
        }
        Activation::Gelu => {
            let cdf = 0.5 * (1.0 + statrs::function::erf::erf(f64::from(x) / std::f64::consts::SQRT_2)) as f32;
            let pdf = (-0.5 * x * x).exp() * 0.398_942_3;
            (x * cdf, cdf + x * pdf)
        }
    }
}

/// Elements a thread takes at a time.
const SPAN: usize = 8192;

/// `act(x)`
pub fn act(act: Activation, x: &[f32]) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(SPAN).zip(x.par_chunks(SPAN)).for_each(|(o, x)| {
        o.iter_mut().zip(x).for_each(|(o, &x)| *o = activate(act, x).0);
    });
    out
}

/// `act'(x) g`
pub fn act_bwd(act: Activation, x: &[f32], g: &[f32]) -> Vec<f32> {
    let mut out = vec![0f32; x.len()];
    out.par_chunks_mut(SPAN).zip(x.par_chunks(SPAN)).zip(g.par_chunks(SPAN)).for_each(|((o, x), g)| {
        o.iter_mut().zip(x).zip(g).for_each(|((o, &x), &g)| *o = activate(act, x).1 * g);
    });
    out
}

/// `act(gate) * up`
pub fn gated(act: Activation, gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0f32; up.len()];
    out.par_chunks_mut(SPAN).zip(gate.par_chunks(SPAN)).zip(up.par_chunks(SPAN)).for_each(|((o, a), b)| {
        o.iter_mut().zip(a).zip(b).for_each(|((o, &a), &b)| *o = activate(act, a).0 * b);
    });
    out
}

/// Gradients of [`gated`] with respect to gate and up.
pub fn gated_bwd(act: Activation, gate: &[f32], up: &[f32], g: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut dgate, mut dup) = (vec![0f32; gate.len()], vec![0f32; up.len()]);
    let outs = dgate.par_chunks_mut(SPAN).zip(dup.par_chunks_mut(SPAN));
    let ins = gate.par_chunks(SPAN).zip(up.par_chunks(SPAN)).zip(g.par_chunks(SPAN));
    outs.zip(ins).for_each(|((dg, du), ((a, b), g))| {
        for i in 0..g.len() {
            let (value, slope) = activate(act, a[i]);
            dg[i] = g[i] * b[i] * slope;
            du[i] = g[i] * value;
        }
    });
    (dgate, dup)
}

/// `a += b`; a shorter `b` is a row that is added to every row.
pub fn add_into(a: &mut [f32], b: &[f32]) {
    if b.len() < a.len() {
        a.par_chunks_mut(b.len() * rows_per_task(b.len())).for_each(|rows| {
            rows.chunks_mut(b.len()).for_each(|row| row.iter_mut().zip(b).for_each(|(a, &b)| *a += b));
        });
    } else {
        let chunks = a.par_chunks_mut(SPAN).zip(b.par_chunks(SPAN));
        chunks.for_each(|(a, b)| a.iter_mut().zip(b).for_each(|(a, &b)| *a += b));
    }
}

/// Rotates the first `dims` of each head (Hugging Face's half-split form): row `r` stands at `positions[r]`.
/// `cos` and `sin` hold `dims / 2` values a position; `sign` is -1 for the backward rotation.
pub fn rope(x: &[f32], head_dim: usize, table: &RopeTable<'_>, positions: &[u32], sign: f32) -> Vec<f32> {
    let width = x.len() / positions.len().max(1);
    let half = table.half;
    let mut out = x.to_vec();
    out.par_chunks_mut(width).zip(positions.par_iter()).for_each(|(row, &p)| {
        let (cos, sin) = (&table.cos[p as usize * half..][..half], &table.sin[p as usize * half..][..half]);
        for head in row.chunks_mut(head_dim) {
            let (a, b) = head[..2 * half].split_at_mut(half);
            for i in 0..half {
                let (x1, x2) = (a[i], b[i]);
                a[i] = x1 * cos[i] - x2 * sin[i] * sign;
                b[i] = x2 * cos[i] + x1 * sin[i] * sign;
            }
        }
    });
    out
}

/// Cosines and sines of a rope, `half` a position.
pub struct RopeTable<'a> {
    /// `[positions, half]`
    pub cos: &'a [f32],
    /// `[positions, half]`
    pub sin: &'a [f32],
    /// Rotated pairs.
    pub half: usize,
}

/// Turns logits into the gradient of their scaled cross-entropy, in place; returns the sum of the losses.
/// `softcap` is undone in the gradient: the logits come in uncapped.
pub fn cross_entropy(logits: &mut [f32], targets: &[u32], softcap: Option<f32>, scale: f32) -> f64 {
    let vocab = logits.len() / targets.len().max(1);
    let losses: Vec<f64> = logits
        .par_chunks_mut(vocab)
        .zip(targets.par_iter())
        .map(|(row, &target)| {
            if let Some(cap) = softcap {
                row.iter_mut().for_each(|z| *z = cap * (*z / cap).tanh());
            }
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = sum_by(vocab, |i| (row[i] - max).exp());
            let loss = f64::from(sum.ln() + max - row[target as usize]);
            let inv = sum.recip();
            for (i, z) in row.iter_mut().enumerate() {
                let p = (*z - max).exp() * inv - if i == target as usize { 1.0 } else { 0.0 };
                let slope = softcap.map_or(1.0, |cap| 1.0 - (*z / cap) * (*z / cap));
                *z = p * scale * slope;
            }
            loss
        })
        .collect();
    losses.iter().sum()
}
