//! What popular guides claim, held against the model: `grids/guides.toml`.

use serde::Serialize;

use crate::cost::params::Parameters;
use crate::cost::time::step_cost;
use crate::error::Result;
use crate::guides::claims::*;
use crate::plan::{Assessment, Verdict as Fit, assess};
use crate::predict::calibration::Calibration;
use crate::predict::{Prediction, Request, predict};
use crate::spec::machine::{Machine, chips};
use crate::spec::model::{ModelSpec, catalogue};
use crate::spec::run::{Engine, RunConfig, TokenLengths};
use crate::units::{Bytes, Seconds};

/// Level of the intervals that a claim is held against.
const LEVEL: f64 = 0.9;

/// Confidence of the verdicts on whole runs.
const CONFIDENCE: f64 = 0.9;

/// Relative difference at which a published size of weights still counts as right: people round.
const ROUNDING: f64 = 0.1;

/// Share of the nominal bandwidth at which llama.cpp reads 4-bit weights while it generates: the least and the most
/// over all chips in llama.cpp#4167, whose 7B file has 3.83 GB (M1 Ultra, 48 cores: 75 tokens/s at 800 GB/s; M2: 21.9
/// at 100).
const GENERATION: (f64, f64) = (0.36, 0.84);

/// Bits of a parameter in Q4_K_M, whose most sensitive matrices have six (a file of 4.92 GB for 8.03e9 parameters).
const Q4_K_M: f64 = 4.9;

/// Judgement of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Verdict {
    /// The claim lies in the predicted interval.
    Right,
    /// It claims less memory or time, or more speed, than can be expected.
    Optimistic,
    /// It claims more memory or time, or less speed, than can be expected.
    Pessimistic,
    /// It is beyond what the arithmetic or the machine allows.
    Impossible,
}

impl Verdict {
    /// The judgement in one word.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Optimistic => "optimistic",
            Self::Pessimistic => "pessimistic",
            Self::Impossible => "impossible",
        }
    }

    /// Judges a claimed amount of which less is better: it cannot be below `floor`.
    pub(crate) fn of_amount(claimed: f64, floor: f64, low: f64, high: f64) -> Self {
        if claimed < floor {
            Self::Impossible
        } else if claimed < low {
            Self::Optimistic
        } else if claimed > high {
            Self::Pessimistic
        } else {
            Self::Right
        }
    }

    /// Judges a claimed rate, of which more is better: it cannot be above `ceiling`.
    pub(crate) fn of_rate(claimed: f64, low: f64, high: f64, ceiling: f64) -> Self {
        if claimed > ceiling {
            Self::Impossible
        } else if claimed > high {
            Self::Optimistic
        } else if claimed < low {
            Self::Pessimistic
        } else {
            Self::Right
        }
    }
}

/// A guide's claim beside the model's answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Checked {
    /// Key of the guide that makes the claim.
    pub guide: String,
    /// Subject of the claim, such as `Qwen2.5-1.5B-Instruct f16, rank 32, 4 x 2048`.
    pub what: String,
    /// Name of the Mac that the claim is about.
    pub machine: String,
    /// Figure that the guide claims, with its unit.
    pub says: String,
    /// Figure that the model predicts for mlx-lm, with its unit.
    pub model_says: String,
    /// Judgement of the claim.
    pub verdict: Verdict,
    /// Reason for the judgement, in a line.
    pub why: String,
    /// Predicted peak memory of the same run with the candle engine, where memory is claimed.
    pub ours: Option<Bytes>,
}

/// Checks every claim of the guides against the model.
pub(crate) fn check(guides: &Guides) -> Result<Vec<Checked>> {
    guides.claim.iter().map(check_one).collect()
}

/// What a claim is about, made of names.
struct ResolvedClaim<'a> {
    claim: &'a Claim,
    spec: &'a ModelSpec,
    machine: Machine,
    lengths: TokenLengths,
}

/// The model's answer to a claim.
struct Answer {
    text: String,
    verdict: Verdict,
    why: String,
}

impl ResolvedClaim<'_> {
    fn predicted(&self, engine: Engine) -> Result<Prediction> {
        let (run, calibration) = (self.claim.run(engine), Calibration::prior(&self.machine, engine));
        predict(&self.request(&run, &calibration), LEVEL)
    }

    fn assessed(&self, machine: &Machine) -> Result<Assessment> {
        let run = self.claim.run(Engine::MlxLm);
        let calibration = Calibration::prior(machine, Engine::MlxLm);
        assess(&Request { machine, ..self.request(&run, &calibration) }, CONFIDENCE, None)
    }

    fn request<'b>(&'b self, run: &'b RunConfig, calibration: &'b Calibration) -> Request<'b> {
        Request { spec: self.spec, machine: &self.machine, run, lengths: Some(&self.lengths), calibration }
    }

    fn answer(&self) -> Result<Answer> {
        match self.claim.says {
            Figure::MemoryGb(gb) => self.memory(Bytes::from_decimal_gb(gb)),
            Figure::TokensPerS(rate) => self.speed(rate),
            Figure::Hours(hours) => self.hours(Seconds::from_hours(hours)),
            Figure::Fits(fits) => self.fits(fits),
            Figure::WeightsGb(gb) => Ok(self.weights(Bytes::from_decimal_gb(gb))),
            Figure::MinimumRamGb(gb) => self.minimum(Bytes::from_gib(gb)),
            Figure::GeneratedPerS(rate) => Ok(self.generation(rate)),
        }
    }

    fn memory(&self, claimed: Bytes) -> Result<Answer> {
        let p = self.predicted(Engine::MlxLm)?;
        // What is always there and the largest single thing are there at one time, whatever else is.
        let floor = p.ledger.resident_total() + p.ledger.largest_buffer.bytes;
        let e = p.peak_memory.map(Bytes::as_f64);
        Ok(Answer {
            text: decimal(p.peak_memory.point),
            verdict: Verdict::of_amount(claimed.as_f64(), floor.as_f64(), e.low, e.high),
            why: tallest(&p),
        })
    }

    fn fits(&self, claimed: bool) -> Result<Answer> {
        let found = self.assessed(&self.machine)?;
        let verdict = match (claimed, found.verdict) {
            (true, Fit::Fits | Fit::Tight) | (false, Fit::Pages | Fit::DoesNotFit) => Verdict::Right,
            (true, Fit::Pages) => Verdict::Optimistic,
            (true, Fit::DoesNotFit) => Verdict::Impossible,
            (false, Fit::Fits | Fit::Tight) => Verdict::Pessimistic,
        };
        Ok(Answer { text: decimal(found.prediction.peak_memory.point), verdict, why: tallest(&found.prediction) })
    }

    fn speed(&self, claimed: f64) -> Result<Answer> {
        let p = self.predicted(Engine::MlxLm)?;
        let (flops, ceiling) = self.ceiling()?;
        let e = p.tokens_per_s;
        Ok(Answer {
            text: format!("{:.0} tok/s", e.point),
            verdict: Verdict::of_rate(claimed, e.low, e.high, ceiling),
            why: format!("at least {:.0} GFLOP a token: {ceiling:.0} tok/s at the nominal rate", flops / 1e9),
        })
    }

    /// FLOPs of a token, at least, and the tokens per second at the machine's nominal rate.
    fn ceiling(&self) -> Result<(f64, f64)> {
        // Whatever the guide leaves open, the arithmetic of the leanest step is done.
        let mut run = self.claim.run(Engine::MlxLm);
        run.execution.grad_checkpoint = false;
        let cost = step_cost(self.spec, &self.machine, &run, Some(&self.lengths))?;
        let flops = cost.flops() / cost.tokens;
        Ok((flops, self.machine.matrix_flops.unwrap_or(self.machine.peak_flops).0 / flops))
    }

    fn hours(&self, claimed: Seconds) -> Result<Answer> {
        let p = self.predicted(Engine::MlxLm)?;
        // Examples may be shorter than the longest, so the time may be anything below that.
        let (_, ceiling) = self.ceiling()?;
        let tokens = EPOCHS * (EXAMPLES * self.claim.seq) as f64;
        let high = p.total_time.high;
        Ok(Answer {
            text: format!("{:.0} h", p.total_time.point.hours()),
            verdict: if claimed.0 > high.0 { Verdict::Pessimistic } else { Verdict::Right },
            why: format!(
                "at most {:.1}M tokens, no less than {:.1} h if all are full",
                tokens / 1e6,
                Seconds(tokens / ceiling).hours()
            ),
        })
    }

    fn weights(&self, claimed: Bytes) -> Answer {
        let parameters = Parameters::of(self.spec).total();
        let bytes = Bytes::from_f64(parameters as f64 * self.claim.bits() / 8.0);
        let size = bytes.as_f64();
        let (low, high) = (size / (1.0 + ROUNDING), size * (1.0 + ROUNDING));
        Answer {
            text: decimal(bytes),
            verdict: Verdict::of_amount(claimed.as_f64(), 0.0, low, high),
            why: format!("{:.2}e9 parameters of {} bits", parameters as f64 / 1e9, self.claim.bits()),
        }
    }

    /// The smallest memory that any Mac is sold with in which the run fits.
    fn minimum(&self, claimed: Bytes) -> Result<Answer> {
        let mut sizes: Vec<Bytes> = chips::all().iter().flat_map(|c| c.ram_options()).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let mut least = None;
        for ram in sizes {
            let found = self.assessed(&Machine::plainest(ram)?)?;
            if matches!(found.verdict, Fit::Fits | Fit::Tight) {
                least = Some((ram, found));
                break;
            }
        }
        let Some((least, found)) = least else {
            let p = self.predicted(Engine::MlxLm)?;
            return Ok(Answer { text: "none".into(), verdict: Verdict::Impossible, why: tallest(&p) });
        };
        let weights = found.prediction.ledger.resident_total();
        Ok(Answer {
            text: format!("{:.0} GiB", least.gib()),
            verdict: Verdict::of_amount(claimed.gib(), weights.gib(), least.gib(), least.gib()),
            why: tallest(&found.prediction),
        })
    }

    fn generation(&self, claimed: f64) -> Answer {
        let bytes = Parameters::of(self.spec).total() as f64 * Q4_K_M / 8.0;
        let ceiling = self.machine.bandwidth / bytes;
        let (low, high) = (GENERATION.0 * ceiling, GENERATION.1 * ceiling);
        Answer {
            text: format!("{low:.0} to {high:.0} tok/s"),
            verdict: Verdict::of_rate(claimed, low, high, ceiling),
            why: format!(
                "each token reads {}; the memory bandwidth allows {ceiling:.0} tokens/s",
                decimal(Bytes::from_f64(bytes))
            ),
        }
    }
}

/// The two largest things at the tallest moment.
fn tallest(p: &Prediction) -> String {
    let largest: Vec<String> =
        p.ledger.at_peak().iter().take(2).map(|(item, _)| format!("{} {}", item.name, decimal(item.bytes))).collect();
    format!("at the peak: {}", largest.join(", "))
}

fn check_one(claim: &Claim) -> Result<Checked> {
    let entry = catalogue::find(&claim.model)?;
    let subject = ResolvedClaim {
        claim,
        spec: &entry.spec,
        machine: Machine::named(&claim.machine, Some(Bytes::from_gib(claim.ram_gib)), claim.gpu_cores)?,
        lengths: TokenLengths::new(vec![claim.seq as u32; EXAMPLES]),
    };
    let answer = subject.answer()?;
    let trains = matches!(claim.says, Figure::MemoryGb(_) | Figure::Fits(_));
    let ours = if trains { Some(subject.predicted(Engine::Candle)?.peak_memory.point) } else { None };
    Ok(Checked {
        guide: claim.guide.clone(),
        what: claim.what(entry.short_name()),
        machine: subject.machine.name.clone(),
        says: claim.says(),
        model_says: answer.text,
        verdict: answer.verdict,
        why: answer.why,
        ours,
    })
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
