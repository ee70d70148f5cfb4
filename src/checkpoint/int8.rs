//! Eight bits a number with one scale a group: codes to f32 and back.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::ops::Backend;
use crate::spec::model::storage::INT8_GROUP;

/// Code that stands for zero: the middle of the codes' range.
const ZERO: f32 = 128.0;

/// Largest code to either side of it.
const LARGEST: f32 = 127.0;

/// Codes and scales of whole rows of `columns` numbers.
pub(super) fn encode(numbers: &[f32], columns: usize, codes: &mut [u8], scales: &mut [f32]) {
    let groups = columns.div_ceil(INT8_GROUP);
    let rows = codes.par_chunks_mut(columns).zip(scales.par_chunks_mut(groups)).zip(numbers.par_chunks(columns));
    rows.for_each(|((codes, scales), row)| {
        for ((codes, row), scale) in codes.chunks_mut(INT8_GROUP).zip(row.chunks(INT8_GROUP)).zip(scales) {
            *scale = row.iter().fold(0f32, |m, w| m.max(w.abs())) / LARGEST;
            let inverse = if *scale > 0.0 { scale.recip() } else { 0.0 };
            codes.iter_mut().zip(row).for_each(|(c, w)| *c = ((w * inverse).round() + ZERO) as u8);
        }
    });
}

/// Codes and scales of the same rows to f32.
pub(super) fn decode(backend: Backend, codes: &Tensor, scales: &Tensor) -> Result<Tensor> {
    match backend {
        Backend::Fused => decode_cpu(codes, scales),
        _ => decode_composed(codes, scales),
    }
}

pub(super) fn decode_cpu(codes: &Tensor, scales: &Tensor) -> Result<Tensor> {
    let (rows, columns) = codes.dims2()?;
    let groups = scales.dim(1)?;
    let mut out = vec![0f32; rows * columns];
    let (storage, layout) = codes.storage_and_layout();
    let (Storage::Cpu(CpuStorage::U8(data)), Some((start, end))) = (&*storage, layout.contiguous_offsets()) else {
        bail!("expected contiguous codes on the CPU")
    };
    let codes = &data[start..end];
    crate::ops::with_slice(scales, |scales| {
        out.par_chunks_mut(columns).zip(codes.par_chunks(columns)).zip(scales.par_chunks(groups)).for_each(
            |((out, codes), scales)| {
                for ((out, codes), scale) in out.chunks_mut(INT8_GROUP).zip(codes.chunks(INT8_GROUP)).zip(scales) {
                    out.iter_mut().zip(codes).for_each(|(o, &c)| *o = (f32::from(c) - ZERO) * scale);
                }
            },
        );
    })?;
    Tensor::from_vec(out, (rows, columns), &Device::Cpu)
}

pub(super) fn decode_composed(codes: &Tensor, scales: &Tensor) -> Result<Tensor> {
    let (rows, columns) = codes.dims2()?;
    let centred = (codes.to_dtype(DType::F32)? - f64::from(ZERO))?;
    let groups = scales.dim(1)?;
    let wide = scales.unsqueeze(2)?.broadcast_as((rows, groups, INT8_GROUP))?.contiguous()?;
    let wide = wide.reshape((rows, groups * INT8_GROUP))?.narrow(1, 0, columns)?;
    centred * wide
}
