//! What the commands that measure have in common: who trains, what the run is made of, what has been
//! measured here before and what follows from it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::source::ModelSource;
use crate::commands::common;
use crate::commands::output::Output;
use crate::error::{Error, Result};
use crate::measure::{Measurement, Place, Predicted, probe, row};
use crate::plan::{Assessment, Model, assess};
use crate::predict::calibration::{Calibration, Died, Observation};
use crate::predict::{Formula, Measured, Prediction, Request};
use crate::spec::machine::Machine;
use crate::spec::model::ModelSpec;
use crate::spec::run::data::TokenLengths;
use crate::spec::run::{BUILTIN, Data, Engine, RunConfig};
use crate::trainer::Trainer;
use crate::trainer::candle::CandleTrainer;
use crate::trainer::scripted::{Script, ScriptedTrainer};
use crate::units::{Bytes, Seconds};
use crate::{cli, store};

/// Who trains for this engine.
pub fn trainer(engine: Engine, script: Option<&Path>) -> Result<Box<dyn Trainer>> {
    if let Some(path) = script {
        return Ok(Box::new(ScriptedTrainer::new(store::load_json::<Script>(path)?, engine)));
    }
    match engine {
        Engine::Candle => Ok(Box::new(CandleTrainer)),
        Engine::MlxLm => {
            let reason = "it cannot be run from here yet; `plan` and `predict` know it".into();
            Err(Error::Engine { engine: engine.name().into(), reason })
        }
    }
}

/// What is known of an engine on a machine: the prior, and the measurements that were made there.
pub fn known(engine: Engine, machine: &Machine, results: &Path) -> Result<Calibration> {
    Ok(Bench::of_machine((engine, None), (machine, machine.available), results)?.calibration)
}

/// A run that died of memory says nothing of a limit that is larger by more than this factor than the one that it had. What
/// is free differs by a few per cent from one look to the next, and it may have been ended a little before it was gone.
const LARGER: f64 = 1.25;

/// The run file at `path`, with paths that stay right wherever it is copied to.
pub fn read_run(path: &Path) -> Result<RunConfig> {
    let mut run = RunConfig::from_toml(&store::read_text(path)?, path)?;
    anchor(&mut run);
    Ok(run)
}

/// Makes every path of a run absolute.
pub fn anchor(run: &mut RunConfig) {
    let fix = |path: &mut PathBuf| {
        if path.as_os_str() != BUILTIN {
            *path = std::path::absolute(&path).unwrap_or_else(|_| path.clone());
        }
    };
    match &mut run.data {
        Data::Train(train) => fix(train),
        Data::Split(split) => {
            fix(&mut split.train);
            split.valid.iter_mut().for_each(fix);
        }
    }
    run.recipe.lora.init_adapter.iter_mut().for_each(fix);
    if run.model != BUILTIN && Path::new(&run.model).is_dir() {
        let mut folder = PathBuf::from(&run.model);
        fix(&mut folder);
        run.model = folder.to_string_lossy().into_owned();
    }
}

/// This machine, an engine on it, and what has been measured of them.
pub struct Bench {
    /// This machine, now.
    pub machine: Machine,
    /// What measurements made here have in common.
    pub place: Place,
    /// Of the same machine, engine and version; in the order they were made.
    pub measurements: Vec<Measurement>,
    /// Before any of them.
    pub prior: Calibration,
    /// With them.
    pub calibration: Calibration,
    /// Rows of the table that could not be used, because their model is gone.
    pub unusable: usize,
    /// Footprint that is not to be exceeded.
    pub limit: Bytes,
    path: PathBuf,
    /// Of the measurements that can be used: made once, as a formula takes longer than a fit.
    observations: Vec<Observation>,
    /// What runs said of the memory that they need, in the order they were made.
    tried: Vec<Tried>,
    specs: HashMap<String, Option<ModelSpec>>,
}

/// What a run said of the memory that it needs.
struct Tried {
    /// Peak of its ledger, with every row filled up.
    peak: Bytes,
    /// What it had taken, where it died of memory or was killed.
    died: Option<Bytes>,
}

impl Bench {
    /// Asks the machine and reads its table.
    pub fn open(engine: Engine, args: &cli::Bench) -> Result<Self> {
        let machine = probe::this_machine()?;
        let engine_version = trainer(engine, args.script.as_deref())?.version();
        let limit = args.limit.map_or(machine.available, |limit| limit.min(machine.available));
        Self::of(engine, engine_version, (machine, limit), &args.results)
    }

    /// The bench that a run was made on, as far as this machine is it.
    pub fn of_record(record: &Measurement, results: &Path) -> Result<Self> {
        let machine = probe::this_machine()?;
        if machine.name != record.machine {
            return Err(Error::invalid("machine", &machine.name, format!("`{}`, where it ran", record.machine)));
        }
        let limit = machine.available;
        Self::of(record.config.engine, record.engine_version.clone(), (machine, limit), results)
    }

    /// What is known of an engine, or of a script in its place, on this machine or another, where `limit` is not to be
    /// exceeded.
    pub fn of_machine(
        (engine, script): (Engine, Option<&Path>),
        (machine, limit): (&Machine, Bytes),
        results: &Path,
    ) -> Result<Self> {
        let version = match (engine, script) {
            // It has no trainer yet, and so nothing that was measured by it.
            (Engine::MlxLm, None) => String::new(),
            _ => trainer(engine, script)?.version(),
        };
        Self::of(engine, version, (machine.clone(), limit), results)
    }

    fn of(engine: Engine, engine_version: String, (machine, limit): (Machine, Bytes), results: &Path) -> Result<Self> {
        let path = table(&machine, results);
        let prior = Calibration::prior(&machine, engine);
        let place = Place { machine: machine.name.clone(), os: probe::os(), engine_version };
        let mut bench = Self {
            measurements: Vec::new(),
            calibration: prior.clone(),
            unusable: 0,
            machine,
            place,
            prior,
            limit,
            path,
            observations: Vec::new(),
            tried: Vec::new(),
            specs: HashMap::new(),
        };
        let mut measurements = read_measurements(&bench.path)?;
        measurements.retain(|m| m.config.engine == engine && m.was_made_at(&bench.place));
        measurements.iter().for_each(|m| bench.learn(m));
        bench.measurements = measurements;
        bench.refit()?;
        Ok(bench)
    }

    /// Makes sure that a measurement can be written down, before there is one: hours may lie between.
    pub fn check_writable(&self) -> Result<()> {
        self.describe_machine()?;
        store::check_csv(&self.path, &row::header())
    }

    fn describe_machine(&self) -> Result<()> {
        // What the machine was said to be when it was first measured: whoever reads the table elsewhere needs its rates.
        let machine = self.path.with_file_name("machine.json");
        if machine.exists() { Ok(()) } else { store::save_json(&machine, &self.machine) }
    }

    /// Writes one down and learns from it.
    pub fn add(&mut self, measurement: Measurement) -> Result<()> {
        self.describe_machine()?;
        // The columns are looked at there.
        store::append_csv(&self.path, &row::header(), &measurement.to_row()?)?;
        self.learn(&measurement);
        self.measurements.push(measurement);
        self.refit()
    }

    /// The trials of a run, in the order they were made.
    fn trials<'a>(&'a self, run: &'a RunConfig) -> impl DoubleEndedIterator<Item = &'a Measurement> {
        self.measurements.iter().filter(|m| m.answers(run, true, &self.place.engine_version))
    }

    /// How often the speed of a run has been measured by a trial.
    pub fn times_measured(&self, run: &RunConfig) -> usize {
        self.trials(run).filter(|m| m.has_speed()).count()
    }

    /// What the last trial of a run had taken when it died of memory, under a limit like that of now.
    pub fn died(&self, run: &RunConfig) -> Option<Bytes> {
        let last = self.trials(run).rfind(|m| m.says_something()).filter(|m| m.died_of_memory())?;
        self.tells_of_now(last).then(|| last.had_taken())
    }

    /// What the last trial of a run had taken when it was killed for reasons unknown.
    pub fn killed(&self, run: &RunConfig) -> Option<Bytes> {
        let last = self.trials(run).rfind(|m| m.says_something())?;
        last.was_killed().then(|| last.had_taken())
    }

    /// A kill that nobody explained counts until a later trial ends better, whatever the limit is now.
    pub fn tells_of_now(&self, died: &Measurement) -> bool {
        died.was_killed() || self.limit < died.ran_into().scale(LARGER)
    }

    /// Where they are written down.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What one measurement says beside what it should have been.
    ///
    /// Only padded runs count: how high memory went in others depends on which long rows happened to meet, and a
    /// prediction speaks of the worst that can. One that died says something all the same.
    fn learn(&mut self, m: &Measurement) {
        let died = m.died_of_memory() || m.was_killed();
        if !(died || m.has_speed() && m.pad_to_max) {
            return;
        }
        let name = &m.config.model;
        let spec = self.specs.entry(name.clone()).or_insert_with(|| common::model(name).ok().map(|model| model.spec));
        let formula = spec.as_ref().and_then(|spec| formula(m, spec, (&self.machine, &self.prior)));
        let Some(formula) = formula else {
            self.unusable += 1;
            return;
        };
        if !died || self.tells_of_now(m) {
            self.tried.push(Tried { peak: formula.ledger.peak(), died: died.then(|| m.had_taken()) });
        }
        let measured = measured(m).filter(|_| m.pad_to_max);
        self.observations.extend(measured.map(|measured| Observation { formula, measured }));
    }

    /// Always from the prior and all raw runs.
    fn refit(&mut self) -> Result<()> {
        self.calibration = Calibration::fit(&self.prior, &self.observations)?;
        self.calibration.died = smallest_death(&self.tried);
        Ok(())
    }

    /// What `run` takes, held against the limit.
    pub fn assess(&self, subject: &Subject, run: &RunConfig, confidence: f64) -> Result<Assessment> {
        assess(&self.request(subject, run, &self.calibration), confidence, Some(self.limit))
    }

    /// The same by another calibration.
    pub fn request<'a>(&'a self, subject: &'a Subject, run: &'a RunConfig, by: &'a Calibration) -> Request<'a> {
        Request { spec: &subject.spec, machine: &self.machine, run, lengths: Some(&subject.lengths), calibration: by }
    }
}

/// The least that died, and was not outdone by a later run that needs as much and did not die.
fn smallest_death(tried: &[Tried]) -> Option<Died> {
    let (mut least, mut survived): (Option<Died>, _) = (None, Bytes(0));
    for &Tried { peak, died } in tried.iter().rev() {
        match died {
            None => survived = survived.max(peak),
            Some(had_taken) if peak > survived && least.is_none_or(|l| peak < l.peak) => {
                least = Some(Died { peak, had_taken });
            }
            Some(_) => {}
        }
    }
    least
}

fn formula(m: &Measurement, spec: &ModelSpec, (machine, prior): (&Machine, &Calibration)) -> Option<Formula> {
    let lengths = TokenLengths::filled();
    Request { spec, machine, run: &m.config, lengths: Some(&lengths), calibration: prior }.formula().ok()
}

fn measured(m: &Measurement) -> Option<Measured> {
    Some(Measured {
        step_time: Seconds(m.measured.step_time_s?),
        peak_memory: m.measured.peak_memory_bytes?,
        footprint: m.measured.footprint_bytes?,
    })
}

/// A prediction as a row of measurements keeps it.
pub fn predicted(prediction: &Prediction) -> Predicted {
    Predicted {
        peak_memory_bytes: Some(prediction.peak_memory),
        footprint_bytes: Some(prediction.footprint),
        tokens_per_s: Some(prediction.tokens_per_s),
        step_time_s: Some(prediction.step_time.map(|s| s.0)),
    }
}

/// What a run is about.
pub struct Subject {
    /// The model.
    pub spec: ModelSpec,
    /// Lengths of its training rows.
    pub lengths: TokenLengths,
}

impl Subject {
    /// Of a run: model and data must be there.
    pub fn of(run: &RunConfig) -> Result<Self> {
        let model = found(run)?;
        let lengths = common::lengths(&model, &run.data)?;
        Ok(Self { spec: model.spec, lengths })
    }

    /// Of a run that is to be done; rows from which it would learn nothing are said.
    pub fn to_train(run: &RunConfig, output: &Output) -> Result<Self> {
        let model = found(run)?;
        let lengths = common::lengths_of_run(&model, run, output)?;
        Ok(Self { spec: model.spec, lengths })
    }

    /// The same with every row padded to the greatest length, as trials do it.
    pub fn padded(&self) -> Self {
        Self { spec: self.spec.clone(), lengths: TokenLengths::filled() }
    }
}

/// The model of a run, whose files must be there.
fn found(run: &RunConfig) -> Result<Model> {
    Ok(Model { name: run.model.clone(), spec: ModelSource::find(&run.model)?.spec()? })
}

/// Everything that was measured on a machine.
pub fn measurements(machine: &Machine, results: &Path) -> Result<Vec<Measurement>> {
    read_measurements(&table(machine, results))
}

fn table(machine: &Machine, results: &Path) -> PathBuf {
    results.join(store::file_name(&machine.name)).join("measurements.csv")
}

/// All rows of a table.
pub fn read_measurements(path: &Path) -> Result<Vec<Measurement>> {
    let (columns, rows) = store::read_csv(path)?;
    let parse = |(i, row): (usize, &Vec<String>)| {
        Measurement::from_row(&columns, row).map_err(|message| Error::Parse {
            path: path.into(),
            line: Some(i + 2),
            message,
            hint: None,
        })
    };
    rows.iter().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_death_counts_until_it_is_outdone() {
        let dies = |peak| Tried { peak: Bytes(peak), died: Some(Bytes(1000 + peak)) };
        let lives = |peak| Tried { peak: Bytes(peak), died: None };
        for (tried, expected) in [
            (vec![], None),
            (vec![lives(9)], None),
            (vec![dies(7), dies(5), dies(6)], Some(5)),
            (vec![dies(5), dies(7), lives(5)], Some(7)),
            (vec![dies(5), lives(4)], Some(5)),
            (vec![dies(5), lives(9)], None),
            // What died last died: that it ran once before is over.
            (vec![lives(9), dies(5)], Some(5)),
        ] {
            let died = smallest_death(&tried);
            assert_eq!(died.map(|d| (d.peak.0, d.had_taken.0)), expected.map(|peak| (peak, 1000 + peak)));
        }
    }
}
