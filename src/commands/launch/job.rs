//! A run on its way: its folder, what was predicted of it, and what is written down at its beginning and its end.

use crate::checkpoint::hub;
use crate::commands::launch::earlier::{self, Earlier};
use crate::commands::output::Output;
use crate::commands::report::read_report;
use crate::error::{Error, Result};
use crate::experiment::session::Session;
use crate::measure::guard::Guard;
use crate::measure::room::Room;
use crate::measure::{Measurement, probe};
use crate::plan::Assessment;
use crate::plan::prediction_file::PredictionFile;
use crate::report::brief;
use crate::report::compare::{Activity, RunReport};
use crate::report::layout::printable;
use crate::spec::record::Outcome;
use crate::spec::run::RunConfig;
use crate::store::run_folder::{Holder, NewRun};
use crate::store::{self, RunFolder, RunLock};
use crate::units::Bytes;

/// What a folder says in which this process, and no other, works, and is done.
pub(super) fn report_of(folder: &RunFolder) -> Result<RunReport> {
    Ok(RunReport { activity: Activity::Idle, ..read_report(folder)? })
}

/// This process, for the lock of a run folder.
fn holder() -> Holder {
    let oom_kills = Room::here().oom_kills();
    Holder { pid: std::process::id(), unix_time: probe::unix_time(), oom_kills, gave_up: false }
}

/// How a process ended that could not say so itself.
fn end(outcome: &Outcome) -> String {
    match outcome {
        Outcome::OutOfMemory { at_step } => format!("memory ran out after step {at_step}"),
        Outcome::Crashed { at_step, reason } => format!("{reason}, after step {at_step}"),
        other => other.name().to_owned(),
    }
}

/// The folder that a run works in, locked.
pub(super) enum Site {
    New(NewRun),
    Again(Box<Earlier>),
}

impl Site {
    pub(super) fn folder(&self) -> &RunFolder {
        match self {
            Self::New(new) => &new.folder,
            Self::Again(earlier) => &earlier.folder,
        }
    }

    fn lock(&mut self) -> &mut RunLock {
        match self {
            Self::New(new) => &mut new.lock,
            Self::Again(earlier) => &mut earlier.lock,
        }
    }
}

pub(super) struct Launch<'a> {
    pub(super) run: RunConfig,
    pub(super) folder: RunFolder,
    pub(super) site: Site,
    pub(super) bench: &'a mut Session,
    pub(super) plan: Assessment,
    pub(super) limit: Option<Bytes>,
    /// A step was taken, so that the folder holds something to keep.
    pub(super) begun: bool,
    pub(super) output: Output,
}

impl Launch<'_> {
    /// `run.toml` and `prediction.json`, which says what `predict --json` says, and every phase of a step. A resumed run
    /// keeps its first.
    pub(super) fn write_question(&self) -> Result<()> {
        if matches!(self.site, Site::Again(_)) && self.folder.prediction().exists() {
            return Ok(());
        }
        // A name on the hub stands for other bytes tomorrow.
        let commit = hub::commit(&self.run.model).map(|commit| format!("# The model's commit: {commit}\n"));
        let text = commit.unwrap_or_default() + &self.run.to_toml()?;
        store::write(&self.folder.config(), text.as_bytes())?;
        store::save_json(&self.folder.prediction(), &PredictionFile::with_timeline(&self.plan))
    }

    /// The first step comes next: from here on the folder is this process's, and nothing is as the last one left it.
    pub(super) fn begin(&mut self, done: usize) -> Result<()> {
        // A table that cannot be added to is found out now and not after the last step.
        self.bench.check_writable()?;
        if let Site::Again(earlier) = &self.site {
            earlier::reopen(&self.folder, &earlier.metrics, done)?;
            if done > 0 {
                self.output.note(&format!("resuming after step {done}"));
            }
        }
        let killed = self.site.lock().killed();
        if let (Site::Again(earlier), Some(killed)) = (&self.site, killed) {
            let measurement = earlier.measurement_of(&killed, &self.bench.place);
            self.output.note(&format!("the previous process was ended from outside: {}", end(&measurement.outcome)));
            self.bench.add(measurement)?;
        }
        self.site.lock().hold(holder())
    }

    /// Watches the memory while steps are taken, and ends the process before the kernel would.
    pub(super) fn guard(&mut self) -> Result<Guard> {
        let words = self.site.lock().last_words(holder())?;
        let command = self.resume_command();
        let text = format!(
            "error: almost no memory is left; the run was stopped before the system would have killed it\n\n\
             hint: free some memory and resume from the last checkpoint with `{command}`\n"
        );
        let text = printable(&text);
        Ok(Guard::start(self.limit, move |_| {
            words();
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
        }))
    }

    /// What goes on with this run from another prompt.
    pub(super) fn resume_command(&self) -> String {
        format!("headroom launch {} --resume", store::quoted(self.folder.path()))
    }

    /// Says how it went, and what to do next.
    pub(super) fn conclude(&self, measurement: &Measurement) -> Result<()> {
        let report = report_of(&self.folder)?;
        self.output.part(&report.answer())?;
        self.output.part(&brief::comparisons(&report.comparisons()))?;
        self.output.data(measurement)?;
        let path = self.folder.path().display();
        match &measurement.outcome {
            Outcome::OutOfMemory { .. } => {
                let needs = measurement.measured.footprint_bytes.unwrap_or_default();
                let limit = self.limit.unwrap_or(self.plan.limits.first().map_or(Bytes(0), |l| l.limit));
                self.output.note(&format!("stopped at the memory limit; the last checkpoint is in `{path}`"));
                return Err(Error::DoesNotFit { what: "the run".into(), needs, limit });
            }
            Outcome::Stopped { at_step } => {
                let kept = format!("{at_step} of {} steps are done and saved in `{path}`", self.plan.prediction.steps);
                return Err(Error::Interrupted { kept, resume: Some(self.resume_command()) });
            }
            Outcome::Finished | Outcome::EarlyStopped { .. } => {
                self.output.part(&format!("adapter: {}", self.folder.adapter().display()))?;
            }
            Outcome::Crashed { .. } | Outcome::TimedOut { .. } => {
                let reason = format!("{}; the last checkpoint is in `{path}`", report.answer());
                return Err(Error::Engine { engine: self.run.engine.name().into(), reason });
            }
        }
        Ok(())
    }
}
