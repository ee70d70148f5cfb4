//! The configurations of a grid, ranked: as text and as a table.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::fmt::Write;

use anstyle::{AnsiColor, Color, Style};
use serde::Serialize;

use crate::plan::Verdict;
use crate::report::columns::{self, Side, indented};
use crate::report::layout::{paint, seen};
use crate::units::{Bytes, Estimate, Seconds};

/// One configuration of a grid on one machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Name of the machine.
    pub machine: String,
    /// Its values of the fields that the grid varies.
    pub values: Vec<String>,
    /// Whether the configuration fits.
    pub verdict: Verdict,
    /// Name of the limit that is nearest, or furthest exceeded.
    pub binds: &'static str,
    /// Memory that is held against that limit, bytes.
    pub memory_bytes: Estimate<Bytes>,
    /// Peak of tensor allocations, bytes.
    pub peak_memory_bytes: Estimate<Bytes>,
    /// Peak footprint of the process, bytes.
    pub footprint_bytes: Estimate<Bytes>,
    /// Throughput, tokens/s.
    pub tokens_per_s: Estimate<f64>,
    /// Time of the whole run, s.
    pub total_time_s: Estimate<Seconds>,
    /// Number of trainable parameters.
    pub trainable_params: u64,
    /// Number of parameters of the base model.
    pub base_params: u64,
    /// Number of the recipe: rows of the same number differ only in execution.
    pub recipe: usize,
    /// Longest example, and rank, which order recipes of the same model.
    #[serde(skip)]
    pub reach: (usize, usize),
    /// Whether no other row of this recipe that fits is both faster and smaller.
    pub front: bool,
    /// Whether it is the fastest row of this recipe that fits.
    pub best: bool,
    /// Predicted and measured figures, where the configuration was run.
    pub checked: Option<Checked>,
    /// Footprint when its last trial died of memory or was killed, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub died: Option<Bytes>,
}

/// Throughput (tokens/s) and footprint of a run whose rows are all filled up to the longest: predicted and measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Checked {
    /// Predicted by the formulas alone.
    pub before: (f64, Bytes),
    /// Predicted with everything that was measured.
    pub after: (f64, Bytes),
    /// Median of the measurements.
    pub measured: (f64, Bytes),
}

/// Result of a sweep: the rows of all configurations on all machines.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sweep {
    /// Names of the fields that vary.
    pub varied: Vec<String>,
    /// Ranked, machine by machine: what fits first; of that the largest model, the longest examples, the highest rank,
    /// and then the fastest.
    pub rows: Vec<Row>,
    /// Combinations that are no runs, and why the first is not.
    pub refused: Option<(usize, String)>,
    /// Probability with which each upper bound holds.
    pub confidence: f64,
}

const YELLOW: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Yellow)));
const RED: Style = Style::new().fg_color(Some(Color::Ansi(AnsiColor::Red)));

/// Number of rows shown for each machine.
const SHOWN: usize = 8;
/// Characters of a value that are shown at most, and those that it keeps on the shortest line.
const WIDEST: usize = 24;
const NARROWEST: usize = 6;

impl Sweep {
    /// Sorts the rows and marks the front of every machine; the machines stay in their order.
    pub(crate) fn rank(mut self) -> Self {
        let mut machines: Vec<String> = Vec::new();
        for row in &self.rows {
            if !machines.contains(&row.machine) {
                machines.push(row.machine.clone());
            }
        }
        self.rows.sort_by_key(|row| {
            let place = machines.iter().position(|m| *m == row.machine);
            let slowness = Reverse(row.tokens_per_s.point.to_bits()); // no speed is negative
            let learned = (Reverse(row.base_params), Reverse(row.reach), row.recipe);
            (place, row.verdict, learned, slowness, row.memory_bytes.high)
        });
        let mut smallest: Option<(String, usize, Bytes)> = None;
        for row in self.rows.iter_mut().filter(|r| r.verdict == Verdict::Fits) {
            // The fastest of a recipe comes first: a later one is on the front if it is smaller than all before it.
            let before =
                smallest.take().filter(|(machine, recipe, _)| *machine == row.machine && *recipe == row.recipe);
            row.best = before.is_none();
            row.front = before.as_ref().is_none_or(|(_, _, bytes)| row.memory_bytes.high < *bytes);
            let bytes = before.map_or(row.memory_bytes.high, |(_, _, bytes)| bytes.min(row.memory_bytes.high));
            smallest = Some((row.machine.clone(), row.recipe, bytes));
        }
        self
    }

    /// The sweep as text: for every machine how many configurations fit, and the best of them.
    pub(crate) fn text(&self, [csv, page]: [&str; 2], width: usize) -> String {
        let mut out = String::new();
        let mut seen = HashSet::new();
        for row in &self.rows {
            if seen.insert(&row.machine) {
                self.machine(&row.machine, width, &mut out);
            }
        }
        if let Some((n, why)) = &self.refused {
            let _ = writeln!(out, "{n} combinations are not valid runs; the first: {why}");
        }
        let _ = writeln!(out, "all {} in {csv}\npage: {page}", self.rows.len());
        out
    }

    fn machine(&self, name: &str, width: usize, out: &mut String) {
        let rows: Vec<&Row> = self.rows.iter().filter(|r| r.machine == name).collect();
        let fit = rows.iter().filter(|r| r.verdict == Verdict::Fits).count();
        let best: Vec<&Row> = rows.iter().filter(|r| r.best).copied().collect();
        // Where nothing fits, what comes nearest to it.
        let shown: Vec<&Row> = if best.is_empty() { &rows } else { &best }.iter().take(SHOWN).copied().collect();
        let recipes = rows.iter().map(|r| r.recipe).collect::<HashSet<_>>().len();
        let _ = writeln!(out, "{}", paint(name, Style::new().bold()));
        let sure = 100.0 * self.confidence;
        let _ = writeln!(
            out,
            "{fit} of {} runs fit ({sure:.0} % confidence), for {} of {recipes} recipes; fastest of each:",
            rows.len(),
            best.len()
        );
        let died = rows.iter().filter(|r| r.died.is_some()).count();
        if died > 0 {
            let were = if died == 1 {
                "1 run did not fit when it was"
            } else {
                &format!("{died} runs did not fit when they were")
            };
            let _ = writeln!(out, "{were} measured; runs that need as much memory are not counted as fitting");
        }
        let _ = writeln!(out);
        let mut fields: Vec<(&str, usize)> =
            self.varied.iter().enumerate().map(|(i, f)| column(i, f, &shown)).collect();
        // Where the line is short, the time goes, which follows from the speed; then the widest values are cut.
        let mut timed = true;
        let lines = loop {
            let lines = laid_out(&shown, &fields, best.is_empty(), timed);
            if lines.iter().all(|line| seen(line) + 2 <= width) {
                break lines;
            }
            let widest = fields.iter_mut().max_by_key(|(_, w)| *w).filter(|(_, w)| *w > NARROWEST);
            match (timed, widest) {
                (true, _) => timed = false,
                (false, Some(field)) => field.1 -= 1,
                (false, None) => break lines,
            }
        };
        *out += &indented(&lines[..1], 2);
        for (row, line) in shown.iter().zip(&lines[1..]) {
            let _ = writeln!(out, "  {line}");
            if let Some(Checked { measured: (speed, footprint), .. }) = row.checked {
                let _ = writeln!(out, "      measured at full length: {speed:.0} tokens/s, {footprint}");
            }
            if let Some(footprint) = row.died {
                let _ = writeln!(out, "      did not fit when it was measured; it was stopped at {footprint}");
            }
        }
        let more = best.len().saturating_sub(SHOWN);
        let _ = writeln!(out, "{}", if more > 0 { format!("  and {more} more\n") } else { String::new() });
    }

    /// Column names and rows of the sweep's CSV.
    pub(crate) fn csv(&self) -> (Vec<String>, Vec<Vec<String>>) {
        let fixed = [
            "verdict",
            "binds",
            "memory_bytes",
            "memory_bytes_high",
            "peak_memory_bytes",
            "footprint_bytes",
            "footprint_bytes_high",
            "tokens_per_s",
            "tokens_per_s_low",
            "tokens_per_s_high",
            "total_time_s",
            "trainable_params",
            "recipe",
            "best",
            "front",
            "measured_filled_tokens_per_s",
            "measured_filled_footprint_bytes",
        ];
        let head = std::iter::once("machine").chain(self.varied.iter().map(String::as_str)).chain(fixed);
        let line = |row: &Row| {
            let measured = row.checked.map(|c| (c.measured.0.to_string(), c.measured.1.0.to_string()));
            let (speed, footprint) = measured.unwrap_or_default();
            let mut line = vec![row.machine.clone()];
            line.extend(row.values.iter().cloned());
            line.extend([
                row.verdict.name().into(),
                row.binds.into(),
                row.memory_bytes.point.0.to_string(),
                row.memory_bytes.high.0.to_string(),
                row.peak_memory_bytes.point.0.to_string(),
                row.footprint_bytes.point.0.to_string(),
                row.footprint_bytes.high.0.to_string(),
                format!("{:.3}", row.tokens_per_s.point),
                format!("{:.3}", row.tokens_per_s.low),
                format!("{:.3}", row.tokens_per_s.high),
                format!("{:.1}", row.total_time_s.point.0),
                row.trainable_params.to_string(),
                row.recipe.to_string(),
                row.best.to_string(),
                row.front.to_string(),
                speed,
                footprint,
            ]);
            line
        };
        (head.map(str::to_owned).collect(), self.rows.iter().map(line).collect())
    }
}

/// A line of titles, and one a row: its values, each no wider than its field, the verdict where it is not the same for
/// all, and what the run takes.
fn laid_out(rows: &[&Row], fields: &[(&str, usize)], judged: bool, timed: bool) -> Vec<String> {
    let mut sides = vec![Side::Left; fields.len() + usize::from(judged)];
    sides.push(Side::Right);
    let cut = |text: &str, w: usize| text.chars().take(w).collect::<String>();
    let mut head: Vec<String> = fields.iter().map(|(title, w)| cut(title, *w)).collect();
    head.extend(judged.then(String::new));
    head.extend(["at most", "tok/s"].map(String::from));
    head.extend(timed.then(|| "time".into()));
    let mut table = vec![head];
    for row in rows {
        let mut cells: Vec<String> = row.values.iter().zip(fields).map(|(v, (_, w))| cut(brief(v), *w)).collect();
        cells.extend(judged.then(|| match row.verdict {
            Verdict::Fits => String::new(), // said above
            Verdict::Tight => paint("tight", YELLOW),
            Verdict::Pages => paint("pages", YELLOW),
            Verdict::DoesNotFit => paint("no", RED),
        }));
        cells.extend([row.memory_bytes.high.to_string(), format!("{:.0}", row.tokens_per_s.point)]);
        cells.extend(timed.then(|| row.total_time_s.point.to_string()));
        table.push(cells);
    }
    columns::lines(&table, &sides)
}

/// Title and width of a column of values.
fn column<'a>(i: usize, field: &'a str, rows: &[&Row]) -> (&'a str, usize) {
    let last = field.rsplit('.').next().unwrap_or(field);
    let title = match last {
        "max_seq_length" => "tokens",
        "effective_batch_size" => "effective",
        "batch_size" => "batch",
        "grad_checkpoint" => "ckpt",
        "target_modules" => "targets",
        other => other,
    };
    let widest = rows.iter().map(|r| brief(&r.values[i]).chars().count()).chain([title.len()]).max().unwrap_or(0);
    (title, widest.min(WIDEST))
}

/// Name of a model without its owner.
fn brief(value: &str) -> &str {
    value.rsplit('/').next().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(machine: &str, verdict: Verdict, gib: f64, speed: f64) -> Row {
        let bytes = Bytes::from_gib(gib);
        let memory = Estimate { point: bytes, low: bytes, high: bytes, level: 0.9 };
        Row {
            machine: machine.into(),
            values: vec![format!("{gib}")],
            verdict,
            binds: "memory limit",
            memory_bytes: memory,
            peak_memory_bytes: memory,
            footprint_bytes: memory,
            tokens_per_s: Estimate { point: speed, low: speed, high: speed, level: 0.9 },
            total_time_s: Estimate { point: Seconds(1.0), low: Seconds(1.0), high: Seconds(1.0), level: 0.9 },
            trainable_params: 7,
            base_params: 0,
            recipe: 0,
            reach: (0, 0),
            front: false,
            best: false,
            checked: None,
            died: None,
        }
    }

    #[test]
    fn recipes_come_first_and_each_at_its_fastest() {
        let mut rows = vec![
            row("b", Verdict::DoesNotFit, 9.0, 900.0),
            row("b", Verdict::Fits, 4.0, 100.0),
            row("b", Verdict::Fits, 5.0, 90.0),
            row("a", Verdict::Tight, 1.0, 10.0),
            row("b", Verdict::Fits, 2.0, 50.0),
            row("b", Verdict::Fits, 7.0, 5.0),
            row("a", Verdict::Fits, 3.0, 10.0),
        ];
        (rows[5].recipe, rows[5].reach) = (1, (2048, 8));
        let sweep = Sweep { varied: vec!["x".into()], rows, refused: None, confidence: 0.99 }.rank();
        let order: Vec<(&str, f64, bool, bool)> =
            sweep.rows.iter().map(|r| (&*r.machine, r.memory_bytes.high.gib(), r.best, r.front)).collect();
        let expected = [
            ("b", 7.0, true, true),
            ("b", 4.0, true, true),
            ("b", 5.0, false, false),
            ("b", 2.0, false, true),
            ("b", 9.0, false, false),
            ("a", 3.0, true, true),
            ("a", 1.0, false, false),
        ];
        assert_eq!(order, expected);
        let (head, lines) = sweep.csv();
        assert!(lines.iter().all(|l| l.len() == head.len()) && head[1] == "x");
        let text = sweep.text(["t.csv", "t.html"], 80);
        assert!(text.contains("4 of 5 runs fit") && text.contains("2 of 2 recipes"), "{text}");
    }
}
