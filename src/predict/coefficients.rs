//! The few physical numbers that turn costs into seconds and bytes, and what is believed of them beforehand.

use serde::{Deserialize, Serialize};

use crate::spec::machine::{Accelerator, Machine};
use crate::spec::run::Engine;
use crate::stats::Belief;
use crate::units::Bytes;

/// A positive number and how uncertain it is: its logarithm is normal with standard deviation `relative_sd`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coefficient {
    /// Most likely value.
    pub value: f64,
    /// Standard deviation of its logarithm; nearly the relative error while small.
    pub relative_sd: f64,
    /// Where it comes from.
    pub source: String,
}

impl Coefficient {
    fn new(value: f64, relative_sd: f64, source: &str) -> Self {
        Self { value, relative_sd, source: source.into() }
    }
}

/// How many there are.
pub(crate) const COUNT: usize = 6;

/// All of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Coefficients {
    /// Share of the nominal arithmetic rate that matrix products reach.
    pub compute_efficiency: Coefficient,
    /// Share of the nominal bandwidth that elementwise work and weight reading reach.
    pub bandwidth_efficiency: Coefficient,
    /// Seconds of one kernel launch that nothing hides.
    pub launch_overhead: Coefficient,
    /// Process memory beside its tensors, bytes.
    pub fixed_memory: Coefficient,
    /// What the allocator makes of a byte of transient tensors.
    pub allocation_factor: Coefficient,
    /// What the process holds beside each byte of transient tensors: freed pieces that nothing fits into again.
    pub fragmentation: Coefficient,
}

/// How far single measurements lie from the formulas once the coefficients are known, before any was made.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Of the logarithm of a step's time.
    pub time: f64,
    /// Of the logarithm of the peak of the tensors.
    pub peak: f64,
    /// Of the logarithm of the process's memory.
    pub footprint: f64,
}

/// Sustained speed of a Mac without a fan as a share of its burst speed, 0.6 to 0.9 in reports of MacBook Airs
/// (dev.to/tinyalg: 2.78 falling to 2.50 TFLOPS within minutes; field FR206: 0.32 to 0.15 it/s).
const FANLESS: f64 = 0.8;
pub(crate) const FANLESS_SD: f64 = 0.15;

impl Coefficients {
    /// From published figures alone.
    pub(crate) fn prior(machine: &Machine, engine: Engine) -> Self {
        let mut prior = match (engine, machine.accelerator) {
            (Engine::Candle, Accelerator::Metal) => Self::candle_metal(machine),
            (Engine::Candle, Accelerator::Cpu) => Self::candle_cpu(),
            (Engine::MlxLm, _) => Self::mlx(),
        };
        if machine.fanless {
            let c = &mut prior.compute_efficiency;
            c.value *= FANLESS;
            c.relative_sd = c.relative_sd.hypot(FANLESS_SD);
            c.source += "; x0.8 without a fan (reports of MacBook Airs)";
        }
        prior
    }

    fn candle_metal(machine: &Machine) -> Self {
        // candle's products are a port of MLX's: a published rate of large products, or 0.73 of the nominal rate
        // (llama.cpp's prefill on M1 to M4), and four fifths of it at the shapes of a training step.
        let large = machine.measured_flops.map_or(0.73, |m| m.0 / machine.peak_flops.0);
        Self {
            compute_efficiency: Coefficient::new(
                0.8 * large,
                0.25,
                "0.8 of published large products (llama.cpp#4167); +-30 % is what published runs support",
            ),
            bandwidth_efficiency: Coefficient::new(0.6, 0.35, "copies reach 0.8 of nominal; single operations less"),
            launch_overhead: Coefficient::new(8e-6, 0.7, "assumed; one Metal dispatch through candle"),
            fixed_memory: Coefficient::new(
                Bytes::from_mib(320).as_f64(),
                0.5,
                "RayMol#328: 300 to 350 MB beside what Metal reports",
            ),
            allocation_factor: Coefficient::new(
                1.0,
                0.1,
                "a replay of candle's allocator, which the formula equals to 2 %; no Mac has been seen yet",
            ),
            fragmentation: Coefficient::new(0.01, 1.0, "assumed; Metal's own count holds the rounded buffers"),
        }
    }

    fn candle_cpu() -> Self {
        Self {
            compute_efficiency: Coefficient::new(
                0.9,
                0.5,
                "assumed: products reach 0.8 of the real rate, and clocks are up to 1.6 times what is told",
            ),
            bandwidth_efficiency: Coefficient::new(0.8, 0.5, "one host: much of a small model stays in its cache"),
            launch_overhead: Coefficient::new(3e-6, 0.7, "one host: an operation, its allocation, waking a thread"),
            fixed_memory: Coefficient::new(
                Bytes::from_mib(18).as_f64(),
                0.3,
                "two AMD hosts: program, tokenizer and data; 18 to 22 MiB with the bundled model",
            ),
            allocation_factor: Coefficient::new(1.0, 0.01, "the formula mirrors the trainer; allocations are exact"),
            fragmentation: Coefficient::new(0.05, 0.5, "one host: 0.02 to 0.08 on runs of 8 MB to 5 GB"),
        }
    }

    fn mlx() -> Self {
        Self {
            // How far the means of sources lie apart, of speeds and of peaks, by the rule of `accuracy::spread`;
            // tests/mlx_prior.rs holds both, and the noise below, to the rows.
            compute_efficiency: Coefficient::new(
                0.55,
                0.175,
                "field: means of three sources of published runs, apart by that much",
            ),
            bandwidth_efficiency: Coefficient::new(0.7, 0.3, "copies reach 0.8 of nominal"),
            launch_overhead: Coefficient::new(3e-6, 0.7, "assumed; compiled steps launch less"),
            fixed_memory: Coefficient::new(
                Bytes::from_mib(700).as_f64(),
                0.5,
                "assumed; Python, mlx and its cache, which is cleared every step since 0.31.2",
            ),
            allocation_factor: Coefficient::new(
                1.0,
                0.035,
                "field: means of two sources of published runs, apart by that much",
            ),
            fragmentation: Coefficient::new(0.01, 1.0, "assumed; mlx's cache is cleared every step"),
        }
    }

    /// All of them, with their names.
    pub(crate) fn list(&self) -> [(&'static str, &Coefficient); COUNT] {
        [
            ("compute efficiency", &self.compute_efficiency),
            ("bandwidth efficiency", &self.bandwidth_efficiency),
            ("launch overhead", &self.launch_overhead),
            ("fixed memory", &self.fixed_memory),
            ("allocation factor", &self.allocation_factor),
            ("fragmentation", &self.fragmentation),
        ]
    }

    /// The same, to be changed.
    pub(crate) fn list_mut(&mut self) -> [&mut Coefficient; COUNT] {
        [
            &mut self.compute_efficiency,
            &mut self.bandwidth_efficiency,
            &mut self.launch_overhead,
            &mut self.fixed_memory,
            &mut self.allocation_factor,
            &mut self.fragmentation,
        ]
    }

    /// As independent normals of the logarithms, in the order of the fields.
    pub(super) fn belief(&self) -> Belief {
        let all = self.list();
        Belief::independent(&all.map(|(_, c)| c.value.ln()), &all.map(|(_, c)| c.relative_sd))
    }

    /// The values of a belief, with `source` where the uncertainty shrank.
    pub(super) fn set(&mut self, belief: &Belief, source: &str) {
        for (i, c) in self.list_mut().into_iter().enumerate() {
            let sd = belief.covariance[(i, i)].sqrt();
            // A tenth less uncertainty is a lesson; anything smaller is still the prior speaking.
            if sd < 0.9 * c.relative_sd {
                c.source = source.into();
            }
            *c = Coefficient { value: belief.mean[i].exp(), relative_sd: sd, source: std::mem::take(&mut c.source) };
        }
    }
}

impl Noise {
    /// Before any measurement. Of mlx-lm: how far published runs of one source lie from their mean, whatever their
    /// models and lengths (`accuracy::spread`: 11 degrees of freedom for speeds, 16 for peaks); a footprint was never
    /// published. Of our own engine: assumed.
    pub(crate) fn prior(engine: Engine) -> Self {
        match engine {
            Engine::Candle => Self { time: 0.08, peak: 0.02, footprint: 0.04 },
            Engine::MlxLm => Self { time: 0.156, peak: 0.048, footprint: 0.08 },
        }
    }
}
