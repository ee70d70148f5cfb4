//! The search for the best run: the recipe first, then the execution.

use crate::error::{Error, Result};
use crate::plan::answer::{Binding, Candidate, Neighbour, Plan};
use crate::plan::ask::{Ask, RANKS, SEQ_LEAST};
use crate::plan::assessment::{Assessment, assess};
use crate::plan::levers::levers;
use crate::plan::quality::Quality;
use crate::predict::calibration::Calibration;
use crate::spec::machine::{Machine, chips};
use crate::spec::model::{Model, ModelSpec};
use crate::spec::run::{Engine, RunConfig, Weights};
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
    let parameters = best.assessment.prediction.total_params - best.assessment.prediction.trainable_params;
    let quality = Quality::of(&models[at].spec, best.run.execution.weights, parameters);
    Ok(Plan { binds, levers, neighbours, quality, considered: search.considered, best })
}

/// Times that differ by less than this factor are one to a prediction.
const AS_GOOD_AS: f64 = 1.02;

pub(super) struct Search<'a> {
    pub(super) ask: &'a Ask<'a>,
    pub(super) considered: usize,
}

impl Search<'_> {
    /// The longest sequence first, then models and formats in the order of the preference, then the highest rank that
    /// finishes and fits.
    fn best(&mut self, models: &[Model]) -> Result<Option<(usize, Candidate)>> {
        for seq in self.ask.seq_lengths() {
            for group in self.ask.choices(models) {
                let mut soonest: Option<(usize, Candidate)> = None;
                for (at, weights) in group {
                    // What the data needs is needed; a model that cannot see as far is no answer to it.
                    let sees = models[at].spec.max_position_embeddings >= seq;
                    if !self.ask.held.max_seq_length && self.ask.model.is_none() && !sees {
                        continue;
                    }
                    let Some(found) = self.in_format(&models[at], weights, seq, self.ask.hours)? else { continue };
                    let time = |c: &Candidate| c.assessment.prediction.total_time.point.0;
                    if soonest.as_ref().is_none_or(|(_, best)| time(&found) < time(best)) {
                        soonest = Some((at, found));
                    }
                }
                if soonest.is_some() {
                    return Ok(soonest);
                }
            }
        }
        Ok(None)
    }

    /// The best run of a model in a format: the highest rank that finishes and fits.
    pub(super) fn in_format(
        &mut self,
        model: &Model,
        weights: Weights,
        seq: usize,
        hours: f64,
    ) -> Result<Option<Candidate>> {
        // What does not fit alone fits with nothing.
        if model.spec.matrices_bytes(weights) > self.ask.memory().0 {
            return Ok(None);
        }
        for rank in self.ask.ranks(&model.spec, seq)? {
            let recipe = self.ask.recipe(model, weights, seq, rank);
            let executions = self.ask.executions(&model.spec, &recipe);
            let lean = executions[0].clone();
            let timed = self.timed(&model.spec, executions)?;
            // Where even the soonest is late, none need be asked for its memory.
            let soonest = timed.first().map(|(step, run)| self.ask.request(&model.spec, run).total_time(*step));
            if lean.check().is_err() || soonest.is_none_or(|time| time > Seconds::from_hours(hours)) {
                continue;
            }
            if !self.assess(&model.spec, &lean)?.fits() {
                continue;
            }
            if let Some(candidate) = self.fastest(&model.spec, timed, hours)? {
                return Ok(Some(candidate));
            }
        }
        Ok(None)
    }

    /// The best run of a model in the first of its formats that has one.
    fn in_any_format(&mut self, model: &Model, seq: usize, hours: f64) -> Result<Option<Candidate>> {
        for weights in self.ask.formats(&model.spec) {
            if let Some(found) = self.in_format(model, weights, seq, hours)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    pub(super) fn assess(&mut self, spec: &ModelSpec, run: &RunConfig) -> Result<Assessment> {
        self.considered += 1;
        assess(&self.ask.request(spec, run), self.ask.confidence, self.ask.budget)
    }

    /// Executions with the time of a step, the fastest first.
    fn timed(&self, spec: &ModelSpec, executions: Vec<RunConfig>) -> Result<Vec<(Seconds, RunConfig)>> {
        let time = |run: RunConfig| Ok((self.ask.request(spec, &run).step_time()?, run));
        let mut timed: Vec<(Seconds, RunConfig)> = executions.into_iter().map(time).collect::<Result<_>>()?;
        timed.sort_by(|a, b| a.0.0.total_cmp(&b.0.0));
        Ok(timed)
    }

    /// Of executions, the fastest first, the one with the most tokens per second among those that fit; of those that are as good as
    /// equally fast, the one that takes least memory. `None` where nothing fits, or nothing finishes in `hours`.
    fn fastest(&mut self, spec: &ModelSpec, timed: Vec<(Seconds, RunConfig)>, hours: f64) -> Result<Option<Candidate>> {
        // Hours are a bound as bytes are; what is slower than one that is late is late too.
        let limit = Seconds::from_hours(hours);
        if let Some((_, soonest)) = timed.first()
            && self.assess(spec, soonest)?.prediction.total_time.high > limit
        {
            return Ok(None);
        }
        let mut best: Option<Candidate> = None;
        let mut fastest = Seconds(f64::INFINITY);
        let mut hopeless: Vec<RunConfig> = Vec::new();
        for (step, run) in timed {
            if step.0 > fastest.0 * AS_GOOD_AS {
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
            if assessment.prediction.total_time.high > limit {
                break;
            }
            fastest.0 = fastest.0.min(step.0);
            let high = |a: &Assessment| a.prediction.footprint.high;
            if best.as_ref().is_none_or(|b| high(&assessment) < high(&b.assessment)) {
                best = Some(Candidate { run, assessment });
            }
        }
        Ok(best)
    }

    /// The run of a model that takes least: in its narrowest format.
    fn leanest(&mut self, model: &Model, seq: usize, rank: usize) -> Result<Candidate> {
        let narrowest = self.ask.formats(&model.spec).last().copied().unwrap_or_default();
        let recipe = self.ask.recipe(model, narrowest, seq, rank);
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

    /// A size larger with the time it needs, a size smaller, the other engine, and the Mac that brings the next size.
    fn neighbours(&mut self, models: &[Model], at: usize, best: &Candidate) -> Result<Vec<Neighbour>> {
        let mut all = Vec::new();
        let here = |wish: &str, candidate| Neighbour { wish: wish.into(), machine: None, candidate };
        let seq = best.run.recipe.max_seq_length;
        if let Some(larger) = at.checked_sub(1).map(|i| &models[i]) {
            all.extend(self.in_any_format(larger, seq, f64::INFINITY)?.map(|c| here("a size larger", c)));
            all.extend(self.larger_mac(larger, seq, best)?);
        } else if let Some(mac) = self.ask.machine.next_larger() {
            all.extend(on_mac(self.ask, &mac, &models[at], seq, "a larger Mac")?);
        }
        if let Some(smaller) = models.get(at + 1) {
            all.extend(self.in_any_format(smaller, seq, self.ask.hours)?.map(|c| here("a size smaller", c)));
        }
        all.extend(self.other_engine(&models[at], seq)?);
        Ok(all)
    }

    /// The same model with the other engine, by formula.
    fn other_engine(&self, model: &Model, seq: usize) -> Result<Option<Neighbour>> {
        let engine = match self.ask.run.engine {
            Engine::Candle => Engine::MlxLm,
            Engine::MlxLm => Engine::Candle,
        };
        let mut run = self.ask.run.clone();
        run.engine = engine;
        let trains = engine == Engine::MlxLm || model.spec.trained_here().is_ok();
        let reads = engine == Engine::Candle || model.spec.read_by_mlx(run.execution.weights).is_ok();
        if !trains || !reads || run.check().is_err() {
            return Ok(None);
        }
        let calibration = Calibration::prior(self.ask.machine, engine);
        let there = Ask { run, calibration: &calibration, ..self.ask.clone() };
        let found = Search { ask: &there, considered: 0 }.in_any_format(model, seq, f64::INFINITY)?;
        Ok(found.map(|candidate| Neighbour { wish: format!("with {}", engine.name()), machine: None, candidate }))
    }

    /// The slowest Mac on which the larger model fits and finishes.
    fn larger_mac(&mut self, model: &Model, seq: usize, best: &Candidate) -> Result<Option<Neighbour>> {
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
            if let Some(found) = on_mac(self.ask, &mac, model, seq, "a larger Mac")? {
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
                Error::NothingFits { what, needs: l.high, name: l.kind.name(), limit: l.limit, larger }
            }
            None => Error::TooSlow {
                what,
                needs: lean.prediction.total_time.high,
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

/// The best run of a model on another Mac, by formula.
fn on_mac(ask: &Ask<'_>, mac: &Machine, model: &Model, seq: usize, wish: &str) -> Result<Option<Neighbour>> {
    let calibration = Calibration::prior(mac, ask.run.engine);
    let there = Ask { machine: mac, calibration: &calibration, ..ask.clone() };
    let found = Search { ask: &there, considered: 0 }.in_any_format(model, seq, ask.hours)?;
    Ok(found.map(|candidate| Neighbour { wish: wish.into(), machine: Some(mac.name.clone()), candidate }))
}
