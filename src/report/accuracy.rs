//! The table of accuracy, for a terminal and as a page.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::accuracy::Accuracy;
use crate::accuracy::other_planners::PlannerScore;
use crate::accuracy::rules::Rule;
use crate::accuracy::score::{Figure, LEVEL, Quantity};
use crate::accuracy::table::{Goal, Line};
use crate::error::Result;
use crate::report::columns::{self, Side, indented};
use crate::report::compare;
use crate::report::layout::paint;
use crate::report::page::{self, Picture};
use crate::report::plot::{self, Interval};
use crate::spec::run::Engine;
use crate::units::Bytes;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// From this many columns on, the worst row of each line is named.
const WIDE: usize = 100;

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn signed(share: f64) -> String {
    format!("{:+.0} %", 100.0 * share)
}

/// The table of accuracy as text for a terminal of `width` columns.
pub(crate) fn text(all: &Accuracy, lines: &[Line], width: usize) -> String {
    let mut out = format!("{}\n", paint("Predictions and measurements", BOLD));
    let level = 100.0 * LEVEL;
    let rows = format!(
        "{} published runs, predicted without calibration; {} own measurements,\neach compared with \
         the prediction made before it",
        all.published, all.measured
    );
    rows.lines().for_each(|line| _ = writeln!(out, "{}", paint(line, DIM)));
    out += &figures(all, lines, width, level);
    out += &brackets(all);
    out += &goals(&all.goals());
    out += &neighbours(&all.neighbours);
    out += &left_out(all);
    out
}

fn figures(all: &Accuracy, lines: &[Line], width: usize, level: f64) -> String {
    if lines.is_empty() {
        return String::new();
    }
    let mut head = bold(["longest batch known", "n", "median", "p95", &format!("inside {level:.0} %")]);
    if width >= WIDE {
        head.push(paint("worst", BOLD));
    }
    let mut rows = vec![head];
    for line in lines {
        let s = &line.summary;
        let name = match &line.chip {
            None => format!("{}, {}", line.engine.name(), line.quantity.name()),
            Some(chip) if chip.is_empty() => "    chip not stated".into(),
            Some(chip) => format!("    {chip}"),
        };
        let inside = format!("{} of {}", s.inside, s.n);
        let mut row = vec![name, s.n.to_string(), percent(s.median), percent(s.p95), inside];
        if width >= WIDE {
            row.extend(worst_of(all, line).map(|f| format!("{} {}", f.id, signed(f.error()))));
        }
        rows.push(row);
    }
    let sides = [Side::Left, Side::Right, Side::Right, Side::Right, Side::Right, Side::Left];
    format!("\n{}", indented(&columns::lines(&rows, &sides), 0))
}

fn bold<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(|cell| paint(cell, BOLD)).to_vec()
}

/// The figure of a line that was furthest off.
fn worst_of<'a>(all: &'a Accuracy, line: &Line) -> Option<&'a Figure> {
    let of = |f: &&Figure| {
        f.engine == line.engine && f.quantity == line.quantity && line.chip.as_ref().is_none_or(|c| f.chip == *c)
    };
    all.figures.iter().filter(of).max_by(|a, b| a.error().abs().total_cmp(&b.error().abs()))
}

fn brackets(all: &Accuracy) -> String {
    if all.brackets.is_empty() {
        return String::new();
    }
    let (n, inside) = (all.brackets.len(), all.bracketed());
    let mut out = format!("\n{}\n", paint("only the average length known", BOLD));
    let _ = writeln!(out, "{inside} of {n} measured peaks lie between those predicted for average and maximum");
    for b in all.brackets.iter().filter(|b| !b.inside()) {
        let gib = |v: f64| Bytes::from_f64(v).to_string();
        let chip = if b.chip.is_empty() { "chip not stated" } else { &b.chip };
        let seen = format!("{} measured", gib(b.measured));
        let _ = writeln!(out, "  {} ({chip}): {seen}, {} to {} predicted", b.id, gib(b.at_average), gib(b.at_cap));
    }
    out
}

fn goals(all: &[Goal]) -> String {
    let mut rows = vec![bold(["goals on published runs", "wanted", "got"])];
    for goal in all {
        let (word, colour) = if goal.reached { ("reached", AnsiColor::Green) } else { ("missed ", AnsiColor::Red) };
        let word = paint(word, Style::new().fg_color(Some(colour.into())));
        rows.push(vec![format!("{word}  {}", goal.what), goal.wanted.clone(), goal.got.clone()]);
    }
    format!("\n{}", indented(&columns::lines(&rows, &[Side::Left, Side::Right]), 0))
}

fn neighbours(all: &[PlannerScore]) -> String {
    if all.is_empty() {
        return String::new();
    }
    let mut rows = vec![bold(["other planners, peak memory", "n", "median", "p95", "bias"])];
    for n in all {
        let refused = if n.refused > 0 { format!(", refuses {}", n.refused) } else { String::new() };
        let tool = format!("{}{refused}", n.tool);
        rows.push(vec![tool, n.n.to_string(), percent(n.median), percent(n.p95), signed(n.bias)]);
        let ours = &n.ours;
        let name = "    Headroom on the same rows".to_owned();
        rows.push(vec![name, ours.n.to_string(), percent(ours.median), percent(ours.p95)]);
    }
    format!("\n{}", indented(&columns::lines(&rows, &[Side::Left, Side::Right]), 0))
}

fn left_out(all: &Accuracy) -> String {
    if all.left_out.is_empty() {
        return String::new();
    }
    let row = |(rule, count): (&Rule, &usize)| vec![count.to_string(), format!("{}{}", of_what(*rule), rule.name())];
    let rows: Vec<_> = all.left_out.iter().map(row).collect();
    let lines = columns::lines(&rows, &[Side::Right, Side::Left]);
    format!("\n{}\n{}", paint("left out, by rule", BOLD), indented(&lines, 2))
}

/// What a rule leaves out, where it is less than the row.
fn of_what(rule: Rule) -> &'static str {
    match rule {
        Rule::NoPeak | Rule::LowerBound | Rule::NoLength => "peaks: ",
        Rule::NoSpeed | Rule::Paged | Rule::NoMachine | Rule::Masked => "speeds: ",
        Rule::NoMemory => "verdicts: ",
        _ => "rows: ",
    }
}

#[derive(Serialize)]
struct View {
    title: &'static str,
    answer: String,
    lines: Vec<[String; 5]>,
    pictures: Vec<Picture>,
    brackets: String,
    goals: Vec<GoalRow>,
    neighbours: Vec<[String; 6]>,
    left_out: Vec<[String; 2]>,
    rows: Vec<[String; 7]>,
    version: &'static str,
}

#[derive(Serialize)]
struct GoalRow {
    what: &'static str,
    wanted: String,
    got: String,
    class: &'static str,
}

const TEMPLATE: &str = include_str!("accuracy.html");

/// The comparison of all predictions as a page, with every row.
pub(crate) fn render(all: &Accuracy) -> Result<String> {
    let goals = all.goals();
    let reached = goals.iter().filter(|g| g.reached).count();
    let (n, inside) = (all.brackets.len(), all.bracketed());
    let view = View {
        title: "Accuracy of the predictions",
        answer: format!("{reached} of {} goals reached on published runs of mlx-lm on Macs.", goals.len()),
        lines: all.lines()?.iter().map(line_row).collect(),
        pictures: pictures(all)?,
        brackets: format!(
            "{inside} of {n} measured peaks lie between the predictions for the average and the maximum length."
        ),
        goals: goals
            .into_iter()
            .map(|g| GoalRow {
                what: g.what,
                wanted: g.wanted,
                got: g.got,
                class: if g.reached { "yes" } else { "no" },
            })
            .collect(),
        neighbours: all.neighbours.iter().map(neighbour_row).collect(),
        left_out: all
            .left_out
            .iter()
            .map(|(rule, n)| [n.to_string(), format!("{}{}", of_what(*rule), rule.name())])
            .collect(),
        rows: all.figures.iter().map(figure_row).collect(),
        version: env!("CARGO_PKG_VERSION"),
    };
    page::fill(TEMPLATE, view)
}

fn line_row(line: &Line) -> [String; 5] {
    let s = &line.summary;
    let place = match &line.chip {
        None => format!("{}, {}", line.engine.name(), line.quantity.name()),
        Some(chip) if chip.is_empty() => "\u{2003}chip not stated".into(),
        Some(chip) => format!("\u{2003}{chip}"),
    };
    [place, s.n.to_string(), percent(s.median), percent(s.p95), format!("{} of {}", s.inside, s.n)]
}

fn neighbour_row(n: &PlannerScore) -> [String; 6] {
    let ours = format!("{} (p95 {})", percent(n.ours.median), percent(n.ours.p95));
    [n.tool.clone(), n.n.to_string(), percent(n.median), percent(n.p95), signed(n.bias), ours]
}

fn shown(quantity: Quantity) -> compare::Quantity {
    match quantity {
        Quantity::PeakMemory => compare::Quantity::Peak,
        Quantity::Footprint => compare::Quantity::Footprint,
        Quantity::Speed => compare::Quantity::Speed,
    }
}

fn figure_row(f: &Figure) -> [String; 7] {
    let show = |v: f64| shown(f.quantity).show(v);
    [
        f.id.clone(),
        f.chip.clone(),
        f.quantity.name().into(),
        format!("{} ({} to {})", show(f.predicted.point), show(f.predicted.low), show(f.predicted.high)),
        show(f.measured),
        signed(f.error()),
        if f.inside() { "yes".into() } else { "no".into() },
    ]
}

/// Published runs only: our own measurements have pictures of their own in their reports.
fn pictures(all: &Accuracy) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    for (quantity, title) in [(Quantity::PeakMemory, "Peak memory"), (Quantity::Speed, "Speed")] {
        let of = |f: &&Figure| f.quantity == quantity && f.engine == Engine::MlxLm;
        let row = |f: &Figure| Interval { label: f.id.clone(), predicted: f.predicted, measured: Some(f.measured) };
        let rows: Vec<Interval> = all.figures.iter().filter(of).map(row).collect();
        if !rows.is_empty() {
            pictures.push(Picture { title, svg: plot::intervals(shown(quantity), &rows)? });
        }
    }
    Ok(pictures)
}
