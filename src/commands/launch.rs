//! `headroom launch`: a run from preflight to adapter.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Instant;

use indicatif::ProgressBar;

use crate::cli::LaunchArgs;
use crate::commands::Output;
use crate::commands::bench::{self, Bench, Subject};
use crate::commands::interrupt::interrupted;
use crate::commands::report::read_report;
use crate::error::{Error, Result};
use crate::measure::observe::Observed;
use crate::measure::{Measurement, probe};
use crate::plan::Assessment;
use crate::report::brief;
use crate::report::compare::ledger_lines;
use crate::spec::run::RunConfig;
use crate::store::{self, RunFolder};
use crate::trainer::{Flow, Job, Metrics, Outcome, Step, TrainEvent, Trainer, Validation};
use crate::units::{Bytes, Seconds};

/// The verb; returns the run's folder.
pub fn run(args: &LaunchArgs, output: &Output) -> Result<RunFolder> {
    // A folder in the place of a run file is that run.
    let inside = args.run.is_dir().then(|| RunFolder::open(&args.run)).transpose()?;
    let file = inside.as_ref().map_or_else(|| args.run.clone(), RunFolder::config);
    let run = bench::read_run(&file)?;
    let out = match (&args.out, &inside) {
        (Some(out), _) => out.clone(),
        (None, Some(folder)) => folder.path().into(),
        (None, None) => default_folder(&args.run),
    };
    let earlier = args.resume.then(|| resumed(&out, &run)).transpose()?;
    let mut bench = Bench::open(run.engine, &args.bench)?;
    let subject = Subject::of(&run)?;
    let plan = bench.assess(&subject, &run, args.confidence)?;
    preflight(&plan, args.force)?;
    let mut trainer = bench::trainer(run.engine, args.bench.script.as_deref())?;
    // Only now, when all that can be wrong with the question has been asked, is anything written.
    let folder = earlier.map_or_else(|| RunFolder::create(&out), Ok)?;
    // Forced past the limits, only one that was set by hand still guards.
    let limit = if args.force { args.bench.limit } else { Some(bench.limit) };
    let launch = Launch { run, folder, plan, limit, save_every: args.save_every, resume: args.resume, output: *output };
    let measurement = launch.go(trainer.as_mut(), &bench)?;
    bench.add(measurement.clone())?;
    launch.conclude(&measurement)?;
    Ok(launch.folder)
}

/// `runs/NAME` for `NAME.toml`.
fn default_folder(run: &Path) -> PathBuf {
    let stem = run.file_stem().unwrap_or_default().to_string_lossy();
    Path::new("runs").join(store::file_name(&stem))
}

/// The folder of a run that is gone on with; it must be the same run.
fn resumed(path: &Path, run: &RunConfig) -> Result<RunFolder> {
    let folder = RunFolder::open(path)?;
    let (there, here) = (bench::read_run(&folder.config())?.to_toml()?, run.to_toml()?);
    if there != here {
        let differing = here.lines().zip(there.lines()).filter(|(h, t)| h != t);
        let lines: Vec<String> = differing.map(|(h, t)| format!("`{t}` there, `{h}` here")).collect();
        return Err(Error::Mismatch { path: path.into(), reason: lines.join("; ") });
    }
    Ok(folder)
}

fn preflight(plan: &Assessment, force: bool) -> Result<()> {
    match plan.binding() {
        Some(limit) if !plan.fits() && !force => Err(Error::DoesNotFit {
            what: format!("the run ({}, with {:.1} % confidence)", limit.name, plan.confidence * 100.0),
            needs: limit.high,
            limit: limit.limit,
        }),
        _ => Ok(()),
    }
}

struct Launch {
    run: RunConfig,
    folder: RunFolder,
    plan: Assessment,
    limit: Option<Bytes>,
    save_every: usize,
    resume: bool,
    output: Output,
}

impl Launch {
    /// Trains to the end, the limit or the interrupt, and writes down how it went.
    fn go(&self, trainer: &mut dyn Trainer, bench: &Bench) -> Result<Measurement> {
        store::write(&self.folder.config(), self.run.to_toml()?.as_bytes())?;
        self.write_prediction()?;
        self.output.note(&format!("run folder: {}", self.folder.path().display()));
        let job = Job {
            config: self.run.clone(),
            out: Some(self.folder.path().into()),
            stop_after: None,
            resume: self.resume,
            save_every: self.save_every,
            pad_to_max: false,
        };
        let (state, started) = (probe::state(), Instant::now());
        let mut watch = Watch::new(self);
        let result = trainer.train(&job, &mut |event| watch.on(event));
        watch.bar.finish_and_clear();
        let result = match result {
            // It never began: its folder would only stand in the way of the next try.
            Err(error) if watch.steps.is_empty() && !self.resume => {
                store::remove_folder(self.folder.path())?;
                return Err(error);
            }
            result => result,
        };
        let at_step = watch.last_step();
        let outcome = match (&result, watch.failure.take()) {
            (_, Some(error)) => return Err(error),
            (Ok(_), None) if watch.over => Outcome::OutOfMemory { at_step },
            (Ok(outcome), None) => outcome.clone(),
            (Err(error), None) => Outcome::Crashed { at_step, reason: error.to_string() },
        };
        let footprint = watch.steps.iter().map(|s| s.footprint_bytes).max().unwrap_or_default();
        let wall_time = Seconds(started.elapsed().as_secs_f64());
        let (ready, steps) = (watch.ready, watch.steps);
        let observed = Observed { ready, steps, outcome, footprint, garbage: 0, wall_time };
        let predicted = bench::predicted(&self.plan.prediction);
        let measurement = Measurement::new(&bench.place, &job, &observed, predicted, state);
        let measurement = measurement.with_validations(&watch.validations);
        store::save_json(&self.folder.outcome(), &measurement)?;
        result.map(|_| measurement)
    }

    /// `prediction.json`: what `predict --json` says, and every phase of a step. A resumed run keeps its first.
    fn write_prediction(&self) -> Result<()> {
        if self.resume && self.folder.prediction().exists() {
            return Ok(());
        }
        let broken = |e: serde_json::Error| Error::Serialise { what: "prediction.json", reason: e.to_string() };
        let mut value = serde_json::to_value(&self.plan).map_err(broken)?;
        value["timeline"] = serde_json::to_value(ledger_lines(&self.plan.prediction.ledger)).map_err(broken)?;
        store::save_json(&self.folder.prediction(), &value)
    }

    /// Says how it went, and what to do next.
    fn conclude(&self, measurement: &Measurement) -> Result<()> {
        let report = read_report(&self.folder)?;
        self.output.part(&report.answer())?;
        self.output.part(&brief::comparisons(&report.comparisons()))?;
        self.output.data(measurement)?;
        let path = self.folder.path().display();
        match &measurement.outcome {
            Outcome::OutOfMemory { .. } => {
                let needs = measurement.measured.footprint_bytes.unwrap_or_default();
                let limit = self.limit.unwrap_or(self.plan.limits.first().map_or(Bytes(0), |l| l.limit));
                self.output.note(&format!("stopped at the memory limit; a checkpoint was kept in `{path}`"));
                return Err(Error::DoesNotFit { what: "the run".into(), needs, limit });
            }
            Outcome::Stopped { .. } => self.output.note(&format!("go on with `headroom launch {path} --resume`")),
            Outcome::Finished | Outcome::EarlyStopped { .. } => {
                self.output.part(&format!("adapter: {}", self.folder.adapter().display()))?;
            }
            Outcome::Crashed { .. } | Outcome::TimedOut { .. } => {
                let reason = format!("{}; the last checkpoint is kept in `{path}`", report.answer());
                return Err(Error::Engine { engine: self.run.engine.name().into(), reason });
            }
        }
        Ok(())
    }
}

/// What is done at each event of a run.
struct Watch<'a> {
    launch: &'a Launch,
    bar: ProgressBar,
    ready: Option<TrainEvent>,
    steps: Vec<Step>,
    validations: Vec<Validation>,
    /// The footprint passed the limit.
    over: bool,
    /// Something could not be written.
    failure: Option<Error>,
}

impl<'a> Watch<'a> {
    fn new(launch: &'a Launch) -> Self {
        let bar = launch.output.bar(launch.plan.prediction.steps as u64);
        interrupted();
        Self { launch, bar, ready: None, steps: Vec::new(), validations: Vec::new(), over: false, failure: None }
    }

    fn last_step(&self) -> usize {
        self.steps.last().map_or(0, |s| s.step)
    }

    fn on(&mut self, event: &TrainEvent) -> Flow {
        let result = match event {
            TrainEvent::Ready { total_steps, done_steps, .. } => {
                self.ready = Some(event.clone());
                self.bar.set_length(*total_steps as u64);
                drop_after(&self.launch.folder, *done_steps)
            }
            TrainEvent::Step(step) => self.step(step),
            TrainEvent::Validation(validation) => self.validation(validation),
            TrainEvent::Saved { .. } => Ok(()),
        };
        if let Err(error) = result {
            self.failure = Some(error);
        }
        let stop = self.failure.is_some() || self.over || interrupted().load(Ordering::Relaxed);
        if stop { Flow::Stop } else { Flow::Continue }
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        self.over |= self.launch.limit.is_some_and(|limit| step.footprint_bytes > limit);
        self.bar.set_position(step.step as u64);
        self.bar.set_message(self.words(step));
        self.steps.push(step.clone());
        let validation = self.validations.last().filter(|v| v.step == step.step);
        store::append_json(&self.launch.folder.metrics(), &Metrics::new(step.clone(), validation))
    }

    fn validation(&mut self, v: &Validation) -> Result<()> {
        let best = match v.best_step == v.step {
            true => String::new(),
            false => format!(", {:.4} at best (step {})", v.best_validation_loss, v.best_step),
        };
        let text = format!("validation loss {:.4} after step {}{best}", v.validation_loss, v.step);
        self.bar.suspend(|| self.launch.output.note(&text));
        self.validations.push(*v);
        Ok(())
    }

    /// Measured beside predicted.
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

/// Steps after the checkpoint are taken again, so their lines go.
fn drop_after(folder: &RunFolder, done: usize) -> Result<()> {
    let lines: Vec<Metrics> = store::read_json_lines(&folder.metrics())?;
    if lines.iter().all(|line| line.step.step <= done) {
        return Ok(());
    }
    let kept = lines
        .iter()
        .filter(|line| line.step.step <= done)
        .map(|s| serde_json::to_string(s).map_err(|e| Error::Serialise { what: "metrics", reason: e.to_string() }));
    let lines: Vec<String> = kept.collect::<Result<_>>()?;
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    store::write(&folder.metrics(), text.as_bytes())
}
