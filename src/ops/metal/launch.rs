//! A launch as every queue takes it: its source, its buffers, its size and its parameters.

use candle_core::Tensor;

/// The kernels, in Metal's shading language.
pub const SOURCE: &str =
    concat!(include_str!("layers.metal"), include_str!("optimizer.metal"), include_str!("decode.metal"));

/// Threads of a SIMD group on every GPU of Apple.
pub(super) const SIMD: usize = 32;

/// Most threads that a kernel gives a row.
const MOST_LANES: usize = 256;

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
    pub(super) fn tensor(&self) -> (&'a Tensor, bool) {
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
    ($($value:expr),* $(,)?) => { &[$($crate::ops::metal::launch::Word::word($value)),*] };
}
pub(crate) use words;

/// Size of a tensor's numbers.
pub(super) fn bytes(t: &Tensor) -> u64 {
    (t.elem_count() * t.dtype().size_in_bytes()) as u64
}
