//! The numbers of a tensor on the CPU.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

use crate::ops::matmul::View;

/// Calls `f` with the numbers of a contiguous f32 tensor on the CPU.
pub(crate) fn with_slice<R>(t: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(slice(storage, layout)?)),
        _ => bail!("expected a tensor on the CPU"),
    }
}

pub(super) fn like(t: &Tensor, data: Vec<f32>) -> Result<Tensor> {
    Tensor::from_vec(data, t.shape(), t.device())
}

pub(super) fn map1(x: &Tensor, f: impl FnOnce(&[f32]) -> Vec<f32>) -> Result<Tensor> {
    like(x, with_slice(x, f)?)
}

pub(super) fn map2(x: &Tensor, y: &Tensor, f: impl FnOnce(&[f32], &[f32]) -> Vec<f32>) -> Result<Tensor> {
    like(x, with_slice(x, |x| with_slice(y, |y| f(x, y)))??)
}

/// Calls `f` with a matrix on the CPU, whatever its strides.
pub(super) fn with_view<R>(t: &Tensor, f: impl FnOnce(View<'_>) -> R) -> Result<R> {
    let (storage, layout) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(f(view(storage, layout)?)),
        _ => bail!("expected a tensor on the CPU"),
    }
}

pub(super) fn numbers(storage: &CpuStorage) -> Result<&[f32]> {
    match storage {
        CpuStorage::F32(data) => Ok(data),
        _ => bail!("expected f32 numbers"),
    }
}

pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&numbers(storage)?[start..end]),
        None => bail!("expected a contiguous tensor, got {layout:?}"),
    }
}

pub(crate) fn slice_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(data), Some((start, end))) => Ok(&mut data[start..end]),
        _ => bail!("expected contiguous f32 numbers, got {layout:?}"),
    }
}

pub(super) fn view<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<View<'a>> {
    let &[row_stride, col_stride] = layout.stride() else { bail!("expected a matrix, got {layout:?}") };
    let data = &numbers(storage)?[layout.start_offset()..];
    Ok(View::strided(data, layout.shape().dims2()?, (row_stride, col_stride)))
}
