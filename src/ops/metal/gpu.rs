//! Launches to the GPU, through candle's device.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use candle_core::op::BackpropOp;
use candle_core::{DType, Device, MetalDevice, MetalError, MetalStorage, Result, Shape, Storage, Tensor, bail};
use candle_metal_kernels::metal::{Buffer, ComputePipeline, Library};
use objc2_metal::{MTLCompileOptions, MTLMathMode, MTLSize};

use crate::ops::metal::launch::{Arg, SOURCE, Size};

/// The kernels of a device, as far as they were used.
struct Compiled {
    library: Library,
    pipelines: HashMap<&'static str, ComputePipeline>,
}

/// By the device's number.
static COMPILED: Mutex<Option<HashMap<u64, Compiled>>> = Mutex::new(None);

/// See [`allocated_peak`].
static PEAK: AtomicU64 = AtomicU64::new(0);

fn wrong(e: candle_metal_kernels::MetalKernelError) -> candle_core::Error {
    MetalError::from(e).into()
}

fn compile(device: &MetalDevice) -> Result<Library> {
    let options = MTLCompileOptions::new();
    options.setMathMode(MTLMathMode::Safe);
    device.metal_device().new_library_with_source(SOURCE, Some(&options)).map_err(wrong)
}

fn pipeline(device: &MetalDevice, kernel: &'static str) -> Result<ComputePipeline> {
    let mut all = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let all = all.get_or_insert_default();
    let of = match all.entry(device.metal_device().registry_id()) {
        Entry::Occupied(entry) => entry.into_mut(),
        Entry::Vacant(entry) => entry.insert(Compiled { library: compile(device)?, pipelines: HashMap::new() }),
    };
    if let Some(pipeline) = of.pipelines.get(kernel) {
        return Ok(pipeline.clone());
    }
    let function = of.library.get_function(kernel, None).map_err(wrong)?;
    let pipeline = device.metal_device().new_compute_pipeline_state_with_function(&function).map_err(wrong)?;
    of.pipelines.insert(kernel, pipeline.clone());
    Ok(pipeline)
}

/// Calls `f` with the buffer of a tensor and the place of its first number there, bytes.
fn with_buffer<R>(t: &Tensor, f: impl FnOnce(&Buffer, usize) -> R) -> Result<R> {
    let (storage, layout) = t.storage_and_layout();
    let Storage::Metal(storage) = &*storage else { bail!("expected a tensor on the GPU") };
    Ok(f(storage.buffer(), layout.start_offset() * t.dtype().size_in_bytes()))
}

fn device_of(args: &[Arg<'_>]) -> Result<MetalDevice> {
    for arg in args {
        if let Device::Metal(device) = arg.tensor().0.device() {
            return Ok(device.clone());
        }
    }
    bail!("a launch without a tensor on the GPU")
}

pub(super) fn encode(kernel: &'static str, args: &[Arg<'_>], words: &[u32], size: Size) -> Result<()> {
    let device = device_of(args)?;
    let pipeline = pipeline(&device, kernel)?;
    let guard = device.command_encoder()?;
    let encoder = guard.as_ref();
    encoder.set_compute_pipeline_state(&pipeline);
    for (i, arg) in args.iter().enumerate() {
        match arg.tensor() {
            (t, false) => with_buffer(t, |b, at| encoder.set_input_buffer(i, Some(b), at))?,
            (t, true) => with_buffer(t, |b, at| encoder.set_output_buffer(i, Some(b), at))?,
        }
    }
    encoder.set_bytes_directly(args.len(), size_of_val(words), words.as_ptr().cast());
    let most = pipeline.max_total_threads_per_threadgroup();
    match size {
        Size::Grid([width, height, depth]) => {
            let across = most.min(width).min(256);
            let down = (most.min(256) / across).clamp(1, height);
            encoder
                .dispatch_threads(MTLSize { width, height, depth }, MTLSize { width: across, height: down, depth: 1 });
        }
        Size::Rows(rows, lanes) if lanes <= most => encoder.dispatch_thread_groups(
            MTLSize { width: rows, height: 1, depth: 1 },
            MTLSize { width: lanes, height: 1, depth: 1 },
        ),
        Size::Rows(_, lanes) => bail!("`{kernel}` needs {lanes} threads a row, and this GPU gives it {most}"),
    }
    Ok(())
}

pub(super) fn fixed(shape: Shape, dtype: DType, device: &MetalDevice) -> Result<Tensor> {
    let count = shape.elem_count();
    let buffer = device.new_private_buffer(count, dtype, "fixed")?;
    let storage = MetalStorage::new(buffer, device.clone(), count, dtype);
    Ok(Tensor::from_storage(Storage::Metal(storage), shape, BackpropOp::none(), false))
}

pub(super) fn note_allocated(device: &Device) {
    if let Device::Metal(device) = device {
        PEAK.fetch_max(device.metal_device().current_allocated_size() as u64, Ordering::Relaxed);
    }
}

pub(super) fn allocated_peak(device: &Device) -> Option<u64> {
    matches!(device, Device::Metal(_)).then(|| PEAK.load(Ordering::Relaxed))
}

/// Copies of a launch's tensors on the GPU, taken before it is made.
pub(super) fn copies(args: &[Arg<'_>]) -> Result<Vec<Tensor>> {
    static GPU: OnceLock<Device> = OnceLock::new();
    let gpu = match GPU.get() {
        Some(gpu) => gpu,
        None => {
            let gpu = Device::new_metal(0)?;
            GPU.get_or_init(|| gpu)
        }
    };
    args.iter().map(|arg| arg.tensor().0.to_device(gpu)).collect()
}

/// Makes a launch on the GPU that was made on the CPU, and holds what it wrote to what was written there.
pub(super) fn agrees(
    kernel: &'static str,
    args: &[Arg<'_>],
    copies: &[Tensor],
    words: &[u32],
    size: Size,
) -> Result<()> {
    let here: Vec<Arg<'_>> = args
        .iter()
        .zip(copies)
        .map(|(arg, copy)| if arg.tensor().1 { Arg::Part(copy) } else { Arg::Table(copy) })
        .collect();
    encode(kernel, &here, words, size)?;
    for (arg, copy) in args.iter().zip(copies) {
        let (written, true) = arg.tensor() else { continue };
        let numbers = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let (cpu, gpu) = (numbers(written)?, numbers(copy)?);
        // A code may be the next one where a number lies in the middle of two.
        let allowed = match written.dtype() {
            DType::U8 => 1.0,
            _ => 1e-5 * cpu.iter().fold(1f32, |m, x| m.max(x.abs())),
        };
        for (i, (a, b)) in cpu.iter().zip(&gpu).enumerate() {
            // What neither wrote is no number in both.
            if !((a - b).abs() <= allowed || (a.is_nan() && b.is_nan())) {
                bail!("`{kernel}` gives {b} on this GPU where {a} is right, at {i} of {}", cpu.len())
            }
        }
    }
    Ok(())
}
