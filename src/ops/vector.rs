//! Arithmetic that the compiler can put into vector registers: [`wide`] compiles a loop for the widest ones this
//! processor has, and what is called inside must be inlined and free of calls into libm.

/// Runs `f` compiled for the processor at hand, and not for the oldest one of its kind.
#[inline(always)]
pub(crate) fn wide<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            // SAFETY: the processor has them.
            return unsafe { avx512(f) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { avx2(f) };
        }
    }
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Partial sums kept side by side; the order is fixed, so results repeat.
const LANES: usize = 32;

/// `sum of f(i) for i < n`
#[inline(always)]
pub(crate) fn sum_by(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; LANES];
    let full = n - n % LANES;
    for i in (0..full).step_by(LANES) {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
    }
    let mut sum = 0.0;
    for i in full..n {
        sum += f(i);
    }
    lanes.iter().sum::<f32>() + sum
}

/// Largest of `x`; minus infinity if there is none. A NaN is passed over.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (full, rest) = x.as_chunks::<LANES>();
    for part in full {
        for (lane, &x) in lanes.iter_mut().zip(part) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &x| m.max(x))
}

/// `e^x` to 2 units in the last place, from 2^-126 to the largest finite number; NaN stays NaN.
///
/// `x = n ln 2 + r` with `|r| <= ln(2) / 2`, and Cephes' polynomial for `e^r` (`expf.c`).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, which then stands in the lowest bits.
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x < -87.336 { -87.336 } else { x };
    let x = if x > 88.37 { 88.37 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let power = (shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23;
    (p * r * r + r + 1.0) * f32::from_bits(power)
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -870_000..=883_000 {
            let x = i as f32 * 1e-4;
            let (ours, true_value) = (exp(x), f64::from(x).exp());
            let unit = f64::from(f32::from_bits((true_value as f32).to_bits() + 1)) - f64::from(true_value as f32);
            let error = (f64::from(ours) - true_value).abs() / unit;
            assert!(error <= 2.0, "exp({x}) = {ours:e}, {error} units off");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(-1e30) < 2e-38 && exp(f32::NEG_INFINITY) < 2e-38);
        assert!(exp(1e30).is_finite() && exp(1e30) > 2e38);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_take_every_element() {
        for n in [0, 1, 31, 32, 33, 100] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32).collect();
            let whole = wide(|| (sum_by(n, |i| x[i]), max(&x)));
            assert_eq!(whole, (x.iter().sum(), x.iter().copied().fold(f32::NEG_INFINITY, f32::max)), "{n}");
        }
    }
}
