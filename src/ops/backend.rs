//! What computes a model's operations.

use candle_core::{DType, Device, Result, Shape, Tensor};

use crate::ops::metal::queue::Queue;

/// What computes; chosen where a model is loaded, and the same for all of it.
#[derive(Clone, Copy, Debug)]
pub enum Backend {
    /// Kernels of our own on the CPU: fused, threaded, in place where nobody else holds the memory.
    Fused,
    /// Kernels of our own on a Mac's GPU, with the same buffers.
    Metal(Queue),
    /// The same formulas composed of candle's operations: the reference that both are held to.
    Composed,
}

impl Backend {
    /// The one that a device is worked with.
    #[must_use]
    pub fn of(device: &Device) -> Self {
        match device {
            Device::Cpu => Self::Fused,
            Device::Metal(_) => Self::Metal(Queue::Gpu),
            Device::Cuda(_) => Self::Composed,
        }
    }

    /// Numbers that are sent to the device once and stay, at their exact size.
    pub(crate) fn upload<T: candle_core::WithDType>(
        self,
        data: Vec<T>,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => queue.upload(data, shape, device),
            _ => Tensor::from_vec(data, shape.into(), device),
        }
    }

    /// Zeros that stay for a whole run, at their exact size.
    pub(crate) fn lasting_zeros(self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => queue.fixed_zeros(shape, device),
            _ => Tensor::zeros(shape, DType::F32, device),
        }
    }

    /// The same numbers in memory of their own.
    pub(crate) fn copied(self, t: &Tensor) -> Result<Tensor> {
        match self {
            Self::Metal(queue) => queue.copied(t),
            _ => t.force_contiguous(),
        }
    }

    /// Waits for the device.
    pub(crate) fn wait(self, device: &Device) -> Result<()> {
        match self {
            Self::Metal(queue) => queue.wait(device),
            _ => device.synchronize(),
        }
    }
}
