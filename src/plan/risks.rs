//! Limits that are not in the ledger: the number of live buffers, the longest command, and what paging costs. All of them rest on reports and source code; no Mac has proved ours, so they warn and do not
//! decide.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::cost;
use crate::cost::work::mlx_padded;
use crate::plan::assessment::{Assessment, Verdict};
use crate::predict::Request;
use crate::spec::machine::Accelerator;
use crate::spec::run::Engine;
use crate::units::{Bytes, Seconds};

/// Something that may end a run although its bytes fit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Risk {
    /// Short name of the risk, such as `live buffers`.
    pub name: &'static str,
    /// Expected value, with its unit.
    pub predicted: String,
    /// Value that is known to be too much, with its unit.
    pub limit: String,
    /// Whether the expected value is over the limit.
    pub over: bool,
    /// Reports or source code that the limit rests on.
    pub basis: &'static str,
}

/// Live buffers that Metal allows a process (`[metal::malloc] Resource limit (499000) exceeded`, mlx#3849).
const BUFFERS: usize = 499_000;

/// Buffers that one compiled shape of a step keeps, for each block: a run over rows of 1,985 widths died at 498,920
/// after 1,010 steps, and at 32 widths peaked at 29,967 (unsloth-zoo#918), in a model of 24 blocks.
const BUFFERS_A_BLOCK: f64 = 39.0;

/// A command of the GPU that takes longer makes a Mac with its display on unresponsive, and macOS may end it (mlx#3267);
/// trainers that split their launches keep each below this.
const COMMAND: f64 = 0.5;

/// Rate at which a Mac's SSD swaps memory out and in, bytes/s.
const SWAP: f64 = 3e9;

/// Factor by which a step takes longer when it swaps: at least, and at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Slowdown {
    /// Factor if only the excess is swapped out and in once a micro-batch.
    pub least: f64,
    /// Factor if everything has been swapped out before it is needed again, as when memory is walked through in order.
    pub most: f64,
}

/// The risks of this run beside its bytes; none on a CPU.
pub(crate) fn risks(request: &Request<'_>, assessment: &Assessment) -> Vec<Risk> {
    if request.machine.accelerator != Accelerator::Metal {
        return Vec::new();
    }
    let mut all = vec![command(request, assessment)];
    if request.run.engine == Engine::MlxLm {
        all.push(buffers(request));
    }
    all
}

/// mlx-lm compiles a step anew for each shape of a batch, and keeps it.
fn buffers(request: &Request<'_>) -> Risk {
    let cap = request.run.recipe.max_seq_length;
    let shapes = match request.lengths {
        Some(lengths) => lengths.sorted().iter().map(|&n| mlx_padded(n as usize, cap)).collect::<BTreeSet<_>>().len(),
        None => 1,
    };
    let predicted = (shapes as f64 * BUFFERS_A_BLOCK * request.spec.num_hidden_layers as f64) as usize;
    Risk {
        name: "live buffers",
        predicted: format!("{predicted} in {shapes} shapes"),
        limit: BUFFERS.to_string(),
        over: predicted > BUFFERS,
        basis: "two runs in unsloth-zoo#918; the limit in mlx#3849",
    }
}

/// The longest product of one command: over the vocabulary, over an MLP's matrix, or one block's scores.
fn command(request: &Request<'_>, assessment: &Assessment) -> Risk {
    let (spec, run) = (request.spec, request.run);
    let work = cost::work::Work::of(run, None);
    let rows = match run.engine {
        Engine::MlxLm => work.rows,
        Engine::Candle => work.rows.min(run.execution.mlp_chunk as f64),
    };
    let loss_rows = match run.engine {
        Engine::MlxLm => work.rows,
        Engine::Candle => work.rows.min(run.execution.loss_chunk as f64),
    };
    let h = spec.hidden_size as f64;
    let head = 2.0 * loss_rows * h * spec.vocab_size as f64;
    let mlp = 2.0 * rows * h * spec.intermediate_size as f64;
    let queries = match run.engine {
        Engine::MlxLm => work.squares(),
        Engine::Candle => (run.execution.attention_chunk * run.recipe.max_seq_length) as f64,
    };
    let scores = 2.0 * queries * spec.q_size() as f64;
    let step = &assessment.prediction;
    let rate = step.cost.flops() / step.step_time.point.0;
    let longest = Seconds(head.max(mlp).max(scores) / rate);
    Risk {
        name: "longest command",
        predicted: longest.to_string(),
        limit: Seconds(COMMAND).to_string(),
        over: longest.0 > COMMAND,
        basis: "macOS may end a longer one while a display is on (mlx#3267)",
    }
}

/// Factor by which a run that swaps is slower; `None` where it does not swap.
pub(crate) fn slowdown(request: &Request<'_>, assessment: &Assessment) -> Option<Slowdown> {
    if assessment.verdict != Verdict::Pages {
        return None;
    }
    let p = &assessment.prediction;
    let taken = p.footprint.point;
    let excess = taken.saturating_sub(request.machine.available);
    let step = p.step_time.point.0 / request.run.accumulation() as f64;
    let times = |moved: Bytes| 1.0 + 2.0 * moved.as_f64() / SWAP / step;
    // Forward and backward each walk through everything.
    Some(Slowdown { least: times(excess), most: times(taken) + times(taken) - 1.0 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::assess;
    use crate::predict::calibration::Calibration;
    use crate::spec::machine::Machine;
    use crate::spec::model::catalogue;
    use crate::spec::run::{RunConfig, TokenLengths};

    fn with<T>(
        engine: &str,
        extra: &str,
        machine: &Machine,
        lengths: &TokenLengths,
        f: impl Fn(&Request<'_>, &Assessment) -> T,
    ) -> T {
        let text = format!("model = \"m\"\ndata = \"d\"\nengine = \"{engine}\"\n{extra}");
        let run = RunConfig::from_toml(&text, "run.toml".as_ref()).unwrap();
        let spec = &catalogue::find("Qwen3-8B").unwrap().spec;
        let calibration = &Calibration::prior(machine, run.engine);
        let request = Request { spec, machine, run: &run, lengths: Some(lengths), calibration };
        f(&request, &assess(&request, 0.99, None).unwrap())
    }

    #[test]
    fn many_widths_use_up_the_buffers() {
        let machine = Machine::named("M1 Max", Some(Bytes::from_gib(32.0)), None).unwrap();
        let of = |lengths: Vec<u32>| {
            let extra = "[recipe]\nmax_seq_length = 40000\n[execution]\nweights = \"4bit\"";
            with("mlx-lm", extra, &machine, &TokenLengths::new(lengths), |request, _| buffers(request))
        };
        // 1,000 rows of 20 to 39 tokens have two widths, 33 and 65.
        let few = of((0..1000).map(|i| 20 + i % 20).collect());
        assert_eq!((few.predicted.as_str(), few.over), ("2808 in 2 shapes", false));
        let many = of((0..1250).map(|i| 32 * i).collect());
        assert!(many.over && many.predicted.contains("shapes"), "{}", many.predicted);
    }

    #[test]
    fn long_commands_are_told_of() {
        let machine = Machine::named("M1 Max", Some(Bytes::from_gib(32.0)), Some(32)).unwrap();
        let lengths = TokenLengths::new(vec![8192]);
        let extra = "[recipe]\nmax_seq_length = 8192\neffective_batch_size = 1\n[execution]\nweights = \"4bit\"";
        let (theirs, ours) = ["mlx-lm", "candle"].map(|engine| with(engine, extra, &machine, &lengths, risks)).into();
        let named = |all: &[Risk], name: &str| all.iter().find(|r| r.name == name).cloned().unwrap();
        // 10 TFLOP over the vocabulary in one product, against 512 rows of it at a time.
        assert!(named(&theirs, "longest command").over && !named(&ours, "longest command").over);
        let cpu = Machine { accelerator: Accelerator::Cpu, ..machine };
        assert!(with("candle", extra, &cpu, &lengths, risks).is_empty());
    }

    #[test]
    fn a_run_that_paged_was_as_slow_as_is_said() {
        // FR163: Qwen3-8B in 4 bits without checkpointing at 2048 tokens on an M1 Max with 32 GB took 29 s a step,
        // and at 1024 tokens, where it does not page, 7.7 s: about 1.8 times as long as it should. Its peak is predicted
        // 3 % too high, which with what the process takes would be more than there is: with 128 tokens less it is what it was.
        let machine = Machine::named("M1 Max", Some(Bytes::from_gib(32.0)), Some(32)).unwrap();
        let extra = "[recipe]\nmax_seq_length = 1920\neffective_batch_size = 1\n[recipe.lora]\nrank = 8\n[execution]\nweights = \"4bit\"\ngrad_checkpoint = false";
        let lengths = TokenLengths::new(vec![1920]);
        let (verdict, slower) = with("mlx-lm", extra, &machine, &lengths, |r, a| (a.verdict, slowdown(r, a)));
        assert_eq!(verdict, Verdict::Pages);
        let slower = slower.unwrap();
        assert!(slower.least < 1.8 && 1.8 < slower.most, "{slower:?}");
    }
}
