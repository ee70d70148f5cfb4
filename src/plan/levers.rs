//! What can be moved on a run, and what it saves and costs.

use serde::Serialize;

use crate::error::Result;
use crate::plan::assessment::{Assessment, assess};
use crate::predict::Request;
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, Optimizer, RunConfig, Weights};
use crate::units::{Bytes, Seconds};

/// A trade-off: one change to a run, with what it saves and costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Lever {
    /// Setting and its new value, such as `grad_checkpoint = false`.
    pub what: String,
    /// Whether the change is one of the recipe, and not only of the execution.
    pub recipe: bool,
    /// Memory that the change saves, bytes; negative where it takes more.
    pub saves: i64,
    /// Time that the change adds to the whole run, s; negative where it is faster.
    pub costs: Seconds,
    /// Whether the run fits with this change.
    pub fits: bool,
}

/// Changes smaller than this share of the run's memory or time are not worth a line.
const WORTH: f64 = 0.02;

type Change = (&'static str, bool, fn(&mut RunConfig, &ModelSpec) -> Option<String>);

fn halved(value: &mut usize, least: usize) -> Option<String> {
    (*value / 2 >= least).then(|| {
        *value /= 2;
        value.to_string()
    })
}

/// All changes: the name of the setting, whether it is part of the recipe, and the change.
const CHANGES: [Change; 10] = [
    ("grad_checkpoint", false, |r, _| {
        r.execution.grad_checkpoint = !r.execution.grad_checkpoint;
        Some(r.execution.grad_checkpoint.to_string())
    }),
    ("batch_size", false, |r, _| halved(&mut r.execution.batch_size, 1)),
    ("batch_size", false, |r, _| {
        let doubled = 2 * r.execution.batch_size;
        r.recipe.effective_batch_size.is_multiple_of(doubled).then(|| {
            r.execution.batch_size = doubled;
            doubled.to_string()
        })
    }),
    ("loss_chunk", false, |r, _| halved(&mut r.execution.loss_chunk, 64)),
    ("attention_chunk", false, |r, _| halved(&mut r.execution.attention_chunk, 32)),
    ("weights", true, |r, spec| {
        // Eight bits round the base a little, which is close to nothing, but not nothing.
        let wide = spec.usual_format(r.execution.weights).bits() >= 16.0;
        wide.then(|| {
            r.execution.weights = Weights::EightBit;
            format!("\"{}\"", Weights::EightBit.name())
        })
    }),
    ("optimizer", true, |r, _| {
        // Eight bits of state follow the f32 run closely, but not to the bit.
        let wide = r.recipe.optimizer == Optimizer::Adamw && r.engine == Engine::Candle;
        wide.then(|| {
            r.recipe.optimizer = Optimizer::Adamw8bit;
            format!("\"{}\"", Optimizer::Adamw8bit.name())
        })
    }),
    ("max_seq_length", true, |r, _| halved(&mut r.recipe.max_seq_length, 64)),
    ("rank", true, |r, _| {
        let rank = r.recipe.lora.rank / 2;
        (rank >= 4).then(|| {
            r.recipe.lora = r.recipe.lora.with_rank(rank);
            rank.to_string()
        })
    }),
    ("epochs", true, |r, _| {
        let epochs = r.recipe.epochs.filter(|e| *e > 1.0)?;
        r.recipe.epochs = Some(epochs - 1.0);
        Some((epochs - 1.0).to_string())
    }),
];

/// What each change does to the run, the most useful first: what makes it fit, else what saves most for its price.
pub(crate) fn levers(request: &Request<'_>, now: &Assessment, budget: Option<Bytes>) -> Result<Vec<Lever>> {
    let mut found = Vec::new();
    let (memory, time) = (now.prediction.footprint.point, now.prediction.total_time.point);
    for (name, recipe, change) in CHANGES {
        let mut run = request.run.clone();
        let Some(value) = change(&mut run, request.spec).filter(|_| run.check().is_ok()) else { continue };
        let after = assess(&Request { run: &run, ..*request }, now.confidence, budget)?;
        let saves = memory.as_f64() - after.prediction.footprint.point.as_f64();
        let costs = after.prediction.total_time.point.0 - time.0;
        if saves.abs() < WORTH * memory.as_f64() && costs.abs() < WORTH * time.0 {
            continue;
        }
        // A run that fits has nothing to gain from one that does not.
        if now.fits() && !after.fits() {
            continue;
        }
        let what = format!("{name} = {value}");
        found.push(Lever { what, recipe, saves: saves as i64, costs: Seconds(costs), fits: after.fits() });
    }
    // First what makes it fit, then what leaves the recipe alone, then by the gain on either side as a share of the run.
    let worth = |l: &Lever| (l.saves as f64 / memory.as_f64()).max(-l.costs.0 / time.0);
    let mends = |l: &Lever| l.fits && !now.fits();
    found.sort_by(|a, b| (!mends(a), a.recipe).cmp(&(!mends(b), b.recipe)).then(worth(b).total_cmp(&worth(a))));
    Ok(found)
}
