//! `headroom report accuracy`: predictions beside what happened; `headroom report guides`: claims beside predictions.

use std::path::Path;

use serde::Serialize;

use crate::accuracy::table::{Goal, Line};
use crate::accuracy::{Accuracy, field, other_planners};
use crate::cli::report::{AccuracyArgs, GuidesArgs};
use crate::commands::output::{Answer, Output};
use crate::commands::{inputs, pages};
use crate::error::{Error, Result};
use crate::measure::{Measurement, table};
use crate::{guides, report, store};

#[derive(Serialize)]
struct Whole<'a> {
    goals: Vec<Goal>,
    lines: Vec<Line>,
    #[serde(flatten)]
    all: &'a Accuracy,
}

/// Runs `headroom report accuracy`: compares predictions with published runs and local measurements.
pub(crate) fn run(args: &AccuracyArgs, output: &Output) -> Result<Answer> {
    let path = args.field.clone().unwrap_or_else(|| "results/field/runs.csv".into());
    let published = match &args.field {
        Some(file) => field::read(&store::read_text(file)?, file)?,
        None => field::read(field::BUNDLED, &path)?,
    };
    let said = other_planners::read(other_planners::BUNDLED, "results/other-planners/predictions.csv".as_ref())?;
    let results = inputs::results(args.results.as_ref())?;
    // Somebody who has measured nothing yet has no folder, but one that was named is there.
    if args.results.is_some() && !results.is_dir() {
        return Err(store::reading(&results)(std::io::ErrorKind::NotFound.into()));
    }
    let measurements = measurements(&results)?;
    if published.is_empty() && measurements.is_empty() {
        return Err(Error::Data { path, reason: "it has no rows".into() });
    }
    let all = Accuracy::of(&published, &measurements, &said)?;
    let index = pages::put(&args.reports.join("accuracy"), &report::accuracy::render(&all)?, None)?;
    let lines = all.lines()?;
    output.answer(&Whole { goals: all.goals(), lines: lines.clone(), all: &all }, |width| {
        report::accuracy::text(&all, &lines, width)
    })?;
    output.note(&format!("page: {}", index.display()));
    Ok(Answer::Yes)
}

/// Measurements of every machine that has a folder.
fn measurements(results: &Path) -> Result<Vec<Measurement>> {
    let mut all = Vec::new();
    for folder in store::folders_in(results)? {
        let path = folder.join("measurements.csv");
        // Measurements that another script made have columns of their own.
        let (columns, _) = store::read_csv(&path)?;
        if columns.first().is_some_and(|c| c == "schema") {
            all.extend(table::read_measurements(&path)?);
        }
    }
    Ok(all)
}

/// The claims of guides, each with a verdict.
pub(crate) fn guides(args: &GuidesArgs, output: &Output) -> Result<Answer> {
    let claims = match &args.claims {
        Some(file) => guides::read(&store::read_text(file)?, file)?,
        None => guides::read(guides::BUNDLED, "grids/guides.toml".as_ref())?,
    };
    let checked = guides::check(&claims)?;
    let page = report::guides::render(&claims.guide, &checked)?;
    let index = pages::put(&args.reports.join("guides"), &page, None)?;
    output.answer(&checked, |_| report::guides::text(&claims.guide, &checked))?;
    output.note(&format!("page: {}", index.display()));
    Ok(Answer::Yes)
}
