//! A frozen matrix in its storage format, and its rows in f32 a panel at a time.
//!
//! Formats are storage only: every product is computed in f32 from the values that the format holds.

use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::checkpoint::affine::Affine;
use crate::checkpoint::finite::all_finite_ggml;
use crate::checkpoint::{ggml, int8};
use crate::ops::metal::Pick;
use crate::ops::{Backend, kernels};
use crate::spec::model::storage::{Block, Format, INT8_GROUP};
use crate::spec::run::engine::panel_rows;

/// A frozen matrix `[rows, columns]` in its storage format.
#[derive(Clone, Debug)]
pub enum Stored {
    /// Unquantised numbers in f32, f16 or bf16.
    Dense(Tensor),
    /// Eight bits a number, as `scale * (code - 128)` with one scale per group of a row.
    Int8 {
        /// Codes of the numbers, `[rows, columns]`, u8.
        codes: Tensor,
        /// Scale of each group, `[rows, groups]`, f32.
        scales: Tensor,
    },
    /// Blocks of one of GGUF's formats.
    Blocks(Arc<QTensor>),
    /// Codes with scales and biases, as MLX quantises.
    Affine(Affine),
    /// Bytes of GGUF's blocks, `[rows, bytes of a row]`, u8, as kernels of our own read them.
    Bytes {
        /// The bytes.
        bytes: Tensor,
        /// Their format.
        block: Block,
    },
    /// A matrix of which only the size counts: nothing is computed of it.
    Blank {
        /// Its format.
        format: Format,
        /// Rows and columns.
        dims: (usize, usize),
    },
}

impl Stored {
    /// The matrix in a format on `device`, from whatever format it is in on the CPU, a panel of rows at a time. A
    /// format whose blocks do not divide the rows gives way as `Format::for_columns` says.
    pub fn put(&self, format: Format, device: &Device) -> Result<Self> {
        match format.for_columns(self.dims()?.1) {
            format if Some(format) == self.format() => self.to_device(device),
            Format::F32 => self.dense(DType::F32, device),
            Format::F16 => self.dense(DType::F16, device),
            Format::Bf16 => self.dense(DType::BF16, device),
            Format::Int8 => to_int8(self, device),
            Format::Gguf(block) => quantise(self, block, device),
            Format::Affine { bits, group, scales } => {
                let (rows, columns) = self.dims()?;
                Affine::of_rows(row_spans(self)?, (rows, columns), (bits, group, scales), device).map(Self::Affine)
            }
        }
    }

    pub(super) fn to_device(&self, device: &Device) -> Result<Self> {
        Ok(match self {
            Self::Dense(t) => Self::Dense(t.to_device(device)?),
            Self::Int8 { codes, scales } => {
                Self::Int8 { codes: codes.to_device(device)?, scales: scales.to_device(device)? }
            }
            Self::Blocks(q) if q.device().same_device(device) => Self::Blocks(q.clone()),
            Self::Blocks(q) => Self::Blocks(from_bytes(q.data()?.into_owned(), q.dtype(), self.dims()?, device)?),
            Self::Affine(affine) => Self::Affine(affine.to_device(device)?),
            Self::Bytes { bytes, block } => Self::Bytes { bytes: bytes.to_device(device)?, block: *block },
            Self::Blank { .. } => self.clone(),
        })
    }

    fn dense(&self, dtype: DType, device: &Device) -> Result<Self> {
        let whole = match self {
            Self::Dense(t) => t.to_dtype(dtype)?,
            _ => Tensor::cat(&row_spans(self)?.map(|s| s?.to_dtype(dtype)).collect::<Result<Vec<_>>>()?, 0)?,
        };
        // The others have the range of f32.
        if let (DType::F16, Storage::Cpu(CpuStorage::F16(numbers))) = (dtype, &*whole.storage_and_layout().0)
            && numbers.par_chunks(1 << 17).any(|part| part.iter().fold(false, |any, x| any | !x.is_finite()))
        {
            bail!("{}", too_large(GgmlDType::F16));
        }
        Ok(Self::Dense(whole.to_device(device)?))
    }

    /// The format it is in, where that has a name.
    pub(crate) fn format(&self) -> Option<Format> {
        match self {
            Self::Dense(t) => match t.dtype() {
                DType::F32 => Some(Format::F32),
                DType::F16 => Some(Format::F16),
                DType::BF16 => Some(Format::Bf16),
                _ => None,
            },
            Self::Int8 { .. } => Some(Format::Int8),
            Self::Blocks(q) => ggml::block(q.dtype()).map(Format::Gguf),
            Self::Affine(affine) => Some(affine.format()),
            Self::Bytes { block, .. } => Some(Format::Gguf(*block)),
            Self::Blank { format, .. } => Some(*format),
        }
    }

    /// Shape of the matrix, (rows, columns).
    pub(crate) fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(t) | Self::Int8 { codes: t, .. } => t.dims2(),
            Self::Blocks(q) => q.shape().dims2(),
            Self::Affine(affine) => affine.dims(),
            Self::Bytes { bytes, block } => {
                let ((rows, bytes), dtype) = (bytes.dims2()?, ggml::ggml(*block));
                Ok((rows, bytes / dtype.type_size() * dtype.block_size()))
            }
            Self::Blank { dims, .. } => Ok(*dims),
        }
    }

    /// The matrix itself where it is f32, and needs no panels.
    pub(crate) fn f32(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(t) if t.dtype() == DType::F32 => Some(t),
            _ => None,
        }
    }

    /// Dequantised rows: `count` of them from `first`, in f32.
    pub fn panel(&self, backend: Backend, first: usize, count: usize) -> Result<Tensor> {
        if let Backend::Metal(queue) = backend {
            return self.decoded(queue, Pick::From(first, count));
        }
        match self {
            Self::Dense(t) => widened(backend, &t.narrow(0, first, count)?),
            Self::Int8 { codes, scales } => {
                int8::decode(backend, &codes.narrow(0, first, count)?, &scales.narrow(0, first, count)?)
            }
            Self::Blocks(q) => ggml::panel(backend, q, first, count),
            Self::Affine(affine) => affine.panel(backend, first, count),
            Self::Bytes { .. } | Self::Blank { .. } => bail!("a matrix for kernels alone"),
        }
    }

    /// The rows of these indices, in f32.
    pub(crate) fn rows(&self, backend: Backend, ids: &Tensor) -> Result<Tensor> {
        if let Backend::Metal(queue) = backend {
            return self.decoded(queue, Pick::Ids(ids));
        }
        match self {
            Self::Dense(t) => widened(backend, &t.index_select(ids, 0)?),
            Self::Int8 { codes, scales } => {
                int8::decode(backend, &codes.index_select(ids, 0)?, &scales.index_select(ids, 0)?)
            }
            Self::Blocks(q) => ggml::rows(backend, q, ids),
            Self::Affine(affine) => affine.rows(backend, ids),
            Self::Bytes { .. } | Self::Blank { .. } => bail!("a matrix for kernels alone"),
        }
    }
}

/// Rows whose f32 form is made at one time while a format is made of them.
fn row_spans(matrix: &Stored) -> Result<impl Iterator<Item = Result<Tensor>> + '_> {
    let (rows, columns) = matrix.dims()?;
    let step = panel_rows(columns);
    let span = move |first: usize| matrix.panel(Backend::Fused, first, step.min(rows - first))?.contiguous();
    Ok((0..rows).step_by(step).map(span))
}

fn to_int8(matrix: &Stored, device: &Device) -> Result<Stored> {
    let (rows, columns) = matrix.dims()?;
    let groups = columns.div_ceil(INT8_GROUP);
    let (mut codes, mut scales) = (vec![0u8; rows * columns], vec![0f32; rows * groups]);
    let mut done = 0;
    for span in row_spans(matrix)? {
        let span = span?;
        let count = span.dim(0)?;
        let span_codes = &mut codes[done * columns..(done + count) * columns];
        let span_scales = &mut scales[done * groups..(done + count) * groups];
        crate::ops::with_slice(&span, |span| int8::encode(span, columns, span_codes, span_scales))?;
        done += count;
    }
    Ok(Stored::Int8 {
        codes: Tensor::from_vec(codes, (rows, columns), device)?,
        scales: Tensor::from_vec(scales, (rows, groups), device)?,
    })
}

fn quantise(matrix: &Stored, block: Block, device: &Device) -> Result<Stored> {
    let ((rows, columns), dtype) = (matrix.dims()?, ggml::ggml(block));
    // Rows are whole blocks, so the bytes of spans of rows lie one after the other.
    let mut bytes = Vec::with_capacity(rows * columns / dtype.block_size() * dtype.type_size());
    for span in row_spans(matrix)? {
        bytes.extend_from_slice(&QTensor::quantize(&span?, dtype)?.data()?);
    }
    if !all_finite_ggml(&bytes, dtype) {
        bail!("{}", too_large(dtype));
    }
    Ok(Stored::Blocks(from_bytes(bytes, dtype, (rows, columns), device)?))
}

/// What is said of a matrix that a format cannot hold.
pub(crate) fn too_large(format: GgmlDType) -> String {
    format!("it has numbers that are larger than {format:?} can hold")
}

/// A matrix of blocks from the bytes of its rows, one after the other.
pub(crate) fn from_bytes(
    bytes: Vec<u8>,
    dtype: GgmlDType,
    dims: (usize, usize),
    device: &Device,
) -> Result<Arc<QTensor>> {
    let storage = QStorage::from_data(bytes.into(), device, dtype)?;
    Ok(Arc::new(QTensor::new(storage, dims)?))
}

/// Contiguous numbers in f32, by all threads; candle takes one for it.
fn widened(backend: Backend, t: &Tensor) -> Result<Tensor> {
    if !matches!(backend, Backend::Fused) {
        return t.to_dtype(DType::F32);
    }
    let (storage, layout) = t.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected contiguous numbers") };
    let wide = match &*storage {
        Storage::Cpu(CpuStorage::F16(x)) => kernels::map_each(&x[start..end], |x| x.to_f32()),
        Storage::Cpu(CpuStorage::BF16(x)) => kernels::map_each(&x[start..end], |x| x.to_f32()),
        _ => return t.to_dtype(DType::F32),
    };
    Tensor::from_vec(wide, t.shape(), t.device())
}

#[cfg(test)]
#[path = "stored_tests.rs"]
mod tests;
