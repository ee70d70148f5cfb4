//! Pure functions on numbers: robust summaries, quantiles, and linear regression with a prior.

use nalgebra::{DMatrix, DVector};
use statrs::distribution::{ContinuousCDF, Normal, StudentsT};

/// A normal's standard deviation is this many median absolute deviations (1 / its 75 % quantile).
pub(crate) const MAD_TO_SD: f64 = 1.482_602_218_505_602;

/// Quantile `p` of `values` by linear interpolation (R's type 7, as numpy and Excel have it; that of statrs is type 8);
/// NaN of nothing.
pub(crate) fn quantile(values: &[f64], p: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = p.clamp(0.0, 1.0) * last as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

/// The middle value, or the mean of the two in the middle; NaN of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Median absolute deviation from the median, unscaled.
pub(crate) fn mad(values: &[f64]) -> f64 {
    let middle = median(values);
    median(&values.iter().map(|v| (v - middle).abs()).collect::<Vec<_>>())
}

/// Quantile `p` of the standard normal distribution.
pub(crate) fn normal_quantile(p: f64) -> f64 {
    Normal::standard().inverse_cdf(p)
}

/// Beyond this many degrees of freedom Student's t is the normal to four digits.
const NEARLY_NORMAL: f64 = 1e4;

/// Quantile `p` of Student's t distribution.
pub(crate) fn student_t_quantile(p: f64, degrees_of_freedom: f64) -> f64 {
    if degrees_of_freedom > NEARLY_NORMAL {
        return normal_quantile(p);
    }
    StudentsT::new(0.0, 1.0, degrees_of_freedom).map_or(f64::NAN, |t| t.inverse_cdf(p))
}

/// What is believed of some coefficients: a normal with this mean and covariance.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Belief {
    /// Most likely values of the coefficients.
    pub mean: DVector<f64>,
    /// Covariance of the coefficients.
    pub covariance: DMatrix<f64>,
}

impl Belief {
    /// A belief in independent coefficients, with these means and standard deviations.
    pub(crate) fn independent(mean: &[f64], sd: &[f64]) -> Self {
        let variances = DVector::from_iterator(sd.len(), sd.iter().map(|s| s * s));
        Self { mean: DVector::from_column_slice(mean), covariance: DMatrix::from_diagonal(&variances) }
    }

    /// The belief after seeing `y = x b + e`, where each `e` is normal with variance `noise^2 / weight`.
    /// With prior N(m, S): precision P = S^-1 + x' W x / noise^2 and mean P^-1 (S^-1 m + x' W y / noise^2).
    /// `None` if a covariance cannot be inverted.
    pub(crate) fn updated(&self, x: &DMatrix<f64>, y: &DVector<f64>, weights: &[f64], noise: f64) -> Option<Self> {
        let prior = self.covariance.clone().cholesky()?.inverse();
        let scaled = DVector::from_iterator(weights.len(), weights.iter().map(|w| w / (noise * noise)));
        let xw = x.transpose() * DMatrix::from_diagonal(&scaled);
        let covariance = (&prior + &xw * x).cholesky()?.inverse();
        let mean = &covariance * (&prior * &self.mean + xw * y);
        Some(Self { mean, covariance })
    }

    /// Variance of `row . b`, for coefficients `b` of this belief.
    pub(crate) fn variance_of(&self, row: &DVector<f64>) -> f64 {
        (row.transpose() * &self.covariance * row)[(0, 0)]
    }
}

/// Huber's weights: 1 within `k` robust standard deviations of the fit, falling as 1/|residual| beyond.
pub(crate) fn huber_weights(residuals: &[f64], k: f64, least_sd: f64) -> Vec<f64> {
    let sizes: Vec<f64> = residuals.iter().map(|r| r.abs()).collect();
    let limit = k * (MAD_TO_SD * median(&sizes)).max(least_sd);
    sizes.iter().map(|r| if *r <= limit { 1.0 } else { limit / r }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn summaries() {
        let values = [7.0, 1.0, 3.0, 100.0];
        assert_eq!([median(&values), median(&values[..3]), median(&values[..1])], [5.0, 3.0, 7.0]);
        assert_eq!(quantile(&values, 0.25), 2.5);
        // Deviations from 5: 2 4 2 95.
        assert_eq!(mad(&values), 3.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn quantiles_equal_the_tables() {
        assert!(close(normal_quantile(0.975), 1.959_964));
        assert!(close(student_t_quantile(0.975, 4.0), 2.776_445));
        assert!(close(student_t_quantile(0.95, 10.0), 1.812_461));
    }

    #[test]
    fn one_coefficient_by_hand() {
        // Prior N(0, 1); y = 2 b and 4 with noise 1 at x = 1 and 2: precision 1 + 1 + 4, mean (2 + 8) / 6.
        let x = DMatrix::from_column_slice(2, 1, &[1.0, 2.0]);
        let y = DVector::from_column_slice(&[2.0, 4.0]);
        let after = Belief::independent(&[0.0], &[1.0]).updated(&x, &y, &[1.0, 1.0], 1.0).unwrap();
        assert!(close(after.mean[0], 10.0 / 6.0) && close(after.covariance[(0, 0)], 1.0 / 6.0));
        assert!(close(after.variance_of(&DVector::from_column_slice(&[3.0])), 1.5));
        // A weight of 2 is the observation made twice.
        let twice = Belief::independent(&[0.0], &[1.0]).updated(&x, &y, &[2.0, 2.0], 1.0).unwrap();
        assert!(close(twice.mean[0], 20.0 / 11.0) && close(twice.covariance[(0, 0)], 1.0 / 11.0));
    }

    #[test]
    fn far_observations_count_less() {
        let weights = huber_weights(&[0.1, -0.1, 0.1, 2.0], 2.5, 0.0);
        assert_eq!(weights[..3], [1.0, 1.0, 1.0]);
        assert!(close(weights[3], 2.5 * MAD_TO_SD * 0.1 / 2.0));
        assert_eq!(huber_weights(&[0.0, 0.0, 0.01], 2.5, 0.01), [1.0; 3]);
    }
}
