//! What popular guides claim, held against the model: `grids/guides.toml`.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cost::params::Parameters;
use crate::cost::time::step_cost;
use crate::error::{Error, Result};
use crate::plan::{Assessment, Verdict as Fit, assess};
use crate::predict::calibration::Calibration;
use crate::predict::{Prediction, Request, predict};
use crate::spec::machine::{Machine, chips};
use crate::spec::model::storage::Format;
use crate::spec::model::{ModelSpec, catalogue};
use crate::spec::run::data::TokenLengths;
use crate::spec::run::{Data, Engine, Execution, Lora, Recipe, RunConfig, Weights, toml_error};
use crate::units::{Bytes, Seconds};

/// Level of the intervals that a claim is held against.
const LEVEL: f64 = 0.9;

/// Confidence of the verdicts on whole runs.
const CONFIDENCE: f64 = 0.9;

/// How far a published size of weights may be from the count and still be right: people round.
const ROUNDING: f64 = 0.1;

/// Share of the nominal bandwidth at which llama.cpp reads 4-bit weights while it generates: the least and the most
/// over all chips in llama.cpp#4167, whose 7B file has 3.83 GB (M1 Ultra, 48 cores: 75 tokens/s at 800 GB/s; M2: 21.9
/// at 100).
const GENERATION: (f64, f64) = (0.36, 0.84);

/// Bits of a parameter in Q4_K_M, whose most sensitive matrices have six (a file of 4.92 GB for 8.03e9 parameters).
const Q4_K_M: f64 = 4.9;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Guides {
    /// Where the claims were read.
    pub guide: Vec<Guide>,
    /// What they say.
    pub claim: Vec<Claim>,
}

/// A page that people follow.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Guide {
    /// By which claims name it.
    pub key: String,
    /// Its title.
    pub name: String,
    /// Its address, where it was found.
    #[serde(default)]
    pub url: String,
}

/// One thing that is claimed.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Key of the guide.
    pub guide: String,
    /// Name in the catalogue.
    pub model: String,
    /// Chip.
    pub machine: String,
    /// Memory of the Mac, GiB.
    pub ram_gib: f64,
    /// GPU cores, where the chip was sold with several.
    #[serde(default)]
    pub gpu_cores: Option<usize>,
    /// Format of the base.
    pub weights: Weights,
    /// LoRA rank, on every linear layer.
    #[serde(default = "eight")]
    pub rank: usize,
    /// Examples of a micro-batch.
    #[serde(default = "one")]
    pub batch_size: usize,
    /// Tokens of an example.
    #[serde(default = "length")]
    pub seq: usize,
    /// What is said.
    pub says: Figure,
}

fn eight() -> usize {
    8
}

fn one() -> usize {
    1
}

fn length() -> usize {
    2048
}

/// A figure that is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Figure {
    /// Peak of a training run, 1e9 bytes.
    MemoryGb(f64),
    /// Of a training run.
    TokensPerS(f64),
    /// Of a training run over 2,000 examples, three times.
    Hours(f64),
    /// That the run fits the Mac.
    Fits(bool),
    /// Size of the weights, 1e9 bytes.
    WeightsGb(f64),
    /// The smallest Mac that trains it, GiB.
    MinimumRamGb(f64),
    /// Tokens that are generated per second, from 4-bit weights.
    GeneratedPerS(f64),
}

impl Figure {
    /// A figure that can be held against another.
    fn check(self) -> Result<()> {
        let (field, value) = match self {
            Self::MemoryGb(value) => ("memory_gb", value),
            Self::TokensPerS(value) => ("tokens_per_s", value),
            Self::Hours(value) => ("hours", value),
            Self::Fits(_) => return Ok(()),
            Self::WeightsGb(value) => ("weights_gb", value),
            Self::MinimumRamGb(value) => ("minimum_ram_gb", value),
            Self::GeneratedPerS(value) => ("generated_per_s", value),
        };
        if value > 0.0 && value <= MOST { Ok(()) } else { Err(Error::invalid(field, value, "more than 0")) }
    }
}

/// Examples and passes of [`Figure::Hours`].
const EXAMPLES: usize = 2000;
const EPOCHS: f64 = 3.0;

/// What is to be said of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Inside the interval.
    Right,
    /// Less memory or time, or more speed, than can be expected.
    Optimistic,
    /// More memory or time, or less speed.
    Pessimistic,
    /// Beyond what the arithmetic or the machine allows.
    Impossible,
}

impl Verdict {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Right => "right",
            Self::Optimistic => "optimistic",
            Self::Pessimistic => "pessimistic",
            Self::Impossible => "impossible",
        }
    }

    /// Of a claimed amount of something that one would have less of: `floor` cannot be gone below.
    pub fn of_amount(claimed: f64, floor: f64, low: f64, high: f64) -> Self {
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

    /// Of a claimed rate: `ceiling` cannot be gone above.
    pub fn of_rate(claimed: f64, low: f64, high: f64, ceiling: f64) -> Self {
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

/// A claim beside the model's answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checked {
    /// Of the guide.
    pub guide: String,
    /// What is claimed of: `Qwen2.5-1.5B-Instruct f16, rank 32, 4 x 2048`.
    pub what: String,
    /// The Mac.
    pub machine: String,
    /// What the guide says.
    pub says: String,
    /// What the model says of mlx-lm.
    pub model_says: String,
    /// Judgement.
    pub verdict: Verdict,
    /// In a line.
    pub why: String,
    /// The same run with our own engine, where memory is claimed.
    pub ours: Option<Bytes>,
}

/// The text of the file at `path`, with every claim checked as a run is that somebody wants to make.
pub fn read(text: &str, path: &Path) -> Result<Guides> {
    let guides: Guides = toml::from_str(text).map_err(|e| toml_error(&e, text, path))?;
    for (i, claim) in guides.claim.iter().enumerate() {
        claim.may_be_asked(&guides.guide).map_err(as_claims_say).map_err(|e| Error::Parse {
            path: path.into(),
            line: claim_line(text, i),
            message: format!("claim {} (`{}`): {e}", i + 1, claim.guide),
            hint: e.hint(),
        })?;
    }
    Ok(guides)
}

/// An error of a run or a machine, with the field named as a claim names it.
fn as_claims_say(error: Error) -> Error {
    let names = [
        ("--ram", "ram_gib"),
        ("--gpu-cores", "gpu_cores"),
        ("max_seq_length", "seq"),
        ("effective_batch_size", "batch_size"),
    ];
    match error {
        Error::Invalid { field, got, must } => {
            let name = names.iter().find(|(known, _)| *known == field).map(|(_, name)| (*name).to_owned());
            Error::Invalid { field: name.unwrap_or(field), got, must }
        }
        other => other,
    }
}

/// Where a claim begins.
fn claim_line(text: &str, number: usize) -> Option<usize> {
    let heads = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("[[claim]]"));
    heads.map(|(i, _)| i + 1).nth(number)
}

/// More than this of anything that guides give figures of is a slip of the pen.
const MOST: f64 = 1e9;

/// Every claim, checked.
pub fn check(guides: &Guides) -> Result<Vec<Checked>> {
    guides.claim.iter().map(Claim::check).collect()
}

/// What a claim is about, made of names.
struct Subject<'a> {
    claim: &'a Claim,
    spec: &'a ModelSpec,
    machine: Machine,
    lengths: TokenLengths,
}

/// What the model says of a claim.
struct Answer {
    text: String,
    verdict: Verdict,
    why: String,
}

impl Claim {
    /// What it names exists, it is a run, and its figure is one.
    fn may_be_asked(&self, guides: &[Guide]) -> Result<()> {
        if !guides.iter().any(|g| g.key == self.guide) {
            return Err(Error::invalid("guide", format!("`{}`", self.guide), "the key of a [[guide]]"));
        }
        let spec = &catalogue::find(&self.model)?.spec;
        if !(self.ram_gib > 0.0 && self.ram_gib <= MOST) {
            return Err(Error::invalid("ram_gib", self.ram_gib, "more than 0"));
        }
        Machine::named(&self.machine, Some(Bytes::from_gib(self.ram_gib)), self.gpu_cores)?;
        self.run(Engine::MlxLm).check()?;
        if self.seq > spec.max_position_embeddings {
            let must = format!("at most {}, what `{}` was made for", spec.max_position_embeddings, self.model);
            return Err(Error::invalid("seq", self.seq, must));
        }
        self.says.check()
    }

    fn run(&self, engine: Engine) -> RunConfig {
        let lora = Lora { rank: self.rank, alpha: 2.0 * self.rank as f64, ..Lora::default() };
        let recipe = Recipe {
            max_seq_length: self.seq,
            effective_batch_size: self.batch_size,
            epochs: Some(EPOCHS),
            lora,
            ..Recipe::default()
        };
        let execution = Execution { batch_size: self.batch_size, weights: self.weights, ..Execution::default() };
        RunConfig { model: self.model.clone(), data: Data::builtin(), engine, seed: 0, recipe, execution }
    }

    fn check(&self) -> Result<Checked> {
        let entry = catalogue::find(&self.model)?;
        let subject = Subject {
            claim: self,
            spec: &entry.spec,
            machine: Machine::named(&self.machine, Some(Bytes::from_gib(self.ram_gib)), self.gpu_cores)?,
            lengths: TokenLengths::new(vec![self.seq as u32; EXAMPLES]),
        };
        let answer = subject.answer()?;
        let trains = matches!(self.says, Figure::MemoryGb(_) | Figure::Fits(_));
        let ours = if trains { Some(subject.predicted(Engine::Candle)?.peak_memory.point) } else { None };
        Ok(Checked {
            guide: self.guide.clone(),
            what: self.what(entry.short_name()),
            machine: subject.machine.name.clone(),
            says: self.says(),
            model_says: answer.text,
            verdict: answer.verdict,
            why: answer.why,
            ours,
        })
    }

    /// Bits of a weight; a model as it is published has 16.
    fn bits(&self) -> f64 {
        self.weights.format().map_or(16.0, Format::bits)
    }

    fn what(&self, model: &str) -> String {
        let run = format!("rank {}, {} x {}", self.rank, self.batch_size, self.seq);
        match self.says {
            Figure::WeightsGb(_) => format!("{model}, weights in {} bits", self.bits() as u32),
            Figure::MinimumRamGb(_) => format!("{model}, smallest Mac to train in {} bits", self.bits() as u32),
            Figure::GeneratedPerS(_) => format!("{model} in 4 bits, generating"),
            Figure::Hours(_) => format!("{model} {run}, 3 x 2,000 examples"),
            _ => format!("{model} {}, {run}", self.weights.name()),
        }
    }

    fn says(&self) -> String {
        match self.says {
            Figure::MemoryGb(gb) | Figure::WeightsGb(gb) => decimal(Bytes::from_decimal_gb(gb)),
            Figure::TokensPerS(n) | Figure::GeneratedPerS(n) => format!("{n:.0} tok/s"),
            Figure::Hours(hours) => format!("{hours:.0} h"),
            Figure::Fits(fits) => if fits { "fits" } else { "does not fit" }.into(),
            Figure::MinimumRamGb(gb) => format!("{gb:.0} GiB"),
        }
    }
}

/// As guides write it.
fn decimal(bytes: Bytes) -> String {
    format!("{:.1} GB", bytes.decimal_gb())
}

impl Subject<'_> {
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
                "each token reads {}; the memory can do that {ceiling:.0} times a second",
                decimal(Bytes::from_f64(bytes))
            ),
        }
    }
}

/// The two largest things at the tallest moment.
fn tallest(p: &Prediction) -> String {
    let largest: Vec<String> =
        p.ledger.at_peak().iter().take(2).map(|(item, _)| format!("{} {}", item.name, decimal(item.bytes))).collect();
    format!("at the tallest moment: {}", largest.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_judged_by_where_it_lies() {
        use Verdict::*;
        let amount = |claimed| Verdict::of_amount(claimed, 2.0, 8.0, 12.0);
        assert_eq!([1.9, 2.0, 8.0, 12.0, 12.1].map(amount), [Impossible, Optimistic, Right, Right, Pessimistic]);
        let rate = |claimed| Verdict::of_rate(claimed, 8.0, 12.0, 20.0);
        assert_eq!([20.1, 12.1, 12.0, 8.0, 7.9].map(rate), [Impossible, Optimistic, Right, Right, Pessimistic]);
    }

    fn one(claim: &str) -> Checked {
        let text = format!("[[guide]]\nkey = \"g\"\nname = \"a guide\"\n[[claim]]\nguide = \"g\"\n{claim}");
        check(&read(&text, "guides.toml".as_ref()).unwrap()).unwrap().remove(0)
    }

    #[test]
    fn logits_alone_can_make_a_claim_impossible() {
        let of = |gb: f64| {
            one(&format!(
                "model = \"Qwen2.5-1.5B-Instruct\"\nmachine = \"M2\"\nram_gib = 8\nweights = \"bf16\"\nrank = 32\nbatch_size = 4\nsays = {{ memory_gb = {gb} }}"
            ))
        };
        // 3.1 GB of weights, and 4 x 2048 rows of 151,936 logits.
        let checked = of(5.2);
        assert_eq!(checked.verdict, Verdict::Impossible);
        assert!(checked.why.contains("logits"), "{}", checked.why);
        assert!(checked.ours.unwrap().decimal_gb() < 8.0, "{:?}", checked.ours);
        assert_eq!(of(200.0).verdict, Verdict::Pessimistic);
    }

    #[test]
    fn generation_is_bounded_by_bandwidth_and_weights_by_counting() {
        let base = "model = \"Llama-3.1-8B-Instruct\"\nmachine = \"M2 Pro\"\nram_gib = 32\nweights = \"q4_k\"\n";
        let generated = |n: u32| one(&format!("{base}says = {{ generated_per_s = {n} }}")).verdict;
        // 200 GB/s over 4.9 GB: 41 times at most, 15 to 34 in practice.
        assert_eq!(
            [75, 38, 25, 10].map(generated),
            [Verdict::Impossible, Verdict::Optimistic, Verdict::Right, Verdict::Pessimistic]
        );
        // 8.03e9 parameters of 4.5 bits are 4.5 GB.
        let weights = |gb: f64| one(&format!("{base}says = {{ weights_gb = {gb} }}")).verdict;
        assert_eq!([4.5, 3.0, 8.0].map(weights), [Verdict::Right, Verdict::Optimistic, Verdict::Pessimistic]);
    }

    #[test]
    fn the_smallest_mac_is_sought_among_those_sold() {
        let base = "model = \"Llama-3.1-70B-Instruct\"\nmachine = \"M2 Ultra\"\nram_gib = 192\n";
        let wide = one(&format!("{base}weights = \"bf16\"\nsays = {{ minimum_ram_gb = 128 }}"));
        // 141 GB of weights are in no Mac of 128.
        assert_eq!(wide.verdict, Verdict::Impossible);
        let fits =
            one(&format!("{base}weights = \"bf16\"\nrank = 64\nbatch_size = 4\nseq = 4096\nsays = {{ fits = true }}"));
        assert_eq!(fits.verdict, Verdict::Impossible);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let wrong = |text: &str| read(text, "guides.toml".as_ref()).unwrap_err().to_string();
        assert!(wrong("[[guide]]\nkey = 1").contains("guides.toml"));
        let claim = "guide = []\n[[claim]]\nguide = \"x\"\nmodel = \"m\"\nmachine = \"M1\"\nram_gib = 8\nweights = \"bf16\"\nsays = { hours = 3 }";
        assert!(wrong(claim).contains("`x`"), "{}", wrong(claim));
    }

    #[test]
    fn a_claim_is_checked_as_a_run_is() {
        let base = [
            ("guide", "\"g\""),
            ("model", "\"Qwen2.5-1.5B-Instruct\""),
            ("machine", "\"M2\""),
            ("ram_gib", "8"),
            ("weights", "\"bf16\""),
            ("says", "{ memory_gb = 5.2 }"),
        ];
        for (field, value, said) in [
            ("batch_size", "0", "`batch_size` is 0"),
            ("batch_size", "9223372036854775807", "`batch_size` is 9223372036854775807"),
            ("batch_size", "1048576", "`batch_size` is 1048576, but must be at most 2048"),
            ("seq", "0", "`seq` is 0"),
            ("seq", "1000000000", "`seq` is 1000000000"),
            ("seq", "1000000", "`seq` is 1000000, but must be at most 32768"),
            ("rank", "0", "`rank` is 0"),
            ("rank", "9000000", "`rank` is 9000000"),
            ("ram_gib", "nan", "`ram_gib` is NaN"),
            ("ram_gib", "-8", "`ram_gib` is -8"),
            ("ram_gib", "1e300", "`ram_gib` is 1"),
            ("ram_gib", "9", "`ram_gib` is 9.0 GiB"),
            ("gpu_cores", "9000", "`gpu_cores` is 9000"),
            ("model", "\"Qwen2.5-1.5B-Instuct\"", "unknown model `Qwen2.5-1.5B-Instuct`"),
            ("machine", "\"M99\"", "unknown machine `M99`"),
            ("guide", "\"x\"", "`guide` is `x`"),
            ("says", "{ memory_gb = nan }", "`memory_gb` is NaN"),
            ("says", "{ memory_gb = -1.0 }", "`memory_gb` is -1"),
            ("says", "{ tokens_per_s = inf }", "`tokens_per_s` is inf"),
            ("says", "{ hours = 0.0 }", "`hours` is 0"),
            ("says", "{ weights_gb = 1e300 }", "`weights_gb` is 1"),
            ("says", "{ minimum_ram_gb = -inf }", "`minimum_ram_gb` is -inf"),
            ("says", "{ generated_per_s = nan }", "`generated_per_s` is NaN"),
        ] {
            let kept = base.iter().filter(|(key, _)| *key != field).map(|(key, value)| format!("{key} = {value}\n"));
            let good: String = base.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
            let bad = format!("{field} = {value}\n{}", kept.collect::<String>());
            let text = format!("[[guide]]\nkey = \"g\"\nname = \"n\"\n[[claim]]\n{good}[[claim]]\n{bad}");
            let error = read(&text, "guides.toml".as_ref()).unwrap_err().to_string();
            assert!(error.starts_with("`guides.toml`, line 11: claim 2 ("), "{field} = {value}: {error}");
            assert!(error.contains(said), "{field} = {value}: {error}");
        }
    }
}
