//! The device that computes, and the threads that do where it is the CPU.

use candle_core::Device;

/// Makes the calling thread one of those that compute, before anything is computed. Otherwise it would hand each of a
/// step's thousands of small operations to another thread and sleep until that woke it: a small step takes up to 1.7
/// times as long then (`benches/peers`' shapes a tenth).
pub fn compute_here() {
    // It fails where the threads are there already, and then things stay as they are.
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().ok();
}

/// The device to train on: Metal where there is one, else the CPU.
pub fn device() -> Device {
    #[cfg(target_os = "macos")]
    if let Some(metal) = metal() {
        return metal;
    }
    Device::Cpu
}

/// The GPU of this Mac. candle asks for residency sets, which macOS 15 brought, and stops the process where they are
/// missing: so older systems are not asked.
#[cfg(target_os = "macos")]
pub(crate) fn metal() -> Option<Device> {
    const FIRST_MACOS: isize = 15;
    let version = objc2_foundation::NSProcessInfo::processInfo().operatingSystemVersion();
    if version.majorVersion < FIRST_MACOS {
        return None;
    }
    Device::new_metal(0).ok()
}

/// Runs `f` and gives back what Objective-C autoreleased meanwhile: candle's loop would gather it without end.
#[cfg(target_os = "macos")]
pub(crate) fn autoreleased<R>(f: impl FnOnce() -> R) -> R {
    objc2::rc::autoreleasepool(|_| f())
}

/// Runs `f`; only Objective-C needs more.
#[cfg(not(target_os = "macos"))]
pub(crate) fn autoreleased<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Makes the buffers that the matrix product keeps for each thread. Otherwise the first product that a thread has a part
/// in makes them, and which threads those are is chance.
pub fn prepare_products() {
    let touch = || gemm_common::gemm::L2_SLAB.with(|_| ());
    rayon::broadcast(|_| touch());
    touch();
}
