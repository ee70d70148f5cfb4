//! `headroom doctor`: what this machine is, and what it can train.

use std::collections::BTreeSet;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::cli::plan::DoctorArgs;
use crate::commands::inputs;
use crate::commands::output::{Answer, Output};
use crate::error::{Error, Result};
use crate::measure::devices;
use crate::plan::{Verdict, assess};
use crate::predict::calibration::Calibration;
use crate::predict::{ASSUMED_EXAMPLES, Request};
use crate::report::doctor::{
    Row, Trains, {self as page},
};
use crate::spec::machine::Machine;
use crate::spec::model::catalogue;
use crate::spec::run::{Engine, RunConfig, TokenLengths};
use crate::store;
use crate::trainer::candle::self_test::{self, Check, SelfTest};

/// Sequence length that the models are judged at.
const SEQ: usize = 2048;

/// Probability with which the upper bounds behind the verdicts hold.
const CONFIDENCE: f64 = 0.99;

#[derive(Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    /// Why this Mac does not train on its GPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_metal: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<&'a [Row]>,
}

/// Runs `headroom doctor`: describes the machine and the models it can train.
pub(crate) fn run(args: &DoctorArgs, output: &Output) -> Result<Answer> {
    let machine = inputs::machine(&args.machine)?;
    if args.self_test {
        return self_test(&machine, &args.out, output);
    }
    let models = args.models.then(|| judge(&machine, args)).transpose()?;
    let named = args.machine.machine.is_some() || args.machine.ram.is_some();
    let no_metal = devices::why_not_metal().filter(|_| !named);
    let report = Report { machine: &machine, no_metal: no_metal.as_deref(), models: models.as_deref() };
    output.answer(&report, |width| {
        let mut text = page::machine(&machine, no_metal.as_deref());
        match &models {
            Some(rows) => text += &page::models(rows, SEQ, catalogue::all().len(), width),
            None => text += "\nmodels it can train: `headroom doctor --models`\n",
        }
        text
    })?;
    Ok(Answer::Yes)
}

#[derive(Serialize)]
struct Tested<'a> {
    version: &'static str,
    machine: &'a Machine,
    #[serde(flatten)]
    test: SelfTest,
}

/// Trains on the device and on the CPU, and writes a file that can be sent in.
fn self_test(machine: &Machine, out: &Path, output: &Output) -> Result<Answer> {
    let test = self_test::run(|name| output.note(&format!("self-test: {name}")))?;
    let agrees = test.checks.iter().all(|check| check.agrees);
    let tested = Tested { version: env!("CARGO_PKG_VERSION"), machine, test };
    store::save_json(out, &tested)?;
    output.answer(&tested, |_| {
        let seconds = |c: &Check| c.step_time_s.map(|t| t.to_string());
        let rows = tested.test.checks.iter().map(|c| page::Tested {
            name: &c.name,
            agrees: c.agrees,
            apart: c.losses_apart,
            seconds: seconds(c),
        });
        page::tested(&tested.test.device, rows, out)
    })?;
    Ok(if agrees { Answer::Yes } else { Answer::No })
}

/// The models of the catalogue that are asked for.
fn asked(args: &DoctorArgs) -> Result<Vec<&'static catalogue::Entry>> {
    let mut entries: Vec<_> = catalogue::all().iter().collect();
    if let Some(family) = &args.family {
        entries.retain(|e| e.is_of(family));
        if entries.is_empty() {
            let known: BTreeSet<&str> = catalogue::all().iter().map(catalogue::Entry::family).collect();
            let known: Vec<&str> = known.into_iter().collect();
            let must = format!("one of {}, or how a model's name begins", known.join(", "));
            return Err(Error::invalid("--family", family, must));
        }
    }
    if let Some(size) = args.size {
        entries.retain(|e| (size.least..=size.most).contains(&(e.parameters as f64)));
    }
    entries.sort_by_key(|e| e.parameters);
    Ok(entries)
}

/// The models that are asked for at their leanest: batches of one, checkpointing, weights as stored. Mixtures of experts
/// are planned for mlx-lm.
fn judge(machine: &Machine, args: &DoctorArgs) -> Result<Vec<Row>> {
    let priors = Engine::ALL.map(|engine| (engine, Calibration::prior(machine, engine)));
    let lengths = TokenLengths::assumed(ASSUMED_EXAMPLES, SEQ);
    let row = |entry: &&catalogue::Entry| {
        let mut run = RunConfig::of_model(&entry.id);
        run.recipe.max_seq_length = SEQ.min(entry.spec.max_position_embeddings);
        let (engine, calibration) = &priors[usize::from(entry.spec.trained_here().is_err())];
        run.engine = *engine;
        let request = Request { spec: &entry.spec, machine, run: &run, lengths: Some(&lengths), calibration };
        let found = assess(&request, CONFIDENCE, None)?;
        Ok(Row {
            model: entry.id.clone(),
            family: entry.family(),
            released: entry.released.clone(),
            engine: *engine,
            parameters: entry.parameters,
            verdict: match found.verdict {
                Verdict::Fits => Trains::Yes,
                Verdict::Tight | Verdict::Pages => Trains::Tight,
                Verdict::DoesNotFit => Trains::No,
            },
            memory_bytes: found.prediction.footprint.high,
            tokens_per_s: found.prediction.tokens_per_s.point,
        })
    };
    asked(args)?.par_iter().map(row).collect()
}
