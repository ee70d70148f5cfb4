//! What of a processor decides the memory of a matrix product: its caches and the width of its registers.

use serde::{Deserialize, Serialize};

/// A level of data cache, as far as one thread has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Size in bytes; 0 where there is none.
    pub bytes: usize,
    /// Ways of associativity.
    pub ways: usize,
    /// Bytes of a line.
    pub line: usize,
}

/// A processor as the `gemm` crate sees it, which multiplies matrices for our own engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processor {
    /// Levels 1 to 3.
    pub caches: [Cache; 3],
    /// Instruction set of the product.
    pub instructions: Instructions,
}

/// Instruction sets that the product has kernels for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Instructions {
    /// AVX-512.
    Avx512,
    /// AVX2 with fused multiply-add.
    Fma,
    /// Arm's.
    Neon,
    /// None of these.
    Scalar,
}

impl Instructions {
    /// f32 numbers of a register.
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
