//! A trainer that trains nothing: it plays a machine whose true speed and memory are known.
//!
//! Everything after the trainer (observing, calibrating, guarding, resuming, reporting) can so be tested
//! against the truth, in no time. Times are told, not slept:
//! a micro-batch of `n` padded tokens takes
//! `(n * flops_per_token + n * length * flops_per_token_pair) / flops_per_s + bytes_per_micro_batch / bytes_per_s + overhead_s`
//! and holds `fixed_memory + n * memory_per_token`.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::spec::record::{Job, Outcome, Step};
use crate::spec::run::Engine;
use crate::store;
use crate::trainer::{Flow, TrainEvent, Trainer};
use crate::units::{Bytes, Seconds};

/// Speed, memory and mishaps of a simulated run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Arithmetic of one padded token, FLOP.
    pub flops_per_token: f64,
    /// Arithmetic of one pair of a token and a token it may look at, FLOP.
    pub flops_per_token_pair: f64,
    /// Rate of the arithmetic, FLOP/s.
    pub flops_per_s: f64,
    /// Bytes moved for a micro-batch whatever its size (the weights).
    pub bytes_per_micro_batch: f64,
    /// Rate of memory traffic, bytes/s.
    pub bytes_per_s: f64,
    /// Time of a micro-batch that no work explains, s.
    pub overhead_s: f64,
    /// Memory of the tensors that are always alive, bytes.
    pub fixed_memory: Bytes,
    /// Memory of the tensors of one padded token of a micro-batch, bytes.
    pub memory_per_token: f64,
    /// Memory that the process holds beside its tensors, bytes.
    pub process_memory: Bytes,
    /// Relative standard deviation of the time of a step.
    pub noise: f64,
    /// Seed of the noise.
    pub noise_seed: u64,
    /// Factor by which the first step of a process takes longer.
    pub first_step: f64,
    /// Slowdown of a machine that gets warm, if any.
    pub heat: Option<Heat>,
    /// Footprint above which the run ends for want of memory, if any, bytes.
    pub memory_limit: Option<Bytes>,
    /// Failure of the run, if any, and the step in which it happens.
    pub mishap: Option<Mishap>,
    /// Token lengths of the examples, drawn from at random.
    pub lengths: Vec<u32>,
    /// Number of trainable parameters that the trainer reports.
    pub trainable_params: u64,
    /// Number of all parameters that the trainer reports, adapters included.
    pub total_params: u64,
}

/// A machine that becomes slower once it is warm.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Heat {
    /// Simulated time after which the machine is warm.
    pub after: Seconds,
    /// Factor by which steps take longer from then on.
    pub slowdown: f64,
}

/// A failure of the run, and the optimizer step of it (counted from 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mishap {
    /// Memory runs out in this step.
    OutOfMemory(usize),
    /// The run makes no progress from this step on.
    Hang(usize),
    /// The process dies in this step.
    Crash(usize),
    /// The trainer reports this step with impossible figures: a loss that is not a number, and no time taken.
    Garbage(usize),
    /// The loss of this step is not a number, and the trainer ends with an error.
    Diverge(usize),
    /// Metal has no memory for a command of this step.
    GpuMemory(usize),
    /// The GPU watchdog ends a command of this step.
    Watchdog(usize),
}

impl Default for Script {
    /// A small model on a laptop's processor.
    fn default() -> Self {
        Self {
            flops_per_token: 6e8,
            flops_per_token_pair: 1e5,
            flops_per_s: 1e11,
            bytes_per_micro_batch: 6e8,
            bytes_per_s: 2e10,
            overhead_s: 5e-3,
            fixed_memory: Bytes::from_mib(400),
            memory_per_token: 2e5,
            process_memory: Bytes::from_mib(30),
            noise: 0.01,
            noise_seed: 0,
            first_step: 1.5,
            heat: None,
            memory_limit: None,
            mishap: None,
            lengths: vec![64, 100, 180, 256],
            trainable_params: 1_000_000,
            total_params: 135_000_000,
        }
    }
}

/// A trainer that trains nothing and plays a [`Script`].
#[derive(Clone, Debug, PartialEq)]
pub struct ScriptedTrainer {
    script: Script,
    engine: Engine,
}

/// Step and simulated time at which a run stands; also its checkpoint.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Progress {
    step: usize,
    clock: f64,
}

impl ScriptedTrainer {
    /// A trainer that plays `script` in the place of `engine`.
    pub fn new(script: Script, engine: Engine) -> Self {
        Self { script, engine }
    }

    /// True peak footprint of a job, bytes: its padded micro-batch, beside what is fixed.
    pub(crate) fn true_footprint(&self, micro_batch_tokens: u64) -> Bytes {
        self.true_peak(micro_batch_tokens) + self.script.process_memory
    }

    /// True peak of tensor allocations of a job, bytes.
    pub(crate) fn true_peak(&self, micro_batch_tokens: u64) -> Bytes {
        self.script.fixed_memory + Bytes::from_f64(self.script.memory_per_token * micro_batch_tokens as f64)
    }

    /// True time of a micro-batch of `rows` rows padded to `length`, without noise.
    pub fn true_micro_batch_time(&self, rows: u64, length: u64) -> Seconds {
        let s = &self.script;
        let tokens = (rows * length) as f64;
        let flops = tokens * (s.flops_per_token + length as f64 * s.flops_per_token_pair);
        Seconds(flops / s.flops_per_s + s.bytes_per_micro_batch / s.bytes_per_s + s.overhead_s)
    }

    /// One optimizer step; the same for the same seeds and number, whenever it is taken.
    fn step(&self, job: &Job, number: usize, clock: f64) -> Step {
        let (config, s) = (&job.config, &self.script);
        let (recipe, rows) = (&config.recipe, config.execution.batch_size);
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed ^ s.noise_seed.rotate_left(32));
        rng.set_stream(number as u64);
        let (mut time, mut tokens, mut padded, mut tallest) = (0.0, 0, 0, 0);
        for _ in 0..config.accumulation() {
            let draw = |_| s.lengths[rng.random_range(0..s.lengths.len())].min(recipe.max_seq_length as u32);
            let lengths: Vec<u32> = (0..rows).map(draw).collect();
            let longest = if job.pad_to_max { recipe.max_seq_length as u64 } else { widest(&lengths) };
            tokens += lengths.iter().map(|&n| u64::from(n)).sum::<u64>();
            padded += rows as u64 * longest;
            tallest = tallest.max(rows as u64 * longest);
            time += self.true_micro_batch_time(rows as u64, longest).0;
        }
        time *= (1.0 + s.noise * normal(&mut rng)).max(0.1);
        if let Some(heat) = s.heat.filter(|h| clock >= h.after.0) {
            time *= heat.slowdown;
        }
        Step {
            step: number,
            loss: 1.5 + 3.0 * (-(number as f64) / 50.0).exp() + 0.02 * normal(&mut rng),
            learning_rate: recipe.learning_rate,
            grad_norm: 1.0,
            padded_tokens: padded,
            tokens,
            step_time_s: time,
            tokens_per_s: tokens as f64 / time,
            allocated_peak_bytes: self.true_peak(tallest),
            footprint_bytes: self.true_footprint(tallest),
        }
    }

    fn mishap(&self, step: usize) -> Option<Mishap> {
        use Mishap::{Crash, Diverge, Garbage, GpuMemory, Hang, OutOfMemory, Watchdog};
        self.script.mishap.filter(|m| {
            let (OutOfMemory(at) | Hang(at) | Crash(at) | Garbage(at) | Diverge(at) | GpuMemory(at) | Watchdog(at)) =
                *m;
            at == step
        })
    }

    /// The end that a mishap brings, if it brings one.
    fn ends(&self, mishap: Option<Mishap>, at_step: usize) -> Result<Option<Outcome>> {
        Ok(match mishap {
            Some(Mishap::OutOfMemory(_)) => Some(Outcome::OutOfMemory { at_step }),
            Some(Mishap::Hang(_)) => Some(Outcome::TimedOut { at_step }),
            Some(Mishap::Crash(_)) => Some(Outcome::Crashed { at_step, reason: "as scripted".into() }),
            Some(Mishap::Diverge(step)) => {
                return Err(Error::NotFinite { what: "loss", step, value: f64::NAN });
            }
            Some(Mishap::GpuMemory(_)) => {
                return Err(metal("Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"));
            }
            Some(Mishap::Watchdog(_)) => {
                return Err(metal("Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)"));
            }
            Some(Mishap::Garbage(_)) | None => None,
        })
    }
}

/// What candle makes of an error of Metal's.
fn metal(said: &str) -> Error {
    candle_core::Error::msg(format!("Metal error Command buffer had following error: {said}")).into()
}

fn widest(lengths: &[u32]) -> u64 {
    u64::from(lengths.iter().copied().max().unwrap_or(0))
}

/// A standard normal draw (Box and Muller).
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let u: f64 = 1.0 - rng.random::<f64>();
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

/// Writes the progress, if the job has a folder, and says so.
fn save(job: &Job, progress: Progress, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<()> {
    let Some(out) = &job.out else { return Ok(()) };
    let path = out.join("checkpoints/scripted.json");
    store::save_json(&path, &progress)?;
    on(&TrainEvent::Saved { path });
    Ok(())
}

impl Trainer for ScriptedTrainer {
    fn engine(&self) -> Engine {
        self.engine
    }

    fn version(&self) -> String {
        "scripted".into()
    }

    fn train(&mut self, job: &Job, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<Outcome> {
        if self.script.lengths.is_empty() {
            return Err(Error::invalid("lengths", "empty", "the token lengths of the examples"));
        }
        let mut progress = match &job.out {
            Some(out) if job.resume => store::load_json(&out.join("checkpoints/scripted.json"))?,
            _ => Progress::default(),
        };
        let (first, total_steps) = (progress.step + 1, job.config.steps(self.script.lengths.len()));
        let (trainable_params, total_params) = (self.script.trainable_params, self.script.total_params);
        let load_time = Seconds(0.5);
        let done_steps = progress.step;
        let ready = TrainEvent::Ready { trainable_params, total_params, total_steps, done_steps, load_time };
        if on(&ready) != Flow::Continue {
            return Ok(Outcome::Stopped { at_step: done_steps });
        }
        while progress.step < total_steps {
            let number = progress.step + 1;
            let mishap = self.mishap(number);
            if let Some(outcome) = self.ends(mishap, progress.step)? {
                return Ok(outcome);
            }
            let mut step = self.step(job, number, progress.clock);
            if self.script.memory_limit.is_some_and(|limit| step.footprint_bytes > limit) {
                return Ok(Outcome::OutOfMemory { at_step: progress.step });
            }
            if number == first {
                step.step_time_s *= self.script.first_step;
                step.tokens_per_s /= self.script.first_step;
            }
            progress = Progress { step: number, clock: progress.clock + step.step_time_s };
            if matches!(mishap, Some(Mishap::Garbage(_))) {
                (step.loss, step.step_time_s, step.tokens_per_s) = (f64::NAN, 0.0, f64::INFINITY);
            }
            let flow = on(&TrainEvent::Step(step));
            if flow == Flow::Abort {
                return Ok(Outcome::Stopped { at_step: number });
            }
            let stop = flow == Flow::Stop || job.stop_after == Some(number);
            if number == total_steps || stop || number.is_multiple_of(job.save_every.max(1)) {
                save(job, progress, on)?;
            }
            if stop && number < total_steps {
                return Ok(Outcome::Stopped { at_step: number });
            }
        }
        Ok(Outcome::Finished)
    }
}

#[cfg(test)]
#[path = "scripted_tests.rs"]
mod tests;
