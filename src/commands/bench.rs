//! What the commands that measure have in common: who trains, what the run is made of, what has been
//! measured here before and what follows from it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::cli;
use crate::commands::common;
use crate::error::{Error, Result};
use crate::measure::{Measurement, Place, Predicted, probe, row};
use crate::plan::{Assessment, Model, assess};
use crate::predict::calibration::{Calibration, Observation};
use crate::predict::{Measured, Prediction, Request};
use crate::spec::data::TokenLengths;
use crate::spec::machine::Machine;
use crate::spec::model::ModelSpec;
use crate::spec::run::{BUILTIN, Data, Engine, RunConfig};
use crate::store;
use crate::trainer::Trainer;
use crate::trainer::candle::CandleTrainer;
use crate::trainer::scripted::{Script, ScriptedTrainer};
use crate::trainer::source::ModelSource;
use crate::units::{Bytes, Seconds};

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
    match engine {
        Engine::MlxLm => Ok(Calibration::prior(machine, engine)),
        Engine::Candle => {
            let here = (machine.clone(), machine.available);
            Ok(Bench::of(engine, CandleTrainer.version(), here, results)?.calibration)
        }
    }
}

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
    specs: HashMap<String, Option<ModelSpec>>,
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
            specs: HashMap::new(),
        };
        let mut measurements = read_measurements(&bench.path)?;
        measurements.retain(|m| m.config.engine == engine && m.was_made_at(&bench.place));
        measurements.iter().for_each(|m| bench.learn(m));
        bench.measurements = measurements;
        bench.refit()?;
        Ok(bench)
    }

    /// Finds out whether measurements can be written down, before any is made.
    pub fn check_writable(&self) -> Result<()> {
        store::check_csv(&self.path, &row::header())
    }

    /// Writes one down and learns from it.
    pub fn add(&mut self, measurement: Measurement) -> Result<()> {
        // What the machine was said to be when it was first measured: whoever reads the table elsewhere needs its rates.
        let machine = self.path.with_file_name("machine.json");
        if !machine.exists() {
            store::save_json(&machine, &self.machine)?;
        }
        store::append_csv(&self.path, &row::header(), &measurement.to_row()?)?;
        self.learn(&measurement);
        self.measurements.push(measurement);
        self.refit()
    }

    /// How often a run has been measured as a trial.
    pub fn times_measured(&self, run: &RunConfig) -> usize {
        self.measurements.iter().filter(|m| m.answers(run, true, &self.place.engine_version)).count()
    }

    /// Where they are written down.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What one measurement says beside what it should have been.
    ///
    /// Only padded runs count: how high memory went in others depends on which long rows happened to meet, and a
    /// prediction speaks of the worst that can.
    fn learn(&mut self, m: &Measurement) {
        if !(m.has_speed() && m.pad_to_max) {
            return;
        }
        let name = &m.config.model;
        let spec = self.specs.entry(name.clone()).or_insert_with(|| common::model(name).ok().map(|model| model.spec));
        match spec.as_ref().and_then(|spec| observation(m, spec, (&self.machine, &self.prior))) {
            Some(observation) => self.observations.push(observation),
            None => self.unusable += 1,
        }
    }

    /// Always from the prior and all raw runs.
    fn refit(&mut self) -> Result<()> {
        self.calibration = Calibration::fit(&self.prior, &self.observations)?;
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

fn observation(m: &Measurement, spec: &ModelSpec, (machine, prior): (&Machine, &Calibration)) -> Option<Observation> {
    let measured = Measured {
        step_time: Seconds(m.measured.step_time_s?),
        peak_memory: m.measured.peak_memory_bytes?,
        footprint: m.measured.footprint_bytes?,
    };
    let lengths = TokenLengths::filled();
    let request = Request { spec, machine, run: &m.config, lengths: Some(&lengths), calibration: prior };
    Observation::new(&request, measured).ok()
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
    /// Of a run that is to be done: model and data must be there.
    pub fn of(run: &RunConfig) -> Result<Self> {
        let model = Model { name: run.model.clone(), spec: ModelSource::find(&run.model)?.spec()? };
        let lengths = common::lengths(&model, &run.data)?;
        Ok(Self { spec: model.spec, lengths })
    }

    /// The same with every row padded to the greatest length, as trials do it.
    pub fn padded(&self) -> Self {
        Self { spec: self.spec.clone(), lengths: TokenLengths::filled() }
    }
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
