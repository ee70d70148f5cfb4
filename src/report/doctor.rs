//! A machine and the models it can train, as text.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::report::layout::paint;
use crate::spec::machine::{Accelerator, Machine};
use crate::units::{Bytes, Flops, short_count};

/// A model and whether it can be trained here.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    /// Its name.
    pub model: String,
    /// Its size.
    pub parameters: u64,
    /// `yes`, `tight` or `no`.
    pub verdict: &'static str,
    /// Upper bound of what it takes at its leanest.
    pub memory_bytes: Bytes,
    /// Most likely speed.
    pub tokens_per_s: f64,
}

/// The facts that plans are made of.
pub(crate) fn machine(machine: &Machine) -> String {
    let metal = machine.accelerator == Accelerator::Metal;
    let mut out = format!("{}\n", paint(&machine.name, Style::new().bold()));
    let mut fact = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<20}{value}");
    };
    fact("memory", format!("{}, {} free for a run", machine.memory, machine.available));
    if metal {
        fact("Metal working set", format!("{}, buffers up to {}", machine.working_set, machine.max_buffer));
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
    out
}

/// The models, smallest first.
pub(crate) fn models(rows: &[Row], seq: usize) -> String {
    let mut out =
        format!("\nLoRA at {seq} tokens, smallest setup{:>22}{:>8}{:>11}{:>9}\n", "size", "train", "at most", "tok/s");
    for row in rows {
        let colour = match row.verdict {
            "yes" => AnsiColor::Green,
            "tight" => AnsiColor::Yellow,
            _ => AnsiColor::Red,
        };
        let verdict = paint(&format!("{:>6}", row.verdict), Style::new().fg_color(Some(colour.into())));
        let speed = if row.verdict == "no" { "-".into() } else { format!("{:.0}", row.tokens_per_s) };
        let _ = writeln!(
            out,
            "  {:<46}{:>8}  {verdict}{:>11}{speed:>9}",
            row.model,
            short_count(row.parameters),
            row.memory_bytes
        );
    }
    out
}
