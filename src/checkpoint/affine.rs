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
mod tests {
    use super::*;
    use crate::ops::testing::{random, values, worst};

    /// Codes counted up from `start`, packed as MLX packs them, with random scales and biases.
    fn matrix(bits: usize, group: usize, dtype: DType) -> (Affine, Vec<f32>) {
        let (rows, columns) = (3, 3 * group);
        let codes: Vec<u64> = (0..rows * columns).map(|i| (i * 37 + i / 7) as u64 % (1 << bits)).collect();
        let mut bytes = Vec::new();
        for row in codes.chunks(columns) {
            // 32 codes fill `bits` words of 32 bits: place each bit where it belongs.
            let mut stream = vec![0u8; columns * bits / 8];
            for (i, code) in row.iter().enumerate() {
                (0..bits)
                    .filter(|b| code >> b & 1 == 1)
                    .for_each(|b| stream[(i * bits + b) / 8] |= 1 << ((i * bits + b) % 8));
            }
            bytes.extend(stream);
        }
        let small = |seed| random((rows, 3), 0.1, seed).to_dtype(dtype).unwrap();
        let (scales, biases) = (small(1), small(2));
        let wide = |t: &Tensor| values(&t.to_dtype(DType::F32).unwrap());
        let (s, b) = (wide(&scales), wide(&biases));
        let expected = codes.iter().enumerate().map(|(i, c)| *c as f32 * s[i / group] + b[i / group]).collect();
        let codes = Tensor::from_vec(bytes, (rows, columns * bits / 8), &Device::Cpu).unwrap();
        (Affine::new(codes, scales, biases, columns).unwrap(), expected)
    }

    #[test]
    fn both_decoders_give_scale_times_code_plus_bias() {
        for bits in [2, 3, 4, 6, 8] {
            for (group, dtype, scales) in
                [(32, DType::F32, Dtype::F32), (64, DType::F16, Dtype::F16), (128, DType::BF16, Dtype::Bf16)]
            {
                let (m, expected) = matrix(bits, group, dtype);
                assert_eq!(m.format(), Format::Affine { bits: bits as u8, group: group as u8, scales });
                let all = m.panel(Backend::Fused, 0, 3).unwrap();
                assert_eq!(values(&all), expected, "{bits} bits, groups of {group}");
                let composed = m.decode_composed(&m.codes, &m.scales, &m.biases).unwrap();
                assert_eq!(worst(&all, &composed), 0.0, "{bits} bits, groups of {group}");
                assert_eq!(worst(&m.panel(Backend::Fused, 1, 2).unwrap(), &all.narrow(0, 1, 2).unwrap()), 0.0);
                let ids = Tensor::new(&[2u32, 0, 2], &Device::Cpu).unwrap();
                assert_eq!(worst(&m.rows(Backend::Fused, &ids).unwrap(), &all.index_select(&ids, 0).unwrap()), 0.0);
            }
        }
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let (m, _) = matrix(4, 32, DType::F32);
        let new = |columns, scales: &Tensor| Affine::new(m.codes.clone(), scales.clone(), m.biases.clone(), columns);
        assert!(new(96, &m.scales).is_ok());
        assert!(new(100, &m.scales).is_err());
        assert!(new(96, &m.scales.narrow(0, 0, 2).unwrap()).is_err());
        assert!(new(96, &m.scales.to_dtype(DType::F16).unwrap()).is_err());
    }
}
