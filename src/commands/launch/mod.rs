//! `headroom launch`: a run from preflight to adapter.

mod earlier;
mod job;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Instant;

use self::earlier::Earlier;
use self::job::{Launch, Site, report_of};
use self::watch::Watch;
use crate::checkpoint::hub::Part;
use crate::cli::measure::{LaunchArgs, MeasureArgs};
use crate::commands::output::Output;
use crate::commands::{fetch, inputs};
use crate::error::{Error, Result};
use crate::experiment::{engine, run_file, session};
use crate::measure::awake::Awake;
use crate::measure::failure::Failure;
use crate::measure::observe::Observed;
use crate::measure::{Measurement, probe};
use crate::plan::{Assessment, LimitKind};
use crate::spec::record::{Job, Outcome};
use crate::spec::run::RunConfig;
use crate::store::{self, RunFolder};
use crate::trainer::Trainer;
use crate::units::Seconds;

/// Folder that a run is written to, new or existing.
pub(crate) enum Place {
    /// This folder, which is empty or not there yet.
    New(PathBuf),
    /// The first free one of `NAME-1`, `NAME-2` and so on in this folder.
    Numbered(PathBuf, String),
    /// The folder of a run to resume.
    Resume(PathBuf),
}

/// Options of a launch, from the command line.
pub(crate) struct Settings<'a> {
    /// Whether to run even if it may not fit.
    pub force: bool,
    /// Whether to resume although model or data are not what they were.
    pub accept_changes: bool,
    /// Number of optimizer steps between checkpoints.
    pub save_every: usize,
    /// Probability with which each upper bound holds.
    pub confidence: f64,
    /// Memory limit, folder of measurements and script of the command line.
    pub measure: &'a MeasureArgs,
}

/// Runs `headroom launch`: trains and returns the run's folder.
pub(crate) fn run(args: &LaunchArgs, output: &Output) -> Result<RunFolder> {
    // A folder in the place of a run file is that run.
    let inside = args.run.is_dir().then(|| RunFolder::open(&args.run)).transpose()?;
    let file = inside.as_ref().map_or_else(|| args.run.clone(), RunFolder::config);
    let run = run_file::read_run(&file)?;
    let out = match (&args.out, &inside) {
        (Some(out), _) => out.clone(),
        (None, Some(folder)) => folder.path().into(),
        (None, None) => default_folder(&args.run),
    };
    let settings = Settings {
        force: args.force,
        accept_changes: args.accept_changes,
        save_every: args.save_every,
        confidence: inputs::confidence(args.confidence),
        measure: &args.measure,
    };
    start(run, &if args.resume { Place::Resume(out) } else { Place::New(out) }, &settings, output)
}

/// Folder of a run without `--out`: `runs/NAME` for `NAME.toml`.
fn default_folder(run: &Path) -> PathBuf {
    let stem = run.file_stem().unwrap_or_default().to_string_lossy();
    Path::new("runs").join(store::file_name(&stem))
}

/// Does `run`, from preflight to adapter; returns its folder.
pub(crate) fn start(run: RunConfig, place: &Place, settings: &Settings<'_>, output: &Output) -> Result<RunFolder> {
    let earlier = match place {
        Place::Resume(path) => Some(Earlier::open(path, &run)?),
        Place::New(path) => RunFolder::check(path).map(|()| None)?,
        Place::Numbered(..) => None,
    };
    if let Some(earlier) = earlier.as_ref().filter(|earlier| earlier.is_finished()) {
        output.part(&report_of(&earlier.folder)?.answer())?;
        output.part(&format!("adapter: {}", earlier.folder.adapter().display()))?;
        return Ok(earlier.folder.clone());
    }
    let mut bench = inputs::session(run.engine, settings.measure)?;
    let subject = inputs::workload(&run, output)?;
    let plan = bench.assess(&subject, &run, settings.confidence)?;
    preflight(&plan, settings.force)?;
    if let Some(earlier) = earlier.as_ref().filter(|_| !settings.force) {
        earlier.check_room(&bench)?;
    }
    fetch::model(&run.model, Part::Weights, output)?;
    let mut trainer = engine::trainer(run.engine, settings.measure.script.as_deref())?;
    // Only now, when all that can be wrong with the question has been asked, is anything written.
    let site = match (earlier, place) {
        (Some(earlier), _) => Site::Again(Box::new(earlier)),
        (None, Place::Numbered(folder, name)) => Site::New(RunFolder::create_numbered(folder, name)?),
        (None, Place::New(path) | Place::Resume(path)) => Site::New(RunFolder::create(path)?),
    };
    // Forced past the limits, only one that was set by hand still guards.
    let limit = if settings.force { settings.measure.memory_limit } else { Some(bench.limit) };
    let folder = site.folder().clone();
    let launch = Launch { run, folder, site, bench: &mut bench, plan, limit, begun: false, output: *output };
    launch.go(trainer.as_mut(), settings)
}

/// How a run ended whose trainer failed.
fn failed(error: &Error, at_step: usize) -> Outcome {
    match Failure::of_error(error) {
        Some(Failure::OutOfMemory) => Outcome::OutOfMemory { at_step },
        Some(failure) => Outcome::Crashed { at_step, reason: failure.what().into() },
        None => Outcome::Crashed { at_step, reason: error.to_string() },
    }
}

/// What a trainer failed by, with what helps, where its words say so.
fn explained(error: Error, at_step: usize) -> Error {
    let Some(failure) = Failure::of_error(&error) else { return error };
    let (what, remedy, source) = (failure.what(), failure.remedy(), Box::new(error));
    match failure {
        Failure::OutOfMemory => Error::OutOfMemory { at_step, remedy, source },
        Failure::Watchdog | Failure::DeviceLost => Error::Gpu { what, at_step, remedy, source },
    }
}

fn preflight(plan: &Assessment, force: bool) -> Result<()> {
    let Some(binding) = plan.binding().filter(|_| !plan.fits() && !force) else { return Ok(()) };
    let (what, limit) = match (binding.kind, plan.limits.first()) {
        // What that one had is no limit of the machine's.
        (LimitKind::DiedHere, Some(machine)) => {
            (format!("the run, like one that ran out of memory here with {},", binding.limit), machine.limit)
        }
        (kind, _) => (format!("the run ({kind}, with {:.1} % confidence)", plan.confidence * 100.0), binding.limit),
    };
    Err(Error::DoesNotFit { what, needs: binding.high, limit })
}

impl Launch<'_> {
    /// Trains to the end, the limit or the interrupt, and says how it went.
    fn go(mut self, trainer: &mut dyn Trainer, settings: &Settings<'_>) -> Result<RunFolder> {
        let measurement = match self.write_question().and_then(|()| self.train(trainer, settings)) {
            Ok(measurement) => measurement,
            Err(error) if self.begun => {
                self.output.note(&format!("the finished steps are saved; continue with `{}`", self.resume_command()));
                return Err(error);
            }
            Err(error) => {
                // It never began: its files would only stand in the way of the next try.
                if let Site::New(new) = self.site {
                    new.discard()?;
                }
                return Err(error);
            }
        };
        let added = if measurement.has_speed() { self.bench.add(measurement.clone()) } else { Ok(()) };
        // The run is done, and that is said even where its measurement could not be added to the table.
        self.conclude(&measurement)?;
        added?;
        Ok(self.folder)
    }

    /// Trains, and writes down how it went.
    fn train(&mut self, trainer: &mut dyn Trainer, settings: &Settings<'_>) -> Result<Measurement> {
        self.output.note(&format!("run folder: {}", self.folder.path().display()));
        let job = Job {
            config: self.run.clone(),
            out: Some(self.folder.path().into()),
            stop_after: None,
            resume: matches!(self.site, Site::Again(_)),
            accept_changes: settings.accept_changes,
            save_every: settings.save_every,
            pad_to_max: false,
        };
        let predicted = session::predicted(&self.plan.prediction);
        let _awake = Awake::during("training");
        let (state, started) = (probe::state(), Instant::now());
        let guard = self.guard()?;
        let mut watch = Watch::new(self, &guard);
        let result = trainer.train(&job, &mut |event| watch.on(event));
        watch.bar.finish_and_clear();
        let at_step = watch.last_step();
        let outcome = match (&result, watch.failure.take()) {
            (_, Some(error)) => return Err(error),
            (Ok(_), None) if watch.over => Outcome::OutOfMemory { at_step },
            (Ok(outcome), None) => outcome.clone(),
            (Err(error), None) => failed(error, at_step),
        };
        let result = match result.map_err(|error| explained(error, at_step)) {
            // There is nothing to write down of a run that took no step.
            Err(error) if watch.steps.is_empty() => return Err(error),
            result => result,
        };
        let seen = watch.steps.iter().map(|s| s.footprint_bytes).chain(guard.exceeded());
        let footprint = seen.max().unwrap_or_default();
        let wall_time = Seconds(started.elapsed().as_secs_f64());
        let (ready, steps, validations) = (watch.ready, watch.steps, watch.validations);
        let observed = Observed { ready, steps, outcome, footprint, garbage: 0, wall_time };
        let measurement = Measurement::new(&self.bench.place, &job, &observed, predicted, state);
        let measurement = measurement.with_validations(&validations);
        let written = store::save_json(&self.folder.outcome(), &measurement).and_then(|()| earlier::seal(&self.folder));
        if result.is_err() && measurement.died_of_memory() && measurement.has_speed() {
            // Later plans are to know. What ended the run matters more than what kept that from being written down.
            self.bench.add(measurement.clone()).ok();
        }
        result?;
        written.map(|()| measurement)
    }
}
