//! What guides claim beside what the model says: a table and a page.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use super::layout::paint;
use super::page;
use crate::accuracy::guides::{Checked, Guide, Verdict};
use crate::error::Result;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

fn colour(verdict: Verdict) -> Style {
    let colour = match verdict {
        Verdict::Right => AnsiColor::Green,
        Verdict::Pessimistic => AnsiColor::Yellow,
        Verdict::Optimistic | Verdict::Impossible => AnsiColor::Red,
    };
    Style::new().fg_color(Some(colour.into()))
}

/// How many claims got which verdict.
fn count(all: &[Checked]) -> String {
    let of = |verdict| all.iter().filter(|c| c.verdict == verdict).count();
    format!(
        "{} claims: {} right, {} optimistic, {} pessimistic, {} impossible",
        all.len(),
        of(Verdict::Right),
        of(Verdict::Optimistic),
        of(Verdict::Pessimistic),
        of(Verdict::Impossible)
    )
}

/// The whole answer as text.
pub fn text(guides: &[Guide], all: &[Checked]) -> String {
    let mut out = format!("{}\n", paint(&count(all), BOLD));
    let _ = writeln!(out, "{}", paint("the model's figures are for mlx-lm; `ours` is Headroom's own trainer", DIM));
    for guide in guides {
        let _ = write!(out, "\n{}\n", paint(&guide.name, BOLD));
        for c in all.iter().filter(|c| c.guide == guide.key) {
            out += &claim(c);
        }
    }
    out
}

fn claim(c: &Checked) -> String {
    let ours = c.ours.map(|b| format!(", ours {:.1} GB", b.decimal_gb())).unwrap_or_default();
    let verdict = paint(&format!("{:<12}", c.verdict.name()), colour(c.verdict));
    format!(
        "{verdict}{}\n            {}\n            says {}; the model {}{ours}\n            {}\n",
        c.what,
        paint(&c.machine, DIM),
        c.says,
        c.model_says,
        paint(&c.why, DIM)
    )
}

#[derive(Serialize)]
struct View {
    title: &'static str,
    answer: String,
    guides: Vec<GuideView>,
    version: &'static str,
}

#[derive(Serialize)]
struct GuideView {
    name: String,
    url: String,
    claims: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    what: String,
    machine: String,
    says: String,
    model_says: String,
    ours: String,
    verdict: &'static str,
    class: &'static str,
    why: String,
}

const TEMPLATE: &str = include_str!("guides.html");

/// The same as a page.
pub fn render(guides: &[Guide], all: &[Checked]) -> Result<String> {
    let row = |c: &Checked| Row {
        what: c.what.clone(),
        machine: c.machine.clone(),
        says: c.says.clone(),
        model_says: c.model_says.clone(),
        ours: c.ours.map(|b| format!("{:.1} GB", b.decimal_gb())).unwrap_or_default(),
        verdict: c.verdict.name(),
        class: if c.verdict == Verdict::Right { "yes" } else { "no" },
        why: c.why.clone(),
    };
    let view = View {
        title: "What guides say, checked",
        answer: count(all),
        guides: guides
            .iter()
            .map(|g| GuideView {
                name: g.name.clone(),
                url: g.url.clone(),
                claims: all.iter().filter(|c| c.guide == g.key).map(row).collect(),
            })
            .collect(),
        version: env!("CARGO_PKG_VERSION"),
    };
    page::fill(TEMPLATE, view)
}
