//! What the tests of this room share.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};

use crate::ops::Backend;
use crate::ops::metal::{HostKernels, Queue, SOURCE};

#[allow(clippy::duplicate_mod)] // helpers of the integration tests load it too
#[path = "../../tests/common/host.rs"]
mod host;

/// The Metal back end, whose kernels a C++ compiler compiled; with `HEADROOM_KERNELS=gpu` a Mac's GPU is held to them.
pub(crate) fn kernels() -> Backend {
    // SAFETY: they are compiled from that source.
    let kernels = unsafe { HostKernels::new(host::host(SOURCE)) };
    let both = std::env::var_os("HEADROOM_KERNELS").is_some_and(|on| on == "gpu");
    Backend::Metal(Queue::Host(if both { kernels.beside_gpu() } else { kernels }))
}

/// The names of all kernels.
pub(crate) fn kernel_names() -> Vec<String> {
    host::kernels(SOURCE)
}

/// Numbers between `-bound` and `bound`, `[rows, width]`, the same for the same seed.
pub(crate) fn random((rows, width): (usize, usize), bound: f32, seed: u64) -> Tensor {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let data: Vec<f32> = (0..rows * width).map(|_| rng.random_range(-bound..bound)).collect();
    Tensor::from_vec(data, (rows, width), &Device::Cpu).unwrap()
}

/// All numbers of a tensor.
pub(crate) fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// Sum of the products of two tensors' numbers.
pub(crate) fn dot(a: &Tensor, b: &Tensor) -> f64 {
    values(a).iter().zip(values(b)).map(|(a, b)| f64::from(*a) * f64::from(b)).sum()
}

/// A tensor whose number `i` is larger by `by`.
pub(crate) fn moved(t: &Tensor, i: usize, by: f32) -> Tensor {
    let mut data = values(t);
    data[i] += by;
    Tensor::from_vec(data, t.shape(), &Device::Cpu).unwrap()
}

/// Largest difference between two tensors of one shape.
pub(crate) fn worst(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    values(a).iter().zip(values(b)).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}
