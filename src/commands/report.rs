//! `headroom report`: run folders to a page and a table.

use std::path::{Path, PathBuf};

use crate::cli::report::ReportArgs;
use crate::commands::output::Output;
use crate::commands::{inputs, pages};
use crate::error::{Error, Result};
use crate::experiment::run_file;
use crate::experiment::session::Session;
use crate::experiment::workload::Workload;
use crate::measure::Measurement;
use crate::plan::prediction_file::PredictionFile;
use crate::predict::predict;
use crate::report::compare::RunReport;
use crate::report::{brief, compare, page};
use crate::spec::record::Metrics;
use crate::store::checksums::{self, Checked};
use crate::store::{self, RunFolder, run_folder};

/// Of the intervals before and after calibrating.
const LEVEL: f64 = 0.9;

/// Runs `headroom report`: writes a page about runs and returns its path.
pub(crate) fn run(args: &ReportArgs, output: &Output) -> Result<PathBuf> {
    let folders: Vec<Result<RunFolder>> = if args.runs.is_empty() {
        RunFolder::all_in(Path::new("runs"))?.into_iter().map(Ok).collect()
    } else {
        args.runs.iter().map(|path| RunFolder::open(path)).collect()
    };
    let of = folders.len();
    if of == 0 {
        return Err(Error::invalid("runs", "empty", "at least one run folder; `headroom launch` creates them"));
    }
    // One that is damaged keeps nobody from seeing the others.
    let (mut reports, mut unread) = (Vec::new(), Vec::new());
    for folder in folders {
        if let Ok(folder) = &folder
            && let Checked::Damaged(reason) = checksums::check(folder.path(), &[])
        {
            output.note(&format!("`{}`: {reason}; the page shows the current results", folder.path().display()));
        }
        let report = folder.and_then(|folder| read_report(&folder));
        report.map_or_else(|error| unread.push(error), |report| reports.push(report));
    }
    if reports.is_empty() {
        return Err(if of == 1 { unread.remove(0) } else { Error::Unread { unread, of } });
    }
    for report in &mut reports {
        report.calibration = changes(report, args, output);
    }
    let name = match (&args.name, of) {
        (Some(name), _) => name.clone(),
        (None, 1) => reports[0].name.clone(),
        (None, _) => "runs".into(),
    };
    let folder = args.reports.join(store::file_name(&name));
    let (header, rows) = crate::report::compare_csv::csv(&reports);
    let table = pages::Table { name: "data.csv", header: &header, rows: &rows };
    let index = pages::put(&folder, &page::render(&name, &reports)?, Some(table))?;
    for report in &reports {
        output.part(&format!("{}: {}", report.name, report.answer()))?;
        output.part(&brief::comparisons(&report.comparisons()))?;
    }
    output.part(&format!("page: {}", index.display()))?;
    output.data(&serde_json::json!({ "page": index, "data": folder.join("data.csv") }))?;
    if unread.is_empty() { Ok(index) } else { Err(Error::Unread { unread, of }) }
}

/// Reads everything that a run's folder tells about the run.
pub(crate) fn read_report(folder: &RunFolder) -> Result<RunReport> {
    let exists = |path: PathBuf| path.exists().then_some(path);
    let lines: Vec<Metrics> = store::read_json_lines(&folder.metrics())?;
    let record: Option<Measurement> = exists(folder.outcome()).map(|p| store::load_json(&p)).transpose()?;
    if let Some(message) = record.as_ref().and_then(|record| record.check_schema().err()) {
        return Err(Error::Parse { path: folder.outcome(), line: None, message, hint: None });
    }
    Ok(RunReport {
        name: folder.name(),
        activity: match folder.activity() {
            run_folder::Activity::Idle => compare::Activity::Idle,
            run_folder::Activity::Running(_) => compare::Activity::Running,
            run_folder::Activity::Ended(holder) if holder.gave_up => compare::Activity::GaveUp,
            run_folder::Activity::Ended(_) => compare::Activity::Killed,
        },
        config: run_file::read_run(&folder.config())?,
        prediction: exists(folder.prediction()).map(|p| store::load_json::<PredictionFile>(&p)).transpose()?,
        record,
        validations: lines.iter().filter_map(Metrics::validation).collect(),
        steps: lines.into_iter().map(|line| line.step).collect(),
        calibration: Vec::new(),
    })
}

/// What formulas say and what measurements say. Without them, or without the model, the page does without; a table that
/// cannot be read is named.
fn changes(report: &RunReport, args: &ReportArgs, output: &Output) -> Vec<compare::Change> {
    let found = calibrated(report, args);
    if let Err(error @ Error::Parse { .. }) = &found {
        output.note(&format!("the effect of the calibration is not shown: {error}"));
    }
    found.unwrap_or_default()
}

fn calibrated(report: &RunReport, args: &ReportArgs) -> Result<Vec<compare::Change>> {
    let Some(record) = &report.record else { return Ok(Vec::new()) };
    let bench = Session::of_record(record, &inputs::results(args.results.as_ref())?)?;
    let subject = Workload::of(&report.config)?;
    if bench.calibration.runs == 0 {
        return Ok(Vec::new());
    }
    let by = |calibration| predict(&bench.request(&subject, &report.config, calibration), LEVEL);
    Ok(brief::changes(&by(&bench.prior)?, &by(&bench.calibration)?))
}
