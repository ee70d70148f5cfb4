//! The device that computes, and the threads that do where it is the CPU.

use std::fmt;
use std::sync::OnceLock;

use candle_core::Device;

use crate::spec::machine::Accelerator;

/// Makes the calling thread one of those that compute, before anything is computed. Otherwise it would hand each of a
/// step's thousands of small operations to another thread and sleep until that woke it: a small step takes up to 1.7
/// times as long then (`benches/peers`' shapes a tenth).
pub fn compute_here() {
    // It fails where the threads are there already, and then things stay as they are.
    rayon::ThreadPoolBuilder::new().use_current_thread().build_global().ok();
}

/// Environment variable by which a device is chosen for this process and for those that it starts.
pub(crate) const VARIABLE: &str = "HEADROOM_DEVICE";

/// Oldest macOS with the residency sets that candle asks for; where they are missing it stops the process.
const FIRST_MACOS: isize = 15;

/// Device that was asked for on the command line.
static ASKED: OnceLock<Accelerator> = OnceLock::new();

/// Why Metal cannot be used. Its text is a clause that follows "because".
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "each system has reasons of its own")]
pub(crate) enum NoMetal {
    /// The system is not macOS.
    OtherSystem,
    /// The program is built for another processor than Apple's.
    OtherProcessor,
    /// macOS of this major version is too old.
    OldSystem(isize),
    /// macOS lists no GPU.
    NoGpu,
    /// The GPU of this name lacks operations that the kernels need.
    OldGpu(String),
    /// The GPU is there and could not be opened, for this reason.
    Failed(String),
}

impl fmt::Display for NoMetal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OtherSystem => f.write_str("only Macs have it"),
            Self::OtherProcessor => f.write_str("this program is built for Intel Macs, and Apple silicon is needed"),
            Self::OldSystem(version) => {
                write!(f, "this is macOS {version}, and version {FIRST_MACOS} or later is needed")
            }
            Self::NoGpu => {
                f.write_str("macOS shows no GPU to this process, as in some SSH sessions and virtual machines")
            }
            Self::OldGpu(name) => {
                write!(f, "the GPU `{name}` lacks what an M1 has (family Apple7), as those of virtual machines do")
            }
            Self::Failed(reason) => write!(f, "the GPU could not be opened: {reason}"),
        }
    }
}

/// What decides whether Metal can be used.
#[cfg(any(test, target_os = "macos"))]
struct Seen {
    apple_silicon: bool,
    macos: isize,
    /// First GPU of the system's list, which is the one that candle takes.
    gpu: Option<Gpu>,
}

/// A GPU, as Metal describes it.
#[cfg(any(test, target_os = "macos"))]
#[derive(Clone, Debug)]
#[cfg_attr(not(target_os = "macos"), allow(dead_code))]
pub(crate) struct Gpu {
    pub name: String,
    /// Whether it belongs to family Apple7 (M1) or a later one: SIMD-group matrices and reductions.
    pub apple7: bool,
    /// `recommendedMaxWorkingSetSize`, bytes, which follows `iogpu.wired_limit_mb` too; 0 where it is not known.
    pub working_set: u64,
    /// `maxBufferLength`, bytes; 0 where it is not known.
    pub max_buffer: u64,
}

#[cfg(any(test, target_os = "macos"))]
fn judge(seen: Seen) -> Result<(), NoMetal> {
    match seen {
        Seen { apple_silicon: false, .. } => Err(NoMetal::OtherProcessor),
        Seen { macos, .. } if macos < FIRST_MACOS => Err(NoMetal::OldSystem(macos)),
        Seen { gpu: None, .. } => Err(NoMetal::NoGpu),
        Seen { gpu: Some(gpu), .. } if !gpu.apple7 => Err(NoMetal::OldGpu(gpu.name)),
        _ => Ok(()),
    }
}

/// The GPU that candle takes, the first of the list; `None` where there is none, as in some sessions over SSH.
#[cfg(target_os = "macos")]
pub(crate) fn first_gpu() -> Option<Gpu> {
    use objc2_metal::{MTLCopyAllDevices, MTLDevice, MTLGPUFamily};

    autoreleased(|| {
        let gpu = MTLCopyAllDevices().to_vec().into_iter().next()?;
        Some(Gpu {
            name: gpu.name().to_string(),
            apple7: gpu.supportsFamily(MTLGPUFamily::Apple7),
            working_set: gpu.recommendedMaxWorkingSetSize(),
            max_buffer: gpu.maxBufferLength() as u64,
        })
    })
}

#[cfg(target_os = "macos")]
fn look() -> Result<(), NoMetal> {
    let macos = objc2_foundation::NSProcessInfo::processInfo().operatingSystemVersion().majorVersion;
    judge(Seen { apple_silicon: cfg!(target_arch = "aarch64"), macos, gpu: first_gpu() })?;
    Device::new_metal(0).map(|_| ()).map_err(|e| NoMetal::Failed(e.to_string()))
}

#[cfg(not(target_os = "macos"))]
fn look() -> Result<(), NoMetal> {
    Err(NoMetal::OtherSystem)
}

/// Why Metal cannot be used on this machine; `None` where it can. The system is asked once.
pub(crate) fn no_metal() -> Option<&'static NoMetal> {
    static SEEN: OnceLock<Result<(), NoMetal>> = OnceLock::new();
    SEEN.get_or_init(look).as_ref().err()
}

/// Device that [`VARIABLE`] names.
///
/// # Errors
/// Its value, where that is not a device.
pub(crate) fn of_environment() -> Result<Option<Accelerator>, String> {
    let Some(value) = std::env::var_os(VARIABLE).filter(|value| !value.is_empty()) else { return Ok(None) };
    let found = Accelerator::ALL.into_iter().find(|device| value == device.name());
    found.map(Some).ok_or_else(|| value.to_string_lossy().into_owned())
}

/// Settles the device for the rest of this process.
///
/// # Errors
/// Where Metal is asked for and cannot be used.
pub(crate) fn choose(asked: Accelerator) -> Result<(), &'static NoMetal> {
    if let (Accelerator::Metal, Some(reason)) = (asked, no_metal()) {
        return Err(reason);
    }
    // Whoever asked first is right.
    ASKED.set(asked).ok();
    Ok(())
}

/// Device that was asked for, on the command line or by [`VARIABLE`].
pub(crate) fn asked() -> Option<Accelerator> {
    ASKED.get().copied().or_else(|| of_environment().ok().flatten())
}

/// The device that this process trains on: the one that was asked for, else Metal, and never a Metal that cannot be used.
pub(crate) fn chosen() -> Accelerator {
    match asked() {
        Some(Accelerator::Cpu) => Accelerator::Cpu,
        _ if no_metal().is_none() => Accelerator::Metal,
        _ => Accelerator::Cpu,
    }
}

/// The device to train on, as candle knows it.
pub fn device() -> Device {
    #[cfg(target_os = "macos")]
    if chosen() == Accelerator::Metal
        && let Some(metal) = metal()
    {
        return metal;
    }
    Device::Cpu
}

/// The GPU of this Mac, where it can be used.
#[cfg(target_os = "macos")]
pub(crate) fn metal() -> Option<Device> {
    if no_metal().is_some() { None } else { Device::new_metal(0).ok() }
}

/// Kernels that candle puts into one command of the GPU, by its variable of this name; 50 where it is not set.
#[cfg(target_os = "macos")]
const COMMAND_LENGTH: &str = "CANDLE_METAL_COMPUTE_PER_BUFFER";

/// A step whose longest product has more multiplications and additions than this is cut into shorter commands: some
/// fifteen products are in one of 50 kernels, and macOS ends a command that keeps a display waiting (mlx#3267). On an M1 it
/// is 20 ms a product.
#[cfg(target_os = "macos")]
const LONG_PRODUCT: f64 = 4e10;

/// Before the device is opened: makes its commands short where products are long, unless the user has said how long they
/// are to be.
pub(crate) fn shorten_commands(longest_product: f64) {
    #[cfg(target_os = "macos")]
    if longest_product > LONG_PRODUCT && std::env::var_os(COMMAND_LENGTH).is_none() {
        // SAFETY: nothing else in this process reads or writes the environment while a job is being loaded.
        unsafe { std::env::set_var(COMMAND_LENGTH, "10") };
    }
    #[cfg(not(target_os = "macos"))]
    let _ = longest_product;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(macos: isize, gpu: Option<(&str, bool)>) -> Seen {
        let gpu = gpu.map(|(name, apple7)| Gpu { name: name.into(), apple7, working_set: 1, max_buffer: 1 });
        Seen { apple_silicon: true, macos, gpu }
    }

    #[test]
    fn metal_is_taken_where_it_works_and_else_the_reason_is_said() {
        assert_eq!(judge(mac(15, Some(("Apple M1", true)))), Ok(()));
        assert_eq!(judge(mac(26, Some(("Apple M5", true)))), Ok(()));
        let cases = [
            (mac(14, Some(("Apple M2", true))), "this is macOS 14, and version 15 or later is needed"),
            (mac(15, None), "macOS shows no GPU to this process"),
            (mac(15, Some(("Apple Paravirtual device", false))), "the GPU `Apple Paravirtual device` lacks"),
            (Seen { apple_silicon: false, ..mac(15, Some(("AMD Radeon Pro 5300M", false))) }, "built for Intel Macs"),
        ];
        for (seen, expected) in cases {
            let said = judge(seen).unwrap_err().to_string();
            assert!(said.contains(expected), "expected `{expected}` in `{said}`");
        }
        assert_eq!(NoMetal::Failed("no queue".into()).to_string(), "the GPU could not be opened: no queue");
    }

    #[test]
    #[cfg(not(target_os = "macos"))]
    fn elsewhere_the_processor_computes() {
        assert_eq!(choose(Accelerator::Metal), Err(&NoMetal::OtherSystem));
        assert_eq!(choose(Accelerator::Cpu), Ok(()));
        assert_eq!(chosen(), Accelerator::Cpu);
        assert!(device().is_cpu());
    }
}
