//! AdamW with its moments in eight bits a number (Dettmers and others 2022, arXiv:2110.02861), in the scheme of
//! bitsandbytes: blocks of 256 numbers share their largest magnitude, and the code is the nearest entry of a fixed book
//! whose entries lie close together near zero.
//!
//! States never exist in f32 but for a block at a time.

use std::sync::LazyLock;

use candle_core::{Device, Result, Tensor};
use rayon::prelude::*;

use crate::ops::metal::{AdamStep, Queue};
use crate::ops::{Backend, with_slice};
use crate::spec::run::OPTIMIZER_BLOCK as BLOCK;
use crate::trainer::candle::optim::adam::{BETA1, BETA2, EPS};

/// Numbers in eight bits each, quantised in blocks that share a scale.
#[derive(Clone, Debug)]
pub struct Blockwise {
    /// Codes of the numbers, `[n]`, u8.
    pub codes: Tensor,
    /// Largest magnitude of each block, `[blocks]`, f32.
    pub absmax: Tensor,
}

/// 256 numbers from -1 (or 0) to 1, ascending, and the middles between them.
struct Book {
    values: [f32; 256],
    middles: [f32; 255],
}

/// Book for numbers of either sign; the next is for squares.
static SIGNED: LazyLock<Book> = LazyLock::new(|| Book::new(true));
static UNSIGNED: LazyLock<Book> = LazyLock::new(|| Book::new(false));

impl Book {
    /// Seven decades below 1; the i-th from below is cut into 2^i parts, twice as many without a sign, each standing
    /// for its middle.
    fn new(signed: bool) -> Self {
        let mut values = vec![0f32, 1.0];
        for i in 0..7u32 {
            let parts = 2usize.pow(i + u32::from(!signed));
            let scale = 10f64.powi(i as i32 - 6);
            for k in 0..parts {
                let middle = 0.1 + 0.9 * (k as f64 + 0.5) / parts as f64;
                values.push((scale * middle) as f32);
                if signed {
                    values.push((-scale * middle) as f32);
                }
            }
        }
        values.sort_by(f32::total_cmp);
        let mut book = Self { values: [0.0; 256], middles: [0.0; 255] };
        book.values.copy_from_slice(&values);
        for (middle, pair) in book.middles.iter_mut().zip(values.windows(2)) {
            *middle = (pair[0] + pair[1]) / 2.0;
        }
        book
    }

    fn nearest(&self, x: f32) -> u8 {
        self.middles.partition_point(|m| *m < x) as u8
    }

    /// Codes of a block, and its largest magnitude.
    fn encode(&self, block: &[f32], codes: &mut [u8]) -> f32 {
        let absmax = block.iter().fold(0f32, |m, x| m.max(x.abs()));
        let inverse = if absmax > 0.0 { absmax.recip() } else { 0.0 };
        codes.iter_mut().zip(block).for_each(|(c, x)| *c = self.nearest(x * inverse));
        absmax
    }

    fn decode(&self, codes: &[u8], absmax: f32, block: &mut [f32]) {
        block.iter_mut().zip(codes).for_each(|(x, c)| *x = self.values[usize::from(*c)] * absmax);
    }
}

impl Blockwise {
    /// `n` zeros, of numbers that may be negative (`signed`) or not.
    pub(crate) fn zeros(n: usize, signed: bool, (device, backend): (&Device, Backend)) -> Result<Self> {
        let zero = if signed { SIGNED.nearest(0.0) } else { 0 };
        Ok(Self {
            codes: backend.upload(vec![zero; n], n, device)?,
            absmax: backend.lasting_zeros(n.div_ceil(BLOCK), device)?,
        })
    }
}

/// Both books as the kernel has them: entries and middles of the one with a sign, then of the one without.
pub(crate) fn books(queue: Queue, device: &Device) -> Result<Tensor> {
    let of = |book: &Book| [&book.values[..], &book.middles[..]].concat();
    let both = [of(&SIGNED), of(&UNSIGNED)].concat();
    let n = both.len();
    queue.upload(both, n, device)
}

/// One update of a tensor and of its moments, in their places, by a gradient that is clipped already.
pub(crate) fn update(p: &Tensor, g: &Tensor, (m, v): (&Blockwise, &Blockwise), s: &AdamStep) -> Result<()> {
    let (mut new, g) = (p.flatten_all()?.to_vec1::<f32>()?, g.contiguous()?);
    let (mut mc, mut ms) = (m.codes.to_vec1::<u8>()?, m.absmax.to_vec1::<f32>()?);
    let (mut vc, mut vs) = (v.codes.to_vec1::<u8>()?, v.absmax.to_vec1::<f32>()?);
    let (step, root_bias2, decay) = (s.rate, s.root_bias2, s.decay);
    with_slice(&g, |g| {
        let moments = (mc.par_chunks_mut(BLOCK).zip(&mut ms)).zip(vc.par_chunks_mut(BLOCK).zip(&mut vs));
        new.par_chunks_mut(BLOCK).zip(g.par_chunks(BLOCK)).zip(moments).for_each(|((p, g), ((mc, ms), (vc, vs)))| {
            let (mut m, mut v) = ([0f32; BLOCK], [0f32; BLOCK]);
            let (m, v) = (&mut m[..p.len()], &mut v[..p.len()]);
            SIGNED.decode(mc, *ms, m);
            UNSIGNED.decode(vc, *vs, v);
            for i in 0..p.len() {
                m[i] = m[i] * BETA1 as f32 + g[i] * (1.0 - BETA1) as f32;
                v[i] = v[i] * BETA2 as f32 + g[i] * g[i] * (1.0 - BETA2) as f32;
                let denominator = v[i].sqrt() / root_bias2 as f32 + EPS as f32;
                p[i] = p[i] * decay as f32 - step as f32 * m[i] / denominator;
            }
            *ms = SIGNED.encode(m, mc);
            *vs = UNSIGNED.encode(v, vc);
        });
    })?;
    let put = |place: &Tensor, codes: Vec<u8>, largest: &Tensor, absmax: Vec<f32>| -> Result<()> {
        place.slice_set(&Tensor::from_vec(codes, place.shape(), place.device())?, 0, 0)?;
        largest.slice_set(&Tensor::from_vec(absmax, largest.shape(), largest.device())?, 0, 0)
    };
    put(&m.codes, mc, &m.absmax, ms)?;
    put(&v.codes, vc, &v.absmax, vs)?;
    p.slice_set(&Tensor::from_vec(new, p.shape(), p.device())?, 0, 0)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn fixture() -> Value {
        serde_json::from_str(include_str!("../../../../tests/fixtures/adamw_8bit.json")).unwrap()
    }

    fn numbers(value: &Value) -> Vec<f32> {
        value.as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect()
    }

    #[test]
    fn code_books_and_codes_are_those_of_bitsandbytes() {
        let fixture = fixture();
        for (name, book) in [("signed", &SIGNED), ("unsigned", &UNSIGNED)] {
            let close = |a: f32, b: f32| (a - b).abs() <= 1e-6 * b.abs();
            assert!(book.values.iter().zip(numbers(&fixture[name]["book"])).all(|(a, b)| close(*a, b)), "{name}");
            let wave = |i: f64| (0.71 * i).sin() * (-6.0 * (0.5 + 0.5 * (0.013 * i).cos())).exp();
            let x: Vec<f32> = (0..600).map(|i| wave(f64::from(i)) as f32).collect();
            let x: Vec<f32> = x.iter().map(|x| if name == "signed" { *x } else { x * x }).collect();
            let mut codes = vec![0u8; 600];
            let blocks = x.chunks(BLOCK).zip(codes.chunks_mut(BLOCK));
            let absmax: Vec<f32> = blocks.map(|(x, codes)| book.encode(x, codes)).collect();
            assert!(absmax.iter().zip(numbers(&fixture[name]["absmax"])).all(|(a, b)| close(*a, b)), "{name}");
            let theirs = numbers(&fixture[name]["codes"]);
            let off = codes.iter().zip(&theirs).filter(|(a, b)| f32::from(**a) != **b).count();
            assert_eq!(off, 0, "{name}");
            assert!(codes.iter().any(|c| *c > 0 && *c < 250), "{name}");
        }
    }

    #[test]
    fn a_dozen_updates_end_where_bitsandbytes_ends() {
        let fixture = fixture();
        let of = |name: &str| fixture[name].as_f64().unwrap();
        let (rows, columns) = (of("rows") as usize, of("columns") as usize);
        let n = rows * columns;
        let tensor = |f: &dyn Fn(f64) -> f64| {
            let data: Vec<f32> = (0..n).map(|i| f(i as f64) as f32).collect();
            Tensor::from_vec(data, (rows, columns), &Device::Cpu).unwrap()
        };
        let p = tensor(&|i| (0.23 * i).cos());
        let place = (&Device::Cpu, Backend::Fused);
        let (m, v) = (Blockwise::zeros(n, true, place).unwrap(), Blockwise::zeros(n, false, place).unwrap());
        for step in 0..of("steps") as i32 {
            let (phase, size) = (0.9 * f64::from(step), f64::from(1 + step % 3));
            let g = tensor(&|i| (0.37 * i + phase).sin() * (-2.0 * (0.011 * i).cos() - 1.0).exp() * size);
            let t = step + 1;
            let step = AdamStep {
                factor: 1.0,
                betas: (BETA1, BETA2),
                rate: of("lr") / (1.0 - BETA1.powi(t)),
                root_bias2: (1.0 - BETA2.powi(t)).sqrt(),
                eps: EPS,
                decay: 1.0 - of("lr") * of("weight_decay"),
            };
            update(&p, &g, (&m, &v), &step).unwrap();
        }
        let ours = p.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let theirs = numbers(&fixture["every_83rd"]);
        let pairs = || ours.iter().step_by(83).zip(&theirs);
        let off = pairs().map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
        let root = (theirs.len() as f64 / n as f64).sqrt();
        // Their difference is f32's own rounding, beside what eight bits differ from f32 by.
        assert!(off < 1e-4 * root * of("off_f32"), "{off}, eight bits are off by {}", root * of("off_f32"));
    }
}
