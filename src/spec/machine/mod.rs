//! A machine: what a run has to fit into, and how fast it could be.

pub(crate) mod chips;
pub mod processor;

use serde::{Deserialize, Serialize};

use crate::spec::machine::processor::Processor;
use crate::units::{Bytes, Flops};

/// Device that does the arithmetic of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// An Apple GPU, sharing the machine's memory.
    Metal,
    /// The processor itself (Linux, and Macs without Metal).
    Cpu,
}

impl Accelerator {
    /// Every device.
    pub(crate) const ALL: [Self; 2] = [Self::Cpu, Self::Metal];

    /// Its name on the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Metal => "metal",
        }
    }
}

/// A machine that a run is planned for: its memory limits and its speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// What to call it: `M2 Pro, 19 GPU cores, 16 GiB`. Also the key under which its measurements are kept.
    pub name: String,
    /// Name of the chip, such as `M2 Pro`, or of the processor on a CPU machine.
    pub chip: String,
    /// Number of GPU cores (Metal) or of threads (CPU).
    pub cores: usize,
    /// Device that does the arithmetic.
    pub accelerator: Accelerator,
    /// Installed memory, bytes.
    pub memory: Bytes,
    /// Working set that Metal recommends not to exceed, bytes; the installed memory on a CPU.
    pub working_set: Bytes,
    /// Size of the largest single buffer that can be allocated, bytes.
    pub max_buffer: Bytes,
    /// Memory free for a new process, bytes: as measured on this machine, else the installed memory less an allowance
    /// for the system.
    pub available: Bytes,
    /// Nominal memory bandwidth, bytes/s.
    pub bandwidth: f64,
    /// Nominal f32 rate, FLOP/s.
    pub peak_flops: Flops,
    /// Published measured rate of large f32 matrix products, if any.
    pub measured_flops: Option<Flops>,
    /// fp16 rate of the matrix units that MLX uses and candle does not (M5 and later).
    pub matrix_flops: Option<Flops>,
    /// Whether the machine has no fan, so that its sustained speed is below its burst speed.
    pub fanless: bool,
    /// Package power under load, W.
    pub power_w: Option<f64>,
    /// Caches and instruction set that matrix products use where the accelerator is the CPU.
    #[serde(default)]
    pub processor: Processor,
    /// Source of these figures.
    pub source: String,
}
