//! Asking Linux.

use sysinfo::System;

use crate::measure::probe_processor::this_processor;
use crate::spec::machine::{Accelerator, Machine};
use crate::units::{Bytes, Flops, bandwidth_from_gb_s};

/// Percent of the last ten seconds in which something waited for memory.
pub(crate) fn pressure() -> Option<f64> {
    parse_pressure(&std::fs::read_to_string("/proc/pressure/memory").ok()?)
}

/// Whether no mains supply is on line; `None` where the machine has no battery.
pub(crate) fn on_battery() -> Option<bool> {
    let supplies = crate::store::folders_in("/sys/class/power_supply".as_ref()).ok()?;
    let read = |file: &str, supply: &std::path::PathBuf| std::fs::read_to_string(supply.join(file)).ok();
    let of =
        |kind: &str| supplies.iter().filter(|s| read("type", s).is_some_and(|t| t.trim() == kind)).collect::<Vec<_>>();
    if of("Battery").is_empty() {
        return None;
    }
    Some(!of("Mains").into_iter().any(|s| read("online", s).is_some_and(|online| online.trim() == "1")))
}

/// `avg10` of the line `some` of /proc/pressure/memory, in percent.
fn parse_pressure(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some"))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

/// A machine that computes on its processor. Its rates are nominal, to be corrected by a calibration:
///
/// * f32 = cores x clock x lanes x 2 (a fused multiply-add) x units: 64 a cycle with AVX-512, 32 with
///   AVX2, 16 otherwise (NEON with two units, SSE). Two threads share a core's units, so cores are
///   counted where they are known, and never more than the threads that this process may use.
/// * memory = 10 GB/s a thread up to 40 GB/s, which two channels of DDR4 or DDR5 give.
pub(crate) fn processor((chip, ghz): (String, f64), memory: Bytes, available: Bytes) -> Machine {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_read_from_recorded_text() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=3\nfull avg10=0.20 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(parse_pressure(text), Some(1.5));
        for broken in ["", "some", "some avg10=x", "full avg10=1"] {
            assert_eq!(parse_pressure(broken), None);
        }
    }
}
