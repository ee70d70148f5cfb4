//! `headroom report`: run folders to a page and a table.

use std::path::{Path, PathBuf};

use crate::cli::ReportArgs;
use crate::commands::Output;
use crate::commands::bench::{self, Bench, Subject};
use crate::error::{Error, Result};
use crate::predict::predict;
use crate::report::compare::{PredictionFile, RunReport};
use crate::report::{brief, compare, page};
use crate::store::{self, RunFolder};
use crate::trainer::Metrics;

/// Of the intervals before and after calibrating.
const LEVEL: f64 = 0.9;

/// The verb; returns the page.
pub fn run(args: &ReportArgs, output: &Output) -> Result<PathBuf> {
    let folders = if args.runs.is_empty() {
        RunFolder::all_in(Path::new("runs"))?
    } else {
        args.runs.iter().map(|path| RunFolder::open(path)).collect::<Result<_>>()?
    };
    if folders.is_empty() {
        return Err(Error::invalid("runs", "empty", "at least one run folder; `headroom launch` makes them"));
    }
    let mut reports = folders.iter().map(read_report).collect::<Result<Vec<_>>>()?;
    for report in &mut reports {
        // What formulas say and what measurements say; without them, or without the model, the page does without.
        report.calibration = changes(report, args).unwrap_or_default();
    }
    let name = match (&args.name, &folders[..]) {
        (Some(name), _) => name.clone(),
        (None, [one]) => one.name(),
        (None, _) => "runs".into(),
    };
    let folder = args.reports.join(store::file_name(&name));
    let index = folder.join("index.html");
    store::write(&index, page::render(&name, &reports)?.as_bytes())?;
    let (header, rows) = compare::csv(&reports);
    store::write_csv(&folder.join("data.csv"), &header, &rows)?;
    for report in &reports {
        output.part(&format!("{}: {}", report.name, report.answer()))?;
        output.part(&brief::comparisons(&report.comparisons()))?;
    }
    output.part(&format!("page: {}", index.display()))?;
    output.data(&serde_json::json!({ "page": index, "data": folder.join("data.csv") }))?;
    Ok(index)
}

/// All that a run's folder says.
pub fn read_report(folder: &RunFolder) -> Result<RunReport> {
    let exists = |path: PathBuf| path.exists().then_some(path);
    let lines: Vec<Metrics> = store::read_json_lines(&folder.metrics())?;
    Ok(RunReport {
        name: folder.name(),
        config: bench::read_run(&folder.config())?,
        prediction: exists(folder.prediction()).map(|p| store::load_json::<PredictionFile>(&p)).transpose()?,
        record: exists(folder.outcome()).map(|p| store::load_json(&p)).transpose()?,
        validations: lines.iter().filter_map(Metrics::validation).collect(),
        steps: lines.into_iter().map(|line| line.step).collect(),
        calibration: Vec::new(),
    })
}

fn changes(report: &RunReport, args: &ReportArgs) -> Result<Vec<compare::Change>> {
    let Some(record) = &report.record else { return Ok(Vec::new()) };
    let bench = Bench::of_record(record, &args.results)?;
    let subject = Subject::of(&report.config)?;
    if bench.calibration.runs == 0 {
        return Ok(Vec::new());
    }
    let by = |calibration| predict(&bench.request(&subject, &report.config, calibration), LEVEL);
    Ok(brief::changes(&by(&bench.prior)?, &by(&bench.calibration)?))
}
