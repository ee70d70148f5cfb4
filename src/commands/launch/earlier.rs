//! What an earlier part of a run left in its folder, and whether it can be gone on with.

use std::path::Path;

use crate::checkpoint::adapter::Layout;
use crate::error::{Error, Result};
use crate::experiment::run_file;
use crate::experiment::session::Session;
use crate::measure::observe::Observed;
use crate::measure::probe::{self, MachineState};
use crate::measure::room::Room;
use crate::measure::{Measurement, Place};
use crate::plan::prediction_file::PredictionFile;
use crate::report::compare::predicted;
use crate::spec::record::{Job, Metrics, Outcome, Step, Validation};
use crate::spec::run::RunConfig;
use crate::store::checksums::{self, Checked, SUMS};
use crate::store::run_folder::Holder;
use crate::store::{self, RunFolder, RunLock};
use crate::units::Seconds;

/// Files that are final once a part of a run has ended, as far as they are there: a run that took no step has no metrics.
const FINAL: [&str; 3] = ["prediction.json", "metrics.jsonl", "outcome.json"];

fn final_files(folder: &Path) -> Vec<&'static str> {
    FINAL.into_iter().filter(|name| folder.join(name).is_file()).collect()
}

/// A run to resume: its folder, locked and checked, with nothing in it changed.
pub(crate) struct Earlier {
    /// Folder of the run.
    pub folder: RunFolder,
    /// Lock that keeps other processes out of the folder.
    pub lock: RunLock,
    config: RunConfig,
    /// Lines of `metrics.jsonl`, one per optimizer step done.
    pub metrics: Vec<Metrics>,
}

impl Earlier {
    /// Opens the folder of `run`.
    ///
    /// # Errors
    /// Where it holds another run or none, where a process works in it, and where a file in it is damaged.
    pub(crate) fn open(path: &Path, run: &RunConfig) -> Result<Self> {
        let folder = RunFolder::open(path)?;
        let lock = folder.lock()?;
        let (there, here) = (run_file::read_run(&folder.config())?.to_toml()?, run.to_toml()?);
        if there != here {
            let differing = here.lines().zip(there.lines()).filter(|(h, t)| h != t);
            let lines: Vec<String> = differing.map(|(h, t)| format!("`{t}` there, `{h}` here")).collect();
            return Err(Error::Mismatch { path: path.into(), reason: lines.join("; ") });
        }
        if let Checked::Damaged(reason) = checksums::check(path, &final_files(path)) {
            return Err(damaged(path, reason));
        }
        // What is compared with it at the end is looked at now.
        if folder.prediction().exists() {
            store::load_json::<PredictionFile>(&folder.prediction())?;
        }
        let metrics: Vec<Metrics> = store::read_json_lines(&folder.metrics())?;
        for (i, line) in metrics.iter().enumerate() {
            if line.step.step != i + 1 {
                let reason = format!("line {} is of step {}", i + 1, line.step.step);
                return Err(damaged(&folder.metrics(), reason));
            }
        }
        Ok(Self { folder, lock, config: run.clone(), metrics })
    }
}

impl Earlier {
    /// What is known of a process that worked here and could not say how it ended.
    pub(crate) fn measurement_of(&self, killed: &Holder, place: &Place) -> Measurement {
        let steps: Vec<Step> = self.metrics.iter().map(|line| line.step.clone()).collect();
        let at_step = steps.len();
        let outcome = match ended_by(killed) {
            EndedBy::Memory => Outcome::OutOfMemory { at_step },
            EndedBy::Restart => Outcome::Crashed { at_step, reason: "the machine restarted".into() },
            EndedBy::Unknown => Outcome::Crashed { at_step, reason: "the process was killed".into() },
        };
        let footprint = steps.iter().map(|s| s.footprint_bytes).max().unwrap_or_default();
        let wall_time = Seconds(steps.iter().map(|s| s.step_time_s).sum());
        let observed = Observed { ready: None, steps, outcome, footprint, garbage: 0, wall_time };
        let expected = store::load_json::<PredictionFile>(&self.folder.prediction()).map(|p| predicted(&p));
        let job = Job::new(self.config.clone());
        let state = MachineState::default();
        let measurement = Measurement::new(place, &job, &observed, expected.unwrap_or_default(), state);
        Measurement { unix_time: killed.unix_time, ..measurement }
    }

    /// Refuses to go on where memory ran out before and there is no more of it now.
    pub(crate) fn check_room(&self, bench: &Session) -> Result<()> {
        let Some(killed) = self.lock.killed().filter(|killed| ended_by(killed) == EndedBy::Memory) else {
            return Ok(());
        };
        let died = self.measurement_of(&killed, &bench.place);
        if bench.tells_of_now(&died) {
            let what = format!("the run, which ran out of memory after step {},", self.metrics.len());
            return Err(Error::DoesNotFit { what, needs: died.had_taken(), limit: bench.limit });
        }
        Ok(())
    }

    /// There is nothing left to do: it ended by itself, and what it learned is there.
    pub(crate) fn is_finished(&self) -> bool {
        let outcome = store::load_json::<Measurement>(&self.folder.outcome()).map(|m| m.outcome);
        matches!(outcome, Ok(Outcome::Finished | Outcome::EarlyStopped { .. }))
            && checksums::check(self.folder.path(), &final_files(self.folder.path())) == Checked::Whole
            && checksums::check(&self.folder.adapter(), &[Layout::Peft.weights_file()]) == Checked::Whole
    }
}

/// Cause for which a process ended without a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EndedBy {
    /// The kernel for want of memory, or the process itself just before.
    Memory,
    /// The machine restarted.
    Restart,
    /// The cause is not known.
    Unknown,
}

fn ended_by(killed: &Holder) -> EndedBy {
    if killed.gave_up || Room::here().oom_kills() > killed.oom_kills {
        EndedBy::Memory
    } else if probe::boot_time() > killed.unix_time {
        EndedBy::Restart
    } else {
        EndedBy::Unknown
    }
}

fn damaged(path: &Path, reason: String) -> Error {
    let remedy = "restore the file as the run wrote it, or start again in another folder with `--out`".into();
    Error::Damaged { path: path.into(), reason, remedy }
}

/// Makes the folder ready for steps after `done`: the lines of later steps go, because these are taken again, and so does
/// what is said of the end.
pub(crate) fn reopen(folder: &RunFolder, metrics: &[Metrics], done: usize) -> Result<()> {
    if metrics.len() < done {
        let reason = format!("it ends after step {}, before the checkpoint of step {done}", metrics.len());
        return Err(damaged(&folder.metrics(), reason));
    }
    if metrics.len() > done {
        rewrite(folder, &metrics[..done])?;
    }
    store::remove_files(folder.path(), &[SUMS, "outcome.json"])
}

/// Adds what an evaluation found to the line of its step, which was written when the evaluation was interrupted.
pub(crate) fn amend(folder: &RunFolder, validation: &Validation) -> Result<()> {
    let mut metrics: Vec<Metrics> = store::read_json_lines(&folder.metrics())?;
    if let Some(line) = metrics.iter_mut().find(|line| line.step.step == validation.step) {
        *line = Metrics::new(line.step.clone(), Some(validation));
    }
    rewrite(folder, &metrics)
}

fn rewrite(folder: &RunFolder, metrics: &[Metrics]) -> Result<()> {
    let line = |m| serde_json::to_string(m).map(|text| text + "\n");
    let text: String = metrics
        .iter()
        .map(line)
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| Error::Serialise { what: "metrics", reason: e.to_string() })?;
    store::write(&folder.metrics(), text.as_bytes())
}

/// Writes down the checksums of what is final now.
pub(crate) fn seal(folder: &RunFolder) -> Result<()> {
    checksums::write(folder.path(), &final_files(folder.path()))
}
