//! What this machine is, and how it is doing just now. Needs no root.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use crate::error::{Error, Result};
#[cfg(not(target_os = "macos"))]
use crate::spec::machine::Accelerator;
use crate::spec::machine::Machine;
use crate::units::Bytes;
#[cfg(not(target_os = "macos"))]
use crate::units::{Flops, bandwidth_from_gb_s};

#[cfg(target_os = "macos")]
#[path = "probe_mac.rs"]
mod mac;
#[cfg(any(test, target_os = "macos"))]
#[path = "probe_text.rs"]
mod text;

/// What else the machine has to do, and in what shape it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineState {
    /// Mean number of running processes over the last minute.
    pub load_average: Option<f64>,
    /// Free to a new process.
    pub available_bytes: Option<Bytes>,
    /// Swap in use.
    pub swap_used_bytes: Option<Bytes>,
    /// Linux: percent of the last ten seconds in which something waited for memory. macOS: 1 normal, 2 warning, 4 critical.
    pub pressure: Option<f64>,
    /// macOS: `nominal`, `fair`, `serious` or `critical`.
    pub thermal: Option<String>,
    /// Low power mode.
    pub low_power: Option<bool>,
}

impl MachineState {
    /// One with nothing left out, for the columns of a row.
    pub(crate) fn filled() -> Self {
        Self {
            load_average: Some(0.0),
            available_bytes: Some(Bytes(0)),
            swap_used_bytes: Some(Bytes(0)),
            pressure: Some(0.0),
            thermal: Some("nominal".into()),
            low_power: Some(false),
        }
    }
}

/// Seconds since 1970.
pub fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The operating system, with its version.
pub fn os() -> String {
    System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.into())
}

/// How this machine is doing.
pub fn state() -> MachineState {
    let system = memory().ok();
    MachineState {
        load_average: System::load_average().ok().map(|load| load.one),
        available_bytes: system.as_ref().map(available),
        swap_used_bytes: system.as_ref().map(|s| Bytes(s.used_swap())),
        ..platform_state()
    }
}

#[cfg(target_os = "macos")]
fn platform_state() -> MachineState {
    mac::state()
}

#[cfg(not(target_os = "macos"))]
fn platform_state() -> MachineState {
    let text = std::fs::read_to_string("/proc/pressure/memory").unwrap_or_default();
    MachineState { pressure: parse_pressure(&text), ..MachineState::default() }
}

/// `avg10` of the line `some` of /proc/pressure/memory, in percent.
#[cfg(not(target_os = "macos"))]
fn parse_pressure(text: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("some"))?;
    line.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}

fn memory() -> Result<System> {
    System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything())).map_err(|e| {
        Error::Engine { engine: "this machine".into(), reason: format!("it does not tell its memory: {e}") }
    })
}

/// Free to a new process: what the system counts as available, and in a container no more than its limit
/// leaves. The container's page cache is given back on demand and so does not count as taken.
fn available(system: &System) -> Bytes {
    let free = system.available_memory();
    let left = system.cgroup_limits().map_or(free, |c| c.total_memory.saturating_sub(c.rss));
    Bytes(free.min(left))
}

/// This machine, asked and not looked up, as far as it can tell.
#[cfg(target_os = "macos")]
pub fn this_machine() -> Result<Machine> {
    let system = memory()?;
    mac::machine(cpu().0, Bytes(system.total_memory()), available(&system))
}

/// This machine, asked and not looked up, as far as it can tell.
///
/// # Errors
/// Where the system does not tell its memory.
#[cfg(not(target_os = "macos"))]
pub fn this_machine() -> Result<Machine> {
    let system = memory()?;
    let limit = system.cgroup_limits().map_or(u64::MAX, |c| c.total_memory);
    let memory = Bytes(system.total_memory().min(limit));
    let (chip, ghz) = cpu();
    Ok(processor(chip, ghz, memory, available(&system)))
}

/// Name and clock in GHz of the processor.
fn cpu() -> (String, f64) {
    let asked = RefreshKind::nothing().with_cpu(CpuRefreshKind::everything());
    let system = System::new_with_specifics(asked).ok();
    let first = system.as_ref().and_then(|s| s.cpus().first());
    let name = first.map(|cpu| cpu.brand().trim().to_owned()).filter(|name| !name.is_empty());
    // Containers and some ARM machines do not tell their clock.
    let ghz = first.map(|cpu| cpu.frequency() as f64 / 1000.0).filter(|&ghz| ghz > 0.1).unwrap_or(2.5);
    (name.unwrap_or_else(|| std::env::consts::ARCH.into()), ghz)
}

/// A machine that computes on its processor. Its rates are nominal, to be corrected by a calibration:
///
/// * f32 = cores x clock x lanes x 2 (a fused multiply-add) x units: 64 a cycle with AVX-512, 32 with
///   AVX2, 16 otherwise (NEON with two units, SSE). Two threads share a core's units, so cores are
///   counted where they are known, and never more than the threads that this process may use.
/// * memory = 10 GB/s a thread up to 40 GB/s, which two channels of DDR4 or DDR5 give.
#[cfg(not(target_os = "macos"))]
fn processor(chip: String, ghz: f64, memory: Bytes, available: Bytes) -> Machine {
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
        source: "asked; nominal rates from cores, clock and instruction set".into(),
    }
}

/// f32 operations of a core in a cycle.
#[cfg(all(not(target_os = "macos"), target_arch = "x86_64"))]
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
#[cfg(all(not(target_os = "macos"), not(target_arch = "x86_64")))]
fn per_cycle() -> f64 {
    16.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_can_be_asked() {
        let machine = this_machine().unwrap();
        assert!(machine.memory > machine.available && machine.available > Bytes(0), "{machine:?}");
        assert!(machine.cores > 0 && machine.peak_flops.giga() > 1.0 && !machine.chip.is_empty());
        let state = state();
        assert!(state.available_bytes > Some(Bytes(0)) && state.load_average.is_some());
        assert!(!os().is_empty() && unix_time() > 1_700_000_000);
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn pressure_is_read_from_recorded_text() {
        let text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=3\nfull avg10=0.20 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(parse_pressure(text), Some(1.5));
        for broken in ["", "some", "some avg10=x", "full avg10=1"] {
            assert_eq!(parse_pressure(broken), None);
        }
    }
}
