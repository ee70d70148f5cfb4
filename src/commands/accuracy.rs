//! `headroom report accuracy`: predictions beside what happened; `headroom report guides`: claims beside predictions.

use serde::Serialize;

use crate::accuracy::table::{Goal, Line};
use crate::accuracy::{Accuracy, field, guides, neighbours};
use crate::cli::{AccuracyArgs, GuidesArgs};
use crate::commands::output::{Answer, Output};
use crate::commands::pages;
use crate::error::{Error, Result};
use crate::measure::{Measurement, table};
use crate::{report, store};

#[derive(Serialize)]
struct Whole<'a> {
    goals: Vec<Goal>,
    lines: Vec<Line>,
    #[serde(flatten)]
    all: &'a Accuracy,
}

/// The verb.
pub fn run(args: &AccuracyArgs, output: &Output) -> Result<Answer> {
    let path = args.field.clone().unwrap_or_else(|| args.results.join("field/runs.csv"));
    let published = field::read(&store::read_text(&path)?, &path)?;
    let others = args.results.join("neighbours/predictions.csv");
    let said = if others.exists() { neighbours::read(&store::read_text(&others)?, &others)? } else { Vec::new() };
    let measurements = measurements(args)?;
    if published.is_empty() && measurements.is_empty() {
        return Err(Error::Data { path, reason: "it holds no rows".into() });
    }
    let all = Accuracy::of(&published, &measurements, &said)?;
    let index = pages::put(&args.reports.join("accuracy"), &report::accuracy::render(&all)?, None)?;
    output.answer(&Whole { goals: all.goals(), lines: all.lines(), all: &all }, |width| {
        report::accuracy::text(&all, width)
    })?;
    output.note(&format!("page: {}", index.display()));
    Ok(Answer::Yes)
}

/// Of every machine that has a folder.
fn measurements(args: &AccuracyArgs) -> Result<Vec<Measurement>> {
    let mut all = Vec::new();
    for folder in store::folders_in(&args.results)? {
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
pub fn guides(args: &GuidesArgs, output: &Output) -> Result<Answer> {
    let claims = guides::read(&store::read_text(&args.claims)?, &args.claims)?;
    let checked = guides::check(&claims)?;
    let page = report::guides::render(&claims.guide, &checked)?;
    let index = pages::put(&args.reports.join("guides"), &page, None)?;
    output.answer(&checked, |_| report::guides::text(&claims.guide, &checked))?;
    output.note(&format!("page: {}", index.display()));
    Ok(Answer::Yes)
}
