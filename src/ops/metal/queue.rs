//! The queue that launches go to, and the memory that they work on.

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

use crate::memory::trace::{self, Source};
#[cfg(target_os = "macos")]
use crate::ops::metal::gpu;
use crate::ops::metal::host::{self, HostKernels};
use crate::ops::metal::launch::{Arg, Size, bytes};

/// Where launches go.
#[derive(Clone, Copy, Debug)]
pub enum Queue {
    /// To the GPU that tensors are on.
    Gpu,
    /// To the same kernels, compiled for the processor: tensors are on the CPU.
    Host(HostKernels),
    /// Nowhere. Tensors are memory of the CPU that nobody writes; what is read back is zeros.
    Nowhere,
}

impl Queue {
    /// Launches a kernel; `beside` are bytes that it moves beside its counted buffers.
    pub(crate) fn launch(
        self,
        kernel: &'static str,
        args: &[Arg<'_>],
        words: &[u32],
        size: Size,
        beside: u64,
    ) -> Result<()> {
        let moved = args.iter().map(|arg| match arg {
            Arg::In(t) | Arg::Out(t) => bytes(t),
            Arg::InOut(t) => 2 * bytes(t),
            Arg::Table(_) | Arg::Part(_) => 0,
        });
        trace::launch(kernel, moved.sum::<u64>() + beside, 0);
        for arg in args {
            let (t, _) = arg.tensor();
            if !t.is_contiguous() {
                bail!("`{kernel}` wants contiguous tensors, got {:?}", t.layout())
            }
        }
        let empty = match size {
            Size::Grid(grid) => grid.contains(&0),
            Size::Rows(rows, _) => rows == 0,
        };
        match self {
            _ if empty => Ok(()),
            Self::Nowhere => Ok(()),
            Self::Host(kernels) => kernels.run(kernel, args, words, size),
            #[cfg(target_os = "macos")]
            Self::Gpu => gpu::encode(kernel, args, words, size),
            #[cfg(not(target_os = "macos"))]
            Self::Gpu => bail!("there is no GPU of Apple here"),
        }
    }

    /// Memory for a result, whose content is anything.
    pub(crate) fn empty(self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        // SAFETY: every bit pattern is a number, and each kernel writes the whole of what it fills.
        let t = unsafe { Tensor::empty(shape, DType::F32, device)? };
        if let Self::Host(_) = self {
            // So that what is read before it is written shows.
            host::poison(&t)?;
        }
        took(&t, Source::Private);
        Ok(t)
    }

    /// Memory that stays for the whole run, beside the pool, at its exact size; its content is anything.
    pub(crate) fn fixed(self, shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        #[cfg(target_os = "macos")]
        if let Device::Metal(metal) = device {
            return gpu::fixed(shape, dtype, metal);
        }
        // SAFETY: as above.
        let t = unsafe { Tensor::empty(shape, dtype, device)? };
        took(&t, Source::Fixed);
        Ok(t)
    }

    /// [`Queue::fixed`] memory of zeros.
    pub(crate) fn fixed_zeros(self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        let t = self.fixed(shape, DType::F32, device)?;
        self.fill(&t, 0.0)?;
        Ok(t)
    }

    /// Numbers sent to the device.
    pub(crate) fn upload<T: candle_core::WithDType>(
        self,
        data: Vec<T>,
        shape: impl Into<Shape>,
        device: &Device,
    ) -> Result<Tensor> {
        let t = Tensor::from_vec(data, shape.into(), device)?;
        took(&t, Source::Upload);
        Ok(t)
    }

    /// The numbers of a tensor, for which the processor waits.
    pub(crate) fn read(self, t: &Tensor) -> Result<Vec<f32>> {
        note_allocated(t.device());
        trace::read_back(bytes(t));
        match self {
            Self::Nowhere => Ok(vec![0.0; t.elem_count()]),
            _ => t.flatten_all()?.to_vec1(),
        }
    }

    /// Waits for the device.
    pub(crate) fn wait(self, device: &Device) -> Result<()> {
        note_allocated(device);
        trace::wait();
        device.synchronize()
    }

    /// `a b` of two matrices, or of two batches of matrices, by candle's product.
    pub(crate) fn product(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        acceptable(a, b)?;
        let (rank, dims) = (a.rank(), a.dims());
        let (batch, m, k) = (dims[..rank - 2].iter().product::<usize>(), dims[rank - 2], dims[rank - 1]);
        let n = b.dim(rank - 1)?;
        let y = match self {
            // SAFETY: as above.
            Self::Nowhere => unsafe { Tensor::empty([&dims[..rank - 2], &[m, n]].concat(), DType::F32, a.device())? },
            _ => a.matmul(b)?,
        };
        trace::launch("matmul", bytes(a) + bytes(b) + bytes(&y), 2 * (batch * m * n * k) as u64);
        took(&y, Source::Private);
        Ok(y)
    }
}

/// Refuses a product that candle's Metal back end refuses or gets wrong: it wants each matrix row after row or column
/// after column, and takes the distance between matrices from the last dimension before them alone.
pub(crate) fn acceptable(a: &Tensor, b: &Tensor) -> Result<()> {
    let plain = |t: &Tensor| {
        let (dims, strides) = (t.dims(), t.stride());
        let n = dims.len();
        let (rows, columns, down, across) = (dims[n - 2], dims[n - 1], strides[n - 2], strides[n - 1]);
        let straight = (across == 1 || columns == 1) && (down == columns || rows == 1);
        let turned = (across == rows || columns == 1) && (down == 1 || rows == 1);
        (straight || turned) && n <= 3
    };
    if plain(a) && plain(b) && a.dtype() == DType::F32 && b.dtype() == DType::F32 {
        return Ok(());
    }
    bail!("Metal's product takes no {:?} and {:?}", a.layout(), b.layout())
}

/// Tells the trace of a tensor's memory.
fn took(t: &Tensor, source: Source) {
    if trace::recording()
        && let Some(address) = host::address(t)
    {
        trace::take(address, bytes(t), source);
    }
}

/// Remembers the largest allocation of a Metal device seen just before a wait, after which its free buffers are gone.
fn note_allocated(device: &Device) {
    #[cfg(target_os = "macos")]
    gpu::note_allocated(device);
    #[cfg(not(target_os = "macos"))]
    let _ = device;
}

/// Largest allocation of the Metal device just before any wait so far, bytes; `None` for another device.
pub fn allocated_peak(device: &Device) -> Option<u64> {
    #[cfg(target_os = "macos")]
    return gpu::allocated_peak(device);
    #[cfg(not(target_os = "macos"))]
    {
        let _ = device;
        None
    }
}
