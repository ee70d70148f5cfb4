//! What this machine is, and how it is doing just now. Needs no root.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, ProcessRefreshKind, RefreshKind, System};

use crate::error::{Error, Result};
use crate::measure::devices;
use crate::measure::probe_processor::computing_machine;
use crate::measure::room::Room;
use crate::spec::machine::{Accelerator, Machine};
use crate::units::Bytes;

#[cfg(not(target_os = "macos"))]
#[path = "probe_linux.rs"]
mod linux;
#[cfg(target_os = "macos")]
#[path = "probe_mac.rs"]
mod mac;
#[cfg(any(test, target_os = "macos"))]
#[path = "probe_text.rs"]
mod text;

/// Load, free memory and power state of a machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MachineState {
    /// Mean number of running processes over the last minute.
    pub load_average: Option<f64>,
    /// Memory free for a new process, bytes.
    pub available_bytes: Option<Bytes>,
    /// Swap space in use, bytes.
    pub swap_used_bytes: Option<Bytes>,
    /// Linux: percent of the last ten seconds in which something waited for memory. macOS: 1 normal, 2 warning, 4 critical.
    pub pressure: Option<f64>,
    /// Thermal state on macOS: `nominal`, `fair`, `serious` or `critical`.
    pub thermal: Option<String>,
    /// Whether low power mode is on (macOS).
    pub low_power: Option<bool>,
    /// Whether the machine runs on battery; absent where it has none.
    pub on_battery: Option<bool>,
    /// Name of the process with the most memory beside this one.
    pub largest_other: Option<String>,
    /// Memory of the largest other process, bytes.
    pub largest_other_bytes: Option<Bytes>,
}

/// Share of the memory from which on another process is worth a remark.
const LARGE: f64 = 0.1;

impl MachineState {
    /// A state with no value left out, for the columns of a row.
    pub(crate) fn filled() -> Self {
        Self {
            load_average: Some(0.0),
            available_bytes: Some(Bytes(0)),
            swap_used_bytes: Some(Bytes(0)),
            pressure: Some(0.0),
            thermal: Some("nominal".into()),
            low_power: Some(false),
            on_battery: Some(false),
            largest_other: Some("browser".into()),
            largest_other_bytes: Some(Bytes(0)),
        }
    }

    /// Reasons why figures measured in this state differ from those of a quiet machine of so much memory.
    pub(crate) fn remarks(&self, memory: Bytes) -> Vec<String> {
        let mut all = Vec::new();
        if self.on_battery == Some(true) {
            all.push("it runs on battery".into());
        }
        if self.low_power == Some(true) {
            all.push("low power mode is on".into());
        }
        if let Some(thermal) = self.thermal.as_deref().filter(|t| ["serious", "critical"].contains(t)) {
            all.push(format!("it is hot ({thermal})"));
        }
        if let Some(load) = self.load_average.filter(|load| *load >= 1.0) {
            all.push(format!("other programs are busy (load {load:.1})"));
        }
        if let (Some(name), Some(bytes)) = (&self.largest_other, self.largest_other_bytes)
            && bytes.as_f64() > LARGE * memory.as_f64()
        {
            all.push(format!("{name} uses {bytes} of memory"));
        }
        all
    }
}

/// Current time, seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// Time when the machine was started, seconds since 1970; 0 where the system does not tell.
pub(crate) fn boot_time() -> u64 {
    System::boot_time().unwrap_or_default()
}

/// Name of the operating system, with its version.
pub(crate) fn os() -> String {
    System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.into())
}

/// Current load, free memory and power state of this machine.
pub(crate) fn state() -> MachineState {
    let system = memory().ok();
    let (largest_other, largest_other_bytes) = largest_other().unzip();
    MachineState {
        largest_other,
        largest_other_bytes,
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
    MachineState { pressure: linux::pressure(), on_battery: linux::on_battery(), ..MachineState::default() }
}

fn memory() -> Result<System> {
    System::new_with_specifics(RefreshKind::nothing().with_memory(MemoryRefreshKind::everything())).map_err(|e| {
        Error::Engine { engine: "this machine".into(), reason: format!("its memory size is unknown: {e}") }
    })
}

/// Name and resident memory of the largest process that is not this one.
fn largest_other() -> Option<(String, Bytes)> {
    let asked = ProcessRefreshKind::nothing().with_memory().without_tasks();
    let system = System::new_with_specifics(RefreshKind::nothing().with_processes(asked)).ok()?;
    let own = sysinfo::get_current_pid().ok()?;
    let others = system.processes().values().filter(|p| p.pid() != own);
    others.max_by_key(|p| p.memory()).map(|p| (p.name().to_string_lossy().into_owned(), Bytes(p.memory())))
}

/// Free to a new process: what the system can give, and no more than the limits of this process leave.
fn available(system: &System) -> Bytes {
    let free = unused(system);
    Room::here().left().map_or(free, |left| left.min(free))
}

/// What is available counts the active pages of other programs on macOS. So this is what is left of the memory beside
/// "Memory Used" in Activity Monitor: pages of programs that are not purgeable, wired ones, and the compressor's. The file
/// cache is given back on demand and does not count as taken.
#[cfg(target_os = "macos")]
fn unused(system: &System) -> Bytes {
    Bytes(system.total_memory().saturating_sub(system.used_memory()))
}

/// What the kernel counts as available. Page cache is given back on demand and does not count as taken.
#[cfg(not(target_os = "macos"))]
fn unused(system: &System) -> Bytes {
    Bytes(system.available_memory())
}

/// This machine with the device that was chosen, asked and not looked up, as far as it can tell.
///
/// # Errors
/// Where the system does not tell its memory.
pub fn this_machine() -> Result<Machine> {
    machine_with(devices::chosen())
}

/// This machine with one of its devices: each is a machine of its own, with measurements of its own.
#[cfg(target_os = "macos")]
pub(crate) fn machine_with(accelerator: Accelerator) -> Result<Machine> {
    let system = memory()?;
    let (brand, ghz) = cpu();
    let (memory, available) = (Bytes(system.total_memory()), available(&system));
    Ok(match accelerator {
        Accelerator::Metal => mac::machine(brand, memory, available),
        Accelerator::Cpu => computing_machine((format!("{} CPU", text::chip_name(&brand)), ghz), memory, available),
    })
}

/// This machine, whose processor is the only device.
#[cfg(not(target_os = "macos"))]
pub(crate) fn machine_with(_: Accelerator) -> Result<Machine> {
    let system = memory()?;
    let (room, total) = (Room::here(), Bytes(system.total_memory()));
    // A container is a machine; a job with a limit of its own runs on the machine that it was measured on without.
    let whole = room.outermost().map_or(total, |limit| limit.min(total));
    let memory = room.limit().map_or(whole, |limit| limit.min(whole));
    let machine = computing_machine(cpu(), whole, available(&system));
    Ok(Machine { memory, working_set: memory, max_buffer: memory, ..machine })
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
        assert!(state.largest_other.is_some() && state.largest_other_bytes > Some(Bytes(0)));
        assert!(!os().is_empty() && unix_time() > 1_700_000_000);
    }

    #[test]
    fn what_makes_figures_unlike_is_said() {
        let memory = Bytes::from_gib(8.0);
        assert!(
            MachineState::default().remarks(memory).is_empty() && MachineState::filled().remarks(memory).is_empty()
        );
        let state = MachineState {
            on_battery: Some(true),
            low_power: Some(true),
            thermal: Some("serious".into()),
            load_average: Some(2.5),
            largest_other_bytes: Some(Bytes::from_gib(3.0)),
            ..MachineState::filled()
        };
        let remarks = state.remarks(memory);
        assert_eq!(remarks.len(), 5);
        assert_eq!(remarks[4], "browser uses 3.0 GiB of memory");
    }
}
