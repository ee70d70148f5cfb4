//! MLX's affine quantisation as its checkpoints hold it: `scale * code + bias`, one scale and one bias a group of a row.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::ops::Backend;
use crate::spec::model::Dtype;
use crate::spec::model::storage::{AFFINE_BITS, Format};

/// A matrix of codes with its scales and biases.
#[derive(Clone, Debug)]
pub struct Affine {
    bits: usize,
    group: usize,
    columns: usize,
    codes: Tensor,
    scales: Tensor,
    biases: Tensor,
}

/// Bytes that end where a code ends, and the codes in them. MLX's words, byte by byte, are one stream of codes, the
/// lowest bits first; whole packs are at most three bytes, which f32 holds exactly.
fn pack(bits: usize) -> (usize, usize) {
    let bytes = if 8 % bits == 0 { 1 } else { 3 };
    (bytes, 8 * bytes / bits)
}

impl Affine {
    /// `codes [rows, columns * bits / 8]` (u8), `scales` and `biases` `[rows, groups]` (all f32, f16 or bf16).
    pub(crate) fn new(codes: Tensor, scales: Tensor, biases: Tensor, columns: usize) -> Result<Self> {
        let (rows, bytes) = codes.dims2()?;
        let (bits, groups) = (8 * bytes / columns, scales.dim(1)?);
        let whole = bits * columns == 8 * bytes && columns.is_multiple_of(groups.max(1));
        let alike = scales.dims() == biases.dims() && scales.dtype() == biases.dtype() && scales.dim(0)? == rows;
        if !whole || !alike || !AFFINE_BITS.contains(&bits) {
            bail!(
                "codes {:?}, scales {:?} and biases {:?} make no matrix of {columns} columns",
                codes.dims(),
                scales.dims(),
                biases.dims()
            )
        }
        Ok(Self { bits, group: columns / groups, columns, codes, scales, biases })
    }

    /// A matrix of `(rows, columns)` quantised as `mlx.core.quantize` does it, from spans of whole rows in f32; `format`
    /// is the bits of a code, the numbers of a group and the format of scales and biases.
    pub(crate) fn of_rows(
        spans: impl Iterator<Item = Result<Tensor>>,
        (rows, columns): (usize, usize),
        (bits, group, scales): (u8, u8, Dtype),
        device: &Device,
    ) -> Result<Self> {
        let (bits, group) = (usize::from(bits), usize::from(group));
        let (row_codes, row_groups) = (columns * bits / 8, columns / group);
        let mut codes = vec![0u8; rows * row_codes];
        let (mut factors, mut offsets) = (vec![0f32; rows * row_groups], vec![0f32; rows * row_groups]);
        let mut done = 0;
        for span in spans {
            let span = span?;
            let ends = (done, done + span.dim(0)?);
            let of = |width: usize| ends.0 * width..ends.1 * width;
            let parts = (&mut codes[of(row_codes)], &mut factors[of(row_groups)], &mut offsets[of(row_groups)]);
            crate::ops::with_slice(&span, |numbers| encode(numbers, (bits, group), parts))?;
            done = ends.1;
        }
        let small = |numbers| {
            let small = Tensor::from_vec(numbers, (rows, row_groups), &Device::Cpu)?.to_dtype(candle_dtype(scales))?;
            if !all_finite_tensor(&small)? {
                bail!("it has numbers that are larger than {scales:?} can hold")
            }
            small.to_device(device)
        };
        let codes = Tensor::from_vec(codes, (rows, row_codes), device)?;
        Self::new(codes, small(factors)?, small(offsets)?, columns)
    }

    /// Codes, scales and biases.
    pub(crate) fn parts(&self) -> [&Tensor; 3] {
        [&self.codes, &self.scales, &self.biases]
    }

    /// Shape of the matrix, (rows, columns).
    pub(crate) fn dims(&self) -> Result<(usize, usize)> {
        Ok((self.codes.dim(0)?, self.columns))
    }

    /// Format of the matrix: its bits, group size and scales.
    pub(crate) fn format(&self) -> Format {
        let scales = match self.scales.dtype() {
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::Bf16,
            _ => Dtype::F32,
        };
        Format::Affine { bits: self.bits as u8, group: self.group as u8, scales }
    }

    /// A copy of the matrix on a device.
    pub(crate) fn to_device(&self, device: &Device) -> Result<Self> {
        let to = |t: &Tensor| t.to_device(device);
        Ok(Self { codes: to(&self.codes)?, scales: to(&self.scales)?, biases: to(&self.biases)?, ..*self })
    }

    /// Dequantised rows: `count` of them from `first`, in f32.
    pub(crate) fn panel(&self, backend: Backend, first: usize, count: usize) -> Result<Tensor> {
        let part = |t: &Tensor| t.narrow(0, first, count);
        self.decode(backend, &part(&self.codes)?, &part(&self.scales)?, &part(&self.biases)?)
    }

    /// Dequantised rows of these indices, in f32.
    pub(crate) fn rows(&self, backend: Backend, ids: &Tensor) -> Result<Tensor> {
        let part = |t: &Tensor| t.index_select(ids, 0);
        self.decode(backend, &part(&self.codes)?, &part(&self.scales)?, &part(&self.biases)?)
    }

    fn decode(&self, backend: Backend, codes: &Tensor, scales: &Tensor, biases: &Tensor) -> Result<Tensor> {
        match backend {
            Backend::Fused => self.decode_cpu(codes, scales, biases),
            _ => self.decode_composed(codes, scales, biases),
        }
    }

    fn decode_cpu(&self, codes: &Tensor, scales: &Tensor, biases: &Tensor) -> Result<Tensor> {
        let rows = codes.dim(0)?;
        let mut out = vec![0f32; rows * self.columns];
        let parts = [codes, scales, biases].map(Tensor::storage_and_layout);
        let mut numbers = Vec::with_capacity(parts.len());
        for (storage, layout) in &parts {
            let (Storage::Cpu(storage), Some((start, end))) = (&**storage, layout.contiguous_offsets()) else {
                bail!("expected contiguous tensors on the CPU")
            };
            numbers.push((storage, start..end));
        }
        let [(CpuStorage::U8(codes), c), (scales, s), (biases, b)] = numbers.as_slice() else {
            bail!("expected codes in u8")
        };
        let codes = &codes[c.clone()];
        match (scales, biases) {
            (CpuStorage::F32(x), CpuStorage::F32(y)) => self.unpack(codes, &x[s.clone()], &y[b.clone()], &mut out),
            (CpuStorage::F16(x), CpuStorage::F16(y)) => self.unpack(codes, &x[s.clone()], &y[b.clone()], &mut out),
            (CpuStorage::BF16(x), CpuStorage::BF16(y)) => self.unpack(codes, &x[s.clone()], &y[b.clone()], &mut out),
            _ => bail!("expected scales and biases in one format"),
        }
        Tensor::from_vec(out, (rows, self.columns), &Device::Cpu)
    }

    fn unpack<S: WithDType>(&self, codes: &[u8], scales: &[S], biases: &[S], out: &mut [f32]) {
        let (row_bytes, groups) = (self.columns * self.bits / 8, self.columns / self.group);
        let unpack: fn(&[u8], &mut [f32]) = match self.bits {
            2 => unpack::<2>,
            3 => unpack::<3>,
            4 => unpack::<4>,
            6 => unpack::<6>,
            _ => unpack::<8>,
        };
        let rows = out.par_chunks_mut(self.columns).zip(codes.par_chunks(row_bytes));
        rows.zip(scales.par_chunks(groups)).zip(biases.par_chunks(groups)).for_each(
            |(((out, codes), scales), biases)| {
                unpack(codes, out);
                for ((out, scale), bias) in out.chunks_mut(self.group).zip(scales).zip(biases) {
                    let (scale, bias) = (scale.to_f64() as f32, bias.to_f64() as f32);
                    out.iter_mut().for_each(|o| *o = *o * scale + bias);
                }
            },
        );
    }

    fn decode_composed(&self, codes: &Tensor, scales: &Tensor, biases: &Tensor) -> Result<Tensor> {
        let (rows, groups) = scales.dims2()?;
        let (bytes, values) = pack(self.bits);
        let codes = codes.to_dtype(DType::F32)?.reshape((rows, self.columns / values, bytes))?;
        let mut word = codes.narrow(2, 0, 1)?;
        for i in 1..bytes {
            word = (word + (codes.narrow(2, i, 1)? * 256f64.powi(i as i32))?)?;
        }
        let size = f64::from(1u32 << self.bits);
        let mut numbers = Vec::with_capacity(values);
        for _ in 0..values {
            let rest = (&word / size)?.floor()?;
            numbers.push((word - (&rest * size)?)?);
            word = rest;
        }
        let numbers = Tensor::cat(&numbers, 2)?.reshape((rows, groups, self.group))?;
        let wide = |t: &Tensor| t.to_dtype(DType::F32)?.reshape((rows, groups, 1));
        numbers.broadcast_mul(&wide(scales)?)?.broadcast_add(&wide(biases)?)?.reshape((rows, self.columns))
    }
}

fn candle_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::Bf16 => DType::BF16,
    }
}

fn all_finite_tensor(numbers: &Tensor) -> Result<bool> {
    crate::ops::with_slice(&numbers.to_dtype(DType::F32)?, |numbers| numbers.iter().all(|x| x.is_finite()))
}

/// Codes, scales and biases of groups of numbers.
fn encode(numbers: &[f32], (bits, group): (usize, usize), parts: (&mut [u8], &mut [f32], &mut [f32])) {
    let (codes, scales, biases) = parts;
    let groups = numbers.par_chunks(group).zip(codes.par_chunks_mut(group * bits / 8));
    groups.zip(scales).zip(biases).for_each(|(((numbers, codes), scale), bias)| {
        (*scale, *bias) = encode_group(numbers, bits, codes);
    });
}

/// Packs the codes of one group and returns its scale and bias, as MLX's `affine_quantize` does it: the end of the range
/// that is further from zero is held exactly, and so is zero.
fn encode_group(numbers: &[f32], bits: usize, codes: &mut [u8]) -> (f32, f32) {
    const LEAST: f32 = 1e-7;
    let (low, high) = numbers.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), w| (l.min(*w), h.max(*w)));
    let largest = ((1u32 << bits) - 1) as f32;
    let step = ((high - low) / largest).max(LEAST);
    let (step, edge) = if low.abs() > high.abs() { (step, low) } else { (-step, high) };
    let steps = (edge / step).round();
    let (scale, bias) = if steps == 0.0 { (step, 0.0) } else { (edge / steps, edge) };
    let code = |w: &f32| ((w - bias) / scale).round().clamp(0.0, largest) as u32;
    let (bytes, values) = pack(bits);
    for (codes, numbers) in codes.chunks_exact_mut(bytes).zip(numbers.chunks_exact(values)) {
        let word = numbers.iter().rev().fold(0u32, |word, w| word << bits | code(w));
        codes.copy_from_slice(&word.to_le_bytes()[..bytes]);
    }
    (scale, bias)
}

/// Unpacks the codes of a row into numbers.
fn unpack<const BITS: usize>(codes: &[u8], out: &mut [f32]) {
    let (bytes, values) = pack(BITS);
    for (codes, out) in codes.chunks_exact(bytes).zip(out.chunks_exact_mut(values)) {
        let word = codes.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
        for (i, o) in out.iter_mut().enumerate() {
            *o = (word >> (i * BITS) & ((1 << BITS) - 1)) as f32;
        }
    }
}

#[cfg(test)]
#[path = "affine_tests.rs"]
mod tests;
