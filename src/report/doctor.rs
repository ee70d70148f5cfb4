//! A machine and the models it can train, as text.

use std::path::Path;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::report::columns::{self, Side, indented};
use crate::report::layout::paint;
use crate::spec::machine::{Accelerator, Machine};
use crate::spec::run::Engine;
use crate::units::{Bytes, Flops, counted, short_count};

/// Whether a model can be trained on the machine in its smallest configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Trains {
    /// The upper bound is under every limit.
    Yes,
    /// The upper bound is over a limit, but the run is likely to fit, or runs with swapping.
    Tight,
    /// It is over a limit that ends the run.
    No,
}

/// A model and whether it can be trained on the machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Name of the model in the catalogue.
    pub model: String,
    /// Its `model_type`.
    pub family: &'static str,
    /// Year and month of its release.
    pub released: String,
    /// Engine that is meant.
    pub engine: Engine,
    /// Number of parameters of the model.
    pub parameters: u64,
    /// Whether it can be trained in its smallest configuration.
    pub verdict: Trains,
    /// Upper bound of the memory of its smallest configuration, bytes.
    pub memory_bytes: Bytes,
    /// Most likely throughput, tokens/s.
    pub tokens_per_s: f64,
}

/// The figures of a machine that plans are made of, as text; `no_metal` is why a Mac does not use its GPU.
pub(crate) fn machine(machine: &Machine, no_metal: Option<&str>) -> String {
    let metal = machine.accelerator == Accelerator::Metal;
    let mut out = format!("{}\n", paint(&machine.name, Style::new().bold()));
    let mut facts = Vec::new();
    let mut fact = |name: &str, value: String| facts.push(vec![name.to_owned(), value]);
    fact("memory", format!("{}, {} free for a run", machine.memory, machine.available));
    if metal {
        fact("Metal working set", format!("{}, buffers up to {}", machine.working_set, machine.max_buffer));
    }
    if let Some(reason) = no_metal {
        fact("Metal", format!("not used, because {reason}"));
    }
    fact("bandwidth", format!("{:.0} GB/s", Flops(machine.bandwidth).giga()));
    let measured = machine.measured_flops.map(|m| format!(", {:.1} measured", m.tera())).unwrap_or_default();
    let threads = if metal { "GPU cores" } else { "threads" };
    let rate = format!("{:.1} TFLOP/s in f32{measured}, on {} {threads}", machine.peak_flops.tera(), machine.cores);
    fact("arithmetic", rate);
    if let Some(watts) = machine.power_w {
        fact("power", format!("about {watts:.0} W under load"));
    }
    if machine.fanless {
        fact("cooling", "none (it slows down after minutes)".into());
    }
    fact("figures from", machine.source.clone());
    out += &indented(&columns::lines(&facts, &[Side::Left]), 2);
    out
}

/// Columns from which on there is room for what else is known of the models.
const WIDE: usize = 104;

/// Columns of the table beside the names, and of what else is known.
const FIGURES: usize = 34;
const MORE: usize = 23;

/// Whether each model can be trained at `seq` tokens, as a table in the order of `rows`, which are some of `known` models.
pub(crate) fn models(rows: &[Row], seq: usize, known: usize, width: usize) -> String {
    let title = format!("LoRA at {seq} tokens, smallest setup");
    let (wide, room): (&[&str], _) = if width >= WIDE {
        (&["family", "released"], width - FIGURES - MORE)
    } else {
        (&[], width.saturating_sub(FIGURES))
    };
    let head = [&[title.as_str(), "size", "train", "at most", "tok/s"], wide].concat();
    let mut lines = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for row in rows {
        let (word, colour) = match row.verdict {
            Trains::Yes => ("yes", AnsiColor::Green),
            Trains::Tight => ("tight", AnsiColor::Yellow),
            Trains::No => ("no", AnsiColor::Red),
        };
        let verdict = paint(word, Style::new().fg_color(Some(colour.into())));
        let mark = if row.engine == Engine::MlxLm { " *" } else { "" };
        let speed = if row.verdict == Trains::No { "-".into() } else { format!("{:.0}", row.tokens_per_s) };
        let size = short_count(row.parameters);
        // A name is understood without its owner too.
        let short = row.model.rsplit('/').next().unwrap_or(&row.model);
        let name = if row.model.len() + mark.len() > room { short } else { &row.model };
        let name = format!("  {name}{mark}");
        let mut line = vec![name, size, verdict, row.memory_bytes.to_string(), speed];
        line.extend([row.family.to_owned(), row.released.clone()].into_iter().take(wide.len()));
        lines.push(line);
    }
    let sides = [&[Side::Left][..], &[Side::Right; 4], &[Side::Left]].concat();
    let mut out = String::new();
    if !rows.is_empty() {
        out += &format!("\n{}", indented(&columns::lines(&lines, &sides), 0));
    }
    if rows.iter().any(|row| row.engine == Engine::MlxLm) {
        out += "\n* with `--engine mlx-lm`; all others with Headroom's own trainer\n";
    }
    if rows.len() < known {
        out += &format!("\n{} of {}\n", rows.len(), counted(known, "known model"));
    }
    out
}

/// One configuration of a self-test.
pub(crate) struct Tested<'a> {
    /// What is peculiar to it.
    pub name: &'a str,
    /// Whether both processors learned the same.
    pub agrees: bool,
    /// Largest difference of the losses, as a share of them.
    pub apart: f64,
    /// Time of a step on the device and on the CPU.
    pub seconds: [String; 2],
}

/// What a self-test saw, and where it is written.
pub(crate) fn tested<'a>(device: &str, rows: impl Iterator<Item = Tested<'a>>, out: &Path) -> String {
    let mut lines = vec![["  trained with", "", "losses differ by", "step", "on the CPU"].map(str::to_owned).to_vec()];
    let mut all = true;
    for row in rows {
        let (word, colour) = if row.agrees { ("same", AnsiColor::Green) } else { ("differs", AnsiColor::Red) };
        all &= row.agrees;
        let [step, cpu] = row.seconds;
        let verdict = paint(word, Style::new().fg_color(Some(colour.into())));
        lines.push(vec![format!("  {}", row.name), verdict, format!("{:.1e}", row.apart), step, cpu]);
    }
    let verdict = if all { "learns the same as" } else { "differs from" };
    let table = indented(&columns::lines(&lines, &[Side::Left, Side::Left, Side::Right]), 0);
    format!("training on {device} {verdict} training on the CPU's own kernels\n{table}\nwritten to {}\n", out.display())
}
