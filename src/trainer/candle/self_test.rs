//! The trainer on this machine's device beside the same training on the CPU: what a Mac that has never been seen does.

use std::time::Instant;

use candle_core::{Device, Tensor};
use serde::Serialize;

use crate::checkpoint::source::ModelSource;
use crate::checkpoint::text::Text;
use crate::data::batches::{Batches, MicroBatch};
use crate::data::examples::Rows;
use crate::error::Result;
use crate::memory;
use crate::ops::device::{autoreleased, device};
use crate::ops::{Backend, metal};
use crate::spec::model::ModelSpec;
use crate::spec::run::{BUILTIN, Optimizer as Rule, RunConfig, Weights};
use crate::trainer::candle::nn::adapter;
use crate::trainer::candle::nn::decoder::Decoder;
use crate::trainer::candle::optim::{self, Optimizer};
use crate::units::{Bytes, Seconds};

/// Optimizer steps of each check.
const STEPS: usize = 3;

/// Losses that differ by a smaller share are the same, as far as two processors go.
const SAME: f64 = 1e-3;

/// One configuration, trained on both.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Check {
    /// What is peculiar to it, such as the weight format.
    pub name: String,
    /// Losses of the steps on the device, and on the CPU.
    pub losses: [Vec<f64>; 2],
    /// Largest difference of the losses, as a share of them.
    pub losses_apart: f64,
    /// Norms of the gradients, likewise.
    pub grad_norms: [Vec<f64>; 2],
    /// Largest difference of the trained adapters from each other.
    pub adapters_apart: f64,
    /// Time of the last step, likewise.
    pub step_time_s: [Seconds; 2],
    /// Largest allocation that Metal told of before a wait.
    pub allocated_peak_bytes: Option<Bytes>,
    /// Whether losses and norms are the same.
    pub agrees: bool,
}

/// Device, back end and all checks.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct SelfTest {
    /// What the checks ran on beside the CPU.
    pub device: String,
    /// All of them.
    pub checks: Vec<Check>,
    /// Highest memory of the process.
    pub footprint_bytes: Bytes,
}

/// A trained configuration.
struct Trained {
    losses: Vec<f64>,
    norms: Vec<f64>,
    adapters: Vec<Tensor>,
    last: Seconds,
}

fn trained(spec: &ModelSpec, run: &RunConfig, batches: &[Vec<MicroBatch>], on: (&Device, Backend)) -> Result<Trained> {
    let mut decoder = Decoder::load(&ModelSource::find(&run.model)?.weights()?, spec, run, on)?;
    for i in 0..decoder.sites.len() {
        let fresh = adapter::fresh(&decoder.sites[i], i, run.recipe.lora.rank, 7, on)?;
        decoder.set_adapter(i, fresh)?;
    }
    let (mut optimizer, mut buffers) = (Optimizer::new(&decoder, &run.recipe)?, decoder.buffers()?);
    let (mut losses, mut norms, mut last) = (Vec::new(), Vec::new(), Seconds(0.0));
    for (step, micro_batches) in batches.iter().enumerate() {
        let started = Instant::now();
        let scale = 1.0 / micro_batches.iter().map(|b| b.targets.len()).sum::<usize>().max(1) as f64;
        let (loss, norm) = autoreleased(|| -> Result<(f64, f64)> {
            optim::clear(&decoder, &buffers.grads)?;
            let mut loss = 0.0;
            for (i, batch) in micro_batches.iter().enumerate() {
                loss += scale * decoder.loss_and_grads(batch, scale, (1, (step * 8 + i) as u64), &mut buffers)?;
            }
            let norm = optim::grad_norm(&decoder, &buffers.grads)?;
            let factor = optim::clip(norm, run.recipe.max_grad_norm);
            optimizer.step(&mut decoder, &buffers.grads, factor, 1e-3)?;
            decoder.backend().wait(decoder.device())?;
            Ok((loss, norm))
        })?;
        losses.push(loss);
        norms.push(norm);
        last = Seconds(started.elapsed().as_secs_f64());
    }
    let adapters = (0..decoder.sites.len()).filter_map(|i| decoder.adapter(i));
    let on_cpu = adapters.flat_map(|a| a.tensors()).map(|t| t.to_device(&Device::Cpu));
    Ok(Trained { losses, norms, adapters: on_cpu.collect::<candle_core::Result<_>>()?, last })
}

/// The configurations: every weight format, and each lever that has code of its own.
fn configurations() -> Vec<(String, RunConfig)> {
    let base = || {
        let mut run = RunConfig::of_model(BUILTIN);
        run.recipe.max_seq_length = 128;
        run.recipe.effective_batch_size = 4;
        run.execution.batch_size = 2;
        (run.execution.loss_chunk, run.execution.attention_chunk, run.execution.mlp_chunk) = (31, 17, 41);
        run
    };
    let mut all = Vec::new();
    for weights in [
        Weights::F32,
        Weights::F16,
        Weights::Bf16,
        Weights::FourBit,
        Weights::Int8,
        Weights::Q8_0,
        Weights::Q4_0,
        Weights::Q6K,
    ] {
        let mut run = base();
        run.execution.weights = weights;
        all.push((weights.name().to_owned(), run));
    }
    let mut with = |name: &str, change: &dyn Fn(&mut RunConfig)| {
        let mut run = base();
        change(&mut run);
        all.push((name.to_owned(), run));
    };
    with("without checkpointing", &|run| run.execution.grad_checkpoint = false);
    with("dropout", &|run| run.recipe.lora.dropout = 0.1);
    with("DoRA", &|run| run.recipe.lora.use_dora = true);
    with("adamw_8bit", &|run| run.recipe.optimizer = Rule::Adamw8bit);
    with("adafactor", &|run| run.recipe.optimizer = Rule::Adafactor);
    all
}

/// Trains the built-in model for a few steps in every configuration, on this machine's device and on its CPU; `before` is
/// told what comes. Where the device is the CPU, the formulas composed of candle's operations are what its kernels are held to.
pub(crate) fn run(mut before: impl FnMut(&str)) -> Result<SelfTest> {
    let device = &device();
    let source = ModelSource::find(BUILTIN)?;
    let spec = source.spec()?;
    let text = Text::open(&source, &spec, BUILTIN)?;
    let backend = if device.is_cpu() { Backend::Composed } else { Backend::of(device) };
    let mut checks = Vec::new();
    for (name, run) in configurations() {
        before(&name);
        let rows = Rows::read(&run.data, &text, spec.vocab_size)?;
        let mut batches = Batches::new(&rows.train, &run, false);
        let batches: Vec<Vec<MicroBatch>> = (0..STEPS).map(|step| batches.step(step)).collect();
        let ours = trained(&spec, &run, &batches, (device, backend))?;
        let cpu = trained(&spec, &run, &batches, (&Device::Cpu, Backend::Fused))?;
        // NaN is not the same as anything.
        let same = |a: &[f64], b: &[f64]| a.iter().zip(b).all(|(a, b)| ((a - b) / b).abs() < SAME);
        let mut apart = 0f64;
        for (a, b) in ours.adapters.iter().zip(&cpu.adapters) {
            let worst = (a - b)?.abs()?.max_all()?.to_scalar::<f32>()?;
            apart = apart.max(f64::from(worst));
        }
        let largest = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| ((a - b) / b).abs()).fold(0.0, f64::max);
        let check = Check {
            name,
            losses_apart: largest(&ours.losses, &cpu.losses),
            agrees: same(&ours.losses, &cpu.losses) && same(&ours.norms, &cpu.norms),
            losses: [ours.losses, cpu.losses],
            grad_norms: [ours.norms, cpu.norms],
            adapters_apart: apart,
            step_time_s: [ours.last, cpu.last],
            allocated_peak_bytes: metal::allocated_peak(device).map(Bytes),
        };
        checks.push(check);
    }
    let name = if device.is_cpu() { "the CPU, by candle's operations" } else { "the GPU" };
    Ok(SelfTest { device: name.into(), checks, footprint_bytes: memory::footprint_peak() })
}
