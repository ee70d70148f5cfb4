//! `headroom doctor`: what this machine is, and what it can train.

use std::path::Path;

use serde::Serialize;

use crate::cli::plan::DoctorArgs;
use crate::commands::inputs;
use crate::commands::output::{Answer, Output};
use crate::error::Result;
use crate::measure::devices;
use crate::plan::{Verdict, assess};
use crate::predict::calibration::Calibration;
use crate::predict::{ASSUMED_EXAMPLES, Request};
use crate::report::doctor::{
    Row, Trains, {self as page},
};
use crate::spec::machine::Machine;
use crate::spec::model::catalogue;
use crate::spec::model::filter::Filter;
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
    /// Number of models in the catalogue, of which `models` are those asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    known_models: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<&'a [Row]>,
}

/// Runs `headroom doctor`: describes the machine and the models it can train.
pub(crate) fn run(args: &DoctorArgs, output: &Output) -> Result<Answer> {
    let machine = inputs::machine(&args.machine)?;
    if args.self_test {
        return self_test(&machine, &args.out, output);
    }
    let filter = Filter { family: args.family.as_deref(), sizes: args.size };
    let models = args.models.then(|| judge(&machine, &filter)).transpose()?;
    let known_models = models.is_some().then(|| catalogue::all().len());
    let named = args.machine.machine.is_some() || args.machine.ram.is_some();
    let no_metal = devices::why_not_metal().filter(|_| !named);
    let report = Report { machine: &machine, no_metal: no_metal.as_deref(), known_models, models: models.as_deref() };
    output.answer(&report, |width| {
        let mut text = page::machine(&machine, no_metal.as_deref());
        match models.as_deref().zip(known_models) {
            Some((rows, known)) => text += &page::models(rows, known, SEQ, width),
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

/// The models at their leanest: batches of one, checkpointing, weights as stored. What Headroom does not train itself is
/// judged as mlx-lm would train it.
fn judge(machine: &Machine, filter: &Filter<'_>) -> Result<Vec<Row>> {
    let [here, mlx] = [Engine::Candle, Engine::MlxLm].map(|engine| Calibration::prior(machine, engine));
    let lengths = TokenLengths::assumed(ASSUMED_EXAMPLES, SEQ);
    let row = |entry: &catalogue::Entry| {
        let spec = &entry.spec;
        let mut run = RunConfig::of_model(&entry.id);
        run.recipe.max_seq_length = SEQ.min(spec.max_position_embeddings);
        let calibration = if spec.trained_here().is_ok() { &here } else { &mlx };
        run.engine = if spec.trained_here().is_ok() { Engine::Candle } else { Engine::MlxLm };
        let request = Request { spec, machine, run: &run, lengths: Some(&lengths), calibration };
        let found = assess(&request, CONFIDENCE, None)?;
        Ok(Row {
            model: entry.id.clone(),
            family: spec.family(),
            parameters: entry.parameters,
            released: entry.released.clone(),
            engine: run.engine,
            verdict: match found.verdict {
                Verdict::Fits => Trains::Yes,
                Verdict::Tight | Verdict::Pages => Trains::Tight,
                Verdict::DoesNotFit => Trains::No,
            },
            memory_bytes: found.prediction.footprint.high,
            tokens_per_s: found.prediction.tokens_per_s.point,
        })
    };
    filter.models()?.into_iter().map(row).collect()
}
