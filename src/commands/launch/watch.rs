//! What is done at each event of a run.

use std::sync::atomic::Ordering;

use crate::commands::interrupt::interrupted;
use crate::commands::launch::earlier;
use crate::commands::launch::job::Launch;
use crate::commands::output::Bar;
use crate::error::{Error, Result};
use crate::measure::guard::Guard;
use crate::spec::record::{Metrics, Step, Validation};
use crate::store;
use crate::trainer::{Flow, TrainEvent};
use crate::units::Seconds;

/// Handles the events of a run in progress and keeps what they report.
pub(crate) struct Watch<'a, 'b> {
    launch: &'a mut Launch<'b>,
    guard: &'a Guard,
    /// Progress bar over the optimizer steps.
    pub bar: Bar,
    /// The [`TrainEvent::Ready`] event, once the model is loaded.
    pub ready: Option<TrainEvent>,
    /// Optimizer steps done by this process.
    pub steps: Vec<Step>,
    /// Evaluations done by this process.
    pub validations: Vec<Validation>,
    /// Whether the footprint exceeded the limit.
    pub over: bool,
    /// Error in writing down an event, which ends the run.
    pub failure: Option<Error>,
}

impl<'a, 'b> Watch<'a, 'b> {
    /// A watch over a run that begins now.
    pub(crate) fn new(launch: &'a mut Launch<'b>, guard: &'a Guard) -> Self {
        let bar = launch.output.bar(launch.plan.prediction.steps as u64);
        interrupted();
        Self { launch, guard, bar, ready: None, steps: Vec::new(), validations: Vec::new(), over: false, failure: None }
    }

    /// Number of optimizer steps done, those of earlier processes included.
    pub(crate) fn last_step(&self) -> usize {
        let before = match self.ready {
            Some(TrainEvent::Ready { done_steps, .. }) => done_steps,
            _ => 0,
        };
        self.steps.last().map_or(before, |s| s.step)
    }

    /// Takes an event and says whether to go on.
    pub(crate) fn on(&mut self, event: &TrainEvent) -> Flow {
        let result = match event {
            TrainEvent::Resumed { from, damaged, changed } => {
                self.resumed(from.is_some(), damaged, changed);
                Ok(())
            }
            TrainEvent::Ready { total_steps, done_steps, .. } => {
                self.ready = Some(event.clone());
                self.bar.set_length(*total_steps as u64);
                self.bar.set_position(*done_steps as u64);
                self.launch.begin(*done_steps)
            }
            TrainEvent::Step(step) => self.step(step),
            TrainEvent::Validation(validation) => self.validation(validation),
            TrainEvent::Saved { .. } | TrainEvent::Working => Ok(()),
        };
        if let Err(error) = result {
            self.failure = Some(error);
        }
        if self.failure.is_some() {
            // What could not be written down must happen again, so no checkpoint may say that it did.
            return Flow::Abort;
        }
        self.over |= self.guard.exceeded().is_some();
        if self.over || interrupted().load(Ordering::Relaxed) { Flow::Stop } else { Flow::Continue }
    }

    /// Says what a resumed run makes of what it found.
    fn resumed(&self, found: bool, damaged: &[String], changed: &[String]) {
        let output = &self.launch.output;
        damaged.iter().for_each(|reason| output.note(&format!("skipped a damaged checkpoint: {reason}")));
        if !changed.is_empty() {
            output.note(&format!("accepted changes since the run began: {}", changed.join(", ")));
        }
        if !found {
            output.note("there is no checkpoint yet; the run starts again at step 1");
        }
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        self.over |= self.launch.limit.is_some_and(|limit| step.footprint_bytes > limit);
        self.bar.set_position(step.step as u64);
        self.bar.set_message(self.words(step));
        self.steps.push(step.clone());
        self.launch.begun = true;
        let validation = self.validations.last().filter(|v| v.step == step.step);
        store::append_json(&self.launch.folder.metrics(), &Metrics::new(step.clone(), validation))
    }

    fn validation(&mut self, v: &Validation) -> Result<()> {
        let best = match v.best_step == v.step {
            true => String::new(),
            false => format!(", best {:.4} (step {})", v.best_validation_loss, v.best_step),
        };
        let text = format!("validation loss {:.4} after step {}{best}", v.validation_loss, v.step);
        self.bar.suspend(|| self.launch.output.note(&text));
        self.validations.push(*v);
        // The evaluation that an earlier process did not finish is of a step that has its line already.
        if v.step == self.last_step() { earlier::amend(&self.launch.folder, v) } else { Ok(()) }
    }

    /// Message of the progress bar: measured values beside predicted ones.
    fn words(&self, step: &Step) -> String {
        let p = &self.launch.plan.prediction;
        let left = self.bar.length().unwrap_or(0).saturating_sub(step.step as u64);
        format!(
            "loss {:.3}  {:.0} tok/s ({:.0} predicted)  {} ({})  {} left",
            step.loss,
            step.tokens_per_s,
            p.tokens_per_s.point,
            step.footprint_bytes,
            p.footprint.point,
            Seconds(left as f64 * step.step_time_s)
        )
    }
}
