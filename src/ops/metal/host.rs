//! Launches to kernels that a C++ compiler compiled, on tensors of the CPU.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, Result, Storage, Tensor, bail};

#[cfg(target_os = "macos")]
use crate::ops::metal::gpu;
use crate::ops::metal::launch::{Arg, SOURCE, Size};

/// Kernels compiled for the processor.
#[derive(Clone, Copy, Debug)]
pub struct HostKernels {
    run: unsafe extern "C" fn(*const c_char, *mut *mut c_void, *const c_void, *const u32, u32) -> c_int,
    /// Whether a Mac's GPU does the same beside them.
    #[cfg_attr(not(target_os = "macos"), allow(dead_code))]
    beside_gpu: bool,
}

impl HostKernels {
    /// The same, and each launch is made on a Mac's GPU too, whose results must be the same: what a Mac is asked that has
    /// never been seen. Elsewhere than on a Mac it changes nothing.
    #[must_use]
    pub fn beside_gpu(self) -> Self {
        Self { beside_gpu: cfg!(target_os = "macos"), ..self }
    }

    /// What runs a kernel by its name, with its buffers, its parameters, its grid (or its number of rows) and the
    /// threads of a threadgroup (0 for a grid without): 0 where it did.
    ///
    /// # Safety
    /// It must be compiled from [`crate::ops::metal::SOURCE`], and touch nothing but what the kernel of that name does.
    pub unsafe fn new(
        run: unsafe extern "C" fn(*const c_char, *mut *mut c_void, *const c_void, *const u32, u32) -> c_int,
    ) -> Self {
        Self { run, beside_gpu: false }
    }

    pub(super) fn run(self, kernel: &'static str, args: &[Arg<'_>], words: &[u32], size: Size) -> Result<()> {
        // A GPU runs kernels side by side unless it is told what they write.
        let declared = written(kernel);
        if !args.iter().map(|arg| arg.tensor().1).eq(declared.iter().copied()) {
            bail!("`{kernel}` writes to other buffers than it is given to write to")
        }
        let buffers: Result<Vec<*mut c_void>> = args.iter().map(|arg| pointer(arg.tensor().0)).collect();
        let mut buffers = buffers?;
        #[cfg(target_os = "macos")]
        let copies = if self.beside_gpu { Some(gpu::copies(args)?) } else { None };
        let name = CString::new(kernel).map_err(candle_core::Error::wrap)?;
        let (grid, lanes) = match size {
            Size::Grid([x, y, z]) => ([x as u32, y as u32, z as u32], 0),
            Size::Rows(rows, lanes) => ([rows as u32, 1, 1], lanes as u32),
        };
        // SAFETY: the kernels are those of the source (the promise of `new`); their buffers were sized for them, and no
        // one else uses the memory of what they write, as on the GPU.
        let code =
            unsafe { (self.run)(name.as_ptr(), buffers.as_mut_ptr(), words.as_ptr().cast(), grid.as_ptr(), lanes) };
        match code {
            #[cfg(target_os = "macos")]
            0 if self.beside_gpu => match copies {
                Some(copies) => gpu::agrees(kernel, args, &copies, words, size),
                None => Ok(()),
            },
            0 => Ok(()),
            1 => bail!("there is no kernel `{kernel}`"),
            _ => bail!("the threads of `{kernel}` part at a barrier"),
        }
    }
}

/// Of each buffer of a kernel, whether its declaration lets it be written.
fn written(kernel: &'static str) -> Vec<bool> {
    // A source is searched once for each kernel, and not at every launch.
    static DECLARED: Mutex<BTreeMap<&'static str, Vec<bool>>> = Mutex::new(BTreeMap::new());
    let mut declared = DECLARED.lock().unwrap_or_else(PoisonError::into_inner);
    declared.entry(kernel).or_insert_with(|| declaration(kernel)).clone()
}

fn declaration(kernel: &str) -> Vec<bool> {
    let plain = SOURCE.split_once(&format!("kernel void {kernel}(")).map(|(_, rest)| rest);
    // The decoders of blocks have one declaration.
    let rest = plain.or_else(|| SOURCE.split_once("kernel void name(").map(|(_, rest)| rest)).unwrap_or_default();
    let arguments = rest.split(')').next().unwrap_or_default();
    let pointers = arguments.split(',').map(str::trim).filter(|a| a.starts_with("device "));
    pointers.map(|a| !a.starts_with("device const ")).collect()
}

/// First byte of a contiguous tensor's numbers.
fn pointer(t: &Tensor) -> Result<*mut c_void> {
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("expected a tensor on the CPU") };
    let at = layout.start_offset();
    let address: *const c_void = match storage {
        CpuStorage::F32(x) => x[at..].as_ptr().cast(),
        CpuStorage::U32(x) => x[at..].as_ptr().cast(),
        CpuStorage::U8(x) => x[at..].as_ptr().cast(),
        CpuStorage::F16(x) => x[at..].as_ptr().cast(),
        CpuStorage::BF16(x) => x[at..].as_ptr().cast(),
        _ => bail!("no kernel takes {:?}", t.dtype()),
    };
    Ok(address.cast_mut())
}

/// Address of the memory that a tensor on the CPU lies in, of which a view is a part.
pub(super) fn address(t: &Tensor) -> Option<usize> {
    let (storage, _) = t.storage_and_layout();
    match &*storage {
        Storage::Cpu(CpuStorage::F32(x)) => Some(x.as_ptr() as usize),
        Storage::Cpu(CpuStorage::U32(x)) => Some(x.as_ptr() as usize),
        Storage::Cpu(CpuStorage::U8(x)) => Some(x.as_ptr() as usize),
        _ => None,
    }
}

/// Fills a tensor with numbers that spoil whatever is computed of them.
pub(super) fn poison(t: &Tensor) -> Result<()> {
    let start: *mut f32 = pointer(t)?.cast();
    // SAFETY: the tensor was just made of so many numbers, and nobody else has it.
    unsafe { std::slice::from_raw_parts_mut(start, t.elem_count()).fill(f32::NAN) };
    Ok(())
}
