//! What a quantised base costs in quality, as published.

use serde::Serialize;

use crate::spec::model::ModelSpec;
use crate::spec::run::Weights;

/// Mean of MMLU, C-Eval and IFEval of Qwen2's instruct models: parameters, and the scores in bf16, in 8 and in 4 bits (GPTQ).
/// <https://qwen.readthedocs.io/en/latest/getting_started/quantization_benchmark.html>
const SCORES: [(f64, [f64; 3]); 4] = [
    (0.494e9, [34.4, 32.6, 29.7]),
    (1.54e9, [48.4, 48.1, 45.0]),
    (7.62e9, [66.9, 66.2, 64.1]),
    (72.7e9, [81.3, 80.7, 81.2]),
];

/// Where the scores were published.
const SOURCE: &str = "Qwen2's benchmarks of GPTQ";

/// What a format costs at a size, before anything is learned on it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Quality {
    /// Bits of a weight.
    pub(crate) bits: u32,
    /// Share of the benchmark's score that is lost, of a model of this size.
    pub(crate) loss: f64,
    /// Whose figures these are.
    pub(crate) source: &'static str,
}

impl Quality {
    /// What a run's format costs; `None` where the base is held as wide as 16 bits.
    pub(crate) fn of(spec: &ModelSpec, weights: Weights, parameters: u64) -> Option<Self> {
        let bits = spec.usual_format(weights).bits();
        if bits >= 16.0 {
            return None;
        }
        // Between the two that were published: nearer to the one with less.
        let column = if bits < 7.0 { 2 } else { 1 };
        Some(Self { bits: bits as u32, loss: lost(parameters as f64, column), source: SOURCE })
    }
}

/// Share of the score that is lost, between the published sizes in proportion to the logarithm of the size, and beyond them
/// as at the nearest.
fn lost(parameters: f64, column: usize) -> f64 {
    let at = |(_, scores): &(f64, [f64; 3])| (1.0 - scores[column] / scores[0]).max(0.0);
    let above = SCORES.iter().position(|(size, _)| *size >= parameters);
    match above {
        Some(0) => at(&SCORES[0]),
        None => at(&SCORES[SCORES.len() - 1]),
        Some(i) => {
            let (low, high) = (&SCORES[i - 1], &SCORES[i]);
            let share = (parameters / low.0).ln() / (high.0 / low.0).ln();
            at(low) + share * (at(high) - at(low))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::model::catalogue;

    #[test]
    fn fewer_bits_cost_more_and_small_models_most() {
        let of = |name: &str, weights| {
            let entry = catalogue::find(name).unwrap();
            Quality::of(&entry.spec, weights, entry.parameters)
        };
        assert_eq!(of("Qwen3-8B", Weights::Stored), None);
        let loss = |name: &str, weights| of(name, weights).unwrap().loss;
        let four: Vec<f64> = ["Qwen2.5-0.5B-Instruct", "Qwen2.5-1.5B-Instruct", "Qwen3-8B", "Llama-3.3-70B-Instruct"]
            .map(|name| loss(name, Weights::FourBit))
            .into();
        assert!(four.windows(2).all(|pair| pair[0] > pair[1]), "{four:?}");
        assert!((four[0] - 0.137).abs() < 0.001 && (four[1] - 0.070).abs() < 0.001, "{four:?}");
        assert!(loss("Qwen3-8B", Weights::EightBit) < loss("Qwen3-8B", Weights::FourBit));
        assert_eq!(of("Qwen3-8B", Weights::Q4K).unwrap().bits, 4);
    }
}
