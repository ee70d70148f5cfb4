//! `headroom sweep`: every configuration of a grid, ranked; with `--measure` the feasible ones are really run.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;

use crate::checkpoint::hub::Part;
use crate::checkpoint::source;
use crate::cli::measure::SweepArgs;
use crate::commands::interrupt::{interrupted, typed_again};
use crate::commands::output::{Answer, Output};
use crate::commands::{calibrate, fetch, inputs, pages};
use crate::data::lengths;
use crate::error::{Error, Result};
use crate::experiment::run_file;
use crate::experiment::session::{Session, Settings};
use crate::experiment::sweep::{self, SweepEvent, Sweeping, Swept, Workloads, key, middle};
use crate::experiment::workload::Workload;
use crate::measure::awake::Awake;
use crate::measure::table;
use crate::plan::{Assessment, Verdict, assess};
use crate::predict::calibration::Calibration;
use crate::predict::{ASSUMED_EXAMPLES, Request, predict};
use crate::report::sweep::{Checked, Row, Sweep};
use crate::report::sweep_page;
use crate::spec::machine::Machine;
use crate::spec::model::Model;
use crate::spec::run::grid::Grid;
use crate::spec::run::{Engine, RunConfig, TokenLengths, grids};
use crate::store;
use crate::units::Estimate;

/// Name of the ranking's CSV file, beside its page.
const TABLE: &str = "sweep.csv";

/// Of intervals of which only the middle is used.
const LEVEL: f64 = 0.9;

/// Runs `headroom sweep`: ranks the configurations of a grid, and measures them if asked to.
pub(crate) fn run(args: &SweepArgs, output: &Output) -> Result<Answer> {
    let mut grid = grid(&args.grid)?;
    let results = inputs::results(args.machine.results.as_ref())?;
    let confidence = inputs::confidence(args.limits.confidence);
    let named = args.machine.machine.is_some() || args.machine.ram.is_some();
    let machines = match (named, grid.machines.is_empty()) {
        (false, false) => grid.machines.iter().map(|m| m.find()).collect::<Result<Vec<_>>>()?,
        _ => vec![inputs::machine(&args.machine)?],
    };
    let workloads = workloads(&mut grid, output)?;
    let name = args.grid.file_stem().map_or_else(|| "sweep".into(), |n| n.to_string_lossy().into_owned());
    let folder = args.reports.join(store::file_name(&name));
    // Found out before the trials and not after them.
    pages::check(&folder, Some(TABLE))?;
    if args.measure {
        if named || !grid.machines.is_empty() {
            return Err(Error::invalid("--measure", "given with another machine", "given for the machine it runs on"));
        }
        measure(&grid, (args, &results), &workloads, confidence, output)?;
    }
    let mut rows = Vec::new();
    for machine in &machines {
        rows.extend(predictions(&grid, machine, (args, &results), &workloads, confidence)?);
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

/// Models and data of all runs; where the data is not here, or only the rows that ship, its lengths are assumed, and that
/// is said.
fn workloads(grid: &mut Grid, output: &Output) -> Result<Workloads> {
    let longest = grid.runs.iter().map(|(r, _)| r.recipe.max_seq_length).max().unwrap_or_default();
    let mut models: HashMap<String, Model> = HashMap::new();
    for (run, _) in &mut grid.runs {
        if !models.contains_key(&run.model) {
            let model = source::model(&run.model)?;
            model.understood.iter().for_each(|understood| output.note(understood));
            models.insert(run.model.clone(), model);
        }
        run.hold_as_named(&models[&run.model]);
    }
    let mut found = Workloads::new();
    for (run, _) in &grid.runs {
        if found.contains_key(&key(run)) {
            continue;
        }
        let model = models[&run.model].clone();
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
    workloads: &Workloads,
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
        let workload = &workloads[&key(run)];
        let bench = &known[&run.engine];
        let calibration = &bench.calibration;
        let mut trial = run.clone();
        run_file::anchor(&mut trial);
        let request = Request { spec: &workload.spec, machine, run, lengths: Some(&workload.lengths), calibration };
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

/// Measures what fits here, and shows the trials as they are made.
fn measure(
    grid: &Grid,
    (args, results): (&SweepArgs, &Path),
    workloads: &Workloads,
    confidence: f64,
    output: &Output,
) -> Result<()> {
    let settings = Settings { results, memory_limit: args.limits.memory_limit, script: args.script.as_deref() };
    let what = Sweeping { grid, workloads, repeats: args.repeats, trial_time: args.trial_time, confidence, settings };
    let _awake = Awake::during("measuring a grid");
    let bar = output.bar((grid.runs.len() * args.repeats) as u64);
    let swept = sweep::measure(&what, interrupted(), &mut |event| {
        match event {
            SweepEvent::Begins(values) => {
                bar.inc(1);
                bar.set_message(values.join(", "));
            }
            SweepEvent::Needs(model) => bar.suspend(|| fetch::model(model, Part::Weights, output))?,
            SweepEvent::Ends(values, seen) => {
                let text = format!("  {}: {}", values.join(", "), calibrate::seen(seen));
                bar.suspend(|| output.part(&text))?;
            }
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    let Swept::Interrupted { done, all } = swept else { return Ok(()) };
    let kept = format!("{done} of {all} trials are measured and saved; nothing is ranked yet");
    Err(Error::Interrupted { kept, resume: Some(typed_again(None)) })
}
