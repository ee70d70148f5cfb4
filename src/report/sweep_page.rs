//! A sweep as a page: what fits where, what is fastest, and how right the predictions were.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::Result;
use crate::plan::Verdict;
use crate::report::compare::Quantity;
use crate::report::page::{self, Picture};
use crate::report::plot::{self, Cloud, Interval, Role};
use crate::report::sweep::{Row, Sweep};
use crate::stats::{median, quantile};

#[derive(Serialize)]
struct View {
    title: String,
    answer: String,
    machines: Vec<MachineView>,
    compared: Vec<Picture>,
    checked: Vec<[String; 4]>,
    checks: Vec<Picture>,
    csv: &'static str,
    version: &'static str,
}

#[derive(Serialize)]
struct MachineView {
    name: String,
    says: String,
    svg: String,
    legend: Vec<[&'static str; 2]>,
}

const TEMPLATE: &str = include_str!("sweep.html");

/// The sweep as a page.
pub(crate) fn render(sweep: &Sweep, name: &str) -> Result<String> {
    let mut machines: Vec<&str> = Vec::new();
    for row in &sweep.rows {
        if !machines.contains(&&*row.machine) {
            machines.push(&row.machine);
        }
    }
    let of = |machine: &str| sweep.rows.iter().filter(|r| r.machine == machine).collect::<Vec<_>>();
    let fit = sweep.rows.iter().filter(|r| r.verdict == Verdict::Fits).count();
    let view = View {
        title: format!("Sweep {name}"),
        answer: format!(
            "{fit} of {} runs fit ({:.0} % confidence) on {} machine{}.",
            sweep.rows.len(),
            100.0 * sweep.confidence,
            machines.len(),
            if machines.len() == 1 { "" } else { "s" }
        ),
        compared: if machines.len() > 1 { compared(&machines, &of)? } else { Vec::new() },
        machines: machines.iter().map(|m| machine(m, &of(m))).collect::<Result<_>>()?,
        checked: checked(&sweep.rows),
        checks: checks(&sweep.rows)?,
        csv: "sweep.csv",
        version: env!("CARGO_PKG_VERSION"),
    };
    page::fill(TEMPLATE, view)
}

/// Memory against speed: what fits, what does not, and what nothing else beats at both.
fn machine(name: &str, rows: &[&Row]) -> Result<MachineView> {
    let (unit, size) = unit(rows.iter().map(|r| r.memory_bytes.high.as_f64()));
    let point = |r: &&&Row| (r.memory_bytes.high.as_f64() / size, r.tokens_per_s.point);
    let those = |keep: &dyn Fn(&Row) -> bool| rows.iter().filter(|r| keep(r)).map(|r| point(&r)).collect::<Vec<_>>();
    let mut clouds = vec![
        Cloud { label: "does not fit", role: Role::Bad, points: those(&|r| r.verdict == Verdict::DoesNotFit) },
        Cloud {
            label: "may fit, or swaps",
            role: Role::Faint,
            points: those(&|r| matches!(r.verdict, Verdict::Tight | Verdict::Pages)),
        },
        Cloud { label: "fits", role: Role::Predicted, points: those(&|r| r.verdict == Verdict::Fits) },
        Cloud {
            label: "fits, and no other run of its recipe is both faster and smaller",
            role: Role::Measured,
            points: those(&|r| r.front),
        },
    ];
    clouds.retain(|c| !c.points.is_empty());
    let title = format!("memory and speed on {name}");
    let fit = rows.iter().filter(|r| r.verdict == Verdict::Fits).count();
    Ok(MachineView {
        name: name.into(),
        says: format!("{fit} of {} runs fit.", rows.len()),
        svg: plot::scatter(&title, [&format!("upper bound of memory, {unit}"), "tokens/s"], &clouds, false)?,
        legend: clouds.iter().map(|c| [c.role.name(), c.label]).collect(),
    })
}

/// The fastest run of the first recipe that fits everywhere, machine by machine.
fn compared<'a>(machines: &[&str], of: &dyn Fn(&str) -> Vec<&'a Row>) -> Result<Vec<Picture>> {
    let mut recipes: BTreeMap<usize, Vec<(&str, &Row)>> = BTreeMap::new();
    for machine in machines {
        for row in of(machine).into_iter().filter(|r| r.best) {
            recipes.entry(row.recipe).or_default().push((machine, row));
        }
    }
    // Of the recipes that most machines can run the one that teaches most.
    let Some(rows) = recipes.into_values().max_by_key(|rows| (rows.len(), rows[0].1.base_params, rows[0].1.reach))
    else {
        return Ok(Vec::new());
    };
    let interval = |(machine, row): &(&str, &Row)| Interval {
        label: (*machine).into(),
        predicted: row.tokens_per_s,
        measured: None,
    };
    let intervals: Vec<Interval> = rows.iter().map(interval).collect();
    let svg = plot::intervals(Quantity::Speed, &intervals)?;
    Ok(vec![Picture { title: "The same recipe on each machine, in its fastest execution", svg }])
}

/// (predicted by formulas alone, predicted now, measured) of speed and of memory, where it was measured.
fn triples(rows: &[Row]) -> [(Quantity, Vec<[f64; 3]>); 2] {
    let checked = || rows.iter().filter_map(|r| r.checked).map(|c| [c.before, c.after, c.measured]);
    [
        (Quantity::Speed, checked().map(|all| all.map(|(speed, _)| speed)).collect()),
        (Quantity::Footprint, checked().map(|all| all.map(|(_, footprint)| footprint.as_f64())).collect()),
    ]
}

/// Median error and 95th percentile before and after calibrating.
fn checked(rows: &[Row]) -> Vec<[String; 4]> {
    let line = |(quantity, all): (Quantity, Vec<[f64; 3]>)| {
        let errors = |i: usize| all.iter().map(|t| (t[i] / t[2] - 1.0).abs()).collect::<Vec<_>>();
        let show = |e: Vec<f64>| format!("{:.1} % (p95 {:.1} %)", 100.0 * median(&e), 100.0 * quantile(&e, 0.95));
        (!all.is_empty()).then(|| [quantity.name().into(), all.len().to_string(), show(errors(0)), show(errors(1))])
    };
    triples(rows).into_iter().filter_map(line).collect()
}

fn checks(rows: &[Row]) -> Result<Vec<Picture>> {
    let mut pictures = Vec::new();
    for (quantity, all) in triples(rows) {
        if all.is_empty() {
            continue;
        }
        let (title, (unit, size)) = match quantity {
            Quantity::Speed => ("Speed", ("tokens/s", 1.0)),
            _ => ("Process memory", unit(all.iter().flatten().copied())),
        };
        let points = |i: usize| all.iter().map(|t| (t[2] / size, t[i] / size)).collect();
        let clouds = [
            Cloud { label: "formulas alone", role: Role::Bad, points: points(0) },
            Cloud { label: "calibrated", role: Role::Measured, points: points(1) },
        ];
        let axes = ["measured", "predicted"].map(|side| format!("{side}, {unit}"));
        let name = format!("{title}: predicted and measured");
        let svg = plot::scatter(&name, axes.each_ref().map(String::as_str), &clouds, true)?;
        pictures.push(Picture { title, svg });
    }
    Ok(pictures)
}

/// The unit in which sizes of this order are read, and its bytes.
fn unit(sizes: impl Iterator<Item = f64>) -> (&'static str, f64) {
    const GIB: f64 = (1u64 << 30) as f64;
    if sizes.fold(0.0, f64::max) >= 2.0 * GIB { ("GiB", GIB) } else { ("MiB", GIB / 1024.0) }
}
