//! Inverse frequencies of every rope that Hugging Face writes (`modeling_rope_utils.py`).

use std::f64::consts::PI;

use crate::spec::model::architecture::{Rope, RopeScaling};

/// Inverse frequencies, `dims / 2` of them, and the factor on cosine and sine.
/// `length` is the longest sequence of the run: longrope has other frequencies beyond the trained length.
pub(crate) fn inverse_frequencies(rope: &Rope, length: usize) -> (Vec<f64>, f64) {
    let half = rope.dims / 2;
    let base: Vec<f64> = (0..half).map(|i| rope.theta.powf(-2.0 * i as f64 / rope.dims as f64)).collect();
    match &rope.scaling {
        None => (base, 1.0),
        Some(RopeScaling::Linear { factor }) => (base.iter().map(|f| f / factor).collect(), 1.0),
        Some(RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings }) => {
            let original = *original_max_position_embeddings as f64;
            let stretch = |f: f64| {
                let wavelength = 2.0 * PI / f;
                if wavelength > original / low_freq_factor {
                    f / factor
                } else if wavelength < original / high_freq_factor {
                    f
                } else {
                    let s = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - s) * f / factor + s * f
                }
            };
            (base.into_iter().map(stretch).collect(), 1.0)
        }
        Some(yarn @ RopeScaling::Yarn { attention_factor, .. }) => {
            (yarn_frequencies(rope, &base, yarn), *attention_factor)
        }
        Some(RopeScaling::LongRope {
            short_factor,
            long_factor,
            attention_factor,
            original_max_position_embeddings,
        }) => {
            let factors = if length > *original_max_position_embeddings { long_factor } else { short_factor };
            (base.iter().zip(factors).map(|(f, s)| f / s).collect(), *attention_factor)
        }
    }
}

/// YaRN (arXiv:2309.00071): high frequencies stay, low ones are stretched, a ramp between.
fn yarn_frequencies(rope: &Rope, base: &[f64], scaling: &RopeScaling) -> Vec<f64> {
    let RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_position_embeddings, truncate, .. } = scaling
    else {
        return base.to_vec();
    };
    let dims = rope.dims as f64;
    let original = *original_max_position_embeddings as f64;
    // The dimension that turns `n` times over the original length.
    let dimension = |n: f64| dims * (original / (n * 2.0 * PI)).ln() / (2.0 * rope.theta.ln());
    let (mut low, mut high) = (dimension(*beta_fast), dimension(*beta_slow));
    if *truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dims - 1.0));
    if low == high {
        high += 0.001; // as transformers avoids the division by zero
    }
    let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
    base.iter().enumerate().map(|(i, f)| f / factor * ramp(i) + f * (1.0 - ramp(i))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::model::architecture::{ModelSpec, Positions};

    /// Against transformers; `tests/fixtures/reference/make.py` made the file.
    #[test]
    fn frequencies_equal_transformers() {
        let text = include_str!("../../../tests/fixtures/reference/rope.json");
        let cases: Vec<serde_json::Map<String, serde_json::Value>> = serde_json::from_str(text).unwrap();
        for case in &cases {
            let name = &case["name"];
            let mut map = case.clone();
            for (key, value) in [("hidden_size", 2048), ("num_attention_heads", 32), ("num_hidden_layers", 1)] {
                map.insert(key.into(), value.into());
            }
            map.insert("model_type".into(), "llama".into());
            map.insert("intermediate_size".into(), 1.into());
            map.insert("vocab_size".into(), 1.into());
            let spec = ModelSpec::from_map(&map).unwrap_or_else(|e| panic!("{name}: {e}"));
            let Positions::Rope { global, .. } = &spec.positions else { panic!("{name} has no rope") };
            let (frequencies, factor) = inverse_frequencies(global, 1);
            let expected: Vec<f64> = case["inv_freq"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
            assert_eq!(frequencies.len(), expected.len(), "{name}");
            for (i, (f, e)) in frequencies.iter().zip(&expected).enumerate() {
                assert!((f - e).abs() <= 2e-6 * e.abs(), "{name}[{i}]: {f} and {e}");
            }
            let expected = case["attention_factor"].as_f64().unwrap();
            assert!((factor - expected).abs() < 1e-6, "{name}: factor {factor}");
        }
        assert_eq!(cases.len(), 10);
    }
}
