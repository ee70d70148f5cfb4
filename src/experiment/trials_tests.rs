use rand::Rng;

use super::*;
use crate::predict::Measured;
use crate::predict::calibration::{Died, Observation};
use crate::spec::model::catalogue;
use crate::stats::normal_quantile;

const CONFIDENCE: f64 = 0.99;

fn run() -> RunConfig {
    let text = "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = 1024\neffective_batch_size = 16";
    RunConfig::from_toml(text, "run.toml".as_ref()).unwrap()
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    normal_quantile(rng.random_range(1e-9..1.0))
}

/// A machine whose coefficients are as far from the prior as the prior thinks likely.
fn truth(prior: &Calibration, rng: &mut ChaCha8Rng) -> Calibration {
    let mut truth = prior.clone();
    for coefficient in truth.coefficients.list_mut() {
        coefficient.value *= (coefficient.relative_sd * normal(rng)).exp();
    }
    truth
}

/// Trials until the choice is settled: (the choice's time over that of the best that fits, its footprint fits, trials).
fn calibrated(seed: u64) -> (f64, bool, usize) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let machine = &Machine::named("M2 Pro", None, None).unwrap();
    let spec = &catalogue::find("Qwen2.5-0.5B-Instruct").unwrap().spec;
    let prior = &Calibration::prior(machine, Engine::Candle);
    let lengths = &TokenLengths::new(vec![1024; 100]);
    let around = Around { spec, machine, lengths, calibration: prior };
    let (options, mut left) = (around.options(&run()).unwrap(), around.trials(&run()).unwrap());
    let truth = truth(prior, &mut rng);
    let time = |c: &Candidate| truth.typical_time(&c.formula.cost);
    let footprint = |c: &Candidate| truth.footprint(&c.formula).mean.exp();
    // Between the leanest and the largest, so that memory decides.
    let mut all: Vec<f64> = options.iter().map(footprint).collect();
    all.sort_by(f64::total_cmp);
    let limit = Bytes::from_f64(1.2 * all[all.len() / 3]);
    let decision = Decision { options: &options, limit, confidence: CONFIDENCE };
    let (mut calibration, mut seen) = (prior.clone(), Vec::new());
    let standing = loop {
        let standing = decision.standing(&calibration);
        let fits = |c: &&Candidate| fits_within(limit, &calibration, &c.formula, 0.95);
        if standing.settled() || seen.len() == 30 {
            break standing;
        }
        let Some(trial) = next(&calibration, &[(decision, standing.clone())], left.iter().filter(fits)) else {
            break standing;
        };
        let at = left.iter().position(|c| c.run == trial.run).unwrap();
        let trial = left.swap_remove(at);
        let mut noisy = |value: f64, sd: f64| value * (sd * normal(&mut rng)).exp();
        let measured = Measured {
            step_time: Seconds(noisy(time(&trial), 0.03)),
            peak_memory: Bytes::from_f64(noisy(truth.peak(&trial.formula).mean.exp(), 0.005)),
            footprint: Bytes::from_f64(noisy(footprint(&trial), 0.01)),
        };
        seen.push(Observation { formula: trial.formula, measured });
        calibration = Calibration::fit(prior, &seen).unwrap();
    };
    let chosen = &options[standing.choice.expect("something fits")];
    let best = options.iter().filter(|c| footprint(c) <= limit.as_f64()).map(time).fold(f64::INFINITY, f64::min);
    (time(chosen) / best, footprint(chosen) <= limit.as_f64(), seen.len())
}

#[test]
fn a_few_trials_settle_a_choice_that_is_nearly_the_best() {
    let all: Vec<(f64, bool, usize)> = (0..20).map(calibrated).collect();
    let mut losses: Vec<f64> = all.iter().map(|c| c.0 - 1.0).collect();
    losses.sort_by(f64::total_cmp);
    let mut trials: Vec<usize> = all.iter().map(|c| c.2).collect();
    trials.sort_unstable();
    assert!(all.iter().all(|c| c.1), "a choice that does not fit: {all:?}");
    assert!(losses[10] < 0.01 && losses[18] < 0.06, "{losses:?}");
    assert!((3..=20).contains(&trials[10]), "{trials:?}");
}

#[test]
fn nothing_known_is_not_settled_and_everything_known_is() {
    let machine = &Machine::named("M2 Pro", None, None).unwrap();
    let spec = &catalogue::find("Qwen2.5-0.5B-Instruct").unwrap().spec;
    let prior = &Calibration::prior(machine, Engine::Candle);
    let lengths = &TokenLengths::new(vec![1024; 100]);
    let options = Around { spec, machine, lengths, calibration: prior }.options(&run()).unwrap();
    let decision = |gib| Decision { options: &options, limit: Bytes::from_gib(gib), confidence: CONFIDENCE };
    let standing = decision(60.0).standing(prior);
    assert!(!standing.settled() && standing.unknown > 0.1, "{standing:?}");
    assert!((standing.chances.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    let mut known = prior.clone();
    known.covariance.iter_mut().flatten().for_each(|c| *c *= 1e-8);
    known.coverage = crate::predict::coverage::Coverage::of(options.iter().map(|o| &o.formula.point));
    let standing = decision(60.0).standing(&known);
    let time = |i: usize| known.typical_time(&options[i].formula.cost);
    let choice = standing.choice.unwrap();
    assert!(standing.settled(), "{standing:?}");
    assert!(standing.fit.iter().enumerate().all(|(i, fits)| !fits || time(choice) <= time(i)));
    let nothing = decision(0.01).standing(prior);
    assert!(nothing.choice.is_none() && nothing.regret.is_infinite());
}

#[test]
fn what_needs_as_much_as_a_run_that_died_is_never_chosen() {
    let machine = &Machine::named("M2 Pro", None, None).unwrap();
    let spec = &catalogue::find("Qwen2.5-0.5B-Instruct").unwrap().spec;
    let prior = &Calibration::prior(machine, Engine::Candle);
    let lengths = &TokenLengths::new(vec![400; 100]);
    let around = Around { spec, machine, lengths, calibration: prior };
    let (mut options, trials) = (around.options(&run()).unwrap(), around.trials(&run()).unwrap());
    let limit = Bytes::from_gib(60.0);
    let filled =
        |run: &RunConfig| Request { spec, machine, run, lengths: None, calibration: prior }.filled_peak().unwrap();
    let choose = |options: &[Candidate], calibration: &Calibration| {
        let decision = Decision { options, limit, confidence: CONFIDENCE };
        decision.standing(calibration).choice.map(|i| options[i].run.clone())
    };
    let first = choose(&options, prior).unwrap();
    // Its trial dies; so does that of whatever is chosen next, until nothing is left.
    let (mut calibration, mut last, mut died) = (prior.clone(), Bytes(u64::MAX), 0);
    let mut chosen = Some(first);
    while let Some(run) = chosen {
        let peak = filled(&run);
        assert!(peak < last, "{peak} is no less than {last}, which died");
        (last, died) = (peak, died + 1);
        calibration.died = Some(Died { peak, had_taken: Bytes::from_gib(1.0) });
        around.mark(&mut options, &calibration).unwrap();
        let deadly: Vec<Bytes> = options.iter().filter(|o| o.deadly).map(|o| filled(&o.run)).collect();
        assert!(deadly.contains(&peak) && deadly.iter().all(|p| *p >= peak));
        chosen = choose(&options, &calibration);
    }
    assert!(died > 2 && options.iter().all(|o| o.deadly));
    // The same holds wherever a run is held against the machine.
    let padded = TokenLengths::filled();
    calibration.died = Some(Died { peak: Bytes(1), had_taken: Bytes::from_gib(50.0) });
    let run = &trials[0].run;
    let request = Request { spec, machine, run, lengths: Some(&padded), calibration: &calibration };
    let assessment = crate::plan::assess(&request, 0.99, None).unwrap();
    assert_eq!(assessment.verdict, crate::plan::Verdict::DoesNotFit);
    assert!(assessment.fits_by_formula() && assessment.binding().unwrap().kind == crate::plan::LimitKind::DiedHere);
}
