//! A step of the Metal back end without its numbers: what it would take, launch and wait for, recorded in a moment.

use std::ops::Range;

use candle_core::Device;

use crate::checkpoint::weights::BaseWeights;
use crate::data::batches::MicroBatch;
use crate::error::Result;
use crate::memory::trace::{self, Event, recorded};
use crate::ops::Backend;
use crate::ops::metal::Queue;
use crate::spec::model::ModelSpec;
use crate::spec::run::RunConfig;
use crate::trainer::candle::nn::adapter;
use crate::trainer::candle::nn::decoder::Decoder;
use crate::trainer::candle::optim::{self, Optimizer};

/// Steps that are recorded: the first makes some memory that the second finds.
const STEPS: usize = 2;

/// Micro-batches that are recorded of a step at most: after the second, nothing is new.
const MICRO_BATCHES: usize = 2;

/// What was recorded of a run.
pub struct Recording {
    /// All of it, loading included.
    pub events: Vec<Event>,
    /// The last micro-batch among them.
    pub micro_batch: Range<usize>,
    /// The last optimizer step.
    pub step: Range<usize>,
}

/// A micro-batch of examples of these numbers of rows, of which `targets` in all are learned from.
pub fn batch(rows: &[usize], targets: usize) -> MicroBatch {
    let total = rows.iter().sum::<usize>();
    let mut first = 0;
    let examples = rows.iter().map(|n| {
        first += n;
        first - n..first
    });
    let examples = examples.collect();
    // The last ones, as where a prompt is masked.
    let targets = (total.saturating_sub(targets)..total).map(|row| (row as u32, 0)).collect();
    MicroBatch { tokens: vec![0; total], examples, targets }
}

/// Records optimizer steps over micro-batches like this one, and an evaluation, where there is one.
///
/// # Errors
/// Where the run's adapters do not fit the model. The counting allocator must be the program's.
pub fn record(
    spec: &ModelSpec,
    run: &RunConfig,
    micro_batch: &MicroBatch,
    validation: Option<&MicroBatch>,
) -> Result<Recording> {
    let (marks, events) = recorded(|| marks(spec, run, micro_batch, validation));
    let [micro_batch, step] = marks?;
    Ok(Recording { events, micro_batch, step })
}

/// Does the work, and gives the last micro-batch and the last step as ranges of what was recorded.
fn marks(
    spec: &ModelSpec,
    run: &RunConfig,
    micro_batch: &MicroBatch,
    validation: Option<&MicroBatch>,
) -> Result<[Range<usize>; 2]> {
    let place = (&Device::Cpu, Backend::Metal(Queue::Nowhere));
    let mut decoder = Decoder::load(&BaseWeights::blank(spec), spec, run, place)?;
    for i in 0..decoder.sites.len() {
        let fresh = adapter::blank(&decoder.sites[i], run.recipe.lora.rank, place)?;
        decoder.set_adapter(i, fresh)?;
    }
    let mut optimizer = Optimizer::new(&decoder, &run.recipe)?;
    let mut buffers = decoder.buffers()?;
    let (mut of_batch, mut of_step) = (0..0, 0..0);
    for _ in 0..STEPS {
        of_step.start = trace::recorded_so_far();
        optim::clear(&decoder, &buffers.grads)?;
        for _ in 0..run.accumulation().min(MICRO_BATCHES) {
            of_batch.start = trace::recorded_so_far();
            decoder.loss_and_grads(micro_batch, 1.0, (0, 0), &mut buffers)?;
            of_batch.end = trace::recorded_so_far();
        }
        optim::grad_norm(&decoder, &buffers.grads)?;
        optimizer.step(&mut decoder, &buffers.grads, 1.0, 1e-4)?;
        decoder.backend().wait(decoder.device())?;
        of_step.end = trace::recorded_so_far();
    }
    if let Some(batch) = validation {
        decoder.loss(batch)?;
    }
    Ok([of_batch, of_step])
}
