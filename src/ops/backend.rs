//! What computes a model's operations.

use candle_core::Device;

/// What computes; chosen where a model is loaded, and the same for all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Kernels of our own on the CPU: fused, threaded, in place where nobody else holds the memory.
    Fused,
    /// The same formulas composed of candle's operations, on any device. On the CPU it shows what other devices compute.
    Composed,
}

impl Backend {
    /// The one that a device is worked with.
    #[must_use]
    pub fn of(device: &Device) -> Self {
        if device.is_cpu() { Self::Fused } else { Self::Composed }
    }

    /// Whether tensors are worked on by the fused kernels.
    pub(crate) fn fused(self) -> bool {
        self == Self::Fused
    }
}
