//! `headroom sweep`: every configuration of a grid, ranked; with `--measure` the feasible ones are really run.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::Path;
use std::sync::atomic::Ordering;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::checkpoint::source;
use crate::cli::measure::SweepArgs;
use crate::commands::interrupt::{interrupted, typed_again};
use crate::commands::output::{Answer, Output};
use crate::commands::{calibrate, inputs, pages};
use crate::data::lengths;
use crate::error::{Error, Result};
use crate::experiment::run_file;
use crate::experiment::session::{Session, Settings};
use crate::experiment::trial::{self, TrialLimits};
use crate::experiment::workload::Workload;
use crate::measure::{Measurement, table};
use crate::plan::{Assessment, Verdict, assess};
use crate::predict::calibration::Calibration;
use crate::predict::{ASSUMED_EXAMPLES, Request, predict};
use crate::report::sweep::{Checked, Row, Sweep};
use crate::report::sweep_page;
use crate::spec::machine::Machine;
use crate::spec::run::grid::Grid;
use crate::spec::run::{Engine, RunConfig, TokenLengths, grids};
use crate::stats::median;
use crate::store;
use crate::units::{Bytes, Estimate};

/// The ranking, beside its page.
const TABLE: &str = "sweep.csv";

/// Of intervals of which only the middle is used.
const LEVEL: f64 = 0.9;

/// Everything about the runs' models and data that is read once.
type Subjects = HashMap<(String, String), Workload>;

/// Sweeps.
pub(crate) fn run(args: &SweepArgs, output: &Output) -> Result<Answer> {
    let grid = grid(&args.grid)?;
    let results = inputs::results(args.machine.results.as_ref())?;
    let confidence = inputs::confidence(args.limits.confidence);
    let named = args.machine.machine.is_some() || args.machine.ram.is_some();
    let machines = match (named, grid.machines.is_empty()) {
        (false, false) => grid.machines.iter().map(|m| m.find()).collect::<Result<Vec<_>>>()?,
        _ => vec![inputs::machine(&args.machine)?],
    };
    let subjects = subjects(&grid, output)?;
    let name = args.grid.file_stem().map_or_else(|| "sweep".into(), |n| n.to_string_lossy().into_owned());
    let folder = args.reports.join(store::file_name(&name));
    // Found out before the trials and not after them.
    pages::check(&folder, Some(TABLE))?;
    if args.measure {
        if named || !grid.machines.is_empty() {
            return Err(Error::invalid("--measure", "given with another machine", "given for the machine it runs on"));
        }
        measure(&grid, (args, &results), &subjects, confidence, output)?;
    }
    let mut rows = Vec::new();
    for machine in &machines {
        rows.extend(predictions(&grid, machine, (args, &results), &subjects, confidence)?);
    }
    let sweep = Sweep { varied: grid.varied, rows, refused: grid.refused, confidence }.rank();
    let (header, rows) = sweep.csv();
    let table = pages::Table { name: TABLE, header: &header, rows: &rows };
    let page = pages::put(&folder, &sweep_page::render(&sweep, &name)?, Some(table))?;
    let files = [folder.join(TABLE), page].map(|file| file.display().to_string());
    output.answer(&sweep, |width| sweep.text(files.each_ref().map(String::as_str), width))?;
    Ok(if sweep.rows.iter().any(|r| r.verdict == Verdict::Fits) { Answer::Yes } else { Answer::No })
}

/// The grid in a file, or the bundled one of that name.
fn grid(path: &Path) -> Result<Grid> {
    match path.to_str().and_then(grids::bundled).filter(|_| !path.exists()) {
        Some(text) => Grid::from_toml(text, path),
        None if !path.exists() && path.extension().is_none() => {
            let names: Vec<&str> = grids::names().collect();
            Err(Error::invalid("grid", path.display(), format!("a file, or one of {}", names.join(", "))))
        }
        None => Grid::from_toml(&store::read_text(path)?, path),
    }
}

fn key(run: &RunConfig) -> (String, String) {
    (run.model.clone(), run.data.train().to_string_lossy().into_owned())
}

/// Models and data of all runs; where the data is not here, or only the rows that ship, its lengths are assumed, and that
/// is said.
fn subjects(grid: &Grid, output: &Output) -> Result<Subjects> {
    let mut found = Subjects::new();
    for (run, _) in &grid.runs {
        if found.contains_key(&key(run)) {
            continue;
        }
        let model = source::model(&run.model)?;
        let longest = grid.runs.iter().map(|(r, _)| r.recipe.max_seq_length).max().unwrap_or_default();
        let lengths = match lengths::lengths_or_estimate(&model, &run.data) {
            Ok(counted) => inputs::said(counted, output),
            Err(error) if source::is_absent(&error) => {
                output.note(&format!("{} with `{}`: {}", model.name, key(run).1, inputs::assumed(run, longest)));
                TokenLengths::assumed(ASSUMED_EXAMPLES, longest)
            }
            Err(e) => return Err(e),
        };
        found.insert(key(run), Workload { spec: model.spec, lengths });
    }
    Ok(found)
}

fn predictions(
    grid: &Grid,
    machine: &Machine,
    (args, results): (&SweepArgs, &Path),
    subjects: &Subjects,
    confidence: f64,
) -> Result<Vec<Row>> {
    let engines = [Engine::Candle, Engine::MlxLm];
    let limit = args.limits.memory_limit.map_or(machine.available, |budget| budget.min(machine.available));
    let known = |engine| {
        let script = args.script.as_deref();
        Ok((engine, Session::of_machine((engine, script), (machine, limit), results)?))
    };
    let known: HashMap<Engine, Session> = engines.into_iter().map(known).collect::<Result<_>>()?;
    let priors = HashMap::from(engines.map(|engine| (engine, Calibration::prior(machine, engine))));
    let measured = table::measurements(machine, results)?;
    let recipes = recipes(grid)?;
    let one = |((run, values), recipe): (&(RunConfig, Vec<String>), &usize)| {
        let subject = &subjects[&key(run)];
        let bench = &known[&run.engine];
        let calibration = &bench.calibration;
        let mut trial = run.clone();
        run_file::anchor(&mut trial);
        let request = Request { spec: &subject.spec, machine, run, lengths: Some(&subject.lengths), calibration };
        let assessment = assess(&request, confidence, args.limits.memory_limit)?;
        let seen = middle(measured.iter().filter(|m| m.answers(&trial, true, &m.engine_version)));
        let filled = |calibration| {
            let p = predict(&Request { lengths: Some(&TokenLengths::filled()), calibration, ..request }, LEVEL)?;
            Ok::<_, Error>((p.tokens_per_s.point, p.footprint.point))
        };
        let check = |measured| {
            Ok::<_, Error>(Checked { before: filled(&priors[&run.engine])?, after: filled(calibration)?, measured })
        };
        let checked = seen.map(check).transpose()?;
        let reach = (run.recipe.max_seq_length, run.recipe.lora.rank);
        let died = bench.died(&trial).or_else(|| bench.killed(&trial));
        let row = row(machine, values, &assessment);
        // Whatever larger runs did since.
        let verdict = if died.is_some() { Verdict::DoesNotFit } else { row.verdict };
        Ok(Row { verdict, recipe: *recipe, reach, checked, died, ..row })
    };
    grid.runs.par_iter().zip(&recipes).map(one).collect()
}

/// For each run the number of its recipe among those of the grid.
fn recipes(grid: &Grid) -> Result<Vec<usize>> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let number = |(run, _): &(RunConfig, Vec<String>)| {
        let recipe = serde_json::to_string(&(&run.model, &run.data, &run.recipe))
            .map_err(|e| Error::Serialise { what: "recipe", reason: e.to_string() })?;
        let next = seen.len();
        Ok(*seen.entry(recipe).or_insert(next))
    };
    grid.runs.iter().map(number).collect()
}

fn row(machine: &Machine, values: &[String], a: &Assessment) -> Row {
    let p = &a.prediction;
    let binding = a.binding();
    let memory = binding.map_or(p.footprint, |l| Estimate { low: l.low, point: l.point, high: l.high, ..p.footprint });
    Row {
        machine: machine.name.clone(),
        values: values.to_vec(),
        verdict: a.verdict,
        binds: binding.map_or("", |l| l.kind.name()),
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
        checked: None,
        died: None,
    }
}

/// The middle of the speeds and of the footprints that were measured.
fn middle<'a>(measured: impl Iterator<Item = &'a Measurement>) -> Option<(f64, Bytes)> {
    let both = |m: &Measurement| Some((m.measured.tokens_per_s?, m.measured.footprint_bytes?.as_f64()));
    let (speeds, footprints): (Vec<f64>, Vec<f64>) = measured.filter_map(both).unzip();
    (!speeds.is_empty()).then(|| (median(&speeds), Bytes::from_f64(median(&footprints))))
}

/// Short runs of what fits here and has not been measured often enough yet; each is written down as it ends.
fn measure(
    grid: &Grid,
    (args, results): (&SweepArgs, &Path),
    subjects: &Subjects,
    confidence: f64,
    output: &Output,
) -> Result<()> {
    let settings =
        Settings { results: results, memory_limit: args.limits.memory_limit, script: args.script.as_deref() };
    let mut benches: HashMap<Engine, Session> = HashMap::new();
    for (run, _) in &grid.runs {
        if let Entry::Vacant(place) = benches.entry(run.engine) {
            place.insert(Session::open(run.engine, &settings)?);
        }
    }
    let bar = output.bar((grid.runs.len() * args.repeats) as u64);
    // In turns, so that a bad minute of the machine is not all that is seen of a configuration; and each in another order,
    // so that it does not fall on the same neighbours.
    for round in 1..=args.repeats {
        let mut order: Vec<_> = grid.runs.iter().collect();
        if args.repeats > 1 {
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(round as u64));
        }
        for (run, values) in order {
            bar.inc(1);
            bar.set_message(values.join(", "));
            let Some(bench) = benches.get_mut(&run.engine) else { continue };
            let mut trial = run.clone();
            run_file::anchor(&mut trial);
            if bench.times_measured(&trial) >= round || bench.died(&trial).is_some() {
                continue;
            }
            let plan = bench.assess(&subjects[&key(run)].padded(), &trial, confidence)?;
            // Of what was killed for reasons unknown more is to be known.
            if !(plan.fits() || bench.killed(&trial).is_some() && plan.fits_by_formula()) {
                continue;
            }
            let time = TrialLimits { time: args.trial_time, silence: args.trial_time };
            if let Some(seen) = trial::measure(bench, &trial, (time, &plan), (args.script.as_deref(), interrupted()))? {
                let text = format!("  {}: {}", values.join(", "), calibrate::seen(seen));
                bar.suspend(|| output.part(&text))?;
            }
            if interrupted().load(Ordering::Relaxed) {
                bar.finish_and_clear();
                let (done, all) = progress(grid, args.repeats, &benches, (subjects, confidence))?;
                let what = format!("{done} of {all} trials are measured and saved; nothing is ranked yet");
                return Err(Error::Interrupted { kept: what, resume: Some(typed_again(None)) });
            }
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Trials that are measured, and those that there will be.
fn progress(
    grid: &Grid,
    repeats: usize,
    benches: &HashMap<Engine, Session>,
    (subjects, confidence): (&Subjects, f64),
) -> Result<(usize, usize)> {
    let (mut done, mut all) = (0, 0);
    for (run, _) in &grid.runs {
        let mut trial = run.clone();
        run_file::anchor(&mut trial);
        let Some(bench) = benches.get(&run.engine) else { continue };
        let times = bench.times_measured(&trial).min(repeats);
        if times > 0 || bench.assess(&subjects[&key(run)].padded(), &trial, confidence)?.fits() {
            done += times;
            all += repeats;
        }
    }
    Ok((done, all))
}
