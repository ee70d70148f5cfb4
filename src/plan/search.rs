//! The search for the best run: the recipe first, then the execution.

use crate::error::{Error, Result};
use crate::plan::answer::{Binding, Candidate, Neighbour, Plan};
use crate::plan::ask::{Ask, RANKS, SEQ_LEAST};
use crate::plan::assessment::{Assessment, assess};
use crate::plan::levers::levers;
use crate::predict::calibration::Calibration;
use crate::spec::machine::{Machine, chips};
use crate::spec::model::{Model, ModelSpec};
use crate::spec::run::{RunConfig, Weights};
use crate::units::Seconds;

/// Searches for the best run that fits and finishes in time; an error says why nothing does.
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

/// Formats below the stored one, the widest first: they are offered, and taken only when asked for.
const QUANTISED: [Weights; 2] = [Weights::EightBit, Weights::FourBit];

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
        let mut hopeless: Vec<RunConfig> = Vec::new();
        for (step, run) in timed {
            let late = self.ask.request(spec, &run).total_time(step) > Seconds::from_hours(hours);
            if late || step.0 > fastest.0 * AS_GOOD_AS {
                break;
            }
            let lean = self.ask.leanest_chunks(spec, &run);
            if hopeless.contains(&lean) {
                continue;
            }
            let assessment = self.assess(spec, &run)?;
            if !assessment.fits() {
                // Smaller chunks are slower, and come later; where even the smallest are too large, none need be tried.
                if run != lean && !self.assess(spec, &lean)?.fits() {
                    hopeless.push(lean);
                }
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
            Some(limit) => Binding::Memory { model: model.name.clone(), name: limit.kind },
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
                let weights = self.format_that_fits(smallest, seq, rank)?;
                Error::NothingFits { what, needs: l.high, name: l.kind.name(), limit: l.limit, weights, larger }
            }
            None => Error::TooSlow {
                what,
                needs: lean.prediction.total_time.point,
                limit: Seconds::from_hours(self.ask.hours),
            },
        })
    }

    /// The widest quantised format in which a model fits at its leanest.
    fn format_that_fits(&mut self, model: &Model, seq: usize, rank: usize) -> Result<Option<&'static str>> {
        for weights in QUANTISED {
            let mut run = self.leanest(model, seq, rank)?.run;
            let held = model.spec.usual_format(run.execution.weights);
            if weights.format(model.spec.dtype).is_none_or(|narrower| narrower.bits() >= held.bits()) {
                continue;
            }
            run.execution.weights = weights;
            if run.check().is_ok() && self.assess(&model.spec, &run)?.fits() {
                return Ok(Some(weights.name()));
            }
        }
        Ok(None)
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
