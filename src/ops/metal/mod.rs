//! The Metal back end: small kernels of our own (`*.metal`), matrix products of candle, and memory of candle's pool.
//!
//! The same sequence of launches can go to the GPU, to the kernels compiled by a C++ compiler (which proves their
//! arithmetic where there is no Mac), or nowhere: then only memory is taken and given back, which shows in a moment what
//! a step of any size would need. All of it is told to [`crate::memory::trace`].

mod attention;
mod decode;
#[cfg(target_os = "macos")]
mod gpu;
mod host;
mod layers;
mod optimizer;

use candle_core::{DType, Device, Result, Shape, Tensor, bail};

pub(crate) use self::decode::{Pick, Rows};
pub use self::host::HostKernels;
pub(crate) use self::optimizer::{AdamStep, FactorStep, PARTS};
use crate::memory::trace::{self, Source};

/// The kernels, in Metal's shading language.
pub const SOURCE: &str = concat!(include_str!("layers.metal"), include_str!("optimizer.metal"), include_str!("decode.metal"));

/// Threads of a SIMD group on every GPU of Apple.
const SIMD: usize = 32;

/// Most threads that a kernel gives a row.
const MOST_LANES: usize = 256;

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

/// What a kernel gets as a buffer.
#[derive(Clone, Copy)]
pub(crate) enum Arg<'a> {
    /// It is read.
    In(&'a Tensor),
    /// It is written.
    Out(&'a Tensor),
    /// It is read and written.
    InOut(&'a Tensor),
    /// A part of it is read, which is counted elsewhere, or nothing.
    Table(&'a Tensor),
    /// A part of it is written, which is counted elsewhere, or nothing.
    Part(&'a Tensor),
}

impl<'a> Arg<'a> {
    /// The tensor, and whether it is written: then candle lets nobody touch it meanwhile.
    fn tensor(&self) -> (&'a Tensor, bool) {
        match self {
            Self::In(t) | Self::Table(t) => (t, false),
            Self::Out(t) | Self::InOut(t) | Self::Part(t) => (t, true),
        }
    }
}

/// How many threads a launch has.
#[derive(Clone, Copy)]
pub(crate) enum Size {
    /// One for each place of a grid: width, height, depth.
    Grid([usize; 3]),
    /// A threadgroup of so many for each row.
    Rows(usize, usize),
}

impl Size {
    /// A thread for each number of a matrix.
    pub(crate) fn matrix(rows: usize, width: usize) -> Self {
        Self::Grid([width, rows, 1])
    }

    /// A threadgroup for each of `rows` of this width: whole SIMD groups, few for narrow rows.
    pub(crate) fn rows(rows: usize, width: usize) -> Self {
        Self::Rows(rows, (width / 4).next_multiple_of(SIMD).clamp(SIMD, MOST_LANES))
    }
}

/// A kernel's parameters as it sees them: words of 32 bits.
pub(crate) trait Word {
    fn word(self) -> u32;
}

impl Word for usize {
    fn word(self) -> u32 {
        // What is larger means "without a limit" to every kernel.
        u32::try_from(self).unwrap_or(u32::MAX)
    }
}

impl Word for u32 {
    fn word(self) -> u32 {
        self
    }
}

impl Word for bool {
    fn word(self) -> u32 {
        u32::from(self)
    }
}

impl Word for f32 {
    fn word(self) -> u32 {
        self.to_bits()
    }
}

impl Word for f64 {
    fn word(self) -> u32 {
        (self as f32).to_bits()
    }
}

/// The parameters of a kernel, in the order of its struct.
macro_rules! words {
    ($($value:expr),* $(,)?) => { &[$($crate::ops::metal::Word::word($value)),*] };
}
pub(crate) use words;

fn bytes(t: &Tensor) -> u64 {
    (t.elem_count() * t.dtype().size_in_bytes()) as u64
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
            Self::Nowhere => unsafe {
                Tensor::empty([&dims[..rank - 2], &[m, n]].concat(), DType::F32, a.device())?
            },
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
