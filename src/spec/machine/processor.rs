//! What of a processor decides the memory of a matrix product: its caches and the width of its registers.

use serde::{Deserialize, Serialize};

/// A level of data cache, with the share of it that one thread has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Size in bytes; 0 where the processor lacks this level.
    pub bytes: usize,
    /// Associativity: the number of ways of a set.
    pub ways: usize,
    /// Length of a cache line, bytes.
    pub line: usize,
}

/// A processor as the `gemm` crate sees it, which multiplies matrices for the candle engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processor {
    /// Data caches of levels 1 to 3, in this order.
    pub caches: [Cache; 3],
    /// Instruction set that matrix products are computed with.
    pub instructions: Instructions,
}

/// Instruction sets that the `gemm` crate has kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Instructions {
    /// AVX-512 (x86-64), 16 f32 numbers a register.
    Avx512,
    /// AVX2 with fused multiply-add (x86-64), 8 f32 numbers a register.
    Fma,
    /// NEON (Arm), 4 f32 numbers a register.
    Neon,
    /// No vector instructions: one f32 number at a time.
    Scalar,
}

impl Instructions {
    /// Number of f32 values that a vector register holds.
    pub(crate) fn lanes(self) -> usize {
        match self {
            Self::Avx512 => 16,
            Self::Fma => 8,
            Self::Neon => 4,
            Self::Scalar => 1,
        }
    }
}

impl Default for Processor {
    /// A server with AVX-512 and 1 MiB of L2 cache a core: for machines whose processor was not asked. On a Mac it does
    /// not matter, as candle multiplies on the GPU there.
    fn default() -> Self {
        let cache = |bytes, ways| Cache { bytes, ways, line: 64 };
        Self {
            caches: [cache(32 << 10, 8), cache(1 << 20, 16), cache(32 << 20, 16)],
            instructions: Instructions::Avx512,
        }
    }
}
