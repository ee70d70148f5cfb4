//! The tokens an optimizer step works on, as each engine lays them out.

use crate::spec::data::TokenLengths;
use crate::spec::model::ModelSpec;
use crate::spec::run::{Engine, RunConfig};

/// mlx-lm pads every batch to a multiple of this, plus one (`iterate_batches`, since March 2025).
const MLX_PADDING: usize = 32;

/// Longest list of examples that the mean is taken over; more are thinned evenly.
const SAMPLE: usize = 512;

/// Means over the micro-batches of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Work {
    /// Micro-batches of an optimizer step.
    pub micro_batches: f64,
    /// Tokens of the examples in a micro-batch.
    pub tokens: f64,
    /// Rows of the matrices in a micro-batch: tokens with padding.
    pub rows: f64,
    /// Lengths of the rows that see each other, with how many of them a micro-batch has.
    pub sequences: Vec<(usize, f64)>,
}

/// Length of a row of `n` tokens as mlx-lm pads it.
pub fn mlx_padded(n: usize, cap: usize) -> usize {
    (1 + n.div_ceil(MLX_PADDING) * MLX_PADDING).min(cap)
}

impl Work {
    /// Of a run. Without `lengths` every example is taken to be as long as it may be.
    pub fn of(run: &RunConfig, lengths: Option<&TokenLengths>) -> Self {
        let (cap, batch) = (run.recipe.max_seq_length, run.execution.batch_size);
        let micro_batches = run.accumulation() as f64;
        let Some(lengths) = lengths.filter(|l| !l.is_empty()) else {
            let tokens = (batch * cap) as f64;
            return Self { micro_batches, tokens, rows: tokens, sequences: vec![(cap, batch as f64)] };
        };
        let tokens = batch as f64 * lengths.mean_cut(cap);
        let rows: Vec<usize> = match run.engine {
            // Examples lie end to end without padding.
            Engine::Candle => thinned(lengths.sorted(), 1).map(|n| n.min(cap)).collect(),
            // Batches are cut from the list sorted by length; each is as wide as its longest.
            Engine::MlxLm => thinned(lengths.sorted(), batch).map(|n| mlx_padded(n, cap)).collect(),
        };
        let weight = batch as f64 / rows.len() as f64;
        let total: f64 = rows.iter().map(|&n| n as f64 * weight).sum();
        Self { micro_batches, tokens, rows: total, sequences: rows.into_iter().map(|n| (n, weight)).collect() }
    }

    /// Query-key pairs of a micro-batch in a layer that sees `window` keys, when queries are worked on `chunk` at a
    /// time and a chunk meets every key that any of its queries can see.
    pub fn pairs(&self, window: Option<usize>, chunk: usize) -> f64 {
        let of = |n: usize| {
            let (n, c) = (n as f64, chunk.min(n) as f64);
            let w = window.map_or(n, |w| (w as f64).min(n));
            // The first w queries see a triangle, the others a band.
            w * (w + c) / 2.0 + (n - w) * (w + c)
        };
        self.sequences.iter().map(|&(n, count)| count * of(n)).sum()
    }

    /// Pairs over all layers, and over the layers from `first` on.
    pub fn pairs_by_layer(&self, spec: &ModelSpec, chunk: usize, first: usize) -> (f64, f64) {
        let windows = &spec.attention.windows;
        let mut known: Vec<(Option<usize>, f64)> = Vec::new();
        let mut of = |window| match known.iter().find(|(w, _)| *w == window) {
            Some((_, pairs)) => *pairs,
            None => {
                let pairs = self.pairs(window, chunk);
                known.push((window, pairs));
                pairs
            }
        };
        let each: Vec<f64> = (0..spec.num_hidden_layers).map(|i| of(windows.get(i).copied().flatten())).collect();
        (each.iter().sum(), each[first.min(each.len())..].iter().sum())
    }

    /// Squared lengths: what an engine works on that does not use causality.
    pub fn squares(&self) -> f64 {
        self.sequences.iter().map(|&(n, count)| count * (n * n) as f64).sum()
    }
}

/// The longest of each group of `group` lengths, thinned to [`SAMPLE`] groups.
fn thinned(sorted: &[u32], group: usize) -> impl Iterator<Item = usize> + '_ {
    let groups = sorted.len().div_ceil(group);
    let step = groups.div_ceil(SAMPLE);
    // The middle of each stride, so that thinning does not favour the short or the long.
    (0..groups).skip(step / 2).step_by(step).map(move |i| sorted[((i + 1) * group).min(sorted.len()) - 1] as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(engine: &str, batch: usize) -> RunConfig {
        let text = format!(
            "model = \"m\"\ndata = \"d\"\nengine = \"{engine}\"\n[recipe]\nmax_seq_length = 100\n[execution]\nbatch_size = {batch}"
        );
        RunConfig::from_toml(&text, "run.toml".as_ref()).unwrap()
    }

    #[test]
    fn only_mlx_pads() {
        let lengths = TokenLengths::new(vec![10, 20, 40, 300]);
        let ours = Work::of(&run("candle", 2), Some(&lengths));
        assert_eq!((ours.tokens, ours.rows, ours.micro_batches), (85.0, 85.0, 8.0));
        let theirs = Work::of(&run("mlx-lm", 2), Some(&lengths));
        // Batches {10, 20} and {40, 300}: two rows of 33 and two of 100, each half of the time.
        assert_eq!((theirs.tokens, theirs.rows), (85.0, 133.0));
        assert_eq!(Work::of(&run("candle", 4), None).squares(), 4.0 * 1e4);
    }

    #[test]
    fn pairs_are_a_triangle_and_a_band() {
        let work = Work::of(&run("candle", 1), None);
        assert_eq!(work.pairs(None, 1), 100.0 * 101.0 / 2.0);
        assert_eq!(work.pairs(None, 100), 100.0 * 100.0);
        assert_eq!(work.pairs(Some(10), 1), 10.0 * 11.0 / 2.0 + 90.0 * 11.0);
        assert_eq!(work.pairs(Some(1000), 1), work.pairs(None, 1));
    }
}
