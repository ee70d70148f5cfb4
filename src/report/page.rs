//! One page for people: the answer first, then what it rests on. No scripts, nothing from the network.

use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use crate::cost::ledger::{Item, Phase};
use crate::error::{Error, Result};
use crate::measure::Measurement;
use crate::plan::prediction_file::PredictionFile;
use crate::report::compare::{Comparison, Quantity, RunReport};
use crate::report::compare_csv::without_folders;
use crate::report::plot::{self, Interval};
use crate::spec::record::Validation;
use crate::units::{Bytes, Estimate, Seconds, grouped, percent};

const TEMPLATE: &str = include_str!("page.html");

#[derive(Serialize)]
struct View {
    title: String,
    summary: String,
    overview: Vec<Picture>,
    runs: Vec<RunView>,
    version: &'static str,
}

/// A picture and what is above it.
#[derive(Serialize)]
pub(super) struct Picture {
    pub(super) title: &'static str,
    pub(super) svg: String,
}

/// Everything as it is shown; the template only places it.
#[derive(Serialize)]
struct RunView {
    name: String,
    answer: String,
    level: String,
    rows: Vec<Row>,
    intervals: Vec<Picture>,
    loss: Option<String>,
    loss_words: String,
    ledger: Option<String>,
    ledger_words: String,
    legend: Vec<Swatch>,
    changes: Vec<ChangeRow>,
    facts: Vec<Fact>,
    config: String,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    predicted: String,
    interval: String,
    measured: String,
    error: String,
    inside: &'static str,
    class: &'static str,
}

#[derive(Serialize)]
struct Swatch {
    name: String,
    bytes: String,
    colour: String,
}

#[derive(Serialize)]
struct ChangeRow {
    name: &'static str,
    before: String,
    before_interval: String,
    after: String,
    after_interval: String,
    width: String,
}

#[derive(Serialize)]
struct Fact {
    name: &'static str,
    value: String,
}

/// The report of these runs as a page.
pub(crate) fn render(title: &str, runs: &[RunReport]) -> Result<String> {
    let view = View {
        title: title.into(),
        summary: summary(runs),
        overview: if runs.len() > 1 { overview(runs)? } else { Vec::new() },
        runs: runs.iter().map(run_view).collect::<Result<_>>()?,
        version: env!("CARGO_PKG_VERSION"),
    };
    fill(TEMPLATE, view)
}

/// What every page begins with, and looks like; it comes into a template where that says [`HEAD_HERE`].
const HEAD_HERE: &str = "<!-- head -->\n";
const HEAD: &str = include_str!("head.html");

/// A template with its values, each of them escaped unless the template says otherwise.
pub(super) fn fill(template: &str, view: impl Serialize) -> Result<String> {
    let wrong = |e: minijinja::Error| Error::Serialise { what: "page", reason: e.to_string() };
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.render_str(&template.replacen(HEAD_HERE, HEAD, 1), minijinja::value::Serde(view)).map_err(wrong)
}

fn summary(runs: &[RunReport]) -> String {
    let judged: Vec<bool> = runs.iter().flat_map(RunReport::comparisons).filter_map(|c| c.inside()).collect();
    let inside = judged.iter().filter(|&&inside| inside).count();
    format!("{} runs: {inside} of {} measured figures lie within their predicted intervals.", runs.len(), judged.len())
}

/// All runs beside each other, a picture a quantity.
fn overview(runs: &[RunReport]) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    for (quantity, title) in [(Quantity::Footprint, "Process memory"), (Quantity::Speed, "Speed")] {
        let of = |run: &RunReport| {
            let comparisons = run.comparisons();
            comparisons.iter().find(|c| c.quantity == quantity).map(|c| Interval::of(&run.name, c))
        };
        let rows: Vec<_> = runs.iter().filter_map(of).collect();
        pictures.push(Picture { title, svg: plot::intervals(quantity, &rows)? });
    }
    Ok(pictures)
}

fn run_view(run: &RunReport) -> Result<RunView> {
    let comparisons = run.comparisons();
    let losses: Vec<(usize, f64)> = run.steps.iter().map(|s| (s.step, s.loss)).collect();
    let (resident, phases) = run.prediction.as_ref().map(PredictionFile::phases).unwrap_or_default();
    let limit = run.prediction.as_ref().and_then(|p| p.limits.iter().map(|l| l.limit).min());
    let ledger =
        if resident.is_empty() && phases.is_empty() { None } else { Some(plot::ledger(&resident, &phases, limit)?) };
    Ok(RunView {
        name: run.name.clone(),
        answer: without_folders(&run.answer()),
        level: comparisons.first().map(|c| percent(c.predicted.level, 1)).unwrap_or_default(),
        rows: comparisons.iter().map(row).collect(),
        intervals: pictures(&comparisons)?,
        loss: if losses.len() > 1 { Some(plot::loss_curve(&losses)?) } else { None },
        loss_words: loss_words(&losses, run.validations.last()),
        ledger,
        ledger_words: ledger_words(&resident, &phases, limit),
        legend: legend(&resident, &phases),
        changes: run.calibration.iter().map(change_row).collect(),
        facts: facts(run),
        config: run.config.public().to_toml()?,
    })
}

fn interval(quantity: Quantity, estimate: &Estimate<f64>) -> String {
    let (low, high) = (quantity.show(estimate.low), quantity.show(estimate.high));
    // One unit is enough where both have the same.
    match (low.rsplit_once(' '), high.rsplit_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => format!("{number} – {high}"),
        _ => format!("{low} – {high}"),
    }
}

fn row(c: &Comparison) -> Row {
    let (inside, class) = match c.inside() {
        Some(true) => ("yes", "yes"),
        Some(false) => ("no", "no"),
        None => ("–", ""),
    };
    Row {
        name: c.quantity.name(),
        predicted: c.quantity.show(c.predicted.point),
        interval: interval(c.quantity, &c.predicted),
        measured: c.measured.map_or("–".into(), |m| c.quantity.show(m)),
        error: c.error().map_or("–".into(), |e| format!("{:+.1} %", e * 100.0)),
        inside,
        class,
    }
}

/// Both kinds of memory share an axis; speed has its own.
fn pictures(comparisons: &[Comparison]) -> Result<Vec<Picture>> {
    let rows = |wanted: &[Quantity]| -> Vec<Interval> {
        let those = comparisons.iter().filter(|c| wanted.contains(&c.quantity));
        those.map(|c| Interval::of(c.quantity.name(), c)).collect()
    };
    let mut pictures = Vec::new();
    for (quantity, rows) in [
        (Quantity::Footprint, rows(&[Quantity::Peak, Quantity::Footprint])),
        (Quantity::Speed, rows(&[Quantity::Speed])),
    ] {
        if !rows.is_empty() {
            pictures.push(Picture { title: quantity.name(), svg: plot::intervals(quantity, &rows)? });
        }
    }
    Ok(pictures)
}

fn loss(value: f64) -> String {
    if value.abs() < 1e6 { format!("{value:.3}") } else { format!("{value:.1e}") }
}

fn loss_words(losses: &[(usize, f64)], validation: Option<&Validation>) -> String {
    let (Some(first), Some(last)) = (losses.first(), losses.last()) else { return String::new() };
    let validated = validation.map_or(String::new(), |v| {
        format!(" The lowest validation loss was {}, after step {}.", loss(v.best_validation_loss), v.best_step)
    });
    format!(
        "From {} in step {} to {} in step {}. Each step, and the running mean over a twentieth of the run.{}",
        loss(first.1),
        first.0,
        loss(last.1),
        last.0,
        validated
    )
}

fn ledger_words(resident: &[Item], phases: &[Phase], limit: Option<Bytes>) -> String {
    let base: Bytes = resident.iter().map(|i| i.bytes).sum();
    let tallest = phases.iter().max_by_key(|p| p.total());
    let peak = base + tallest.map_or(Bytes(0), Phase::total);
    let when = tallest.map_or(String::new(), |p| format!(" in \u{201c}{}\u{201d}", p.name));
    let limit = limit.map_or(String::new(), |l| {
        let line = if plot::is_near(l, peak) { " (the line)" } else { "" };
        format!(" The tightest limit is {l}{line}.")
    });
    format!("Predicted: {base} are always in memory, and the peak is {peak}{when}.{limit}")
}

fn legend(resident: &[Item], phases: &[Phase]) -> Vec<Swatch> {
    let named = plot::named(resident, phases);
    let all = resident.iter().chain(phases.iter().flat_map(|p| &p.items));
    let others = all.filter(|i| i.bytes > Bytes(0)).any(|i| !named.iter().any(|n| n.name == i.name));
    let swatch = |name: &str, bytes: String, i: usize| Swatch { name: name.into(), bytes, colour: format!("s{i}") };
    let mut swatches: Vec<_> =
        named.iter().enumerate().map(|(i, item)| swatch(&item.name, item.bytes.to_string(), i)).collect();
    if others {
        swatches.push(swatch("all else", String::new(), plot::SERIES));
    }
    swatches
}

fn change_row(change: &crate::report::compare::Change) -> ChangeRow {
    let (q, before, after) = (change.quantity, &change.before, &change.after);
    let width = |e: &Estimate<f64>| (e.high - e.low) / e.point;
    ChangeRow {
        name: q.name(),
        before: q.show(before.point),
        before_interval: interval(q, before),
        after: q.show(after.point),
        after_interval: interval(q, after),
        width: format!("{:.0} % → {:.0} %", width(before) * 100.0, width(after) * 100.0),
    }
}

fn facts(run: &RunReport) -> Vec<Fact> {
    let fact = |name, value: String| Fact { name, value };
    let mut facts = Vec::new();
    if let Some(r) = &run.record {
        facts.push(fact("machine", r.machine.clone()));
        facts.push(fact("system", r.os.clone()));
        facts.push(fact("engine", format!("{} {}", r.config.engine.name(), r.engine_version)));
        facts.push(fact("headroom", r.tool_version.clone()));
        facts.push(fact("state at the start", state_words(r)));
        facts.push(fact("wall time", Seconds(r.measured.wall_time_s).to_string()));
    }
    if let Some(p) = &run.prediction {
        let share = 100.0 * p.trainable_params as f64 / p.total_params.max(1) as f64;
        let counts = format!("{} of {} ({share:.2} %)", grouped(p.trainable_params), grouped(p.total_params));
        facts.push(fact("trainable parameters", counts));
    }
    facts.retain(|fact| !fact.value.is_empty());
    facts
}

fn state_words(record: &Measurement) -> String {
    let state = &record.state;
    let mut words = Vec::new();
    words.extend(state.available_bytes.map(|b| format!("{b} free")));
    words.extend(state.load_average.map(|l| format!("load {l:.1}")));
    words.extend(state.swap_used_bytes.filter(|b| *b > Bytes(0)).map(|b| format!("{b} of swap in use")));
    words.extend(state.thermal.as_ref().map(|t| format!("thermal state {t}")));
    words.extend(state.low_power.filter(|&low| low).map(|_| "low power mode".to_owned()));
    words.join(", ")
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
