//! One page for people: the answer first, then what it rests on. No scripts, nothing from the network.

use minijinja::{AutoEscape, Environment};
use serde::Serialize;

use crate::cost::ledger::{Item, Phase};
use crate::error::{Error, Result};
use crate::measure::Measurement;
use crate::report::compare::{Comparison, PredictionFile, Quantity, RunReport, without_folders};
use crate::report::plot::{self, Interval};
use crate::spec::record::Validation;
use crate::units::{Bytes, Estimate, Seconds, grouped};

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

/// The page of these runs.
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
        level: comparisons.first().map(|c| percent(c.predicted.level)).unwrap_or_default(),
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

fn percent(fraction: f64) -> String {
    format!("{} %", (fraction * 1000.0).round() / 10.0)
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
mod tests {
    use super::*;
    use crate::measure::{Measured, Place};
    use crate::report::compare::{Activity, Change, LedgerLine, LimitLine, RESIDENT};
    use crate::spec::record::{Job, Outcome, Step};
    use crate::spec::run::RunConfig;

    fn estimate(point: f64) -> Estimate<f64> {
        Estimate { point, low: 0.9 * point, high: 1.1 * point, level: 0.99 }
    }

    fn line(name: &str, mib: u64, phase: &str) -> LedgerLine {
        LedgerLine { name: name.into(), bytes: Bytes::from_mib(mib), phase: phase.into() }
    }

    fn prediction() -> PredictionFile {
        PredictionFile {
            peak_memory_bytes: estimate(7e8).map(Bytes::from_f64),
            footprint_bytes: estimate(8e8).map(Bytes::from_f64),
            tokens_per_s: estimate(900.0),
            step_time_s: estimate(2.0).map(Seconds),
            total_time_s: estimate(240.0).map(Seconds),
            ledger: vec![
                line("base weights", 260, RESIDENT),
                line("adapters", 9, RESIDENT),
                line("optimizer moments", 18, RESIDENT),
                line("block inputs", 120, "forward"),
                line("attention scores", 90, "forward"),
                line("block inputs", 120, "loss"),
                line("logits", 190, "loss"),
                line("block inputs", 120, "backward"),
                line("MLP activations", 240, "backward"),
                line("gradients", 9, "backward"),
            ],
            timeline: vec![],
            limits: vec![LimitLine {
                name: "free memory".into(),
                limit: Bytes::from_mib(900),
                predicted: Bytes::from_mib(762),
            }],
            trainable_params: 4_884_480,
            total_params: 139_399_488,
        }
    }

    fn step(n: usize) -> Step {
        let wave = (n as f64 * 1.7).sin() * 0.1;
        Step {
            step: n,
            loss: 1.2 + 2.0 * (-(n as f64) / 30.0).exp() + wave,
            learning_rate: 1e-4,
            grad_norm: 1.0,
            padded_tokens: 2000,
            tokens: 1800,
            step_time_s: 2.1 + 0.1 * wave,
            tokens_per_s: 1800.0 / 2.1,
            allocated_peak_bytes: Bytes(690_000_000),
            footprint_bytes: Bytes(905_000_000),
        }
    }

    fn run(name: &str) -> RunReport {
        let text = "model = \"HuggingFaceTB/SmolLM2-135M\"\ndata = \"/home/somebody/<script>alert(1).jsonl\"";
        let config = RunConfig::from_toml(text, "run.toml".as_ref()).unwrap();
        let steps: Vec<Step> = (1..=120).map(step).collect();
        let observed = crate::measure::observe::Observed {
            ready: None,
            steps: steps.clone(),
            outcome: Outcome::Finished,
            footprint: Bytes(905_000_000),
            garbage: 0,
            wall_time: Seconds(252.0),
        };
        let job = Job::new(config.clone());
        let place = Place { machine: "a machine".into(), os: "an OS".into(), engine_version: "0.11.1".into() };
        let mut record = Measurement::new(&place, &job, &observed, Default::default(), Default::default());
        record.measured = Measured::of(&observed);
        let change = |quantity, p: f64| Change {
            quantity,
            before: Estimate { low: 0.4 * p, high: 2.2 * p, ..estimate(p) },
            after: estimate(1.1 * p),
        };
        RunReport {
            activity: Activity::Idle,
            name: name.into(),
            config,
            prediction: Some(prediction()),
            record: Some(record),
            steps,
            validations: vec![Validation {
                step: 120,
                validation_loss: 1.31,
                best_step: 100,
                best_validation_loss: 1.29,
            }],
            calibration: vec![change(Quantity::Footprint, 8e8), change(Quantity::Speed, 900.0)],
        }
    }

    #[test]
    fn a_page_is_whole_safe_and_always_the_same() {
        let page = render("run one", &[run("one")]).unwrap();
        assert_eq!(page, render("run one", &[run("one")]).unwrap());
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;"), "the data's name is escaped");
        // The name of SVG's language is the only address in it.
        assert_eq!(page.matches("://").count(), page.matches("http://www.w3.org/2000/svg").count());
        assert!(page.contains("It fit and it finished; 4 of 5 measured figures"), "{page}");
        assert!(page.contains("763 MiB") && page.contains("tallest moment is 656 MiB in \u{201c}backward\u{201d}"));
        assert!(page.contains("validation rows the lowest loss was 1.290, after step 100"));
        assert_eq!(page.matches("<svg").count(), 4);
        if let Ok(folder) = std::env::var("HEADROOM_TEST_PAGES") {
            std::fs::write(format!("{folder}/one.html"), &page).unwrap();
            let two = render("two runs", &[run("one"), run("two")]).unwrap();
            std::fs::write(format!("{folder}/two.html"), two).unwrap();
        }
    }

    #[test]
    fn a_page_names_no_folder_and_no_other_process() {
        let mut run = run("one");
        run.config.model = "/home/somebody/models/mine".into();
        run.config.recipe.lora.init_adapter = Some("/home/somebody/adapter".into());
        let record = run.record.as_mut().unwrap();
        let reason = "cannot write `/home/somebody/my runs/x/state.json`: panicked at /home/somebody/src/x.rs:1".into();
        record.outcome = Outcome::Crashed { at_step: 120, reason };
        record.config = run.config.clone();
        record.state = crate::measure::probe::MachineState::filled();
        record.state.largest_other = Some("secret-browser".into());
        let page = render("run one", &[run.clone(), run]).unwrap();
        for told in ["somebody", "secret-browser", "my runs"] {
            assert!(!page.contains(told), "{told} in {page}");
        }
        for kept in [
            "model = &quot;mine&quot;",
            "init_adapter = &quot;adapter&quot;",
            "cannot write `state.json`: panicked at x.rs:1",
        ] {
            assert!(page.contains(kept), "{kept} is not in {page}");
        }
    }

    #[test]
    fn a_run_that_went_on_has_no_end_yet() {
        let mut run = run("resumed");
        let ended = |run: &RunReport| run.answer();
        run.record.as_mut().unwrap().outcome = Outcome::Stopped { at_step: 5 };
        assert_eq!(ended(&run), "It has not ended, or was ended without a word, after step 120.");
        run.record.as_mut().unwrap().outcome = Outcome::OutOfMemory { at_step: 119 };
        assert!(ended(&run).contains("after step 120"));
        run.record.as_mut().unwrap().outcome = Outcome::Stopped { at_step: 120 };
        assert!(ended(&run).starts_with("It was stopped after step 120"));
        // It died before its first step: nothing has happened since.
        run.record.as_mut().unwrap().outcome = Outcome::Crashed { at_step: 0, reason: "signal 9".into() };
        assert!(ended(&run).starts_with("It died after step 0"));
        run.record = None;
        assert!(ended(&run).contains("ended without a word, after step 120"));
    }

    #[test]
    fn a_run_without_an_end_or_a_prediction_still_has_a_page() {
        let bare = RunReport { prediction: None, record: None, steps: vec![], calibration: vec![], ..run("bare") };
        let page = render("bare", &[bare]).unwrap();
        assert!(page.contains("It has not ended yet.") && !page.contains("<svg"), "{page}");
        render("none", &[]).unwrap();
    }
}
