//! What is asked of a plan, and the recipes and executions that may answer it.

use crate::cost::params::trainable;
use crate::error::Result;
use crate::predict::Request;
use crate::predict::calibration::Calibration;
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::model::{Model, ModelSpec, catalogue};
use crate::spec::run::{Engine, Prefer, RunConfig, TokenLengths, Weights};
use crate::units::Bytes;

/// Share of the examples that are to stay uncut.
const UNCUT: f64 = 0.99;

/// Lengths are rounded up to a multiple of this, and not halved below it.
const SEQ_STEP: usize = 32;

pub(super) const SEQ_LEAST: usize = 128;

/// Adapter ranks to choose from, smallest first.
pub(super) const RANKS: [usize; 5] = [8, 16, 32, 64, 128];

/// Bits that an adapter's parameter can hold, for about one bit that a token of data carries
/// (Thinking Machines, "LoRA Without Regret", 2025).
const BITS_PER_PARAMETER: f64 = 2.0;

/// Batch sizes to choose from: examples of a micro-batch.
pub(super) const BATCH_SIZES: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// Formats below the stored one, the widest first.
const QUANTISED: [Weights; 2] = [Weights::EightBit, Weights::FourBit];

const LOSS_CHUNKS: [usize; 3] = [128, 512, 2048];

const ATTENTION_CHUNKS: [usize; 2] = [128, 256];

/// The question that a plan answers: a machine, the settings that are fixed, and limits.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Machine that the run is planned for.
    pub machine: &'a Machine,
    /// Calibration of the machine and engine.
    pub calibration: &'a Calibration,
    /// Settings to start from; what `held` names is kept.
    pub run: RunConfig,
    /// Settings that were given and are not searched.
    pub held: Held,
    /// Base model, where it was given.
    pub model: Option<Model>,
    /// Token lengths of the examples, counted or assumed.
    pub lengths: &'a TokenLengths,
    /// Order in which the plan gives way.
    pub prefer: Prefer,
    /// Time limit of the whole run, hours: its upper bound must stay under it.
    pub hours: f64,
    /// Probability with which the upper bounds are to hold, such as 0.99.
    pub confidence: f64,
    /// Memory limit of the process, where it is less than the free memory, bytes.
    pub budget: Option<Bytes>,
}

/// The settings that were given and are to be kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the settings of the same names
pub struct Held {
    pub max_seq_length: bool,
    pub rank: bool,
    pub batch_size: bool,
    pub weights: bool,
    pub grad_checkpoint: bool,
}

impl<'a> Ask<'a> {
    pub(super) fn models(&self) -> Vec<Model> {
        match &self.model {
            Some(model) => vec![model.clone()],
            None => {
                let general = catalogue::representatives();
                general.into_iter().map(|e| Model::new(&e.id, e.spec.clone())).collect()
            }
        }
    }

    pub(super) fn request<'b>(&'b self, spec: &'b ModelSpec, run: &'b RunConfig) -> Request<'b> {
        Request { spec, machine: self.machine, run, lengths: Some(self.lengths), calibration: self.calibration }
    }

    /// Longest sequence that the data needs, tokens.
    pub(super) fn needed_length(&self) -> usize {
        if self.held.max_seq_length {
            return self.run.recipe.max_seq_length;
        }
        self.lengths.uncut(UNCUT).next_multiple_of(SEQ_STEP).max(SEQ_STEP)
    }

    /// The length that the data needs, then shorter ones, in case nothing finishes or fits at that.
    pub(super) fn seq_lengths(&self) -> Vec<usize> {
        let needed = self.needed_length();
        if self.held.max_seq_length {
            return vec![needed];
        }
        let shorter = |n: &usize| (*n / 2 >= SEQ_LEAST).then_some((*n / 2).next_multiple_of(SEQ_STEP));
        std::iter::successors(Some(needed), shorter).collect()
    }

    /// The smallest rank that can hold what the data carries, then the smaller ones.
    pub(super) fn ranks(&self, spec: &ModelSpec, seq: usize) -> Result<Vec<usize>> {
        let lora = &self.run.recipe.lora;
        if self.held.rank {
            return Ok(vec![lora.rank]);
        }
        let tokens = self.lengths.mean_cut(seq) * self.lengths.len() as f64;
        let mut ranks = Vec::new();
        for rank in RANKS {
            ranks.insert(0, rank);
            let mut lora = lora.clone();
            lora.rank = rank;
            if trainable(spec, &lora)? as f64 * BITS_PER_PARAMETER >= tokens {
                break;
            }
        }
        Ok(ranks)
    }

    /// Formats of a model to choose from, the widest first: the stored one, and those below it that the engine has.
    pub(super) fn formats(&self, spec: &ModelSpec) -> Vec<Weights> {
        if self.held.weights {
            return vec![self.run.execution.weights];
        }
        let stored = spec.storage.format.bits();
        let narrower = |w: &Weights| spec.usual_format(*w).bits() < stored && self.run.engine.weights().contains(w);
        std::iter::once(Weights::Stored).chain(QUANTISED.into_iter().filter(narrower)).collect()
    }

    /// Models and formats in the order of the preference; the soonest done of a group is taken.
    pub(super) fn choices(&self, models: &[Model]) -> Vec<Vec<(usize, Weights)>> {
        let each = models.iter().enumerate();
        let of = |(at, model): (usize, &Model)| -> Vec<(usize, Weights)> {
            self.formats(&model.spec).into_iter().map(|weights| (at, weights)).collect()
        };
        match self.prefer {
            Prefer::Size => each.flat_map(of).map(|choice| vec![choice]).collect(),
            Prefer::Speed => each.map(of).collect(),
            Prefer::Quality => {
                let mut all: Vec<(usize, Weights)> = each.flat_map(of).collect();
                // Stable: among one format the models stay in their order.
                all.sort_by_key(|(_, weights)| *weights != Weights::Stored);
                all.into_iter().map(|choice| vec![choice]).collect()
            }
        }
    }

    /// Memory that nothing larger than can fit in.
    pub(super) fn memory(&self) -> Bytes {
        self.budget.map_or(self.machine.memory, |budget| budget.min(self.machine.memory))
    }

    /// The ask's run with a model in a format, a length and a rank.
    pub(super) fn recipe(&self, model: &Model, weights: Weights, seq: usize, rank: usize) -> RunConfig {
        let mut run = self.run.clone();
        run.model = model.name.clone();
        run.execution.weights = weights;
        run.recipe.max_seq_length = seq.min(model.spec.max_position_embeddings);
        if rank != run.recipe.lora.rank {
            // The customary alpha of twice the rank.
            run.recipe.lora.alpha = 2.0 * rank as f64;
            run.recipe.lora.rank = rank;
        }
        run
    }

    /// The run with the smallest chunk sizes that are searched.
    pub(super) fn leanest_chunks(&self, spec: &ModelSpec, run: &RunConfig) -> RunConfig {
        let mut lean = run.clone();
        if run.engine == Engine::Candle {
            let smallest = loss_chunks(spec, self.machine.accelerator)[0];
            (lean.execution.loss_chunk, lean.execution.attention_chunk) = (smallest, ATTENTION_CHUNKS[0]);
        }
        lean
    }

    /// Every execution of a recipe, the one with the least memory first.
    pub(super) fn executions(&self, spec: &ModelSpec, recipe: &RunConfig) -> Vec<RunConfig> {
        executions(self.held, spec, recipe, self.machine.accelerator)
    }
}

/// At most `rows` rows of so many f32 numbers, so that they fill a power of two: that is what candle's Metal allocator
/// takes for them.
fn filling(rows: usize, width: usize) -> usize {
    let row = size_of::<f32>() * width;
    ((1 << (rows * row).ilog2()) / row).max(1)
}

/// Loss chunks to choose from, smallest first.
fn loss_chunks(spec: &ModelSpec, accelerator: Accelerator) -> Vec<usize> {
    match accelerator {
        Accelerator::Cpu => LOSS_CHUNKS.to_vec(),
        Accelerator::Metal => LOSS_CHUNKS.iter().map(|rows| filling(*rows, spec.vocab_size)).collect(),
    }
}

/// Every execution of a recipe, the one with the least memory first.
pub(crate) fn executions(held: Held, spec: &ModelSpec, recipe: &RunConfig, accelerator: Accelerator) -> Vec<RunConfig> {
    let e = &recipe.execution;
    let effective = recipe.recipe.effective_batch_size;
    let batches: Vec<usize> = if held.batch_size {
        vec![e.batch_size]
    } else {
        BATCH_SIZES.into_iter().filter(|b| effective.is_multiple_of(*b)).collect()
    };
    // What is stored has a name in a run file, where it is one format.
    let weights = if e.weights == Weights::Stored { Weights::of(spec.storage.format) } else { e.weights };
    let checkpoints = if held.grad_checkpoint { vec![e.grad_checkpoint] } else { vec![true, false] };
    // mlx-lm has no chunks to choose.
    let ours = recipe.engine == Engine::Candle;
    let loss_chunks = if ours { loss_chunks(spec, accelerator) } else { vec![e.loss_chunk] };
    let mlp_chunk = match accelerator {
        Accelerator::Metal if ours => filling(e.mlp_chunk, spec.intermediate_size),
        _ => e.mlp_chunk,
    };
    let attention_chunks = if ours { ATTENTION_CHUNKS.to_vec() } else { vec![e.attention_chunk] };
    let mut all = Vec::new();
    for &batch_size in &batches {
        for &grad_checkpoint in &checkpoints {
            for &loss_chunk in &loss_chunks {
                for &attention_chunk in &attention_chunks {
                    let mut run = recipe.clone();
                    run.execution.batch_size = batch_size;
                    run.execution.weights = weights;
                    run.execution.grad_checkpoint = grad_checkpoint;
                    run.execution.loss_chunk = loss_chunk;
                    run.execution.mlp_chunk = mlp_chunk;
                    run.execution.attention_chunk = attention_chunk;
                    all.push(run);
                }
            }
        }
    }
    all
}
