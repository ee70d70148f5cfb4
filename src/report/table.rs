//! Plans and predictions as text for a terminal. Styles are always written; who prints strips them where there is
//! no terminal.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use crate::cost::pool::Replay;
use crate::plan::quality::Quality;
use crate::plan::risks::{Risk, Slowdown};
use crate::plan::{Assessment, Binding, Candidate, Lever, Limit, LimitKind, Neighbour, Plan, Verdict};
use crate::predict::Basis;
use crate::report::bar::{Bar, Piece};
use crate::report::columns::{self, Side, indented};
use crate::report::layout::paint;
use crate::spec::machine::Machine;
use crate::spec::run::Engine;
use crate::units::{Bytes, Seconds, counted, grouped, percent, short_count};

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// Changes that are not worth a figure.
const LITTLE_MEMORY: Bytes = Bytes(1 << 20);
const LITTLE_TIME: Seconds = Seconds(30.0);

/// Levers that are worth a line on the first screen.
const LEVERS: usize = 4;

/// Pieces of the ledger that come before what is not in it.
const SHOWN: usize = 4;

/// What a plan or prediction is shown with: width, assumptions and commands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Context {
    /// Width of the terminal, columns.
    pub width: usize,
    /// What was assumed, such as `2,000 examples of 2048 tokens`.
    pub assumed: Option<String>,
    /// What was understood of the model's name.
    pub understood: Option<String>,
    /// Commands that launch the plan.
    pub launch: Vec<String>,
}

/// The answer of `plan`: the first screen.
pub(crate) fn plan(plan: &Plan, machine: &Machine, context: &Context) -> String {
    let (best, mut out) = (&plan.best, String::new());
    out += &head(best, machine);
    out += &answer(&best.assessment, context);
    if let Some(quality) = &plan.quality {
        out += &format!("{}\n", paint(&format!("base: {}", costs(quality)), DIM));
    }
    out += &memory(&best.assessment, context.width);
    out += &format!("\n{}  {}\n", paint("tightest limit", BOLD), binds(plan));
    out += &levers(&plan.levers, best.assessment.fits());
    out += &neighbours(&plan.neighbours);
    if !context.launch.is_empty() {
        out += &format!("\n{}\n", paint("next", BOLD));
        context.launch.iter().for_each(|command| out += &format!("  {command}\n"));
    }
    out
}

/// What a quantised base costs, in a sentence.
fn costs(quality: &Quality) -> String {
    let loss = match quality.loss {
        loss if loss < 0.005 => "nothing that is seen".to_owned(),
        loss => format!("about {} of a benchmark's score", percent(loss, 1)),
    };
    format!("{} bits cost {loss} at this size ({})", quality.bits, quality.source)
}

/// The prediction of a run as text, with its trade-offs.
pub(crate) fn prediction(run: &Candidate, machine: &Machine, found: &[Lever], context: &Context) -> String {
    let assessment = &run.assessment;
    let mut out = head(run, machine);
    out += &answer(assessment, context);
    out += &memory(assessment, context.width);
    out += &limits(&assessment.limits);
    out += &levers(found, assessment.fits());
    out
}

/// The phases of a step, each as tall as it is.
pub(crate) fn timeline(assessment: &Assessment, width: usize) -> String {
    let ledger = &assessment.prediction.ledger;
    let mut out =
        format!("\n{}  from the formulas, before rounding and process overhead\n", paint("timeline of a step", BOLD));
    let peak = ledger.peak();
    let row = |name: &str, bytes: Bytes| {
        let bar = Bar::new(vec![Piece { name: name.into(), bytes }], bytes, peak);
        vec![name.to_owned(), bytes.to_string(), bar.line(width.saturating_sub(25).max(10))]
    };
    let mut rows = vec![row("resident", ledger.resident_total())];
    rows.extend(ledger.phases.iter().map(|p| row(&p.name, ledger.resident_total() + p.total())));
    out += &indented(&columns::lines(&rows, &[Side::Left, Side::Right, Side::Left]), 2);
    out
}

/// What Metal would make of the run's step, from a recording of it.
pub(crate) fn replay(replay: &Replay) -> String {
    let mut out =
        format!("\n{}  recorded here and played through candle's allocator\n", paint("replay on Metal", BOLD));
    let peak = format!("{}, of which {} in use at most", replay.peak_bytes, replay.alive_bytes);
    let launches = format!("{} a micro-batch", grouped(replay.launches));
    let waits = format!("{} an optimizer step", replay.waits);
    let moved = format!("{} a micro-batch, beside matrix products", replay.moved_bytes);
    let rows = [("peak", peak), ("launches", launches), ("waits", waits), ("bytes moved", moved)];
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    out += &indented(&columns::lines(&rows, &[Side::Left, Side::Left]), 2);
    out
}

/// The run in one line, its execution in another.
fn head(run: &Candidate, machine: &Machine) -> String {
    let (r, e, p) = (&run.run.recipe, &run.run.execution, &run.assessment.prediction);
    let targets = r.lora.target_modules.join(", ");
    let title = format!("{}, rank {} on {targets}, {} tokens", run.run.model, r.lora.rank, r.max_seq_length);
    let learn = format!(
        "{} of {} parameters trainable; {} steps, effective batch size {}",
        short_count(p.trainable_params),
        short_count(p.total_params),
        p.steps,
        r.effective_batch_size
    );
    let chunks = match run.run.engine {
        Engine::Candle => format!(", chunks {} and {}", e.loss_chunk, e.attention_chunk),
        Engine::MlxLm => String::new(),
    };
    let checkpoint = if e.grad_checkpoint { "activation checkpointing" } else { "no activation checkpointing" };
    let execution = format!("{} weights, batch size {}, {checkpoint}{chunks}", e.weights.name(), e.batch_size);
    let place = format!("{}, with {}", machine.name, run.run.engine.name());
    let mut out = format!("{}\n", paint(&title, BOLD));
    [place, learn, execution].iter().for_each(|line| out += &format!("{}\n", paint(line, DIM)));
    out
}

/// Fits or not, how much to spare, how long, how sure.
fn answer(assessment: &Assessment, context: &Context) -> String {
    let p = &assessment.prediction;
    let (word, colour) = match assessment.verdict {
        Verdict::Fits => ("fits", AnsiColor::Green),
        Verdict::Tight => ("tight", AnsiColor::Yellow),
        Verdict::Pages => ("pages", AnsiColor::Red),
        Verdict::DoesNotFit => ("does not fit", AnsiColor::Red),
    };
    // As many digits as the question had: 99 %, 99.9 %.
    let sure = percent(assessment.confidence, 3);
    let mut out = format!("\n{}", paint(word, Style::new().bold().fg_color(Some(colour.into()))));
    if let Some(limit) = assessment.binding() {
        let room = if limit.spare() >= 0.0 {
            format!("{} to spare", Bytes::from_f64(limit.spare()))
        } else {
            format!("{} too much", Bytes::from_f64(-limit.spare()))
        };
        let (high, name, total) = (limit.high, limit.kind, limit.limit);
        let _ = writeln!(out, "  {room}: at most {high} of {total} {name} ({sure})");
    }
    if assessment.verdict == Verdict::Pages {
        out += "      it would run but swap, many times slower than predicted below\n";
    }
    let time = p.total_time;
    let energy = p.energy_wh.map(|e| format!(", about {:.0} Wh", e.point)).unwrap_or_default();
    let speed = if p.tokens_per_s.point < 9.95 { 1 } else { 0 };
    let _ = writeln!(
        out,
        "{}, at most {} ({sure} confidence); {:.speed$} tokens/s{energy}",
        paint(&time.point.to_string(), BOLD),
        time.high,
        p.tokens_per_s.point
    );
    let basis = match &p.basis {
        Basis::Formula if p.outside => "from formulas, outside the range of published runs (wider bounds)".to_owned(),
        Basis::Formula => "from formulas and published figures; `headroom calibrate` narrows it".to_owned(),
        Basis::Calibrated { runs, inside: true } => format!("calibrated by {} on this machine", counted(*runs, "run")),
        Basis::Calibrated { runs, inside: false } => {
            format!("calibrated by {} on this machine, none of them similar (wider bounds)", counted(*runs, "run"))
        }
    };
    let _ = writeln!(out, "{}", paint(&basis, DIM));
    let assumed = context.assumed.as_ref().map(|assumed| format!("assumed: {assumed}"));
    let model = context.understood.as_ref().map(|words| format!("model: {words}"));
    model.into_iter().chain(assumed).for_each(|line| out += &format!("{}\n", paint(&line, DIM)));
    out
}

/// The stacked bar against the limit that binds.
fn memory(assessment: &Assessment, width: usize) -> String {
    // A single buffer is no share of the whole, so its limit is no mark on this bar.
    let whole = assessment.limits.iter().filter(|l| l.kind != LimitKind::LargestBuffer);
    let Some(limit) = whole.max_by(|a, b| a.load().total_cmp(&b.load())) else { return String::new() };
    let ledger = &assessment.prediction.ledger;
    let phase = ledger.tallest().map_or("resident", |p| p.name.as_str());
    let mut pieces: Vec<Piece> =
        ledger.at_peak().into_iter().map(|(i, _)| Piece { name: i.name.clone(), bytes: i.bytes }).collect();
    // The limits are on what the tensors take or on what the process takes: the rest is not in the ledger.
    let rest = if limit.kind == LimitKind::WorkingSet { "allocator" } else { "allocator, process" };
    let bytes = limit.point.saturating_sub(ledger.peak());
    pieces.insert(pieces.len().min(SHOWN), Piece { name: rest.into(), bytes });
    let bar = Bar::new(pieces, limit.high, limit.limit);
    let mut out = format!("\n{}  peak in the {phase} phase\n", paint("memory", BOLD));
    let _ = writeln!(out, "  {}", bar.line(width.saturating_sub(4).max(20)));
    for line in bar.legend(width.saturating_sub(2)) {
        let _ = writeln!(out, "  {line}");
    }
    let _ = writeln!(out, "  {} at most {}   ┃ {} {}", paint("·", DIM), limit.high, limit.kind, limit.limit);
    out
}

fn binds(plan: &Plan) -> String {
    match &plan.binds {
        Binding::Time { model } => format!("time: {model} would not finish in time"),
        Binding::Memory { model, name } => format!("{name}: no run of {model} fits"),
        Binding::Nothing => match plan.best.assessment.binding() {
            Some(limit) => format!("{} is the tightest limit", limit.kind),
            None => "nothing".into(),
        },
    }
}

fn limits(all: &[Limit]) -> String {
    let mut rows = vec![titles(["limits", "most likely", "at most", "limit"])];
    for limit in all {
        let over = if limit.spare() >= 0.0 { "" } else { "over" };
        let figures = [limit.point, limit.high, limit.limit].map(|bytes| bytes.to_string());
        rows.push([vec![format!("  {}", limit.kind)], figures.to_vec(), vec![over.into()]].concat());
    }
    let sides = [Side::Left, Side::Right, Side::Right, Side::Right, Side::Left];
    format!("\n{}", indented(&columns::lines(&rows, &sides), 0))
}

/// The first row of a table, in bold.
fn titles<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(|cell| paint(cell, BOLD)).to_vec()
}

/// What is not in the ledger and may end a run all the same.
pub(crate) fn risks(all: &[Risk], paging: Option<Slowdown>) -> String {
    let mut out = String::new();
    if let Some(slower) = paging {
        let (least, most) = (slower.least, slower.most);
        let _ = writeln!(out, "\n{}  {least:.1} to {most:.0} times slower, at 3 GB/s of swap", paint("paging", BOLD));
    }
    if all.is_empty() {
        return out;
    }
    let mut rows = vec![titles(["other limits (unverified)", "most likely", "limit"])];
    for risk in all {
        let over = if risk.over { "over" } else { "" };
        rows.push(vec![format!("  {}", risk.name), risk.predicted.clone(), risk.limit.clone(), over.into()]);
    }
    let lines = columns::lines(&rows, &[Side::Left, Side::Right, Side::Right, Side::Left]);
    let _ = write!(out, "\n{}", indented(&lines[..1], 0));
    for (risk, line) in all.iter().zip(&lines[1..]) {
        let _ = writeln!(out, "{line}");
        if risk.over {
            let _ = writeln!(out, "    {}", paint(risk.basis, DIM));
        }
    }
    out
}

/// `5 min less`, or a dash where the change is too small to speak of.
fn change(size: String, less: bool, little: bool) -> String {
    if little { "-".into() } else { format!("{size} {}", if less { "less" } else { "more" }) }
}

fn levers(all: &[Lever], fits: bool) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut rows = Vec::new();
    for lever in all.iter().take(LEVERS) {
        let bytes = Bytes(lever.saves.unsigned_abs());
        let memory = change(bytes.to_string(), lever.saves >= 0, bytes < LITTLE_MEMORY);
        let seconds = Seconds(lever.costs.0.abs());
        let time = change(seconds.to_string(), lever.costs.0 < 0.0, seconds < LITTLE_TIME);
        let note = match (lever.fits, fits, lever.recipe) {
            (true, false, false) => "then it fits",
            (true, false, true) => "fits, changes the recipe",
            (_, _, true) => "changes the recipe",
            _ => "",
        };
        rows.push(vec![lever.what.clone(), memory, time, paint(note, DIM)]);
    }
    let lines = columns::lines(&rows, &[Side::Left, Side::Right, Side::Right, Side::Left]);
    format!("\n{}\n{}", paint("trade-offs", BOLD), indented(&lines, 2))
}

fn neighbours(all: &[Neighbour]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut rows = Vec::new();
    for neighbour in all {
        let p = &neighbour.candidate.assessment.prediction;
        let model = neighbour.candidate.run.model.rsplit('/').next().unwrap_or_default();
        let (time, high) = (p.total_time.point, p.total_time.high);
        let brings = format!("{model} in {time} to {high}, {} at most", p.footprint.high);
        rows.push(vec![neighbour.wish.clone(), brings]);
        rows.extend(neighbour.machine.iter().map(|m| vec![String::new(), paint(&format!("on {m}"), DIM)]));
    }
    format!("\n{}\n{}", paint("alternatives", BOLD), indented(&columns::lines(&rows, &[Side::Left]), 2))
}
