//! A job that is loaded, and the loop over its optimizer steps. It reads top to bottom in the order of the thing itself.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use candle_core::Tensor;

use crate::checkpoint::adapter::Adapter;
use crate::checkpoint::source::ModelSource;
use crate::checkpoint::text::Text;
use crate::data::batches::{self, Batches, pack};
use crate::data::example::Example;
use crate::data::examples::Rows;
use crate::error::{Error, Result};
use crate::ops::Backend;
use crate::ops::device::{autoreleased, device, prepare_products, shorten_commands};
use crate::spec::model::ModelSpec;
use crate::spec::record::{Job, Outcome, Step};
use crate::spec::run::RunConfig;
use crate::trainer::candle::nn::adapter;
use crate::trainer::candle::nn::decoder::{Buffers, Decoder};
use crate::trainer::candle::optim::Optimizer;
use crate::trainer::candle::optim::schedule::learning_rate;
use crate::trainer::candle::resume::{Checkpoint, Found, State};
use crate::trainer::candle::{optim, resume};
use crate::trainer::early_stopping::EarlyStopping;
use crate::trainer::inputs::{self, Inputs};
use crate::trainer::{Flow, TrainEvent};
use crate::units::Bytes;
use crate::{memory, ops};

/// A job with its model, data and optimizer loaded.
pub(super) struct Session {
    run: RunConfig,
    spec: ModelSpec,
    decoder: Decoder,
    buffers: Buffers,
    pub(super) optimizer: Optimizer,
    stopping: EarlyStopping,
    /// Whether the evaluation after the last step was interrupted.
    evaluation_due: bool,
    rows: Rows,
    pub(super) earlier: Earlier,
    pub(super) total_steps: usize,
    /// Memory allocated before the model was loaded, bytes.
    before: Bytes,
}

impl Session {
    pub(super) fn open(job: &Job) -> Result<Self> {
        let run = job.config.clone();
        run.check()?;
        let source = ModelSource::find(&run.model)?;
        let spec = source.spec()?;
        spec.trained_here()?;
        if run.recipe.max_seq_length > spec.max_position_embeddings {
            let must = format!("at most {}, the longest sequence of `{}`", spec.max_position_embeddings, run.model);
            return Err(Error::invalid("max_seq_length", run.recipe.max_seq_length, must));
        }
        let mut earlier = Earlier::look(job, &source)?;
        // Data and tokenizer first: they are quick to read, and what is wrong with them shows before the weights load.
        let text = Text::open(&source, &spec, &run.model)?;
        let rows = Rows::read(&run.data, &text, spec.vocab_size)?;
        rows.untrained(&run)?;
        drop(text);
        // From here on it is tensors that are allocated: what was there before is not counted as theirs.
        let before = memory::live();
        memory::reset_peak();
        shorten_commands(longest_product(&spec, &run));
        let device = device();
        if device.is_cpu() {
            prepare_products();
        }
        let mut decoder = Decoder::load(&source.weights()?, &spec, &run, (&device, Backend::of(&device)))?;
        for i in 0..decoder.sites.len() {
            let place = (&device, decoder.backend());
            let fresh = adapter::fresh(&decoder.sites[i], i, run.recipe.lora.rank, run.seed, place)?;
            decoder.set_adapter(i, fresh)?;
        }
        if let (Some(folder), None) = (&run.recipe.lora.init_adapter, &earlier.checkpoint) {
            adapter::start_from(&mut decoder, &run, folder)?;
        }
        let mut optimizer = Optimizer::new(&decoder, &run.recipe)?;
        let (mut stopping, mut evaluation_due) = (EarlyStopping::default(), false);
        if let Some(checkpoint) = earlier.checkpoint.take() {
            checkpoint.restore(&mut decoder, &mut optimizer, &run)?;
            (stopping, evaluation_due) = (checkpoint.state.early_stopping, checkpoint.state.evaluation_due);
        }
        let buffers = decoder.buffers()?;
        let total_steps = run.steps(batches::rows(&rows.train, &run).len());
        Ok(Self {
            run,
            spec,
            decoder,
            buffers,
            optimizer,
            stopping,
            evaluation_due,
            rows,
            earlier,
            total_steps,
            before,
        })
    }

    /// Number of parameters of the adapters, and of the base.
    pub(super) fn parameters(&self) -> (u64, u64) {
        let adapters = (0..self.decoder.sites.len()).filter_map(|i| self.decoder.adapter(i));
        let adapters = adapters.flat_map(Adapter::tensors).map(Tensor::elem_count).sum::<usize>();
        let base = self.spec.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum::<usize>();
        (adapters as u64, base as u64)
    }

    pub(super) fn run(&mut self, job: &Job, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<Outcome> {
        let examples = std::mem::take(&mut self.rows.train);
        let run = self.run.clone();
        let mut batches = Batches::new(&examples, &run, job.pad_to_max);
        let last = job.stop_after.map_or(self.total_steps, |n| n.min(self.total_steps));
        let (mut flow, mut saved) = (Flow::Continue, self.optimizer.steps);
        let patience = self.run.recipe.early_stopping_patience;
        if let (true, Some(out)) = (self.evaluation_due, &job.out) {
            flow = autoreleased(|| self.validate(out, on))?;
            self.evaluation_due = flow != Flow::Continue;
        }
        while self.optimizer.steps < last && flow == Flow::Continue && !self.stopping.is_over(patience) {
            let step = match autoreleased(|| self.step(&mut batches, on))? {
                ControlFlow::Continue(step) => step,
                ControlFlow::Break(given_up) => {
                    flow = given_up;
                    break;
                }
            };
            let done = self.optimizer.steps;
            let due = |every: usize| every > 0 && done.is_multiple_of(every);
            let Some(out) = &job.out else {
                flow = on(&TrainEvent::Step(step));
                continue;
            };
            // A stop by the caller is no reason to validate: the run that goes on from here would have looked once more
            // than the one that never stopped. What is due comes before the checkpoint, which remembers what was best.
            if done == self.total_steps || due(self.run.recipe.eval_steps.unwrap_or(job.save_every)) {
                self.evaluation_due = autoreleased(|| self.validate(out, on))? != Flow::Continue;
            }
            flow = on(&TrainEvent::Step(step));
            if self.evaluation_due && flow == Flow::Continue {
                flow = Flow::Stop;
            }
            if flow != Flow::Abort && (done == last || due(job.save_every) || self.stopping.is_over(patience)) {
                autoreleased(|| self.save(out, on))?;
                saved = done;
            }
        }
        let at_step = self.optimizer.steps;
        // A step that was given up in its midst has changed nothing: what is kept is the state before it.
        if let (Flow::Stop, Some(out), true) = (flow, &job.out, saved < at_step) {
            self.save(out, on)?;
        }
        if flow == Flow::Abort {
            return Ok(Outcome::Stopped { at_step });
        }
        if self.stopping.is_over(patience) {
            return Ok(Outcome::EarlyStopped { at_step });
        }
        if at_step < self.total_steps || self.evaluation_due {
            return Ok(Outcome::Stopped { at_step });
        }
        if let (Some(out), None) = (&job.out, patience) {
            self.save_adapter(out, on)?;
        }
        Ok(Outcome::Finished)
    }

    fn save(&mut self, out: &Path, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<()> {
        let state = State {
            step: self.optimizer.steps,
            early_stopping: self.stopping,
            evaluation_due: self.evaluation_due,
            run: self.run.clone(),
            inputs: self.earlier.inputs.clone(),
        };
        let path = resume::save(out, &self.decoder, &self.optimizer, &state, &self.earlier.stale)?;
        self.earlier.stale.clear();
        on(&TrainEvent::Saved { path });
        Ok(())
    }

    fn save_adapter(&self, out: &Path, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<()> {
        let folder = out.join("adapter");
        adapter::save(&self.decoder, &self.spec, &self.run, &folder)?;
        on(&TrainEvent::Saved { path: folder });
        Ok(())
    }

    /// One optimizer step, or what the caller wants in its midst: then nothing was changed.
    fn step(
        &mut self,
        batches: &mut Batches<'_>,
        on: &mut dyn FnMut(&TrainEvent) -> Flow,
    ) -> Result<ControlFlow<Flow, Step>> {
        let started = Instant::now();
        let step = self.optimizer.steps;
        let micro_batches = batches.step(step);
        let targets: usize = micro_batches.iter().map(|b| b.targets.len()).sum();
        let tokens: usize = micro_batches.iter().map(|b| b.tokens.len()).sum();
        let scale = 1.0 / targets.max(1) as f64;
        let mut loss = 0.0;
        optim::clear(&self.decoder, &self.buffers.grads)?;
        for (i, batch) in micro_batches.iter().enumerate() {
            if i > 0
                && let flow @ (Flow::Stop | Flow::Abort) = on(&TrainEvent::Working)
            {
                return Ok(ControlFlow::Break(flow));
            }
            let micro_step = (step * micro_batches.len() + i) as u64;
            let part = self.decoder.loss_and_grads(batch, scale, (self.run.seed, micro_step), &mut self.buffers)?;
            loss += scale * part;
        }
        finite("loss", loss, step)?;
        let grad_norm = optim::grad_norm(&self.decoder, &self.buffers.grads)?;
        finite("gradient norm", grad_norm, step)?;
        let factor = optim::clip(grad_norm, self.run.recipe.max_grad_norm);
        let learning_rate = learning_rate(&self.run, step, self.total_steps);
        self.optimizer.step(&mut self.decoder, &self.buffers.grads, factor, learning_rate)?;
        self.decoder.backend().wait(self.decoder.device())?;
        let seconds = started.elapsed().as_secs_f64();
        Ok(ControlFlow::Continue(Step {
            step: step + 1,
            loss,
            learning_rate,
            grad_norm,
            padded_tokens: tokens as u64,
            tokens: tokens as u64,
            step_time_s: seconds,
            tokens_per_s: tokens as f64 / seconds,
            allocated_peak_bytes: self.allocated_peak(),
            footprint_bytes: memory::footprint_peak(),
        }))
    }

    /// Highest allocation of tensors so far: by our own count on the CPU, by Metal's on a GPU. There it only falls where
    /// the GPU is waited for, so the largest of the sizes just before is the peak.
    fn allocated_peak(&self) -> Bytes {
        let on_gpu = ops::metal::allocated_peak(self.decoder.device());
        on_gpu.map_or_else(|| memory::peak().saturating_sub(self.before), Bytes)
    }

    /// Evaluates the validation rows, or says what the caller wants in their midst: then the evaluation did not take
    /// place. With early stopping, `adapter/` is the best so far.
    fn validate(&mut self, out: &Path, on: &mut dyn FnMut(&TrainEvent) -> Flow) -> Result<Flow> {
        if self.rows.valid.is_empty() {
            return Ok(Flow::Continue);
        }
        let micro = self.run.execution.batch_size;
        let (mut sum, mut targets) = (0.0, 0);
        for examples in self.rows.valid.chunks(micro) {
            let batch = pack(&examples.iter().collect::<Vec<&Example>>(), &self.run, false);
            sum += self.decoder.loss(&batch)?;
            targets += batch.targets.len();
            let flow = on(&TrainEvent::Working);
            if flow != Flow::Continue {
                return Ok(flow);
            }
        }
        let loss = sum / targets.max(1) as f64;
        finite("validation loss", loss, self.optimizer.steps - 1)?;
        let validation = self.stopping.heard(self.optimizer.steps, loss);
        on(&TrainEvent::Validation(validation));
        if self.run.recipe.early_stopping_patience.is_some() && validation.best_step == validation.step {
            self.save_adapter(out, on)?;
        }
        Ok(Flow::Continue)
    }
}

/// Multiplications and additions of the longest product of a step: over the vocabulary, or over a matrix of an MLP.
fn longest_product(spec: &ModelSpec, run: &RunConfig) -> f64 {
    let (e, rows) = (&run.execution, run.execution.batch_size * run.recipe.max_seq_length);
    let of = |chunk: usize, width: usize| 2.0 * (rows.min(chunk) * spec.hidden_size) as f64 * width as f64;
    of(e.loss_chunk, spec.vocab_size).max(of(e.mlp_chunk, spec.intermediate_size))
}

/// What an earlier part of the run left to go on from, and what the run is made from. A job that writes nothing has
/// neither.
#[derive(Default)]
pub(super) struct Earlier {
    checkpoint: Option<Checkpoint>,
    /// Checkpoints that go with the next one.
    stale: Vec<PathBuf>,
    inputs: Inputs,
    /// The [`TrainEvent::Resumed`] that is still to be told.
    pub(super) resumed: Option<TrainEvent>,
}

impl Earlier {
    /// # Errors
    /// Where the model or the data is not what it was then, and that is not accepted.
    fn look(job: &Job, source: &ModelSource) -> Result<Self> {
        let Some(out) = &job.out else { return Ok(Self::default()) };
        let inputs = inputs::inputs(source, &job.config.data)?;
        if !job.resume {
            return Ok(Self { inputs, ..Self::default() });
        }
        let Found { checkpoint, damaged, stale } = resume::newest(out)?;
        let changed = checkpoint.as_ref().map_or(Vec::new(), |c| inputs::changes(&c.state.inputs, &inputs));
        if !changed.is_empty() && !job.accept_changes {
            return Err(Error::Changed { path: out.clone(), what: changed });
        }
        let from = checkpoint.as_ref().map(|c| c.folder().to_path_buf());
        Ok(Self { checkpoint, stale, inputs, resumed: Some(TrainEvent::Resumed { from, damaged, changed }) })
    }
}

/// Stops the run before a broken number reaches the adapters.
fn finite(what: &'static str, value: f64, step: usize) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(Error::NotFinite { what, step: step + 1, value }) }
}
