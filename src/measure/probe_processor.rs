//! This processor, as the `gemm` crate sees it: the caches are asked through the crate itself.

use gemm_common::cache::CACHE_INFO;
use sysinfo::System;

use crate::spec::machine::processor::{Cache, Instructions, Processor};
use crate::spec::machine::{Accelerator, Machine};
use crate::units::{Bytes, Flops, bandwidth_from_gb_s};

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

/// A machine that computes on its processor. Its rates are nominal, to be corrected by a calibration:
///
/// * f32 = cores x clock x lanes x 2 (a fused multiply-add) x units: 64 a cycle with AVX-512, 32 with
///   AVX2, 16 otherwise (NEON with two units, SSE). Two threads share a core's units, so cores are
///   counted where they are known, and never more than the threads that this process may use.
/// * memory = 10 GB/s a thread up to 40 GB/s, which two channels of DDR4 or DDR5 give.
pub(crate) fn computing_machine((chip, ghz): (String, f64), memory: Bytes, available: Bytes) -> Machine {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let cores = System::physical_core_count().unwrap_or(threads).clamp(1, threads);
    Machine {
        name: format!("{chip}, {threads} threads, {:.0} GiB", memory.gib()),
        chip,
        cores: threads,
        accelerator: Accelerator::Cpu,
        memory,
        working_set: memory,
        max_buffer: memory,
        available,
        bandwidth: bandwidth_from_gb_s((10.0 * threads as f64).min(40.0)),
        peak_flops: Flops::from_tera(cores as f64 * ghz * per_cycle() / 1000.0),
        measured_flops: None,
        matrix_flops: None,
        fanless: false,
        power_w: None,
        processor: this_processor(),
        source: "probed; nominal rates from cores, clock and instruction set".into(),
    }
}

/// f32 operations of a core in a cycle.
#[cfg(target_arch = "x86_64")]
fn per_cycle() -> f64 {
    if std::arch::is_x86_feature_detected!("avx512f") {
        64.0
    } else if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma") {
        32.0
    } else {
        16.0
    }
}

/// f32 operations of a core in a cycle.
#[cfg(not(target_arch = "x86_64"))]
fn per_cycle() -> f64 {
    16.0
}
