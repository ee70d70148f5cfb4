//! The search for the best run: the recipe first, then the execution.

use super::{Assessment, Binding, Candidate, Neighbour, Plan, assess, levers};
use crate::cost::params::trainable;
use crate::error::{Error, Result};
use crate::predict::Request;
use crate::predict::calibration::Calibration;
use crate::spec::catalogue;
use crate::spec::chips;
use crate::spec::data::TokenLengths;
use crate::spec::machine::Machine;
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, RunConfig, Weights};
use crate::units::{Bytes, Seconds};

/// Share of the examples that are not to be cut.
const UNCUT: f64 = 0.99;
/// Lengths are rounded up to a multiple of this, and not halved below it.
const SEQ_STEP: usize = 32;
const SEQ_LEAST: usize = 128;

/// Ranks to choose from, smallest first.
const RANKS: [usize; 5] = [8, 16, 32, 64, 128];
/// Bits that an adapter's parameter can hold, for about one bit that a token of data carries
/// (Thinking Machines, "LoRA Without Regret", 2025).
const BITS_PER_PARAMETER: f64 = 2.0;

/// Examples that are worked on together.
const BATCH_SIZES: [usize; 6] = [1, 2, 4, 8, 16, 32];
const LOSS_CHUNKS: [usize; 3] = [128, 512, 2048];
const ATTENTION_CHUNKS: [usize; 2] = [128, 256];

/// A model to choose.
#[derive(Clone, Debug)]
pub struct Model {
    /// Name or folder.
    pub name: String,
    /// Its architecture.
    pub spec: ModelSpec,
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Where it is to run.
    pub machine: &'a Machine,
    /// What is known of it.
    pub calibration: &'a Calibration,
    /// Settings to start from; what `held` names is kept.
    pub run: RunConfig,
    /// What was given and is not searched.
    pub held: Held,
    /// The model, where it was given.
    pub model: Option<Model>,
    /// Lengths of the examples, counted or assumed.
    pub lengths: &'a TokenLengths,
    /// Longest run.
    pub hours: f64,
    /// Probability that the bounds hold.
    pub confidence: f64,
    /// Memory it may take at most, where less than is free.
    pub budget: Option<Bytes>,
}

/// Which settings were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the settings of the same names
pub struct Held {
    pub max_seq_length: bool,
    pub rank: bool,
    pub batch_size: bool,
    pub weights: bool,
    pub grad_checkpoint: bool,
}

/// The best run, or an honest no.
pub fn plan(ask: &Ask<'_>) -> Result<Plan> {
    let models = ask.models();
    let mut search = Search { ask, considered: 0 };
    let found = search.best(&models)?;
    let Some((at, best)) = found else { return Err(search.refusal(&models)?) };
    let request = ask.request(&models[at].spec, &best.run);
    let levers = levers(&request, &best.assessment, ask.budget)?;
    let binds = search.binds(&models, at, &best)?;
    let neighbours = search.neighbours(&models, at, &best)?;
    Ok(Plan { binds, levers, neighbours, considered: search.considered, best })
}

impl<'a> Ask<'a> {
    fn models(&self) -> Vec<Model> {
        match &self.model {
            Some(model) => vec![model.clone()],
            None => {
                let general = catalogue::representatives();
                general.into_iter().map(|e| Model { name: e.id.clone(), spec: e.spec.clone() }).collect()
            }
        }
    }

    fn request<'b>(&'b self, spec: &'b ModelSpec, run: &'b RunConfig) -> Request<'b> {
        Request { spec, machine: self.machine, run, lengths: Some(self.lengths), calibration: self.calibration }
    }

    /// Longest sequence that the data needs.
    fn needed_length(&self) -> usize {
        if self.held.max_seq_length {
            return self.run.recipe.max_seq_length;
        }
        self.lengths.uncut(UNCUT).next_multiple_of(SEQ_STEP).max(SEQ_STEP)
    }

    /// The length the data needs, then shorter ones, for when nothing finishes or fits at that.
    fn seq_lengths(&self) -> Vec<usize> {
        let needed = self.needed_length();
        if self.held.max_seq_length {
            return vec![needed];
        }
        let shorter = |n: &usize| (*n / 2 >= SEQ_LEAST).then_some((*n / 2).next_multiple_of(SEQ_STEP));
        std::iter::successors(Some(needed), shorter).collect()
    }

    /// The smallest rank that can hold what the data carries, then the smaller ones.
    fn ranks(&self, spec: &ModelSpec, seq: usize) -> Result<Vec<usize>> {
        let lora = &self.run.recipe.lora;
        if self.held.rank {
            return Ok(vec![lora.rank]);
        }
        let tokens = self.lengths.mean_cut(seq) * self.lengths.len() as f64;
        let mut ranks = Vec::new();
        for rank in RANKS {
            ranks.insert(0, rank);
            let mut lora = lora.clone();
            lora.rank = rank;
            if trainable(spec, &lora)? as f64 * BITS_PER_PARAMETER >= tokens {
                break;
            }
        }
        Ok(ranks)
    }

    /// The ask's run with a model, a length and a rank.
    fn recipe(&self, model: &Model, seq: usize, rank: usize) -> RunConfig {
        let mut run = self.run.clone();
        run.model = model.name.clone();
        run.recipe.max_seq_length = seq.min(model.spec.max_position_embeddings);
        if rank != run.recipe.lora.rank {
            // The customary alpha of twice the rank.
            run.recipe.lora.alpha = 2.0 * rank as f64;
            run.recipe.lora.rank = rank;
        }
        run
    }

    /// Every execution of a recipe, the leanest first.
    fn executions(&self, spec: &ModelSpec, recipe: &RunConfig) -> Vec<RunConfig> {
        let held = &self.held;
        let e = &recipe.execution;
        let stored = Weights::as_stored(spec.dtype);
        let effective = recipe.recipe.effective_batch_size;
        let batches: Vec<usize> = if held.batch_size {
            vec![e.batch_size]
        } else {
            BATCH_SIZES.into_iter().filter(|b| effective.is_multiple_of(*b)).collect()
        };
        // Never below the stored format, which would change the model.
        let weights = if held.weights {
            vec![e.weights]
        } else if stored == Weights::F32 {
            vec![stored]
        } else {
            vec![stored, Weights::F32]
        };
        let checkpoints = if held.grad_checkpoint { vec![e.grad_checkpoint] } else { vec![true, false] };
        // mlx-lm has no chunks to choose.
        let ours = recipe.engine == Engine::Candle;
        let loss_chunks = if ours { LOSS_CHUNKS.to_vec() } else { vec![e.loss_chunk] };
        let attention_chunks = if ours { ATTENTION_CHUNKS.to_vec() } else { vec![e.attention_chunk] };
        let mut all = Vec::new();
        for &batch_size in &batches {
            for &weights in &weights {
                for &grad_checkpoint in &checkpoints {
                    for &loss_chunk in &loss_chunks {
                        for &attention_chunk in &attention_chunks {
                            let mut run = recipe.clone();
                            run.execution.batch_size = batch_size;
                            run.execution.weights = weights;
                            run.execution.grad_checkpoint = grad_checkpoint;
                            run.execution.loss_chunk = loss_chunk;
                            run.execution.attention_chunk = attention_chunk;
                            all.push(run);
                        }
                    }
                }
            }
        }
        all
    }
}

/// Times that differ by less than this factor are one to a prediction.
const AS_GOOD_AS: f64 = 1.02;

struct Search<'a> {
    ask: &'a Ask<'a>,
    considered: usize,
}

impl Search<'_> {
    /// The longest sequence first, then the largest model, then the highest rank that finishes and fits.
    fn best(&mut self, models: &[Model]) -> Result<Option<(usize, Candidate)>> {
        for seq in self.ask.seq_lengths() {
            for (at, model) in models.iter().enumerate() {
                // What the data needs is needed; a model that cannot see as far is no answer to it.
                if !self.ask.held.max_seq_length && self.ask.model.is_none() && model.spec.max_position_embeddings < seq
                {
                    continue;
                }
                for rank in self.ask.ranks(&model.spec, seq)? {
                    let recipe = self.ask.recipe(model, seq, rank);
                    let lean = || self.ask.executions(&model.spec, &recipe).swap_remove(0);
                    if !self.assess(&model.spec, &lean())?.fits() {
                        continue;
                    }
                    if let Some(candidate) = self.fastest(&model.spec, &recipe, self.ask.hours)? {
                        return Ok(Some((at, candidate)));
                    }
                }
            }
        }
        Ok(None)
    }

    fn assess(&mut self, spec: &ModelSpec, run: &RunConfig) -> Result<Assessment> {
        self.considered += 1;
        assess(&self.ask.request(spec, run), self.ask.confidence, self.ask.budget)
    }

    /// The execution of a recipe with the most tokens per second among those that fit; of those that are as good as
    /// equally fast, the one that takes least memory. `None` where nothing fits, or nothing finishes in `hours`.
    fn fastest(&mut self, spec: &ModelSpec, recipe: &RunConfig, hours: f64) -> Result<Option<Candidate>> {
        let mut timed = Vec::new();
        for run in self.ask.executions(spec, recipe) {
            let step = self.ask.request(spec, &run).step_time()?;
            timed.push((step, run));
        }
        timed.sort_by(|a, b| a.0.0.total_cmp(&b.0.0));
        let mut best: Option<Candidate> = None;
        let mut fastest = Seconds(f64::INFINITY);
        for (step, run) in timed {
            let late = self.ask.request(spec, &run).total_time(step) > Seconds::from_hours(hours);
            if late || step.0 > fastest.0 * AS_GOOD_AS {
                break;
            }
            let assessment = self.assess(spec, &run)?;
            if !assessment.fits() {
                continue;
            }
            fastest.0 = fastest.0.min(step.0);
            let high = |a: &Assessment| a.prediction.footprint.high;
            if best.as_ref().is_none_or(|b| high(&assessment) < high(&b.assessment)) {
                best = Some(Candidate { run, assessment });
            }
        }
        Ok(best)
    }

    fn leanest(&mut self, model: &Model, seq: usize, rank: usize) -> Result<Candidate> {
        let recipe = self.ask.recipe(model, seq, rank);
        let run = self.ask.executions(&model.spec, &recipe).swap_remove(0);
        let assessment = self.assess(&model.spec, &run)?;
        Ok(Candidate { run, assessment })
    }

    /// Why the next larger model was not taken.
    fn binds(&mut self, models: &[Model], at: usize, best: &Candidate) -> Result<Binding> {
        let Some(model) = at.checked_sub(1).map(|i| &models[i]) else { return Ok(Binding::Nothing) };
        let recipe = &best.run.recipe;
        let lean = self.leanest(model, recipe.max_seq_length, recipe.lora.rank)?.assessment;
        Ok(match lean.binding().filter(|_| !lean.fits()) {
            Some(limit) => Binding::Memory { model: model.name.clone(), name: limit.name.into() },
            None => Binding::Time { model: model.name.clone() },
        })
    }

    /// A size larger with the time it needs, a size smaller, and the Mac that brings the next size.
    fn neighbours(&mut self, models: &[Model], at: usize, best: &Candidate) -> Result<Vec<Neighbour>> {
        let mut all = Vec::new();
        let recipe =
            |ask: &Ask<'_>, model: &Model| ask.recipe(model, best.run.recipe.max_seq_length, best.run.recipe.lora.rank);
        if let Some(larger) = at.checked_sub(1).map(|i| &models[i]) {
            let wanted = recipe(self.ask, larger);
            if let Some(candidate) = self.fastest(&larger.spec, &wanted, f64::INFINITY)? {
                all.push(Neighbour { wish: "a size larger".into(), machine: None, candidate });
            }
            all.extend(self.larger_mac(larger, &wanted, best)?);
        } else if let Some(mac) = self.ask.machine.next_larger() {
            all.extend(on_mac(self.ask, &mac, &models[at], &recipe(self.ask, &models[at]), "a larger Mac")?);
        }
        if let Some(smaller) = models.get(at + 1) {
            let wanted = recipe(self.ask, smaller);
            if let Some(candidate) = self.fastest(&smaller.spec, &wanted, self.ask.hours)? {
                all.push(Neighbour { wish: "a size smaller".into(), machine: None, candidate });
            }
        }
        Ok(all)
    }

    /// The slowest Mac on which the larger model fits and finishes.
    fn larger_mac(&mut self, model: &Model, wanted: &RunConfig, best: &Candidate) -> Result<Option<Neighbour>> {
        let here = self.ask.machine;
        if !chips::all().iter().any(|c| c.chip == here.chip) {
            return Ok(None);
        }
        // No Mac that is faster by less than the larger model is slower will do.
        let work = |spec: &ModelSpec| crate::cost::params::Parameters::of(spec).total() as f64;
        let needed = best.assessment.prediction.total_time.point.hours() / self.ask.hours * work(&model.spec)
            / best.assessment.prediction.total_params as f64;
        for mac in chips::by_speed() {
            let enough = mac.peak_flops.0 >= 0.7 * needed * here.peak_flops.0 && mac.memory >= here.memory;
            if !enough || mac.name == here.name {
                continue;
            }
            if let Some(found) = on_mac(self.ask, &mac, model, wanted, "a larger Mac")? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What to say when nothing fits or finishes.
    fn refusal(&mut self, models: &[Model]) -> Result<Error> {
        let seq = self.ask.seq_lengths().last().copied().unwrap_or(SEQ_LEAST);
        let smallest = models.last().expect("the catalogue is not empty, and a given model is one");
        let rank = self.ask.ranks(&smallest.spec, seq)?.last().copied().unwrap_or(RANKS[0]);
        let lean = self.leanest(smallest, seq, rank)?.assessment;
        let what = format!("`{}` at {seq} tokens", smallest.name);
        Ok(match lean.binding().filter(|_| !lean.fits()) {
            Some(l) => {
                let larger = self.smallest_mac(smallest, seq, rank)?;
                Error::NothingFits { what, needs: l.high, name: l.name, limit: l.limit, larger }
            }
            None => Error::TooSlow {
                what,
                needs: lean.prediction.total_time.point,
                limit: Seconds::from_hours(self.ask.hours),
            },
        })
    }

    /// The Mac with the least memory that holds a model at its leanest.
    fn smallest_mac(&self, model: &Model, seq: usize, rank: usize) -> Result<Option<String>> {
        let mut macs = chips::by_speed();
        macs.sort_by_key(|m| m.memory);
        for mac in macs {
            let calibration = Calibration::prior(&mac, self.ask.run.engine);
            let there = Ask { machine: &mac, calibration: &calibration, budget: None, ..self.ask.clone() };
            let mut search = Search { ask: &there, considered: 0 };
            if search.leanest(model, seq, rank)?.assessment.fits() {
                return Ok(Some(mac.name));
            }
        }
        Ok(None)
    }
}

/// The fastest execution of a recipe on another Mac, by formula.
fn on_mac(ask: &Ask<'_>, mac: &Machine, model: &Model, wanted: &RunConfig, wish: &str) -> Result<Option<Neighbour>> {
    let calibration = Calibration::prior(mac, wanted.engine);
    let there = Ask { machine: mac, calibration: &calibration, ..ask.clone() };
    let found = Search { ask: &there, considered: 0 }.fastest(&model.spec, wanted, ask.hours)?;
    Ok(found.map(|candidate| Neighbour { wish: wish.into(), machine: Some(mac.name.clone()), candidate }))
}
