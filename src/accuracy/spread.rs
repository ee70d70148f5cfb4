//! How far published runs lie from the formulas, by the rule that the priors of mlx-lm are set by.
//!
//! Rows of one source (one repository, one Mac) are not independent: what its Mac does better than the formula, all of
//! its rows do. So the logarithms of measured over predicted are split into a part that a source's rows share and one
//! that each has for itself, with the usual estimators of an unbalanced one-way layout: the variance within sources is
//! pooled over them, and that between them is the variance of their means less what the rows' own scatter gives to it
//! (Hedges and Olkin 1985). With two or three sources the latter is often estimated to be nothing; it is taken to be no
//! less than the error of the mean of all rows. What the model already widens an interval by (the heat of a Mac without
//! a fan) is not counted a second time.

use std::collections::BTreeMap;

use crate::accuracy::field::FieldRun;
use crate::predict::calibration::{ALLOCATION, Calibration, TIME};
use crate::predict::coefficients::FANLESS_SD;
use crate::spec::machine::Machine;
use crate::spec::run::Engine;

/// Error of one published run: the logarithm of measured over predicted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Residual {
    /// Id of the run.
    pub id: String,
    /// Repository or address of the page that published the run.
    pub source: String,
    /// Logarithm of the measured value over the predicted one.
    pub value: f64,
    /// Standard deviation of the run's own scatter that the model already accounts for.
    pub known: f64,
}

/// Standard deviations of the logarithms of measured over predicted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    /// Standard deviation of the part that all rows of a source share.
    pub between: f64,
    /// Standard deviation of the part that each row has for itself.
    pub within: f64,
}

/// Owner and name of a row's repository, or all of its address where it has none.
pub(crate) fn source(row: &FieldRun) -> String {
    let parts: Vec<&str> = row.source_url.split('/').collect();
    parts.get(3..5).map_or_else(|| row.source_url.clone(), |repository| repository.join("/"))
}

impl Spread {
    /// Estimates the spread of these residuals; `None` where no source has two rows.
    pub(crate) fn of<'a>(residuals: impl Iterator<Item = &'a Residual>) -> Option<Self> {
        let mut sources: BTreeMap<&str, Vec<&Residual>> = BTreeMap::new();
        residuals.for_each(|r| sources.entry(&r.source).or_default().push(r));
        let rows: usize = sources.values().map(Vec::len).sum();
        let freedom = (rows - sources.len()) as f64;
        let mean = |of: &[&Residual]| of.iter().map(|r| r.value).sum::<f64>() / of.len() as f64;
        // Sum of squares about the source's mean, less what is known of it.
        let own = |of: &Vec<&Residual>| {
            let (middle, n) = (mean(of), of.len() as f64);
            let known = of.iter().map(|r| r.known * r.known).sum::<f64>() / n;
            of.iter().map(|r| (r.value - middle).powi(2)).sum::<f64>() - (n - 1.0) * known
        };
        let within = (freedom > 0.0).then(|| (sources.values().map(own).sum::<f64>() / freedom).max(0.0))?;
        let means: Vec<f64> = sources.values().map(|of| mean(of)).collect();
        let middle = means.iter().sum::<f64>() / means.len() as f64;
        // Of a source's mean, by its rows' scatter alone.
        let error = |of: &Vec<&Residual>| (within + of[0].known.powi(2)) / of.len() as f64;
        let errors = sources.values().map(error).sum::<f64>() / means.len() as f64;
        let between = match means.len() {
            1 => 0.0,
            n => means.iter().map(|m| (m - middle).powi(2)).sum::<f64>() / (n - 1) as f64 - errors,
        };
        Some(Self { between: between.max(within / rows as f64).sqrt(), within: within.sqrt() })
    }
}

/// What is believed of mlx-lm on a machine, with these spreads in the place of those that all rows give.
pub(crate) fn prior_with(machine: &Machine, speed: Spread, peak: Spread) -> Calibration {
    let mut prior = Calibration::prior(machine, Engine::MlxLm);
    prior.noise.time = speed.within;
    prior.noise.peak = peak.within;
    let [compute, ..] = TIME;
    let heat = if machine.fanless { FANLESS_SD } else { 0.0 };
    prior.covariance[compute][compute] = speed.between.powi(2) + heat.powi(2);
    prior.covariance[ALLOCATION][ALLOCATION] = peak.between.powi(2);
    prior
}

#[cfg(test)]
mod tests {
    use super::*;

    fn residual(source: &str, value: f64) -> Residual {
        Residual { id: String::new(), source: source.into(), value, known: 0.0 }
    }

    #[test]
    fn what_sources_share_is_told_from_what_rows_have_for_themselves() {
        // Means 0.3 and -0.3; about them 0.1 and -0.1.
        let far = [("a", 0.4), ("a", 0.2), ("b", -0.2), ("b", -0.4)].map(|(s, v)| residual(s, v));
        let spread = Spread::of(far.iter()).unwrap();
        assert!((spread.within - 0.02f64.sqrt()).abs() < 1e-12);
        assert!((spread.between - (0.18f64 - 0.01).sqrt()).abs() < 1e-12);
        // Alike: no less than the error of the mean of four rows.
        let alike = [("a", 0.1), ("a", -0.1), ("b", 0.1), ("b", -0.1)].map(|(s, v)| residual(s, v));
        let spread = Spread::of(alike.iter()).unwrap();
        assert!((spread.between - spread.within / 2.0).abs() < 1e-12);
        // What is known is taken off; single rows say nothing of what is within.
        let hot = far.map(|r| Residual { known: 0.1, ..r });
        assert!((Spread::of(hot.iter()).unwrap().within - 0.1).abs() < 1e-12);
        assert_eq!(Spread::of([residual("a", 0.1), residual("b", 0.2)].iter()), None);
    }
}
