//! `headroom sweep`: every configuration of a grid, ranked; with `--measure` the feasible ones are really run.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use rayon::prelude::*;

use super::bench::{self, Bench, Subject};
use super::interrupt::interrupted;
use super::{Answer, Output, calibrate, common};
use crate::cli::{self, SweepArgs};
use crate::error::{Error, Result};
use crate::plan::{Assessment, Verdict, assess};
use crate::predict::calibration::Calibration;
use crate::predict::{ASSUMED_EXAMPLES, Request};
use crate::report::sweep::{Row, Sweep};
use crate::spec::data::TokenLengths;
use crate::spec::grid::Grid;
use crate::spec::machine::Machine;
use crate::spec::run::{Data, Engine, Recipe, RunConfig};
use crate::store;
use crate::units::{Bytes, Estimate};

/// Everything about the runs' models and data that is read once.
type Subjects = HashMap<(String, String), Subject>;

/// Sweeps.
pub fn run(args: &SweepArgs, output: &Output) -> Result<Answer> {
    let grid = Grid::from_toml(&store::read_text(&args.grid)?, &args.grid)?;
    let confidence = common::confidence(&args.limits)?;
    let named = args.machine.machine.is_some() || args.machine.ram.is_some();
    let machines = match (named, grid.machines.is_empty()) {
        (false, false) => grid.machines.iter().map(|m| m.find()).collect::<Result<Vec<_>>>()?,
        _ => vec![common::machine(&args.machine)?],
    };
    let subjects = subjects(&grid, output)?;
    if args.measure {
        if named || !grid.machines.is_empty() {
            return Err(Error::invalid("--measure", "given with another machine", "given for the machine it runs on"));
        }
        measure(&grid, args, &subjects, output)?;
    }
    let mut rows = Vec::new();
    for machine in &machines {
        rows.extend(predictions(&grid, machine, args, &subjects, confidence)?);
    }
    let sweep = Sweep { varied: grid.varied, rows, refused: grid.refused, confidence }.rank();
    let name = args.grid.file_stem().map_or_else(|| "sweep".into(), |n| n.to_string_lossy().into_owned());
    let path = args.reports.join(store::file_name(&name)).join("sweep.csv");
    let (header, lines) = sweep.csv();
    store::write_csv(&path, &header, &lines)?;
    output.answer(&sweep, |width| sweep.text(&path.display().to_string(), width))?;
    Ok(if sweep.rows.iter().any(|r| r.verdict == Verdict::Fits) { Answer::Yes } else { Answer::No })
}

fn key(run: &RunConfig) -> (String, String) {
    (run.model.clone(), run.data.train().to_string_lossy().into_owned())
}

/// Models and data of all runs; where the data or the tokenizer is not here, its lengths are assumed, and that is said.
fn subjects(grid: &Grid, output: &Output) -> Result<Subjects> {
    let mut found = Subjects::new();
    for (run, _) in &grid.runs {
        if found.contains_key(&key(run)) {
            continue;
        }
        let model = common::model(&run.model)?;
        let longest = grid.runs.iter().map(|(r, _)| r.recipe.max_seq_length).max().unwrap_or_default();
        let lengths = match common::lengths(&model, &run.data) {
            Ok(lengths) => lengths,
            Err(Error::NoWeights { .. } | Error::Read { .. }) => {
                output.note(&format!("{} with `{}`: {}", model.name, key(run).1, common::assumed(run, longest)));
                TokenLengths::assumed(ASSUMED_EXAMPLES, longest)
            }
            Err(e) => return Err(e),
        };
        found.insert(key(run), Subject { spec: model.spec, lengths });
    }
    Ok(found)
}

fn predictions(
    grid: &Grid,
    machine: &Machine,
    args: &SweepArgs,
    subjects: &Subjects,
    confidence: f64,
) -> Result<Vec<Row>> {
    let known = |engine| Ok((engine, bench::known(engine, machine, &args.machine.results)?));
    let known: Vec<(Engine, Calibration)> =
        [Engine::Candle, Engine::MlxLm].into_iter().map(known).collect::<Result<_>>()?;
    let measured = bench::measurements(machine, &args.machine.results)?;
    let mut recipes: Vec<(&str, &Data, &Recipe)> = Vec::new();
    let numbers: Vec<usize> = grid.runs.iter().map(|(run, _)| number(&mut recipes, run)).collect();
    let one = |((run, values), recipe): (&(RunConfig, Vec<String>), &usize)| {
        let subject = &subjects[&key(run)];
        let calibration = known.iter().find(|(engine, _)| *engine == run.engine).map_or(&known[0].1, |(_, c)| c);
        let request = Request { spec: &subject.spec, machine, run, lengths: Some(&subject.lengths), calibration };
        let assessment = assess(&request, confidence, args.limits.budget)?;
        let seen = measured.iter().rev().find(|m| m.answers(run, true, &m.engine_version));
        let seen = seen.and_then(|m| Some((m.measured.tokens_per_s?, m.measured.footprint_bytes?)));
        let reach = (run.recipe.max_seq_length, run.recipe.lora.rank);
        Ok(Row { recipe: *recipe, reach, ..row(machine, values, &assessment, seen) })
    };
    grid.runs.par_iter().zip(&numbers).map(one).collect()
}

/// The place of a run's recipe among those seen, where it is put if it is new.
fn number<'a>(seen: &mut Vec<(&'a str, &'a Data, &'a Recipe)>, run: &'a RunConfig) -> usize {
    let recipe = (&*run.model, &run.data, &run.recipe);
    seen.iter().position(|r| *r == recipe).unwrap_or_else(|| {
        seen.push(recipe);
        seen.len() - 1
    })
}

fn row(machine: &Machine, values: &[String], a: &Assessment, measured: Option<(f64, Bytes)>) -> Row {
    let p = &a.prediction;
    let binding = a.binding();
    let memory = binding.map_or(p.footprint, |l| Estimate { low: l.low, point: l.point, high: l.high, ..p.footprint });
    Row {
        machine: machine.name.clone(),
        values: values.to_vec(),
        verdict: a.verdict,
        binds: binding.map_or("", |l| l.name),
        memory_bytes: memory,
        peak_memory_bytes: p.peak_memory,
        footprint_bytes: p.footprint,
        tokens_per_s: p.tokens_per_s,
        total_time_s: p.total_time,
        trainable_params: p.trainable_params,
        base_params: p.total_params - p.trainable_params,
        recipe: 0,
        reach: (0, 0),
        front: false,
        best: false,
        measured,
    }
}

/// Short runs of what fits here and has not been measured yet; each is written down as it ends.
fn measure(grid: &Grid, args: &SweepArgs, subjects: &Subjects, output: &Output) -> Result<()> {
    let settings =
        cli::Bench { results: args.machine.results.clone(), limit: args.limits.budget, script: args.script.clone() };
    let mut benches: HashMap<&'static str, Bench> = HashMap::new();
    let bar = output.bar(grid.runs.len() as u64);
    for (i, (run, values)) in grid.runs.iter().enumerate() {
        bar.set_position(i as u64);
        bar.set_message(values.join(", "));
        if !benches.contains_key(run.engine.name()) {
            benches.insert(run.engine.name(), Bench::open(run.engine, &settings)?);
        }
        let Some(bench) = benches.get_mut(run.engine.name()) else { continue };
        let mut trial = run.clone();
        bench::anchor(&mut trial);
        if bench.measurements.iter().any(|m| m.answers(&trial, true, &bench.place.engine_version)) {
            continue;
        }
        let plan = bench.assess(&subjects[&key(run)].padded(), &trial, common::confidence(&args.limits)?)?;
        if !plan.fits() {
            continue;
        }
        let measurement = calibrate::measure(bench, &trial, (args.trial_time, &plan), args.script.as_deref())?;
        let text = format!("  {}: {}", values.join(", "), calibrate::seen(&measurement));
        bench.add(measurement)?;
        bar.suspend(|| output.part(&text))?;
        if interrupted().load(Ordering::Relaxed) {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(())
}
