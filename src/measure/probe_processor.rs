//! This processor, as the `gemm` crate sees it: the caches are asked through the crate itself.

use gemm_common::cache::CACHE_INFO;

use crate::spec::machine::processor::{Cache, Instructions, Processor};

/// The processor that this process runs on.
pub(crate) fn this_processor() -> Processor {
    let level = |i: usize| {
        let info = CACHE_INFO[i];
        Cache { bytes: info.cache_bytes, ways: info.associativity, line: info.cache_line_bytes }
    };
    Processor { caches: [level(0), level(1), level(2)], instructions: instructions() }
}

#[cfg(target_arch = "x86_64")]
fn instructions() -> Instructions {
    if cfg!(feature = "avx512") && std::arch::is_x86_feature_detected!("avx512f") {
        Instructions::Avx512
    } else if std::arch::is_x86_feature_detected!("fma") {
        Instructions::Fma
    } else {
        Instructions::Scalar
    }
}

#[cfg(target_arch = "aarch64")]
fn instructions() -> Instructions {
    Instructions::Neon
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instructions() -> Instructions {
    Instructions::Scalar
}
