//! Frozen matrices as kernels of our own read them, and matrices of which only the size counts.

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::checkpoint::ggml;
use crate::checkpoint::stored::Stored;
use crate::ops::metal::{Pick, Queue, Rows};
use crate::spec::model::storage::Format;

impl Stored {
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
    pub(super) fn decoded(&self, queue: Queue, pick: Pick<'_>) -> Result<Tensor> {
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
}
