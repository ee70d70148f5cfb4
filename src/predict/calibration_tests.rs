use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::predict::request::Request;
use crate::spec::model::catalogue;
use crate::spec::run::RunConfig;
use crate::units::{Bytes, Seconds};

/// A run of Qwen2.5-0.5B that differs in what moves the terms apart.
fn run(batch: usize, seq: usize, rank: usize) -> RunConfig {
    let text = format!(
        "model = \"m\"\ndata = \"d\"\n[recipe]\nmax_seq_length = {seq}\n[recipe.lora]\nrank = {rank}\n[execution]\nbatch_size = {batch}"
    );
    RunConfig::from_toml(&text, "run.toml".as_ref()).unwrap()
}

fn normal(rng: &mut ChaCha8Rng) -> f64 {
    crate::stats::normal_quantile(rng.random_range(1e-9..1.0))
}

struct Truth {
    machine: Machine,
    calibration: Calibration,
    noise: [f64; 3],
}

impl Truth {
    fn new(rng: &mut ChaCha8Rng) -> Self {
        let machine = Machine::plainest(Bytes::from_gib(16.0)).unwrap();
        let mut calibration = Calibration::prior(&machine, Engine::Candle);
        for coefficient in calibration.coefficients.list_mut() {
            coefficient.value *= (coefficient.relative_sd * normal(rng)).exp();
        }
        // As the prior believes: a variance spread as if seen NOISE_FREEDOM times.
        let noise = calibration.noise.list().map(|sd| {
            let chi2: f64 = (0..NOISE_FREEDOM as usize).map(|_| normal(rng).powi(2)).sum();
            sd * (NOISE_FREEDOM / chi2).sqrt()
        });
        Self { machine, calibration, noise }
    }

    fn formula(&self, run: &RunConfig) -> Formula {
        let spec = &catalogue::find("Qwen2.5-0.5B-Instruct").unwrap().spec;
        Request { spec, machine: &self.machine, run, lengths: None, calibration: &self.calibration }.formula().unwrap()
    }

    fn observe(&self, run: &RunConfig, rng: &mut ChaCha8Rng) -> Observation {
        let formula = self.formula(run);
        let mut noisy = |kind: usize, figure: LogNormal| (figure.mean + self.noise[kind] * normal(rng)).exp();
        let measured = Measured {
            step_time: Seconds(noisy(0, self.calibration.step_time(&formula))),
            peak_memory: Bytes::from_f64(noisy(1, self.calibration.peak(&formula))),
            footprint: Bytes::from_f64(noisy(2, self.calibration.footprint(&formula))),
        };
        Observation { formula, measured }
    }

    fn fitted(&self, rng: &mut ChaCha8Rng, outlier: bool) -> Calibration {
        let runs = [(1, 128, 8), (4, 128, 8), (1, 512, 8), (8, 512, 16), (2, 1024, 64), (1, 2048, 8)];
        let mut seen: Vec<_> = runs.iter().map(|&(b, s, r)| self.observe(&run(b, s, r), rng)).collect();
        if outlier {
            seen[1].measured.step_time.0 *= 3.0;
        }
        Calibration::fit(&Calibration::prior(&self.machine, Engine::Candle), &seen).unwrap()
    }
}

#[test]
fn known_coefficients_are_found_again() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut truth = Truth::new(&mut rng);
    truth.noise = [1e-4; 3];
    let prior = Calibration::prior(&truth.machine, Engine::Candle);
    let fitted = truth.fitted(&mut rng, false);
    let near = |a: f64, b: f64, tolerance: f64| (a / b - 1.0).abs() < tolerance;
    let (c, t) = (&fitted.coefficients, &truth.calibration.coefficients);
    assert!(near(c.compute_efficiency.value, t.compute_efficiency.value, 0.05), "{c:?} {t:?}");
    assert!(near(c.allocation_factor.value, t.allocation_factor.value, 0.02), "{c:?} {t:?}");
    assert!(near(c.fixed_memory.value, t.fixed_memory.value, 0.15), "{c:?} {t:?}");
    assert!(c.compute_efficiency.source.contains("6 runs"));
    let new = truth.formula(&run(2, 512, 8));
    assert!(fitted.step_time(&new).sd < 0.5 * prior.step_time(&new).sd);
    assert_eq!(fitted.runs, 6);
}

#[test]
fn intervals_cover_what_they_say() {
    let new = run(4, 512, 32);
    let mut hits = [0; 3];
    let seeds = 1000;
    for seed in 0..seeds {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let truth = Truth::new(&mut rng);
        let fitted = truth.fitted(&mut rng, false);
        let Observation { formula, measured: seen } = truth.observe(&new, &mut rng);
        let cases = [
            (fitted.step_time(&formula), seen.step_time.0),
            (fitted.peak(&formula), seen.peak_memory.as_f64()),
            (fitted.footprint(&formula), seen.footprint.as_f64()),
        ];
        for (hit, (figure, value)) in hits.iter_mut().zip(cases) {
            let (_, low, high) = figure.interval(0.9);
            *hit += usize::from((low..=high).contains(&value));
        }
    }
    for hit in hits {
        let share = hit as f64 / seeds as f64;
        assert!((0.87..=0.93).contains(&share), "{hits:?} of {seeds}");
    }
}

#[test]
fn one_broken_run_does_not_carry_the_fit_away() {
    let truth = Truth::new(&mut ChaCha8Rng::seed_from_u64(3));
    let new = truth.formula(&run(2, 512, 8));
    let fit = |outlier| truth.fitted(&mut ChaCha8Rng::seed_from_u64(4), outlier).step_time(&new);
    assert!((fit(true).mean - fit(false).mean).abs() < 0.15, "{:?} {:?}", fit(true), fit(false));
}

#[test]
fn a_calibration_reads_back_as_it_was_written() {
    let truth = Truth::new(&mut ChaCha8Rng::seed_from_u64(1));
    let fitted = truth.fitted(&mut ChaCha8Rng::seed_from_u64(2), false);
    let text = serde_json::to_string(&fitted).unwrap();
    let again: Calibration = serde_json::from_str(&text).unwrap();
    // serde_json may err in the last digit of a float.
    let (a, b) = (again.coefficients.compute_efficiency, fitted.coefficients.compute_efficiency);
    assert!((a.value / b.value - 1.0).abs() < 1e-12 && a.source == b.source);
    assert_eq!((again.coverage, again.runs, again.engine), (fitted.coverage, fitted.runs, fitted.engine));
}
