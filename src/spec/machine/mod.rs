//! A machine: what a run has to fit into, and how fast it could be.

pub(crate) mod chips;
pub mod processor;

use serde::{Deserialize, Serialize};

use crate::spec::machine::processor::Processor;
use crate::units::{Bytes, Flops};

/// What does the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// An Apple GPU, sharing the machine's memory.
    Metal,
    /// The processor itself (Linux, and Macs without Metal).
    Cpu,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// What to call it: `M2 Pro, 19 GPU cores, 16 GiB`. Also the key under which its measurements are kept.
    pub name: String,
    /// `M2 Pro`, or the processor's name.
    pub chip: String,
    /// GPU cores (Metal) or threads (CPU).
    pub cores: usize,
    /// Does the arithmetic.
    pub accelerator: Accelerator,
    /// Installed memory.
    pub memory: Bytes,
    /// What Metal recommends not to exceed; the installed memory on a CPU.
    pub working_set: Bytes,
    /// Largest single buffer.
    pub max_buffer: Bytes,
    /// Free to a new process now, where it was asked; an allowance for the system is taken off otherwise.
    pub available: Bytes,
    /// Nominal memory bandwidth, bytes/s.
    pub bandwidth: f64,
    /// Nominal f32 rate, FLOP/s.
    pub peak_flops: Flops,
    /// Published measured rate of large f32 matrix products, if any.
    pub measured_flops: Option<Flops>,
    /// fp16 rate of the matrix units that MLX uses and candle does not (M5 and later).
    pub matrix_flops: Option<Flops>,
    /// No fan: sustained speed is below burst speed.
    pub fanless: bool,
    /// Package power under load, W.
    pub power_w: Option<f64>,
    /// What multiplies matrices where the accelerator is the CPU.
    #[serde(default)]
    pub processor: Processor,
    /// Where the figures come from.
    pub source: String,
}
