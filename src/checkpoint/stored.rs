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
use crate::ops::metal::{Pick, Queue, Rows};
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
            Format::Affine { .. } => bail!("MLX's format can be read but not written"),
        }
    }

    fn to_device(&self, device: &Device) -> Result<Self> {
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

    /// A matrix of this format and size, without numbers.
    pub(crate) fn blank(format: Format, dims: (usize, usize)) -> Result<Self> {
        match format.for_columns(dims.1) {
            // It is multiplied as it is. The memory is asked for and never touched.
            // SAFETY: every bit pattern is a number.
            Format::F32 => Ok(Self::Dense(unsafe { Tensor::empty(dims, DType::F32, &Device::Cpu)? })),
            format => Ok(Self::Blank { format, dims }),
        }
    }

    /// The matrix as kernels of our own want it, on `device`.
    pub(crate) fn for_kernels(&self, device: &Device) -> Result<Self> {
        let Self::Blocks(blocks) = self else { return self.to_device(device) };
        let Some(block) = ggml::block(blocks.dtype()) else { bail!("no matrix is held in {:?}", blocks.dtype()) };
        let ((rows, _), data) = (self.dims()?, blocks.data()?);
        let bytes = Tensor::from_slice(&data, (rows, data.len() / rows.max(1)), device)?;
        Ok(Self::Bytes { bytes, block })
    }

    /// The device that it is on.
    pub(crate) fn device(&self) -> Device {
        match self {
            Self::Dense(t) | Self::Int8 { codes: t, .. } | Self::Bytes { bytes: t, .. } => t.device().clone(),
            Self::Blocks(blocks) => blocks.device(),
            Self::Affine(affine) => affine.parts()[0].device().clone(),
            Self::Blank { .. } => Device::Cpu,
        }
    }

    /// Rows of it decoded by a kernel.
    fn decoded(&self, queue: Queue, pick: Pick<'_>) -> Result<Tensor> {
        let (_, columns) = self.dims()?;
        let Some(format) = self.format() else { bail!("a matrix in a format without a name") };
        let blank;
        let (data, scales) = match self {
            Self::Dense(t) | Self::Bytes { bytes: t, .. } => (t, None),
            Self::Int8 { codes, scales } => (codes, Some((scales, scales))),
            Self::Affine(affine) => {
                let [codes, scales, biases] = affine.parts();
                (codes, Some((scales, biases)))
            }
            Self::Blank { .. } => {
                blank = Tensor::zeros(1, DType::U8, &Device::Cpu)?;
                (&blank, Some((&blank, &blank)))
            }
            Self::Blocks(_) => bail!("blocks that are not laid out for kernels"),
        };
        queue.decode(&Rows { data, scales, format, columns }, pick)
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
mod tests {
    use super::*;
    use crate::ops::testing::{self, worst};
    use crate::spec::run::Weights;

    fn matrix(rows: usize, columns: usize) -> Tensor {
        testing::random((rows, columns), 1.0, 3)
    }

    fn put(matrix: &Tensor, weights: Weights) -> Stored {
        Stored::Dense(matrix.clone()).put(weights.format().unwrap(), &Device::Cpu).unwrap()
    }

    #[test]
    fn formats_hold_the_values_to_their_precision() {
        let w = matrix(5, 512);
        // Half a step of the widest group or block, for numbers within one; Q6_K and Q4_K measured.
        let tolerances = [
            (Weights::F32, 0.0),
            (Weights::F16, 5e-4),
            (Weights::Bf16, 4e-3),
            (Weights::Int8, 0.5 / 127.0 + 1e-6),
            (Weights::Q8_0, 0.5 / 127.0 + 1e-3),
            (Weights::Q6K, 0.035),
            (Weights::Q4_0, 0.14),
            (Weights::Q4K, 0.12),
        ];
        for (format, tolerance) in tolerances {
            let stored = put(&w, format);
            let all = stored.panel(Backend::Fused, 0, 5).unwrap();
            let error = worst(&all, &w);
            assert!(error <= tolerance, "{format:?}: {error}");
            assert!(format == Weights::F32 || error > tolerance / 50.0, "{format:?} is too good: {error}");
            assert_eq!(
                worst(&stored.panel(Backend::Fused, 1, 3).unwrap(), &all.narrow(0, 1, 3).unwrap()),
                0.0,
                "{format:?}"
            );
            let ids = Tensor::new(&[4u32, 0, 4], &Device::Cpu).unwrap();
            assert_eq!(
                worst(&stored.rows(Backend::Fused, &ids).unwrap(), &all.index_select(&ids, 0).unwrap()),
                0.0,
                "{format:?}"
            );
        }
    }

    #[test]
    fn halves_widen_as_candle_widens_them() {
        let (f16, bf16) = ([0x0001u16, 0x7bff, 0x7c00, 0xfc00, 0x8000], [0x0001u16, 0x7f7f, 0x7f80, 0xff80, 0x8000]);
        let of = |edges: [u16; 5], dtype| {
            let bits = edges.iter().flat_map(|b| b.to_le_bytes()).collect::<Vec<_>>();
            let edges = Tensor::from_raw_buffer(&bits, dtype, &[5], &Device::Cpu).unwrap();
            // More numbers than one task takes, and not a whole number of tasks.
            Tensor::cat(&[matrix(1, 40_001).flatten_all().unwrap().to_dtype(dtype).unwrap(), edges], 0).unwrap()
        };
        for t in [of(f16, DType::F16), of(bf16, DType::BF16)] {
            let (ours, theirs) = (widened(Backend::Fused, &t).unwrap(), t.to_dtype(DType::F32).unwrap());
            assert_eq!(testing::values(&ours), testing::values(&theirs));
            let part = t.narrow(0, 39_999, 4).unwrap();
            assert_eq!(
                testing::values(&widened(Backend::Fused, &part).unwrap()),
                testing::values(&theirs.narrow(0, 39_999, 4).unwrap())
            );
        }
    }

    #[test]
    fn int8_takes_any_width_and_both_decoders_agree() {
        for columns in [1, 63, 64, 100] {
            let w = matrix(3, columns);
            let Stored::Int8 { codes, scales } = put(&w, Weights::Int8) else { panic!() };
            let decoded = int8::decode_cpu(&codes, &scales).unwrap();
            assert_eq!(worst(&decoded, &int8::decode_composed(&codes, &scales).unwrap()), 0.0);
            assert!(worst(&decoded, &w) <= 0.5 / 127.0 + 1e-6);
        }
        let zero = Tensor::zeros((2, 64), DType::F32, &Device::Cpu).unwrap();
        let stored = put(&zero, Weights::Int8);
        assert_eq!(worst(&stored.panel(Backend::Fused, 0, 2).unwrap(), &zero), 0.0);
    }

    #[test]
    fn blocks_that_do_not_divide_a_row_give_way() {
        let stored = put(&matrix(3, 100), Weights::Q4K);
        assert!(matches!(stored, Stored::Dense(t) if t.dtype() == DType::BF16));
        let stored = put(&matrix(3, 96), Weights::Q4K);
        assert!(matches!(stored, Stored::Blocks(q) if q.dtype() == GgmlDType::Q8_0));
    }

    #[test]
    fn numbers_that_a_format_cannot_hold_are_refused() {
        let mut numbers = vec![0.5f32; 512];
        numbers[300] = 3e8;
        let w = Stored::Dense(Tensor::from_vec(numbers, (2, 256), &Device::Cpu).unwrap());
        for weights in [Weights::F16, Weights::Q8_0, Weights::Q6K, Weights::Q4K, Weights::Q4_0] {
            let error = w.put(weights.format().unwrap(), &Device::Cpu).unwrap_err().to_string();
            assert!(error.contains("larger than"), "{weights:?}: {error}");
        }
        for weights in [Weights::F32, Weights::Bf16, Weights::Int8] {
            w.put(weights.format().unwrap(), &Device::Cpu).unwrap();
        }
    }

    #[test]
    fn one_format_becomes_another_by_its_own_values() {
        let w = matrix(5, 512);
        for from in [Weights::F16, Weights::Int8, Weights::Q4_0, Weights::Q6K] {
            let stored = put(&w, from);
            assert_eq!(stored.format(), from.format());
            let values = stored.panel(Backend::Fused, 0, 5).unwrap();
            for to in [Weights::F32, Weights::Bf16, Weights::Int8, Weights::Q8_0, Weights::Q4K] {
                let (again, direct) = (stored.put(to.format().unwrap(), &Device::Cpu).unwrap(), put(&values, to));
                assert_eq!(again.format(), to.format());
                assert_eq!(
                    worst(&again.panel(Backend::Fused, 0, 5).unwrap(), &direct.panel(Backend::Fused, 0, 5).unwrap()),
                    0.0,
                    "{from:?} to {to:?}"
                );
            }
        }
    }
}
