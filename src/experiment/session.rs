//! A machine, an engine on it, what has been measured of them, and what follows from it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::source;
use crate::error::{Error, Result};
use crate::experiment::engine::trainer;
use crate::experiment::workload::Workload;
use crate::measure::{Measurement, Place, Predicted, probe, row, table};
use crate::plan::{Assessment, assess};
use crate::predict::calibration::{Calibration, Died, Observation};
use crate::predict::{Formula, Measured, Prediction, Request};
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, RunConfig, TokenLengths};
use crate::store;
use crate::units::{Bytes, Seconds};

/// Calibration of an engine on a machine, from the measurements that were made there.
pub(crate) fn known(engine: Engine, machine: &Machine, results: &Path) -> Result<Calibration> {
    Ok(Session::of_machine((engine, None), (machine, machine.available), results)?.calibration)
}

/// A run that died of memory says nothing of a limit that is larger by more than this factor than the one that it had. What
/// is free differs by a few per cent from one look to the next, and it may have been ended a little before it was gone.
const LARGER: f64 = 1.25;

/// Options of a session that its caller sets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings<'a> {
    /// Folder with the measurements of all machines.
    pub results: &'a Path,
    /// Footprint that is not to be exceeded, where it is less than the free memory, bytes.
    pub memory_limit: Option<Bytes>,
    /// Path of a script that is played in the place of the engine.
    pub script: Option<&'a Path>,
}

/// This machine, an engine on it, and what has been measured of them.
pub(crate) struct Session {
    /// This machine, as asked when the session began.
    pub machine: Machine,
    /// Machine, system and engine version that measurements made here have in common.
    pub place: Place,
    /// Measurements of the same machine, system and engine version, in the order they were made.
    pub measurements: Vec<Measurement>,
    /// Calibration before any measurement.
    pub prior: Calibration,
    /// Calibration fitted to the measurements.
    pub calibration: Calibration,
    /// Number of measurements that could not be used, because their model is no longer available.
    pub unusable: usize,
    /// Footprint that is not to be exceeded, bytes.
    pub limit: Bytes,
    path: PathBuf,
    /// Usable measurements beside their formulas: made once, as a formula takes longer than a fit.
    observations: Vec<Observation>,
    /// What each run showed of the memory that it needs, in the order they were made.
    tried: Vec<Tried>,
    specs: HashMap<String, Option<ModelSpec>>,
}

/// What a run showed of the memory that it needs.
struct Tried {
    /// Peak of its ledger with every row filled up, bytes.
    peak: Bytes,
    /// Footprint when it died for want of memory or was killed; `None` where it did not.
    died: Option<Bytes>,
}

impl Session {
    /// Asks the machine and reads its table.
    pub(crate) fn open(engine: Engine, settings: &Settings<'_>) -> Result<Self> {
        let machine = probe::this_machine()?;
        let engine_version = trainer(engine, settings.script)?.version();
        let limit = settings.memory_limit.map_or(machine.available, |limit| limit.min(machine.available));
        Self::of(engine, engine_version, (machine, limit), settings.results)
    }

    /// The session that a run was made on, as far as this machine is it.
    pub(crate) fn of_record(record: &Measurement, results: &Path) -> Result<Self> {
        let here = probe::this_machine()?;
        let machine = if here.name == record.machine { here.clone() } else { probe::machine_with(Accelerator::Cpu)? };
        if machine.name != record.machine {
            return Err(Error::invalid("machine", &here.name, format!("`{}`, where it ran", record.machine)));
        }
        let limit = machine.available;
        Self::of(record.config.engine, record.engine_version.clone(), (machine, limit), results)
    }

    /// What is known of an engine, or of a script in its place, on this machine or another, where `limit` is not to be
    /// exceeded.
    pub(crate) fn of_machine(
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
        let path = table::table(&machine, results);
        let prior = Calibration::prior(&machine, engine);
        let place = Place { machine: machine.name.clone(), os: probe::os(), engine_version };
        let mut session = Self {
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
        let mut measurements = table::read_measurements(&session.path)?;
        measurements.retain(|m| m.config.engine == engine && m.was_made_at(&session.place));
        measurements.iter().for_each(|m| session.learn(m));
        session.measurements = measurements;
        session.refit()?;
        Ok(session)
    }

    /// Makes sure that a measurement can be written down, before there is one: hours may lie between.
    pub(crate) fn check_writable(&self) -> Result<()> {
        self.describe_machine()?;
        store::check_csv(&self.path, &row::header())
    }

    fn describe_machine(&self) -> Result<()> {
        // What the machine was said to be when it was first measured: whoever reads the table elsewhere needs its rates.
        let machine = self.path.with_file_name("machine.json");
        if machine.exists() { Ok(()) } else { store::save_json(&machine, &self.machine) }
    }

    /// Writes one down and learns from it.
    pub(crate) fn add(&mut self, measurement: Measurement) -> Result<()> {
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
    pub(crate) fn times_measured(&self, run: &RunConfig) -> usize {
        self.trials(run).filter(|m| m.has_speed()).count()
    }

    /// What the last trial of a run had taken when it died of memory, under a limit like that of now.
    pub(crate) fn died(&self, run: &RunConfig) -> Option<Bytes> {
        let last = self.trials(run).rfind(|m| m.says_something()).filter(|m| m.died_of_memory())?;
        self.tells_of_now(last).then(|| last.had_taken())
    }

    /// What the last trial of a run had taken when it was killed for reasons unknown.
    pub(crate) fn killed(&self, run: &RunConfig) -> Option<Bytes> {
        let last = self.trials(run).rfind(|m| m.says_something())?;
        last.was_killed().then(|| last.had_taken())
    }

    /// A kill that nobody explained counts until a later trial ends better, whatever the limit is now.
    pub(crate) fn tells_of_now(&self, died: &Measurement) -> bool {
        died.was_killed() || self.limit < died.ran_into().scale(LARGER)
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
        let spec = self.specs.entry(name.clone()).or_insert_with(|| source::model(name).ok().map(|model| model.spec));
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

    /// Predicts `run` and holds it against the session's limit.
    pub(crate) fn assess(&self, subject: &Workload, run: &RunConfig, confidence: f64) -> Result<Assessment> {
        assess(&self.request(subject, run, &self.calibration), confidence, Some(self.limit))
    }

    /// A request to predict `run` on this machine by the calibration `by`.
    pub(crate) fn request<'a>(&'a self, subject: &'a Workload, run: &'a RunConfig, by: &'a Calibration) -> Request<'a> {
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
pub(crate) fn predicted(prediction: &Prediction) -> Predicted {
    Predicted {
        peak_memory_bytes: Some(prediction.peak_memory),
        footprint_bytes: Some(prediction.footprint),
        tokens_per_s: Some(prediction.tokens_per_s),
        step_time_s: Some(prediction.step_time.map(|s| s.0)),
    }
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
