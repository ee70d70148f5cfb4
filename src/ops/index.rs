//! Indices that both the processor and the device know.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::ops::backend::Backend;

/// A list of indices, or a part of one: what is sent to the device once serves for all its parts.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    numbers: Arc<[u32]>,
    part: Range<usize>,
    on_device: Tensor,
}

impl Index {
    /// Indices on `device`.
    pub(crate) fn new(numbers: Vec<u32>, (device, backend): (&Device, Backend)) -> Result<Self> {
        let n = numbers.len();
        let on_device = backend.upload(numbers.clone(), n, device)?;
        Ok(Self { numbers: numbers.into(), part: 0..n, on_device })
    }

    /// A part of them, counted from the first.
    pub(crate) fn part(&self, part: Range<usize>) -> Result<Self> {
        Ok(Self {
            numbers: self.numbers.clone(),
            on_device: self.on_device.narrow(0, part.start, part.len())?,
            part: self.part.start + part.start..self.part.start + part.end,
        })
    }

    /// As the processor has them.
    pub(crate) fn numbers(&self) -> &[u32] {
        &self.numbers[self.part.clone()]
    }

    /// As the device has them, `[n]`.
    pub(crate) fn tensor(&self) -> &Tensor {
        &self.on_device
    }
}
