//! Asking a Mac.

use std::process::Command;

use objc2_foundation::{NSProcessInfo, NSProcessInfoThermalState};

use crate::measure::probe::{MachineState, text};
use crate::measure::probe_processor::this_processor;
use crate::ops::device::first_gpu;
use crate::spec::machine::{Accelerator, Machine};
use crate::units::{Bytes, Flops, bandwidth_from_gb_s};

/// The answer of a program of the system, named by its whole path: a folder in PATH is anybody's.
fn ask(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|o| o.status.success())?;
    String::from_utf8(output.stdout).ok()
}

/// Memory pressure, thermal state and power mode, as macOS tells them.
pub(crate) fn state() -> MachineState {
    let level = ask("/usr/sbin/sysctl", &["-n", "kern.memorystatus_vm_pressure_level"]);
    let process = NSProcessInfo::processInfo();
    let thermal = match process.thermalState() {
        NSProcessInfoThermalState::Nominal => "nominal",
        NSProcessInfoThermalState::Fair => "fair",
        NSProcessInfoThermalState::Serious => "serious",
        NSProcessInfoThermalState::Critical => "critical",
        _ => "unknown",
    };
    MachineState {
        pressure: level.and_then(|level| level.trim().parse().ok()),
        thermal: Some(thermal.into()),
        low_power: Some(process.isLowPowerModeEnabled()),
        on_battery: ask("/usr/bin/pmset", &["-g", "batt"]).and_then(|out| text::on_battery(&out)),
        ..MachineState::default()
    }
}

/// This Mac with its GPU: the table's figures for its chip, corrected by what the system and Metal say.
pub(crate) fn machine(brand: String, memory: Bytes, available: Bytes) -> Machine {
    let chip = text::chip_name(&brand);
    let cores = ask("/usr/sbin/ioreg", &["-rc", "AGXAccelerator", "-d1"]).and_then(|out| text::gpu_cores(&out));
    let known = Machine::named(chip, Some(memory), cores).ok();
    let mut machine = known.unwrap_or_else(|| unknown(chip, cores.unwrap_or(8), memory));
    machine.available = available;
    if let Some(gpu) = first_gpu() {
        let asked = |bytes: u64, known: Bytes| if bytes > 0 { Bytes(bytes) } else { known };
        machine.working_set = asked(gpu.working_set, machine.working_set);
        machine.max_buffer = asked(gpu.max_buffer, machine.max_buffer);
    }
    machine
}

/// A chip newer than the table: rates of a core and shares of the memory as on the newest that is in it (M5).
fn unknown(chip: &str, cores: usize, memory: Bytes) -> Machine {
    Machine {
        name: format!("{chip}, {cores} GPU cores, {:.0} GiB", memory.gib()),
        chip: chip.into(),
        cores,
        accelerator: Accelerator::Metal,
        memory,
        working_set: memory.scale(2.0 / 3.0),
        max_buffer: memory.scale(0.5),
        available: memory,
        bandwidth: bandwidth_from_gb_s(14.0 * cores as f64),
        peak_flops: Flops::from_tera(0.4 * cores as f64),
        measured_flops: None,
        matrix_flops: None,
        fanless: false,
        power_w: None,
        processor: this_processor(),
        source: "not in the table; rates of a GPU core as on an M5".into(),
    }
}
