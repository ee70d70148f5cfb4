//! `headroom predict`: what one given run takes.

use serde::Serialize;

use crate::checkpoint::source;
use crate::cli::plan::PredictArgs;
use crate::commands::inputs;
use crate::commands::output::{Answer, Output};
use crate::cost::candle::Micro;
use crate::cost::pool::{self, Replay};
use crate::data::lengths;
use crate::error::{Error, Result};
use crate::experiment::session;
use crate::plan::risks::{Risk, Slowdown, risks, slowdown};
use crate::plan::{Assessment, Candidate, Verdict, assess, levers};
use crate::predict::{ASSUMED_EXAMPLES, Request};
use crate::report::table::{self, Context};
use crate::spec::run::{Engine, RunConfig, TokenLengths};
use crate::trainer::candle::replay as recording;

/// Result of `headroom predict` for `--json`.
#[derive(Serialize)]
struct Whole<'a> {
    #[serde(flatten)]
    assessment: &'a Assessment,
    risks: &'a [Risk],
    paging: Option<Slowdown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replay: Option<Replay>,
    #[serde(skip_serializing_if = "Option::is_none")]
    understood: Option<&'a str>,
}

/// The step of a run as a Mac's GPU would see it, recorded here and played through candle's allocator: the memory of all of
/// it, launches and bytes of a micro-batch, waits of an optimizer step.
fn replayed(request: &Request<'_>) -> Result<Replay> {
    let run = request.run;
    if run.engine != Engine::Candle {
        let must = "used with the engine `candle`, whose allocator it plays through";
        return Err(Error::invalid("--replay", format!("used with `{}`", run.engine.name()), must));
    }
    let (micro, validation) = request.worst_micros();
    let of = |micro: &Micro| recording::batch(&micro.examples, micro.targets);
    let recorded = recording::record(request.spec, run, &of(&micro), validation.as_ref().map(of).as_ref())?;
    let micro_batch = pool::replay(&recorded.events[recorded.micro_batch]);
    let waits = pool::replay(&recorded.events[recorded.step]).waits;
    let Replay { alive_bytes, peak_bytes, .. } = pool::replay(&recorded.events);
    Ok(Replay { alive_bytes, peak_bytes, waits, ..micro_batch })
}

/// Runs `headroom predict`: predicts memory and time of a run file.
pub(crate) fn run(args: &PredictArgs, output: &Output) -> Result<Answer> {
    let mut run = RunConfig::from_toml(&crate::store::read_text(&args.run)?, &args.run)?;
    let machine = inputs::machine(&args.machine)?;
    let confidence = inputs::confidence(args.limits.confidence);
    let model = source::model(&run.model)?;
    run.hold_as_named(&model);
    if run.recipe.max_seq_length > model.spec.max_position_embeddings {
        let must = format!("at most {}, the longest sequence of `{}`", model.spec.max_position_embeddings, run.model);
        return Err(Error::invalid("max_seq_length", run.recipe.max_seq_length, must));
    }
    let counted = match lengths::lengths_of_run(&model, &run) {
        Ok(counted) => Some(inputs::said(counted, output)),
        // The worst case can be told without the data; data that are there and cannot be read are refused by `launch` too.
        Err(error) if source::is_absent(&error) => {
            output.note(&format!("`{}` cannot be read; its lengths are assumed", run.data.train().display()));
            None
        }
        Err(e) => return Err(e),
    };
    let longest = run.recipe.max_seq_length;
    let lengths = counted.clone().unwrap_or_else(|| TokenLengths::assumed(ASSUMED_EXAMPLES, longest));
    let calibration = session::known(run.engine, &machine, &inputs::results(args.machine.results.as_ref())?)?;
    let (spec, budget) = (&model.spec, args.limits.memory_limit);
    let request = Request { spec, machine: &machine, run: &run, lengths: Some(&lengths), calibration: &calibration };
    let assessment = assess(&request, confidence, budget)?;
    let levers = levers(&request, &assessment, budget)?;
    let (risks, paging) = (risks(&request, &assessment), slowdown(&request, &assessment));
    let replay = if args.replay { Some(replayed(&request)?) } else { None };
    let found = Candidate { run: run.clone(), assessment };
    let understood = model.understood.as_deref();
    let whole = Whole { assessment: &found.assessment, risks: &risks, paging, replay, understood };
    output.answer(&whole, |width| {
        let assumed = counted.is_none().then(|| inputs::assumed(&run, longest));
        let understood = understood.map(str::to_owned);
        let context = Context { width, assumed, understood, launch: Vec::new() };
        let mut text = table::prediction(&found, &machine, &levers, &context);
        text += &table::risks(&risks, paging);
        if args.timeline {
            text += &table::timeline(&found.assessment, width);
        }
        if let Some(replay) = &replay {
            text += &table::replay(replay);
        }
        text
    })?;
    let yes = matches!(found.assessment.verdict, Verdict::Fits | Verdict::Tight);
    Ok(if yes { Answer::Yes } else { Answer::No })
}
